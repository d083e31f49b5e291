from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from eval_files import base64_png
from PIL import Image
from workbench import Workbench, reseal

from vlpress.eval import compare, open_task
from vlpress.eval.report.thumbnails import LONGEST, read_thumbnail, shrink, store_thumbnails
from vlpress.eval.results import read_run
from vlpress.eval.tasks.files.image_store import StoredImage

pytestmark = pytest.mark.usefixtures("packaged")


def png(size: tuple[int, int], color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def test_each_distinct_image_is_stored_once_under_its_digest(tmp_path: Path) -> None:
    task = open_task("builtin-mmbench")
    names = store_thumbnails(task, tmp_path)
    stored = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert len(task.items) == 32 and len(stored) == 8  # four rotations share an image
    for item in task.items:
        (picture,) = item.images
        assert names[item.id] == [picture.digest[:32] + ".webp"]
    assert {name for group in names.values() for name in group} == stored


def test_several_images_keep_their_order(tmp_path: Path) -> None:
    task = open_task("builtin-mmmu")
    names = store_thumbnails(task, tmp_path)
    first, second = (picture.digest[:32] + ".webp" for picture in task.items[0].images)
    assert first != second and set(names[task.items[0].id]) == {first, second}


def test_stored_images_are_not_written_again(tmp_path: Path) -> None:
    task = open_task("builtin-ocrbench")
    store_thumbnails(task, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()}
    gone = next(iter(before))
    (tmp_path / "pictures" / gone).unlink()
    store_thumbnails(task, tmp_path)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()}
    assert before.pop(gone) < after.pop(gone)
    assert before == after


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 500), (384, 192)), ((10, 2000), (2, 384)), ((60, 50), (60, 50)), ((1, 1), (1, 1))],
)
def test_images_are_shrunk_and_never_enlarged(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    with Image.open(io.BytesIO(shrink(StoredImage.of(png(size))))) as small:
        assert (small.format, small.size) == ("WEBP", expected)
        assert max(small.size) <= LONGEST


def test_an_undecodable_image_is_an_error() -> None:
    with pytest.raises(ValueError, match="decode"):
        shrink(StoredImage.of(b"no picture"))


def test_stored_images_are_read_back_with_their_size(tmp_path: Path) -> None:
    names = store_thumbnails(open_task("builtin-ocrbench"), tmp_path)
    data, size = read_thumbnail(tmp_path, names["0"][0]) or (b"", (0, 0))
    assert size == (56, 56)
    with Image.open(io.BytesIO(data)) as shown:
        original = Image.open(io.BytesIO(base64.b64decode(base64_png(100)))).getpixel((40, 40))
        pixel = shown.getpixel((40, 40))
        assert isinstance(pixel, tuple) and isinstance(original, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, original, strict=True)) < 12


def test_foreign_names_and_damaged_files_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    (folder / "pictures").mkdir(parents=True)
    good = shrink(StoredImage.of(png((9, 9))))
    (tmp_path / "secret.webp").write_bytes(good)
    for name in ("../../secret.webp", "/etc/passwd", "x.webp", "", None, 3, ["a"]):
        assert read_thumbnail(folder, name) is None
    name = "0" * 32 + ".webp"
    assert read_thumbnail(folder, name) is None
    damaged = [good[: len(good) // 2], b"<svg onload='alert(1)'/>", b"", png((9, 9))]
    for data in damaged:
        (folder / "pictures" / name).write_bytes(data)
        assert read_thumbnail(folder, name) is None
    (folder / "pictures" / name).write_bytes(good)
    assert read_thumbnail(folder, name) == (good, (9, 9))


def test_an_evaluation_names_its_images_and_scores_without_them(bench: Workbench) -> None:
    base = bench.run("base")
    for task in read_run(base).tasks.values():
        for item in task.items:
            assert all((task.folder / "pictures" / name).is_file() for name in item["pictures"])
    whole = compare(base, base, bench.folder / "whole")
    old = bench.run("old")  # as written before images were stored
    for path in old.glob("*/items.jsonl"):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        bare = [{k: v for k, v in line.items() if k != "pictures"} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in bare), "utf-8")
    reseal(old)
    assert compare(base, old, bench.folder / "mixed")["benchmarks"] == whole["benchmarks"]
    assert compare(old, old, bench.folder / "without")["benchmarks"] == whole["benchmarks"]


def test_a_quantized_checkpoints_record_is_stored_with_the_evaluation(bench: Workbench) -> None:
    assert not (bench.run("base") / "quantization.json").exists()
    record = {"layers": [{"name": "model.layers.0.mlp.up_proj", "final_error": 0.5}]}
    (bench.source / "vlpress.json").write_text(json.dumps(record))
    assert json.loads((bench.run("cand") / "quantization.json").read_text()) == record
