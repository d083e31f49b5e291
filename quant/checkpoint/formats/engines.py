"""The engines that load a checkpoint, by format and scheme, as tried with `make interop`.

Only outcomes that were observed are in the table; anything else is `untested`. The version is part
of the statement: another version may load more or less.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ....model.families import FAMILIES, Part
from ...recipe.grids import GRIDS
from ...recipe.scheme import QuantScheme, Scheme, TableScheme
from .contents import Contents

Outcome = Literal["loads", "refuses", "untested"]
ANY_BITS = tuple(range(2, 9))
VISION: tuple[Part, ...] = ("tower",)
DECODER: tuple[Part, ...] = ("decoder",)
EMBEDDING: tuple[Part, ...] = ("embedding",)


@dataclass(frozen=True)
class Rule:
    """Outcome for layers of one kind in one of some formats with one of some schemes."""

    outcome: Outcome
    formats: tuple[str, ...]
    bits: tuple[int, ...] = ANY_BITS
    symmetric: tuple[bool, ...] = (True, False)
    activations: tuple[str, ...] = ("none", "dynamic", "static")
    parts: tuple[Part, ...] = (*DECODER, "head", *VISION)
    """A quantized embedding is read by other code than a linear layer, and has rules of its own."""
    note: str = ""
    kind: str = QuantScheme.kind
    grids: tuple[str, ...] = tuple(GRIDS)
    """Of table schemes."""
    blocks: tuple[bool, ...] = (False, True)
    """Of table schemes: whether a scale belongs to several rows."""
    experts: bool = False
    """Whether it is about experts of a mixture of experts; if not, it is about all layers."""

    def applies(self, format: str, scheme: Scheme, part: Part, *, expert: bool) -> bool:
        """Whether the rule is about layers of a part with this scheme in this format."""
        return (
            format in self.formats
            and expert >= self.experts
            and scheme.kind == self.kind
            and scheme.bits in self.bits
            and scheme.symmetric in self.symmetric
            and scheme.activations in self.activations
            and part in self.parts
            and (not isinstance(scheme, TableScheme) or self._has_table(scheme))
        )

    def _has_table(self, scheme: TableScheme) -> bool:
        return scheme.grid in self.grids and (scheme.scale_rows > 1) in self.blocks


@dataclass(frozen=True)
class Engine:
    """An engine in the version that was tried."""

    name: str
    version: str
    device: str
    rules: tuple[Rule, ...]
    """The first that applies to a layer decides; a layer without one is untested."""
    families: tuple[str, ...] = ("qwen2_5_vl",)
    """Families that it was tried with. It may refuse a scheme whatever the family is, but that it
    loads one is known of these only."""


@dataclass(frozen=True)
class Support:
    """Outcome for a whole checkpoint: that of its least supported layer."""

    engine: str
    version: str
    device: str
    outcome: Outcome
    note: str

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return asdict(self)


NOT_SERVED = "no engine of today has this family"

GPTQS = ("gptq", "gptq_v2")
TENSORS = ("compressed-tensors",)
FLOAT = ("none",)
INT8 = ("dynamic", "static")
EXPERTS = (
    "after the conversion of experts is registered, without which they are random "
    "(docs/use-the-checkpoint.md)"
)

ENGINES = (
    Engine(
        "vLLM",
        "0.32.0",
        "CPU",
        (
            Rule(
                "refuses",
                (*GPTQS, *TENSORS),
                (8,),
                activations=FLOAT,
                note="its CPU build has no kernel for 8-bit weights with 16-bit activations",
            ),
            Rule("refuses", GPTQS, (3,), note="its check of gptq settings refuses 3 bits"),
            Rule("refuses", GPTQS, symmetric=(False,), note="it reads symmetric gptq only"),
            Rule("refuses", TENSORS, (3,), note="its CPU build has no kernel for 3 bits"),
            Rule("loads", GPTQS, (4,), (True,), FLOAT, DECODER),
            Rule("loads", ("awq",), (4,), activations=FLOAT, parts=DECODER),
            Rule("loads", TENSORS, (4,), (True, False), FLOAT, DECODER),
            Rule("loads", TENSORS, (4,), (True,), ("dynamic",), DECODER),
            Rule("loads", TENSORS, (8,), (True,), INT8),
            Rule(
                "loads",
                TENSORS,
                activations=("dynamic",),
                parts=DECODER,
                kind=TableScheme.kind,
                grids=("fp8",),
                blocks=(False,),
            ),
            Rule(
                "refuses",
                TENSORS,
                kind=TableScheme.kind,
                grids=("fp8",),
                blocks=(True,),
                note="its CPU build needs AMX for blocks of FP8",
            ),
            Rule(
                "refuses",
                TENSORS,
                kind=TableScheme.kind,
                grids=("nvfp4", "mxfp4"),
                note="its CPU build has no kernel for FP4",
            ),
            Rule(
                "untested", TENSORS, parts=EMBEDDING, note="its lookup of packed rows is for GPUs"
            ),
        ),
        families=("qwen2_5_vl", "qwen3_vl", "qwen3_5"),
    ),
    Engine(
        "transformers",
        "5.23.0",
        "CPU",
        (
            Rule("loads", TENSORS, note=EXPERTS, experts=True),
            Rule("loads", TENSORS, note=EXPERTS, experts=True, kind=TableScheme.kind),
            Rule("loads", TENSORS, symmetric=(True,), note="with compressed-tensors installed"),
            Rule(
                "refuses",
                TENSORS,
                parts=EMBEDDING,
                note="it initializes embeddings as if all had a float weight; with "
                "CompressedTensorsConfig(dequantize=True) it has one scheme for all layers",
            ),
            Rule(
                "loads",
                TENSORS,
                activations=FLOAT,
                note="with quantization_config=CompressedTensorsConfig(dequantize=True)",
            ),
            Rule(
                "loads",
                TENSORS,
                parts=DECODER,
                note="with quantization_config=CompressedTensorsConfig(dequantize=True)",
                kind=TableScheme.kind,
            ),
            Rule("untested", (*GPTQS, "awq"), note="asks for optimum and gptqmodel"),
        ),
        families=("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "llava", "llava_qwen2"),
    ),
    Engine(
        "GPTQModel",
        "7.6.0",
        "CPU",
        (
            Rule("loads", GPTQS, (3, 4, 8), (True,), FLOAT, DECODER),
            Rule("loads", ("gptq_v2",), (4,), (False,), FLOAT, DECODER),
            Rule("loads", ("awq",), (4,), activations=FLOAT, parts=DECODER),
        ),
    ),
    Engine(
        "auto-gptq",
        "0.7.1",
        "CPU",
        (
            Rule("loads", ("gptq",), (3, 4, 8), (True,), FLOAT, DECODER),
            Rule("loads", ("gptq",), (4,), (False,), FLOAT, DECODER),
        ),
    ),
    Engine(
        "mlx-vlm",
        "0.7.10",
        "CPU",
        (
            Rule("loads", TENSORS, (3, 4, 8), (True,), FLOAT, DECODER),
            Rule("refuses", TENSORS, symmetric=(False,), note="it reads symmetric weights only"),
            Rule("refuses", TENSORS, parts=VISION, note="it reads one scheme for all layers"),
            Rule("refuses", (*GPTQS, "awq"), note="it reads compressed-tensors only"),
            Rule("refuses", TENSORS, activations=INT8, note="it reads weight-only checkpoints"),
        ),
    ),
)


def engine_support(contents: Contents, format: str) -> list[Support]:
    """Look up which engines load a checkpoint.

    Args:
        contents: its layers and schemes.
        format: its format, a key of `FORMATS`.

    Returns:
        One entry per engine, in the order of the table.
    """
    layers = {
        (contents.schemes[name], spec.part, ".experts." in name): None
        for name, spec in contents.quantized.items()
    }
    return [_support(engine, contents.config.family, format, layers) for engine in ENGINES]


def _support(
    engine: Engine, family: str, format: str, layers: Iterable[tuple[Scheme, Part, bool]]
) -> Support:
    rules = [_first_rule(engine, format, *layer) for layer in layers]
    if family not in engine.families:
        note = f"tried with {', '.join(engine.families)}"
        if not FAMILIES[family].served:
            note = NOT_SERVED
        unknown = Rule("untested", (format,), note=note)
        rules = [unknown if rule.outcome == "loads" else rule for rule in rules]
    outcomes: list[Outcome] = [rule.outcome for rule in rules]
    worst: Outcome = "loads"
    for outcome in ("untested", "refuses"):
        if outcome in outcomes:
            worst = outcome
    notes = dict.fromkeys(rule.note for rule in rules if rule.outcome == worst and rule.note)
    return Support(engine.name, engine.version, engine.device, worst, "; ".join(notes))


def _first_rule(engine: Engine, format: str, scheme: Scheme, part: Part, expert: bool) -> Rule:
    for rule in engine.rules:
        if rule.applies(format, scheme, part, expert=expert):
            return rule
    return Rule("untested", (format,))
