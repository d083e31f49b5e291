"""Rows that a given model cannot answer, found before its weights are loaded.

`open_task` finds the rows that no model can be given. The others depend on the tokenizer and on
the context length: text that another vocabulary reads as a placeholder, and prompts that are too
long. Prompts are tokenized in full, but no pixels are decoded: the size of an image determines its
number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...model.processing.processor import Processor
from ..answering.prompt_lengths import placeholders, prompt_length
from ..results import StoredRun
from .broken import mark_broken
from .coordinates import find_coordinates
from .task import INPUT_SIZE, Fields, Item, Task, is_broken


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


def with_input_sizes(task: Task, processor: Processor) -> Task:
    """Add the size at which a model sees the image, where places are in pixels of that image.

    Args:
        task: a task whose broken rows are marked.
        processor: processor of the model.
    """
    sizes = {i.id: _input_size(i, processor) for i in task.items if _needs_size(i.fields)}
    return _extend_fields(task, sizes)


def mark_as_reference(tasks: Sequence[Task], reference: StoredRun) -> list[Task]:
    """Mark the rows as broken that are broken in the original's evaluation.

    The tokenizer and context of a served model are unknown; those of the original are known. So
    are the sizes at which the model sees images, where places are in pixels of them.

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
    sizes = {
        name: {item["id"]: item[INPUT_SIZE] for item in stored.items if INPUT_SIZE in item}
        for name, stored in reference.tasks.items()
    }
    return [
        _extend_fields(mark_broken(task, faults.get(task.name, {})), sizes.get(task.name, {}))
        for task in tasks
    ]


def require_input_sizes(tasks: Sequence[Task]) -> None:
    """Refuse tasks whose answers cannot be read because the input size of images is unknown.

    Raises:
        ValueError: places are in pixels of the image as the model sees it, and its size is unknown.
    """
    for task in tasks:
        unknown = [i.id for i in task.items if _needs_size(i.fields) and INPUT_SIZE not in i.fields]
        if unknown:
            raise ValueError(
                f"{task.name}: coordinates {task.items[0].fields['coordinates']} are pixels of the "
                f"image as the model sees it, whose size a server does not report ({len(unknown)} "
                f"of {len(task.items)} rows); give the original's evaluation with --reference"
            )


def _needs_size(fields: Fields) -> bool:
    return "coordinates" in fields and find_coordinates(fields["coordinates"]).resized


def _input_size(item: Item, processor: Processor) -> list[int]:
    """Return the width and height at which the model sees the image of an item."""
    (visual,) = placeholders(item, processor)
    _, rows, columns = visual.grid
    side = processor.config.vision.patch_size
    return [columns * side, rows * side]


def _extend_fields(task: Task, sizes: Mapping[str, Sequence[int]]) -> Task:
    """Add the input size to the fields of the items with one."""
    if not sizes:
        return task

    def extend(fields: Fields) -> Fields:
        size = sizes.get(fields["id"])
        return fields if size is None else {**fields, INPUT_SIZE: list(size)}

    return replace(
        task,
        items=tuple(replace(item, fields=extend(item.fields)) for item in task.items),
        fields=tuple(map(extend, task.fields)),
    )


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
