"""The checkpoint with the chosen budget."""

from __future__ import annotations

from pathlib import Path

from ... import __version__
from ...common.output_dir import claim_result, refuse_foreign, sole_use, staged_result
from ...common.progress import Reporter
from ...model.weight_files import digest_folder
from ...quant.checkpoint.pixel_budget import (
    shared_setting,
    shares_video_settings,
    write_with_max_pixels,
)


def check_target(target: Path, source: Path, out: Path) -> None:
    """Refuse a folder for the checkpoint before hours of answering.

    Args:
        target: the folder.
        source: folder of the model.
        out: folder of the evaluations.

    Raises:
        ValueError: it is or holds one of the others, or holds files that vlpress did not write.
    """
    for other, role in ((source, "the source, which is never written to"), (out, "the output")):
        if target.resolve() in (other.resolve(), *other.resolve().parents):
            raise ValueError(f"--write {target} is or holds {role}; give another folder")
    refuse_foreign(target)


def write_candidate(
    source: Path,
    target: Path,
    max_pixels: int,
    reporter: Reporter,
    *,
    overwrite: bool,
    fresh: bool,
) -> None:
    """Write a checkpoint with another largest area of an image, unless it is finished.

    Args:
        source: folder of the checkpoint.
        target: the new folder; appears complete or not at all.
        max_pixels: the area in pixels.
        reporter: gets a warning if videos share the setting.
        overwrite: replace a checkpoint with another source or area.
        fresh: replace any.

    Raises:
        ValueError: the folder holds other work or is in use, or a file of the source is unusable.
    """
    fingerprint = {
        "checkpoint": digest_folder(source),
        "max_pixels": max_pixels,
        "vlpress": __version__,
    }
    with sole_use(target):
        if claim_result(target, fingerprint, overwrite=overwrite, fresh=fresh):
            reporter.note(f"{target} is finished already")
        else:
            with staged_result(target, fingerprint) as staged:
                write_with_max_pixels(source, staged, max_pixels)
    if shares_video_settings(source):
        reporter.warn(shared_setting(target, max_pixels))
