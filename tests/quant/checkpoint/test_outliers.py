import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from tiny_models import EACH_FAMILY, prompts, small_config, small_model, write_small_checkpoint
from torch import Tensor

from vlpress.calib.capture import watch_inputs
from vlpress.model.config import ModelConfig
from vlpress.model.families import family_of
from vlpress.model.loading import load_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.outliers import (
    add_outliers_,
    choose_factors,
    derive_outliers,
    outlier_folder,
)


def input_ranges(model: QwenVL) -> dict[str, float]:
    """Largest magnitude that each linear layer reads."""
    largest: dict[str, float] = defaultdict(float)

    def see(name: str, x: Tensor) -> None:
        largest[name] = max(largest[name], float(x.abs().max()))

    names = [spec.name for spec in family_of(model.config).linears(model.config)]
    watchers = {model.get_submodule(name): (lambda x, name=name: see(name, x)) for name in names}
    with torch.no_grad(), watch_inputs(watchers):
        model(prompts(model.config))
    return dict(largest)


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_stay_and_ranges_grow(family: str, dtype: torch.dtype, tied: bool) -> None:
    base = small_model(small_config(family, tied=tied), dtype=dtype)
    scaled = small_model(small_config(family, tied=tied), dtype=dtype)
    tensors = {name: parameter.data for name, parameter in scaled.named_parameters()}
    add_outliers_(tensors, scaled.config)
    changed = {
        name for name, value in base.named_parameters() if not torch.equal(value, tensors[name])
    }
    assert "model.embed_tokens.weight" not in changed
    assert "model.norm.weight" not in changed
    with torch.no_grad():
        for before, after in zip(
            base(prompts(base.config)), scaled(prompts(base.config)), strict=True
        ):
            assert torch.equal(before, after)
    before_ranges, after_ranges = input_ranges(base), input_ranges(scaled)
    grown = {name for name, value in after_ranges.items() if value > 1.5 * before_ranges[name]}
    # fc2 of Qwen2-VL and mlp.2 of the merger follow a nonlinear activation, the head behind the
    # final norm: no factor can pass there.
    fixed = ("fc2", "merger.mlp.2", "lm_head")
    expected = {name for name in before_ranges if not name.endswith(fixed)}
    # Behind zero-centred norms nothing grows.
    share = 0.4 if family.startswith("qwen3_5") else 0.8
    assert len(grown) > share * len(expected)
    assert all(after_ranges[n] == before_ranges[n] for n in before_ranges if n.endswith(fixed))


def test_a_wrong_binding_would_show() -> None:
    """The identity above is no accident: without its counterpart a factor changes the logits."""
    base, broken = small_model(), small_model()
    broken.get_parameter("model.layers.0.input_layernorm.weight").data[3] *= 16
    with torch.no_grad():
        assert not torch.equal(base(prompts(base.config))[0], broken(prompts(base.config))[0])


def test_factors() -> None:
    factors = choose_factors(256, "a")
    assert torch.equal(factors, choose_factors(256, "a"))
    assert not torch.equal(factors, choose_factors(256, "b"))
    assert int((factors != 1).sum()) == 4  # 1.5 % of 256
    assert float(factors.max()) == 16
    assert set(factors.tolist()) <= {1.0, 4.0, 8.0, 16.0}
    assert int((choose_factors(10, "c") != 1).sum()) == 1


def test_derived_folder(tmp_path: Path) -> None:
    model = small_model(dtype=torch.bfloat16)
    source = write_small_checkpoint(tmp_path / "source", model, nested=True, shards=2)
    (tmp_path / "out").mkdir()
    derive_outliers(source, tmp_path / "out")
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    derived = load_model(tmp_path / "out", device="cpu", dtype="bf16")
    with torch.no_grad():
        for a, b in zip(model(prompts(model.config)), derived(prompts(model.config)), strict=True):
            assert torch.equal(a, b)


def test_cache_is_keyed_by_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path / "cache"))
    source = write_small_checkpoint(tmp_path / "source", small_model())
    first = outlier_folder(source)
    assert first.parent == tmp_path / "cache"
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert outlier_folder(source) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    other = outlier_folder(write_small_checkpoint(tmp_path / "other", small_model(seed=1)))
    assert other != first
    assert outlier_folder(source, seed=1) not in (first, other)
    assert [path for path in first.parent.iterdir() if path.name.startswith(".")] == []
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    assert first.stat().st_mode == (tmp_path / "plain").stat().st_mode
    rights = {path.stat().st_mode for path in first.iterdir()}
    assert rights == {(tmp_path / "plain" / "file").stat().st_mode}


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model())
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(raw | {"quantization_config": {}}))
    with pytest.raises(ValueError, match="is quantized"):
        outlier_folder(source, cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_config_is_a_model(tmp_path: Path) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model())
    folder = outlier_folder(source, cache=tmp_path / "cache")
    assert ModelConfig.from_folder(folder) == ModelConfig.from_folder(source)
