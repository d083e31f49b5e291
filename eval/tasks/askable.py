"""Rows that a given model cannot answer, found before its weights are loaded.

`open_task` finds the rows that no model can be given. The others depend on the tokenizer and on
the context length: text that another vocabulary reads as a placeholder, and prompts that are too
long. Prompts are tokenized in full, but no pixels are decoded: the size of an image determines its
number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...model.processing.processor import Processor
from ..answering.prompt_lengths import prompt_length
from ..results import StoredRun
from .broken import mark_broken
from .task import Item, Task, is_broken


def mark_unaskable(task: Task, processor: Processor) -> Task:
    """Mark the rows as broken that this processor or its model's context excludes.

    A prompt must leave room for at least one answer token within `max_position_embeddings`. The
    cap on answers is not reserved: few answers are that long.

    Args:
        task: an opened task.
        processor: processor of the model. Base and candidate have equal processors and hence the
            same broken rows; runs that differ in them are not compared.

    Raises:
        ValueError: too many rows are broken, see `accept_faults`.
    """
    faults = {item.id: _find_fault(item, processor) for item in task.items}
    return mark_broken(task, {key: fault for key, fault in faults.items() if fault})


def mark_as_reference(tasks: Sequence[Task], reference: StoredRun) -> list[Task]:
    """Mark the rows as broken that are broken in the original's evaluation.

    The tokenizer and context of a served model are unknown; those of the original are known.

    Args:
        tasks: opened tasks; those that are not in the reference are left unchanged.
        reference: evaluation of the original.

    Raises:
        ValueError: too many rows are broken, see `accept_faults`.
    """
    faults = {
        name: {item["id"]: str(item["fault"]) for item in stored.items if is_broken(item)}
        for name, stored in reference.tasks.items()
    }
    return [mark_broken(task, faults.get(task.name, {})) for task in tasks]


def _find_fault(item: Item, processor: Processor) -> str:
    """Return why an item cannot be answered; empty if it can."""
    context = processor.config.text.max_position_embeddings
    try:
        tokens = prompt_length(item, processor)
    except ValueError as error:
        return f"its prompt cannot be built ({error})"
    if tokens >= context:
        return f"its prompt of {tokens} tokens leaves no room in the model's context of {context}"
    return ""
