"""Making quantized checkpoints, and looking into them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from .calib.samples import Sample
from .calib.samples import fingerprint as samples_fingerprint
from .eval.fingerprint import device_name, versions
from .folders import claim_result, digest_folder, place, read_json
from .model.checkpoint import CheckpointReader
from .model.config import ModelConfig
from .model.loading import choose_device, choose_dtype
from .model.processing import Processor
from .opening import Source, encode_samples, open_samples, resolve_recipe
from .progress import Reporter
from .quant.estimate import estimate_time, probe
from .quant.formats import gptq
from .quant.loading import is_quantized, resolve_folder
from .quant.pipeline import check_format, quantize_, save_quantized
from .quant.plan import Plan, make_plan
from .quant.recipe import Recipe
from .requests import BUILTIN_MODELS, Calibration, Settings

DRAWINGS = (
    "calibrated on built-in drawings, not on samples like those the model will see; "
    "give your own with --calib"
)
PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")


@dataclass(frozen=True)
class Job:
    """A checkpoint to be made, with everything that decides its bytes."""

    source: Source
    recipe: Recipe
    plan: Plan
    samples: list[Sample]
    processor: Processor
    calibration: Calibration
    format_: str

    @classmethod
    def prepare(
        cls, source: Source, recipe_name: str, calibration: Calibration, format_: str = "gptq"
    ) -> Job:
        """Find out all that can be wrong before any work is done.

        Raises:
            FileNotFoundError: the recipe or the calibration source does not exist.
            ValueError: the model is quantized already, or the recipe, the format or the samples
                do not fit.
        """
        if is_quantized(source.folder):
            raise ValueError(f"{source.name}: is quantized already; start from the original model")
        recipe = resolve_recipe(recipe_name, calibration, source.settings)
        plan = make_plan(source.config, recipe)
        check_format(plan, format_)
        samples = open_samples(recipe, calibration)
        return cls(source, recipe, plan, samples, source.processor(), calibration, format_)

    @property
    def is_foreign_to_drawings(self) -> bool:
        """Whether a model that never saw our drawings is calibrated on them."""
        drawn = bool(self.samples) and self.calibration.source in (None, "synthetic")
        return drawn and self.source.name not in BUILTIN_MODELS

    def fingerprint(self) -> dict[str, Any]:
        """What the checkpoint depends on, as JSON values."""
        return {
            "model": digest_folder(self.source.folder),
            "recipe": self.recipe.to_dict(),
            "calibration": samples_fingerprint(self.samples),
            "pixels": [self.processor.min_pixels, self.processor.max_pixels],
            "dtype": self.source.settings.dtype,
            "format": self.format_,
            "device": device_name(self.source.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def make(self, out: Path, fingerprint: dict[str, Any], reporter: Reporter) -> None:
        """Quantize and write; ``out`` appears whole, with its fingerprint, or not at all."""
        if self.is_foreign_to_drawings:
            reporter.warn(DRAWINGS)
        prompts = encode_samples(self.samples, self.processor)
        model = self.source.load()
        with reporter.stage("quantize") as update:
            report = quantize_(model, self.recipe, prompts, on_progress=update)
        with place(out, fingerprint) as staged:
            save_quantized(model, report, self.source.folder, staged, format=self.format_)


def quantize_to(
    out: Path,
    *,
    model: str,
    recipe: str,
    calibration: Calibration,
    settings: Settings,
    format_: str,
    overwrite: bool,
    fresh: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """Make a checkpoint folder, or find it finished; return what `inspect_checkpoint` says.

    Raises:
        FileNotFoundError: model, recipe or samples do not exist.
        ValueError: something does not fit, or ``out`` holds other work.
    """
    job = Job.prepare(Source.find(model, settings), recipe, calibration, format_)
    fingerprint = job.fingerprint()
    if claim_result(out, fingerprint, overwrite=overwrite, fresh=fresh):
        reporter.note(f"{out} is finished already")
    else:
        job.make(out, fingerprint, reporter)
    return inspect_checkpoint(out)


def plan_model(model: str, recipe: str, device: str, dtype: str) -> dict[str, Any]:
    """Say what a recipe would do to every linear layer of a model, reading no weights.

    The time is estimated from a probe of the device that lasts under a second.

    Raises:
        FileNotFoundError: no such model or recipe.
        ValueError: the recipe does not fit the model.
    """
    folder = resolve_folder(model)
    if is_quantized(folder):
        raise ValueError(f"{model}: is quantized already; vlpress inspect shows its layers")
    resolved = Recipe.resolve(recipe)
    config = ModelConfig.from_folder(folder)
    where = choose_device(device)
    kind = choose_dtype(dtype, config, CheckpointReader(folder))
    plan = make_plan(config, resolved, dtype=kind)
    check_format(plan)
    solve, per_token = estimate_time(
        plan, probe(where, kind), true_sequential=resolved.calibration.true_sequential
    )
    return {
        "model": model,
        "recipe": resolved.to_dict(),
        **plan.to_dict(),
        "time": {"solve_seconds": solve, "seconds_per_token": per_token},
    }


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Say what is in a quantized checkpoint, layer by layer.

    Checkpoints that vlpress wrote also carry each layer's error and why the others were kept.

    Raises:
        FileNotFoundError: no such folder, or an incomplete one.
        ValueError: it is not a GPTQ checkpoint.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give a quantized checkpoint")
    raw = ModelConfig.from_folder(folder).raw.get("quantization_config")
    if not isinstance(raw, dict) or raw.get("quant_method") != "gptq":
        found = raw.get("quant_method") if isinstance(raw, dict) else "no quantization"
        raise ValueError(f"{folder}: {found} found in config.json; give a GPTQ checkpoint")
    scheme = gptq.Settings.from_config(raw).scheme
    reader = CheckpointReader(folder)
    stored = folder / gptq.REPORT_FILE
    report = read_json(stored) if stored.is_file() else {}
    known = {layer["name"]: layer for layer in report.get("layers", [])}
    layers = []
    for name in gptq.layer_names(reader.names()):
        rows, out_features = reader.shape(f"{name}.qweight")
        layers.append(
            {
                "name": name,
                "scheme": scheme.label,
                "bits": scheme.bits,
                "in_features": rows * 32 // scheme.bits,
                "out_features": out_features,
                "bytes": sum(_tensor_bytes(reader, f"{name}.{part}") for part in PARTS),
                **known.get(name, {}),
            }
        )
    return {
        "checkpoint": str(folder),
        "scheme": scheme.to_dict(),
        "recipe": report.get("recipe"),
        "calibration": report.get("calibration"),
        "layers": layers,
        "kept": report.get("kept"),
        "bytes": sum(_tensor_bytes(reader, name) for name in reader.names()),
    }


def _tensor_bytes(reader: CheckpointReader, name: str) -> int:
    if name not in reader:
        return 0
    return prod(reader.shape(name)) * reader.dtype(name).itemsize
