"""A quantization job: model, recipe, samples and plan, and the writing of its checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..calib.samples.sample import Sample, has_images
from ..calib.samples.sample import fingerprint as samples_fingerprint
from ..calib.samples.selection import Draw
from ..common.atomic import atomic_folder, write_json
from ..common.distributed import SINGLE_PROCESS, Communicator, broadcast_result, rank_zero_first
from ..common.environment import device_name, versions
from ..common.output_dir import claim, staged_result
from ..common.progress import Reporter, Update
from ..model.processing.processor import Processor
from ..model.weight_files import digest_folder
from .checkpoint.formats.table import AUTO
from .checkpoint.loading import is_quantized
from .checkpoint.model_card import Base, write_model_card
from .checkpoint.pixel_budget import shared_setting, shares_video_settings
from .checkpoint.safetensors_folder.shards import REPORT_FILE
from .checkpoint.saving import save_finished
from .checkpoint.verify import first_tokens
from .config import BUILTIN_MODELS, CalibrationOptions
from .driver.blockwise import BlockwiseQuantizer
from .driver.journal import NAMES as JOURNAL_NAMES
from .driver.journal import Journal
from .driver.pipeline import check_format
from .driver.report import QuantReport
from .plan.plan import Plan, check_images, make_plan
from .plan.time_estimate import Probe, estimate_time
from .prepare.context import Context
from .prepare.running import FOLDER as PREPARED
from .prepare.running import Prepared, prepare_source
from .recipe.recipe import Recipe
from .recover.recovery_time import estimate_rounding
from .recover.work import RecoveryWork
from .resolve import (
    Source,
    encode_samples,
    open_samples,
    resolve_recipe,
    sample_processor,
)

QUANTIZED, RECOVERY = "quantized", "recovery"
"""Names in the work folder: the checkpoint before its recovery, and the recovery's own files."""
QUANTIZING = "quantizing"
"""Title of the stage."""
WORK_NAMES = (*JOURNAL_NAMES, PREPARED, QUANTIZED, RECOVERY)
"""Everything that a job writes into its work folder."""
SMOKE_TEST_TOKENS = 2
"""Tokens that a new checkpoint has to generate; each of them reads all weights once."""
SMOKE_TEST_QUESTION = "Which animal barks?"
# Both texts are stored in reports.
DRAWINGS = (
    "calibrated on built-in drawings, not on samples like those the model will see; "
    "give your own with --calib"
)
TEXT_ALONE = (
    "no calibration sample has an image or video, and the model is quantized for text alone; "
    "give samples with images"
)


def calibration_warnings(
    name: str, drawn: Draw[Sample], calibration: CalibrationOptions
) -> list[str]:
    """List the reasons for which calibration samples may not suit a model.

    Args:
        name: of the model.
        drawn: its samples.
        calibration: the options that they were drawn by.
    """
    warnings = []
    if are_foreign_drawings(name, drawn, calibration):
        warnings.append(DRAWINGS)
    if drawn.samples and not any(map(has_images, drawn.samples)):
        warnings.append(TEXT_ALONE)
    return warnings + [f"calibration sample skipped: {fault}" for fault in drawn.skipped]


def are_foreign_drawings(name: str, drawn: Draw[Sample], calibration: CalibrationOptions) -> bool:
    """Whether the samples are built-in drawings, for a model that was not trained on them."""
    are_drawings = bool(drawn.samples) and calibration.calib in (None, "synthetic")
    return are_drawings and name not in BUILTIN_MODELS


def find_recovery(
    recipe: Recipe, source: Source, samples_as: Processor, calibration: CalibrationOptions
) -> RecoveryWork | None:
    """Prepare the training that a recipe asks for after quantization; None: there is none.

    Raises:
        FileNotFoundError, ValueError: see `RecoveryWork.prepare`.
    """
    if recipe.recover is None or recipe.recover.is_blockwise:
        return None
    return RecoveryWork.prepare(recipe.recover, source, samples_as, source.settings, calibration)


def estimate_recovery(
    plan: Plan,
    recipe: Recipe,
    recovery: RecoveryWork | None,
    tokens: Sequence[int],
    rates: Probe,
) -> float:
    """Estimate the seconds of a recipe's recovery, of whichever kind; 0 without one.

    Args:
        plan: of the quantization.
        recipe: which has the recovery, or none.
        recovery: from `find_recovery`.
        tokens: of each calibration sample.
        rates: of this machine.
    """
    if recovery is not None:
        return recovery.estimate_seconds(plan, rates)
    if recipe.recover is not None:
        return estimate_rounding(plan, recipe.recover, tokens, rates.mac32)
    return 0.0


