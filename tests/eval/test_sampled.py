"""Evaluations with several sampled answers to each question, from stored answers to the report."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion
from eval_models import right, small_model
from typer.testing import CliRunner
from workbench import NAMES, Workbench

from vlpress.cli import main
from vlpress.eval import compare, evaluate_endpoint, open_task
from vlpress.eval.answering.openai_client import Endpoint, request_fields
from vlpress.eval.answering.predictions import read_predictions
from vlpress.eval.answering.sampling import Decoding, sample_seed
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.comparability import check_comparable
from vlpress.eval.fidelity.noise import BATCH, read_noise
from vlpress.eval.fidelity.noise_floor import measure_noise
from vlpress.eval.report.report import build_report
from vlpress.eval.report.reproduce import reproduce_command
from vlpress.eval.results import read_fidelity, read_run

pytestmark = pytest.mark.usefixtures("packaged")

THREE = Decoding(3, 0.7, seed=0)
OCR, MMBENCH = NAMES[1], NAMES[0]


def slips(*keys: str) -> Any:
    """Right answers except for the answers with these keys."""
    return lambda item: "no idea" if item.key in keys else right(item)


def test_a_question_counts_by_the_mean_of_its_samples(bench: Workbench) -> None:
    # Question 241 is right in one sample of three: a rotation is wrong in each of two others.
    say = slips("1:241", "2:1000241", "3:242", "1:0", "2:0", "3:1")
    run = read_run(bench.run("run", say, names=NAMES[:2], decoding=THREE))
    scores = json.loads((run.path / "scores.json").read_text())["benchmarks"]
    mmbench, ocr = scores[MMBENCH], scores[OCR]
    assert mmbench["score"] == pytest.approx(100 * (8 - 2 / 3 - 1 / 3) / 8)
    assert (mmbench["n"], mmbench["n_rows"], mmbench["health"]["parse_failures"]) == (8, 32, 3)
    assert ocr["score"] == pytest.approx(100 * (9 - 1) / 9)
    assert ocr["sampling"]["samples"] == 3
    assert ocr["sampling"]["scores"] == pytest.approx([100 * 8 / 9] * 3)
    assert mmbench["sampling"]["scores"] == pytest.approx([87.5] * 3)
    say = slips("1:0", "1:1")
    run = read_run(bench.run("other", say, names=[OCR], decoding=THREE))
    sampling = json.loads((run.path / "scores.json").read_text())["benchmarks"][OCR]["sampling"]
    each = [100 * 7 / 9, 100.0, 100.0]
    assert sampling["scores"] == pytest.approx(each)
    assert sampling["sd"] == pytest.approx(stdev(each))
    assert sampling["ci95"][0] < 100 * 25 / 27 < sampling["ci95"][1]


def test_a_comparison_is_paired_by_question(bench: Workbench) -> None:
    base = bench.run("base", slips("1:0"), names=[OCR], decoding=THREE)
    lossy = slips("1:0", "2:0", "3:1", "1:2", "2:2", "3:2")
    candidate = bench.run("cand", lossy, names=[OCR], decoding=THREE)
    report = compare(base, candidate, bench.folder / "r")
    entry = report["benchmarks"][OCR]
    assert (entry["n"], entry["clusters"]) == (9, 9)
    assert entry["delta"] == pytest.approx(-100 * (1 / 3 + 1 / 3 + 1) / 9)
    assert entry["flips"] == {"right_to_wrong": 2, "wrong_to_right": 0, "wrong_to_wrong": 0}
    assert entry["mcnemar_p"] == pytest.approx(2 * 0.5**3)  # three questions, all of them lower
    assert entry["ci_kind"].startswith("tango of fractional counts, means of 3 samples")
    assert entry["sampling"]["base"]["scores"] == pytest.approx([100 * 8 / 9, 100, 100])
    lines = (bench.folder / "r" / "flips.jsonl").read_text().splitlines()
    flips = {flip["row"]: flip for flip in map(json.loads, lines)}
    assert flips["0"]["samples_right"] == {
        "base": [False, True, True],
        "candidate": [False, False, True],
    }
    assert (flips["0"]["base"], flips["0"]["candidate"]) == ("word0", "no idea")
    assert "base, 2 of 3 samples right" in (bench.folder / "r" / "report.html").read_text()


def test_equal_samples_give_the_report_of_one(bench: Workbench) -> None:
    wrong = slips(*(f"{n}:{key}" for n in (1, 2, 3) for key in ("1000241", "3")))

    def entries(samples: int) -> dict[str, Any]:
        decoding = Decoding(samples, 0.7)
        runs = [
            read_run(bench.run(f"{name}{samples}", say, names=NAMES[:2], decoding=decoding))
            for name, say in (("base", right), ("cand", wrong))
        ]
        return dict(build_report(runs[0], runs[1])[0]["benchmarks"])

    three, one = entries(3), entries(1)
    keys = ("base", "candidate", "delta", "ci95", "lower95", "upper95", "mcnemar_p", "verdict")
    for name in NAMES[:2]:
        assert [three[name][key] for key in keys] == [one[name][key] for key in keys]
        parts = ("categories", "groups", "flips", "chance")
        assert [three[name][key] for key in parts] == [one[name][key] for key in parts]
        for side in ("base", "candidate"):
            assert three[name]["signs"][side] == pytest.approx(one[name]["signs"][side])


@pytest.mark.parametrize(
    "other", [Decoding(), Decoding(2, 0.7), Decoding(3, 0.8), Decoding(3, 0.7, 0.9)]
)
def test_other_decodings_are_not_compared(bench: Workbench, other: Decoding) -> None:
    base = bench.run("base", names=[OCR], decoding=THREE)
    candidate = bench.run("cand", names=[OCR], decoding=other)
    with pytest.raises(ValueError, match=r"generation\.(samples|temperature|top_p)"):
        check_comparable(read_run(base), read_run(candidate))
    with pytest.raises(ValueError, match="generation"):
        bench.run("base", names=[OCR], decoding=other)


def test_divergences_and_noise_follow_the_first_sample(bench: Workbench) -> None:
    options: dict[str, Any] = {"names": [OCR], "decoding": THREE}
    base = bench.run("base", slips("1:0", "2:1"), is_reference=True, **options)
    candidate = read_run(bench.run("cand", reference=base, seed=1, **options)).tasks[OCR]
    tokens = {key: len(record["kl"]) for key, record in (read_fidelity(candidate) or {}).items()}
    texts = {key: answer.prediction for key, answer in read_run(base).tasks[OCR].first.items()}
    assert texts["0"] == "no idea" and texts["1"] == "word1"
    encode = bench.processor.tokenizer.encode
    assert tokens == {key: len(encode(text)) for key, text in texts.items()}
    task = open_task(OCR, max_new_tokens=3)
    features = FeatureCache(small_model(), bench.processor)
    measure_noise(base, [task], features, BATCH, batch_size=2, units=2)
    noise = read_noise(read_run(base).tasks.values())[BATCH]
    assert (noise["units"], noise["answers"]) == (2, 2)
    assert noise["changed_answers"] == 2  # the model itself does not answer as the table


def test_an_unfinished_run_is_refused(bench: Workbench) -> None:
    folder = bench.run("run", names=[OCR], decoding=THREE)
    path = folder / OCR / "predictions.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    task = read_run(folder).tasks[OCR]
    assert not task.is_complete
    with pytest.raises(ValueError, match="1 of 9 items"):
        task.score()


def test_a_server_gets_the_settings_and_the_seed_of_each_sample(tmp_path: Path) -> None:
    task = open_task(OCR, max_new_tokens=3)

    def run(fields: dict[str, Any], out: Path) -> list[dict[str, Any]]:
        reply = Reply(completion("word0"))
        with ChatServer(lambda _: reply, models=[{"id": "m"}]) as server:
            endpoint = Endpoint(server.url, "m", fields)
            evaluate_endpoint(endpoint, [task], out, seed=4, samples=2)
            return list(server.bodies)

    fields = request_fields(seed=4, temperature=0.6, top_p=0.95, top_k=20)
    bodies = run(fields, tmp_path / "a")
    assert {(b["temperature"], b["top_p"], b["top_k"]) for b in bodies} == {(0.6, 0.95, 20)}
    expected = {sample_seed(4, item.id, n) for item in task.items for n in (1, 2)}
    assert {body["seed"] for body in bodies} == expected and len(bodies) == 18
    stored = read_predictions(tmp_path / "a" / OCR / "predictions.jsonl")
    assert {p.seed for p in stored.values()} == expected
    setup = read_run(tmp_path / "a").fingerprint
    assert setup["generation"]["samples"] == 2 and setup["generation"]["seeds"]
    # Without the field none is sent, and the fingerprint says so.
    fields = request_fields(temperature=0.6, extra={"seed": None})
    assert not any("seed" in body for body in run(fields, tmp_path / "b"))
    assert read_run(tmp_path / "b").fingerprint["generation"]["seeds"] is None


def test_the_command_line_samples_and_repeats(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    words = ["eval", str(checkpoint), "--bench", OCR, "--limit", "3", "--device", "cpu"]
    refused = runner.invoke(main.app, [*words, "--samples", "2"])
    assert refused.exit_code == 2 and "--temperature" in refused.stderr
    sampled = [*words, "--samples", "2", "--temperature", "2", "--top-k", "9", "--seed", "3"]
    sampled += ["--max-new-tokens", "5"]
    done = runner.invoke(main.app, [*sampled, "-o", "first"])
    assert done.exit_code == 0, done.stderr
    first = read_run(tmp_path / "first")
    assert first.fingerprint["generation"] == Decoding(2, 2.0, 1.0, 9).describe()
    line = reproduce_command(first, first, 2).split(" && ")[0]
    again = runner.invoke(main.app, line.split()[1:])
    assert again.exit_code == 0, again.stderr
    second = read_run(tmp_path / "base")
    assert second.fingerprint == first.fingerprint
    assert {k: p.prediction for k, p in second.tasks[OCR].predictions.items()} == {
        k: p.prediction for k, p in first.tasks[OCR].predictions.items()
    }


@pytest.mark.slow
def test_a_run_samples_both_models(checkpoint: Path, tmp_path: Path) -> None:
    words = ["run", str(checkpoint), "-o", str(tmp_path / "out"), "--bench", OCR, "--limit", "3"]
    words += ["--calib-samples", "2", "--device", "cpu", "--samples", "2", "--temperature", "1"]
    result = CliRunner().invoke(main.app, words)
    assert result.exit_code == 0, result.stderr
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["benchmarks"][OCR]["sampling"]["samples"] == 2
    assert set(report["fidelity"]["noise"]) == {"batch", "dtype"}
    again = CliRunner().invoke(main.app, [*words[:-2], "--temperature", "2"])
    assert again.exit_code == 2 and "generation.temperature" in again.stderr
