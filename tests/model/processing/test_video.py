"""Frame selection and budget; files through PyAV."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlpress.model.processing.clips.decoding import open_video
from vlpress.model.processing.clips.selection import MAX_FRAMES, frame_indices
from vlpress.model.processing.clips.sizes import FRAME_MIN_TOKENS, TOTAL_TOKENS, frame_budget
from vlpress.model.processing.visual_options import VideoOptions


@given(
    total=st.integers(1, 100_000),
    rate=st.floats(1, 120),
    fps=st.floats(0.1, 30),
    most=st.none() | st.integers(4, MAX_FRAMES),
)
def test_frames_are_spread_over_the_video(
    total: int, rate: float, fps: float, most: int | None
) -> None:
    indices = frame_indices(total, rate, VideoOptions(fps=fps, max_frames=most))
    assert len(indices) <= min(most or MAX_FRAMES, total)
    assert len(indices) >= min(4, total) // 2 * 2
    assert total == 1 or len(indices) % 2 == 0
    assert indices[0] == 0 and indices[-1] == total - 1
    assert sorted(set(indices)) == indices


@pytest.mark.parametrize(
    ("total", "rate", "count"),
    [
        (300, 30.0, 20),
        (310, 30.0, 20),
        (30, 30.0, 4),
        (3, 30.0, 3),
        (1, 30.0, 1),
        (10**6, 25.0, 768),
    ],
)
def test_two_frames_a_second_within_bounds(total: int, rate: float, count: int) -> None:
    assert len(frame_indices(total, rate)) == count


@given(count=st.integers(1, MAX_FRAMES))
def test_budget_shares_the_clip(count: int) -> None:
    low, high = frame_budget(count, 56 * 56, 12845056)
    assert low == FRAME_MIN_TOKENS * 784 < high <= 768 * 28 * 28
    assert high == max(min(768 * 28 * 28, TOTAL_TOKENS * 784 * 2 // count), int(1.05 * low))


def test_the_image_limit_bounds_the_budget() -> None:
    assert frame_budget(4, 3136, 12544) == (12544, 12544)
    assert frame_budget(4, 200_000, 400_000) == (200_000, 400_000)


@pytest.mark.parametrize(
    ("options", "indices"),
    [
        # 40 frames, 10 a second: 4 seconds
        ({}, [0, 6, 11, 17, 22, 28, 33, 39]),
        ({"fps": 1.0}, [0, 13, 26, 39]),
        ({"fps": 1}, [0, 13, 26, 39]),
        ({"fps": 4.0, "max_frames": 5}, [0, 13, 26, 39]),  # at most 5, and even
        ({"fps": 0.5, "min_frames": 5}, [0, 8, 16, 23, 31, 39]),  # at least 5, and even
        ({"fps": 100.0}, list(range(40))),
        ({"nframes": 4}, [0, 13, 26, 39]),
        ({"nframes": 5}, [0, 13, 26, 39]),  # 2.5 pairs are 2, by rounding to even
        ({"nframes": 7}, [0, 6, 11, 17, 22, 28, 33, 39]),  # 3.5 pairs are 4
        ({"nframes": 2}, [0, 39]),
        ({"video_start": 1.95}, [20, 26, 33, 39]),  # the first frame after
        ({"video_end": 1.05}, [0, 3, 7, 10]),  # the last frame before
        ({"video_start": 1, "video_end": 3, "nframes": 2}, [10, 30]),
        ({"video_end": 1000.0, "nframes": 2}, [0, 39]),
        ({"video_start": 0, "video_end": 0.2}, [0, 2]),
    ],
)
def test_frames_of_options(options: dict[str, Any], indices: list[int]) -> None:
    assert frame_indices(40, 10.0, VideoOptions(**options)) == indices


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"nframes": 42}, "nframes 42: .* 40 frames"),
        ({"nframes": 1}, "nframes 1"),
        ({"video_start": 4.0}, r"video_start 4\.0"),
        ({"video_start": 2.0, "video_end": 1.0}, r"video_end 1\.0"),
        ({"video_start": 1.0, "video_end": 1.0}, r"video_end 1\.0"),
        ({"video_start": 3.0, "video_end": 3.5, "nframes": 8}, "nframes 8: .* 6 frames"),
    ],
)
def test_frames_that_do_not_exist(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        frame_indices(40, 10.0, VideoOptions(**options))


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        # 8 frames of a checkpoint that takes 3136 to 12845056 pixels
        ({}, (128 * 784, 768 * 784)),
        ({"max_pixels": 200_000}, (128 * 784, 200_000)),
        ({"max_pixels": 4 * 784}, (4 * 784, 4 * 784)),
        ({"max_pixels": 10**7}, (128 * 784, 768 * 784)),  # over the limit: as without
        ({"min_pixels": 4 * 784}, (4 * 784, 768 * 784)),
        ({"min_pixels": 768 * 784}, (768 * 784, int(1.05 * 768 * 784))),
        ({"min_pixels": 784, "max_pixels": 1568}, (784, 1568)),
        ({"total_pixels": 8 * 150_000}, (128 * 784, 300_000)),  # pairs of frames count once
        ({"total_pixels": 784}, (128 * 784, int(1.05 * 128 * 784))),
        ({"total_pixels": 8 * 10_000, "min_pixels": 784}, (784, 20_000)),
        ({"total_pixels": 8 * 10_000, "min_pixels": 784, "max_pixels": 9000}, (784, 9000)),
    ],
)
def test_pixels_of_options(options: dict[str, int], budget: tuple[int, int]) -> None:
    assert frame_budget(8, 3136, 12845056, VideoOptions(**options)) == budget


def test_pixels_go_before_the_limit_of_images() -> None:
    assert frame_budget(4, 3136, 12544, VideoOptions(max_pixels=50176)) == (50176, 50176)
    assert frame_budget(4, 3136, 12544, VideoOptions(min_pixels=50176)) == (50176, 50176)
    assert frame_budget(4, 3136, 12544, VideoOptions(total_pixels=10**6)) == (12544, 12544)


def test_too_many_pixels_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    frame_budget(8, 3136, 12845056, VideoOptions(max_pixels=10**7))
    assert "10000000" in caplog.text and str(768 * 784) in caplog.text


def write_clip(path: Path, frames: int, rate: int) -> list[int]:
    """A video whose frame i is grey of level 8 i; returns the levels."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(frames):
            pixels = np.full((48, 64, 3), 8 * index, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return [8 * index for index in range(frames)]


def level(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def test_chosen_frames_of_a_file_are_decoded(tmp_path: Path) -> None:
    levels = write_clip(tmp_path / "clip.mp4", frames=30, rate=10)
    clip = open_video(tmp_path / "clip.mp4")
    assert clip.count == 6 and clip.fps == pytest.approx(2.0)
    expected = [levels[index] for index in frame_indices(30, 10.0)]
    assert [level(frame) for frame in clip.frames] == pytest.approx(expected, abs=4)


def test_a_span_of_a_file(tmp_path: Path) -> None:
    levels = write_clip(tmp_path / "clip.mp4", frames=30, rate=10)
    options = VideoOptions(video_start=1.0, video_end=2.0, fps=4.0)
    clip = open_video(tmp_path / "clip.mp4", options)
    # 11 frames, 1.1 seconds: 4 of them
    assert clip.count == 4 and clip.fps == pytest.approx(4 / 1.1)
    expected = [levels[index] for index in (10, 13, 17, 20)]
    assert [level(frame) for frame in clip.frames] == pytest.approx(expected, abs=4)
    with pytest.raises(ValueError, match=r"clip\.mp4: nframes 32"):
        open_video(tmp_path / "clip.mp4", VideoOptions(nframes=32))


def test_short_file_gives_all_it_has(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", frames=3, rate=10)
    clip = open_video(tmp_path / "clip.mp4")
    assert clip.count == len(list(clip.frames)) == 3
    assert clip.fps == pytest.approx(10.0)


def test_undecodable_end_repeats_the_last_frame_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vlpress.model.processing.clips.decoding import _decode

    write_clip(tmp_path / "clip.mp4", frames=5, rate=10)
    frames = list(_decode(tmp_path / "clip.mp4", [0, 4, 9]))
    assert [round(level(frame) / 8) for frame in frames] == [0, 4, 4]
    assert "only 2 of 3 chosen frames could be decoded" in caplog.text


def test_files_that_are_no_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        open_video(tmp_path / "none.mp4")
    path = tmp_path / "text.mp4"
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(ValueError, match="decoded"):
        open_video(path)


def test_without_pyav_the_error_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"vlpress\[video\]"):
        open_video(tmp_path / "clip.mp4")
