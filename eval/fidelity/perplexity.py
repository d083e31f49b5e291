"""Perplexity on plain text: tests the decoder alone, without images or chat template.

The text is cut into windows that are evaluated independently; every token but the first of a
window counts. Only the ratio of two models with the same windows is meaningful.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.distributed import SINGLE_PROCESS, Communicator, Message, distribute
from ...model.finite import NotFiniteError, check_finite
from ...model.processing.inputs import Prompt
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ...model.rope import counted_ids
from ..answering.batches import OnProgress
from ..answering.predictions import Record, open_shared, read_records
from ..stats.statistics import mean_interval

FILE = "text.jsonl"
WINDOW = 512  # tokens; bounds the logits in memory
MAX_WINDOWS = 128


def read_text(path: str | Path) -> str:
    """Read a .txt file, or the `text` values of a .jsonl file, joined by blank lines.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file has another suffix, is not UTF-8, or a line has no text.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"text file {path} does not exist; give a .txt or .jsonl file")
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path.name} is no .txt or .jsonl file; save the text as one of these")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if path.suffix == ".txt":
        return text
    parts = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            parts.append(_line_text(line, f"{path.name}:{number}"))
    return "\n\n".join(parts)


def _line_text(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{where} is no object with a "text"; repair the line') from error
    if not isinstance(text, str):
        raise ValueError(f'{where}: "text" is no text; repair the line')
    return text


def split_windows(text: str, processor: Processor, length: int = WINDOW) -> list[Tensor]:
    """Split the token ids of a text into windows of `length`, and a last one of at least two.

    Args:
        text: any text.
        processor: provides the tokenizer, used without special tokens.
        length: tokens per window.

    Returns:
        At most `MAX_WINDOWS` int64 tensors `[tokens]`.

    Raises:
        ValueError: the text has fewer than two tokens.
    """
    ids = torch.tensor(processor.tokenizer.encode(text, add_special_tokens=False))
    windows = [part for part in torch.split(ids, length) if len(part) > 1][:MAX_WINDOWS]
    if not windows:
        raise ValueError(f"the text has {len(ids)} tokens; perplexity needs at least two")
    return windows


def identify_text(text: str, length: int = WINDOW) -> dict[str, Any]:
    """Return the part of the fingerprint that two measurements must share."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {"sha256": digest, "window": length, "max_windows": MAX_WINDOWS}


def measure_text(
    text: str,
    model: QwenVL,
    processor: Processor,
    path: Path,
    fingerprint: Mapping[str, Any],
    *,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> None:
    """Measure every window without a stored record.

    Args:
        text: any text.
        model: in eval mode.
        processor: processor of the model.
        path: records file, resumed if present: per window the number of counted `tokens` and the
            sum `nll` of their negative log-probabilities in nats.
        fingerprint: fingerprint of the run; `identify_text` is added.
        on_progress: called after every window.
        comm: ranks that share the windows.

    Raises:
        ValueError: the file has another fingerprint, the text is too short, or logits are not
            finite.
    """
    windows = split_windows(text, processor)

    def work(numbered: tuple[int, Tensor]) -> Message:
        number, ids = numbered
        try:
            nll = _compute_nll(model, ids)
        except NotFiniteError as error:
            raise error.within(f"text window {number + 1} of {len(windows)}") from error
        return Message([{"id": str(number), "tokens": len(ids) - 1, "nll": nll}])

    setup = {**fingerprint, "text": identify_text(text)}
    with closing(open_shared(comm, path, "text", setup)) as store:
        missing = [(i, ids) for i, ids in enumerate(windows) if str(i) not in store.records]
        for _, records in distribute(comm, missing, work):
            store.append(records.value)
            if on_progress:
                on_progress("text", len(store.records), len(windows), "")


def is_measured(text: str, processor: Processor, run_dir: Path) -> bool:
    """Whether a run folder holds the measurement of every window of this text."""
    stored = read_windows(run_dir)
    if stored is None:
        return False
    windows = {str(number) for number in range(len(split_windows(text, processor)))}
    return stored[0] == identify_text(text) and windows <= set(stored[1])


@torch.inference_mode()
def _compute_nll(model: QwenVL, ids: Tensor) -> float:
    """Return the negative log-likelihood in nats of all tokens but the first."""
    prompt = Prompt(ids, counted_ids(len(ids), model.config.text))
    logits = model([prompt], [[]])[0][:-1]
    check_finite(logits, "the scores along the text are", model)
    losses = F.cross_entropy(logits.float(), ids[1:].to(logits.device), reduction="none")
    check_finite(losses, "log-probabilities of the text are", model)
    return float(losses.double().sum())


def read_windows(run_dir: Path) -> tuple[dict[str, Any], dict[str, Record]] | None:
    """Read the identity of the text and the records of its windows; None if there is no text.

    Raises:
        ValueError: the file is damaged.
    """
    if not (run_dir / FILE).is_file():
        return None
    header, records = read_records(run_dir / FILE, "text")
    return dict(header["text"]), records


def compare_text(base: Path, candidate: Path) -> dict[str, Any] | None:
    """Compare the perplexities of two runs on the same text; None if one has none.

    Returns:
        `tokens`, `base` and `candidate` perplexity, their `ratio` and its 95 % interval by
        bootstrap over windows (None for one window); `nll`, the mean negative log-probability of
        a token in nats of both runs. A number above the largest float is None and named in
        `overflow`, which is None otherwise.

    Raises:
        ValueError: the texts differ, or one measurement is incomplete.
    """
    left, right = read_windows(base), read_windows(candidate)
    if left is None or right is None:
        return None
    if left[0] != right[0] or set(left[1]) != set(right[1]):
        raise ValueError(
            f"{base} and {candidate} did not read the same windows of the same text; evaluate both "
            "with the same --text"
        )
    pairs = [(left[1][key], right[1][key]) for key in left[1]]
    tokens = sum(int(a["tokens"]) for a, _ in pairs)
    rates = [sum(float(pair[side]["nll"]) for pair in pairs) / tokens for side in (0, 1)]
    comparison = {
        "tokens": tokens,
        "nll": {"base": rates[0], "candidate": rates[1]},
        "base": _exp(rates[0]),
        "candidate": _exp(rates[1]),
        "ratio": _exp(rates[1] - rates[0]),
    }
    overflow = [key for key in ("base", "candidate", "ratio") if comparison[key] is None]
    reason = f"above the largest float: {', '.join(overflow)}; see nll" if overflow else None
    return {**comparison, "ratio_ci95": _ratio_interval(pairs), "overflow": reason}


def _exp(value: float) -> float | None:
    """Return the exponential; None if it exceeds the largest float."""
    try:
        return math.exp(value)
    except OverflowError:
        return None


def _ratio_interval(pairs: Sequence[tuple[Record, Record]]) -> list[float] | None:
    """Return the bootstrap interval over windows, which have equal length except for the last."""
    gaps = [(b["nll"] - a["nll"]) / a["tokens"] for a, b in pairs]
    if len(gaps) < 2:
        return None
    interval = mean_interval(gaps)
    ends = [_exp(interval.low), _exp(interval.high)]
    return None if None in ends else [end for end in ends if end is not None]
