"""How the conversations of a family are written, as far as its chat template leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ChatFormat:
    """Tokens of a family's conversations, and what its tokenizers and templates expect."""

    image: str = "<|image_pad|>"  # the token that features of an image replace
    video: str | None = "<|video_pad|>"  # None: the family has no videos
    end_of_turn: str = "<|im_end|>"  # follows an answer
    stops: tuple[str, ...] = ("<|im_end|>", "<|endoftext|>")  # each ends an answer
    default_template: str | None = None  # of checkpoints without one; None: there must be one
    build_tokenizer: Callable[[Path], Any] | None = None  # of a folder; None: by transformers
    parts_only: bool = False  # templates read the content of messages as a list of parts only
    leading_tokens: bool = False  # prompts start with the tokens that the tokenizer puts first

    @property
    def required(self) -> tuple[str, ...]:
        """Texts that a tokenizer must have as one token each."""
        tokens = (self.end_of_turn, self.image, self.video)
        return tuple(token for token in tokens if token is not None)

    def shape(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages as the family's templates read them; the contents are the same."""
        if not self.parts_only:
            return [dict(message) for message in messages]
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message["content"], str)
            else dict(message)
            for message in messages
        ]


QWEN = ChatFormat()
