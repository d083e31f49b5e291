"""Roles of tensors in a rotated model: reading or writing a rotated space, by the family's table.

The residual stream is written by the token embedding, by the last linear layers of the mergers and
by those of attention and MLPs; the linear layers after a norm read it, the output head too. An
RMSNorm without weight commutes with a rotation, so its weight is folded into its readers first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ....model.config import ModelConfig
from ....model.families import (
    EMBEDDING,
    BlockLinear,
    KeptLinear,
    NormBinding,
    PairBinding,
    Stage,
    family_of,
)

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Families whose roles are all in their tables; tests compare the functions of their models."""
RESIDUAL = "hidden"
"""Key of `widths` for the width of the residual stream."""
FINAL_NORM = "model.norm"


@dataclass(frozen=True)
class Role:
    """What is folded into one tensor."""

    norm: str | None = None
    """Name of the tensor of the norm's weight, which multiplies the input features."""
    reads: bool = False
    """Its input features are those of the residual stream (the embedding's row is one vector)."""
    writes: bool = False
    """Its output features are those of the residual stream."""
    values: str | None = None
    """Attention block whose values are the output features."""
    context: str | None = None
    """Attention block whose heads are the input features."""
    input_major: bool = False
    """Experts are stored as `[experts, in_features, out_features]`."""


@dataclass(frozen=True)
class Roles:
    """The roles of a model by name of the tensor; biases have output features alone."""

    offset: float
    """Added to the weights of norms: 1 if they are stored zero-centred."""
    tensors: dict[str, Role] = field(default_factory=dict)
    attentions: set[str] = field(default_factory=set)
    """Attention blocks whose values are rotated."""

    @property
    def norms(self) -> set[str]:
        """Names of the weights of folded norms."""
        return {role.norm for role in self.tensors.values() if role.norm is not None}


def find_roles(config: ModelConfig, *, residual: bool, values: bool) -> Roles:
    """Find all roles.

    Args:
        config: of the model, with a head of its own if `residual`.
        residual: rotate the residual stream (R1).
        values: rotate the values of attention heads (R2); only where `rotates_values`.
    """
    roles = Roles(config.text.norm_offset)
    if residual:
        roles.tensors[f"{EMBEDDING}.weight"] = Role(reads=True)
    for stage in family_of(config).stages:
        for index, block in enumerate(stage.blocks(config)):
            bindings = stage.bindings(config, index)
            for path, each, name in _linears(stage, config, index):
                role = Role()
                if residual:
                    role = _residual_role(stage, block, each, name, bindings)
                if values:
                    role = _with_values(role, block, name, bindings)
                if role != Role():
                    _add(roles, path, role, each, block, config)
    return roles


def rotates_values(config: ModelConfig) -> bool:
    """Whether a rotation can pass from `v_proj` to `o_proj`: no gate is between them."""
    return not config.text.query_gate


def _linears(
    stage: Stage, config: ModelConfig, index: int
) -> Iterator[tuple[str, BlockLinear | KeptLinear, str]]:
    """Yield the linear layers of a block: module path, entry of the table, path in the block."""
    block = stage.block_path(index)
    for kept in stage.block_kept(config, index):
        yield f"{block}.{kept.name}", kept, kept.name
    for linear in stage.block_linears(config, index):
        for name in linear.names(config):
            yield f"{block}.{name}" if name else block, linear, name


def _residual_role(
    stage: Stage,
    block: str,
    each: BlockLinear | KeptLinear,
    name: str,
    bindings: tuple[NormBinding | PairBinding, ...],
) -> Role:
    """Return the role of a layer in the residual stream; tower layers only write there."""
    writes = each.outputs == RESIDUAL
    if stage.part == "tower" or each.inputs != RESIDUAL:
        return Role(writes=writes)
    norms = [b.norm for b in bindings if isinstance(b, NormBinding) and name in b.linears]
    (norm,) = [f"{block}.{norm}" for norm in norms] if stage.part == "decoder" else [FINAL_NORM]
    return Role(norm=f"{norm}.weight", reads=True, writes=writes)


def _with_values(
    role: Role, block: str, name: str, bindings: tuple[NormBinding | PairBinding, ...]
) -> Role:
    """Add the rotation of the values of the block's attention."""
    for pair in bindings:
        if isinstance(pair, PairBinding) and pair.grouped_heads:
            if name == pair.source:
                role = replace(role, values=block)
            if name == pair.target:
                role = replace(role, context=block)
    return role


def _add(
    roles: Roles,
    path: str,
    role: Role,
    each: BlockLinear | KeptLinear,
    block: str,
    config: ModelConfig,
) -> None:
    """Add the tensors of a layer: weight and bias, or that of all experts."""
    roles.tensors[f"{path}.weight"] = role  # of an expert, too, which may be stored apart
    if role.writes or role.values:
        roles.tensors[f"{path}.bias"] = Role(writes=role.writes, values=role.values)
    if role.values:
        roles.attentions.add(role.values)
    if isinstance(each, BlockLinear) and each.experts is not None:
        major = each.experts.input_major(config)
        roles.tensors[f"{block}.{each.experts.name}"] = replace(role, input_major=major)
