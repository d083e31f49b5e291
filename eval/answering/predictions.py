"""Stored answers: journals of JSON records, appended batch by batch, so that runs can resume.

The header of a file holds the fingerprint of the run. Opening the file with the same fingerprint
resumes; another fingerprint is refused, because answers of different setups do not compare. JSON
rather than a spreadsheet: answers such as "None", "007" or "1.50" keep their exact text.

A record belongs to an item with a certain content, given by a digest. If the content changes, the
item is processed again and the file holds a record of each; records of items that are not asked
any more remain in the file too, and are valid again when the items return.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.differences import plain, refuse_difference
from ...common.distributed import Communicator, barrier, rank_zero_first
from ...common.journal import JournalContents, JournalFile, read_journal
from ..tasks.task import answer_key

SCHEMA = 4
REMEDY = "delete the file to start afresh"
OPTIONAL = (
    *("prompt_tokens", "first_logprobs", "threads"),
    *("reasoning", "reasoning_tokens", "is_unfinished", "visual_tokens"),
    *("sample", "seed"),
)
"""Fields of a prediction that are not stored if they are None."""

DIGEST = "of"
"""Key of the digest of a record's item."""

Record = dict[str, Any]
Digests = Mapping[str, str]
"""Item id -> digest of everything that its record depends on and that may change."""


@dataclass(frozen=True)
class Prediction:
    """One answer of a model."""

    id: str
    prediction: str
    """The answer, without reasoning; this text is scored."""
    n_tokens: int | None
    """Generated tokens, those of the reasoning included. Servers include the stop token; None if a
    server does not report it."""
    stopped: bool
    """Whether the model emitted a stop token; False: truncated at the item's token limit."""
    seconds: float
    """Share of the batch's wall-clock time, image encoding included."""
    prompt_tokens: int | None = None
    """Including image tokens, dropped ones too; None if a server does not report it."""
    first_logprobs: Mapping[str, float] | None = None
    """Log-probabilities of the likeliest first tokens, by text."""
    threads: int | None = None
    """CPU threads of the process that computed it; None if a server did."""
    reasoning: str | None = None
    """Text that the model wrote before the answer, as `SplitText.reasoning`; of a server that
    separates it, the field of its reply. None: there is none."""
    reasoning_tokens: int | None = None
    """Tokens of the reasoning; None without one, or if a server does not report them."""
    is_unfinished: bool | None = None
    """Whether the reasoning has no end, so that there is no answer; None without a reasoning."""
    visual_tokens: Sequence[int] | None = None
    """Kept and all visual tokens of the prompt; None if the model has no `reduction`."""
    sample: int | None = None
    """Number of the sampled answer to the item, from 1; None: greedy."""
    seed: int | None = None
    """Seed of the sampled answer; None: greedy, or a server that was sent no seed."""

    @property
    def key(self) -> str:
        """Key among the answers of a benchmark."""
        return answer_key(self.id, self.sample)

    @property
    def text(self) -> str:
        """All that a local model wrote: the reasoning and the answer."""
        return (self.reasoning or "") + self.prediction

    @property
    def is_cut_off(self) -> bool:
        """Whether the answer reached the token limit, or its reasoning does not end."""
        return not self.stopped or bool(self.is_unfinished)


def count_visual_tokens(answers: Iterable[Prediction]) -> dict[str, Any]:
    """Count the visual tokens of prompts.

    Returns:
        `kept`, `total`, and `retention`: kept / total, None without visual tokens.
    """
    counts = [answer.visual_tokens or (0, 0) for answer in answers]
    kept, total = sum(k for k, _ in counts), sum(t for _, t in counts)
    return {"kept": kept, "total": total, "retention": kept / total if total else None}


