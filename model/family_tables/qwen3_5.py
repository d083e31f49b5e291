"""Qwen3.5, 3.6 and 3.8: linear attention in most layers of the decoder, the tower of Qwen3-VL.

The decoder ("Gated Delta Networks", arXiv 2412.06464) has two kinds of layers, see
`linear_attention.py` and `text.py`. The tower has no DeepStack.
"""

from __future__ import annotations

from dataclasses import replace

from ..config import ModelConfig
from ..deepstack_tower import DeepstackTower
from ..text import TextModel
from .entries import BlockLinear, KeptLinear, NormBinding, PairBinding
from .qwen3_vl import QWEN3_VL
from .stage import Blocks, Stage
from .table import Family

LINEAR, FULL = "linear_attention", "full_attention"

_DENSE = QWEN3_VL.decoder
_VISION, _, _MERGER = QWEN3_VL.tower


def layer_type(config: ModelConfig, block: int) -> str:
    """Return the kind of a decoder layer."""
    return config.text.layer_type(block)


ATTENTION = (
    BlockLinear(
        "self_attn.q_proj",
        "hidden",
        "gated_q",
        False,
        "qkv",
        kind=FULL,
        row_parts=("head", "head"),  # of each head: the query, and the gate of its output
    ),
    BlockLinear("self_attn.k_proj", "hidden", "kv", False, "qkv", kind=FULL),
    BlockLinear("self_attn.v_proj", "hidden", "kv", False, "qkv", kind=FULL),
    BlockLinear("self_attn.o_proj", "q", "hidden", False, "o", input_split=True, kind=FULL),
    BlockLinear(
        "linear_attn.in_proj_qkv",
        "hidden",
        "linear_qkv",
        False,
        "in",
        kind=LINEAR,
        row_parts=("linear_k", "linear_k", "linear_v"),
    ),
    BlockLinear("linear_attn.in_proj_z", "hidden", "linear_v", False, "in", kind=LINEAR),
    BlockLinear(
        "linear_attn.out_proj", "linear_v", "hidden", False, "o", input_split=True, kind=LINEAR
    ),
)

_TOO_FEW_ROWS = "it has one row per head, which give the decay and the strength of every update"
KEPT = (
    KeptLinear("linear_attn.in_proj_b", "hidden", "linear_heads", "in", _TOO_FEW_ROWS, kind=LINEAR),
    KeptLinear("linear_attn.in_proj_a", "hidden", "linear_heads", "in", _TOO_FEW_ROWS, kind=LINEAR),
)

ATTENTION_NORMS = (
    NormBinding(
        "input_layernorm",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        offset=1.0,
    ),
    NormBinding(
        "input_layernorm",
        (
            "linear_attn.in_proj_qkv",
            "linear_attn.in_proj_z",
            "linear_attn.in_proj_b",
            "linear_attn.in_proj_a",
        ),
        offset=1.0,
    ),
    # One weight for all heads, which out_proj reads next to each other.
    NormBinding("linear_attn.norm", ("linear_attn.out_proj",), tiles_of="linear_heads"),
)

# The gate multiplies each channel of the attention's output, so values stay bound to it. In layers
# with linear attention, convolution, SiLU and norm lie between values and out_proj.
VALUE = PairBinding("self_attn.v_proj", "self_attn.o_proj", grouped_heads=True)

ATTENTION_FUSED = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
)

_DECODER = replace(
    _DENSE,
    linears=(*ATTENTION, *(each for each in _DENSE.linears if each.name.startswith("mlp."))),
    kept=KEPT,
    norms=(
        *ATTENTION_NORMS,
        NormBinding("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), offset=1.0),
    ),
    pairs=(VALUE, PairBinding("mlp.up_proj", "mlp.down_proj")),
    fused=(*ATTENTION_FUSED, ("mlp.gate_proj", "mlp.up_proj")),
    kind=layer_type,
    cached_kind=FULL,
)


def carried_along(decoder: Stage) -> tuple[Blocks, ...]:
    """Return the blocks of the module for multi-token prediction, see `mtp.py`.

    Args:
        decoder: its layers have the linear layers of those with full attention.
    """
    names = {x.name for x in decoder.linears if x.kind in (None, FULL)}
    kept = tuple(replace(x, kind=None) for x in decoder.kept if x.kind in (None, FULL))
    return (
        Blocks(
            name="mtp projection",
            part="mtp",
            path="mtp.fc",
            count=lambda config: min(1, config.text.mtp_layers),
            linears=(BlockLinear("", "twice_hidden", "hidden", False, "fc"),),
        ),
        Blocks(
            name="mtp",
            part="mtp",
            path="mtp.layers.{}",
            count=lambda config: config.text.mtp_layers,
            linears=tuple(replace(x, kind=None) for x in decoder.linears if x.name in names),
            kept=kept,
            fused=tuple(group for group in decoder.fused if names.issuperset(group)),
        ),
    )


QWEN3_5 = Family(
    name="qwen3_5",
    stages=(_VISION, _MERGER, _DECODER, QWEN3_VL.head),
    build_tower=DeepstackTower,
    build_decoder=TextModel,
    mrope_layout="interleaved",
    carried=carried_along(_DECODER),
    carried_parts=lambda config: {"mtp.": "mtp"},
)
