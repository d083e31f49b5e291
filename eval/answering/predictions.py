"""Stored answers: journals of JSON records, appended batch by batch, so that runs can resume.

The header of a file holds the fingerprint of the run. Opening the file with the same fingerprint
resumes; another fingerprint is refused, because answers of different setups do not compare. JSON
rather than a spreadsheet: answers such as "None", "007" or "1.50" keep their exact text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.differences import plain, refuse_difference
from ...common.distributed import Communicator, barrier, rank_zero_first
from ...common.journal import JournalContents, JournalFile, read_journal

SCHEMA = 2
REMEDY = "delete the file to start afresh"
OPTIONAL = ("prompt_tokens", "first_logprobs")
"""Fields of a prediction that are not stored if they are None."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """One answer of a model."""

    id: str
    prediction: str
    n_tokens: int | None
    """Generated tokens. Servers include the stop token; None if a server does not report it."""
    stopped: bool
    """Whether the model emitted a stop token; False: truncated at the item's token limit."""
    seconds: float
    """Share of the batch's wall-clock time, image encoding included."""
    prompt_tokens: int | None = None
    """Including image tokens; None if a server does not report it."""
    first_logprobs: Mapping[str, float] | None = None
    """Log-probabilities of the likeliest first tokens, by text."""


class RecordStore:
    """Records in a journal file under a header, keyed by `id`.

    Args:
        path: journal file; created if missing. A torn last line, left by a kill, is cut off.
        kind: type of the records, stored in the header.
        fingerprint: JSON values that the records depend on.
        writes: whether this rank writes. Ranks that share the work hold the same records; those
            that do not write must open the file after the one that does.

    Raises:
        ValueError: the file has another kind or fingerprint, or a line other than a torn last one
            is damaged.
    """

    def __init__(
        self, path: Path, kind: str, fingerprint: Mapping[str, Any], *, writes: bool = True
    ) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        fingerprint = plain(fingerprint)
        contents = _read(path)
        if contents.header is not None:
            refuse_difference(path, _fingerprint(path, contents.header, kind), fingerprint)
            self.records = _by_id(path, contents.records)
        self._file = JournalFile(path, contents.size) if writes else None
        if self._file is not None and contents.header is None:
            self._file.append([{"kind": kind, "schema": SCHEMA, "fingerprint": fingerprint}])

    def append(self, records: Sequence[Record]) -> None:
        """Add records and wait until they are on disk.

        Raises:
            ValueError: an id is already stored.
        """
        if repeated := [r["id"] for r in records if r["id"] in self.records]:
            raise ValueError(f"{self.path.name} holds {repeated[0]} already; ids are stored once")
        if self._file is not None:
            self._file.append(records)
        self.records.update((r["id"], dict(r)) for r in records)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def open_shared(
    comm: Communicator, path: Path, kind: str, fingerprint: Mapping[str, Any]
) -> RecordStore:
    """Open a store on every rank; all add the same records, and rank 0 writes them."""
    store = rank_zero_first(
        comm, lambda: RecordStore(path, kind, fingerprint, writes=comm.rank == 0)
    )
    barrier(comm)  # rank 0 must not append before every rank has read the stored records
    return store


def prediction_record(prediction: Prediction) -> Record:
    """Convert a prediction to JSON values; optional fields that are None are left out."""
    record = asdict(prediction)
    return {k: v for k, v in record.items() if v is not None or k not in OPTIONAL}


def read_records(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Record]]:
    """Read a store without changing it: its fingerprint, and its records by id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the evaluation first")
    contents = _read(path)
    if contents.header is None:
        raise ValueError(f"{path} is empty; run the evaluation again")
    return _fingerprint(path, contents.header, kind), _by_id(path, contents.records)


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Read stored predictions by item id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    _, records = read_records(path, "predictions")
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


def _by_id(path: Path, records: Sequence[Record]) -> dict[str, Record]:
    by_id: dict[str, Record] = {}
    for number, record in enumerate(records, start=2):  # line 1 is the header
        if "id" not in record:
            raise ValueError(f"{path} line {number} is damaged or was edited; {REMEDY}")
        if record["id"] in by_id:
            raise ValueError(f"{path} line {number} repeats {record['id']}; {REMEDY}")
        by_id[record["id"]] = record
    return by_id
