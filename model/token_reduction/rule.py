"""The interface of a reduction rule. Rules are read with recipes, before torch is loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """The merged features of an image, or of one temporal patch of a video."""

    features: Tensor
    """`[height * width, hidden]`, row by row, in any float dtype on any device."""
    height: int
    width: int
    content: str
    """Digest of the pixels; it differs between the frames of a video."""


class ReductionRule(ABC):
    """Selects the tokens of a frame that are kept; subclasses are `validated` dataclasses."""

    method: ClassVar[str]
    """Name in recipes."""

    @abstractmethod
    def select(self, frame: Frame) -> Tensor:
        """Return the indices of the kept tokens, int64 `[kept]`, ascending, at least one."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with every default, which `table.read_rule` reads."""
        return {"method": self.method, **asdict(self)}  # type: ignore[call-overload]

    @property
    def text(self) -> str:
        """Form on the command line, which `table.parse_rule` reads: `divprune:keep=0.5`."""
        options = ",".join(f"{k}={v}" for k, v in self.to_dict().items() if k != "method")
        return f"{self.method}:{options}"


def kept_count(keep: float, tokens: int) -> int:
    """Return the number of tokens that a share keeps, at least 1.

    Args:
        keep: share in (0, 1].
        tokens: at least 1.
    """
    return max(1, round(keep * tokens))
