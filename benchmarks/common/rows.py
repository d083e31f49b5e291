"""Rows of the accuracy table: settings (grid), methods, and scopes (layers)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlpress.quant.recipe.presets import PRESETS
from vlpress.quant.recipe.recipe import Recipe

SETTINGS: dict[str, dict[str, Any]] = {
    "w8a16": {"bits": 8, "group_size": 128},
    "w8a8": {"bits": 8, "group_size": -1, "activations": "dynamic"},
    "w8a8-static": {"bits": 8, "group_size": -1, "activations": "static"},
    "w4a8": {"bits": 4, "group_size": 128, "activations": "dynamic"},
    "w4a16": {"bits": 4, "group_size": 128},
    "w4a16-g32": {"bits": 4, "group_size": 32},
    "w4a16-asym": {"bits": 4, "group_size": 128, "symmetric": False},
    "w3a16": {"bits": 3, "group_size": 128},
    "w4a16-g64": {"bits": 4, "group_size": 64},
    "w3a16-g64": {"bits": 3, "group_size": 64},
}
"""Decoder layers; symmetric by default. Groups of 64 are for `real_weights.py` alone."""

GRIDS: dict[str, dict[str, Any]] = {
    **{f"int{bits}": {"bits": bits, "group_size": 128} for bits in range(2, 9)},
    "fp8": {"grid": "fp8", "activations": "dynamic"},
    "fp8-block": {"grid": "fp8", "group_size": 128, "scale_rows": 128, "activations": "dynamic"},
    "fp8a16": {"grid": "fp8"},
    "nvfp4": {"grid": "nvfp4", "activations": "dynamic"},
    "nvfp4a16": {"grid": "nvfp4"},
    "mxfp4": {"grid": "mxfp4", "activations": "dynamic"},
    "mxfp4a16": {"grid": "mxfp4"},
    "nf4": {"grid": "nf4", "group_size": 128},
    "ternary": {"grid": "ternary"},
    "pot4": {"grid": "pot4"},
}
"""Tables of levels for decoder layers, and integers, all on as many samples; measured on
request (`accuracy.py --settings`)."""

MASKS: dict[str, dict[str, Any]] = {
    f"int4-{keep}-{score}": {"bits": 4, "group_size": 128, "keep": keep, "score": score}
    for keep in (0.75, 0.5, "2:4")
    for score in ("magnitude", "wanda", "sparsegpt")
}
"""int4 in decoder layers with weights held at zero: keep and score. Columns are solved in their own
order, which patterns need; measured on request."""

SHRINKS: dict[str, dict[str, Any]] = {
    "mlp-0.875": {"width": "mlp", "keep": 0.875, "multiple": 32},
    "mlp-0.75": {"width": "mlp", "keep": 0.75, "multiple": 32},
    "layers-4": {"layers": 4},
    "mlp-0.67-int4": {"width": "mlp", "keep": 0.67},
}
"""Decoders with narrower MLPs, or with fewer layers (of 5 in tiny and tiny3): what stays; measured
on request. Methods are the score of what stays, with or without a refit. Names that end in an int
are quantized after it, with groups of 128."""
SHRINK_METHODS = {
    "width": ("wanda+refit", "wanda", "magnitude+refit", "magnitude", "random+refit", "random"),
    "layers": ("influence", "random"),
}

ROTATIONS: dict[str, dict[str, Any]] = {
    "rotated-w4a16": {"bits": 4, "group_size": 128},
    "rotated-w4a16-row": {"bits": 4, "group_size": -1},
    "rotated-w4a8": {"bits": 4, "group_size": 128, "activations": "dynamic"},
    "rotated-w4a8-row": {"bits": 4, "group_size": -1, "activations": "dynamic"},
    "rotated-w8a8-static": {"bits": 8, "group_size": -1, "activations": "static"},
    "rotated-nvfp4": {"grid": "nvfp4", "activations": "dynamic"},
}
"""Decoder layers with and without a rotation of the whole model; measured on request."""
ADAPTER_RANK = 4
"""Rank that costs about as many bits in layers as narrow as those of the built-in models as groups
of 32 instead of 128 do, or rank 32 in a model of 3 billion weights."""
_NVFP4 = {"grid": "nvfp4", "activations": "dynamic"}
ADAPTERS: dict[str, dict[str, Any]] = {
    **{
        f"int{bits}-g128{name}": {"bits": bits, "group_size": 128, **adapter}
        for bits in (3, 4)
        for name, adapter in (
            ("", {}),
            ("-eora", {"adapter_rank": ADAPTER_RANK, "adapter": "eora"}),
            ("-svd", {"adapter_rank": ADAPTER_RANK, "adapter": "svd"}),
        )
    },
    **{f"int{bits}-g32": {"bits": bits, "group_size": 32} for bits in (3, 4)},
    "nvfp4-plain": _NVFP4,
    "nvfp4-eora": _NVFP4 | {"adapter_rank": ADAPTER_RANK, "adapter": "eora"},
    "nvfp4-svd_first": _NVFP4 | {"adapter_rank": ADAPTER_RANK, "adapter": "svd_first"},
}
"""Low-rank adapters beside groups, and beside 4-bit activations, in decoder layers; measured on
request."""
BESIDE = {
    **{f"int{bits}-g128-{kind}": f"int{bits}-g32" for bits in (3, 4) for kind in ("eora", "svd")},
    "nvfp4-eora": "nvfp4-plain",
    "nvfp4-svd_first": "nvfp4-plain",
}
"""Setting without an adapter that a setting is compared with, sample by sample: the one of nearest
size, or for NVFP4, whose groups are fixed, the plain one."""
RECOVERED: dict[str, dict[str, Any]] = {
    f"int{bits}-recovered": {"bits": bits, "group_size": 128} for bits in (2, 3)
}
"""Integers in decoder layers that training recovers afterwards; measured on request."""
RECOVERIES: dict[str, dict[str, Any]] = {
    "scales": {"params": "scales", "samples": 4096, "epochs": 1},
    "scales,norms": {"params": ["scales", "norms"], "samples": 4096, "epochs": 1},
    "rounding": {"params": "rounding"},
    "freeze": {"params": "rounding", "freeze": [0.5, 0.75, 0.875, 1.0]},
}
"""What is trained, by the last part of a method `gptaq>scales`; without it, the start."""

FLOAT = "float"
"""Method that keeps the weights in float, so that rounded activations alone remain."""
ACTIVATIONS = "activations alone"
"""Scope of its rows."""

PRESET = "preset"
WHOLE = ("w4a16-all",)
"""Presets with steps of their own for every part; measured on request, by the method `preset`."""

SAMPLE_FACTORS = {"w4a16": 4, "w3a16": 4}
"""Factor on the number of samples for settings of the decoder alone: there methods are close, a few
samples dominate the mean, and the peers are compared. Indistinguishable methods are compared in a
run-off (`choice.py`)."""

FP4 = ("nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16")
HELD_OUT_FACTORS = dict.fromkeys(FP4, 4)
"""Factor on the number of held-out samples alone: a few drawings make the mean, and GPTQ is asked
for half of the divergence of rounding."""

ALPHA = 0.8
"""Alpha of SmoothQuant if it is fixed: the value of the peers' examples."""

