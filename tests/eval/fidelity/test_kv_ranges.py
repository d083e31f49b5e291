"""Evaluation through a quantized KV cache: ranges, warnings, fingerprint and report."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WriteCheckpoint, make_random_model

import vlpress
from vlpress.eval.fidelity.kv_ranges import kv_ranges
from vlpress.eval.fidelity.measure import compute_divergence
from vlpress.eval.results import read_run
from vlpress.model.kv_quant.types import CacheType
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL

pytestmark = pytest.mark.usefixtures("short_answers")

OPTIONS: dict[str, Any] = {
    "bench": "builtin-ocrbench",
    "limit": 4,
    "batch_size": 2,
    "device": "cpu",
}
BIASED = 1  # the layer
QUANTIZED: tuple[CacheType, ...] = ("int8", "int4", "fp8")


def text_prompts(count: int = 4) -> list[Prompt]:
    random = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 256, (count, 24), generator=random)
    return [Prompt(row, torch.arange(24).expand(3, -1)) for row in ids]


def bias_keys(model: QwenVL, size: float, channel: int = 31) -> None:
    """Add a constant to a channel of the first KV head, in the pair that rotates least.

    Without rotation the softmax would not see it: all scores of a query would grow alike.
    """
    attention: Any = model.model.layers[BIASED].self_attn
    with torch.no_grad():
        attention.k_proj.bias[channel] += size


def divergences(model: QwenVL) -> dict[CacheType, float]:
    """Mean KL of each quantized cache from the float cache of the same model."""
    prompts = text_prompts()
    with torch.inference_mode():
        base = torch.cat(model(prompts))
        kls: dict[CacheType, float] = {}
        for kind in QUANTIZED:
            model.cache_type = kind
            kls[kind] = float(compute_divergence(base, torch.cat(model(prompts))).mean())
        model.cache_type = "model"
    return kls


def test_a_biased_key_channel_costs_much_and_is_named() -> None:
    model = make_random_model()
    before = divergences(model)
    plain = kv_ranges(model, text_prompts(), [[]] * 4)
    bias_keys(model, 200.0)
    after, ranges = divergences(model), kv_ranges(model, text_prompts(), [[]] * 4)
    assert before["int8"] < before["fp8"] < before["int4"]
    assert after["int8"] > 30 * before["int8"] and after["int4"] > 2 * before["int4"]
    # Levels are relative to each value, but the changes of the biased channel are lost in them.
    assert after["fp8"] > 5 * before["fp8"]
    for index, (old, new) in enumerate(zip(plain, ranges, strict=True)):
        assert old.key_outlier_ratio < 16 and old.layer == new.layer == index
        if index < BIASED:
            assert new == old
    found = ranges[BIASED]
    assert found.key_outlier_ratio > 40 and (found.head, found.channel) == (0, 31)
    assert found.key_max > 190 and found.value_max == plain[BIASED].value_max


def test_ranges_are_those_of_the_keys_that_layers_cache() -> None:
    model = make_random_model("qwen3_vl")
    prompts, largest = text_prompts(2), 0.0
    ranges = kv_ranges(model, prompts, [[], []])
    layer: Any = model.model.layers[2]
    with torch.inference_mode():
        for prompt in prompts:
            batch = model.embed([prompt], [[]])
            state = model.model.prepare(batch.embeds, batch.position_ids)
            for index in range(2):
                state = model.model.step(index, state)
            values = layer.self_attn.v_proj(layer.input_layernorm(state["hidden"]))
            largest = max(largest, float(values.abs().max()))
    assert ranges[2].value_max == pytest.approx(largest, rel=1e-6)


@pytest.fixture(scope="module")
def base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kv") / "base"
    vlpress.evaluate(checkpoint, out, **OPTIONS)
    return out


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind == "int8" else pytest.mark.slow) for kind in QUANTIZED],
)
def test_evaluation_measures_through_the_cache(
    checkpoint: Path, base: Path, tmp_path: Path, kind: CacheType
) -> None:
    out = tmp_path / kind
    scores = vlpress.evaluate(checkpoint, out, reference=base, kv_cache=kind, **OPTIONS)
    assert scores["fidelity"]["builtin-ocrbench"]["kl_mean"] > 1e-7
    run = read_run(out)
    assert run.fingerprint["kv_cache"]["type"] == kind
    assert (
        read_run(base).fingerprint["kv_cache"] == "model" and "kv_cache" not in read_run(base).info
    )
    figures = run.info["kv_cache"]
    assert figures["prompts"] == 4 and [f["layer"] for f in figures["layers"]] == [0, 1, 2]
    with pytest.raises(ValueError, match=f"kv_cache.*{kind}"):
        vlpress.evaluate(checkpoint, out, **OPTIONS)
    report = vlpress.compare(base, out, tmp_path / "report")
    assert report["kv_cache"]["base"] is None
    assert report["kv_cache"]["candidate"]["layers"] == figures["layers"]
    assert f"--kv-cache {kind}" in report["command"].split(" && ")[1]
    assert "--kv-cache" not in report["command"].split(" && ")[0]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text("utf-8")
        assert "KV cache was simulated" in text and "Keys and values in the KV cache" in text
    same = vlpress.compare(base, base, tmp_path / "same")
    assert "kv_cache" not in same
    assert "KV cache" not in (tmp_path / "same" / "report.md").read_text("utf-8")


def test_a_run_quantizes_the_cache_of_the_candidate_alone(checkpoint: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "limit": 2, "noise": 0, "recipe": "w4a16-rtn"}
    report = vlpress.run(checkpoint, out=tmp_path / "out", kv_cache="int8", **options)
    assert report["kv_cache"]["base"] is None
    assert report["kv_cache"]["candidate"]["type"] == "int8"
    assert "--kv-cache int8" in report["command"]
    base, candidate = (read_run(tmp_path / "out" / "eval" / s) for s in ("base", "candidate"))
    assert base.fingerprint["kv_cache"] == "model" and candidate.fingerprint["kv_cache"] != "model"
    with pytest.raises(ValueError, match="kv_cache"):
        vlpress.run(checkpoint, out=tmp_path / "out", kv_cache="int4", **options)


def test_warnings_are_logged_stored_and_reported(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_random_model()
    bias_keys(model, 300.0)
    folder = write_checkpoint(tmp_path / "model", model)
    with caplog.at_level(logging.WARNING, logger="vlpress"):
        vlpress.evaluate(folder, tmp_path / "int8", kv_cache="int8", **OPTIONS)
    messages = [record.getMessage() for record in caplog.records]
    assert any("layer 1 (" in text and "head 0, channel 31" in text for text in messages)
    stored = json.loads((tmp_path / "int8" / "run.json").read_text())["kv_cache"]
    assert stored["warnings"] == [text for text in messages if "outlier" in text]
