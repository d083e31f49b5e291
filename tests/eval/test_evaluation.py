from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_files import ocrbench_rows, write_tsv
from eval_models import TableResponder, evaluate_answers, small_model
from tiny_models import CHAT_TEMPLATE, write_checkpoint_folder
from torch import nn

from vlpress.common import atomic
from vlpress.eval import EvalResult, evaluate_model, open_task
from vlpress.eval.fingerprint import (
    count_weight_bytes,
    count_weights,
    identify_checkpoint,
    identify_model,
    run_fingerprint,
    setup_differences,
)
from vlpress.eval.results import read_info, read_run, summarize_task
from vlpress.model.processing.processor import Processor

pytestmark = pytest.mark.usefixtures("packaged")

NAMES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")


def run(processor: Processor, out: Path, *names: str, **options: Any) -> EvalResult:
    cap = options.pop("max_new_tokens", 3)
    tasks = [open_task(name, max_new_tokens=cap) for name in names or NAMES]
    model = options.pop("model", small_model())
    options.setdefault("batch_size", 8)
    if (responder := options.pop("responder", None)) is not None:
        return evaluate_answers(responder, model, processor, tasks, out, **options)
    return evaluate_model(model, processor, tasks, out, **options)


def test_stored_scores_are_recomputable(processor: Processor, tmp_path: Path) -> None:
    result = run(processor, tmp_path / "out", responder=TableResponder(), name="tiny")
    assert {name: b["score"] for name, b in result.benchmarks.items()} == dict.fromkeys(NAMES, 100)
    assert result.benchmarks["builtin-mmbench"]["n"] == 8
    assert result.benchmarks["builtin-mmbench"]["n_rows"] == 32
    stored = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert stored == json.loads(json.dumps(result.to_dict()))
    again = {name: summarize_task(task) for name, task in read_run(tmp_path / "out").tasks.items()}
    assert again == result.benchmarks
    assert stored["fidelity"] is None
    assert stored["speed"]["items"] == 32 + 9 + 3
    assert stored["memory"]["peak_bytes"] > 0


def test_killed_evaluation_finishes_without_repeating(processor: Processor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = TableResponder(interrupt_after=5)
    with pytest.raises(KeyboardInterrupt):
        run(processor, out, responder=first)
    second = TableResponder()
    result = run(processor, out, responder=second)
    assert len(first.seen) + len(second.seen) == 44
    whole = run(processor, tmp_path / "whole", responder=TableResponder())
    assert result.benchmarks == whole.benchmarks


def test_evaluation_killed_at_any_write_resumes(
    processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = atomic.write_bytes
    for allowed in range(1, 6):
        out, left = tmp_path / str(allowed), [allowed]

        def limited(path: Path, data: bytes, left: list[int] = left, **options: Any) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, data, **options)

        with monkeypatch.context() as patch:
            patch.setattr(atomic, "write_bytes", limited)
            with pytest.raises(KeyboardInterrupt):
                run(processor, out, "builtin-ocrbench", responder=TableResponder())
        assert set(read_run(out).tasks) <= {"builtin-ocrbench"}
        done = run(processor, out, "builtin-ocrbench", responder=TableResponder())
        assert done.benchmarks["builtin-ocrbench"]["score"] == 100


def test_random_model_end_to_end_with_fidelity(processor: Processor, tmp_path: Path) -> None:
    base, cand = small_model(), small_model(1)
    run(processor, tmp_path / "base", model=base, is_reference=True)
    same = run(
        processor,
        tmp_path / "same",
        model=base,
        reference=tmp_path / "base",
    )
    other = run(
        processor,
        tmp_path / "other",
        model=cand,
        reference=tmp_path / "base",
    )
    assert same.fidelity is not None and other.fidelity is not None
    for name in same.fidelity:
        assert same.fidelity[name]["kl_max"] < 1e-5
        assert other.fidelity[name]["kl_mean"] > 0.1
        assert other.fidelity[name]["tokens"] == same.fidelity[name]["tokens"]
    assert other.run["model"]["weights"] == sum(p.numel() for p in cand.parameters())


def test_reference_is_opened_by_its_name(processor: Processor, tmp_path: Path) -> None:
    folder = write_checkpoint_folder(tmp_path / "model", small_model())
    source: dict[str, Any] = {"name": str(folder), "source": folder}
    run(processor, tmp_path / "base", "builtin-ocrbench", **source)
    reference = {"reference": tmp_path / "base"}
    same = run(processor, tmp_path / "same", "builtin-ocrbench", **source, **reference)
    assert same.fidelity is not None
    assert same.fidelity["builtin-ocrbench"]["kl_max"] < 1e-5


def test_reference_whose_model_changed_or_is_missing_is_refused(
    processor: Processor, tmp_path: Path
) -> None:
    folder = write_checkpoint_folder(tmp_path / "model", small_model())
    source: dict[str, Any] = {"name": str(folder), "source": folder}
    run(processor, tmp_path / "base", "builtin-mmmu", responder=TableResponder(), **source)
    write_checkpoint_folder(folder, small_model(1))
    responder = TableResponder()
    options: dict[str, Any] = {"reference": tmp_path / "base", "responder": responder}
    with pytest.raises(ValueError, match="has changed since"):
        run(processor, tmp_path / "a", "builtin-mmmu", **options)
    folder.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"cannot be opened \(.*model"):
        run(processor, tmp_path / "b", "builtin-mmmu", **options)
    assert responder.seen == []


