"""Progress of an unfinished quantization run on disk, from which it resumes.

The folder holds `journal.jsonl` with a line per finished block, `blocks/` with each block's
tensors as they will be written to the checkpoint, and `states/` with the input activations of the
next block. Data is committed by its journal line, which is appended once the data is on disk;
uncommitted files are ignored.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.atomic import sync_folder
from ...common.journal import JournalFile, read_journal
from ...common.lazy_tensor import LazyTensor, TensorLike
from ...common.safetensors_writer import write_tensors
from ...model.checkpoint import lazy_tensors

JOURNAL = "journal.jsonl"
BLOCKS = "blocks"
STATES = "states"
NAMES = (JOURNAL, BLOCKS, STATES)
"""Everything a run writes into its folder."""


class Journal:
    """The finished blocks of a run.

    Args:
        folder: created if missing.
        writes: whether this rank writes. Ranks that share the work hold the same records.

    Raises:
        ValueError: a line other than the last one is damaged.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.states, self.writes = folder / STATES, writes
        self._blocks, self._journal = folder / BLOCKS, folder / JOURNAL
        if writes:
            self._blocks.mkdir(parents=True, exist_ok=True)
        # A damaged line in the middle cannot be redone: the input activations of its block are
        # removed when the next line is committed.
        contents = read_journal(self._journal, "begin again with --fresh", ignore_damaged_end=True)
        self.records = contents.records
        """Records of the finished blocks, in the order of `add`."""
        if writes and self._journal.is_file():
            JournalFile(self._journal, contents.size).close()  # cuts off a torn line

    def add(self, record: Mapping[str, Any], tensors: Mapping[str, TensorLike]) -> None:
        """Mark a block as complete and wait until that is on disk.

        Args:
            record: JSON values.
            tensors: the block's tensors for the checkpoint, by canonical name.
        """
        if self.writes:
            write_tensors(tensors, self._file(len(self.records)))
            sync_folder(self._blocks)
            with JournalFile(self._journal) as file:
                file.append([record])
        self.records.append(dict(record))

    def tensors(self) -> dict[str, LazyTensor]:
        """Return the tensors of all finished blocks by canonical name; none is loaded."""
        tensors: dict[str, LazyTensor] = {}
        for number in range(len(self.records)):
            tensors |= lazy_tensors(self._file(number))
        return tensors

    def _file(self, number: int) -> Path:
        return self._blocks / f"{number:05d}.safetensors"