@dataclass(frozen=True)
class Job:
    """A checkpoint to be made, with everything that decides its bytes."""

    source: Source
    recipe: Recipe
    plan: Plan
    drawn: Draw[Sample]
    processor: Processor
    """Of the original model."""
    samples_as: Processor
    """Encodes the samples, at the largest area that the checkpoint will have."""
    calibration: CalibrationOptions
    recovery: RecoveryWork | None = None
    """Training of the quantized model; None: there is none, or blocks are tuned."""

    @classmethod
    def prepare(
        cls,
        source: Source,
        recipe_name: str,
        calibration: CalibrationOptions,
        format_: str = AUTO,
        tp: int | None = None,
    ) -> Job:
        """Resolve and check everything before any weights are read.

        Args:
            source: the original model.
            recipe_name: a preset or a TOML file.
            calibration: source and number of samples.
            format_: of the checkpoint, see `find_format`.
            tp: tensor-parallel size at serving time; None: the recipe's.

        Raises:
            FileNotFoundError: the recipe or the calibration source does not exist.
            ValueError: the model is quantized already, or the recipe, the format or the samples
                do not fit.
        """
        if is_quantized(source.folder):
            raise ValueError(f"{source.name}: is quantized already; start from the original model")
        recipe = resolve_recipe(recipe_name, calibration, source, tp)
        plan = make_plan(
            source.config, recipe, format=format_, carried=source.carried, folder=source.folder
        )
        check_format(plan, format_)
        samples_as = sample_processor(source, recipe)
        drawn = open_samples(recipe, calibration, samples_as)
        if drawn.samples:
            check_images(plan, present=any(map(has_images, drawn.samples)))
        recovery = find_recovery(recipe, source, samples_as, calibration)
        processor = source.processor()
        return cls(source, recipe, plan, drawn, processor, samples_as, calibration, recovery)

    @property
    def samples(self) -> list[Sample]:
        """The calibration samples."""
        return self.drawn.samples

    @property
    def all_samples(self) -> list[Sample]:
        """The samples of calibration and recovery, which the evaluation must not have."""
        return self.samples + ([] if self.recovery is None else self.recovery.samples)

    @property
    def base(self) -> Base:
        """The original model, for the model card."""
        return Base.of(self.source.name, self.source.folder)

    @property
    def warnings(self) -> list[str]:
        """See `calibration_warnings`; and what else the recipe's largest area changes."""
        warnings = calibration_warnings(self.source.name, self.drawn, self.calibration)
        if self.recovery is not None and not self.drawn.samples:
            name, drawn = self.source.name, self.recovery.drawn
            warnings += calibration_warnings(name, drawn, self.calibration)
        area = self.recipe.vision_input.max_pixels
        if area is not None and shares_video_settings(self.source.folder):
            warnings.append(shared_setting("the checkpoint", area))
        return warnings

    def warn(self, reporter: Reporter) -> None:
        """Show the warnings."""
        for warning in self.warnings:
            reporter.warn(warning)

    def describe_calibration(self) -> dict[str, Any]:
        """Describe the samples for the report, as JSON values."""
        is_foreign = are_foreign_drawings(self.source.name, self.drawn, self.calibration)
        return {
            "source": self.calibration.calib or "synthetic",
            "samples": len(self.samples),
            "with_images": sum(map(has_images, self.samples)),
            "warning": DRAWINGS if is_foreign else None,
            "warnings": self.warnings,
        }

    def estimate_seconds(self, rates: Probe) -> float:
        """Estimate the time of the quantization on a machine, see `time_estimate`.

        Recovery is counted, preparations are not.
        """
        solving, per_token = estimate_time(
            self.plan,
            rates,
            true_sequential=self.recipe.calibration.true_sequential,
            gradient=self.recipe.needs_gradient,
        )
        recovering = estimate_recovery(
            self.plan, self.recipe, self.recovery, self.drawn.tokens, rates
        )
        return solving + per_token * sum(self.drawn.tokens) + recovering

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that the checkpoint depends on, as JSON values."""
        files = [step.identify_files() for step in self.recipe.preparations]
        return {
            "model": digest_folder(self.source.folder),
            "recipe": self.recipe.to_dict(),
            **({"files": files} if any(files) else {}),
            "calibration": samples_fingerprint(self.samples),
            **self._recovery_fingerprint(),
            "pixels": [self.processor.min_pixels, self.processor.max_pixels],
            "dtype": self.source.settings.dtype,
            "format": self.plan.format,
            "device": device_name(self.source.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _recovery_fingerprint(self) -> dict[str, Any]:
        if self.recovery is None:
            return {}
        samples = samples_fingerprint(self.recovery.samples)
        return {"recovery": {"samples": samples, "teachers": self.recovery.fingerprint()}}

    def make(
        self,
        out: Path,
        fingerprint: dict[str, Any],
        reporter: Reporter,
        *,
        overwrite: bool = False,
        fresh: bool = False,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        """Prepare, quantize and write the checkpoint, resuming an interrupted job.

        Finished preparations and blocks are kept in a hidden folder next to `out`. `out` appears
        complete, with its fingerprint, or not at all. Several processes share the work; rank 0
        writes.

        Raises:
            ValueError: the hidden folder holds other work and neither flag is given, or the model
                or the samples are unusable.
        """
        folder = out.with_name(f".{out.name}.vlpress-work")
        flags: dict[str, Any] = {"overwrite": overwrite, "fresh": fresh}
        if broadcast_result(comm, lambda: claim(folder, fingerprint, own=WORK_NAMES, **flags)):
            reporter.note(f"resuming {out} from {folder}")
        self.warn(reporter)
        prepared = rank_zero_first(comm, lambda: self._prepare(folder, reporter))
        write: Callable[[Path], None] = partial(self._write_prepared, prepared)
        if not self.recipe.is_float:
            write = self._quantize(prepared, folder, reporter, comm)
        if self.recovery is not None:
            write = partial(self._recover, self.recovery, write, folder, reporter)

        def finish() -> None:
            with staged_result(out, fingerprint) as staged:
                write(staged)
                with reporter.stage("verifying the checkpoint") as update:
                    update(0, SMOKE_TEST_TOKENS, "")
                    text = self.verify(staged)
                    update(SMOKE_TEST_TOKENS, SMOKE_TEST_TOKENS, "")
            reporter.note(f"checkpoint verified by reloading; first tokens: {text!r}")
            shutil.rmtree(folder)

        broadcast_result(comm, finish)

    def _prepare(self, folder: Path, reporter: Reporter) -> Prepared:
        """Run the preparations of the recipe in the work folder; without any, take the source."""
        context = Context(self.recipe, self.samples, self.source.settings)
        return prepare_source(self.source.folder, folder, context, reporter)

    def _write_prepared(self, prepared: Prepared, staged: Path) -> None:
        """Write the result of a recipe that quantizes nothing: the prepared checkpoint."""
        report = QuantReport(self.recipe, self.plan, (), None, prepared=prepared.records)
        shutil.copytree(prepared.folder, staged, dirs_exist_ok=True)
        write_json(staged / REPORT_FILE, report.to_dict())
        write_model_card(staged, self.base)

    def _quantize(
        self, prepared: Prepared, folder: Path, reporter: Reporter, comm: Communicator
    ) -> Callable[[Path], None]:
        """Quantize the prepared checkpoint; returns the function that writes the result."""
        settings, source = self.source.settings, prepared.folder
        samples_as = self.samples_as
        if self.recipe.preparations:
            samples_as = sample_processor(Source.find(source, settings), self.recipe)
        quantizer = BlockwiseQuantizer(
            source,
            self.recipe,
            self.plan,
            encode_samples(self.samples if self.recipe.needs_calibration else (), samples_as),
            settings.device,
            settings.dtype,
            self.calibration.cache_bytes,
            comm,
        )
        journal = rank_zero_first(comm, lambda: Journal(folder, writes=comm.rank == 0))
        with reporter.stage(QUANTIZING) as update:
            report = quantizer.quantize(journal, self._with_block(update))
        report = replace(report, prepared=prepared.records)
        return lambda staged: save_finished(
            journal.tensors(), report, source, staged, base=self.base
        )

    def _recover(
        self,
        recovery: RecoveryWork,
        write: Callable[[Path], None],
        folder: Path,
        reporter: Reporter,
        staged: Path,
    ) -> None:
        """Write the quantized checkpoint into the work folder, and its recovery as the result."""
        quantized = folder / QUANTIZED
        if not quantized.is_dir():
            with atomic_folder(quantized, exclusive=True) as target:
                write(target)
        recovery.run(quantized, staged, folder / RECOVERY, reporter)

    def _with_block(self, update: Update) -> Update:
        """Return `update` with the number of the block that is quantized in front of the detail."""
        places = [(row.spec.stage, row.spec.block) for row in self.plan.quantized]
        blocks = list(dict.fromkeys(places))

        def report(done: int, total: int, detail: str) -> None:
            current = places[min(done, len(places) - 1)]
            where = f"block {blocks.index(current) + 1} of {len(blocks)}"
            update(done, total, f"{where}, {detail}" if detail else where)

        report(0, len(places), "")
        return report

    def verify(self, checkpoint: Path) -> str:
        """Load a checkpoint block by block and decode the first tokens of an answer.

        The prompt is the first calibration sample, or `SMOKE_TEST_QUESTION` if there is none.

        Raises:
            ValueError: its files are damaged, or its scores are not finite.
        """
        messages: Sequence[Any] = [{"role": "user", "content": SMOKE_TEST_QUESTION}]
        if self.samples:
            messages = self.samples[0].messages
        processor = self.samples_as
        if self.recipe.preparations:  # the tokenizer may be another one
            processor = sample_processor(Source.find(checkpoint, self.source.settings), self.recipe)
        tokens = first_tokens(
            checkpoint,
            processor.encode(messages),
            SMOKE_TEST_TOKENS,
            stop_ids=processor.stop_ids,
            device=self.source.settings.device,
            dtype=self.source.settings.dtype,
        )
        return processor.decode(tokens)
