"""Accepted drafts: the counts, their alignment with the model's tokens, and a whole evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_random_model, make_tiny_config, prompts, write_checkpoint_folder

from vlpress.eval import evaluate_model, open_task
from vlpress.eval.fidelity.drafts import DraftCounts, aligned_logits, has_predictor
from vlpress.eval.results import read_run
from vlpress.model.loading import load_model
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

MTP = {"mtp_num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return make_random_model(config=make_tiny_config("qwen3_5", text=MTP))


@pytest.fixture(scope="module")
def predictor(model: QwenVL) -> MultiTokenPredictor:
    torch.manual_seed(5)
    predictor = MultiTokenPredictor(model.config.text)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return predictor.eval().requires_grad_(False)


def test_shares_by_hand() -> None:
    model = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    draft = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.7, 0.1]]).log()
    counts = DraftCounts()
    counts.add(model, draft)
    assert (counts.tokens, counts.greedy) == (2, 1)
    assert counts.sampled == pytest.approx(0.75 + 0.9)
    assert counts.to_dict() == {"tokens": 2, "greedy": 0.5, "sampled": pytest.approx(0.825)}
    assert DraftCounts().to_dict() == {"tokens": 0, "greedy": None, "sampled": None}


@given(tokens=st.integers(1, 6), seed=st.integers(0, 99))
def test_equal_distributions_are_always_accepted(tokens: int, seed: int) -> None:
    logits = torch.randn(tokens, 9, generator=torch.Generator().manual_seed(seed))
    counts = DraftCounts()
    counts.add(logits, logits + 3)
    assert counts.greedy == tokens
    assert counts.sampled == pytest.approx(tokens, rel=1e-5)


def changed(prompt: Prompt, token: int) -> Prompt:
    ids = prompt.input_ids.clone()
    ids[token] = (ids[token] + 1) % 90
    return replace(prompt, input_ids=ids)


@torch.inference_mode()
@pytest.mark.parametrize("index", [0, 1])  # a text, an image before it
def test_drafts_belong_to_the_tokens_that_the_model_predicts(
    model: QwenVL, predictor: MultiTokenPredictor, index: int
) -> None:
    prompt = prompts(model.config)[index]
    images = model.encode(prompt.visuals)
    start, end = len(prompt) - 8, len(prompt)

    def read(other: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
        return aligned_logits(model, predictor, other, images, start, end)

    own, drafted = read(prompt)
    assert own.shape == drafted.shape == (7, model.config.text.vocab_size)
    torch.testing.assert_close(own, model([prompt])[0][start : end - 1])
    # Row 2 is about token start + 3: both read the token before it, and neither the token itself.
    for token, reads in ((start + 3, False), (start + 2, True)):
        for before, after in zip((own, drafted), read(changed(prompt, token)), strict=True):
            assert torch.allclose(before[2], after[2], atol=1e-5) != reads


@pytest.mark.usefixtures("packaged")
def test_an_evaluation_measures_the_drafts_of_its_checkpoint(
    model: QwenVL, predictor: MultiTokenPredictor, tmp_path: Path
) -> None:
    extra = {f"mtp.{name}": value for name, value in predictor.state_dict().items()}
    folder = write_checkpoint_folder(tmp_path / "with", model, extra=extra)
    plain = write_checkpoint_folder(tmp_path / "without", model)
    assert has_predictor(folder) and not has_predictor(plain)
    found = []
    for source in (folder, plain):
        loaded, processor = load_model(source, device="cpu"), Processor.from_folder(source)
        tasks = [open_task("builtin-ocrbench", limit=3, max_new_tokens=4)]
        out = tmp_path / f"out of {source.name}"
        evaluate_model(loaded, processor, tasks, out, source=source, batch_size=4)
        found.append(read_run(out).info["drafts"])
    assert found[1] is None
    assert found[0]["prompts"] == 3 and found[0]["tokens"] > 0
    assert 0 <= found[0]["greedy"] <= 1 and 0 < found[0]["sampled"] <= 1
