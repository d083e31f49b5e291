from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, table
from eval_models import right
from typer.testing import CliRunner
from workbench import NAMES, Workbench, reseal

from vlpress.cli import main
from vlpress.eval import compare, evaluate_endpoint, open_task
from vlpress.eval.answering.openai_client import Endpoint, request_fields
from vlpress.eval.report.reproduce import reproduce_command
from vlpress.eval.results import read_run

pytestmark = pytest.mark.usefixtures("packaged")


def test_command_names_models_setup_and_margin(bench: Workbench) -> None:
    options: dict[str, Any] = {
        "names": NAMES[:2],
        "open": {"limit": 5, "blank": True},
        "batch_size": 4,
    }
    base, cand = bench.run("a model", **options), bench.run("cand", **options)
    line = reproduce_command(read_run(base), read_run(cand), 1.5)
    first, second, last = (shlex.split(part) for part in line.split(" && "))
    assert first[:5] == ["vlpress", "eval", "a model", "-o", "base"]
    assert second[2] == "cand" and first[5:] == second[5:]
    setup = "--bench builtin-mmbench --bench builtin-ocrbench --limit 5 --batch-size 4"
    assert setup in " ".join(first) and first[-1] == "--blank-images"
    assert last[-1] == "1.5" and "--reference" not in line and "\n" not in line


def test_published_files_are_named_as_published(bench: Workbench) -> None:
    base = bench.run("base", names=NAMES[1:2])
    text = (base / "run.json").read_text("utf-8").replace("builtin-ocrbench", "OCRBench")
    (base / "run.json").write_text(text, "utf-8")
    (base / "builtin-ocrbench").rename(base / "OCRBench")
    run = read_run(reseal(base))
    assert "--bench OCRBench=OCRBench.tsv" in reproduce_command(run, run, 2)


def test_command_repeats_the_evaluation(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token limit of packaged questions is not an option and keeps its default."""
    model = bench.source
    out = bench.folder / "first"
    runner = CliRunner()
    shared = ["--bench", "builtin-mmmu", "--device", "cpu", "--batch-size", "2", "--limit", "2"]
    evaluated = ["eval", str(model), *shared, "--max-pixels", "50176", "--dtype", "fp32"]
    assert runner.invoke(main.app, [*evaluated, "-o", str(out)]).exit_code == 0
    report = compare(out, out, bench.folder / "report")
    again = bench.folder / "again"
    again.mkdir()
    monkeypatch.chdir(again)
    for part in report["command"].split(" && ")[:2]:
        assert runner.invoke(main.app, shlex.split(part)[1:]).exit_code == 0
    assert read_run(again / "base").fingerprint == read_run(out).fingerprint
    tasks = [read_run(folder).tasks["builtin-mmmu"] for folder in (out, again / "base")]
    assert tasks[0].info == tasks[1].info


def test_command_repeats_the_requests_to_a_served_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = open_task("builtin-ocrbench", limit=3, prompt_style="default", seed=5)
    extra = {"repetition_penalty": None, "top_k": 1, "mm_processor_kwargs": {"fps": 1}}
    fields = request_fields(seed=5, max_pixels=50176, extra=extra)
    with ChatServer(table([task], right), models=[{"id": "m"}]) as server:
        evaluate_endpoint(Endpoint(server.url, "m", fields), [task], tmp_path / "first", seed=5)
        first = read_run(tmp_path / "first")
        line = reproduce_command(first, first, 2)
        result = CliRunner().invoke(main.app, shlex.split(line.split(" && ")[0])[1:])
        assert result.exit_code == 0, result.stderr
    again = read_run(tmp_path / "base")
    assert again.fingerprint == first.fingerprint
    infos = [run.tasks["builtin-ocrbench"].info["fingerprint"] for run in (first, again)]
    assert infos[0] == infos[1]
    assert "--across-engines" not in line and "--dtype" not in line


def test_runs_of_two_engines_are_compared_across_them(bench: Workbench) -> None:
    task = open_task("builtin-ocrbench", max_new_tokens=3)
    with ChatServer(table([task], right)) as server:
        fields = request_fields()
        evaluate_endpoint(Endpoint(server.url, "m", fields), [task], bench.folder / "served")
    base, served = bench.run("local", names=NAMES[1:2]), bench.folder / "served"
    line = reproduce_command(read_run(base), read_run(served), 2)
    local, remote, last = (shlex.split(part) for part in line.split(" && "))
    assert "--dtype" in local and "--endpoint" not in local
    assert remote[2:6] == ["--endpoint", server.url, "--model", "m"]
    assert last[-1] == "--across-engines"
