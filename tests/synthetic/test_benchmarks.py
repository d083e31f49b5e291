"""The committed benchmark files: formats, sizes, balance, and no leak from the calibration set."""

import ast
import base64
import csv
import gzip
import hashlib
import io
import json
from collections import Counter

import paths
import pytest
from PIL import Image

from vlpress.calib.samples.synthetic import calibration_samples

DATA = paths.ROOT / "eval" / "data"
NAMES = ("mmbench", "mmbench_cn", "ocrbench", "mmmu")
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def files() -> dict[str, Rows]:
    limit = csv.field_size_limit(10**8)  # of the process
    out = {}
    for name in NAMES:
        content = gzip.decompress((DATA / f"builtin_{name}.tsv.gz").read_bytes()).decode()
        out[name] = list(csv.DictReader(io.StringIO(content), delimiter="\t"))
    csv.field_size_limit(limit)
    return out


def test_files_are_small_and_have_their_md5s() -> None:
    packed = [DATA / f"builtin_{name}.tsv.gz" for name in NAMES]
    assert sum(p.stat().st_size for p in packed) <= 6_000_000
    recorded = json.loads((DATA / "md5s.json").read_text())
    digests = {p.name: hashlib.md5(gzip.decompress(p.read_bytes())).hexdigest() for p in packed}
    assert recorded == digests


def test_mmbench_has_complete_rolled_groups(files: dict[str, Rows]) -> None:
    rows = files["mmbench"]
    base = [r for r in rows if int(r["index"]) < 1_000_000]
    assert len(base) >= 400
    assert len({r["l2-category"] for r in base}) == 6
    assert len({r["category"] for r in base}) >= 12
    by_index = {int(r["index"]): r for r in rows}
    for first in base:
        options = [first[x] for x in "ABCD" if first[x]]
        right = first[first["answer"]]
        for k in range(len(options)):
            row = by_index[int(first["index"]) + k * 1_000_000]
            assert [row[x] for x in "ABCD" if row[x]] == options[k:] + options[:k]
            assert row[row["answer"]] == right
            assert k == 0 or row["image"] == first["index"]


def test_chinese_file_is_the_twin_of_the_english_one(files: dict[str, Rows]) -> None:
    for english, chinese in zip(files["mmbench"], files["mmbench_cn"], strict=True):
        for key in ("index", "answer", "category", "image", "l2-category", "split"):
            assert english[key] == chinese[key]
        assert any("\u4e00" <= c <= "\u9fff" for c in chinese["question"])


def test_ocrbench_has_all_ten_categories(files: dict[str, Rows]) -> None:
    rows = files["ocrbench"]
    counts = Counter(r["category"] for r in rows)
    assert len(rows) >= 500 and len(counts) == 10 and min(counts.values()) >= 25
    for row in rows:
        answers = ast.literal_eval(row["answer"])
        assert isinstance(answers, list) and all(answers)


def test_mmmu_has_thirty_subjects_open_and_multi_image_rows(files: dict[str, Rows]) -> None:
    rows = files["mmmu"]
    assert len(rows) >= 200
    assert len({r["category"] for r in rows}) == 30
    assert len({r["l2-category"] for r in rows}) == 6
    assert {r["split"] for r in rows} == {"dev", "validation"}
    assert sum(not r["A"] for r in rows) >= 10
    multi = [r for r in rows if r["image"].startswith("[")]
    assert len(multi) >= 20
    for row in multi:
        images = ast.literal_eval(row["image"])
        assert all(f"<image {i + 1}>" in row["question"] for i in range(len(images)))


def test_answers_do_not_follow_from_the_letter(files: dict[str, Rows]) -> None:
    for name in ("mmbench", "mmmu"):
        four = [r for r in files[name] if r.get("D") and not r.get("E")]
        base = [r for r in four if int(r["index"]) < 1_000_000]
        counts = Counter(r["answer"] for r in base)
        assert all(0.15 < counts[x] / len(base) < 0.35 for x in "ABCD"), (name, counts)


def test_every_image_decodes_and_none_is_in_the_calibration_set(files: dict[str, Rows]) -> None:
    seen = set()
    for rows in files.values():
        for row in rows:
            value = row["image"]
            if len(value) <= 64:
                continue
            for text in ast.literal_eval(value) if value.startswith("[") else [value]:
                image = Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")
                seen.add(hashlib.sha256(image.tobytes()).hexdigest())
    ours = set()
    for sample in calibration_samples(256, seed=0):
        for part in sample.messages[0]["content"]:
            if part["type"] == "image":
                ours.add(hashlib.sha256(part["image"].tobytes()).hexdigest())
    assert len(seen) > 1000 and not seen & ours
