"""The peers must use the grids, samples and positions of vlpress."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from common.rows import decoders, grids
from compressed_tensors.quantization import preset_name_to_scheme
from peers import run, samples
from peers.settings import (
    AUTO_ROUND,
    GRIDS,
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
from vlpress.quant.checkpoint.formats.compressed.floats import input_args, weight_args
from vlpress.quant.recipe.scheme import QuantScheme, TableScheme
from vlpress.quant.resolve import encode_samples

SEEDS = [3, 4]


def options(work: Path, **changed: Any) -> argparse.Namespace:
    values = {"models": ["tiny"], "peers": list(METHODS), "settings": [*SETTINGS, *GRIDS]}
    more = {"methods": None, "seeds": SEEDS, "samples": 2, "work": work}
    return argparse.Namespace(**{**values, **more, **changed})


def prompts(number: int) -> tuple[list[Prompt], int]:
    processor = Processor.from_folder(resolve_model("tiny"))
    encoded = encode_samples(load_samples(None, n=number, seed=0), processor)
    return encoded, int(processor.config.raw["image_token_id"])


@pytest.mark.parametrize("name", SETTINGS)
def test_grids_equal_those_of_vlpress(name: str) -> None:
    scheme, setting = QuantScheme(**decoders.SETTINGS[name]), SETTINGS[name]
    assert (scheme.bits, scheme.group_size) == (setting.bits, setting.group_size)
    assert scheme.symmetric == setting.symmetric
    assert (scheme.activations == "dynamic") == setting.int8_activations


@pytest.mark.parametrize("name", GRIDS)
def test_tables_equal_those_of_vlpress(name: str) -> None:
    scheme, setting = TableScheme(**grids.GRIDS[name]), GRIDS[name]
    preset = preset_name_to_scheme(setting.scheme, ["Linear"])
    for args, ours in (
        (preset.weights, weight_args(scheme)),
        (preset.input_activations, input_args(scheme)),
    ):
        theirs = args.model_dump(mode="json") if args else {}
        for key in ("num_bits", "type", "strategy", "group_size", "block_structure", "dynamic"):
            assert theirs.get(key) == (ours or {}).get(key)


def test_one_job_per_checkpoint(tmp_path: Path) -> None:
    jobs = run.all_jobs(options(tmp_path))
    assert len({job.out for job in jobs}) == len(jobs)
    expected = {
        (peer, setting, method)
        for peer, settings in METHODS.items()
        for setting, methods in settings.items()
        for method in methods
    }
    assert {(job.peer, job.setting, job.method) for job in jobs} == expected
    assert {job.seed for job in jobs if job.method == "rtn"} == {SEEDS[0]}
    assert {job.seed for job in jobs if job.method == "gptq"} == set(SEEDS)


def test_jobs_can_be_selected(tmp_path: Path) -> None:
    chosen = options(tmp_path, settings=["w4a16"], methods=["gptq", "autoround"], seeds=[3])
    selected = {(job.peer, job.setting, job.method) for job in run.all_jobs(chosen)}
    assert selected == {(LLM_COMPRESSOR, "w4a16", "gptq"), (AUTO_ROUND, "w4a16", "autoround")}


def test_jobs_round_trip(tmp_path: Path) -> None:
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


def test_samples_round_trip(tmp_path: Path) -> None:
    encoded, image = prompts(12)  # more than ten, so that their order is not that of digits
    written = [run.inputs_of(prompt, image) for prompt in encoded]
    samples.write(written, tmp_path / "samples.safetensors")
    read = samples.read(tmp_path / "samples.safetensors")
    assert len(read) == len(written)
    for before, after in zip(written, read, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_transformers_gives_the_same_logits() -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    folder = resolve_model("tiny")
    kind = transformers.Qwen2_5_VLForConditionalGeneration
    library_model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    model = load_model(folder, device="cpu", dtype="fp32")
    encoded, image = prompts(5)
    inputs = [run.inputs_of(prompt, image) for prompt in encoded]
    expected = {tuple(prompt.input_ids.tolist()): model([prompt])[0].detach() for prompt in encoded}
    with torch.inference_mode():
        for batch in [*inputs, *samples.batches(inputs, 3, filler=0)]:
            logits = library_model(**batch).logits
            for row, tokens in zip(logits, batch["input_ids"], strict=True):
                compare(row, tokens, expected)


def compare(logits: Tensor, tokens: Tensor, expected: dict[tuple[int, ...], Tensor]) -> None:
    """Find the sample of a padded row and compare its logits."""
    (key,) = [k for k in expected if tuple(tokens[: len(k)].tolist()) == k]
    difference = (logits[: len(key)] - expected[key]).abs().max() / expected[key].abs().max()
    assert float(difference) < 1e-4


def test_batches_have_each_sample_once_with_little_padding() -> None:
    encoded, image = prompts(10)
    inputs = [run.inputs_of(prompt, image) for prompt in encoded]
    batches = samples.batches(inputs, 4, filler=7)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4, 2]
    shortest = [int(batch["input_ids"].ne(7).sum(1).min()) for batch in batches]
    widths = [batch["input_ids"].shape[1] for batch in batches]
    assert shortest == sorted(shortest)
    assert widths == sorted(widths)
    assert sum(len(batch["image_grid_thw"]) for batch in batches) == sum(
        len(prompt.visuals) for prompt in encoded
    )
