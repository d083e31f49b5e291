"""Conversion of chat messages to prompts (token ids, positions, patches), and of ids to text.

Each placeholder token is repeated after tokenizing, once per merged patch, so the text is searched
for placeholders only once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..families import family_of
from ..rope import mrope_ids
from .chat import parse_messages, split_messages, strip_media
from .chat_templates import render_chat
from .clips.settings import default_video_rules, read_video_rules
from .clips.sizes import VideoRules
from .clips.timestamps import write_times
from .images import ImageSource, smart_resize
from .inputs import Prompt, Visual, visual_mask
from .parts import has_placeholder, read_text
from .pixel_settings import PixelSettings
from .reasoning_tags import place_answer
from .tokenizer import load_tokenizer, read_stop_ids
from .visual_options import ImageOptions, VideoOptions
from .visuals import VisualReader

__all__ = ["Processor", "Prompt", "Visual", "smart_resize"]


class Processor:
    """Converter of images, videos and messages to a model's inputs.

    Args:
        config: the model's config.
        tokenizer: a transformers tokenizer with a chat template.
        settings: scaling and normalization of images; None: the defaults.
        videos: preprocessing of videos; None: the family's defaults, if it has videos.
        extra_stop_ids: stop tokens of the checkpoint's generation settings.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Any,
        settings: PixelSettings | None = None,
        *,
        videos: VideoRules | None = None,
        extra_stop_ids: Iterable[int] = (),
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.settings = settings or PixelSettings.default(config.vision)
        if videos is None and config.video_token_id is not None:
            videos = default_video_rules(config.vision, self.settings)
        self.reader = VisualReader(config.vision, self.settings, videos)
        self.chat = family_of(config).chat
        self._leading = _leading_tokens(tokenizer) if self.chat.leading_tokens else []
        converted = (tokenizer.convert_tokens_to_ids(token) for token in self.chat.stops)
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
        videos = None
        if config.video_token_id is not None:
            videos = read_video_rules(
                folder, config.vision, settings, min_pixels=min_pixels, max_pixels=max_pixels
            )
        tokenizer = load_tokenizer(folder, config)
        stop_ids = read_stop_ids(folder, config.text.vocab_size)
        return cls(config, tokenizer, settings, videos=videos, extra_stop_ids=stop_ids)

    @property
    def min_pixels(self) -> int:
        """Minimum area of a scaled image in pixels."""
        return self.settings.min_pixels

    @property
    def max_pixels(self) -> int:
        """Maximum area of a scaled image in pixels."""
        return self.settings.max_pixels

    def with_max_pixels(self, max_pixels: int) -> Processor:
        """Return this processor with another maximum area of a scaled image; videos are as before.

        Raises:
            ValueError: it is below the minimum, or not the area of all images.
        """
        other = copy.copy(self)
        other.settings = replace(self.settings, max_pixels=max_pixels)
        other.reader = VisualReader(self.config.vision, other.settings, self.reader.videos)
        return other

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
        """Scale an image and cut it into patches, see `VisualReader.image`."""
        return self.reader.image(image, area, options)

    def video(
        self, source: str | Path | Sequence[ImageSource], options: VideoOptions | None = None
    ) -> Visual:
        """Select the frames of a video and cut them into patches, see `VisualReader.video`."""
        return self.reader.video(source, options)

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
                the same as without an answer, and an empty reasoning if the template opens one
                (`place_answer`); the reasoning is no part of the answer's tokens.
            answer_is_generated: whether a model generated the answer, to the prompt without an
                answer: it then continues a reasoning that the template opens. The text of
                placeholder tokens in it is then ordinary text; otherwise it is an error.
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
        stripped = self.chat.shape(stripped)
        if visuals is None:
            visuals = [self.reader.read(source) for source in sources]
        elif len(visuals) != len(sources):
            raise ValueError(
                f"{len(visuals)} visuals given for {len(sources)} places in the messages; "
                "give one for each"
            )
        opened = add_generation_prompt or answer is not None
        text = render_chat(self.tokenizer, stripped, add_generation_prompt=opened)
        if answer is not None and not answer_is_generated:
            text, answer = place_answer(self.tokenizer, stripped, text, answer)
        if self.config.vision.separate_frames:
            text = write_times(text, [each.times for each in visuals if each.kind == "video"])
        input_ids = self._expand(self._tokenize_prompt(text), visuals)
        appended = 0
        if answer is not None:
            # Tokenized separately: a merge across the boundary would change the prompt's tokens.
            answer_ids = self._tokenize_answer(answer, is_generated=answer_is_generated)
            input_ids = torch.cat([input_ids, answer_ids])
            appended = len(answer_ids)
        grids = [visual.grid for visual in visuals]
        seconds = [visual.seconds_per_grid for visual in visuals]
        positions = mrope_ids(input_ids, grids, seconds, self.config, appended)
        return Prompt(input_ids, positions, tuple(visuals), appended if answer else 0)

    def decode(self, token_ids: Iterable[int] | Tensor) -> str:
        """Convert token ids to text without special tokens."""
        ids = [int(token) for token in token_ids]
        text: str = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _tokenize(self, text: str, *, split_special_tokens: bool = False) -> Tensor:
        options = {"split_special_tokens": True} if split_special_tokens else {}
        ids = self.tokenizer.encode(text, add_special_tokens=False, **options)
        return torch.tensor(ids).long()

    def _tokenize_prompt(self, text: str) -> Tensor:
        ids = self._tokenize(text)
        leading = torch.tensor(self._leading).long()
        # Some templates write the first token themselves.
        is_there = torch.equal(ids[: len(leading)], leading)
        return ids if is_there else torch.cat([leading, ids])

    def _tokenize_answer(self, answer: str, *, is_generated: bool) -> Tensor:
        end = self.chat.end_of_turn
        if is_generated and (has_placeholder(answer) or self.chat.image in answer):
            text = self._tokenize(answer, split_special_tokens=True)
            return torch.cat([text, self._tokenize(end)])
        read_text(answer)
        return self._tokenize(answer + end)

    def _expand(self, input_ids: Tensor, visuals: Sequence[Visual]) -> Tensor:
        """Repeat each placeholder token for all tokens of its visual, or of its frame."""
        config = self.config
        tokens = {"image": config.image_token_id, "video": config.video_token_id}
        is_visual = visual_mask(input_ids, config)
        placeholders = input_ids[is_visual].tolist()
        expected, counts = [], []
        for visual in visuals:
            parts = visual.grid[0] if config.vision.separate_frames else 1
            expected += [tokens[visual.kind]] * parts
            counts += [visual.patches.shape[0] // config.vision.merge_unit // parts] * parts
        if placeholders != expected:
            raise ValueError(
                f"the conversation has {len(placeholders)} image and video tokens for "
                f"{len(visuals)} visuals; write no placeholder tokens into the text, and use the "
                "checkpoint's own tokenizer and chat template"
            )
        repeats = torch.ones_like(input_ids)
        repeats[is_visual] = torch.tensor(counts, dtype=torch.int64)
        return input_ids.repeat_interleave(repeats)


def _leading_tokens(tokenizer: Any) -> list[int]:
    """Return the tokens that a tokenizer puts before every text: none, or the one that begins it.

    Raises:
        ValueError: it adds others, which would stand between a prompt and its answer.
    """
    added: list[int] = tokenizer.encode("", add_special_tokens=True)
    if added not in ([], [tokenizer.bos_token_id]):
        raise ValueError(
            f"the tokenizer adds the tokens {added} to a text; allowed: none, or its first token "
            f"{tokenizer.bos_token_id}; set add_eos_token to false in tokenizer_config.json"
        )
    return added
