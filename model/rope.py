"""Multimodal rotary positions (M-RoPE): ids, angles and the rotation itself.

"Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution"
(arXiv 2409.12191, section 2.1) gives every token a (time, height, width) triple: text has three
equal ids, a visual spans a grid. Each segment starts one above the largest id before it.
"Qwen2.5-VL Technical Report" (arXiv 2502.13923, section 2.1.2) ties a video's time id to seconds.
"Qwen3-VL Technical Report" (arXiv 2511.21631, section 2) interleaves the frequencies of the three
axes, and writes the time of each temporal patch of a video as text before it, so that each one is
numbered as an image.

Models without M-RoPE count tokens, those of images too: the three ids of a token are then equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from .config import ModelConfig
from .dynamic_ntk import scaled_positions
from .processing.inputs import visual_mask
from .sizes import TextConfig

MropeLayout = Literal["sectioned", "interleaved", "single"]
"""How the rotary frequencies are divided among time, height and width; see `_LAYOUTS`. `single` is
that of decoders without M-RoPE, whose tokens have one position."""


def mrope_ids(
    input_ids: Tensor,
    grids: Sequence[tuple[int, int, int]],
    seconds_per_grid: Sequence[float],
    config: ModelConfig,
    answer_tokens: int = 0,
) -> Tensor:
    """Compute the position ids of one prompt, int64 `[3, tokens]`.

    Args:
        input_ids: int64 `[tokens]`, with one image or video token per merged patch.
        grids: (t, h, w) in patches of every image and video, in order of appearance.
        seconds_per_grid: seconds per temporal patch; used for Qwen2.5-VL videos only.
        config: gives the token ids, the merge size, `tokens_per_second` and `separate_frames`, and
            whether the decoder has M-RoPE at all.
        answer_tokens: number of tokens of the answer at the end, which do not count for what
            follows from the prompt's length.

    Raises:
        ValueError: the placeholder tokens do not match the grids.
    """
    merge = config.vision.spatial_merge_size
    if config.vision.separate_frames:
        grids = [(1, h, w) for t, h, w in grids for _ in range(t)]
        seconds_per_grid = [0.0] * len(grids)
    ids = input_ids.to("cpu")
    positions = torch.nonzero(visual_mask(ids, config)).flatten()
    counts = [t * (h // merge) * (w // merge) for t, h, w in grids]
    if sum(counts) != len(positions):
        raise ValueError(
            f"prompt has {len(positions)} image and video tokens but its {len(grids)} visuals "
            f"make {sum(counts)}; encode the text together with its visuals"
        )
    if not config.text.mrope:
        return counted_ids(len(ids), config.text, answer_tokens)
    segments: list[Tensor] = []
    start = 0  # position id of the next segment
    cursor = 0  # index of the next token
    consumed = 0  # visual tokens of earlier visuals
    for grid, seconds, count in zip(grids, seconds_per_grid, counts, strict=True):
        first = int(positions[consumed])
        if int(positions[consumed + count - 1]) != first + count - 1:
            raise ValueError(
                f"the {count} tokens of a visual are interrupted at token {first}; "
                "keep each visual's tokens together"
            )
        is_video = int(ids[first]) == config.video_token_id
        segments.append(_text_ids(first - cursor, start))
        start += first - cursor
        # An image has one frame, so its time id is 0 without seconds.
        segments.append(_grid_ids(grid, seconds if is_video else 0.0, config) + start)
        # The largest id over all three axes: a grid of h x w uses max(h, w) positions, far fewer
        # than its tokens, which is how M-RoPE extends the context.
        start = int(segments[-1].max()) + 1
        cursor, consumed = first + count, consumed + count
    segments.append(_text_ids(len(ids) - cursor, start))
    return torch.cat(segments, dim=1)


def counted_ids(tokens: int, config: TextConfig, answer_tokens: int = 0) -> Tensor:
    """Count the tokens of a text, int64 `[3, tokens]`; see `dynamic_ntk.py` for long ones.

    Args:
        tokens: their number, answer included.
        config: of the decoder.
        answer_tokens: see `mrope_ids`.
    """
    ids = _text_ids(tokens, 0)
    if config.length_scaling is None:
        return ids
    return scaled_positions(ids, tokens - answer_tokens, config.length_scaling)


def _text_ids(length: int, start: int) -> Tensor:
    """Ids of a text: time, height and width are equal, int64 `[3, length]`."""
    return (torch.arange(length) + start).expand(3, -1)


def _grid_ids(grid: tuple[int, int, int], seconds: float, config: ModelConfig) -> Tensor:
    """Ids of a visual from 0, int64 `[3, t * h * w / merge_unit]`."""
    merge = config.vision.spatial_merge_size
    frames, height, width = grid[0], grid[1] // merge, grid[2] // merge
    time = torch.arange(frames)
    if config.vision.tokens_per_second:
        # float32 and this order of products: truncation must give the same integers as in the
        # original implementation.
        time = (time * torch.tensor(seconds) * config.vision.tokens_per_second).long()
    axes = torch.meshgrid(time, torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes).flatten(1)


def text_rotary(
    position_ids: Tensor, config: TextConfig, layout: MropeLayout
) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine of the decoder's angles, float32 `[batch, tokens, rotary_dim / 2]`.

    Args:
        position_ids: int64 `[3, batch, tokens]`: time, height, width.
        config: gives the base of the frequencies, their number per axis, and YaRN's parameters; of
            the first `rotary_dim` channels of a head, i is paired with i + rotary_dim / 2.
        layout: which frequencies use which axis, see `check_mrope_layout`.

    Raises:
        ValueError: the layout is not implemented.
    """
    check_mrope_layout(layout)
    frequencies, scale = decoder_frequencies(config)
    frequencies = frequencies.to(position_ids.device)
    angles = position_ids[..., None].float() * frequencies
    selected = _LAYOUTS[layout](angles, config.mrope_section)
    return selected.cos() * scale, selected.sin() * scale


