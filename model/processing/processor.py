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
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from ..config import ModelConfig
from ..rope import mrope_ids
from .chat import VisualSource, parse_messages, split_messages, without_data
from .chat_templates import render_chat
from .images import ImageSource, fit_size, open_image, resize, smart_resize, to_patches
from .inputs import Prompt, Visual
from .media import find_video
from .parts import has_placeholder, read_text
from .pixel_settings import PixelSettings
from .tokenizer import END_OF_TURN, load_tokenizer, read_stop_ids
from .video import FPS, MAX_FRAMES, Clip, frame_budget, open_video
from .visual_options import ImageOptions, VideoOptions

__all__ = ["Processor", "Prompt", "Visual", "smart_resize"]

STOP_TOKENS = (END_OF_TURN, "<|endoftext|>")


class Processor:
    """Turns images, videos and messages into what the model reads.

    Args:
        config: Of the model that will read the prompts.
        tokenizer: A transformers tokenizer with a chat template.
        settings: How images are scaled and normalized.
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
        """Read tokenizer, chat template and image settings of a checkpoint folder.

        Args:
            path: The folder.
            min_pixels: Least pixels of a scaled image; None takes the checkpoint's.
            max_pixels: Most pixels of a scaled image; None takes the checkpoint's.

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
        """Least pixels of a scaled image."""
        return self.settings.min_pixels

    @property
    def max_pixels(self) -> int:
        """Most pixels of a scaled image."""
        return self.settings.max_pixels

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self._stop_ids

    def image(
        self,
        image: ImageSource,
        area: tuple[int, int] | None = None,
        options: ImageOptions | None = None,
    ) -> Visual:
        """Scale an image and cut it into patches.

        Args:
            image: A Pillow image, encoded bytes, a path, a `file://` or `data:` URL, or base64.
            area: Least and most pixels after scaling; None takes the settings'.
            options: Bounds or a size that a message asks for; they go before `area`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The image cannot be decoded, is too large or too elongated.
        """
        options = options or ImageOptions()
        bounds = options.bounds(*(area or (self.min_pixels, self.max_pixels)))
        opened = open_image(image)
        return self._visual("image", Clip(iter([opened]), 1, 0.0), bounds, options.resized)

    def video(
        self, source: str | Path | Sequence[ImageSource], options: VideoOptions | None = None
    ) -> Visual:
        """Choose, scale and cut the frames of a video.

        Args:
            source: A video file, or frames in order (images as `image` takes them), all used.
            options: Which frames of a file are shown, and the size; None: the defaults.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The video cannot be decoded, a list is empty, too long or of unequal sizes,
                or the options do not fit it.
        """
        options = options or VideoOptions()
        if isinstance(source, str | Path):
            options.check_of_file()
            clip = open_video(find_video(source), options)
        else:
            options.check_of_frames()
            if not 1 <= len(source) <= MAX_FRAMES:
                raise ValueError(
                    f"video of {len(source)} frames; allowed: 1 to {MAX_FRAMES}; "
                    "take fewer per second"
                )
            frames = (open_image(frame) for frame in source)
            clip = Clip(frames, len(source), options.sample_fps or options.fps or FPS)
        padded = self._padded(clip.count)
        bounds = frame_budget(padded, self.min_pixels, self.max_pixels, options)
        return self._visual("video", clip, bounds, options.resized)

    def _padded(self, frames: int) -> int:
        depth = self.config.vision.temporal_patch_size
        return -(-frames // depth) * depth

    def _visual(
        self,
        kind: Literal["image", "video"],
        clip: Clip,
        bounds: tuple[int, int],
        resized: tuple[int, int] | None,
    ) -> Visual:
        vision = self.config.vision
        padded = self._padded(clip.count)
        first = next(clip.frames)
        height, width = fit_size(first, vision.pixel_factor, bounds, resized)
        budget = bounds if resized is None else ("resized", *resized)
        digest = hashlib.sha256(self._digest_head(kind, first.size, budget))
        frames = []
        for frame in _same_size(chain([first], clip.frames), first.size):
            digest.update(frame.tobytes())
            frames.append(resize(frame, height, width))
        frames += [frames[-1]] * (padded - len(frames))
        return Visual(
            kind=kind,
            patches=to_patches(frames, vision, self.settings),
            grid=(
                padded // vision.temporal_patch_size,
                height // vision.patch_size,
                width // vision.patch_size,
            ),
            seconds_per_grid=vision.temporal_patch_size / clip.fps if kind == "video" else 0.0,
            digest=digest.hexdigest(),
        )

    def _digest_head(self, kind: str, size: tuple[int, int], budget: Sequence[object]) -> bytes:
        # Everything but the pixels that decides about the patches.
        settings, vision = self.settings, self.config.vision
        fields: list[Any] = [
            kind,
            *size,
            *budget,
            *settings.mean,
            *settings.std,
            settings.rescale_factor,
        ]
        fields += [vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size]
        return json.dumps(fields).encode()

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        answer: str | None = None,
        answer_is_generated: bool = False,
        add_generation_prompt: bool = True,
        visuals: Sequence[Visual] | None = None,
    ) -> Prompt:
        """Tokenize a conversation with its images and videos; nothing is ever cut off.

        Args:
            messages: Chat messages in one of the forms of `chat`.
            answer: Appended as the assistant's turn with its end token. The tokens before it are
                those of the same call without an answer.
            answer_is_generated: Whether a model wrote the answer. Placeholder tokens that it spells
                out are then ordinary text; elsewhere they are an error.
            add_generation_prompt: Whether the assistant's turn is opened; an answer always does.
            visuals: Used instead of the visuals in the messages, in order of appearance.

        Raises:
            FileNotFoundError: An image or video file does not exist.
            ValueError: The messages are malformed, a visual cannot be read, or the text itself
                contains placeholder tokens.
        """
        is_given = visuals is not None
        parsed = parse_messages(without_data(messages) if is_given else messages, bare=is_given)
        plain, sources = split_messages(parsed)
        if visuals is None:
            visuals = [self._load(source) for source in sources]
        elif len(visuals) != len(sources):
            raise ValueError(
                f"{len(visuals)} visuals given for {len(sources)} places in the messages; "
                "give one for each"
            )
        opened = add_generation_prompt or answer is not None
        text = render_chat(self.tokenizer, plain, add_generation_prompt=opened)
        input_ids = self._expand(self._tokenize(text), visuals)
        answered = 0
        if answer is not None:
            answer_ids = self._tokenize_answer(answer, is_generated=answer_is_generated)
            input_ids = torch.cat([input_ids, answer_ids])
            answered = len(answer_ids) if answer else 0
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
        if isinstance(source.options, ImageOptions):
            return self.image(source.data, options=source.options)
        return self.video(source.data, source.options)

    def _tokenize(self, text: str, *, split_special_tokens: bool = False) -> Tensor:
        options = {"split_special_tokens": True} if split_special_tokens else {}
        ids = self.tokenizer.encode(text, add_special_tokens=False, **options)
        return torch.tensor(ids).long()

    def _tokenize_answer(self, answer: str, *, is_generated: bool) -> Tensor:
        if is_generated and has_placeholder(answer):
            text = self._tokenize(answer, split_special_tokens=True)
            return torch.cat([text, self._tokenize(END_OF_TURN)])
        read_text(answer)
        return self._tokenize(answer + END_OF_TURN)

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