DOWN = "smoothquant-down"
"""Transform of the inputs of `down_proj`, which no rotation reaches."""
TRANSFORMS: dict[str, dict[str, Any]] = {
    "awq": {"method": "awq"},
    "smoothquant": {"method": "smoothquant", "alpha": ALPHA},
    "smoothquant-search": {"method": "smoothquant", "alpha": "search"},
    DOWN: {
        "method": "smoothquant",
        "alpha": "search",
        "targets": ["model.layers.*.mlp.down_proj"],
    },
}
ROTATES: dict[str, dict[str, Any]] = {
    "rotate": {"method": "rotate"},
    "rotate8": {"method": "rotate", "seeds": 8, "samples": 64},
}
"""Rotations of the whole model, before the transforms."""

WEIGHT_ONLY = ("rtn", "gptq", "gptaq", "awq+rtn", "awq+gptq", "awq+gptaq")
INTEGER = ("rtn", "gptq", "smoothquant+gptq", "smoothquant-search+gptq", "smoothquant+gptaq")
METHODS: dict[str, tuple[str, ...]] = {
    "w8a16": ("rtn", "gptq"),
    "w8a8": INTEGER,
    "w8a8-static": ("rtn", "gptq", "smoothquant+gptq", "smoothquant-search+gptq"),
    "w4a8": ("gptaq", *INTEGER),
    "w4a16": WEIGHT_ONLY,
    "w4a16-g32": WEIGHT_ONLY,
    "w4a16-asym": ("awq+rtn", "gptaq"),
    "w3a16": WEIGHT_ONLY,
}
VISION_METHODS = {
    "w8a8": ("rtn", "gptq", "smoothquant-search+gptq"),
    "w4a8": ("smoothquant-search+gptq",),
    "w4a16": ("rtn", "gptq", "gptaq"),
    "w3a16": ("gptq", "gptaq"),
}
"""Methods of settings with vision tower and merger, which always have 8 bits per output row."""
SCORED = ("rtn", "gptq", "gptaq", "smoothquant-search+gptq", PRESET)
UNSCORED = ("w4a16-g32", "w4a16-asym")
"""Methods with benchmark scores, and settings without: evaluation takes most of the time."""
GRID_METHODS = ("rtn", "gptq", "gptaq")
"""Methods of tables of levels; rounding and the better of the solvers are scored."""
ADAPTER_METHODS = ("rtn", "gptq")
SMOOTHED_METHODS = (*ADAPTER_METHODS, "smoothquant+rtn", "smoothquant+gptq")
"""Methods of adapters; with smoothing where activations are rounded, as by SVDQuant."""
MASK_METHODS = ("rtn", "gptq")
"""Methods of masks; rounding has no score of a solver."""
ROTATION_METHODS = ("rtn", "rotate+rtn", "gptq", "rotate+gptq")
"""Methods of all settings of rotations."""
BEST_OF_8 = ("rotated-w4a8-row", "rotated-w8a8-static", "rotated-nvfp4")
"""Settings in which the best of eight draws is taken too."""
RECOVERED_METHODS = (
    *("gptq", "gptq>scales", "gptaq"),
    *(f"gptaq>{name}" for name in RECOVERIES),
)
VISION = ["tower"]
DECODER = ["model.layers.*"]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    setting: str
    method: str
    """Steps in order, joined by a plus sign."""
    scope: str = "decoder"

    @property
    def key(self) -> str:
        """File name of the row."""
        return f"{self.setting}/{self.method}" + (
            "+vision" if self.scope.endswith("vision") else ""
        )

    @property
    def judged_closely(self) -> bool:
        """Whether the row has more samples, see `SAMPLE_FACTORS`."""
        return self.setting in SAMPLE_FACTORS and self.scope == "decoder"

    @property
    def scored(self) -> bool:
        """Whether the benchmarks are evaluated with its checkpoint."""
        if self.setting in ROTATIONS:
            return False
        if self.setting in MASKS or self.setting in ADAPTERS:
            return self.method == "gptq"
        if self.setting in SHRINKS:
            return self.method in ("wanda+refit", "influence", "random")
        if self.setting in RECOVERED:
            return self.method in ("gptaq", "gptaq>scales")
        if self.setting in GRIDS:  # the better of the solvers in addition, see `accuracy.py`
            return self.method == "rtn"
        return self.method in SCORED and self.setting not in UNSCORED

    @property
    def beside(self) -> Row | None:
        """The row whose divergence this one's is compared with, sample by sample."""
        if self.setting in BESIDE:
            return replace(self, setting=BESIDE[self.setting])
        start, _, recovery = self.method.partition(">")
        if recovery:
            return replace(self, method=start)
        return self.unrotated

    @property
    def unrotated(self) -> Row | None:
        """The row without its rotation, and all inputs smoothed if some are; None: it has none."""
        first, _, rest = self.method.partition("+")
        rest = rest.replace(DOWN, "smoothquant-search")
        return replace(self, method=rest) if first in ROTATES else None

    def sample_counts(self, validation: int, held_out: int) -> dict[str, int]:
        """Number of samples of each set; rows with the vision tower have no more than others."""
        setting = "" if self.scope == "decoder+vision" else self.setting
        return sample_counts(setting, validation, held_out)

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """Calibration seeds of the row: of integers and tables that no format holds, the first."""
        grid = GRIDS.get(self.setting, {}).get("grid", "")
        if self.setting in RECOVERED:
            return list(seeds[:1])
        all_seeds = self.setting not in GRIDS or grid.startswith(("fp8", "nvfp4", "mxfp4"))
        return list(seeds if all_seeds else seeds[:1])

    def recipe(self, seed: int, samples: int) -> Recipe:
        """Build the recipe of this row.

        Args:
            seed: seed of the calibration samples.
            samples: number of calibration samples.
        """
        calibration = {"samples": samples, "seed": seed}
        if self.setting in WHOLE:
            preset = PRESETS[self.setting] | {"name": self.key, "calibration": calibration}
            return Recipe.from_dict(preset)
        if self.setting in SHRINKS:
            steps = self._shrink_steps()
            return Recipe.from_dict({"name": self.key, "calibration": calibration, "step": steps})
        method, _, recovery = self.method.partition(">")
        *transforms, solver = ("rtn" if method == FLOAT else method).split("+")
        decoder = (SETTINGS | GRIDS | MASKS | ADAPTERS | RECOVERED | ROTATIONS)[self.setting]
        activations = decoder.get("activations", "none")
        tower = {"bits": 8, "group_size": -1, "activations": activations}
        parts = [(DECODER, decoder)]
        if self.scope == "decoder+vision":
            parts.insert(0, (VISION, tower))
        of_all = [t for targets, _ in parts for t in targets]
        steps = [ROTATES[name] for name in transforms if name in ROTATES]
        steps += [
            {"targets": of_all, **TRANSFORMS[name]} for name in transforms if name in TRANSFORMS
        ]
        ordered = {"act_order": False} if self.setting in MASKS and solver != "rtn" else {}
        steps += [
            {"method": solver, "targets": targets, **scheme, **ordered} for targets, scheme in parts
        ]
        return Recipe.from_dict(
            {
                "name": self.key,
                "calibration": calibration,
                "step": steps,
                **({"recover": RECOVERIES[recovery]} if recovery else {}),
            }
        )

    def _shrink_steps(self) -> list[dict[str, Any]]:
        """The step that shrinks the decoder, and the one that quantizes the result."""
        score, _, refit = self.method.partition("+")
        options = SHRINKS[self.setting]
        shrink = {"method": "shrink", **options, "score": score}
        steps = [shrink | {"refit": bool(refit)} if "width" in options else shrink]
        grid = GRIDS.get(self.setting.rpartition("-")[2])
        return [*steps, *([] if grid is None else [{"method": "gptq", **grid}])]


