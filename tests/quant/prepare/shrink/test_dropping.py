from itertools import pairwise
from pathlib import Path

import pytest
import torch
from reference_model import build_reference, reference_logits
from shrink_jobs import load_float, samples_of, shrink, source_of

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig


def explicit_influence(source: Path) -> list[float]:
    """Influence by a forward of the whole model that keeps the states between layers."""
    model, given = load_float(source), samples_of(source)
    layers = model.model.layers
    states: list[list[torch.Tensor]] = [[] for _ in range(len(layers) + 1)]
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, at=i: states[at].append((args or tuple(kwargs.values()))[0]),
            with_kwargs=True,
        )
        for i, layer in enumerate(layers)
    ]
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _, a: states[-1].append(a[0])))
    with torch.no_grad():
        for prompt in given:
            model([prompt])
    for hook in hooks:
        hook.remove()
    joined = [torch.cat([state.flatten(0, -2) for state in of_layer]) for of_layer in states]
    return [float(1 - torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in pairwise(joined)]


@pytest.mark.parametrize("family", [pytest.param("qwen2_5_vl", marks=pytest.mark.slow), "qwen3_vl"])
def test_influence_is_that_of_the_whole_model(tmp_path: Path, family: str) -> None:
    source = source_of(tmp_path, family, num_hidden_layers=4)
    record = shrink(source, tmp_path / "out", layers=3)
    # Hooks see the input of a layer after DeepStack has added to it, as the record does.
    assert record["influence"] == pytest.approx(explicit_influence(source), abs=1e-4)
    allowed = range(2 if family == "qwen3_vl" else 0, 4)
    assert record["dropped"] == [min(allowed, key=lambda i: record["influence"][i])]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_shallower_model_loads_in_transformers(tmp_path: Path, family: str) -> None:
    source = source_of(tmp_path, family, num_hidden_layers=4, shards=2)
    given = samples_of(source)
    record = shrink(source, tmp_path / "out", drop_layers=(2,))
    assert record["dropped"] == [2]
    ours = load_float(tmp_path / "out")
    assert ours.config.text.num_hidden_layers == 3
    # The same model, made by hand from the source's modules.
    source_model = load_float(source)
    states = {
        name.replace("model.layers.3.", "model.layers.2."): value
        for name, value in source_model.state_dict().items()
        if not name.startswith("model.layers.2.")
    }
    assert all(torch.equal(states[name], value) for name, value in ours.state_dict().items())
    assert states.keys() == ours.state_dict().keys()
    reference = build_reference(ours)
    for prompt in given:
        with torch.no_grad():
            (actual,) = ours([prompt])
        expected = reference_logits(reference, prompt)
        assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4


def test_whole_periods_of_attention_types_are_dropped(tmp_path: Path) -> None:
    source = source_of(tmp_path, "qwen3_5", num_hidden_layers=6)
    record = shrink(source, tmp_path / "out", layers=4)
    sums = [sum(record["influence"][i : i + 2]) for i in (0, 2, 4)]
    first = 2 * min(range(3), key=lambda run: (sums[run], -run))
    assert record["dropped"] == [first, first + 1]
    types = ModelConfig.from_folder(tmp_path / "out").text.layer_types
    assert types == ("linear_attention", "full_attention") * 2


def test_random_choice_needs_no_samples_and_follows_the_seed(tmp_path: Path) -> None:
    source = source_of(tmp_path, num_hidden_layers=6)
    records = [
        shrink(source, tmp_path / f"{seed}", [], layers=3, score="random", seed=seed)
        for seed in range(3)
    ]
    dropped = [record["dropped"] for record in records]
    assert all(len(layers) == 3 for layers in dropped)
    assert len({tuple(layers) for layers in dropped}) > 1
    reader = CheckpointReader(tmp_path / "0")
    layers = {name.split(".")[2] for name in reader.names() if name.startswith("model.layers.")}
    assert layers == {"0", "1", "2"}


def test_experts_are_renumbered_too(tmp_path: Path) -> None:
    source = source_of(tmp_path, "qwen3_vl_moe", num_hidden_layers=4)
    shrink(source, tmp_path / "out", drop_layers=(2,))
    before, after = CheckpointReader(source), CheckpointReader(tmp_path / "out")
    name = "model.layers.{}.mlp.experts.gate_up_proj"
    assert torch.equal(after.tensor(name.format(2)), before.tensor(name.format(3)))
    assert name.format(3) not in after
    load_float(tmp_path / "out")


def test_samples_without_any_weight_are_refused(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    texts = [prompt for prompt in samples_of(source) if not prompt.visuals]
    weights = {"token_weights": {"image": 1.0, "text": 0.0}}
    with pytest.raises(ValueError, match="all calibration tokens have weight 0"):
        shrink(source, tmp_path / "out", texts, calibration=weights, layers=1)
