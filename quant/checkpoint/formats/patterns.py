"""Regular expressions that select layers under all names that engines use.

Engines rename layers: a prefix may precede `layers.` and `visual.`; q, k and v are fused to
`qkv_proj`, gate and up to `gate_up_proj`, projections of linear attention to `in_proj_qkvz` and
`in_proj_ba`. Expressions are matched from the start of a name.
"""

import re
from collections.abc import Collection

from ....model.config import ModelConfig
from ....model.families import EMBEDDING, Blocks, Family, family_of

_ENGINE_NAMES = {
    "self_attn.q_proj": "self_attn.qkv_proj",
    "self_attn.k_proj": "self_attn.qkv_proj",
    "self_attn.v_proj": "self_attn.qkv_proj",
    "mlp.gate_proj": "mlp.gate_up_proj",
    "mlp.up_proj": "mlp.gate_up_proj",
    "mlp.shared_expert.gate_proj": "mlp.shared_expert.gate_up_proj",
    "mlp.shared_expert.up_proj": "mlp.shared_expert.gate_up_proj",
    "attn.qkv": "attn.qkv_proj",
    "linear_attn.in_proj_qkv": "linear_attn.in_proj_qkvz",
    "linear_attn.in_proj_z": "linear_attn.in_proj_qkvz",
    "linear_attn.in_proj_b": "linear_attn.in_proj_ba",
    "linear_attn.in_proj_a": "linear_attn.in_proj_ba",
}

HEAD = r".*lm_head.*"
EMBEDDING_PATTERN = r"(.*\.)?embed_tokens$"
_ANYWHERE = r"(.*\.)?"
_MTP = r"mtp\."
"""Start of names to leave out where `mtp.layers.0` is quantized: they end as those of the model."""


def excluding_patterns(
    config: ModelConfig, names: Collection[str], *, carried: bool = False
) -> list[str]:
    """Return expressions for the named layers.

    A stage, or the whole tower, gets a single expression if all of its layers are named.

    Args:
        config: of the model.
        names: canonical layer names.
        carried: see `layer_patterns`.
    """
    names, family = set(names), family_of(config)
    tower = {spec.name for spec in family.linears(config) if spec.part == "tower"}
    patterns = []
    if tower <= names:
        patterns += [rf".*{re.escape(module)}\..*" for module in family.tower_modules]
        names = names - tower
    for stage in family.stages:
        members = {
            f"{stage.block_path(index)}.{name}"
            for index in stage.indices(config)
            for name in stage.members(config, index)
        }
        if stage.part != "head" and members <= names:
            patterns.append(rf"{_prefix(family, stage, carried)}{_path(family, stage)[0]}.*")
        else:
            patterns += _in_stage(stage, config, names, set(), carried)
    return patterns


def carried_patterns(config: ModelConfig, names: Collection[str], whole: str) -> list[str]:
    """Return expressions for carried layers: one for all if all are named, and those of each.

    Engines build the module for multi-token prediction apart from the model and rename its layers;
    some look for a rule about the whole, others for each layer.

    Args:
        config: of the model.
        names: module paths of these layers, see `CarriedTensors.layers`.
        whole: the expression for all of them.
    """
    names, family = set(names), family_of(config)
    if not names:
        return []
    tables = [*family.carried_linears(config), *(spec for spec, _ in family.carried_kept(config))]
    listed = {spec.name for spec in tables}
    own = [p for run in family.carried for p in _in_stage(run, config, names, set())]
    own += [rf"{_ANYWHERE}{re.escape(name)}$" for name in sorted(names - listed)]
    of_mtp = {spec.name for spec in tables if spec.part == "mtp"}
    return [whole, *own] if of_mtp and names >= of_mtp else own


