"""Grids as data: a sorted table of levels, the form of their scales, and the codes in files.

A weight is a level times a scale. `FloatFormat` grids are the finite numbers of a small float
format; the others list their levels. Without torch, so that recipes can be read before it is
loaded; `methods/grids/levels.py` rounds to the levels.

Sources:
- E4M3, E5M2: Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433, table 1. E4M3
  has no infinity; its largest magnitude is 448, code 0x7F is NaN.
- E2M1 and E8M0: OCP Microscaling Formats v1.0, sections 5.3.3 and 5.4.1.
- NVFP4: E2M1 in groups of 16 under E4M3 scales and one float32 scale, as compressed-tensors
  stores it (`nvfp4-pack-quantized`).
- NF4: Dettmers et al., "QLoRA", arXiv 2305.14314, appendix E.
- Powers of two: Zhou et al., "Incremental Network Quantization", arXiv 1702.03044, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

ScaleForm = Literal["float", "e4m3", "e8m0"]
"""Scales of the groups: numbers of bf16 and fp16; E4M3 under a float32 scale of the whole matrix;
powers of two."""

MOST_LEVELS = 256
SIMULATED = "simulated"
"""Begins the name of a kernel that rounds activations to a grid and multiplies them in float32."""


@dataclass(frozen=True)
class FloatFormat:
    """The finite numbers of a small float format with subnormal numbers."""

    mantissa: int
    """Bits of the fraction."""
    least_exponent: int
    """Exponent of the smallest normal number."""
    largest: float
    """Largest finite number."""

    @cached_property
    def magnitudes(self) -> tuple[float, ...]:
        """All magnitudes, ascending; the position of each is its code without the sign."""
        steps, values = 2**self.mantissa, []
        for code in range(MOST_LEVELS // 2):
            exponent, fraction = divmod(code, steps)
            if exponent:
                value = (1 + fraction / steps) * 2.0 ** (self.least_exponent + exponent - 1)
            else:
                value = fraction / steps * 2.0**self.least_exponent
            if value > self.largest:
                break
            values.append(value)
        return tuple(values)


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of a group, up to its scale, and the form in which they are stored.

    Raises:
        ValueError: the table is not sorted, too long, or has no zero.
    """

    name: str
    levels: tuple[float, ...]
    """Ascending; a compressed weight holds positions in this table."""
    codes: tuple[int, ...]
    """Stored bits of each level. A value halfway between two levels is rounded to the even code."""
    bits: int
    """Width of a code."""
    scale_form: ScaleForm = "float"
    group_sizes: tuple[int, ...] = ()
    """Allowed group sizes; empty = all. The first is the default."""
    group_size: int = 128
    """Default where all are allowed."""
    format: FloatFormat | None = None
    """The float format whose numbers the levels are."""
    choices: tuple[float, ...] = (1.0,)
    """Factors on the scale that maps a group's largest weight to the largest level. The one with
    the least squared error is chosen, also where scales are not searched."""
    search: tuple[float, ...] | None = None
    """Factors that a search tries; None = those of integers (`scale_search.py`)."""
    activations: tuple[str, ...] = ()
    """Forms of activations on the same levels that engines compute with: dynamic, static."""
    unread: str = ""
    """Why no checkpoint format holds it; empty if one does."""

    def __post_init__(self) -> None:
        if (
            list(self.levels) != sorted(set(self.levels))
            or not 2 <= len(self.levels) <= MOST_LEVELS
        ):
            raise ValueError(
                f"grid {self.name}: the levels are not 2 to {MOST_LEVELS} ascending numbers"
            )
        if 0.0 not in self.levels or len(self.codes) != len(self.levels):
            raise ValueError(f"grid {self.name}: each level needs a code, and zero is one of them")

    @property
    def largest(self) -> float:
        """Largest magnitude of a level."""
        return max(-self.levels[0], self.levels[-1])

    @cached_property
    def zero(self) -> int:
        """Position of the level zero."""
        return self.levels.index(0.0)

    @property
    def default_group_size(self) -> int:
        """Group size of recipes that state none."""
        return self.group_sizes[0] if self.group_sizes else self.group_size


def float_grid(
    name: str, format: FloatFormat, bits: int, scale_form: ScaleForm = "float", **fields: object
) -> Grid:
    """Make the grid of a float format without -0; the highest bit of a code is the sign."""
    magnitudes = format.magnitudes
    sign = 1 << (bits - 1)
    negative = range(len(magnitudes) - 1, 0, -1)
    return Grid(
        name,
        levels=(*(-magnitudes[code] for code in negative), *magnitudes),
        codes=(*(sign | code for code in negative), *range(len(magnitudes))),
        bits=bits,
        scale_form=scale_form,
        format=format,
        **fields,  # type: ignore[arg-type]
    )


def table_grid(
    name: str, levels: tuple[float, ...], bits: int, first_code: int = 0, **fields: object
) -> Grid:
    """Make a grid of listed levels with consecutive codes."""
    codes = tuple(range(first_code, first_code + len(levels)))
    return Grid(name, levels, codes, bits, **fields)  # type: ignore[arg-type]


NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution, scaled to 1; the float32 numbers of the paper."""

E4M3 = FloatFormat(mantissa=3, least_exponent=-6, largest=448.0)
E5M2 = FloatFormat(mantissa=2, least_exponent=-14, largest=57344.0)
E2M1 = FloatFormat(mantissa=1, least_exponent=0, largest=6.0)

# A group whose largest weight is mapped to 4 instead of 6 uses levels 2, 3 and 4 for its large
# weights, where E2M1 is finer (Cook et al., "Four Over Six", arXiv 2512.02010, section 3).
FOUR_OVER_SIX = (1.0, 1.5)
_POWERS = tuple(2.0**-k for k in range(6, -1, -1))
# With two magnitudes the largest weight is a poor scale: weights above half of a scale become it.
_TERNARY = tuple(1.0 - 0.05 * step for step in range(17))
NO_ENGINE = "no engine reads it from a checkpoint"

GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        float_grid("fp8", E4M3, 8, group_size=-1, activations=("dynamic", "static")),
        float_grid(
            "fp8-e5m2",
            E5M2,
            8,
            group_size=-1,
            unread="engines read E4M3 weights only; use fp8",
        ),
        float_grid(
            "nvfp4",
            E2M1,
            4,
            "e4m3",
            group_sizes=(16,),
            choices=FOUR_OVER_SIX,
            search=(1.0, 1.5, 1.375, 1.25, 1.125, 0.9375, 0.875, 0.8125),
            activations=("dynamic",),
        ),
        float_grid(
            "mxfp4",
            E2M1,
            4,
            "e8m0",
            group_sizes=(32,),
            choices=(1.0, 2.0),
            search=(1.0, 2.0, 0.5),
            activations=("dynamic",),
        ),
        table_grid(
            "nf4",
            NF4_LEVELS,
            4,
            group_size=64,
            unread="only bitsandbytes reads it, in a form of its own",
        ),
        table_grid(
            "ternary",
            (-1.0, 0.0, 1.0),
            2,
            first_code=1,
            choices=_TERNARY,
            search=_TERNARY,
            unread=NO_ENGINE,
        ),
        table_grid(
            "pot4",
            (*(-p for p in reversed(_POWERS)), 0.0, *_POWERS),
            4,
            first_code=1,
            unread=NO_ENGINE,
        ),
    )
}
"""The grids that recipes name by `grid`; integers are stated by `bits`."""
