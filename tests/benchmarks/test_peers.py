"""The peers must be given the grids, the samples and the positions that vlpress has."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from common import rows
from peers import run, samples
from peers.settings import (
    AUTO_ROUND,
    LLM_COMPRESSOR,
    METHODS,
    RECORD,
    SETTINGS,
    read_jobs,
    write_jobs,
)
from torch import Tensor

from vlpress.calib.samples.draw import load_samples
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.resolve import encode_samples

SEEDS = [3, 4]


def options(work: Path, **changed: Any) -> argparse.Namespace:
    values = {"models": ["tiny"], "peers": list(METHODS), "settings": list(SETTINGS)}
    more = {"methods": None, "seeds": SEEDS, "samples": 2, "work": work}
    return argparse.Namespace(**{**values, **more, **changed})


def prompts(number: int) -> tuple[list[Prompt], int]:
    processor = Processor.from_folder(resolve_model("tiny"))
    found = encode_samples(load_samples(None, n=number, seed=0), processor)
    return found, int(processor.config.raw["image_token_id"])


@pytest.mark.parametrize("name", SETTINGS)
def test_grids_are_those_of_our_own_table(name: str) -> None:
    ours, theirs = QuantScheme(**rows.SETTINGS[name]), SETTINGS[name]
    assert (ours.bits, ours.group_size) == (theirs.bits, theirs.group_size)
    assert ours.symmetric == theirs.symmetric
    assert (ours.activations == "dynamic") == theirs.int8_activations


def test_jobs_name_every_checkpoint_once(tmp_path: Path) -> None:
    jobs = run.all_jobs(options(tmp_path))
    assert len({job.out for job in jobs}) == len(jobs)
    wanted = {
        (peer, setting, method)
        for peer, settings in METHODS.items()
        for setting, methods in settings.items()
        for method in methods
    }
    assert {(job.peer, job.setting, job.method) for job in jobs} == wanted
    assert {job.seed for job in jobs if job.method == "rtn"} == {SEEDS[0]}
    assert {job.seed for job in jobs if job.method == "gptq"} == set(SEEDS)


def test_jobs_can_be_chosen(tmp_path: Path) -> None:
    chosen = options(tmp_path, settings=["w4a16"], methods=["gptq", "autoround"], seeds=[3])
    found = {(job.peer, job.setting, job.method) for job in run.all_jobs(chosen)}
    assert found == {(LLM_COMPRESSOR, "w4a16", "gptq"), (AUTO_ROUND, "w4a16", "autoround")}


def test_jobs_survive_their_file(tmp_path: Path) -> None:
    jobs = run.all_jobs(options(tmp_path, settings=["w8a8"]))
    write_jobs(jobs, tmp_path / "jobs")
    assert list(read_jobs(tmp_path / "jobs")) == jobs


def test_a_checkpoint_of_other_samples_is_stale(tmp_path: Path) -> None:
    (job, *_) = run.all_jobs(options(tmp_path, seeds=[3]))
    job.out.mkdir(parents=True)
    assert not run.is_made(job)
    (job.out / RECORD).write_text(f'{{"made_from": "{job.made_from}", "version": "1"}}')
    assert run.is_made(job)
    (other, *_) = run.all_jobs(options(tmp_path, seeds=[3], samples=1))
    assert other.out == job.out
    assert not run.is_made(other)


def test_a_missing_environment_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py"])
    with pytest.raises(SystemExit, match="make peers"):
        run.main()


def test_samples_survive_their_file(tmp_path: Path) -> None:
    found, image = prompts(12)  # more than ten, so that their order is not that of digits
    written = [run.inputs_of(prompt, image) for prompt in found]
    samples.write(written, tmp_path / "samples.safetensors")
    read = samples.read(tmp_path / "samples.safetensors")
    assert len(read) == len(written)
    for before, after in zip(written, read, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_transformers_reads_them_as_we_do() -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    folder = resolve_model("tiny")
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    theirs = kind.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_model(folder, device="cpu", dtype="fp32")
    found, image = prompts(5)
    inputs = [run.inputs_of(prompt, image) for prompt in found]
    wanted = {tuple(prompt.input_ids.tolist()): ours([prompt])[0].detach() for prompt in found}
    with torch.inference_mode():
        for batch in [*inputs, *samples.batches(inputs, 3, filler=0)]:
            logits = theirs(**batch).logits
            for row, tokens in zip(logits, batch["input_ids"], strict=True):
                compare(row, tokens, wanted)


def compare(logits: Tensor, tokens: Tensor, wanted: dict[tuple[int, ...], Tensor]) -> None:
    """Find the sample that a padded row holds and compare its logits."""
    (found,) = [k for k in wanted if tuple(tokens[: len(k)].tolist()) == k]
    difference = (logits[: len(found)] - wanted[found]).abs().max() / wanted[found].abs().max()
    assert float(difference) < 1e-4


def test_batches_hold_each_sample_once_and_pad_little() -> None:
    found, image = prompts(10)
    inputs = [run.inputs_of(prompt, image) for prompt in found]
    batches = samples.batches(inputs, 4, filler=7)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    shortest = [int(batch["input_ids"].ne(7).sum(1).min()) for batch in batches]
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert shortest == sorted(shortest)
    assert widths == sorted(widths)
    assert sum(len(batch["image_grid_thw"]) for batch in batches) == sum(
        len(prompt.visuals) for prompt in found
    )
