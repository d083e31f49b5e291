"""Times of a video's temporal patches, which Qwen3-VL reads as text before each of them.

"Qwen3-VL Technical Report" (arXiv 2511.21631, section 2): the time replaces temporal position ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

VIDEO_TOKEN = "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
# The marks around the token that the chat template writes; each temporal patch gets its own.
_PLACEHOLDER = re.compile(
    f"({re.escape(VISION_START)})?{re.escape(VIDEO_TOKEN)}(?(1)({re.escape(VISION_END)})?)"
)


def patch_times(times: Sequence[float], depth: int) -> tuple[float, ...]:
    """Compute the time of each temporal patch: the mean of its first and its last frame.

    Args:
        times: of the frames, in seconds; at least one. The last one is repeated to fill a patch.
        depth: frames per temporal patch.
    """
    padded = [*times, *[times[-1]] * (-len(times) % depth)]
    return tuple(
        (padded[first] + padded[first + depth - 1]) / 2 for first in range(0, len(padded), depth)
    )


def write_times(text: str, videos: Sequence[Sequence[float]]) -> str:
    """Replace each placeholder of a video by the times and placeholders of its temporal patches.

    Args:
        text: a rendered conversation; it contains one `<|video_pad|>` per video.
        videos: times of the temporal patches of every video, in seconds.

    Raises:
        ValueError: the text contains another number of placeholders.
    """
    count = len(_PLACEHOLDER.findall(text))
    if count != len(videos):
        raise ValueError(
            f"the conversation has {count} video tokens for {len(videos)} videos; write no "
            "placeholder tokens into the text, and use the checkpoint's own chat template"
        )
    remaining = iter(videos)
    return _PLACEHOLDER.sub(lambda _: _with_times(next(remaining)), text)


def _with_times(times: Sequence[float]) -> str:
    return "".join(f"<{time:.1f} seconds>{VISION_START}{VIDEO_TOKEN}{VISION_END}" for time in times)
