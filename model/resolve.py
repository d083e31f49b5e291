"""The folder of a model by name, without torch, so that a mistyped name is refused at once."""

from __future__ import annotations

import re
from pathlib import Path

from ..common.near_misses import did_you_mean, is_typo, near_misses, near_paths
from .built_in import built_in_folder, built_in_names, find_built_in

ALLOWED = f"a checkpoint folder, a hub id owner/name, {' or '.join(built_in_names())}"
HUB_FILES = (
    *("*.json", "*.safetensors", "*.safetensors.vlz", "*.txt", "*.jinja"),
    *("*.tiktoken", "*.py"),  # of Qwen-VL of 2023; its code is copied and never run
)
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve_model(name: str | Path) -> Path:
    """Return the folder of a model; a hub id is downloaded into the hub's cache.

    Args:
        name: a model inside the package (`built_in.py`), a local folder, or a hub id `owner/name`.

    Raises:
        FileNotFoundError: there is no such folder and the name is not a hub id.
        ValueError: the folder contains only an adapter, or the download failed.
    """
    from .weight_files import refuse_adapter

    folder = find_local_model(name)
    if folder is None:
        folder = _fetch(str(name))
        refuse_adapter(folder)
    return folder


def find_local_model(name: str | Path) -> Path | None:
    """Return the folder of a model on this machine; None for a hub id.

    A name of the form `owner/name` is taken for a mistyped path instead of a hub id if the local
    folder `owner` contains a folder whose name differs in a letter or two.

    Raises:
        FileNotFoundError: there is no such folder and the name is not a hub id.
        ValueError: it is a file, or the folder contains only an adapter.
    """
    from .weight_files import refuse_adapter

    built_in = find_built_in(name)
    if built_in and built_in.is_packaged and (inside := built_in_folder(built_in)):
        return inside
    folder = Path(name)
    if folder.is_dir():
        refuse_adapter(folder)  # before config.json is read, which most adapters lack
        return folder
    if folder.exists():
        raise ValueError(f"{name}: is a file; give {ALLOWED}")
    if built_in and built_in.is_packaged:
        raise FileNotFoundError(
            f"the built-in model {built_in.name!r} is missing from this installation; "
            "install the package again or give a checkpoint folder"
        )
    near = near_paths(folder, folders=True)
    if HUB_ID.fullmatch(str(name)) and not any(is_typo(str(name), each) for each in near):
        return None
    hint = did_you_mean([*near_misses(str(name), built_in_names()), *near])
    raise FileNotFoundError(f"{name}: no such folder;{hint} give {ALLOWED}")


def _fetch(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors derive from these two
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = did_you_mean(near_paths(Path(repo), folders=True))
        raise ValueError(
            f"{repo}: neither a local folder nor available from the hub ({reason});{hint} "
            "check the name and the network, or give a local folder"
        ) from None
