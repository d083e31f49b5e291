"""Statistics of the inputs of tap groups: samples run through a block and update the observers."""

from collections.abc import Collection, Iterator, Sequence

from torch import Tensor

from ..common.heap import trim_heap
from .block_runner import BlockRunner
from .observers import CrossMoment, Hessian, Observer, Statistics, Syrk
from .reduction import Reduction
from .tap_groups import TapGroup, has_any


def observe_groups(
    runner: BlockRunner,
    block: str,
    groups: Sequence[TapGroup],
    asymmetric: Collection[str],
    syrk: Syrk | None,
    *,
    checkpointed: bool,
    unchanged: bool,
) -> Iterator[tuple[TapGroup, Hessian, CrossMoment | None]]:
    """Run all samples through a block and yield the statistics of each group.

    Args:
        runner: holds the input states of the block.
        block: the block.
        groups: groups to observe in one pass; a single one if `checkpointed`.
        asymmetric: names of the targets that need a cross moment.
        syrk: see `Hessian`.
        checkpointed: continue each sample from the checkpoint at the previous tap.
        unchanged: no layer of the block has been replaced yet, so that the float inputs of samples
            without a float state are the inputs themselves.
    """
    if not groups:
        return
    device = runner.blocks.device
    needs_cross = [has_any([group], asymmetric) for group in groups]
    free_buffers: list[Tensor] = []  # squares of packed Hessians, reused for the next shard
    weights = [
        runner.float_weights(block, group.linears) if is_needed and _projects(group) else None
        for group, is_needed in zip(groups, needs_cross, strict=True)
    ]

    def observe(samples: Sequence[int]) -> list[Statistics]:
        hessians = [Hessian(group.in_features, device, syrk, free_buffers) for group in groups]
        crosses = [
            CrossMoment(group.in_features, device, of_group) if is_needed else None
            for group, is_needed, of_group in zip(groups, needs_cross, weights, strict=True)
        ]
        for sample in samples:
            has_float = sample in runner.diverged or not unchanged
            observe_sample = _observe_at_tap if checkpointed else _observe_sample
            observe_sample(runner, block, sample, groups, hessians, crosses, has_float)
        return [*hessians, *(cross for cross in crosses if cross is not None)]

    trim_heap()  # peak memory is reached in statistics and solving
    statistics = Reduction(runner.comm, runner.shards(block), observe).run()
    trim_heap()
    hessians, crosses = iter(statistics[: len(groups)]), iter(statistics[len(groups) :])
    for group, is_needed in zip(groups, needs_cross, strict=True):
        hessian, cross = next(hessians), next(crosses) if is_needed else None
        assert isinstance(hessian, Hessian) and isinstance(cross, CrossMoment | None)
        if not hessian.tokens:
            raise ValueError(
                f"{group.linears[0].name}: no calibration sample reaches this layer; "
                "add samples with images"
            )
        yield group, hessian, cross


def _projects(group: TapGroup) -> bool:
    """Whether cross moments of outputs take less work than those of inputs, see `CrossMoment`."""
    return 2 * sum(spec.out_features for spec in group.linears) < group.in_features


def _observe_sample(
    runner: BlockRunner,
    block: str,
    sample: int,
    groups: Sequence[TapGroup],
    hessians: Sequence[Hessian],
    crosses: Sequence[CrossMoment | None],
    has_float: bool,
) -> None:
    """Run a sample through the block, and before that its float state, if it has one."""
    observers: dict[str, list[Observer]] = {}
    recorders: dict[str, _InputRecorder] = {}
    for group, hessian, cross in zip(groups, hessians, crosses, strict=True):
        name = group.linears[0].name  # the input is shared, so one hook per group is enough
        observers[name] = [hessian]
        if cross is not None:
            recorders[name] = _InputRecorder()
            observers[name].append(_CrossObserver(cross, recorders[name] if has_float else None))
    if recorders and has_float:
        float_observers = {name: [recorder] for name, recorder in recorders.items()}
        runner.observe(block, sample, float_observers, in_float=True)
    runner.observe(block, sample, observers)


def _observe_at_tap(
    runner: BlockRunner,
    block: str,
    sample: int,
    groups: Sequence[TapGroup],
    hessians: Sequence[Hessian],
    crosses: Sequence[CrossMoment | None],
    has_float: bool,
) -> None:
    """Run the states of a sample from their checkpoints to the tap of a single group."""
    (group,), (hessian,), (cross,) = groups, hessians, crosses
    weights = runner.token_weights(block, runner.prompts[sample])
    inputs = runner.run_to_tap(block, group.tap, sample)
    hessian.update(inputs, weights)
    if cross is not None:
        float_inputs = inputs
        if has_float:
            float_inputs = runner.run_to_tap(block, group.tap, sample, in_float=True)
        cross.update(inputs, float_inputs, weights)


class _InputRecorder:
    """Keeps the last input of a layer."""

    inputs: Tensor

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.inputs = inputs


class _CrossObserver:
    """Updates a cross moment with a layer's inputs and the recorded float inputs."""

    def __init__(self, cross: CrossMoment, float_recorder: _InputRecorder | None) -> None:
        self.cross, self.float_recorder = cross, float_recorder

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        recorder = self.float_recorder  # without one, the float inputs are the inputs
        float_inputs = inputs if recorder is None else recorder.inputs
        self.cross.update(inputs, float_inputs, weights)
