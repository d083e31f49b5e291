"""Features of visuals beyond those that replace placeholder embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_models import prompts
from torch import Tensor
from toy_family import registered, toy_model

from vlpress.calib.gradients import loss_gradients
from vlpress.model.features import feature_bytes, join_features, split_features
from vlpress.model.generation import generate
from vlpress.model.processing.inputs import Prompt, visual_mask
from vlpress.model.qwen_vl import QwenVL


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    with registered():
        yield


KEYS = ["hidden", "deepstack.0", "deepstack.1"]


def expected_hidden(model: QwenVL, prompt: Prompt) -> Tensor:
    """Hidden states of one prompt after the final norm, by a loop of its own."""
    with torch.no_grad():
        features = model.encode(prompt.visuals)
        batch = model.embed([prompt], [features])
        state = model.model.prepare(batch.embeds, batch.position_ids)
        where = visual_mask(prompt.input_ids, model.config)
        hidden = state["hidden"]
        for index, layer in enumerate(model.model.layers):
            hidden = layer(hidden, state["cos"], state["sin"])
            if features and f"deepstack.{index}" in features[0]:
                hidden[0, where] += torch.cat([each[f"deepstack.{index}"] for each in features])
        out: Tensor = model.model.norm(hidden)
        return out


def test_features_are_added_after_their_layer_in_every_batch() -> None:
    model = toy_model()
    samples = prompts(model.config)
    together = model(samples)
    for sample, logits in zip(samples, together, strict=True):
        expected = model.logits(expected_hidden(model, sample))[0]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    plain = [[{"hidden": f["hidden"]} for f in model.encode(p.visuals)] for p in samples]
    changes = [
        float((a - b).abs().max()) for a, b in zip(together, model(samples, plain), strict=True)
    ]
    assert changes[0] < 1e-4 and min(changes[1:]) > 0.01  # the first prompt has no image


def test_a_layer_drops_what_it_has_added() -> None:
    model = toy_model()
    batch = model.embed(prompts(model.config))
    state = model.model.prepare(batch.embeds, batch.position_ids, added=batch.added)
    assert set(state) == {"hidden", "cos", "sin", "visual_rows", "deepstack.0", "deepstack.1"}
    after = [set(state) for state in model.model.layer_states(state)]
    assert after[0] == {"hidden", "cos", "sin", "visual_rows", "deepstack.1"}
    assert after[1] == {"hidden", "cos", "sin"}
    ids = torch.stack(
        [
            torch.nn.functional.pad(p.input_ids, (batch.embeds.shape[1] - len(p), 0))
            for p in prompts(model.config)
        ]
    )
    rows = torch.nonzero(visual_mask(ids, model.config).flatten())[:, 0]
    assert torch.equal(state["visual_rows"], rows)


def test_generation_with_shared_prefixes() -> None:
    """The prefixes hold the visuals; the result is that of every prompt alone."""
    model = toy_model()
    one = prompts(model.config)[2]
    endings = torch.randint(80, (2, 4), generator=torch.Generator().manual_seed(0))
    positions = one.next_position + torch.arange(4).expand(3, 4)
    both = [
        replace(
            one,
            input_ids=torch.cat([one.input_ids, ending]),
            position_ids=torch.cat([one.position_ids, positions], dim=1),
        )
        for ending in endings
    ]
    together = generate(model, both, max_new_tokens=4, stop_ids=(), return_logits=True)
    for prompt, answer in zip(both, together, strict=True):
        [alone] = generate(model, [prompt], max_new_tokens=4, stop_ids=(), return_logits=True)
        assert answer.token_ids == alone.token_ids
        assert answer.logits is not None and alone.logits is not None
        torch.testing.assert_close(answer.logits, alone.logits, atol=1e-3, rtol=1e-3)
        last = model.logits(expected_hidden(model, prompt)[:, -1])
        torch.testing.assert_close(alone.logits[:1], last, atol=1e-3, rtol=1e-3)


def test_gradients_are_those_of_the_whole_function() -> None:
    model, sample = toy_model(), prompts(toy_model().config)[1]
    sample = replace(sample, answer_tokens=3)
    gradients = loss_gradients(model, sample)
    plain = toy_model()
    for key in ("0", "1"):  # without the added features
        for parameter in plain.visual.get_submodule(f"more.{key}.mlp.2").parameters():
            parameter.zero_()
    assert len(gradients) == 2
    assert not torch.allclose(gradients[0], loss_gradients(plain, sample)[0])


def test_features_are_split_and_joined() -> None:
    model = toy_model()
    features = model.encode(prompts(model.config)[2].visuals)
    assert [list(each) for each in features] == [KEYS] * 3
    assert [each["deepstack.1"].shape for each in features] == [(6, 64), (1, 64), (8, 64)]
    joined = join_features(features, features[0]["hidden"])
    parts = split_features(joined, [6, 1, 8])
    for part, each in zip(parts, features, strict=True):
        assert all(torch.equal(part[key], each[key]) for key in KEYS)
    assert feature_bytes(joined) == 3 * 15 * 64 * 4
    with pytest.raises(ValueError, match=r"deepstack\.0.*hidden"):
        join_features([features[0], {"hidden": features[1]["hidden"]}], features[0]["hidden"])
