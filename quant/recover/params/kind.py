"""What a kind of trained parameters is: how it enters the model, and what it becomes in the end.

All kinds train changes that are zero at the start, and that are relative to the values they change:
one learning rate suits all layers. The model always computes with the values that a checkpoint will
hold, see `straight_through`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from ....model.qwen_vl import QwenVL
from ..linears import TrainedLinear


class TrainedParams(ABC):
    """Trained parameters of one kind; creating it attaches them to the decoder of a model.

    Args:
        model: quantized.
        layers: its quantized linear layers, see `differentiable`.
        stored: dtype in which the checkpoint stores float tensors.

    Raises:
        ValueError: the model has no parameter of this kind.
    """

    name: ClassVar[str]
    """Name in recipes."""

    def __init__(
        self, model: QwenVL, layers: Mapping[str, TrainedLinear], stored: torch.dtype
    ) -> None:
        self.changes: dict[str, nn.Parameter] = self.attach(model, layers, stored)
        """Trained tensors by name, float32, zero at the start."""

    @abstractmethod
    def attach(
        self, model: QwenVL, layers: Mapping[str, TrainedLinear], stored: torch.dtype
    ) -> dict[str, nn.Parameter]:
        """Attach the parameters and return them; arguments as of the class."""

    def detach(self) -> dict[str, Tensor]:
        """Put the trained values into the model.

        Returns:
            The float tensors of the model that differ, by canonical name.
        """
        return {}
