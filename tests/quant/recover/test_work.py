"""Recovery from folder to folder: one command or two, interrupted or not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import vlpress
from vlpress.cli import main
from vlpress.eval.resolve import refuse_leak
from vlpress.quant.config import CalibrationOptions, ModelSettings
from vlpress.quant.job import Job
from vlpress.quant.recover.trainer import Trainer
from vlpress.quant.resolve import Source

STEP = '[[step]]\nmethod = "rtn"\nbits = 3\ngroup_size = 32\n'
TABLE = """
[recover]
params = ["scales", "norms"]
samples = 8
epochs = 2
batch = 4
lr = 0.003
"""
OPTIONS: dict[str, Any] = {"device": "cpu", "samples": 8, "epochs": 2, "batch": 4, "lr": 0.003}


@pytest.fixture(scope="module")
def plain(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.toml").write_text(STEP)
    vlpress.quantize(checkpoint, folder / "out", recipe=str(folder / "plain.toml"), device="cpu")
    return folder / "out"


@pytest.fixture(scope="module")
def recovered(checkpoint: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recovered") / "out"
    vlpress.recover(plain, out, base=checkpoint, params=["scales", "norms"], **OPTIONS)
    return out


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_scales_and_norms_alone_differ(plain: Path, recovered: Path) -> None:
    before, after = tensors(plain), tensors(recovered)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.endswith("scale") for name in changed)
    assert any(name.endswith("norm.weight") for name in changed)
    assert all(name.endswith(("weight_scale", "norm.weight")) for name in changed)
    assert all(after[name].dtype == before[name].dtype for name in changed)
    record = json.loads((recovered / "vlpress.json").read_text())["recover"]
    assert record["best_epoch"] and min(record["held_out_loss"]) < record["held_out_loss"][0]
    assert record["training_samples"] + record["held_out_samples"] == 8
    assert vlpress.inspect(recovered)["recover"] == record
    assert f"Recovery of scales, norms has seen {record['training_samples']} samples" in (
        recovered / "README.md"
    ).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_recipe_gives_the_same_tensors_after_an_interruption(
    checkpoint: Path, recovered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "plain.toml"
    recipe.write_text(STEP + TABLE)
    out = tmp_path / "out"
    step = Trainer._step

    def cut(self: Trainer, numbers: Sequence[int]) -> float:
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return step(self, numbers)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_step", cut)
        vlpress.quantize(checkpoint, out, recipe=str(recipe), device="cpu")
    assert not out.exists()
    vlpress.quantize(checkpoint, out, recipe=str(recipe), device="cpu")
    one, two = tensors(out), tensors(recovered)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_a_stored_teacher_is_as_good_as_the_model(
    checkpoint: Path, plain: Path, recovered: Path, tmp_path: Path
) -> None:
    stored = vlpress.teach(checkpoint, tmp_path / "teacher", samples=8, device="cpu")
    assert stored == {"folder": str(tmp_path / "teacher"), "samples": 8, "kind": "full"}
    assert vlpress.teach(checkpoint, tmp_path / "teacher", samples=8, device="cpu") == stored
    options = {**OPTIONS, "params": ["scales", "norms"]}
    vlpress.recover(plain, tmp_path / "out", teacher=[str(tmp_path / "teacher")], **options)
    one, two = tensors(tmp_path / "out"), tensors(recovered)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_fine_tuning_on_own_answers(plain: Path, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = CliRunner().invoke(
        main.app,
        f"recover {plain} -o {tmp_path / 'out'} --calib {path} --json --targets answers "
        "--samples 8 --epochs 1 --device cpu",
    )
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)["recover"]
    assert record["targets"] == "answers" and "teachers" not in record


def test_refusals(checkpoint: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the teacher self is the float model .* --base"):
        vlpress.recover(plain, tmp_path / "out", **OPTIONS)
    with pytest.raises(ValueError, match="is quantized; give the float model as --base"):
        vlpress.recover(plain, tmp_path / "out", base=plain, **OPTIONS)
    with pytest.raises(ValueError, match="is not quantized; recover trains quantized models"):
        vlpress.recover(checkpoint, tmp_path / "out", base=checkpoint, **OPTIONS)
    with pytest.raises(ValueError, match="is the checkpoint, which is not changed"):
        vlpress.recover(plain, plain, base=checkpoint, **OPTIONS)
    with pytest.raises(ValueError, match="was not written by this command"):
        vlpress.teach(checkpoint, plain, samples=8, device="cpu")
    assert not (tmp_path / "out").exists()


def test_images_of_the_recovery_must_not_be_evaluated(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(STEP + TABLE)
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    job = Job.prepare(source, str(recipe), CalibrationOptions())
    assert not job.samples and len(job.all_samples) == 8
    refuse_leak(job.all_samples, [])
