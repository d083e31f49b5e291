"""`vlpress eval --endpoint` against a server on the loopback interface."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion, table
from eval_files import base64_png, write_tsv
from typer.testing import CliRunner, Result

from vlpress.cli import main
from vlpress.cli.exit_codes import INTERRUPTED, RESUME
from vlpress.eval.answering.predictions import read_predictions
from vlpress.eval.tasks import open_task

BENCH = ["--bench", "builtin-ocrbench", "--limit", "6", "--batch-size", "2"]
STYLE = ["--prompt-style", "vlmevalkit-default"]
KEY = "sk-a-secret-key"
MODELS = [{"id": "m", "owned_by": "vllm"}]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


def parsed(result: Result) -> Any:
    assert result.exit_code in (0, 1, 4), result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def answer() -> Any:
    task = open_task("builtin-ocrbench", limit=6, prompt_style="vlmevalkit-default")
    return table([task], lambda item: str(item.fields["answers"][0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "neither given; give MODEL, or --endpoint URL --model NAME"),
        (["tiny", "--endpoint", "h"], "both given; give MODEL, or --endpoint"),
        (["tiny", "--model", "m"], "--model names a served model; it needs --endpoint URL"),
        (["--endpoint", "h"], "give --prompt-style (vlmevalkit-qwen2 for Qwen2-VL, vlmevalkit-de"),
        (["--endpoint", "ftp://h", *STYLE], "'ftp://h' is no address; give one like http://loc"),
        (["--endpoint", f"http://u:{KEY}@h", *STYLE], "may hold no user, password or query"),
        (["--endpoint", "h", *STYLE, "--device", "cpu"], "--device and --dtype are of a model in"),
        (["--endpoint", "h", *STYLE, "--api-key-env", "NOPE"], "variable NOPE is not set"),
        (["--endpoint", "h", *STYLE, "--endpoint-extra", "{"], "--endpoint-extra '{'"),
        (["--endpoint", "h", *STYLE, "--endpoint-extra", "[]"], "--endpoint-extra '[]'"),
        (
            ["--endpoint", "h", *STYLE, "--endpoint-extra", '{"temperature": 1}'],
            "'temperature' cannot be set: an evaluation decides it",
        ),
        (["--endpoint", "h", *STYLE, "--concurrency", "0"], "'--concurrency'"),
        (["--endpoint", "h", *STYLE, "--bench", "mmlu"], "unknown benchmark 'mmlu'"),
        (["--endpoint", "h", "--reference", "gone"], "gone is no evaluation folder"),
        (["--endpoint", "http://127.0.0.1:9", *STYLE, *BENCH], "nothing answers at http://127."),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("eval", "-o", "out", *arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("vlpress: error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and KEY not in result.stderr
    assert list(tmp_path.iterdir()) == []


def places_file(folder: Path) -> Path:
    row = {"image": base64_png(1, (200, 100)), "question": "open", "bbox": "[10, 10, 21, 21]"}
    return write_tsv(folder / "s.tsv", [{"index": index, **row} for index in range(2)])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([], "give --coordinates, the rule of the model's family"),
        (["--coordinates", "qwen2.5-vl"], "give the original's evaluation with --reference"),
    ],
)
def test_places_need_a_rule_and_sizes(chosen: list[str], message: str, tmp_path: Path) -> None:
    bench = ("--bench", f"ScreenSpot_Web={places_file(tmp_path)}")
    result = call("eval", "-o", tmp_path / "out", "--endpoint", "h", *STYLE, *bench, *chosen)
    assert result.exit_code == 2 and message in result.stderr
    assert not (tmp_path / "out").exists()


def test_places_of_a_served_model_are_read_by_the_rule_of_the_reference(tmp_path: Path) -> None:
    bench = f"ScreenSpot_Web={places_file(tmp_path)}"
    # The element's centre is (20, 20) of 200 x 100.
    task = open_task(bench, prompt_style="vlmevalkit-default", coordinates="qwen3-vl")
    base, cand = tmp_path / "base", tmp_path / "cand"
    with ChatServer(table([task], lambda _: '{"point_2d": [100, 200]}'), models=MODELS) as server:
        command = ["eval", "--endpoint", server.url, "--bench", bench, "--json"]
        scores = parsed(call(*command, *STYLE, "--coordinates", "qwen3-vl", "-o", base))
        entry = scores["benchmarks"]["ScreenSpot_Web"]
        assert (entry["score"], entry["extra"]["distance to centre"]) == (100.0, 0.0)
        again = parsed(call(*command, "--reference", base, "-o", cand))
    assert again["benchmarks"]["ScreenSpot_Web"]["score"] == 100.0
    run = json.loads((cand / "run.json").read_text("utf-8"))
    assert run["tasks"]["ScreenSpot_Web"]["fingerprint"]["coordinates"] == "qwen3-vl"


def test_served_models_are_evaluated_and_compared(
    answer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    base, cand = tmp_path / "base", tmp_path / "cand"
    with ChatServer(answer, models=MODELS) as server:
        command = ["eval", "--endpoint", server.url, *BENCH, "--api-key-env", "MY_KEY", "--json"]
        scores = parsed(call(*command, *STYLE, "-o", base))
        assert (scores["model"], scores["benchmarks"]["builtin-ocrbench"]["score"]) == ("m", 100)
        assert scores["memory"]["peak_bytes"] is None
        result = call(*command, "--reference", base, "-o", cand)
        assert parsed(result)["benchmarks"] == scores["benchmarks"]
        assert "the divergence is not measured" in result.stderr
        assert "WARNING" not in result.stderr
        server.models = [{"id": "m", "owned_by": "sglang"}]
        result = call(*command, "--reference", base, "-o", tmp_path / "other")
        assert "WARNING: " in result.stderr and "will need --across-engines" in result.stderr
    assert len(server.bodies) == 18
    assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not [p for p in written if KEY.encode() in p.read_bytes()]
    result = call("compare", base, cand, "-o", tmp_path / "report", "--margin", "60")
    assert (result.exit_code, "note: " in result.stdout) == (0, False)


def test_refused_field_can_be_left_out_in_the_same_folder(answer: Any, tmp_path: Path) -> None:
    def strict(body: dict[str, Any]) -> Reply:
        if "repetition_penalty" in body:
            return Reply({"detail": "unexpected: repetition_penalty"}, 422)
        reply: Reply = answer(body)
        return reply

    with ChatServer(strict, models=MODELS) as server:
        command = ["eval", "--endpoint", server.url, *STYLE, *BENCH, "-o", str(tmp_path / "out")]
        refused = call(*command)
        assert refused.exit_code == 2
        hint = "--endpoint-extra '{\"repetition_penalty\": null}'"
        assert refused.stderr.rstrip().endswith(hint)
        left_out = ["--endpoint-extra", '{"repetition_penalty": null}', "--json"]
        parsed(call(*command, *left_out))
        other = call(*command, "--endpoint-extra", '{"repetition_penalty": null, "top_k": 1}')
        assert other.exit_code == 2 and "request.top_k: absent -> 1" in other.stderr
        requests = len(server.bodies)
        parsed(call(*command, *left_out))
        assert len(server.bodies) == requests


def interrupted(command: list[str], stored: Path, answers: int) -> subprocess.CompletedProcess[str]:
    """Run a command and send SIGINT once this number of answers is stored."""
    with subprocess.Popen(
        [sys.executable, "-m", "vlpress", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        while not (stored.is_file() and stored.read_bytes().count(b"\n") > answers):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_ctrl_c_leaves_a_served_run_that_resumes(answer: Any, tmp_path: Path) -> None:
    out, hold, arrived = tmp_path / "out", threading.Event(), [0]
    predictions = out / "builtin-ocrbench" / "predictions.jsonl"

    def slow(body: dict[str, Any]) -> Reply:
        arrived[0] += 1
        if arrived[0] > 4:
            hold.wait(30)
        reply: Reply = answer(body)
        return reply

    with ChatServer(slow, models=MODELS) as server:
        command = ["eval", "--endpoint", server.url, *STYLE, *BENCH, "-o", str(out)]
        command += ["--concurrency", "2"]
        stopped = interrupted(command, predictions, 4)
        hold.set()
        assert stopped.returncode == INTERRUPTED
        assert f"interrupted; {RESUME}" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert len(read_predictions(predictions)) == 4
        server.bodies, server.answer = [], answer
        assert parsed(call(*command, "--json"))["benchmarks"]["builtin-ocrbench"]["score"] == 100
        assert len(server.bodies) == 2


@pytest.mark.slow
def test_ctrl_c_leaves_a_local_run_that_resumes(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predictions = out / "builtin-ocrbench" / "predictions.jsonl"
    bench = ["--bench", "builtin-ocrbench", "--limit", "10", "--batch-size", "1"]
    command = ["eval", str(checkpoint), *bench, "--device", "cpu", "-o", str(out)]
    stopped = interrupted(command, predictions, 2)
    assert stopped.returncode == INTERRUPTED
    assert f"interrupted; {RESUME}" in stopped.stderr
    before = predictions.read_bytes()
    stored = read_predictions(predictions)
    assert 2 <= len(stored) < 10
    assert parsed(call(*command, "--json"))["benchmarks"]["builtin-ocrbench"]["n"] == 10
    assert predictions.read_bytes().startswith(before[: before.rindex(b"\n") + 1])


def test_malformed_replies_end_in_one_line(tmp_path: Path) -> None:
    with ChatServer(lambda _: Reply({"choices": []}), models=MODELS) as server:
        result = call("eval", "--endpoint", server.url, *STYLE, *BENCH)
    assert result.exit_code == 2
    assert "vlpress: error: item " in result.stderr
    assert "the reply is no chat completion: {'choices': []}" in result.stderr


def test_empty_answers_are_counted(tmp_path: Path) -> None:
    with ChatServer(lambda _: Reply(completion(None)), models=MODELS) as server:
        scores = parsed(call("eval", "--endpoint", server.url, *STYLE, *BENCH, "--json"))
    health = scores["benchmarks"]["builtin-ocrbench"]["health"]
    assert (health["empty"], health["mean_tokens"]) == (6, None)


def test_options_of_a_local_model_are_refused_for_an_endpoint() -> None:
    for option in (["--activations", "int8"], ["--head", "w8a16"]):
        refused = call("eval", "--endpoint", "http://127.0.0.1:1", *option)
        assert refused.exit_code == 2 and "not an endpoint" in refused.stderr
