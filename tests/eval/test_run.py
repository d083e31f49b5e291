"""The verb `run` on a small random model and a few built-in questions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import BENCH, QUESTIONS, copy_run, options_for

from vlpress.calib.samples.sample import Sample
from vlpress.common.environment import versions
from vlpress.eval.config import QuestionOptions
from vlpress.eval.report.summary import summarize_report
from vlpress.eval.resolve import open_tasks, refuse_leak
from vlpress.eval.run import run
from vlpress.quant.config import ModelSettings
from vlpress.quant.resolve import Source

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def finished(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run(finished_run, tmp_path_factory.mktemp("run") / "out")


def test_run_writes_all_outputs_and_a_report_of_the_schema(finished: Path) -> None:
    report = json.loads((finished / "report" / "report.json").read_text())
    keys = {"schema", "base", "candidate", "verdict", "margin", "synthetic", "benchmarks"}
    keys |= {
        "notes",
        "pooled",
        "perplexity",
        "fidelity",
        "size",
        "speed",
        "memory",
        "fingerprint",
        "recipe",
        "calibration",
        "command",
        "criterion",
        "verdict_reasons",
        "evaluated",
        "generation",
        "headline",
        "next_steps",
        "reason",
        "scope",
        "warnings",
    }
    assert set(report) == keys
    assert report["benchmarks"]["builtin-ocrbench"]["n"] == 6
    assert report["size"]["candidate_bytes"] < report["size"]["base_bytes"]
    assert report["fidelity"]["kl_mean"] > 0
    assert {path.name for path in finished.iterdir()} == {
        "work.json",
        "plan.json",
        "checkpoint",
        "eval",
        "report",
    }
    assert len(json.loads((finished / "plan.json").read_text())["rows"]) == 44


def test_report_repeats_the_warning_about_drawings(finished: Path) -> None:
    report = json.loads((finished / "report" / "report.json").read_text())
    calibration = report["calibration"]
    assert calibration["warnings"] == [calibration["warning"]]
    assert "built-in drawings" in calibration["warning"]
    assert (calibration["samples"], calibration["with_images"]) == (2, 2)
    page = (finished / "report" / "report.html").read_text()
    assert calibration["warning"][1:] in page and "2 of them with images" in page
    assert f"warning: {calibration['warning']}" in summarize_report(report)
    lines = (finished / "report" / "report.md").read_text().splitlines()
    assert lines[0].startswith("# ") and any(
        "**Warning**: calibrated on built-in drawings" in line for line in lines[:6]
    )


def test_finished_run_is_reported_again_without_loading_a_model(
    checkpoint: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Source) -> None:
        raise AssertionError("nothing needs a model")

    monkeypatch.setattr(Source, "load", load)
    path = finished / "report" / "report.json"
    stored = json.loads(path.read_bytes())
    report = run(**options_for(checkpoint, finished))
    assert report == json.loads(path.read_bytes())
    assert {**report, "command": None} == {**stored, "command": None}  # which names the folder


def fail(*_: Any, **__: Any) -> None:
    raise AssertionError("not needed")


def test_further_questions_and_benchmarks_extend_a_run(
    checkpoint: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    copy_run(finished, out)
    monkeypatch.setattr("vlpress.quant.job.BlockwiseQuantizer.quantize", fail)
    stored = [
        path.read_bytes() for path in sorted((out / "eval").glob(f"*/{BENCH}/predictions.jsonl"))
    ]
    text = tmp_path / "text.txt"
    text.write_text("A cat sat on a mat, and a dog sat on the cat.")
    more = {"bench": (BENCH, "builtin-mmmu"), "limit": 7, "text": text}
    report = run(**options_for(checkpoint, out, **more))
    assert {name: entry["n"] for name, entry in report["benchmarks"].items()} == {
        BENCH: 7,
        "builtin-mmmu": 7,
    }
    assert set(report["fidelity"]["per_benchmark"]) == {BENCH, "builtin-mmmu"}
    assert report["fidelity"]["units"] == 14 and report["perplexity"]["tokens"] > 1
    assert report["fidelity"]["noise"]["batch"]["units"] == 14
    after = sorted((out / "eval").glob(f"*/{BENCH}/predictions.jsonl"))
    for before, path in zip(stored, after, strict=True):
        assert path.read_bytes().startswith(before)
        assert len(path.read_bytes().splitlines()) == 1 + 7
    monkeypatch.setattr("vlpress.eval.answering.runner._answer", fail)
    again = run(**options_for(checkpoint, out, text=text, limit=7))  # one benchmark less
    assert set(again["benchmarks"]) == {BENCH} and again["benchmarks"][BENCH]["n"] == 7


def test_other_rules_score_a_finished_run_again(
    checkpoint: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    copy_run(finished, out)
    monkeypatch.setattr(Source, "load", fail)
    before = json.loads((out / "report" / "report.json").read_bytes())
    report = run(**options_for(checkpoint, out, rules="2024"))
    assert report["benchmarks"][BENCH]["profile"] == "2024"
    assert report["fingerprint"]["tasks"][BENCH]["profile"] == "2024"
    for name in ("base", "candidate"):
        scores = json.loads((out / "eval" / name / "scores.json").read_bytes())
        assert scores["benchmarks"][BENCH]["profile"] == "2024"
    again = run(**options_for(checkpoint, out))
    assert {**again, "command": None} == {**before, "command": None}


def test_a_finished_run_is_judged_by_another_criterion(
    checkpoint: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copy_run(finished, tmp_path / "out")
    monkeypatch.setattr(Source, "load", fail)
    report = run(**options_for(checkpoint, out, criterion="mlperf-99"))
    assert (report["criterion"], report["margin"]) == ("mlperf-99", None)
    assert "--criterion mlperf-99" in report["command"]
    assert report["verdict"] == "INCONCLUSIVE"  # the random model's answers support none
    assert "(criterion mlperf-99)" in (out / "checkpoint" / "README.md").read_text("utf-8")
    with pytest.raises(ValueError, match=r"--margin 3 .*mlperf-99"):
        run(**options_for(checkpoint, out, criterion="mlperf-99", margin=3.0))


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"temperature": 0.5}, "generation"),
        ({"recipe": "w8a16"}, "recipe."),
        ({"calib_samples": 3}, r"recipe\.calibration\.samples: 2 -> 3"),
        ({"batch_size": 3}, "batch_size: 2 -> 3"),
        ({"prompt_style": "vlmevalkit-qwen2"}, "prompt_style"),
        ({"noise": 4}, "noise: 32 -> 4"),
        ({"seed": 5}, "seed: 0 -> 5"),
    ],
)
def test_all_else_needs_overwrite(
    checkpoint: Path, finished: Path, change: dict[str, Any], part: str
) -> None:
    before = (finished / "work.json").read_bytes()
    with pytest.raises(ValueError, match=rf"holds other work .*{part}.*--overwrite"):
        run(**options_for(checkpoint, finished, **change))
    assert (finished / "work.json").read_bytes() == before


def test_a_finished_run_is_kept_with_another_number_of_threads(
    checkpoint: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "load", fail)
    stored = (finished / "report" / "report.json").read_bytes()
    before = torch.get_num_threads()
    try:
        run(**options_for(checkpoint, finished, threads=before + 1))
    finally:
        torch.set_num_threads(before)
    report = json.loads((finished / "report" / "report.json").read_bytes())
    assert report.pop("command").endswith(f"--threads {before + 1}")
    assert report == {k: v for k, v in json.loads(stored).items() if k != "command"}


@pytest.mark.parametrize("package", ["transformers", "pillow"])
def test_other_versions_are_other_work(
    checkpoint: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setattr("vlpress.quant.job.versions", lambda: versions() | {package: "0"})
    with pytest.raises(ValueError, match=r"holds other work \(versions\..* -> 0\); .*--overwrite"):
        run(**options_for(checkpoint, finished))


def test_a_finished_checkpoint_is_not_written_again(
    checkpoint: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was interrupted before its first answer goes on with the evaluation."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = copy_run(finished, tmp_path / "out")
    shutil.rmtree(out / "eval")
    shutil.rmtree(out / "report")
    weights = out / "checkpoint" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    monkeypatch.setattr("vlpress.quant.job.BlockwiseQuantizer.quantize", fail)
    monkeypatch.setattr("vlpress.eval.run.evaluate_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(**options_for(checkpoint, out))
    assert weights.stat().st_mtime_ns == written


def test_real_model_needs_benchmarks(checkpoint: Path, tmp_path: Path) -> None:
    bare: dict[str, Any] = {"model": checkpoint, "out": tmp_path / "out", "device": "cpu"}
    with pytest.raises(ValueError, match=r"drawings .* --bench MMBench_DEV_EN=PATH"):
        run(**bare)
    assert not (tmp_path / "out").exists()


def test_quantized_model_is_refused(finished: Path, tmp_path: Path) -> None:
    again = options_for(finished / "checkpoint", tmp_path / "out")
    with pytest.raises(ValueError, match="is quantized already; start from the original"):
        run(**again)


def test_calibrating_on_an_evaluation_image_is_a_leak(checkpoint: Path, tmp_path: Path) -> None:
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    (task,) = open_tasks(QuestionOptions(**QUESTIONS), source, source.processor())
    (image,) = task.items[2].images
    lines = tmp_path / "leak.jsonl"
    (tmp_path / "leaked.png").write_bytes(image.read())
    sample = {"image": "leaked.png", "question": "What is it?", "answer": "It is known."}
    lines.write_text(json.dumps(sample) + "\n")
    leaking = options_for(checkpoint, tmp_path / "out", calib=lines, calib_samples=1)
    item = task.items[2].id
    with pytest.raises(ValueError, match=f"also an image of builtin-ocrbench item {item}"):
        run(**leaking)
    assert not (tmp_path / "out").exists()


def test_built_in_drawings_never_leak(checkpoint: Path) -> None:
    from vlpress.calib.samples.draw import load_samples

    samples = load_samples(None, n=16, seed=0)
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    tasks = open_tasks(QuestionOptions(**QUESTIONS), source, source.processor())
    refuse_leak(samples, tasks)
    text_only = [Sample([{"role": "user", "content": "no image"}], "", "text")]
    refuse_leak(text_only, tasks)
