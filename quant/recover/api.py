"""The verbs `recover` and `teach` of the Python API."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from ...calib.samples.draw import draw_samples
from ...calib.samples.sample import fingerprint as samples_fingerprint
from ...common.environment import device_name, versions
from ...common.options import verb
from ...common.output_dir import claim, claim_result, refuse_foreign, sole_use, staged_result
from ...common.progress import Reporter, reporting
from ...common.threads import use_threads
from ...model.weight_files import digest_folder
from ..api import inspect_checkpoint
from ..checkpoint.loading import is_quantized
from ..checkpoint.verify import first_tokens
from ..config import CalibrationOptions, ModelSettings, RecoverOptions, TeachOptions
from ..job import SMOKE_TEST_TOKENS, calibration_warnings
from ..recipe.recover import Recover
from ..resolve import Source, encode_samples, sample_length
from .answers import FEATURES
from .teachers import HEADER, Teacher
from .trainer import STATE
from .work import TEACHERS, RecoveryWork
from .work import teach as store

DEFAULT_SEED = 1000


@verb(RecoverOptions)
def recover(options: RecoverOptions) -> dict[str, Any]:
    """Train few parameters of a quantized checkpoint and write a new one in the same format.

    The checkpoint appears complete or not at all; an interrupted call resumes when it is repeated.

    Returns:
        The content of the checkpoint, see `inspect`.

    Raises:
        FileNotFoundError: a model, a teacher or the samples do not exist.
        ValueError: an option does not fit, the training diverges, or `out` holds other work.
    """
    use_threads(options.threads)
    out, settings = Path(options.out), options.group(ModelSettings)
    flags: dict[str, Any] = {"overwrite": options.overwrite, "fresh": options.fresh}
    with sole_use(out), reporting(options.progress) as reporter:
        student = Source.find(options.checkpoint, settings)
        if not is_quantized(student.folder):
            raise ValueError(f"{student.name}: is not quantized; recover trains quantized models")
        if out.resolve() == student.folder.resolve():
            raise ValueError(f"output {out} is the checkpoint, which is not changed; give another")
        base = None if options.base is None else Source.find(options.base, settings)
        work = RecoveryWork.prepare(
            _training(options), base, student.processor(), settings, _calibration(options)
        )
        fingerprint = _fingerprint(student, work)
        for warning in calibration_warnings(
            str(options.base or student.name), work.drawn, _calibration(options)
        ):
            reporter.warn(warning)
        if claim_result(out, fingerprint, **flags):
            reporter.note(f"{out} is finished already")
        else:
            _make(student, work, out, fingerprint, reporter, flags)
    return inspect_checkpoint(out)


def _training(options: RecoverOptions) -> Recover:
    """Return the options as the table of a recipe has them."""
    seed = DEFAULT_SEED if options.seed is None else options.seed
    return Recover(
        params=tuple(options.params),
        lr=options.lr,
        batch=options.batch,
        teachers=None if options.teacher is None else tuple(options.teacher),
        weights=None if options.weight is None else tuple(options.weight),
        targets=options.targets,
        samples=options.samples,
        epochs=options.epochs,
        seed=seed,
    )


def _calibration(options: RecoverOptions | TeachOptions) -> CalibrationOptions:
    return CalibrationOptions(
        calib=options.calib, skip_bad_samples=options.skip_bad_samples, memory=options.memory
    )


def _fingerprint(student: Source, work: RecoveryWork) -> dict[str, Any]:
    return {
        "checkpoint": digest_folder(student.folder),
        "recover": work.options.to_dict(),
        "samples": samples_fingerprint(work.samples),
        "teachers": work.fingerprint(),
        "pixels": [work.processor.min_pixels, work.processor.max_pixels],
        "dtype": student.settings.dtype,
        "device": device_name(student.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def _make(
    student: Source,
    work: RecoveryWork,
    out: Path,
    fingerprint: dict[str, Any],
    reporter: Reporter,
    flags: dict[str, Any],
) -> None:
    """Train and write the checkpoint; its files until then are in a hidden folder beside `out`."""
    folder = out.with_name(f".{out.name}.vlpress-work")
    if claim(folder, fingerprint, own=(TEACHERS, STATE, FEATURES), **flags):
        reporter.note(f"resuming {out} from {folder}")
    with staged_result(out, fingerprint) as staged:
        work.run(student.folder, staged, folder, reporter)
        tokens = first_tokens(
            staged,
            work.processor.encode(work.samples[0].messages),
            SMOKE_TEST_TOKENS,
            stop_ids=work.processor.stop_ids,
            device=student.settings.device,
            dtype=student.settings.dtype,
        )
    text = work.processor.decode(tokens)
    reporter.note(f"checkpoint verified by reloading; first tokens: {text!r}")
    shutil.rmtree(folder)


@verb(TeachOptions)
def teach(options: TeachOptions) -> dict[str, Any]:
    """Store a model's log-probabilities along the answers of samples, as a teacher of `recover`.

    An interrupted call resumes when it is repeated.

    Returns:
        `folder`, the number of `samples`, and the `kind` of the rows: full or lumped.

    Raises:
        FileNotFoundError: the model or the samples do not exist.
        ValueError: a sample is unusable, or the folder holds another teacher or other files.
    """
    use_threads(options.threads)
    out, calibration = Path(options.out), _calibration(options)
    with sole_use(out), reporting(options.progress) as reporter:
        _refuse_other(out)
        source = Source.find(options.model, options.group(ModelSettings))
        processor = source.processor()
        drawn = draw_samples(
            calibration.calib,
            n=options.samples,
            seed=DEFAULT_SEED if options.seed is None else options.seed,
            measure=lambda sample: sample_length(sample, processor),
            skip_bad=calibration.skip_bad_samples,
        )
        for warning in calibration_warnings(source.name, drawn, calibration):
            reporter.warn(warning)
        prompts = encode_samples(drawn.samples, processor)
        store(
            source,
            drawn.samples,
            prompts,
            out,
            reporter,
            batch=options.batch,
            memory=calibration.cache_bytes,
        )
        shutil.rmtree(out / FEATURES)
    return {"folder": str(out), "samples": len(prompts), "kind": Teacher(out).kind}


def _refuse_other(out: Path) -> None:
    """Refuse a folder with other files than a store, finished or begun.

    Raises:
        ValueError: see `refuse_foreign`.
    """
    if not out.is_dir() or [path.name for path in out.iterdir()] != [FEATURES]:
        refuse_foreign(out, HEADER)
