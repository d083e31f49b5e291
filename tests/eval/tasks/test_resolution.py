from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import paths
import pytest
from chat_server import ChatServer, table
from eval_models import right, small_model
from typer.testing import CliRunner

from vlpress.cli import main
from vlpress.eval import evaluate_endpoint, evaluate_model
from vlpress.eval.answering.openai_client import PIXELS, Endpoint, request_fields
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.report.reproduce import reproduce_command
from vlpress.eval.results import read_run
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.resolution import (
    PixelBounds,
    check_budget,
    check_budget_of_model,
    find_bounds,
)
from vlpress.model.processing.processor import Processor

pytestmark = pytest.mark.usefixtures("packaged")

GOLDEN = paths.GOLDEN / "smart_resize.json"


@pytest.mark.parametrize(
    ("kind", "name"), [("mmbench", "vlmevalkit_default"), ("ocrbench", "vlmevalkit_ocrbench")]
)
def test_bounds_are_those_of_the_published_scores(kind: str, name: str) -> None:
    cases = [c for c in json.loads(GOLDEN.read_text()) if c["config"] == name]
    assert cases
    for case in cases:
        assert find_bounds("vlmevalkit", kind) == PixelBounds(
            case["min_pixels"], case["max_pixels"]
        )
    assert find_bounds("vlmevalkit", "mmmu") == PixelBounds(1_003_520, 12_845_056)
    assert find_bounds("vlmevalkit-qwen3", "mmmu") == PixelBounds(4 * 1024, 16384 * 1024)
    assert find_bounds("vlmevalkit-qwen3", "ocrbench") == PixelBounds(100 * 1024, 16384 * 1024)
    assert find_bounds("model", kind) is None


def test_a_budget_of_another_family_is_refused() -> None:
    for name, factor in (("model", 28), ("model", 32), ("vlmevalkit", 28)):
        check_budget_of_model(name, factor)
    check_budget_of_model("vlmevalkit-qwen3", 32)
    with pytest.raises(ValueError, match=r"'vlmevalkit' .*28 x 28.*32 x 32.*vlmevalkit-qwen3"):
        check_budget_of_model("vlmevalkit", 32)


def test_unknown_budget_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'hd'.*model, vlmevalkit"):
        check_budget("hd")
    with pytest.raises(ValueError, match="'hd'"):
        open_task("builtin-mmmu", pixels="hd")


def test_budget_is_a_named_part_of_the_fingerprint() -> None:
    own, named = (open_task("builtin-ocrbench", pixels=name) for name in ("model", "vlmevalkit"))
    assert own.fingerprint["pixels"] == {"budget": "model"}
    assert named.fingerprint["pixels"] == {
        "budget": "vlmevalkit",
        "min_pixels": 78_400,
        "max_pixels": 12_845_056,
    }
    assert {item.pixels for item in named.items} == {PixelBounds(78_400, 12_845_056)}


def test_images_are_scaled_to_the_items_bounds(checkpoint: Path) -> None:
    model, processor = small_model(), Processor.from_folder(checkpoint)
    item = open_task("builtin-ocrbench").items[0]
    large = replace(item, pixels=PixelBounds(112 * 112, 224 * 224))
    features = FeatureCache(model, processor)
    [small_one, again, large_one], _ = features.prompts([item, item, large])
    assert features.encoded == 2  # one image in two sizes
    assert len(small_one.input_ids) == len(again.input_ids) < len(large_one.input_ids)
    [shown] = large_one.visuals
    [source] = item.images
    assert shown.grid == processor.image(source.open(), (112 * 112, 224 * 224)).grid
    bounded = Processor.from_folder(checkpoint, min_pixels=112 * 112, max_pixels=224 * 224)
    assert shown.grid == bounded.image(source.open()).grid


def test_a_served_model_is_sent_each_items_bounds(tmp_path: Path) -> None:
    tasks = [open_task(name, pixels="vlmevalkit") for name in ("builtin-ocrbench", "builtin-mmmu")]
    fields = request_fields(extra={PIXELS: {"fps": 1}})
    with ChatServer(table(tasks, right), models=[{"id": "m"}]) as server:
        evaluate_endpoint(Endpoint(server.url, "m", fields), tasks, tmp_path / "out")
        sent = {tuple(sorted(body[PIXELS].items())) for body in server.bodies}
    assert {dict(each)["min_pixels"] for each in sent} == {78_400, 1_003_520}
    assert all(dict(each)["fps"] == 1 for each in sent)


def test_the_command_that_reproduces_names_the_budget(checkpoint: Path, tmp_path: Path) -> None:
    task = open_task("builtin-ocrbench", limit=2, max_new_tokens=2)
    small = PixelBounds(3136, 3136)  # the real ones would take a minute
    shown = replace(
        task,
        items=tuple(replace(item, pixels=small) for item in task.items),
        fingerprint={**task.fingerprint, "pixels": {"budget": "vlmevalkit"}},
    )
    processor = Processor.from_folder(checkpoint)
    evaluate_model(small_model(), processor, [shown], tmp_path / "out", name="m")
    run = read_run(tmp_path / "out")
    words = shlex.split(reproduce_command(run, run, 2).split(" && ")[0])
    assert words[words.index("--pixels") + 1] == "vlmevalkit"
    assert "--min-pixels" not in words and "--max-pixels" not in words


def test_area_given_twice_is_refused() -> None:
    words = ["eval", "tiny", "--pixels", "vlmevalkit", "--max-pixels", "50176"]
    found = CliRunner().invoke(main.app, words)
    assert found.exit_code == 2
    assert "--pixels vlmevalkit sets both bounds" in found.stderr
