from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from eval_files import mmbench_rows, mmmu_rows, ocrbench_rows, package_files, write_tsv
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.files.image_store import AS_DISPLAYED, VLMEVALKIT, decode_image
from vlpress.eval.tasks.prompts import default_prompt_style, find_prompt_style
from vlpress.eval.tasks.task import sample_units


def first_image(task: Any) -> bytes:
    parts = task.items[0].messages[0]["content"]
    return next(bytes(part["image"].read()) for part in parts if part["type"] == "image")


def test_packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = package_files(tmp_path, monkeypatch)
    task = open_task("builtin-mmbench")
    assert (task.name, task.kind, task.synthetic) == ("builtin-mmbench", "mmbench", True)
    assert len(task.items) == 32
    raw = gzip.decompress((data / "builtin_mmbench.tsv.gz").read_bytes())
    assert task.fingerprint["md5"] == hashlib.md5(raw).hexdigest()
    assert task.fingerprint["prompt_style"] == "vlmevalkit-default"
    assert task.score({i.id: i.fields["answer"] for i in task.items}).percent == 100.0


def test_packaged_file_with_another_md5_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = package_files(tmp_path, monkeypatch)
    write_tsv(data / "builtin_ocrbench.tsv.gz", ocrbench_rows(3))
    with pytest.raises(ValueError, match=r"builtin_ocrbench\.tsv\.gz .*md5"):
        open_task("builtin-ocrbench")


def test_published_name_reads_a_local_file_and_notes_deviations(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "x.tsv", mmbench_rows(2))
    task = open_task(f"mmbench_dev_en={path}")
    assert (task.name, task.synthetic) == ("MMBench_DEV_EN", False)
    assert "is not that of the published MMBench_DEV_EN" in task.notes[0]
    assert "8 rows, the published MMBench_DEV_EN has 4329" in task.notes[1]


def test_renamed_packaged_file_stays_synthetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = package_files(tmp_path, monkeypatch)
    assert open_task(f"OCRBench={data / 'builtin_ocrbench.tsv.gz'}").synthetic


def test_only_validation_rows_of_mmmu_count(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "x.tsv", mmmu_rows())
    task = open_task(f"MMMU_DEV_VAL={path}")
    assert [item.id for item in task.items] == ["1", "2"]
    assert task.fingerprint["split"] == "validation"
    rows = [{k: v for k, v in row.items() if k != "split"} for row in mmmu_rows()]
    task = open_task(f"MMMU_DEV_VAL={write_tsv(tmp_path / 'y.tsv', rows)}")
    assert len(task.items) == 3
    assert "no row is marked validation" in task.notes[-1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "MMMU_DEV_VAL",
            "MMMU_DEV_VAL=PATH .*https://.*585e",
        ),
        ("mmbench", "'mmbench'.*builtin-mmbench"),
        ("builtin-mmbench=x.tsv", "builtin-mmbench=x.tsv"),
    ],
)
def test_unusable_specs(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_task(spec)


def test_test_split_without_answers_is_refused(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "answer"} for row in mmbench_rows(1)]
    path = write_tsv(tmp_path / "x.tsv", rows)
    with pytest.raises(ValueError, match=r"TSV with the columns .* answer"):
        open_task(f"MMBench_DEV_EN={path}")


def test_limit_keeps_whole_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_files(tmp_path, monkeypatch)
    task = open_task("builtin-mmbench", limit=4, seed=3)
    units = Counter(item.fields["unit"] for item in task.items)
    assert sorted(units.values()) == [4, 4, 4, 4]
    categories = Counter(item.fields["category"] for item in task.items)
    assert set(categories.values()) == {8}
    again = open_task("builtin-mmbench", limit=4, seed=3)
    assert [i.id for i in task.items] == [i.id for i in again.items]
    assert task.fingerprint == again.fingerprint
    assert task.fingerprint != open_task("builtin-mmbench", limit=4, seed=4).fingerprint


def test_a_limit_that_leaves_nothing_out_is_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_files(tmp_path, monkeypatch)
    whole = open_task("builtin-mmbench")  # 8 questions of 4 rows
    for limit in (8, 9):
        task = open_task("builtin-mmbench", limit=limit, seed=3)
        assert task.fingerprint == whole.fingerprint
        assert [item.id for item in task.items] == [item.id for item in whole.items]
    part = open_task("builtin-mmbench", limit=7, seed=3).fingerprint
    assert (part["limit"], part["limit_seed"], part["rows"]) == (7, 3, 28)


