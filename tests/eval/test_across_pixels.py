"""Comparison of evaluations whose images have different sizes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from small_run import QUESTIONS
from typer.testing import CliRunner

from vlpress.cli import main
from vlpress.eval import evaluate_model
from vlpress.eval.api import compare, evaluate
from vlpress.eval.config import QuestionOptions
from vlpress.eval.fidelity.logprob_cache import LogProbReader
from vlpress.eval.fidelity.measure import FOLDER
from vlpress.eval.report.sections.speed import FILE
from vlpress.eval.resolve import open_tasks
from vlpress.eval.results import read_fidelity, read_run
from vlpress.eval.run import run
from vlpress.model.processing.processor import Processor
from vlpress.quant.config import ModelSettings
from vlpress.quant.resolve import Source

pytestmark = pytest.mark.usefixtures("short_answers")
SMALL = 4 * 28 * 28


@pytest.fixture(scope="module")
def runs(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An evaluation, and one with smaller images that has the first as its reference."""
    folder = tmp_path_factory.mktemp("across")
    base, candidate = folder / "base", folder / "candidate"
    evaluate(checkpoint, base, device="cpu", **QUESTIONS)
    evaluate(
        checkpoint,
        candidate,
        device="cpu",
        reference=base,
        across_pixels=True,
        max_pixels=SMALL,
        **QUESTIONS,
    )
    return base, candidate


def test_smaller_images_are_compared_on_request_only(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"pixels\.max: \d+ -> {SMALL}.*--across-pixels"):
        compare(*runs, tmp_path / "report")
    report = compare(*runs, tmp_path / "report", across_pixels=True)
    [note] = report["notes"]
    largest = read_run(runs[0]).fingerprint["pixels"]["max"]
    assert str(SMALL) in note and str(largest) in note
    assert report["max_pixels"] == {"base": largest, "candidate": SMALL}
    assert report["fidelity"]["kl_mean"] > 0
    assert note in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_other_differences_are_still_refused(
    checkpoint: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    evaluate(
        checkpoint,
        other,
        device="cpu",
        max_pixels=SMALL,
        **{**QUESTIONS, "batch_size": 3},
    )
    with pytest.raises(ValueError, match="batch_size: 2 -> 3"):
        compare(runs[0], other, tmp_path / "report", across_pixels=True)


def test_a_report_of_equal_sizes_does_not_mention_them(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = compare(runs[0], runs[0], tmp_path / "plain")
    flagged = compare(runs[0], runs[0], tmp_path / "flagged", across_pixels=True)
    assert plain == flagged and "max_pixels" not in plain
    assert "--across-pixels" not in plain["command"]


def test_divergence_and_times_are_measured_with_the_sizes_of_both(
    runs: tuple[Path, Path],
) -> None:
    base, candidate = map(read_run, runs)
    task, other = base.tasks["builtin-ocrbench"], candidate.tasks["builtin-ocrbench"]
    assert len(read_fidelity(other) or {}) == len(task.items)
    lengths = [
        [one.predictions[item["id"]].prompt_tokens or 0 for one in (task, other)]
        for item in task.items
    ]
    # 112 x 112 pixels are 16 tokens, and 4 at the smaller size.
    assert {long - short for long, short in lengths} == {12}
    assert (runs[1] / FILE).is_file()


def test_missing_log_probabilities_of_the_base_are_those_of_its_own_images(
    checkpoint: Path, runs: tuple[Path, Path], tmp_path: Path
) -> None:
    """The candidate's evaluation computed them with the base's sizes, not with its own."""
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    processor = source.processor()
    tasks = open_tasks(QuestionOptions(**QUESTIONS), source, processor)
    out = tmp_path / "base"
    evaluate_model(
        source.load(),
        processor,
        tasks,
        out,
        batch_size=QUESTIONS["batch_size"],
        source=source.folder,
        are_checked=True,
        is_reference=True,
    )
    digests = read_run(out).tasks["builtin-ocrbench"].digests
    own, filled = (
        LogProbReader(folder / "builtin-ocrbench" / FOLDER, digests) for folder in (out, runs[0])
    )
    for key in digests:
        expected, stored = (each.read(key, torch.device("cpu")) for each in (own, filled))
        torch.testing.assert_close(stored.token_logprobs, expected.token_logprobs)


@pytest.mark.slow
def test_the_command_of_a_report_repeats_it(
    runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = compare(*runs, tmp_path / "first", across_pixels=True)["command"]
    words = [shlex.split(part)[1:] for part in line.split(" && ")]
    codes = [CliRunner().invoke(main.app, each).exit_code for each in words]
    assert codes[:2] == [0, 0] and codes[2] in (0, 1, 4)
    again = read_run(tmp_path / "candidate")
    assert again.fingerprint == read_run(runs[1]).fingerprint


@pytest.mark.slow
def test_a_recipe_with_an_area_is_compared_with_the_original_at_its_own(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"[vision_input]\nmax_pixels = {SMALL}\n"
        '[[step]]\nmethod = "gptq"\nbits = 4\ngroup_size = 32\ntargets = ["decoder"]\n'
    )
    out = tmp_path / "out"
    report = run(
        checkpoint, out=out, recipe=str(recipe), calib_samples=2, device="cpu", **QUESTIONS
    )
    largest = Processor.from_folder(checkpoint).max_pixels
    assert report["max_pixels"] == {"base": largest, "candidate": SMALL}
    assert Processor.from_folder(out / "checkpoint").max_pixels == SMALL
    assert report["fidelity"]["kl_mean"] > 0
    # Measured in alternation, each model with its own images.
    assert report["speed"]["alternating"]["prefill_tokens_per_second"]["ratio"] > 0
