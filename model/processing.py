"""From chat messages to prompts: token ids, positions and patches; and back from ids to text.

Placeholder tokens are multiplied after tokenizing, one for each merged patch, so a prompt never
has to be searched for its visuals again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .chat import VisualSource, split_messages
from .config import ModelConfig
from .images import (
    ImageSource,
    open_image,
    resize,
    smart_resize,
    to_patches,
)
from .inputs import Prompt, Visual
from .pixel_settings import PixelSettings
from .rope import mrope_ids
from .tokenizer import END_OF_TURN, load_tokenizer, read_stop_ids
from .video import FPS, MAX_FRAMES, Clip, frame_budget, open_video

__all__ = ["Processor", "Prompt", "Visual", "smart_resize"]

STOP_TOKENS = (END_OF_TURN, "<|endoftext|>")


class Processor:
    """Turns pictures, videos and messages into what the model reads.

    Args:
        config: Of the model that will read the prompts.
        tokenizer: A transformers tokenizer with a chat template.
        settings: How pictures are scaled and normalized.
        extra_stop_ids: Stop tokens that the checkpoint's generation settings name.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        settings: PixelSettings | None = None,
        *,
        extra_stop_ids: Iterable[int] = (),
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.settings = settings or PixelSettings()
        known = (tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS)
        found = {token_id for token_id in known if token_id is not None}
        found -= {tokenizer.unk_token_id}
        self._stop_ids = frozenset(found | set(extra_stop_ids))

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Processor:
        """Read tokenizer, chat template and picture settings of a checkpoint folder.

        Args:
            path: The folder.
            min_pixels: Least pixels of a scaled picture; None takes the checkpoint's.
            max_pixels: Most pixels of a scaled picture; None takes the checkpoint's.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file cannot be used.
        """
        folder = Path(path)
        config = ModelConfig.from_folder(folder)
        settings = PixelSettings.from_folder(
            folder, config.vision, min_pixels=min_pixels, max_pixels=max_pixels
        )
        tokenizer = load_tokenizer(folder, config)
        stop_ids = read_stop_ids(folder, config.text.vocab_size)
        return cls(config, tokenizer, settings, extra_stop_ids=stop_ids)

    @property
    def min_pixels(self) -> int:
        """Least pixels of a scaled picture."""
        return self.settings.min_pixels

    @property
    def max_pixels(self) -> int:
        """Most pixels of a scaled picture."""
        return self.settings.max_pixels

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._stop_ids

    def image(self, image: ImageSource, area: tuple[int, int] | None = None) -> Visual:
        """Scale a picture and cut it into patches.

        Args:
            image: A Pillow image, encoded bytes, a path, or a `file://` or `data:` URL.
            area: Least and most pixels after scaling; None takes the settings'.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The picture cannot be decoded, is too large or too elongated.
        """
        picture = open_image(image)
        return self._visual("image", Clip(iter([picture]), 1, 0.0), area)

    def video(
        self,
        source: str | Path | Sequence[ImageSource],
        *,
        fps: float = FPS,
        max_frames: int = MAX_FRAMES,
    ) -> Visual:
        """Choose, scale and cut the frames of a video.

        Args:
            source: A video file, or frames in order (pictures as `image` takes them), all used.
            fps: Frames per second: to look at in a file; at which a list was taken.
            max_frames: Most frames that are looked at.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The video cannot be decoded, or a list is empty, too long or of unequal
                sizes.
        """
        if fps <= 0:
            raise ValueError(f"fps {fps}: must be positive, such as {FPS}")
        if isinstance(source, str | Path):
            name = str(source).removeprefix("file://")
            return self._visual("video", open_video(name, fps=fps, max_frames=max_frames))
        if not 1 <= len(source) <= max_frames:
            raise ValueError(
                f"video of {len(source)} frames; allowed: 1 to {max_frames}; take fewer per second"
            )
        frames = (open_image(frame) for frame in source)
        return self._visual("video", Clip(frames, len(source), fps))

    def _visual(self, kind: Any, clip: Clip, area: tuple[int, int] | None = None) -> Visual:
        vision = self.config.vision
        depth = vision.temporal_patch_size
        padded = -(-clip.count // depth) * depth
        low, high = area or (self.min_pixels, self.max_pixels)
        if kind == "video":
            low, high = frame_budget(padded, low, high)
        first = next(clip.frames)
        height, width = smart_resize(first.height, first.width, vision.pixel_factor, low, high)
        digest = hashlib.sha256(self._digest_head(kind, first.size, (low, high)))
        frames = []
        for frame in _same_size(chain([first], clip.frames), first.size):
            digest.update(frame.tobytes())
            frames.append(resize(frame, height, width))
        frames += [frames[-1]] * (padded - len(frames))
        return Visual(
            kind=kind,
            patches=to_patches(frames, vision, self.settings),
            grid=(padded // depth, height // vision.patch_size, width // vision.patch_size),
            seconds_per_grid=depth / clip.fps if kind == "video" else 0.0,
            digest=digest.hexdigest(),
        )

    def _digest_head(self, kind: str, size: tuple[int, int], budget: tuple[int, int]) -> bytes:
        # Everything but the pixels that decides about the patches.
        settings, vision = self.settings, self.config.vision
        fields = [kind, *size, *budget, *settings.mean, *settings.std, settings.rescale_factor]
        fields += [vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size]
        return json.dumps(fields).encode()

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        answer: str | None = None,
        add_generation_prompt: bool = True,
        visuals: Sequence[Visual] | None = None,
    ) -> Prompt:
        """Tokenize a conversation with its pictures and videos; nothing is ever cut off.

        Args:
            messages: Chat messages, see `chat.py`.
            answer: Appended as the assistant's turn with its end token. The tokens before it are
                those of the same call without an answer.
            add_generation_prompt: Whether the assistant's turn is opened; an answer always does.
            visuals: Used instead of the visuals in the messages, in order of appearance.

        Raises:
            ValueError: The messages are malformed, a visual cannot be read, or the text itself
                contains placeholder tokens.
        """
        plain, sources = split_messages(messages)
        if visuals is None:
            visuals = [self._load(source) for source in sources]
        elif len(visuals) != len(sources):
            raise ValueError(
                f"{len(visuals)} visuals given for {len(sources)} places in the messages; "
                "give one for each"
            )
        text = self.tokenizer.apply_chat_template(
            plain,
            tokenize=False,
            add_generation_prompt=add_generation_prompt or answer is not None,
        )
        input_ids = self._expand(self._tokenize(text), visuals)
        answered = 0
        if answer is not None:
            said = self._tokenize(answer + END_OF_TURN)
            input_ids = torch.cat([input_ids, said])
            answered = len(said) if answer else 0
        grids = [visual.grid for visual in visuals]
        seconds = [visual.seconds_per_grid for visual in visuals]
        positions = mrope_ids(input_ids, grids, seconds, self.config)
        return Prompt(input_ids, positions, tuple(visuals), answered)

    def decode(self, token_ids: Iterable[int] | Tensor) -> str:
        """Text of token ids, special tokens left out."""
        ids = [int(token) for token in token_ids]
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _load(self, source: VisualSource) -> Visual:
        if source.data is None:
            raise ValueError(
                f"content part of type {source.kind!r} has no {source.kind!r} field; "
                "give the data in it or pass visuals"
            )
        if source.kind == "image":
            return self.image(source.data)
        return self.video(source.data, fps=FPS if source.fps is None else source.fps)

    def _tokenize(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False)).long()

    def _expand(self, input_ids: Tensor, visuals: Sequence[Visual]) -> Tensor:
        """Repeat each placeholder once for every token of its visual."""
        config = self.config
        tokens = {"image": config.image_token_id, "video": config.video_token_id}
        is_visual = (input_ids == tokens["image"]) | (input_ids == tokens["video"])
        found = input_ids[is_visual].tolist()
        if found != [tokens[visual.kind] for visual in visuals]:
            raise ValueError(
                f"the conversation has {len(found)} image and video tokens for "
                f"{len(visuals)} visuals; write no placeholder tokens into the text, and use the "
                "checkpoint's own tokenizer and chat template"
            )
        repeats = torch.ones_like(input_ids)
        counts = [visual.patches.shape[0] // config.vision.merge_unit for visual in visuals]
        repeats[is_visual] = torch.tensor(counts, dtype=torch.int64)
        return input_ids.repeat_interleave(repeats)


def _same_size(frames: Iterable[Image.Image], size: tuple[int, int]) -> Iterator[Image.Image]:
    for index, frame in enumerate(frames):
        if frame.size != size:
            raise ValueError(
                f"frame {index} of the video is {frame.size[0]} x {frame.size[1]}, the first is "
                f"{size[0]} x {size[1]}; all must be of one size"
            )
        yield frame
