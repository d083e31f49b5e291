"""Export of a checkpoint in the format of another runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.atomic import write_json
from ...common.json_files import read_json
from ...common.options import option_fields
from ...common.output_dir import REMEDY
from ...common.progress import Reporter
from ..checkpoint.adapter import has_adapter
from ..config import DeploymentOptions, ExportOptions
from ..recipe.adapter import check_separable
from .deployment_format import DESCRIPTION, DeploymentFormat
from .source import ExportSource


def check_deployment(
    format: DeploymentFormat, source: ExportSource, options: ExportOptions
) -> None:
    """Refuse a checkpoint or an option that the format has no place for.

    Raises:
        ValueError: see above, or the checkpoint is incomplete.
    """
    check_options(options, format.options)
    if source.quantized is not None:
        check_separable(source.quantized.record or {}, source.folder)
    if has_adapter(source.folder) and not options.no_adapter:
        raise ValueError(
            f"{source.folder} cannot be exported as {format.name}: it has an adapter, which is not "
            f"part of the weights; {format.adapter_advice}"
        )
    if reason := format.why_not(source, options):
        raise ValueError(f"{source.folder} cannot be exported as {format.name}: {reason}")
    source.check()


def check_options(options: ExportOptions, allowed: tuple[str, ...] = ()) -> None:
    """Refuse options of other formats than the chosen one.

    Args:
        options: of the export.
        allowed: fields of `DeploymentOptions` that the format has; checkpoint formats have none.

    Raises:
        ValueError: another one is given.
    """
    flags = {field.name: field.flags[0] for field in option_fields(DeploymentOptions)}
    for name, flag in flags.items():
        if getattr(options, name) is not None and name not in allowed:
            raise ValueError(
                f"{flag} is no option of the format {options.format}; "
                f"allowed: {', '.join(flags[own] for own in allowed) or 'none'}"
            )


def write_deployment(
    format: DeploymentFormat,
    source: ExportSource,
    folder: Path,
    options: ExportOptions,
    reporter: Reporter,
) -> None:
    """Write an export and its description into an empty folder.

    Raises:
        ValueError: see `DeploymentFormat.write`.
    """
    description = format.write(source, folder, options, reporter)
    write_json(folder / DESCRIPTION, {**description, "files": _files(folder)})


def read_deployment(folder: Path) -> dict[str, Any]:
    """Return the description of a finished export, with its folder.

    Raises:
        ValueError: the file is damaged.
    """
    return {"export": str(folder), **read_json(folder / DESCRIPTION, REMEDY)}


def _files(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return size and sha256 of every file, by its path within the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in paths
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