@given(
    st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.integers(1, 70), st.integers()
)
def test_sampling_is_proportional(categories: list[str], limit: int, seed: int) -> None:
    units = {str(i): c for i, c in enumerate(categories)}
    kept = sample_units(units, limit, seed)
    assert len(kept) == min(limit, len(units))
    sizes, drawn = Counter(categories), Counter(units[u] for u in kept)
    for category, size in sizes.items():
        assert abs(drawn[category] - len(kept) * size / len(units)) < 1
    assert kept == sample_units(units, limit, seed)
    assert kept <= sample_units(units, limit + 1, seed)


def test_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        sample_units({"1": "a"}, 0, 0)


def test_blank_images_keep_their_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package_files(tmp_path, monkeypatch)
    seen, blank = open_task("builtin-mmmu"), open_task("builtin-mmmu", blank=True)
    image = decode_image(first_image(blank), VLMEVALKIT)
    assert image.size == decode_image(first_image(seen), VLMEVALKIT).size
    assert image.getcolors() == [(image.width * image.height, (127, 127, 127))]
    assert seen.fingerprint != blank.fingerprint
    texts = [[p.get("text") for p in i.messages[0]["content"]] for i in seen.items]
    assert texts == [[p.get("text") for p in i.messages[0]["content"]] for i in blank.items]


def test_prompt_style_shows_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_files(tmp_path, monkeypatch)
    default = open_task("builtin-mmbench").fingerprint
    custom = open_task("builtin-mmbench", prompt_style="qwen2-vl").fingerprint
    assert custom["prompt_style"] == "vlmevalkit-qwen2"
    assert custom["prompt_hash"] != default["prompt_hash"]


def test_image_decoding_is_a_named_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_files(tmp_path, monkeypatch)
    (tmp_path / "own.jsonl").write_text('{"question": "2+2?", "answer": 4}\n')
    for name in ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu"):
        task = open_task(name)
        assert task.fingerprint["image_decoding"] == VLMEVALKIT == "vlmevalkit"
        assert {image.decoding for item in task.items for image in item.images} == {VLMEVALKIT}
    own = open_task(str(tmp_path / "own.jsonl"))
    assert own.fingerprint["image_decoding"] == AS_DISPLAYED == "as-displayed"


def test_style_of_a_family() -> None:
    assert default_prompt_style("qwen2_vl") == "vlmevalkit-qwen2"
    assert default_prompt_style("qwen2_5_vl") == "vlmevalkit-default"
    assert default_prompt_style("qwen3_vl") == "vlmevalkit-default"
    assert default_prompt_style("llava") == "vlmevalkit-default"
    with pytest.raises(ValueError, match="'llava_next'"):
        default_prompt_style("llava_next")
    with pytest.raises(ValueError, match="'mine'"):
        find_prompt_style("mine")


def test_scoring_an_unfinished_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_files(tmp_path, monkeypatch)
    task = open_task("builtin-ocrbench")
    with pytest.raises(ValueError, match=r"8 of 9 items .*1"):
        task.score({"0": "word0"})


@pytest.mark.parametrize(
    ("name", "units", "categories", "groups"),
    [
        ("builtin-mmbench", 400, 12, 6),
        ("builtin-mmbench-cn", 400, 12, 6),
        ("builtin-ocrbench", 500, 10, 5),
        ("builtin-mmmu", 200, 30, 6),
    ],
)
def test_shipped_files(name: str, units: int, categories: int, groups: int) -> None:
    task = open_task(name)
    gold = {
        item.id: str(item.fields.get("answers", [item.fields.get("answer")])[0])
        for item in task.items
    }
    score = task.score(gold)
    assert score.percent == 100.0
    assert len(score.units) >= units
    assert len({unit.category for unit in score.units}) >= categories
    assert len({unit.group for unit in score.units}) == groups
    assert (task.notes, task.synthetic) == ((), True)
    letter_only = task.score(dict.fromkeys(gold, "A"))
    assert letter_only.percent <= (0.0 if "mmbench" in name else 40.0)
