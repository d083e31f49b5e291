"""Preparation of a job: calibration samples, warnings, and refusals before weights are read."""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from vlpress.cli import main
from vlpress.eval.config import RunOptions
from vlpress.quant.config import CalibrationOptions, ModelSettings
from vlpress.quant.job import DRAWINGS, TEXT_ALONE, Job
from vlpress.quant.resolve import Source

CPU = ModelSettings(device="cpu")


def encoded(size: tuple[int, int] = (56, 56), mode: str = "RGB") -> str:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def row(index: int, **changes: Any) -> dict[str, Any]:
    return {"image": encoded(), "question": "Colour?", "answer": f"{index}", **changes}


UNUSABLE: dict[str, dict[str, Any]] = {
    "elongated": {"image": encoded((4020, 20))},
    "too large": {"image": encoded((12_000, 8_000), "1")},
    "placeholder": {"question": "<|image_pad|>Colour?"},
    "too long": {"answer": "words " * 40_000},
    "missing": {"image": "no.png"},
    "undecodable": {"image": base64.b64encode(b"this is not an image").decode()},
    "media key": {"img": "no.png"},
    "no answer": {"answer": None},
}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in rows))
    return str(path)


def prepare(checkpoint: Path, recipe: str = "w4a16-g32", **calibration: Any) -> Job:
    source = Source.find(checkpoint, CPU)
    return Job.prepare(source, recipe, CalibrationOptions(**calibration))


def plan(checkpoint: Path, *options: str) -> Result:
    base = ["plan", str(checkpoint), "--recipe", "w4a16-g32", "--device", "cpu", "--json"]
    return CliRunner().invoke(main.app, [*base, *options])


@pytest.mark.parametrize("fault", UNUSABLE)
def test_an_unusable_row_is_named_or_skipped(checkpoint: Path, tmp_path: Path, fault: str) -> None:
    rows = [row(0), row(1, **UNUSABLE[fault]), row(2), row(3)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: ") as caught:
        prepare(checkpoint, calib=path, calib_samples=4)
    assert "\n" not in str(caught.value)
    job = prepare(checkpoint, calib=path, calib_samples=4, skip_bad_samples=1)
    assert [sample.answer for sample in job.samples] == ["0", "2", "3"]
    (warning,) = job.warnings
    assert "rows.jsonl:2: " in warning


def test_all_unusable_rows_are_counted(checkpoint: Path, tmp_path: Path) -> None:
    changes = [change for fault, change in UNUSABLE.items() if fault != "too long"]  # slow
    rows = [row(0), *(row(1, **change) for change in changes)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="7 of the 8") as caught:
        prepare(checkpoint, calib=path, calib_samples=8, skip_bad_samples=6)
    named = [line for line in range(1, 9) if f"rows.jsonl:{line}: " in str(caught.value)]
    assert named == [2, 3, 4, 5, 6]
    job = prepare(checkpoint, calib=path, calib_samples=8, skip_bad_samples=7)
    assert len(job.samples) == 1 and len(job.warnings) == 7


def test_skipped_rows_are_replaced_by_others(checkpoint: Path, tmp_path: Path) -> None:
    usable = write(tmp_path / "usable.jsonl", [row(index) for index in range(20)])
    drawn = [s.answer for s in prepare(checkpoint, calib=usable, calib_samples=4).samples]
    assert drawn == [str(i) for i in sorted(random.Random(0).sample(range(20), 4))]
    allowed = prepare(checkpoint, calib=usable, calib_samples=4, skip_bad_samples=9)
    assert [sample.answer for sample in allowed.samples] == drawn
    rows = [row(i, answer=None) if str(i) == drawn[1] else row(i) for i in range(20)]
    mixed = write(tmp_path / "mixed.jsonl", rows)
    samples = prepare(checkpoint, calib=mixed, calib_samples=4, skip_bad_samples=1).samples
    answers = [sample.answer for sample in samples]
    assert len(set(answers)) == 4 and set(drawn) - {drawn[1]} < set(answers)


def test_description_of_the_samples_in_the_report(checkpoint: Path, tmp_path: Path) -> None:
    text = row(1)
    del text["image"]
    mixed = write(tmp_path / "mixed.jsonl", [row(0), text, row(2, answer=None)])
    job = prepare(checkpoint, calib=mixed, calib_samples=3, skip_bad_samples=1)
    described = job.describe_calibration()
    (warning,) = described.pop("warnings")
    assert "mixed.jsonl:3: " in warning
    assert described == {"source": mixed, "samples": 2, "with_images": 1, "warning": None}
    alone = prepare(checkpoint, calib=write(tmp_path / "text.jsonl", [text]))
    described = alone.describe_calibration()
    assert (described["with_images"], described["warning"]) == (0, None)
    assert described["warnings"] == [TEXT_ALONE]
    drawn = prepare(checkpoint, calib_samples=2).describe_calibration()
    assert (drawn["with_images"], drawn["warning"], drawn["warnings"]) == (2, DRAWINGS, [DRAWINGS])
    rounded = prepare(checkpoint, recipe="w4a16-rtn").describe_calibration()
    assert (rounded["samples"], rounded["warnings"]) == (0, [])


def test_a_plan_shows_the_same_warnings(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("Some text.\n\nSome more.\n")
    planned = plan(checkpoint, "--calib", str(tmp_path / "corpus.txt"))
    assert planned.exit_code == 0
    assert f"WARNING: {TEXT_ALONE}" in planned.stderr
    estimate = json.loads(planned.stdout)["estimate"]
    assert (estimate["samples"], estimate["with_images"]) == (2, 0)
    path = write(tmp_path / "rows.jsonl", [row(0), row(1, answer=None), row(2)])
    refused = plan(checkpoint, "--calib", path)
    assert refused.exit_code == 2 and refused.stderr.count("rows.jsonl:2: ") == 1
    skipped = plan(checkpoint, "--calib", path, "--skip-bad-samples", "1")
    assert skipped.exit_code == 0 and "rows.jsonl:2: " in skipped.stderr
    assert json.loads(skipped.stdout)["estimate"]["with_images"] == 2


def test_unusable_rows_are_refused_without_output_or_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr("vlpress.model.checkpoint.CheckpointReader.tensor", refuse)
    monkeypatch.setattr("vlpress.model.checkpoint.CheckpointReader.lazy", refuse)
    monkeypatch.setattr("vlpress.quant.driver.blockwise.BlockwiseQuantizer.quantize", refuse)
    path = write(tmp_path / "rows.jsonl", [row(0), {"question": "?"}, row(2, img="a.png")])
    out = tmp_path / "out"
    for verb in ("quantize", "run"):
        options = ["-o", str(out), "--calib", path, "--device", "cpu"]
        options += ["--bench", "builtin-ocrbench"] if verb == "run" else []
        result = CliRunner().invoke(main.app, [verb, str(checkpoint), *options])
        assert result.exit_code == 2, result.stderr
        assert "rows.jsonl:2: " in result.stderr and "rows.jsonl:3: " in result.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_skipped_samples_are_part_of_the_command() -> None:
    options = RunOptions(out="out", calib="a.jsonl", skip_bad_samples=3)
    assert "--skip-bad-samples 3" in options.command()
    assert "--skip-bad-samples" not in RunOptions(out="out").command()
