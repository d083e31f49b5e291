"""NaN and infinity end an evaluation with one line; they are never stored or reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_models import small_model
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import write_checkpoint_folder
from torch import Tensor
from typer.testing import CliRunner
from workbench import Workbench

from vlpress.calib.stored_logprobs import LOWEST
from vlpress.cli import main
from vlpress.common.atomic import write_json
from vlpress.common.checksum import KEY, verify_checksum, with_checksum
from vlpress.eval import compare, evaluate_model, open_task
from vlpress.eval.answering.predictions import Prediction, read_predictions
from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity import measure, perplexity
from vlpress.eval.fidelity.logprob_cache import LogProbReader
from vlpress.eval.fidelity.measure import measure_task, store_logprobs
from vlpress.eval.fidelity.perplexity import FILE, compare_text, measure_text
from vlpress.eval.results import QUANTIZATION, read_quantization, read_run
from vlpress.eval.stats.statistics import mean_interval
from vlpress.eval.tasks.task import Task
from vlpress.model.finite import NotFiniteError
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

pytestmark = pytest.mark.usefixtures("packaged")

OCR = "builtin-ocrbench"


@pytest.fixture
def task() -> Task:
    return open_task(OCR, max_new_tokens=2)


def failing(model: QwenVL, after: int) -> QwenVL:
    """Scores of the last prompt of a batch are NaN once `after` batches were scored."""
    original, calls = model.logits, 0

    def logits(hidden: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        found = original(hidden)
        if calls > after:
            found[-1] = torch.nan
        return found

    model.logits = logits  # type: ignore[method-assign]
    return model


def loud(dtype: torch.dtype = torch.float32) -> QwenVL:
    """A model whose activations overflow in fp16 and in no wider type."""
    model = small_model()
    mlp: Any = model.model.layers[1].mlp
    mlp.up_proj.weight.mul_(2.0**15)
    mlp.down_proj.weight.div_(2.0**15)
    return model.to(dtype)


def stored(task: Task) -> dict[str, Prediction]:
    return {item.id: Prediction(item.id, "abc", 3, True, 0.1) for item in task.items}


def test_an_evaluation_names_the_items_and_resumes(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    # Two steps for each batch of four: the third batch's first step is the fifth call.
    model = failing(small_model(), after=4)
    with pytest.raises(NotFiniteError) as error:
        answer_task(task, ModelResponder(FeatureCache(model, processor)), path, {}, batch_size=4)
    kept = read_predictions(path)
    assert len(kept) == 8
    [missing] = {item.id for item in task.items} - set(kept)
    assert str(error.value).startswith(f"{OCR}: item {missing}: ")
    assert "\n" not in str(error.value) and "fp32" in str(error.value)
    whole = answer_task(
        task,
        ModelResponder(FeatureCache(small_model(), processor)),
        tmp_path / "whole.jsonl",
        {},
        batch_size=4,
    )
    resumed = answer_task(
        task, ModelResponder(FeatureCache(small_model(), processor)), path, {}, batch_size=4
    )
    assert {k: p.prediction for k, p in resumed.items()} == {
        k: p.prediction for k, p in whole.items()
    }


def test_features_of_an_image_name_the_item(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    model = small_model()
    model.get_parameter("visual.merger.mlp.2.weight")[0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match=rf"{OCR}: item \d+: .*visual\.merger\.mlp\.2"):
        answer_task(
            task, ModelResponder(FeatureCache(model, processor)), tmp_path / "p", {}, batch_size=4
        )


def test_nothing_of_a_failed_evaluation_is_scored(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    with pytest.raises(NotFiniteError, match="fp16"):
        evaluate_model(loud(torch.float16), processor, [task], tmp_path / "run")
    assert not (tmp_path / "run" / "scores.json").exists()
    with pytest.raises(ValueError, match="9 of 9 items"):
        compare(tmp_path / "run", tmp_path / "run", tmp_path / "r")
    assert evaluate_model(loud(), processor, [task], tmp_path / "whole").benchmarks[OCR]["n"] == 9


def test_errors_of_verbs_have_one_line(tmp_path: Path) -> None:
    folder = write_checkpoint_folder(tmp_path / "loud", loud())
    options = ["--dtype", "fp16"]
    asked = CliRunner().invoke(main.app, ["generate", str(folder), "hi", *options])
    assert asked.exit_code == 2 and asked.stdout == ""
    run = ["eval", str(folder), "--bench", OCR, "-o", str(tmp_path / "out"), *options]
    evaluated = CliRunner().invoke(main.app, run)
    assert evaluated.exit_code == 2
    for result in (asked, evaluated):
        [line] = [line for line in result.stderr.splitlines() if line.startswith("vlpress: error")]
        assert "fp16" in line and "--dtype bf16 or fp32" in line
    assert f"{OCR}: items " in evaluated.stderr
    again = ["generate", str(folder), "hi", "--dtype", "fp32", "--max-new-tokens", "2"]
    assert CliRunner().invoke(main.app, again).exit_code == 0


def test_fidelity_names_benchmark_and_item(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    answers, bad = stored(task), loud(torch.float16)
    with pytest.raises(NotFiniteError, match=rf"{OCR}: item \d+: .*fp16"):
        store_logprobs(
            task, FeatureCache(bad, processor), answers, tmp_path / "bad", {}, batch_size=4
        )
    store_logprobs(
        task, FeatureCache(loud(), processor), answers, tmp_path / "kept", {}, batch_size=4
    )
    reader, path = LogProbReader(tmp_path / "kept"), tmp_path / "f.jsonl"
    with pytest.raises(NotFiniteError, match=rf"{OCR}: item \d+: .*fp16"):
        measure_task(task, FeatureCache(bad, processor), answers, reader, path, {}, batch_size=4)
    assert path.read_bytes().count(b"\n") == 1, "only the header"


@pytest.mark.parametrize("part", ["logprobs", "said"])
def test_kept_log_probabilities_that_are_not_finite(
    task: Task, processor: Processor, tmp_path: Path, part: str
) -> None:
    store_logprobs(
        task, FeatureCache(small_model(), processor), stored(task), tmp_path, {}, batch_size=4
    )
    reader, key = LogProbReader(tmp_path), task.items[0].id
    for file in tmp_path.glob("*.safetensors"):
        tensors = load_file(file)
        if (name := f"{key}/{part}") in tensors:
            tensors[name].view(-1)[0] = torch.nan
            save_file(tensors, file)
    with pytest.raises(ValueError, match=f"of {key} that are not finite"):
        reader.read(key, torch.device("cpu"))
    reader.read(task.items[1].id, torch.device("cpu"))


def test_improbable_tokens_stay_finite_in_half_precision(
    task: Task, processor: Processor, tmp_path: Path
) -> None:
    model = small_model()
    assert isinstance(model.lm_head, torch.nn.Linear)
    model.lm_head.weight.mul_(1e5)
    kept, out = tmp_path / "kept", tmp_path / "f.jsonl"
    store_logprobs(task, FeatureCache(model, processor), stored(task), kept, {}, batch_size=4)
    expected = LogProbReader(kept).read(task.items[0].id, torch.device("cpu"))
    assert float(expected.logprobs.min()) >= LOWEST and bool(expected.logprobs.isfinite().all())
    records = measure_task(
        task,
        FeatureCache(model, processor),
        stored(task),
        LogProbReader(kept),
        out,
        {},
        batch_size=4,
    )
    assert all(math.isfinite(kl) for record in records.values() for kl in record["kl"])


def test_gold_letters_of_vanishing_probability() -> None:
    fields = {"choices": {"A": "x", "B": "y"}, "answer": "A"}
    found = measure._compare_gold(fields, {"A": -1e4, "B": -1e4}, {"A": -2e4, "B": -1e4})
    assert found["gold"] == [-1e4, -2e4]
    assert found["choice"] == pytest.approx([-math.log(2), -1e4])


def test_perplexity_that_exceeds_floats_is_null(
    processor: Processor, tmp_path: Path, bench: Workbench
) -> None:
    base, loud_head = small_model(), small_model()
    assert isinstance(loud_head.lm_head, torch.nn.Linear)
    loud_head.lm_head.weight.mul_(1e5)
    text = "It was a bright cold day in April. " * 3
    runs = [bench.run(name, names=(OCR,)) for name in ("base", "cand")]
    for run, model in zip(runs, (base, loud_head), strict=True):
        measure_text(text, model, processor, run / FILE, {})
    found = compare_text(*runs)
    assert found is not None and found["base"] > 1
    assert (found["candidate"], found["ratio"]) == (None, None)
    assert "candidate" in found["overflow"] and found["nll"]["candidate"] > 700
    compare(runs[0], runs[1], tmp_path / "r")
    for name in ("report.md", "report.html"):
        assert "above the largest float" in (tmp_path / "r" / name).read_text("utf-8")
    same = compare_text(runs[0], runs[0])
    assert same is not None and same["overflow"] is None


def test_nan_along_a_text_names_the_window(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match=r"window 1 of 1: .*NaN in fp16"):
        measure_text("some text", loud(torch.float16), processor, tmp_path / FILE, {})
    assert perplexity.read_windows(tmp_path) == ({**perplexity.identify_text("some text")}, {})


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("file", ["predictions.jsonl", "items.jsonl", "run.json"])
def test_stored_numbers_that_are_not_finite(bench: Workbench, literal: str, file: str) -> None:
    base, cand = bench.run("base", names=(OCR,)), bench.run("cand", names=(OCR,))
    path = cand / file if file == "run.json" else cand / OCR / file
    text = path.read_text("utf-8")
    old = {"predictions.jsonl": '"seconds": ', "items.jsonl": '"unit": ', "run.json": '"seed": '}
    place = text.index(old[file]) + len(old[file])
    end = min(text.index(mark, place) for mark in ",}")
    path.write_text(text[:place] + literal + text[end:], "utf-8")
    with pytest.raises(ValueError, match=r"not finite|damaged") as error:
        compare(base, cand, bench.folder / "r")
    assert "\n" not in str(error.value)
    assert not (bench.folder / "r").exists()


@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 3))
def test_values_that_json_cannot_represent_get_no_checksum(value: float, depth: int) -> None:
    nested: Any = value
    for _ in range(depth):
        nested = {"a": [nested]}
    with pytest.raises(ValueError, match="JSON"):
        with_checksum({"x": nested})
    with pytest.raises(ValueError, match="not finite"):
        verify_checksum({"x": nested, KEY: "0" * 16}, "x.json line 3")


def test_layer_errors_that_are_not_finite(bench: Workbench) -> None:
    run = bench.run("base", names=(OCR,))
    layer = {"name": "model.layers.0.mlp.up_proj", "final_error": 0.1, "rtn_error": None}
    record = {"layers": [layer]}
    (run / QUANTIZATION).write_text(json.dumps(record), "utf-8")
    assert read_quantization(read_run(run)) == record
    (run / QUANTIZATION).write_text(json.dumps(record).replace("0.1", "NaN"), "utf-8")
    with pytest.raises(ValueError, match=r"quantization\.json"):
        read_quantization(read_run(run))


def test_a_file_is_not_written_with_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json .*not finite"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert not list(tmp_path.glob("a.json*"))


def test_intervals_of_values_too_far_apart() -> None:
    with pytest.raises(ValueError, match="too far apart"):
        mean_interval([-1e308, 1e308, 1e308])


def test_run_refuses_a_margin_at_once(tmp_path: Path) -> None:
    for margin in ("100", "inf"):
        out = tmp_path / margin
        result = CliRunner().invoke(main.app, ["run", "-o", str(out), "--margin", margin])
        assert result.exit_code == 2 and "margin is" in result.stderr
        assert not out.exists()
