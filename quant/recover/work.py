"""Recovery from folder to folder: store the teachers, train, write the checkpoint.

Everything is kept in a work folder until the result is complete; an interrupted recovery resumes
there and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ...calib.disk_activation_store import DiskActivationStore
from ...calib.samples.draw import draw_samples
from ...calib.samples.sample import Sample, content_digest
from ...calib.samples.selection import Draw
from ...common.progress import Reporter
from ...model.loading import choose_device, stored_dtype
from ...model.processing.inputs import Prompt
from ...model.processing.processor import Processor
from ...model.weight_files import digest_folder
from ..checkpoint.loading import is_quantized, load_quantized, open_model
from ..checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from ..config import CalibrationOptions, ModelSettings
from ..plan.plan import Plan
from ..plan.time_estimate import Probe
from ..recipe.recover import NAME, SELF, Recover
from ..resolve import Source, encode_samples, sample_length
from .answers import FEATURES, Answers
from .checkpoint import Replacing, write_recovered
from .recovery import recover_
from .recovery_time import estimate_training
from .teachers import Teacher, is_store, store_teacher

TEACHERS = "teachers"
TEACHER_BATCH = 16
"""Samples that a teacher reads at once."""


@dataclass(frozen=True)
class Teaching:
    """One teacher: a model, or a store."""

    weight: float
    source: Source | None
    """The model; None: it is a store."""
    store: Path | None

    def fingerprint(self) -> dict[str, Any]:
        """Return what its log-probabilities depend on, as JSON values."""
        if self.store is not None:
            return {"store": Teacher(self.store).header, "weight": self.weight}
        assert self.source is not None
        return {"model": digest_folder(self.source.folder), "weight": self.weight}


@dataclass(frozen=True)
class RecoveryWork:
    """A recovery with everything that decides its result but the checkpoint."""

    options: Recover
    drawn: Draw[Sample]
    processor: Processor
    """Of the student."""
    teachers: tuple[Teaching, ...]
    settings: ModelSettings
    memory: int
    """Bytes of features that are cached in memory; all of them are in files."""

    @classmethod
    def prepare(
        cls,
        options: Recover,
        base: Source | None,
        processor: Processor,
        settings: ModelSettings,
        calibration: CalibrationOptions,
    ) -> RecoveryWork:
        """Draw the samples and find the teachers; no weights are read.

        Args:
            options: not rounding.
            base: the float model that the student was made from; None: it is not known.
            processor: of the student.
            settings: how models are loaded.
            calibration: the source of the samples.

        Raises:
            FileNotFoundError: a teacher or the samples do not exist.
            ValueError: the float model is needed and not known, or a sample is unusable.
        """
        assert options.samples is not None and options.seed is not None
        drawn = draw_samples(
            calibration.calib,
            n=options.samples,
            seed=options.seed,
            measure=lambda sample: sample_length(sample, processor),
            skip_bad=calibration.skip_bad_samples,
        )
        shares = options.teacher_shares
        teachers = tuple(_find_teacher(name, share, base, settings) for name, share in shares)
        return cls(options, drawn, processor, teachers, settings, calibration.cache_bytes)

    @property
    def samples(self) -> list[Sample]:
        """The samples, those that are held out included."""
        return self.drawn.samples

    def fingerprint(self) -> list[dict[str, Any]]:
        """Return what the teachers are, as JSON values; the samples are in the job's own."""
        return [teacher.fingerprint() for teacher in self.teachers]

    def estimate_seconds(self, plan: Plan, rates: Probe) -> float:
        """Estimate the time of the training on a machine, see `recovery_time`."""
        device = choose_device(self.settings.device)
        in_float32 = training_dtype(self.settings.dtype, device) == "fp32"
        mac = rates.mac32 if in_float32 else rates.mac
        return estimate_training(plan, self.options, self.drawn.tokens, mac)

    def run(self, checkpoint: Path, target: Path, work: Path, reporter: Reporter) -> None:
        """Recover a quantized checkpoint into an existing empty folder.

        Args:
            checkpoint: folder of the student.
            target: of the result.
            work: folder of everything until then.
            reporter: shows the progress.

        Raises:
            ValueError: see `recover_` and `store_teacher`.
        """
        work.mkdir(parents=True, exist_ok=True)
        prompts = encode_samples(self.samples, self.processor)
        stores = [
            (self._stored(number, teacher, prompts, work, reporter), teacher.weight)
            for number, teacher in enumerate(self.teachers)
        ]
        device = choose_device(self.settings.device)
        student = load_quantized(
            checkpoint,
            device=device,
            dtype=training_dtype(self.settings.dtype, device),
            kernels=False,
        )
        opened = QuantizedCheckpoint(checkpoint)
        with (
            closing(self._features(work, device)) as features,
            reporter.stage(f"recovering {', '.join(self.options.params)}") as update,
        ):
            result = recover_(
                student,
                self.options,
                self.samples,
                prompts,
                stores,
                stored=stored_dtype(opened.config, opened.reader),
                folder=work,
                features=features,
                update=update,
            )
        record = {**(opened.record or {}), NAME: dict(result.record)}
        replacing = Replacing(result.weights, result.floats, result.adapters)
        write_recovered(checkpoint, target, replacing, record)
        losses = result.record["held_out_loss"]
        reporter.note(
            f"recovery: held-out loss {losses[0]:.4g} at the start, {min(losses):.4g} after "
            f"epoch {result.record['best_epoch']} of {self.options.epochs}"
        )

    def _stored(
        self,
        number: int,
        teacher: Teaching,
        prompts: Sequence[Prompt],
        work: Path,
        reporter: Reporter,
    ) -> Path:
        """Return the store of a teacher; compute it if it is a model."""
        if teacher.store is not None:
            return teacher.store
        assert teacher.source is not None
        folder = work / TEACHERS / str(number)
        is_own = self.options.teacher_shares[number][0] == SELF
        if not is_own:
            prompts = encode_samples(self.samples, teacher.source.processor())
        teach(teacher.source, self.samples, prompts, folder, reporter, memory=self.memory)
        return folder

    def _features(self, work: Path, device: torch.device) -> DiskActivationStore:
        return DiskActivationStore(work / FEATURES, device, self.memory)


