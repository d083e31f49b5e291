"""Qwen3-VL with a mixture of experts (arXiv 2511.21631) in the place of the decoder's MLPs."""

from __future__ import annotations

from dataclasses import replace

from ..config import ModelConfig
from ..moe import EXPERT_LINEARS
from ..sizes import ExpertSizes
from . import steps
from .entries import BlockLinear, ExpertTensor, KeptLinear, NormBinding, PairBinding
from .qwen3_vl import QWEN3_VL
from .stage import Checkpoints

_DENSE = QWEN3_VL.decoder
ROUTER_TAP = "router"
_ROUTER_REASON = "it is the router, whose rounding errors would send tokens to other experts"
GATE, UP, DOWN = (f"mlp.experts.{{}}.{name}" for name in EXPERT_LINEARS)


def _sizes(config: ModelConfig) -> ExpertSizes:
    assert config.text.experts is not None
    return config.text.experts


def _expert_linear(name: str, inputs: str, outputs: str, tap: str) -> BlockLinear:
    tensor, part = EXPERT_LINEARS[name.rpartition(".")[2]]
    return BlockLinear(
        name,
        inputs,
        outputs,
        bias=False,
        tap=tap,
        input_split=tap == "expert_down",
        experts=ExpertTensor(
            f"mlp.experts.{tensor}",
            lambda config: _sizes(config).count,
            lambda config: _sizes(config).active,
            part,
            lambda config: _sizes(config).input_major,
        ),
    )


ROUTER = KeptLinear("mlp.gate", "hidden", "experts", ROUTER_TAP, _ROUTER_REASON)
EXPERT_LAYERS = (
    _expert_linear(GATE, "hidden", "expert", "expert_gate_up"),
    _expert_linear(UP, "hidden", "expert", "expert_gate_up"),
    _expert_linear(DOWN, "expert", "hidden", "expert_down"),
)

_DECODER = replace(
    _DENSE,
    linears=(
        *(linear for linear in _DENSE.linears if linear.name.startswith("self_attn.")),
        *EXPERT_LAYERS,
    ),
    kept=(ROUTER,),
    checkpoints=Checkpoints(("o", "expert_gate_up", "expert_down"), steps.complete_decoder_layer),
    norms=(
        *(norm for norm in _DENSE.norms if norm.norm == "input_layernorm"),
        NormBinding("post_attention_layernorm", (ROUTER.name, GATE, UP)),
    ),
    pairs=(
        *(pair for pair in _DENSE.pairs if pair.source == "self_attn.v_proj"),
        PairBinding(UP, DOWN),
    ),
    fused=(*(group for group in _DENSE.fused if "self_attn.q_proj" in group), (GATE, UP)),
    padded=(),
)

QWEN3_VL_MOE = replace(
    QWEN3_VL,
    name="qwen3_vl_moe",
    stages=tuple(_DECODER if stage is _DENSE else stage for stage in QWEN3_VL.stages),
)
