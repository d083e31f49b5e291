"""Qwen3.5 with a mixture of experts and a shared expert in the place of the decoder's MLPs."""

from __future__ import annotations

from dataclasses import replace

from . import steps
from .entries import BlockLinear, KeptLinear, NormBinding, PairBinding
from .qwen3_5 import (
    ATTENTION,
    ATTENTION_FUSED,
    ATTENTION_NORMS,
    KEPT,
    QWEN3_5,
    VALUE,
    carried_along,
)
from .qwen3_vl_moe import DOWN, EXPERT_LAYERS, GATE, ROUTER, ROUTER_TAP, UP
from .stage import Checkpoints

_DENSE = QWEN3_5.decoder
_SHARED_GATE, _SHARED_UP, _SHARED_DOWN = (
    f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")
)
_SWITCH = KeptLinear(
    "mlp.shared_expert_gate",
    "hidden",
    "one",
    ROUTER_TAP,
    "its one row multiplies the whole output of the shared expert",
)

_DECODER = replace(
    _DENSE,
    linears=(
        *ATTENTION,
        BlockLinear(_SHARED_GATE, "hidden", "shared", False, "shared_gate_up"),
        BlockLinear(_SHARED_UP, "hidden", "shared", False, "shared_gate_up"),
        BlockLinear(_SHARED_DOWN, "shared", "hidden", False, "shared_down", input_split=True),
        *EXPERT_LAYERS,
    ),
    kept=(*KEPT, ROUTER, _SWITCH),
    checkpoints=Checkpoints(
        ("o", "shared_gate_up", "shared_down", "expert_gate_up", "expert_down"),
        steps.complete_decoder_layer,
    ),
    norms=(
        *ATTENTION_NORMS,
        NormBinding(
            "post_attention_layernorm",
            (ROUTER.name, _SWITCH.name, _SHARED_GATE, _SHARED_UP, GATE, UP),
            offset=1.0,
        ),
    ),
    pairs=(VALUE, PairBinding(_SHARED_UP, _SHARED_DOWN), PairBinding(UP, DOWN)),
    fused=(*ATTENTION_FUSED, (_SHARED_GATE, _SHARED_UP), (GATE, UP)),
    padded=(),
)

QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    stages=tuple(_DECODER if stage is _DENSE else stage for stage in QWEN3_5.stages),
    carried=carried_along(_DECODER),
)
