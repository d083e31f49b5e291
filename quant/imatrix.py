"""The verb `imatrix` of the Python API: llama.cpp's importance matrix from multimodal samples."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..calib.disk_activation_store import DiskActivationStore
from ..calib.observers import MeanSquare
from ..calib.samples.draw import draw_samples
from ..calib.sequential import CalibrationPass
from ..common.atomic import atomic_path
from ..common.options import verb
from ..common.progress import Update, reporting
from ..common.threads import use_threads
from ..model.checkpoint import CheckpointReader
from ..model.families import family_of
from ..model.loading import build_model, check_tensors, check_tied_head
from ..model.processing.inputs import Prompt
from .checkpoint.loading import is_quantized
from .config import CalibrationOptions, ImatrixOptions, ModelSettings
from .deployment.gguf.imatrix import write_imatrix
from .deployment.gguf.writer import INSTALL, is_installed
from .driver.checkpoint_blocks import CheckpointBlocks
from .job import calibration_warnings
from .recipe.recipe import Calibration
from .resolve import Source, encode_samples, sample_length


@verb(ImatrixOptions)
def imatrix(options: ImatrixOptions) -> dict[str, Any]:
    """Write llama.cpp's importance matrix of a model, measured on samples with images.

    Samples pass through the float model block by block; all tokens count the same. The file has
    the linear layers of the decoder and the head, with the names of llama.cpp.

    Returns:
        The file, its size in bytes, and the numbers of entries, samples and tokens.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the model is quantized, the package gguf is not installed, or the samples are
            unusable.
    """
    use_threads(options.threads)
    if not is_installed():
        raise ValueError(INSTALL)
    out, calibration = Path(options.out), options.group(CalibrationOptions)
    if out.is_dir():
        raise ValueError(f"output {out} is a folder; give a file")
    with reporting(options.progress) as reporter:
        source = Source.find(options.model, options.group(ModelSettings))
        if is_quantized(source.folder):
            raise ValueError(f"{source.name}: is quantized; measure the original model")
        processor, defaults = source.processor(), Calibration()
        drawn = draw_samples(
            calibration.calib,
            n=calibration.calib_samples or defaults.samples,
            seed=defaults.seed if options.seed is None else options.seed,
            measure=lambda sample: sample_length(sample, processor),
            skip_bad=calibration.skip_bad_samples,
        )
        for warning in calibration_warnings(source.name, drawn, calibration):
            reporter.warn(warning)
        prompts = encode_samples(drawn.samples, processor)
        out.parent.mkdir(parents=True, exist_ok=True)
        with reporter.stage("measuring inputs") as update:
            observers = measure_inputs(source, prompts, calibration.cache_bytes, out.parent, update)
        lengths = [len(prompt) for prompt in prompts]
        with atomic_path(out) as part:
            entries = write_imatrix(
                part,
                source.config,
                observers,
                source=str(calibration.calib or "synthetic"),
                lengths=lengths,
            )
    return {
        "file": str(out),
        "bytes": out.stat().st_size,
        "entries": len(entries),
        "samples": len(prompts),
        "tokens": sum(lengths),
    }


def measure_inputs(
    source: Source, prompts: Sequence[Prompt], memory: int, scratch: Path, update: Update
) -> dict[str, MeanSquare]:
    """Measure the inputs of all linear layers of decoder and head, those that are kept too.

    Args:
        source: a float model, of which one block is loaded at a time.
        prompts: calibration samples with their answers.
        memory: bytes of activations that are cached in memory; all of them are stored in files.
        scratch: existing folder for these files.
        update: called after each block.

    Returns:
        Observers by canonical name, in the order of computation.

    Raises:
        ValueError: the checkpoint is damaged, or there are no prompts.
    """
    family, reader = family_of(source.config), CheckpointReader(source.folder)
    model = build_model(source.config, dtype=source.dtype)
    check_tensors(reader, model)
    check_tied_head(reader, model)
    kept = [spec for spec, _ in family.kept(source.config)]
    targets = [
        spec for spec in (*family.linears(source.config), *kept) if spec.part in ("decoder", "head")
    ]
    blocks = CheckpointBlocks(reader, model, (), source.device)
    measured: dict[str, MeanSquare] = {}
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix=".imatrix-") as folder,
        closing(DiskActivationStore(Path(folder), source.device, memory)) as store,
    ):
        calibration = CalibrationPass(model, prompts, targets, blocks=blocks, store=store)
        total = len(calibration.groups)
        for done, block in enumerate(calibration, start=1):
            layers = {group.linears[0].name: group.linears for group in block.groups}
            with block.loaded():
                if layers:
                    widths = {name: specs[0].in_features for name, specs in layers.items()}
                    observers = block.observe(partial(_new_observers, widths, source.device))
                    for name, (observer,) in observers.items():
                        assert isinstance(observer, MeanSquare)
                        measured |= {spec.name: observer for spec in layers[name]}
                store.keep(block.finish().pending_keys)
            update(done, total, block.path)
    return {spec.name: measured[spec.name] for spec in targets}


def _new_observers(widths: Mapping[str, int], device: torch.device) -> dict[str, list[MeanSquare]]:
    return {name: [MeanSquare(width, device)] for name, width in widths.items()}
