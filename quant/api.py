"""The verbs `quantize`, `plan`, `export`, `inspect` and `push` of the Python API."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..common.distributed import broadcast_result, rank_zero_first
from ..common.options import verb
from ..common.output_dir import claim_result, shared_use, sole_use, staged_result
from ..common.progress import Reporter, peak_memory, reporting
from ..common.threads import use_threads
from ..model.byte_parts import checkpoint_bytes
from ..model.checkpoint import CheckpointReader
from ..model.weight_files import digest_folder
from .checkpoint.export import export_into
from .checkpoint.formats.table import choose_format
from .checkpoint.loading import is_quantized, resolve_folder
from .checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from .config import (
    DeploymentOptions,
    ExportOptions,
    InspectOptions,
    ModelSettings,
    PlanOptions,
    PushOptions,
    QuantizeOptions,
)
from .deployment.export import check_deployment, check_options, read_deployment, write_deployment
from .deployment.source import ExportSource
from .deployment.table import DEPLOYMENT_FORMATS
from .driver.pipeline import check_format
from .job import Job, estimate_recovery, find_recovery
from .plan.experts import expected_tokens
from .plan.packed_size import packed_parts
from .plan.plan import make_plan
from .plan.sample_counts import count_samples
from .plan.time_estimate import cached_probe, estimate_time
from .prepare.result import KEY, describe_prepared, prepared_record
from .recipe.adapter import ADAPTER
from .recipe.recover import NAME as RECOVER
from .recipe.vision_input import MAX_PIXELS
from .resolve import Source, resolve_recipe, sample_processor


@verb(QuantizeOptions)
def quantize(options: QuantizeOptions) -> dict[str, Any]:
    """Quantize a model and write the checkpoint, which appears complete or not at all.

    An interrupted call resumes when it is repeated, and ends in the same bytes; a finished
    checkpoint is returned as it is. Processes that torchrun started share the work.

    Returns:
        The content of the checkpoint, see `inspect`.

    Raises:
        FileNotFoundError: model, recipe or samples do not exist.
        ValueError: an option does not fit, `out` holds other work, or is in use.
        ConnectionAbortedError: another process of a distributed run ended.
    """
    out, settings = Path(options.out), options.group(ModelSettings)
    flags: dict[str, Any] = {"overwrite": options.overwrite, "fresh": options.fresh}
    with shared_use(out, progress=options.progress) as (comm, reporter):
        use_threads(options.threads)
        source = rank_zero_first(comm, lambda: Source.find(options.model, settings))
        job = rank_zero_first(
            comm,
            lambda: Job.prepare(source, options.recipe, options, options.format, options.tp),
        )
        fingerprint = broadcast_result(comm, job.fingerprint)
        if broadcast_result(comm, lambda: claim_result(out, fingerprint, **flags)):
            reporter.note(f"{out} is finished already")
            job.warn(reporter)
        else:
            job.make(out, fingerprint, reporter, **flags, comm=comm)
        return inspect_checkpoint(out)


@verb(PlanOptions)
def plan(options: PlanOptions) -> dict[str, Any]:
    """Compute the effect of a recipe on every linear layer of a model, without loading it.

    Memory and disk are computed for the samples that would be drawn; the packed size is estimated
    from a few rows of the weights, the time from the rates of this machine, see `cached_probe`.
    The time of an evaluation is not part of it.

    Returns:
        Rows for the layers, sizes in bytes, times in seconds.

    Raises:
        FileNotFoundError: no such model, recipe or calibration source.
        ValueError: the recipe or a sample does not fit the model.
    """
    use_threads(options.threads)
    settings = options.group(ModelSettings)
    source = Source.find(options.model, settings)
    if is_quantized(source.folder):
        raise ValueError(f"{source.name}: is quantized already; vlpress inspect shows its layers")
    recipe = resolve_recipe(options.recipe, options, source, options.tp)
    dtype = source.dtype
    layers = make_plan(
        source.config,
        recipe,
        dtype=dtype,
        format=options.format,
        carried=source.carried,
        folder=source.folder,
    )
    check_format(layers, options.format)
    process = peak_memory()  # before the samples, which the plan counts itself, are loaded
    rates, entry = cached_probe(source.device, dtype, refresh=options.refresh)
    solve, per_token = estimate_time(
        layers,
        rates,
        true_sequential=recipe.calibration.true_sequential,
        gradient=recipe.needs_gradient,
    )
    counts = count_samples(recipe, options, source)
    with reporting(options.progress) as reporter:
        for warning in counts.warnings:
            reporter.warn(warning)
    tokens, longest = sum(counts.tokens), max(counts.tokens, default=0)
    training = find_recovery(recipe, source, sample_processor(source, recipe), options)
    recovering = estimate_recovery(layers, recipe, training, counts.tokens, rates)
    return {
        "model": source.name,
        "recipe": recipe.to_dict(),
        **layers.to_dict(),
        "time": {"solve_seconds": solve, "seconds_per_token": per_token},
        "rates": {**asdict(rates), "is_cached": entry.is_reused, "origin": entry.note},
        "estimate": {
            "samples": len(counts.tokens),
            "with_images": counts.with_images,
            "tokens": tokens,
            "seconds": solve + per_token * tokens + recovering,
            "recovery_seconds": recovering,
            "process_bytes": process,
            "peak_bytes": process + layers.memory.peak(tokens, longest, options.cache_bytes),
            "scratch_bytes": layers.memory.scratch(tokens)
            + layers.packed_bytes
            + layers.prepared_bytes,
            "output_bytes": layers.candidate_bytes,
            "container_parts": packed_parts(layers, CheckpointReader(source.folder), dtype),
            "experts": expected_tokens(layers.rows, tokens),
        },
    }


@verb(ExportOptions)
def export(options: ExportOptions) -> dict[str, Any]:
    """Convert a checkpoint to another format; nothing is rounded again.

    Checkpoint formats take quantized checkpoints, those of other runtimes float ones too.

    Returns:
        The content of the new checkpoint, see `inspect`; of a format of another runtime the
        description in its `export.json`.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the format cannot hold it, `out` holds other work, or is in use.
    """
    use_threads(options.threads)
    out = Path(options.out)
    with sole_use(out), reporting(options.progress) as reporter:
        folder = resolve_folder(str(options.checkpoint))
        # Before any tensor is read: an unsuitable format is refused at once.
        name, write = _export_writer(folder, options, reporter)
        fingerprint = {
            "checkpoint": digest_folder(folder),
            "format": name,
            **asdict(options.group(DeploymentOptions)),
            "vlpress": __version__,
        }
        if claim_result(out, fingerprint, overwrite=options.overwrite, fresh=options.fresh):
            reporter.note(f"{out} is finished already")
        else:
            with staged_result(out, fingerprint) as staged:
                write(staged)
    if options.format in DEPLOYMENT_FORMATS:
        return read_deployment(out)
    return inspect_checkpoint(out)


def _export_writer(
    folder: Path, options: ExportOptions, reporter: Reporter
) -> tuple[str, Callable[[Path], None]]:
    """Return the format's name and the function that writes the export into an empty folder.

    Raises:
        ValueError: see `export`.
    """
    if deployment := DEPLOYMENT_FORMATS.get(options.format):
        source = ExportSource(folder)
        check_deployment(deployment, source, options)
        write = partial(write_deployment, deployment, source, options=options, reporter=reporter)
        return deployment.name, write
    check_options(options)
    format_ = choose_format(QuantizedCheckpoint(folder).contents(), options.format)
    adapter = not options.no_adapter
    return format_.name, lambda target: export_into(target, folder, format_.name, adapter=adapter)


@verb(InspectOptions)
def inspect(options: InspectOptions) -> dict[str, Any]:
    """Describe a quantized checkpoint layer by layer, or a prepared one.

    Returns:
        Per layer bits, scheme and bytes; for checkpoints written by vlpress also each layer's
        error and the reasons of the layers that are not quantized.

    Raises:
        FileNotFoundError: no such folder, or an incomplete one.
        ValueError: it is not quantized, or of an unknown format.
    """
    return inspect_checkpoint(Path(options.checkpoint))


@verb(PushOptions)
def push(options: PushOptions) -> dict[str, Any]:
    """Upload a quantized checkpoint with its model card to a model hub.

    Returns:
        `repo`, `url` and `commit`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is not a complete quantized checkpoint, or the hub refuses.
        ConnectionError: the hub does not answer.
    """
    from .checkpoint.push import push_checkpoint  # imports an HTTP client, a tenth of a second

    return push_checkpoint(
        Path(options.checkpoint), options.repo, public=options.public, revision=options.revision
    )


def inspect_checkpoint(folder: Path) -> dict[str, Any]:
    """Describe a quantized or prepared checkpoint, see `inspect`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give a quantized checkpoint")
    if (prepared := prepared_record(folder)) is not None:
        return describe_prepared(folder, prepared)
    if not is_quantized(folder):
        raise ValueError(
            f"{folder}: no quantization found in config.json; give a quantized checkpoint"
        )
    checkpoint = QuantizedCheckpoint(folder)
    report = checkpoint.record or {}
    recorded = {layer["name"]: layer for layer in report.get("layers", [])}
    contents, reader = checkpoint.contents(), checkpoint.reader
    adapter = checkpoint.adapter
    of_adapters = {} if adapter is None else adapter.bytes
    parts = (*checkpoint.format.parts, "bias")
    layers = [
        {
            "scheme": contents.schemes[name].label,
            **recorded.get(name, {}),
            "name": name,
            "bits": contents.schemes[name].bits,
            "in_features": spec.in_features,
            "out_features": spec.out_features,
            "bytes": sum(
                reader.nbytes(tensor)
                for tensor in (f"{name}.{part}" for part in parts)
                if tensor in reader
            )
            + of_adapters.get(name, 0),
        }
        for name, spec in contents.quantized.items()
    ]
    sizes = checkpoint_bytes(checkpoint.config, reader, of_adapters)
    return {
        "checkpoint": str(folder),
        "format": checkpoint.format.name,
        "recipe": report.get("recipe"),
        "calibration": report.get("calibration"),
        "layers": layers,
        "kept": report.get("kept"),
        **({KEY: report[KEY]} if KEY in report else {}),
        **({"masks": report["masks"]} if "masks" in report else {}),
        **({ADAPTER: adapter.entry(report.get(ADAPTER, {}))} if adapter else {}),
        **({RECOVER: report[RECOVER]} if RECOVER in report else {}),
        **({"kv_cache": report["kv_cache"]} if "kv_cache" in report else {}),
        **({"visual_tokens": rule.to_dict()} if (rule := checkpoint.reduction) else {}),
        **({MAX_PIXELS: report[MAX_PIXELS]} if MAX_PIXELS in report else {}),
        "bytes": sum(sizes.values()),
        "parts": sizes,
        "base_parts": report.get("size", {}).get("base_parts"),
    }