def decoder_frequencies(config: TextConfig) -> tuple[Tensor, float]:
    """Compute the rotary frequencies of the decoder and the factor of cosine and sine.

    Under YaRN (arXiv 2309.00071, sections 3.2 and 3.4), frequencies that complete many rotations
    within the context of the training stay, those that complete few are divided by `factor`, and
    those in between are interpolated. The square of the returned factor scales attention scores.

    Returns:
        float32 `[rotary_dim / 2]` on the CPU, and the factor, which is 1 without YaRN.
    """
    powers, yarn = _powers(config.rotary_dim, config.rope_theta), config.yarn
    if yarn is None:
        return 1.0 / powers, 1.0
    pairs = len(powers)

    def pair_of(rotations: float) -> float:
        """Index of the pair that completes so many rotations within the context."""
        context = yarn.original_max_position_embeddings
        return pairs * math.log(context / (rotations * 2 * math.pi)) / math.log(config.rope_theta)

    low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    span = high - low or 0.001  # a step instead of a ramp
    kept = 1 - ((torch.arange(pairs, dtype=torch.float32) - low) / span).clamp(0, 1)
    frequencies = 1.0 / (yarn.factor * powers) * (1 - kept) + 1.0 / powers * kept
    return frequencies, yarn.rotary_factor


def mrope_axes(config: TextConfig, layout: MropeLayout) -> Tensor:
    """Return the axis of every frequency, int64 `[rotary_dim / 2]`: 0 time, 1 height, 2 width.

    Raises:
        ValueError: the layout is not implemented.
    """
    check_mrope_layout(layout)
    axes = torch.arange(3)[:, None].expand(-1, config.rotary_dim // 2)
    return _LAYOUTS[layout](axes, config.mrope_section)


def check_mrope_layout(layout: str) -> None:
    """Refuse an M-RoPE layout that is not implemented.

    A wrong assignment of frequencies to axes gives finite but wrong logits, so an unknown layout
    must fail before the model runs.

    Raises:
        ValueError: the layout is not implemented.
    """
    if layout not in _LAYOUTS:
        raise ValueError(
            f"M-RoPE layout {layout!r} is not implemented; allowed: {', '.join(_LAYOUTS)}; "
            "correct mrope_layout of the family in model/family_tables/"
        )


def _sectioned(angles: Tensor, section: Sequence[int]) -> Tensor:
    """Consecutive frequencies: first all of time, then of height, then of width."""
    sections = torch.split(angles, list(section), dim=-1)
    return torch.cat([angle[axis] for axis, angle in enumerate(sections)], dim=-1)


def _interleaved(angles: Tensor, section: Sequence[int]) -> Tensor:
    """Frequencies 1, 4, 7, ... of height, 2, 5, 8, ... of width, and all others of time."""
    selected = angles[0].clone()
    for axis in (1, 2):
        every_third = slice(axis, 3 * section[axis], 3)
        selected[..., every_third] = angles[axis, ..., every_third]
    return selected


def _single(angles: Tensor, section: Sequence[int]) -> Tensor:
    """All frequencies of the first axis, which has the positions of the tokens."""
    return angles[0]


_LAYOUTS: Mapping[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "sectioned": _sectioned,
    "interleaved": _interleaved,
    "single": _single,
}
"""Layout to the function that selects from angles `[3, ..., frequencies]` one axis each."""


def vision_rotary(coordinates: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine of the vision tower's angles, float32 `[patches, head_dim / 2]`.

    Args:
        coordinates: int64 `[patches, 2]`: row and column of each patch.
        head_dim: width of one head: half of its channel pairs rotate by row, half by column; a pair
            is channel i with i + head_dim / 2.
    """
    frequencies = vision_frequencies(head_dim).to(coordinates.device)
    angles = (coordinates[..., None].float() * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def vision_frequencies(head_dim: int) -> Tensor:
    """Compute the rotary frequencies of rows, and of columns, float32 `[head_dim / 4]`."""
    return 1.0 / _powers(head_dim // 2, 10000.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + r/2) of the first r channels of `x` by the given angles.

    Checkpoints store q and k for this pairing ("rotate half", as in GPT-NeoX); the RoPE paper
    (arXiv 2104.09864) pairs neighbouring channels, which is the same up to a permutation.

    Args:
        x: `[..., d]`.
        cos: `[..., r / 2]`, broadcastable to `x`, with r at most d.
        sin: `[..., r / 2]`.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = first * cos - second * sin, second * cos + first * sin
    return torch.cat((*turned, rest) if rest.shape[-1] else turned, dim=-1)


def _powers(dim: int, theta: float) -> Tensor:
    # On the CPU, because pow differs in the last bit between devices.
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    return theta**exponents
