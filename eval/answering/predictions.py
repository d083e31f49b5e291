"""Answers on disk: one JSON line each, appended as they come, so that a killed run can go on.

The first line of a file says what made it (its fingerprint). Opening the file again with the same
fingerprint resumes; another one is refused, because mixing setups would compare nothing. JSON
rather than a spreadsheet: answers like "None", "007" or "1.50" come back as they were. Every line
carries a checksum (`common.checksum`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...common.checksum import verify_checksum, with_checksum
from ...common.differences import plain, refuse_difference
from ...common.distributed import Communicator, rank_zero_first

SCHEMA = 2

OPTIONAL = ("prompt_tokens", "first_logprobs")  # fields of a prediction

Record = dict[str, Any]


@dataclass(frozen=True)
class Prediction:
    """One answer of a model."""

    id: str
    prediction: str
    n_tokens: int | None  # generated; servers count the stop token too, or do not say (None)
    stopped: bool  # ended by itself; False: cut off at the item's cap
    seconds: float  # its share of the wall-clock time, the encoding of pictures included
    prompt_tokens: int | None = None  # pictures included; None: a server that does not say
    first_logprobs: Mapping[str, float] | None = None  # of the likeliest first tokens, by text


class RecordStore:
    """Append-only JSON lines under a header, keyed by `id`.

    Args:
        path: the file; made if absent. A torn last line, as a kill leaves it, is cut off.
        kind: what the records are, written into the header.
        fingerprint: JSON values; everything the records depend on.
        writes: whether this process does; others that share the work only know the records. They
            must open the file after the one that does.

    Raises:
        ValueError: the file belongs to another kind or fingerprint, or is damaged elsewhere than
            in its last line.
    """

    def __init__(
        self, path: Path, kind: str, fingerprint: Mapping[str, Any], *, writes: bool = True
    ) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        wanted = plain(fingerprint)
        if path.is_file() and (lines := _whole_lines(path)):
            found = _parse_header(path, lines[0], kind)
            refuse_difference(path, found, wanted)
            self.records = _parse_records(path, lines[1:])
        self._file = path.open("ab") if writes else None
        if self._file is not None and not self.records and path.stat().st_size == 0:
            self._write([{"kind": kind, "schema": SCHEMA, "fingerprint": wanted}])

    def append(self, records: Sequence[Record]) -> None:
        """Add records and wait until they are on the disk.

        Raises:
            ValueError: an id is already stored.
        """
        if known := [r["id"] for r in records if r["id"] in self.records]:
            raise ValueError(f"{self.path.name} holds {known[0]} already; ids are stored once")
        self._write(records)
        self.records.update((r["id"], dict(r)) for r in records)

    def _write(self, records: Iterable[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        lines = (json.dumps(with_checksum(r), ensure_ascii=False) + "\n" for r in records)
        text = "".join(lines)
        self._file.write(text.encode("utf-8", "surrogatepass"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def open_shared(
    comm: Communicator, path: Path, kind: str, fingerprint: Mapping[str, Any]
) -> RecordStore:
    """A store that several processes add the same records to, of which the first one writes."""
    return rank_zero_first(
        comm, lambda: RecordStore(path, kind, fingerprint, writes=comm.index == 0)
    )


def prediction_record(prediction: Prediction) -> Record:
    """The JSON form of a prediction; what is optional and unknown is left out."""
    record = asdict(prediction)
    return {k: v for k, v in record.items() if v is not None or k not in OPTIONAL}


def read_records(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Record]]:
    """Read a store without opening it for writing: its fingerprint and its records by id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the evaluation first")
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    if not path.read_bytes().endswith(b"\n"):
        lines = lines[:-1]
    if not lines:
        raise ValueError(f"{path} is empty; run the evaluation again")
    return _parse_header(path, lines[0], kind), _parse_records(path, lines[1:])


def read_predictions(path: Path) -> dict[str, Prediction]:
    """Read stored predictions by item id.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """
    _, records = read_records(path, "predictions")
    return {key: Prediction(**record) for key, record in records.items()}


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines; what follows the last newline is cut off the file."""
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return [line for line in data[:end].split(b"\n") if line]


def _parse_header(path: Path, line: bytes, kind: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
        found, schema, fingerprint = header["kind"], header["schema"], header["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} does not start with a header; it is no file of ours") from error
    verify_checksum(header, f"{path} line 1")
    if found != kind or schema != SCHEMA:
        raise ValueError(
            f"{path} holds {found!r} of schema {schema}, not {kind!r} of schema {SCHEMA}; "
            "use another folder"
        )
    return dict(fingerprint)


def _parse_records(path: Path, lines: Sequence[bytes]) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for number, line in enumerate(lines, start=2):
        try:
            record = verify_checksum(json.loads(line), f"{path} line {number}")
            key = record["id"]
        except (ValueError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} line {number} is damaged or was edited; delete the file to start afresh"
            ) from error
        if key in records:
            raise ValueError(f"{path} line {number} repeats {key}; delete the file to start afresh")
        records[key] = record
    return records