class RecordStore:
    """Records in a journal file under a header, keyed by `id` and, where present, `sample`.

    Args:
        path: journal file; created if missing. A torn last line, left by a kill, is cut off.
        kind: type of the records, stored in the header.
        fingerprint: JSON values that the records depend on.
        digests: of the items; records of other items, or of other digests, are not in `records`.
            None: the records are of no items.
        writes: whether this rank writes. Ranks that share the work hold the same records; those
            that do not write must open the file after the one that does.

    Raises:
        ValueError: the file has another kind or fingerprint, or a line other than a torn last one
            is damaged.
    """

    def __init__(
        self,
        path: Path,
        kind: str,
        fingerprint: Mapping[str, Any],
        digests: Digests | None = None,
        *,
        writes: bool = True,
    ) -> None:
        self.path = path
        self._digests = digests
        self.records: dict[str, Record] = {}
        fingerprint = plain(fingerprint)
        contents = _read(path)
        if contents.header is not None:
            refuse_difference(path, _fingerprint(path, contents.header, kind), fingerprint)
            self.records = _by_id(path, contents.records, digests)
        self._file = JournalFile(path, contents.size) if writes else None
        if self._file is not None and contents.header is None:
            self._file.append([{"kind": kind, "schema": SCHEMA, "fingerprint": fingerprint}])

    def append(self, records: Sequence[Record]) -> None:
        """Add records and wait until they are on disk.

        Raises:
            ValueError: a record of the same key is already stored.
        """
        if repeated := [key for r in records if (key := _record_key(r)) in self.records]:
            raise ValueError(f"{self.path.name} holds {repeated[0]} already; ids are stored once")
        if self._file is not None:
            self._file.append([self._with_digest(record) for record in records])
        self.records.update((_record_key(r), dict(r)) for r in records)

    def _with_digest(self, record: Record) -> Record:
        return record if self._digests is None else {**record, DIGEST: self._digests[record["id"]]}

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def open_shared(
    comm: Communicator,
    path: Path,
    kind: str,
    fingerprint: Mapping[str, Any],
    digests: Digests | None = None,
) -> RecordStore:
    """Open a store on every rank; all add the same records, and rank 0 writes them."""
    store = rank_zero_first(
        comm, lambda: RecordStore(path, kind, fingerprint, digests, writes=comm.rank == 0)
    )
    barrier(comm)  # rank 0 must not append before every rank has read the stored records
    return store


def prediction_record(prediction: Prediction) -> Record:
    """Convert a prediction to JSON values; optional fields that are None are left out."""
    record = asdict(prediction)
    return {k: v for k, v in record.items() if v is not None or k not in OPTIONAL}


def read_records(
    path: Path, kind: str, digests: Digests | None = None
) -> tuple[dict[str, Any], dict[str, Record]]:
    """Read a store without changing it: its fingerprint, and its records by `answer_key`.

    Args:
        path: journal file.
        kind: type of the records.
        digests: as for `RecordStore`; None: the last record of each key, whatever its digest.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the evaluation first")
    contents = _read(path)
    if contents.header is None:
        raise ValueError(f"{path} is empty; run the evaluation again")
    return _fingerprint(path, contents.header, kind), _by_id(path, contents.records, digests)


def read_predictions(path: Path, digests: Digests | None = None) -> dict[str, Prediction]:
    """Read stored predictions by `Prediction.key`: the item id, with the number of a sample.

    Args:
        path: journal file.
        digests: as for `read_records`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    _, records = read_records(path, "predictions", digests)
    return {key: Prediction(**record) for key, record in records.items()}


def _read(path: Path) -> JournalContents:
    return read_journal(path, REMEDY, header_keys=("kind", "schema", "fingerprint"))


def _fingerprint(path: Path, header: Record, kind: str) -> dict[str, Any]:
    """Return the fingerprint of a header after checking its kind and schema."""
    if header["kind"] != kind or header["schema"] != SCHEMA:
        raise ValueError(
            f"{path} holds {header['kind']!r} of schema {header['schema']}, not {kind!r} of "
            f"schema {SCHEMA}; use another folder"
        )
    return dict(header["fingerprint"])


def _by_id(path: Path, records: Sequence[Record], digests: Digests | None) -> dict[str, Record]:
    """Return the valid records without their digests.

    Raises:
        ValueError: a record has no id, or two are of the same item with the same content.
    """
    by_id: dict[str, Record] = {}
    seen: set[tuple[str, str]] = set()
    for number, record in enumerate(records, start=2):  # line 1 is the header
        if "id" not in record:
            raise ValueError(f"{path} line {number} is damaged or was edited; {REMEDY}")
        key, digest = _record_key(record), record.pop(DIGEST, "")
        if (key, digest) in seen:
            raise ValueError(f"{path} line {number} repeats {key}; {REMEDY}")
        seen.add((key, digest))
        if digests is None or digests.get(record["id"]) == digest:
            by_id[key] = record
    return by_id


def _record_key(record: Record) -> str:
    return answer_key(record["id"], record.get("sample"))
