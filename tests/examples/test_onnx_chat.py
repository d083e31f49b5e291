"""The host program of docs/onnx.md: its inputs of the graphs, and its answers."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnx_chat
import onnx_inputs
import paths
import pytest
import torch
from PIL import Image
from tiny_models import make_random_model, write_checkpoint_folder
from tokenizers import Tokenizer

from vlpress.model.config import ModelConfig, VisionConfig
from vlpress.model.deepstack_tower import interpolate_table
from vlpress.model.families import family_of
from vlpress.model.generation import generate
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.resolve import resolve_model
from vlpress.model.rope import text_rotary, vision_rotary
from vlpress.model.vision import vision_layout
from vlpress.quant.api import export
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.deployment.onnx.host import describe_host

PROGRAM = paths.EXAMPLES / "onnx_chat.py"
MODULES = {"onnxruntime", "openvino", "tokenizers", "PIL", "numpy"}
"""All that the program imports, apart from its own modules and the standard library."""
DISTRIBUTIONS = ("onnxruntime", "tokenizers", "pillow", "numpy")
SIGNS = paths.EXAMPLES / "signs.png"
QUESTION = "Please read the sign that is blue."


class Model:
    """A checkpoint, its description for the program, and its processor."""

    def __init__(self, folder: Path) -> None:
        self.config = ModelConfig.from_folder(folder)
        self.processor = Processor.from_folder(folder)
        described = describe_host(folder, self.config, patches=None, prefill=None)
        self.about = json.loads(json.dumps(described))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=["tiny", "tiny3", "qwen2_vl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model of every family."""
    if request.param != "qwen2_vl":
        return Model(resolve_model(request.param))
    folder = tmp_path_factory.mktemp(request.param)
    return Model(write_checkpoint_folder(folder, make_random_model(request.param)))


def images(folder: Path) -> list[Path]:
    """Images of several sizes and modes: too small, too large for a row of windows, translucent."""
    rng = np.random.default_rng(5)
    made = []
    for index, (height, width, channels) in enumerate(((13, 40, 3), (187, 331, 3), (90, 61, 4))):
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        made.append(folder / f"{index}.png")
        exif = Image.Exif()
        exif[0x0112] = 6  # the orientation, turned by 90 degrees
        Image.fromarray(pixels).save(made[-1], exif=exif)
    return made


def message(sources: Sequence[Path], question: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "image": str(path)} for path in sources]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def encode(model: Model, sources: Sequence[Path]) -> Prompt:
    """What vlpress reads."""
    return model.processor.encode(message(sources, QUESTION))


def imported_modules(path: Path) -> set[str]:
    """Names of the top-level modules that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_it_imports_few_packages() -> None:
    own = {path.stem: path for path in PROGRAM.parent.glob("onnx_*.py")}
    names = set().union(*map(imported_modules, own.values()))
    assert names - sys.stdlib_module_names - own.keys() == MODULES


def test_patches_are_those_of_vlpress(model: Model, tmp_path: Path) -> None:
    for path in images(tmp_path):
        expected = model.processor.image(path)
        patches, grid = onnx_inputs.to_patches(onnx_inputs.read_image(path), model.about)
        assert grid == expected.grid
        assert np.array_equal(patches, expected.patches.numpy())


def test_sizes_keep_the_area_and_the_factor(model: Model) -> None:
    about = {**model.about, "image": {"min_pixels": 100 * 28**2, "max_pixels": 200 * 28**2}}
    factor = model.config.vision.pixel_factor
    for size in ((10, 10), (20, 4000), (600, 700), (3000, 2000)):
        height, width = onnx_inputs.fit_size(*size, about)
        assert height % factor == width % factor == 0
        assert 100 * 28**2 <= height * width <= 200 * 28**2


def test_tokens_and_positions_are_those_of_vlpress(model: Model, tmp_path: Path) -> None:
    for sources in ([], images(tmp_path)[:1], images(tmp_path)):
        expected = encode(model, sources)
        grids = [visual.grid for visual in expected.visuals]
        ids = onnx_chat.prompt_ids(model.tokenizer, QUESTION, grids, model.about)
        assert np.array_equal(ids, expected.input_ids.numpy())
        positions = onnx_inputs.position_ids(ids, grids, model.about)
        assert np.array_equal(positions, expected.position_ids.numpy())


def test_text_angles_are_those_of_vlpress(model: Model, tmp_path: Path) -> None:
    positions = encode(model, images(tmp_path)).position_ids
    layout = family_of(model.config).mrope_layout
    expected = text_rotary(positions[:, None], model.config.text, layout)
    found = onnx_inputs.text_angles(positions.numpy(), model.about["text"])
    for name, values in zip(("cos", "sin"), expected, strict=True):
        assert np.abs(found[name] - values.numpy()).max() <= 1e-6


def test_vision_inputs_are_those_of_vlpress(model: Model, tmp_path: Path) -> None:
    visuals = encode(model, images(tmp_path)).visuals
    patches, grids = (
        torch.cat([each.patches for each in visuals]).numpy(),
        [each.grid for each in visuals],
    )
    about = {**model.about["vision"], "patches": len(patches) + 12}
    found = onnx_inputs.vision_inputs(patches, grids, about)
    config = model.config.vision
    layout = vision_layout(torch.tensor(grids), config)
    expected = vision_rotary(layout["coordinates"], config.head_dim)
    for name, values in zip(("cos", "sin"), expected, strict=True):
        assert np.abs(found[name][0, :-12] - values.numpy()).max() <= 1e-6
    assert np.array_equal(found["segments"][:-12], frames(layout))
    if config.is_windowed:
        assert same_parts(found["window_segments"][:-12], windows(layout, config))
    pads = {"pixel_values": 0, "segments": -1, "window_segments": -1}
    for name, value in pads.items():
        assert name not in found or (found[name][-12:] == value).all()
    assert (found["cos"][0, -12:] == 1).all() and (found["sin"][0, -12:] == 0).all()


def frames(layout: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    """Number of the frame of every patch."""
    lengths = layout["cu_seqlens"].diff().numpy()
    return np.repeat(np.arange(len(lengths)), lengths)


def windows(layout: dict[str, torch.Tensor], config: VisionConfig) -> np.ndarray[Any, Any]:
    """Number of the window of every patch, in merge order."""
    lengths = layout["cu_window_seqlens"].diff().numpy()
    of_token = np.repeat(np.arange(len(lengths)), lengths)[:: config.merge_unit]
    in_order = np.empty_like(of_token)
    in_order[layout["window_index"].numpy()] = of_token
    return np.repeat(in_order, config.merge_unit)


def same_parts(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether two numberings divide patches in the same way."""
    pairs = len(np.unique(np.stack([one, other]), axis=1).T)
    return pairs == len(np.unique(one)) == len(np.unique(other))


