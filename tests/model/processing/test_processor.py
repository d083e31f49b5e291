"""Messages to prompts: placeholders, positions, answers, and clear refusals."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import TOKEN_ID, WriteCheckpoint

from vlpress.model.processing.processor import Processor, Visual
from vlpress.model.processing.visual_options import ImageOptions, VideoOptions

IMAGE, VIDEO = TOKEN_ID["<|image_pad|>"], TOKEN_ID["<|video_pad|>"]


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> Processor:
    return Processor.from_folder(checkpoint)


def make_image(width: int = 56, height: int = 56, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def user(*parts: Any) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}]


def image_part(**options: Any) -> dict[str, Any]:
    return {"type": "image", "image": make_image(**options)}


def runs(ids: torch.Tensor, token: int) -> list[int]:
    """Lengths of the runs of a token."""
    text = "".join("x" if value == token else " " for value in ids.tolist())
    return [len(run) for run in text.split()]


def test_placeholders_are_multiplied_in_order(processor: Processor) -> None:
    video = {"type": "video", "video": [make_image(), make_image(seed=1), make_image(seed=2)]}
    prompt = processor.encode(
        user("a", image_part(width=84), "b", video, image_part(height=112), "c")
    )
    assert [visual.kind for visual in prompt.visuals] == ["image", "video", "image"]
    assert [visual.grid for visual in prompt.visuals] == [(1, 4, 6), (2, 8, 8), (1, 8, 4)]
    assert runs(prompt.input_ids, IMAGE) == [6, 8]
    assert runs(prompt.input_ids, VIDEO) == [32]
    assert prompt.position_ids.shape == (3, len(prompt))
    assert prompt.next_position == int(prompt.position_ids[0, -1]) + 1


def test_text_follows_the_template(processor: Processor) -> None:
    prompt = processor.encode([{"role": "user", "content": "Grüße, 世界"}])
    shown = processor.tokenizer.decode(prompt.input_ids.tolist())
    assert shown == "<|im_start|>user\nGrüße, 世界<|im_end|>\n<|im_start|>assistant\n"
    assert processor.decode(prompt.input_ids) == "user\nGrüße, 世界\nassistant\n"
    assert torch.equal(prompt.position_ids, torch.arange(len(prompt)).expand(3, -1))
    closed = processor.encode([{"role": "user", "content": "x"}], add_generation_prompt=False)
    assert closed.input_ids[-2].item() == TOKEN_ID["<|im_end|>"]


def test_answer_follows_the_unchanged_question(processor: Processor) -> None:
    messages = user(image_part(), "What?")
    question = processor.encode(messages)
    # A leading newline would merge into the template's under joint tokenization.
    answered = processor.encode(messages, answer="\nyes")
    assert torch.equal(answered.input_ids[: len(question)], question.input_ids)
    assert answered.input_ids[-1].item() == TOKEN_ID["<|im_end|>"]
    assert processor.decode(answered.input_ids[len(question) :]) == "\nyes"
    assert torch.equal(answered.position_ids[:, : len(question)], question.position_ids)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>"])
def test_a_generated_answer_may_spell_out_a_placeholder(processor: Processor, token: str) -> None:
    messages = user(image_part(), "what?")
    prompt = processor.encode(messages, answer=f"an {token}!", answer_is_generated=True)
    assert processor.decode(prompt.input_ids[-prompt.answer_tokens :]) == f"an {token}!"
    assert prompt.input_ids[-1].item() == TOKEN_ID["<|im_end|>"]
    assert runs(prompt.input_ids, TOKEN_ID["<|image_pad|>"]) == [4]
    with pytest.raises(ValueError, match=re.escape(token)):
        processor.encode(messages, answer=f"an {token}!")


def test_given_visuals_replace_those_of_the_messages(processor: Processor) -> None:
    visual = processor.image(make_image())
    bare = user({"type": "image"}, "What?")
    prompt = processor.encode(bare, visuals=[visual])
    assert prompt.visuals == (visual,)
    assert torch.equal(prompt.input_ids, processor.encode(user(image_part(), "What?")).input_ids)
    with pytest.raises(ValueError, match=r"\b2 visuals .*\b1\b"):
        processor.encode(bare, visuals=[visual, visual])
    with pytest.raises(ValueError, match="image part"):
        processor.encode(bare)


def test_image_is_a_frame_repeated(processor: Processor) -> None:
    image = processor.image(make_image())
    video = processor.video([make_image()] * 2)
    assert image.seconds_per_grid == 0.0 and video.seconds_per_grid == 1.0
    frames = image.patches.view(-1, 3, 2, 14, 14)
    assert image.patches.dtype == torch.float32
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])


def test_odd_videos_repeat_their_last_frame(processor: Processor) -> None:
    frames = [make_image(112, 112, seed) for seed in range(3)]
    odd, even = processor.video(frames), processor.video([*frames, frames[-1]])
    assert odd.grid == even.grid == (2, 8, 8)
    assert torch.equal(odd.patches, even.patches)


def test_frame_rate_sets_the_temporal_positions(processor: Processor) -> None:
    frames = [make_image(112, 112, seed) for seed in range(8)]
    part = {"type": "video", "video": frames, "fps": 0.5}
    prompt = processor.encode(user(part))
    assert prompt.visuals[0].seconds_per_grid == 4.0
    times = torch.unique(prompt.position_ids[0][prompt.input_ids == VIDEO])
    assert (times - times[0]).tolist() == [0, 8, 16, 24]  # 4 seconds x 2 ids a second


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 frames of 112 x 112 pixels, 8 a second."""
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 112, 112, "yuv420p"
        for index in range(24):
            pixels = np.full((112, 112, 3), 10 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_video_file(processor: Processor, clip: Path) -> None:
    visual = processor.video(clip)
    assert visual.kind == "video" and visual.grid == (3, 8, 8)
    assert visual.seconds_per_grid == pytest.approx(1.0)
    assert processor.video(clip, VideoOptions(fps=4.0)).grid == (6, 8, 8)
    assert processor.encode(user({"type": "video", "video": str(clip)})).visuals[0].grid[0] == 3


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        # 168 x 112 pixels; the checkpoint takes 56 x 56 to 112 x 112
        ({}, (1, 6, 8)),
        ({"max_pixels": 784}, (1, 2, 2)),
        ({"max_pixels": 3136}, (1, 2, 4)),
        ({"min_pixels": 784, "max_pixels": 784}, (1, 2, 2)),
        ({"max_pixels": 10**6}, (1, 8, 12)),
        ({"min_pixels": 4 * 168 * 112}, (1, 16, 24)),
        ({"resized_height": 60, "resized_width": 200}, (1, 4, 14)),
        ({"resized_height": 280, "resized_width": 280, "max_pixels": 784}, (1, 20, 20)),
        ({"resized_height": 28, "resized_width": 28}, (1, 4, 4)),  # 4 tokens at least
    ],
)
def test_sizes_that_a_message_asks_for(
    processor: Processor, options: dict[str, int], grid: tuple[int, int, int]
) -> None:
    part = {**image_part(width=168, height=112), **options}
    prompt = processor.encode(user(part, "What?"))
    assert prompt.visuals[0].grid == grid
    assert runs(prompt.input_ids, IMAGE) == [grid[1] * grid[2] // 4]


def test_a_bound_goes_before_the_area(processor: Processor) -> None:
    opened = make_image(168, 112)
    assert processor.image(opened, (784, 3136)).grid == (1, 2, 4)
    assert processor.image(opened, (784, 3136), ImageOptions(max_pixels=784)).grid == (1, 2, 2)
    assert processor.image(opened, (784, 784), ImageOptions(max_pixels=3136)).grid == (1, 2, 4)


def test_options_are_part_of_the_digest(processor: Processor) -> None:
    options: list[dict[str, int]] = [{}, {"max_pixels": 784}, {"max_pixels": 3136}]
    options += [{"resized_height": 56, "resized_width": 56}]
    options += [{"resized_height": 84, "resized_width": 56}]
    images = [processor.image(make_image(), options=ImageOptions(**one)).digest for one in options]
    videos = [processor.video([make_image()], VideoOptions(**one)).digest for one in options]
    assert len({*images, *videos}) == 2 * len(options)
    assert images[0] == processor.image(make_image()).digest


@pytest.mark.parametrize(
    ("options", "grid", "seconds"),
    [
        # 8 frames of 112 x 112
        ({}, (4, 8, 8), 1.0),
        ({"fps": 4.0}, (4, 8, 8), 0.5),
        ({"sample_fps": 0.5}, (4, 8, 8), 4.0),
        ({"max_pixels": 3136}, (4, 4, 4), 1.0),
        ({"min_pixels": 784, "max_pixels": 784}, (4, 2, 2), 1.0),
        ({"min_pixels": 784, "total_pixels": 4 * 3136}, (4, 4, 4), 1.0),
        ({"resized_height": 56, "resized_width": 84}, (4, 4, 6), 1.0),
    ],
)
def test_options_of_frames(
    processor: Processor, options: dict[str, Any], grid: tuple[int, int, int], seconds: float
) -> None:
    frames = [make_image(112, 112, seed) for seed in range(8)]
    prompt = processor.encode(user({"type": "video", "video": frames, **options}))
    (visual,) = prompt.visuals
    assert visual.grid == grid and visual.seconds_per_grid == seconds
    times = torch.unique(prompt.position_ids[0][prompt.input_ids == VIDEO])
    # Positions count 2 ids a second, the value of the tests' checkpoint.
    assert (times - times[0]).tolist() == [int(step * seconds * 2) for step in range(grid[0])]


@pytest.mark.parametrize(
    ("options", "grid", "seconds"),
    [
        # 24 frames of 112 x 112, 8 a second
        ({}, (3, 8, 8), 1.0),
        ({"fps": 4.0}, (6, 8, 8), 0.5),
        ({"nframes": 4}, (2, 8, 8), 1.5),
        ({"max_frames": 4}, (2, 8, 8), 1.5),
        ({"fps": 0.5, "min_frames": 8}, (4, 8, 8), 0.75),
        ({"max_pixels": 3136}, (3, 4, 4), 1.0),
        ({"nframes": 2, "resized_height": 56, "resized_width": 84}, (1, 4, 6), 3.0),
        ({"video_start": 1.0, "nframes": 2}, (1, 8, 8), 2.0),
        ({"video_end": 1.0, "nframes": 8}, (4, 8, 8), 9 / 8 / 4),
    ],
)
def test_options_of_a_file(
    processor: Processor,
    clip: Path,
    options: dict[str, Any],
    grid: tuple[int, int, int],
    seconds: float,
) -> None:
    prompt = processor.encode(user({"type": "video", "video": f"file://{clip}", **options}))
    (visual,) = prompt.visuals
    assert visual.grid == grid and visual.seconds_per_grid == pytest.approx(seconds)
    assert runs(prompt.input_ids, VIDEO) == [grid[0] * grid[1] * grid[2] // 4]


def test_digest_is_of_pixels_and_budget(processor: Processor, checkpoint: Path) -> None:
    def digest(visual: Visual) -> str:
        return visual.digest

    first = digest(processor.image(make_image()))
    assert first == digest(processor.image(make_image())) and len(first) == 64
    assert first != digest(processor.image(make_image(seed=1)))
    assert first != digest(Processor.from_folder(checkpoint, max_pixels=3136).image(make_image()))
    assert first != digest(processor.video([make_image()]))
    # The same bytes in another shape are another image.
    flat = Image.fromarray(np.asarray(make_image()).reshape(28, 112, 3))
    assert first != digest(processor.image(flat))


def test_pixel_bounds_come_from_folder_or_arguments(checkpoint: Path) -> None:
    assert Processor.from_folder(checkpoint).image(make_image(400, 400)).grid == (1, 8, 8)
    larger = Processor.from_folder(checkpoint, min_pixels=3136, max_pixels=168 * 168)
    assert (larger.min_pixels, larger.max_pixels) == (3136, 168 * 168)
    assert larger.image(make_image(400, 400)).grid == (1, 12, 12)


def test_stop_ids(processor: Processor) -> None:
    assert processor.stop_ids == {TOKEN_ID["<|im_end|>"], TOKEN_ID["<|endoftext|>"]}


def test_stop_ids_of_the_generation_settings(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert 7 in Processor.from_folder(tmp_path).stop_ids
    (tmp_path / "generation_config.json").unlink()
    assert Processor.from_folder(tmp_path).stop_ids == {256, 258}


def test_placeholder_tokens_in_text_are_refused(processor: Processor) -> None:
    for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>"):
        with pytest.raises(ValueError, match=re.escape(token)):
            processor.encode(user(image_part(), f"say {token}"))
        with pytest.raises(ValueError, match=re.escape(token)):
            processor.encode(user("say"), answer=token)


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([], 2.0, "0 frames.*1 to 768"),
        ([make_image()] * 769, 2.0, "769 frames"),
        (
            [make_image(), make_image(84)],
            2.0,
            "frame 1 .*84 x 56.*56 x 56",
        ),
        ([make_image()], 0.0, "fps 0.0"),
    ],
)
def test_unusable_videos(
    processor: Processor, frames: list[Image.Image], fps: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor.video(frames, VideoOptions(fps=fps))


def test_elongated_and_undecodable_images(processor: Processor) -> None:
    with pytest.raises(ValueError, match=r"aspect ratio 300\b.*\b200\b"):
        processor.image(make_image(600, 2))
    with pytest.raises(ValueError, match="decoded"):
        processor.encode(user({"type": "image", "image": b"no"}))
