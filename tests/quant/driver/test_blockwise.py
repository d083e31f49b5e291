"""Quantizing from folder to folder: the bytes of the in-memory way, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blockwise_jobs import (
    BOTH,
    GPTQ,
    RTN,
    STEPS,
    TOWER,
    PowerCutError,
    contents,
    cut_after,
    finish,
    job,
    source_of,
)
from tiny_models import DENSE, prompts, small_config, small_model, write_small_checkpoint

from vlpress.calib import tap_groups
from vlpress.model.config import ModelConfig
from vlpress.model.loading import build_model, load_model
from vlpress.quant.driver.blockwise import BlockwiseQuantizer
from vlpress.quant.driver.journal import Journal
from vlpress.quant.driver.pipeline import quantize_, save_quantized

pytestmark = pytest.mark.usefixtures("few_alphas")


def in_memory(source: Path, streaming: BlockwiseQuantizer, out: Path) -> dict[str, bytes]:
    model = load_model(source, device="cpu")
    report = quantize_(model, streaming.recipe, streaming.prompts)
    save_quantized(model, report, source, out)
    return contents(out)


# One recipe of each kind.
SAME_BYTES = [
    ("qwen2_5_vl", "solved"),
    ("qwen2_5_vl", "awq"),
    ("qwen2_5_vl", "adapted"),
    ("qwen2_5_vl", "against the float model"),
    ("qwen2_vl", "smoothed"),
    ("qwen3_vl", "smoothed"),
    ("qwen3_vl", "against the float model"),
]
FAMILIES_AND_STEPS = [(family, name) for family in DENSE for name in STEPS]
OTHERS = [case for case in FAMILIES_AND_STEPS if case not in SAME_BYTES]


@pytest.mark.parametrize(
    ("family", "name"),
    SAME_BYTES + [pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS],
)
def test_the_bytes_are_those_of_the_way_in_memory(tmp_path: Path, family: str, name: str) -> None:
    source = source_of(tmp_path, family, steps=STEPS[name])
    samples = prompts(ModelConfig.from_folder(source))
    streaming = job(source, STEPS[name], samples)
    written = finish(streaming, tmp_path / "work", tmp_path / "out")
    assert written == in_memory(source, streaming, tmp_path / "other")


@pytest.mark.parametrize("weights", ["gradient", "balanced", "token-gradient"])
def test_tokens_that_count_differently(tmp_path: Path, weights: str) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    streaming = job(source, BOTH, samples, calibration={"token_weights": weights})
    written = finish(streaming, tmp_path / "work", tmp_path / "out")
    assert written == in_memory(source, streaming, tmp_path / "other")


def test_a_tower_that_no_sample_reaches_is_rounded(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    samples = [p for p in prompts(ModelConfig.from_folder(source)) if not p.visuals]
    streaming = job(source, [RTN | {"targets": TOWER}, GPTQ], samples)
    written = finish(streaming, tmp_path / "work", tmp_path / "out")
    assert written == in_memory(source, streaming, tmp_path / "other")


# The larger the stride, the further each attempt gets before the next cut.
@pytest.mark.parametrize(
    ("stride", "memory"),
    [
        (9, 0),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(2, 2**30, marks=pytest.mark.slow),
        pytest.param(9, 2**30, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2_5_vl", "solved"),
        pytest.param("qwen2_5_vl", "smoothed", marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", "adapted", marks=pytest.mark.slow),
        pytest.param("qwen2_5_vl", "against the float model", marks=pytest.mark.slow),
        pytest.param("qwen3_vl", "against the float model", marks=pytest.mark.slow),
    ],
)
def test_stopped_anywhere_it_ends_in_the_same_bytes(
    tmp_path: Path,
    family: str,
    name: str,
    stride: int,
    memory: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = source_of(tmp_path, family)
    samples = prompts(ModelConfig.from_folder(source))
    expected = finish(job(source, STEPS[name], samples), tmp_path / "work", tmp_path / "whole")
    work, out, cuts = tmp_path / "cut", tmp_path / "out", 0
    while not out.exists():
        with monkeypatch.context() as patch:
            cut_after(stride + cuts, patch)
            try:
                finish(job(source, STEPS[name], samples, memory=memory), work, out)
            except PowerCutError:
                cuts += 1
    assert cuts > 1
    assert contents(out) == expected


@pytest.mark.parametrize("method", ["gptq", pytest.param("gptaq", marks=pytest.mark.slow)])
def test_experts_observed_one_at_a_time_have_the_same_bytes(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the run stops between two experts and is resumed."""
    source = source_of(tmp_path, "qwen3_vl_moe")
    samples = prompts(ModelConfig.from_folder(source))
    calibration = {"all_experts": True}
    streaming = job(source, [GPTQ | {"method": method}], samples, calibration=calibration)
    expected = in_memory(source, streaming, tmp_path / "other")
    monkeypatch.setattr(tap_groups, "OBSERVED_BYTES", 1)

    def stop(done: int, total: int, detail: str) -> None:
        if detail.startswith("model.layers.1.mlp.experts.1.down_proj"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streaming.quantize(Journal(tmp_path / "work"), stop)
    assert finish(streaming, tmp_path / "work", tmp_path / "out") == expected


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    streaming = job(source, BOTH, prompts(ModelConfig.from_folder(source)))
    first: list[str] = []

    def stop(done: int, total: int, detail: str) -> None:
        first.append(detail)
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        streaming.quantize(Journal(tmp_path / "work"), stop)
    again: list[str] = []
    work = Journal(tmp_path / "work")
    streaming.quantize(work, lambda done, total, detail: again.append(detail))
    assert not {line.split()[0] for line in again} & {
        layer["name"]
        for record in Journal(tmp_path / "work").records[:2]
        for layer in record["layers"]
    }
    solved = [layer["name"] for record in work.records for layer in record["layers"]]
    assert solved == [row.name for row in streaming.plan.quantized]


def test_only_one_block_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path)
    model = build_model(ModelConfig.from_folder(source))
    monkeypatch.setattr("vlpress.quant.driver.blockwise.build_model", lambda config, dtype: model)
    held: set[str] = set()

    def look(done: int, total: int, detail: str) -> None:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        here = {name for name, tensor in tensors.items() if tensor.device.type != "meta"}
        assert len({block_of(name) for name in here}) == 1
        assert block_of(detail) in {block_of(name) for name in here}
        held.update(block_of(name) for name in here)

    job(source, BOTH, prompts(model.config)).quantize(Journal(tmp_path / "work"), look)
    assert len(held) == 5
    assert all(tensor.device.type == "meta" for tensor in model.parameters())


def block_of(name: str) -> str:
    parts = name.split()[0].split(".")
    return parts[1] if parts[1] == "merger" else ".".join(parts[:3])


@pytest.mark.parametrize(("bad", "kind"), [(torch.nan, "NaN"), (-torch.inf, "infinity")])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, bad: float, kind: str) -> None:
    model = small_model(small_config() | {"torch_dtype": "bfloat16"}, dtype=torch.bfloat16)
    name = "model.layers.1.mlp.up_proj.weight"
    model.get_parameter(name).data[3, 5] = bad
    source = write_small_checkpoint(tmp_path / "source", model)
    streaming = job(source, BOTH, prompts(model.config))
    with pytest.raises(ValueError, match=rf"source: {name} .*{kind}"):
        streaming.quantize(Journal(tmp_path / "work"))