def layer_patterns(
    config: ModelConfig,
    names: Collection[str],
    either: Collection[str] = (),
    *,
    carried: bool = False,
) -> list[str]:
    """Return expressions that together match the named layers and no other module.

    Args:
        config: of the model.
        names: canonical layer names.
        either: layers that may match or not, which allows shorter expressions.
        carried: whether carried layers are quantized, which other expressions must not match.
    """
    names, either, family = set(names), set(either), family_of(config)
    patterns = [
        p for stage in family.stages for p in _in_stage(stage, config, names, either, carried)
    ]
    patterns += [p for run in family.carried for p in _in_stage(run, config, names, either)]
    return [EMBEDDING_PATTERN, *patterns] if EMBEDDING in names else patterns


def _path(family: Family, stage: Blocks) -> tuple[str, str]:
    """Return the escaped path of a stage's blocks in files, before and after their index.

    The prefix `model.` is left out, as not every naming has it, and so is `visual.` in families
    whose files call the tower by other names.
    """
    root = "model" if "visual" in family.tower_modules else "(model|visual)"
    path = re.sub(rf"^{root}\.", "", dict(family.file_paths).get(stage.path, stage.path))
    before, _, after = (re.escape(part) for part in path.partition("{}"))
    return before, after


def _prefix(family: Family, stage: Blocks, carried: bool) -> str:
    """Return the expression before a path: any start but those of other runs of blocks.

    Args:
        family: of the stage.
        stage: the stage.
        carried: whether carried layers are quantized; those of a carried run are never left out.
    """
    own = _path(family, stage)[0]
    others = {_path(family, run)[0] for run in family.stages} - {own}
    starts = [path.removesuffix(own) for path in sorted(others) if path.endswith(f".{own}")]
    starts += [_MTP] if carried else []
    return "".join(rf"(?!(.*\.)?{start})" for start in starts) + _ANYWHERE


def _in_stage(
    stage: Blocks,
    config: ModelConfig,
    names: set[str],
    either: set[str],
    carried: bool = False,
) -> list[str]:
    blocks, family = stage.blocks(config), family_of(config)
    prefix = _prefix(family, stage, carried)
    if stage.part == "head":
        return [HEAD] if set(blocks) & names else []
    before, after = _path(family, stage)
    # Blocks of another run with the same path must not match.
    runs = [run for run in (*family.stages, *family.carried) if run.path == stage.path]
    is_whole = sum(run.count(config) > 0 for run in runs) < 2
    first = stage.first(config)
    named = [each.name for each in stage.linears] + [each.name for each in stage.kept]
    if not any(named):  # each block is a linear layer itself
        return [rf"{prefix}{before}$"] if set(blocks) & names else []
    by_blocks: dict[str, list[str]] = {}
    of_block = [stage.members(config, index) for index in stage.indices(config)]
    members = [(linear.name, linear.names(config)) for linear in stage.linears]
    members += [(kept.name, (kept.name,)) for kept in stage.kept]
    for of_all, of_each in members:
        indices: dict[str, str] = {}
        for name in of_each:
            hits = [i for i, block in enumerate(blocks) if f"{block}.{name}" in names]
            misses = [i for i, own in enumerate(of_block) if i not in hits and name in own]
            if hits and is_whole and all(f"{blocks[i]}.{name}" in either for i in misses):
                indices[name] = r"\d+"
            elif hits:
                indices[name] = f"({'|'.join(str(first + i) for i in hits)})"
        if len(indices) > 1 and len(indices) == len(of_each):
            indices = _of_all_experts(of_all, indices)
        for name, index in indices.items():
            by_blocks.setdefault(index, []).append(name)
    patterns = []
    for index, linears in by_blocks.items():
        aliases = [_ENGINE_NAMES[name] for name in linears if name in _ENGINE_NAMES]
        ends = (_expression(name) for name in [*linears, *aliases])
        path = f"{before}{index}{after}" if "{}" in stage.path else before
        patterns.append(rf"{prefix}{path}\.({'|'.join(dict.fromkeys(ends))})$")
    return patterns


def _of_all_experts(name: str, indices: dict[str, str]) -> dict[str, str]:
    """Join the layers of all experts to `name`, which has {}, if they have equal indices."""
    of_all = set(indices.values())
    return {name: of_all.pop()} if len(of_all) == 1 else indices


def _expression(name: str) -> str:
    return r"\d+".join(re.escape(part) for part in name.split("{}"))
