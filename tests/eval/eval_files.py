"""Small benchmark files in the published form."""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import paths
import pytest
from PIL import Image

from vlpress.eval.tasks import registry

GOLDEN = paths.GOLDEN / "eval_vectors.json"
BENCHMARK_VECTORS = paths.GOLDEN / "benchmark_vectors.json"
"""Hand-made answers with the scores of VLMEvalKit's functions; its note says how they were made."""
ANSWERS = ("cat", "dog", "bird", "fish")


def vectors(section: str) -> Any:
    return json.loads(GOLDEN.read_text("utf-8"))[section]


def benchmark_vectors(section: str) -> list[dict[str, Any]]:
    """Cases of one benchmark; `expected` is the score in [0, 1]."""
    cases: list[dict[str, Any]] = json.loads(BENCHMARK_VECTORS.read_text("utf-8"))[section]
    return cases


def base64_png(color: int = 0, size: tuple[int, int] = (56, 56)) -> str:
    """A base64 PNG, longer than any reference."""
    buffer = io.BytesIO()
    image = Image.new("RGB", size, (color % 256, 40, 90))
    image.putpixel((1, 1), (255, color % 251, 7))
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, delimiter="\t", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def mmbench_rows(n: int = 6, categories: int = 2) -> list[dict[str, object]]:
    """n questions of four options with their rotations; rotated rows refer to the base image."""
    rows: list[dict[str, object]] = []
    for q in range(n):
        base = 241 + q
        gold = ANSWERS[q % 4]
        for k in range(4):
            options = [ANSWERS[(i + k) % 4] for i in range(4)]
            rows.append(
                {
                    "index": base + k * 1_000_000,
                    "question": f"Which animal is number {q}?",
                    "hint": "Look closely." if q % 2 else "",
                    **dict(zip("ABCD", options, strict=True)),
                    "answer": "ABCD"[options.index(gold)],
                    "category": f"animals_{q % categories}",
                    "l2-category": "coarse_perception" if q % 2 else "logic_reasoning",
                    "image": base64_png(q) if k == 0 else str(base),
                    "split": "dev",
                }
            )
    return rows


def ocrbench_rows(n: int = 6) -> list[dict[str, object]]:
    names = ("Regular Text Recognition", "Doc-oriented VQA", "Key Information Extraction")
    return [
        {
            "index": i,
            "image": base64_png(100 + i),
            "question": "what is written in the image?",
            "answer": str([f"word{i}", f"w{i}"]),
            "category": names[i % 3],
        }
        for i in range(n)
    ]


def mmmu_rows() -> list[dict[str, object]]:
    return [
        {
            "index": 1,
            "question": "<image 1> What is it?",
            "A": "<image 2>",
            "B": "None",
            "answer": "B",
            "image": str([base64_png(1), base64_png(2)]),
            "category": "Art",
            "l2-category": "Humanities",
            "split": "validation",
        },
        {
            "index": 2,
            "question": "How many in <image 1>?",
            "answer": "4",
            "image": base64_png(3),
            "category": "Math",
            "l2-category": "Science",
            "split": "validation",
        },
        {
            "index": 3,
            "question": "<image 1> Which?",
            "A": "x",
            "B": "y",
            "answer": "A",
            "image": base64_png(4),
            "category": "Math",
            "l2-category": "Science",
            "split": "dev",
        },
    ]


def package_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replace the packaged benchmark files by small ones."""
    data = tmp_path / "data"
    data.mkdir()
    files = {
        "builtin_mmbench.tsv.gz": mmbench_rows(8),
        "builtin_ocrbench.tsv.gz": ocrbench_rows(9),
        "builtin_mmmu.tsv.gz": mmmu_rows(),
    }
    md5s = {}
    for name, rows in files.items():
        path = write_tsv(data / name, rows)
        md5s[name] = hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest()
    (data / "md5s.json").write_text(json.dumps(md5s), "utf-8")
    monkeypatch.setattr(registry, "DATA", data)
    return data
