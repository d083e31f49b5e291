"""What all groups of a compressed-tensors configuration have, whatever their weights."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator

from .....common.validation import empty_to_none
from ....recipe.scheme import Scheme
from ..format import check_expression

Storage = Literal[
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "naive-quantized",
    "mixed-precision",
]
Target = Annotated[str, AfterValidator(lambda target: check_expression(target, ["re:"]))]
Unset = Annotated[None, BeforeValidator(empty_to_none)]


class Group(BaseModel):
    """One entry of `config_groups`."""

    targets: Annotated[tuple[Target, ...], BeforeValidator(lambda value: value or ())] = ()
    output_activations: Unset = None
    format: Storage | None = None

    scheme_type: ClassVar[type[Scheme]]
    """Class of the scheme that the group states."""

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Return the fields of the scheme.

        Raises:
            ValueError: weights and activations do not go together.
        """
