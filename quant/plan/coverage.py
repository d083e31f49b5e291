"""Which layers of the vision tower need pictures among the calibration samples.

Text alone never enters the tower. What is only rounded there needs nothing and is rounded anyway;
for all that looks at activations this is an error before any work is done.
"""

from .plan import Plan, PlanRow

TOWER = ("vision", "merger")


def tower_rows(plan: Plan) -> tuple[PlanRow, ...]:
    """Layers to be quantized that only pictures and videos pass through."""
    return tuple(row for row in plan.quantized if row.spec.stage in TOWER)


def check_pictures(plan: Plan, *, present: bool) -> None:
    """Refuse samples without pictures for a plan that needs some.

    Args:
        plan: of the model.
        present: whether any calibration sample has a picture or video.

    Raises:
        ValueError: none has, but a layer of the tower is solved, transformed, or needs the range
            of its input.
    """
    if present:
        return
    active = [transform for transform in plan.transforms if not transform.reason]
    changed = {name for transform in active for name in transform.linears}
    waiting = [
        row.name
        for row in tower_rows(plan)
        if row.name in changed or (row.step is not None and row.step.looks)
    ]
    if waiting:
        others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        raise ValueError(
            f"no calibration sample has a picture, and {waiting[0]}{others} of the vision tower "
            "cannot be calibrated without; add samples with pictures, leave the tower out of the "
            "recipe, or round it (method rtn, activations none or dynamic)"
        )