def teach(
    source: Source,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    folder: Path,
    reporter: Reporter,
    *,
    batch: int = TEACHER_BATCH,
    memory: int = 0,
) -> None:
    """Store the log-probabilities of a model along the answers of samples.

    Args:
        source: the model, float or quantized.
        samples: samples with their answers.
        prompts: the samples as the model reads them.
        folder: of the store; an interrupted one is continued.
        reporter: shows the progress.
        batch: samples at once.
        memory: bytes of features that are cached in memory.

    Raises:
        ValueError: the folder holds another store, or the scores are not finite.
    """
    device, digests = source.device, [content_digest(sample) for sample in samples]
    fingerprint = {"model": digest_folder(source.folder), "dtype": source.settings.dtype}
    with (
        reporter.stage(f"storing the teacher {source.name}") as update,
        closing(DiskActivationStore(folder / FEATURES, device, memory)) as features,
    ):
        update(0, len(samples), "")
        dtype = training_dtype(source.settings.dtype, device)
        model = open_model(source.folder, device=device, dtype=dtype)
        answers = Answers(model, prompts, features)
        store_teacher(folder, answers, digests, fingerprint, batch=batch, update=update)
        features.keep(())


def training_dtype(name: str, device: torch.device) -> str:
    """Return the dtype to train in: `auto` is fp32 on the CPU, elsewhere the checkpoint's."""
    return "fp32" if name == "auto" and device.type == "cpu" else name


def _find_teacher(
    name: str, weight: float, base: Source | None, settings: ModelSettings
) -> Teaching:
    if is_store(Path(name)):
        return Teaching(weight, None, Path(name))
    if name != SELF:
        source = Source.find(name, replace(settings, max_pixels=None, min_pixels=None))
        return Teaching(weight, source, None)
    if base is None:
        raise ValueError(
            "recover: the teacher self is the float model that was quantized, which is not known; "
            "give it with --base, or other teachers, or --targets answers"
        )
    if is_quantized(base.folder):
        raise ValueError(f"{base.name}: is quantized; give the float model as --base")
    return Teaching(weight, base, None)
