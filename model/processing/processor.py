"""Conversion of chat messages to prompts (token ids, positions, patches), and of ids to text.

Each placeholder token is repeated after tokenizing, once per merged patch, so the text is searched
for placeholders only once.
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
from .chat import VisualSource, parse_messages, split_messages, strip_media
from .chat_templates import render_chat
from .images import ImageSource, fit_size, open_image, resize, smart_resize
from .inputs import Prompt, Visual, visual_mask
from .media import find_video
from .parts import has_placeholder, read_text
from .patches import to_patches
from .pixel_settings import PixelSettings
from .tokenizer import END_OF_TURN, load_tokenizer, read_stop_ids
from .video import FPS, MAX_FRAMES, Clip, frame_budget, open_video
from .visual_options import ImageOptions, VideoOptions

__all__ = ["Processor", "Prompt", "Visual", "smart_resize"]

STOP_TOKENS = (END_OF_TURN, "<|endoftext|>")


class Processor:
    """Converter of images, videos and messages to a model's inputs.

    Args:
        config: the model's config.
        tokenizer: a transformers tokenizer with a chat template.
        settings: scaling and normalization of images; None: the defaults.
        extra_stop_ids: stop tokens of the checkpoint's generation settings.
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
        converted = (tokenizer.convert_tokens_to_ids(token) for token in STOP_TOKENS)
        stop_ids = {token_id for token_id in converted if token_id is not None}
        stop_ids -= {tokenizer.unk_token_id}
        self._stop_ids = frozenset(stop_ids | set(extra_stop_ids))

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> Processor:
        """Load tokenizer, chat template and image settings of a checkpoint folder.

        Args:
            path: the folder.
            min_pixels: minimum area of a scaled image; None: the checkpoint's.
            max_pixels: maximum area of a scaled image; None: the checkpoint's.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is unusable.
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
        """Minimum area of a scaled image in pixels."""
        return self.settings.min_pixels

    @property
    def max_pixels(self) -> int:
        """Maximum area of a scaled image in pixels."""
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
            image: a Pillow image, encoded bytes, a path, a `file://` or `data:` URL, or base64.
            area: minimum and maximum area after scaling in pixels; None: the settings'.
            options: bounds or a size given in a message; they override `area`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the image cannot be decoded, is too large or too elongated.
        """
        options = options or ImageOptions()
        bounds = options.bounds(*(area or (self.min_pixels, self.max_pixels)))
        opened = open_image(image)
        return self._visual("image", Clip(iter([opened]), 1, 0.0), bounds, options.resized)

    def video(
        self, source: str | Path | Sequence[ImageSource], options: VideoOptions | None = None
    ) -> Visual:
        """Select the frames of a video, scale them and cut them into patches.

        Args:
            source: a video file, or a list of frames (as in `image`), all of which are used.
            options: frames of a file to use, and the size; None: the defaults.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the video cannot be decoded, a list is empty, too long or has frames of
                different sizes, or the options do not apply.
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
        """Round up to whole temporal patches."""
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
        # All inputs of the patches other than the pixels.
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
        """Tokenize a conversation with its images and videos, without truncation.

        Args:
            messages: chat messages in one of the forms of `chat.py`.
            answer: appended as the assistant's turn with its end token. The tokens before it are
                the same as without an answer.
            answer_is_generated: whether a model generated the answer. The text of placeholder
                tokens in it is then ordinary text; otherwise it is an error.
            add_generation_prompt: whether to open the assistant's turn; always with an answer.
            visuals: replace the visuals of the messages, in order of appearance.

        Raises:
            FileNotFoundError: an image or video file does not exist.
            ValueError: the messages are malformed, a visual cannot be read, or the text contains
                placeholder tokens.
        """
        is_given = visuals is not None
        parsed = parse_messages(
            strip_media(messages) if is_given else messages, allow_placeholders=is_given
        )
        stripped, sources = split_messages(parsed)
        if visuals is None:
            visuals = [self._load(source) for source in sources]
        elif len(visuals) != len(sources):
            raise ValueError(
                f"{len(visuals)} visuals given for {len(sources)} places in the messages; "
                "give one for each"
            )
        opened = add_generation_prompt or answer is not None
        text = render_chat(self.tokenizer, stripped, add_generation_prompt=opened)
        input_ids = self._expand(self._tokenize(text), visuals)
        answer_tokens = 0
        if answer is not None:
            # Tokenized separately: a merge across the boundary would change the prompt's tokens.
            answer_ids = self._tokenize_answer(answer, is_generated=answer_is_generated)
            input_ids = torch.cat([input_ids, answer_ids])
            answer_tokens = len(answer_ids) if answer else 0
        grids = [visual.grid for visual in visuals]
        seconds = [visual.seconds_per_grid for visual in visuals]
        positions = mrope_ids(input_ids, grids, seconds, self.config)
        return Prompt(input_ids, positions, tuple(visuals), answer_tokens)

    def decode(self, token_ids: Iterable[int] | Tensor) -> str:
        """Convert token ids to text without special tokens."""
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
        """Repeat each placeholder token for all tokens of its visual."""
        config = self.config
        tokens = {"image": config.image_token_id, "video": config.video_token_id}
        is_visual = visual_mask(input_ids, config)
        placeholders = input_ids[is_visual].tolist()
        if placeholders != [tokens[visual.kind] for visual in visuals]:
            raise ValueError(
                f"the conversation has {len(placeholders)} image and video tokens for "
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
