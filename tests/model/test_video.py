"""Frame choice and budget by their rules; files through PyAV."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlpress.model.video import (
    FRAME_MIN_PIXELS,
    MAX_FRAMES,
    TOTAL_PIXELS,
    frame_budget,
    frame_indices,
    open_video,
)
from vlpress.model.visual_options import VideoOptions


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
    if total < 4 and most is None:
        assert len(indices) == total
    else:
        assert len(indices) >= min(4, total) // 2 * 2 and (total == 1 or len(indices) % 2 == 0)
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
    assert low == FRAME_MIN_PIXELS < high <= 768 * 28 * 28
    assert high == max(min(768 * 28 * 28, TOTAL_PIXELS * 2 // count), int(1.05 * low))


def test_budget_bows_to_the_limit_of_pictures() -> None:
    assert frame_budget(4, 3136, 12544) == (12544, 12544)
    assert frame_budget(4, 200_000, 400_000) == (200_000, 400_000)


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
    wanted = [levels[index] for index in frame_indices(30, 10.0)]
    assert [level(frame) for frame in clip.frames] == pytest.approx(wanted, abs=4)


def test_short_file_gives_all_it_has(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", frames=3, rate=10)
    clip = open_video(tmp_path / "clip.mp4")
    assert clip.count == len(list(clip.frames)) == 3
    assert clip.fps == pytest.approx(10.0)


def test_undecodable_end_repeats_the_last_frame_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from vlpress.model.video import _decode

    write_clip(tmp_path / "clip.mp4", frames=5, rate=10)
    frames = list(_decode(tmp_path / "clip.mp4", [0, 4, 9]))
    assert [round(level(frame) / 8) for frame in frames] == [0, 4, 4]
    assert "only 2 of 3 chosen frames could be decoded" in caplog.text


def test_files_that_are_no_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such video file"):
        open_video(tmp_path / "none.mp4")
    path = tmp_path / "text.mp4"
    path.write_bytes(b"not a video" * 100)
    with pytest.raises(ValueError, match="cannot be decoded as a video"):
        open_video(path)


def test_without_pyav_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'vlpress\[video\]'"):
        open_video(tmp_path / "clip.mp4")
