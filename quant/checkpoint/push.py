"""Upload a quantized checkpoint to a model hub, with huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ...common.output_dir import MARKER
from .loading import is_quantized
from .safetensors_folder.reading import QuantizedCheckpoint

LOCAL_FILES = (MARKER, ".*")
"""Patterns of files that are of use on this machine only."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write to the repository"


def push_checkpoint(
    checkpoint: Path,
    repo: str,
    *,
    public: bool = False,
    revision: str | None = None,
    endpoint: str | None = None,
) -> dict[str, Any]:
    """Upload a checkpoint folder in one commit; the repository is created if it does not exist.

    Files that the hub has already are not sent again, so that a repeated call resumes.

    Args:
        checkpoint: folder of a quantized checkpoint.
        repo: `OWNER/NAME`.
        public: visibility of a repository that is created; an existing one keeps its own.
        revision: branch to commit to; None = the main one. It must exist.
        endpoint: address of the hub; None = HF_ENDPOINT, or the public hub.

    Returns:
        `repo`, `url` and `commit`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is not a complete quantized checkpoint, the name is not allowed, or the hub
            refuses.
        ConnectionError: the hub does not answer.
    """
    _check(checkpoint)
    api = HfApi(endpoint=endpoint)
    try:
        created = api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=created.repo_id,
            folder_path=checkpoint,
            revision=revision,
            commit_message="Upload quantized checkpoint",
            ignore_patterns=list(LOCAL_FILES),
        )
    except HFValidationError as error:
        raise ValueError(f"repository {repo!r} is not OWNER/NAME: {error}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or f"status {status}"
        remedy = LOGIN if status in (401, 403) else "see the repository's page on the hub"
        raise ValueError(f"{api.endpoint} refuses to store {repo}: {reason}; {remedy}") from None
    # huggingface_hub raises RuntimeError, from the cause, if a file cannot be sent.
    except (httpx2.TransportError, OSError, RuntimeError) as error:
        raise ConnectionError(
            f"{api.endpoint} does not take the files ({error.__cause__ or error}); check the "
            "network or HF_ENDPOINT, then repeat the command"
        ) from None
    return {"repo": created.repo_id, "url": str(created), "commit": commit.oid}


def _check(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"{checkpoint}: no such folder; give a quantized checkpoint")
    if (checkpoint / "checkpoint" / "config.json").is_file():
        raise ValueError(
            f"{checkpoint} is the folder of a run; give its checkpoint, {checkpoint / 'checkpoint'}"
        )
    if not is_quantized(checkpoint):
        raise ValueError(f"{checkpoint}: is not quantized; give a folder that vlpress wrote")
    QuantizedCheckpoint(checkpoint).check()
