"""Ranges of solver options, stated once for recipes and for direct calls of the methods."""

from typing import Annotated, Literal

from ...common.validation import Integer, Real

DampPercent = Annotated[float, Real(above=0, most=1)]
"""Damping as a fraction of the Hessian's mean diagonal."""
BlockSize = Annotated[int, Integer(1)]
"""Columns per lazy update of GPTQ."""
Share = Annotated[float, Real(least=0, most=1)]
"""A fraction of the whole: GPTAQ's strength, SmoothQuant's alpha."""
ChannelScore = Literal["wanda", "magnitude", "random"]
"""Which inner channels of an MLP stay, see `methods.shrink.channels`."""
