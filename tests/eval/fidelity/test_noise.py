from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_files import package_files
from eval_models import small_model

from vlpress.eval import evaluate_model, open_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity.noise import BATCH, DTYPE, multiples, read_noise
from vlpress.eval.fidelity.noise_floor import measure_noise, noise_sample
from vlpress.eval.results import read_run
from vlpress.eval.tasks.task import Task
from vlpress.model.processing.processor import Processor

NAMES = ("builtin-mmbench", "builtin-ocrbench")


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    package_files(tmp_path, monkeypatch)
    return [open_task(name, max_new_tokens=3) for name in NAMES]


@pytest.fixture
def base(tasks: list[Task], processor: Processor, tmp_path: Path) -> Path:
    out = tmp_path / "base"
    evaluate_model(small_model(), processor, tasks, out, batch_size=4, is_reference=True)
    return out


def test_the_sample_holds_whole_questions_of_all_categories(tasks: list[Task]) -> None:
    part = noise_sample(tasks[0], 4)
    units = Counter(item.fields["unit"] for item in part.items)
    assert sorted(units.values()) == [4, 4, 4, 4]
    assert len({item.fields["category"] for item in part.items}) == 2
    assert part.fields == tuple(item.fields for item in part.items)
    assert noise_sample(tasks[0], 4).items == part.items
    assert len(noise_sample(tasks[0], 99).items) == 32


def test_another_batch_size_is_a_smaller_change_than_another_dtype(
    base: Path, tasks: list[Task], processor: Processor
) -> None:
    measure_noise(base, tasks, FeatureCache(small_model(), processor), BATCH, batch_size=1, units=4)
    other = small_model().to(torch.bfloat16)
    measure_noise(base, tasks, FeatureCache(other, processor), DTYPE, batch_size=4, units=4)
    for task in read_run(base).tasks.values():
        found = read_noise([task])
        batch, dtype = found[BATCH], found[DTYPE]
        assert (batch["batch_size"], batch["dtype"]) == (1, "float32")
        assert (dtype["batch_size"], dtype["dtype"]) == (4, "bfloat16")
        assert batch["units"] == dtype["units"] == 4
        assert batch["changed_answers"] == batch["flips"] == 0
        assert batch["fidelity"]["kl_mean"] < 1e-6 < dtype["fidelity"]["kl_mean"]
        assert 0 <= dtype["changed_answers"] <= dtype["answers"]
    whole = read_noise(read_run(base).tasks.values())[DTYPE]
    assert (whole["units"], whole["answers"]) == (8, 20)


def test_changed_answers_and_flips_are_counted(
    base: Path, tasks: list[Task], processor: Processor
) -> None:
    other = small_model(7)  # far more than noise, so that answers do change
    measure_noise(base, tasks, FeatureCache(other, processor), BATCH, batch_size=1, units=4)
    stored = read_run(base).tasks["builtin-ocrbench"]
    found = read_noise([stored])[BATCH]
    assert found["answers"] == 4
    assert found["changed_answers"] == 4


def test_measuring_again_in_another_way_is_refused(
    base: Path, tasks: list[Task], processor: Processor
) -> None:
    measure_noise(
        base, tasks[1:], FeatureCache(small_model(), processor), BATCH, batch_size=1, units=4
    )
    measure_noise(
        base, tasks[1:], FeatureCache(small_model(), processor), BATCH, batch_size=1, units=4
    )
    with pytest.raises(ValueError, match=r"noise.batch_size: 1 -> 2"):
        measure_noise(
            base, tasks[1:], FeatureCache(small_model(), processor), BATCH, batch_size=2, units=4
        )


def test_measurement_needs_the_bases_log_probabilities(
    tasks: list[Task], processor: Processor, tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    evaluate_model(small_model(), processor, tasks[1:], out, batch_size=4)
    with pytest.raises(FileNotFoundError, match=r"index\.jsonl"):
        measure_noise(out, tasks[1:], FeatureCache(small_model(), processor), BATCH, batch_size=1)
    assert read_noise(read_run(out).tasks.values()) == {}


def test_multiples_by_hand() -> None:
    def numbers(kl: float, top1: float) -> dict[str, Any]:
        return {"kl_mean": kl, "kl_p99": 2 * kl, "top1_agreement": top1, "rms_dp": kl}

    found = multiples(numbers(0.04, 0.9), numbers(0.01, 0.98))
    assert found == pytest.approx({"kl_mean": 4, "kl_p99": 4, "top1_disagreement": 5, "rms_dp": 4})
    none = multiples(numbers(0.04, 0.9), numbers(1e-9, 1.0))
    assert set(none.values()) == {None}