def sample_counts(setting: str, validation: int, held_out: int) -> dict[str, int]:
    """Number of samples of each set for a setting."""
    times = SAMPLE_FACTORS.get(setting, 1)
    more = HELD_OUT_FACTORS.get(setting, times)
    return {"validation": times * validation, "held_out": more * held_out}


def grid_rows() -> list[Row]:
    """Rows of tables of levels."""
    weights = [Row(setting, name) for setting in GRIDS for name in GRID_METHODS]
    rounding = [setting for setting, grid in GRIDS.items() if "activations" in grid]
    return weights + [Row(setting, FLOAT, ACTIVATIONS) for setting in rounding]


def mask_rows() -> list[Row]:
    """Rows of masks."""
    return [
        Row(setting, name)
        for setting, scheme in MASKS.items()
        for name in MASK_METHODS
        if name != "rtn" or scheme["score"] != "sparsegpt"
    ]


def shrink_rows() -> list[Row]:
    """Rows of decoders with fewer channels or layers."""
    return [
        Row(setting, method)
        for setting, options in SHRINKS.items()
        for method in SHRINK_METHODS["width" if "width" in options else "layers"]
    ]


def rotation_rows() -> list[Row]:
    """Rows of rotations, each beside the same without; with int8 inputs, SmoothQuant too."""
    rows = []
    for setting, scheme in ROTATIONS.items():
        names = list(ROTATION_METHODS)
        if "bits" in scheme and "activations" in scheme:
            names += ["smoothquant-search+gptq", f"rotate+{DOWN}+gptq"]
        if setting in BEST_OF_8:
            names.append("rotate8+rtn")
        rows += [Row(setting, name) for name in names]
    return rows


def adapter_rows() -> list[Row]:
    """Rows of adapters."""
    return [
        Row(setting, name)
        for setting in ADAPTERS
        for name in (SMOOTHED_METHODS if setting.startswith("nvfp4") else ADAPTER_METHODS)
    ]


def recovered_rows() -> list[Row]:
    """Rows of training after quantization."""
    return [Row(setting, method) for setting in RECOVERED for method in RECOVERED_METHODS]


def whole_rows() -> list[Row]:
    """Rows of presets for the whole model."""
    return [Row(setting, PRESET, "all") for setting in WHOLE]


def all_rows() -> list[Row]:
    """All rows of the table."""
    alone = [Row(setting, name) for setting, names in METHODS.items() for name in names]
    seeing = [
        Row(setting, name, "decoder+vision")
        for setting, names in VISION_METHODS.items()
        for name in names
    ]
    return alone + seeing
