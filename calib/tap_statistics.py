"""Statistics of the inputs of tap groups: samples run through a block and update the observers."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ..common.heap import trim_heap
from .block_runner import BlockRunner
from .observers import Hessian, Observer, Statistics, Syrk
from .reduction import Reduction
from .statistics import HESSIAN, InputRounding, ObservedInput, Statistic
from .tap_groups import Needs, TapGroup, group_needs, needs_float


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of the shared input of a tap group."""

    group: TapGroup
    observers: Mapping[Statistic, Any]
    """One observer of each statistic that a layer of the group needs, and the Hessian."""

    @property
    def hessian(self) -> Hessian:
        """The Hessian, which is kept of every input."""
        hessian: Hessian = self.observers[HESSIAN]
        return hessian


def observe_groups(
    runner: BlockRunner,
    block: str,
    groups: Sequence[TapGroup],
    needs: Needs,
    syrk: Syrk | None,
    *,
    checkpointed: bool,
    unchanged: bool,
) -> Iterator[GroupStatistics]:
    """Run all samples through a block and yield the statistics of each group.

    Statistics that were yielded are freed as soon as the caller drops them.

    Args:
        runner: holds the input states of the block.
        block: the block.
        groups: groups to observe in one pass, at least one; if `checkpointed`, a single one or
            those of experts at one tap.
        needs: statistics besides the Hessian, by target.
        syrk: see `Hessian`.
        checkpointed: continue each sample from its checkpoint.
        unchanged: no layer before these groups has been replaced in the block, so that the float
            inputs of samples without a float state are the inputs themselves.
    """
    statistics = [(HESSIAN, *group_needs(group, needs)) for group in groups]
    free_buffers: list[Tensor] = []  # squares of packed Hessians, reused for the next shard
    inputs = [
        ObservedInput(
            group.in_features,
            runner.blocks.device,
            syrk,
            free_buffers,
            runner.float_weights(block, group.linears) if needs_float(group, needs) else (),
        )
        for group in groups
    ]

    def observe(samples: Sequence[int]) -> list[Statistics]:
        observers = [
            _TapObserver(
                {s: s.observer(of) for s in of_group if s.observer is not None}, group.rounding
            )
            for group, of_group, of in zip(groups, statistics, inputs, strict=True)
        ]
        observe_sample = _observe_sample
        if checkpointed:
            of_experts = groups[0].expert is not None
            observe_sample = _observe_experts if of_experts else _observe_at_tap
        for sample in samples:
            has_float = sample in runner.diverged or not unchanged
            observe_sample(runner, block, sample, groups, observers, has_float)
        return [observer for of_group in observers for observer in of_group.observers.values()]

    trim_heap()  # peak memory is reached in statistics and solving
    merged = deque(Reduction(runner.comm, runner.shards(block), observe).run())
    trim_heap()
    for group, of_group in zip(groups, statistics, strict=True):
        result = GroupStatistics(group, {statistic: merged.popleft() for statistic in of_group})
        if not result.hessian.tokens and group.expert is None:
            raise ValueError(
                f"{group.linears[0].name}: no calibration sample reaches this layer; "
                "add samples with images"
            )
        yield result
        del result


class _TapObserver:
    """All observers of one input; some of them need the float model's input too."""

    def __init__(
        self, observers: Mapping[Statistic, Any], rounding: InputRounding | None = None
    ) -> None:
        self.observers, self.rounding = observers, rounding
        self.needs_float = any(statistic.from_float_model for statistic in observers)
        self.recorder: _InputRecorder | None = None
        """Holds the float inputs; None if they are the inputs."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        recorder = self.recorder
        self.update_all(inputs, inputs if recorder is None else recorder.inputs, weights)

    def update_all(self, inputs: Tensor, float_inputs: Tensor, weights: Tensor | None) -> None:
        """Update every observer with the inputs it needs."""
        rounded = inputs if self.rounding is None else self.rounding(inputs)
        for statistic, observer in self.observers.items():
            if statistic is HESSIAN:
                observer.update(rounded, weights, unrounded=inputs)
            elif statistic.from_float_model:
                observer.update(inputs, float_inputs, weights, rounded=rounded)
            else:
                observer.update(inputs, weights)


def _observe_sample(
    runner: BlockRunner,
    block: str,
    sample: int,
    groups: Sequence[TapGroup],
    of_groups: Sequence[_TapObserver],
    has_float: bool,
) -> None:
    """Run a sample through the block, and before that its float state, if it has one."""
    observers: dict[str, list[Observer]] = {}
    recorders: dict[str, list[Observer]] = {}
    for group, observer in zip(groups, of_groups, strict=True):
        name = group.linears[0].name  # the input is shared, so one hook per group is enough
        observers[name] = [observer]
        observer.recorder = _InputRecorder() if observer.needs_float and has_float else None
        if observer.recorder is not None:
            recorders[name] = [observer.recorder]
    if recorders:
        runner.observe(block, sample, recorders, in_float=True)
    runner.observe(block, sample, observers)


def _observe_at_tap(
    runner: BlockRunner,
    block: str,
    sample: int,
    groups: Sequence[TapGroup],
    of_groups: Sequence[_TapObserver],
    has_float: bool,
) -> None:
    """Run the states of a sample from their checkpoints to the tap of a single group."""
    (group,), (observer,) = groups, of_groups
    weights = runner.token_weights(block, runner.prompts[sample])
    inputs = runner.run_to_tap(block, group.tap, sample)
    float_inputs = inputs
    if observer.needs_float and has_float:
        float_inputs = runner.run_to_tap(block, group.tap, sample, in_float=True)
    observer.update_all(inputs, float_inputs, weights)


def _observe_experts(
    runner: BlockRunner,
    block: str,
    sample: int,
    groups: Sequence[TapGroup],
    of_groups: Sequence[_TapObserver],
    has_float: bool,
) -> None:
    """Run a sample through some experts, from its checkpoint at the router to a tap of theirs."""
    observers = {group.expert: observer for group, observer in zip(groups, of_groups, strict=True)}
    experts = [expert for expert in observers if expert is not None]
    run = partial(runner.run_to_expert_tap, block, groups[0].tap, experts, sample)
    paths = [run()]
    if has_float and any(observer.needs_float for observer in of_groups):
        paths.append(run(in_float=True))
    for expert_inputs in zip(*paths, strict=True):
        expert, inputs, weights = expert_inputs[0]
        float_expert, float_inputs, _ = expert_inputs[-1]
        assert expert == float_expert  # statistics of the float model need all tokens
        observers[expert].update_all(inputs, float_inputs, weights)


class _InputRecorder:
    """Keeps the last input of a layer."""

    inputs: Tensor

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.inputs = inputs
