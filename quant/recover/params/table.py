"""The kinds of parameters that are trained over the whole model; a new one is a row here."""

from __future__ import annotations

from collections.abc import Mapping

from .adapters import AdapterParams
from .kind import TrainedParams
from .norms import NormParams
from .scales import ScaleParams

KINDS: Mapping[str, type[TrainedParams]] = {
    kind.name: kind for kind in (ScaleParams, NormParams, AdapterParams)
}
