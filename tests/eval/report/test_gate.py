"""Gating on the verdict: exit codes from outside, and the workflow in the examples."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import paths
import pytest
from typer.testing import CliRunner, Result
from workbench import NAMES, Workbench

from vlpress.cli import main

pytestmark = pytest.mark.usefixtures("packaged")

WORKFLOW = paths.EXAMPLES / "ci" / "github-actions.yml"
yaml = pytest.importorskip("yaml")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


def test_compare_exits_with_each_verdict(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[:2])
    broken = bench.run("broken", lambda item: "", names=NAMES[:2])
    out = bench.folder / "report"
    for candidate, margin, label, code in (
        (base, 60, "PASS on drawings", 0),
        (broken, 2, "FAIL on drawings", 1),
        (base, 2, "INCONCLUSIVE", 4),
    ):
        result = call("compare", base, candidate, "-o", out, "--margin", margin)
        assert result.exit_code == code
        assert f"verdict: {label} (margin {margin} points)" in result.stdout
        assert f"report: {out / 'report.html'}" in result.stderr
        stored = json.loads((out / "report.json").read_text("utf-8"))
        assert (stored["verdict"], stored["margin"]) == (label.split()[0], margin)
        assert f"<title>{label}: " in (out / "report.html").read_text("utf-8")
    several = call("compare", base, base, broken, "-o", out, "--margin", 30)
    assert several.exit_code == 1, "one candidate fails"
    assert f"report: {out / 'comparison.html'}" in several.stderr


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 4)])
def test_run_exits_with_the_verdict_only_when_gated(
    verdict: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = {"verdict": verdict, "benchmarks": {}, "margin": 2.0, "fidelity": None}
    monkeypatch.setattr("vlpress.eval.run.run", lambda **values: report)
    assert call("run", "-o", tmp_path / "out", "--gate").exit_code == code
    assert call("run", "-o", tmp_path / "out").exit_code == 0


def steps() -> list[dict[str, Any]]:
    return list(yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["gate"]["steps"])


def test_workflow_calls_verbs_with_existing_options() -> None:
    scripts = [step["run"].replace("\\\n", " ") for step in steps() if "run" in step]
    lines = [line for script in scripts for line in script.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("vlpress ")]
    assert [command[1] for command in commands] == ["run", "compare"]
    for _, verb, *rest in commands:
        options = set(re.findall(r"--[a-z-]+", call(verb, "--help").stdout))
        assert {word for word in rest if word.startswith("--")} <= options
    assert "--gate" in commands[0] and "--margin" in commands[0]


def test_workflow_uploads_the_report_of_a_failed_gate() -> None:
    gate, upload = (
        next(i for i, step in enumerate(steps()) if text in str(step))
        for text in ("--gate", "upload-artifact")
    )
    step = steps()[upload]
    assert gate < upload and step["if"] == "${{ !cancelled() }}"
    assert "out/report/" in step["with"]["path"].split()