def test_another_setup_is_refused(processor: Processor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(processor, out, "builtin-ocrbench", responder=TableResponder())
    with pytest.raises(ValueError, match="batch_size: 8 -> 4"):
        run(processor, out, "builtin-ocrbench", responder=TableResponder(), batch_size=4)
    with pytest.raises(ValueError, match=r"model.files.memory: "):
        run(processor, out, "builtin-ocrbench", responder=TableResponder(), model=small_model(1))
    with pytest.raises(ValueError, match="max_new_tokens: 3 -> 5"):
        run(processor, out, "builtin-ocrbench", responder=TableResponder(), max_new_tokens=5)
    with pytest.raises(ValueError, match=r"kernel: absent -> x"):
        extra = {"fingerprint_extra": {"kernel": "x"}}
        run(processor, out, "builtin-ocrbench", responder=TableResponder(), **extra)


@pytest.mark.parametrize(
    ("file", "key", "value", "part"),
    [
        ("tokenizer_config.json", "chat_template", CHAT_TEMPLATE + " ", "text.chat_template"),
        ("tokenizer.json", "normalizer", {"type": "NFC"}, "text.tokenizer"),
        ("generation_config.json", "eos_token_id", [258, 256, 70], "text.stop_ids"),
        ("preprocessor_config.json", "image_std", [1.0, 1.0, 1.0], "pixels.std"),
    ],
)
def test_other_side_files_are_another_setup(
    processor: Processor, tmp_path: Path, file: str, key: str, value: object, part: str
) -> None:
    folder = write_checkpoint_folder(tmp_path / "model")
    setup = fingerprint(Processor.from_folder(folder))
    processor.tokenizer("a question", padding="max_length", max_length=20)
    assert setup == fingerprint(processor)  # the same files elsewhere, and after use
    content = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps({**content, key: value}), "utf-8")
    [change] = setup_differences(setup, fingerprint(Processor.from_folder(folder)))
    assert change.startswith(part)


def fingerprint(processor: Processor) -> dict[str, Any]:
    return run_fingerprint(small_model(), processor, batch_size=1, seed=0, source=None)


def test_another_benchmark_joins_the_same_folder(processor: Processor, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(processor, out, "builtin-ocrbench", responder=TableResponder())
    result = run(processor, out, "builtin-mmmu", responder=TableResponder())
    assert set(result.benchmarks) == {"builtin-ocrbench", "builtin-mmmu"}


def test_repeated_benchmark_is_refused(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="builtin-mmmu"):
        run(processor, tmp_path / "out", "builtin-mmmu", "builtin-mmmu")


def test_reference_must_fit(processor: Processor, tmp_path: Path) -> None:
    base = tmp_path / "base"
    run(processor, base, "builtin-ocrbench", responder=TableResponder())
    with pytest.raises(ValueError, match="builtin-mmmu"):
        run(processor, tmp_path / "a", "builtin-mmmu", reference=base)
    with pytest.raises(ValueError, match="batch_size: 8 -> 2"):
        run(processor, tmp_path / "b", "builtin-ocrbench", reference=base, batch_size=2)
    with pytest.raises(FileNotFoundError, match="none"):
        run(processor, tmp_path / "c", "builtin-ocrbench", reference=tmp_path / "none")
    assert not (tmp_path / "a" / "run.json").exists()


def test_a_changed_benchmark_file_is_asked_where_it_changed(
    processor: Processor, tmp_path: Path
) -> None:
    path = write_tsv(tmp_path / "ocr.tsv", ocrbench_rows(3))
    out = tmp_path / "out"
    run(processor, out, f"OCRBench={path}", responder=TableResponder())
    write_tsv(path, ocrbench_rows(4))
    responder = TableResponder()
    run(processor, out, f"OCRBench={path}", responder=responder)
    assert responder.seen == ["3"]


def test_damaged_run_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{", "utf-8")
    with pytest.raises(ValueError, match=r"run\.json"):
        read_info(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 9}', "utf-8")
    with pytest.raises(ValueError, match=r"schema 9.*4"):
        read_info(tmp_path)


def test_identity_follows_the_weights(tmp_path: Path) -> None:
    model = small_model()
    folder = write_checkpoint_folder(tmp_path / "m", model)
    before = identify_checkpoint(folder), identify_model(model)
    assert identify_model(small_model()) == before[1]
    with torch.no_grad():
        next(model.visual.parameters()).add_(1)
    write_checkpoint_folder(tmp_path / "m", model)
    assert identify_checkpoint(folder) != before[0]
    assert identify_model(model) != before[1]
    size = (folder / "model.safetensors").stat().st_size
    assert count_weight_bytes(model, folder) == size
    assert abs(count_weight_bytes(model, None) - size) < 20_000  # the header


def test_quantized_layers_count_their_logical_weights() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 128, 64
            self.register_buffer("packed", torch.zeros(16, 64, dtype=torch.int32))
            self.register_buffer("bias", torch.zeros(64))

    class Pair(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer, self.norm = layer, nn.LayerNorm(8)

    plain: Any = Pair(nn.Linear(128, 64))
    packed: Any = Pair(Packed())
    assert count_weights(packed) == count_weights(plain) == 128 * 64 + 64 + 16


def test_setup_differences_leave_the_model_out() -> None:
    base = {"dtype": "bfloat16", "model": {"config": "a"}, "quantization": None}
    assert setup_differences(base, {**base, "model": {"config": "b"}, "quantization": "c"}) == []
    assert setup_differences(base, {**base, "dtype": "float16"}) == ["dtype: bfloat16 -> float16"]