def test_the_position_table_is_interpolated_as_in_vlpress() -> None:
    side, merge, grid = 7, 2, (2, 6, 10)
    table = torch.randn(side**2, 5, generator=torch.Generator().manual_seed(3))
    about = {"position_side": side, "merge_size": merge}
    index, weight = onnx_inputs.table_rows(*grid[1:], about)
    found = (table.numpy()[index] * weight[..., None]).sum(0)
    expected = interpolate_table(table, side, *grid[1:], merge).numpy()
    assert np.abs(found - expected).max() <= 1e-6


def test_more_patches_than_the_graph_has_are_refused(model: Model, tmp_path: Path) -> None:
    visual = encode(model, images(tmp_path)[:1]).visuals[0]
    about, count = {**model.about["vision"], "patches": 16}, len(visual.patches)
    with pytest.raises(ValueError, match=rf"{count} .*16"):
        onnx_inputs.vision_inputs(visual.patches.numpy(), [visual.grid], about)


def test_placeholders_in_a_question_are_refused(model: Model) -> None:
    for grids in ([], [(1, 2, 2)]):
        with pytest.raises(ValueError, match="placeholder"):
            onnx_chat.prompt_ids(model.tokenizer, "What is <|image_pad|>?", grids, model.about)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.zeros((30, 30), np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"deep\.png"):
        onnx_inputs.read_image(path)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"export\.json"):
        onnx_chat.open_export(tmp_path, "onnxruntime")
    about: dict[str, Any] = {"format": "onnx-genai", "version": 1}
    for name, changes in {
        "onnx-genai 1": {},
        "--tp": {"format": "onnx", "graphs": {"text.rank0": {}}},
        "tokenizer.json": {"format": "onnx", "graphs": {"text": {}}},
    }.items():
        (tmp_path / "export.json").write_text(json.dumps({**about, **changes}), "utf-8")
        with pytest.raises(ValueError, match=name):
            onnx_chat.open_export(tmp_path, "onnxruntime")


def test_characters_are_printed_whole() -> None:
    tokenizer = Model(resolve_model("tiny")).tokenizer
    text = "Signs: é, 街, ok"
    assert len(tokenizer.encode("街", add_special_tokens=False).ids) > 1
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    parts = list(onnx_chat.stream_text(iter(ids), tokenizer))
    assert "".join(parts) == text
    assert not [part for part in parts if "\ufffd" in part]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of an environment with the four packages of this one and nothing else."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False)
    interpreter = home / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([interpreter, "-c", code], text=True).strip())
    for name in DISTRIBUTIONS:
        for top in {file.parts[0] for file in distribution(name).files or []} - {".."}:
            (site / top).symlink_to(str(distribution(name).locate_file(top)))
    return interpreter


CASES = {
    "any shapes": {},
    "fixed shapes, raw embedding": {"patches": 1024, "prefill": 512, "embedding": "raw"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "tiny3"])
@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
def test_answers_without_torch(
    name: str, options: dict[str, Any], python: Path, tmp_path: Path
) -> None:
    """The printed answers are those of vlpress, greedy and in fp32, with 0, 1 and 2 images."""
    source = resolve_model(name)
    export(source, out=tmp_path / "onnx", format="onnx", **options)
    processor, quantized = (
        Processor.from_folder(source),
        open_model(source, device="cpu", dtype="fp32"),
    )
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    for sources in ([], [SIGNS], [SIGNS, SIGNS]):
        prompt = processor.encode(message(sources, QUESTION))
        (expected,) = generate(quantized, [prompt], max_new_tokens=24, stop_ids=processor.stop_ids)
        arguments = [part for path in sources for part in ("--image", path)]
        command = [python, PROGRAM, tmp_path / "onnx", *arguments, "--max-new-tokens", 24, QUESTION]
        found = subprocess.check_output(list(map(str, command)), cwd=tmp_path, text=True)
        assert found == processor.decode(expected.token_ids) + "\n"
