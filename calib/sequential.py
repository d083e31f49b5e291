"""Walk a model block by block, and stop where layers are to be solved.

Block k runs on the output of the blocks before it as they are by then, that is, quantized. No
forward pass of the whole model ever happens: a block is loaded, all samples pass through it, and it
is released. Vision blocks, merger and decoder layers are stages of the same walk (`walk.py`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.distributed import SINGLE_PROCESS, Communicator, all_gather
from ..common.heap import trim_heap
from ..model.families import LinearSpec
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .activation_store import (
    ActivationStore,
    BlockSource,
    MemoryActivationStore,
    ModelBlocks,
    loaded,
)
from .block_runner import BlockRunner, TokenWeightFn
from .observers import CrossMoment, Gram, Hessian, Observer, Sum
from .reduction import Reduction


@dataclass(frozen=True)
class TapGroup:
    """Layers of one block that read the same tensor."""

    block: str
    """Module path, such as ``model.layers.3``."""
    tap: str
    linears: tuple[LinearSpec, ...]

    @property
    def in_features(self) -> int:
        """Width of the shared input."""
        return self.linears[0].in_features


Solve = Callable[[TapGroup, Hessian, CrossMoment | None], None]
"""Called with a group, its Hessian and, if one of its layers is to be calibrated against the float
model, how far its inputs are from that; replaces the group's layers in the model."""


class SummingObserver(Observer, Sum, Protocol):
    """An observer whose findings can be added."""


Make = Callable[[], Mapping[str, Sequence[SummingObserver]]]
"""Gives new observers by what they are to watch."""


class BlockView:
    """A block that the walk has reached, and the samples in front of it.

    Its layers are not solved yet; everything before it is. What is changed in its weights while
    this view is open stays changed for all that follows.
    """

    def __init__(self, walk: BlockRunner, path: str) -> None:
        self._walk = walk
        self.path = path
        """Module path of the block."""
        self.samples: Sequence[int] = walk.samples(path)
        """Numbers of the samples that pass through it."""

    def observe(self, make: Make, samples: Sequence[int] | None = None) -> dict[str, list[Sum]]:
        """Run samples and show observers what linear layers read.

        Args:
            make: gives new observers for each layer name (in full); tokens are weighted as they
                are in the Hessians.
            samples: numbers of some of `samples`; None = all.

        Returns:
            Observers of the same names, which know what all samples showed.

        Raises:
            ValueError: no sample reaches the block.
        """
        if not self.samples:
            raise ValueError(
                f"{self.path}: no calibration sample reaches this block; add samples with images"
            )
        wanted = self.samples if samples is None else samples
        parts = [[i for i in part if i in wanted] for part in self._walk.parts(self.path)]

        counts: dict[str, int] = {}

        def watch(part: Sequence[int]) -> list[Sum]:
            observers = make()
            counts.update((name, len(several)) for name, several in observers.items())
            for sample in part:
                self._walk.watch(self.path, sample, observers)
            return [observer for several in observers.values() for observer in several]

        found = iter(Reduction(self._walk.comm, parts, watch).run())
        return {name: [next(found) for _ in range(count)] for name, count in counts.items()}

    def each(self, samples: Sequence[int], judge: Callable[[int], Any]) -> list[Any]:
        """What `judge` makes of each sample, a JSON value; called in one process for each."""
        mine = {i: judge(i) for i in self.mine(samples)}
        found = all_gather(self._walk.comm, list(mine.items()))
        judged = {i: value for several in found for i, value in several}
        return [judged[i] for i in samples]

    def mine(self, samples: Sequence[int]) -> list[int]:
        """Those of some samples that this process runs."""
        return [i for i in self._walk.mine(self.path) if i in samples]

    def output(self, sample: int) -> Tensor:
        """What the block makes of one of `mine` as it is now, ``[..., channels]``."""
        return self._walk.output(self.path, sample)

    def token_weights(self, sample: int) -> Tensor | None:
        """How much each token of a sample counts, float ``[T]``; None = all alike."""
        return self._walk.token_weights(self.path, self._walk.prompts[sample])


@dataclass(frozen=True)
class Resume:
    """Where a walk that was stopped goes on; its store still holds the states."""

    block: str
    """The first that is not finished."""
    parted: frozenset[int] = frozenset()
    """See `BlockRunner.parted`."""


@dataclass(frozen=True)
class BlockResult:
    """A block that is finished: solved, and all samples behind it."""

    block: str
    following: Resume | None
    """Where to go on from here; None = nothing follows."""
    waiting: tuple[str, ...]
    """What the store must keep for that, as it calls it."""
    largest: tuple[float, ...] = ()
    """Largest magnitudes behind the block, of every sample."""


Leave = Callable[[BlockResult], None]
"""Called with a block before its memory may go."""

Prepare = Callable[[BlockView], None]
"""Called with a block before its groups are solved; may change its float weights."""


def tap_groups(targets: Sequence[LinearSpec], block: str) -> list[TapGroup]:
    """The targets inside a block, by shared input, in the order of computation."""
    groups: dict[str, list[LinearSpec]] = {}
    for spec in targets:
        if spec.name == block or spec.name.startswith(block + "."):
            groups.setdefault(spec.tap, []).append(spec)
    return [TapGroup(block, tap, tuple(specs)) for tap, specs in groups.items()]


@torch.no_grad()
def run_sequential(
    model: QwenVL,
    prompts: Sequence[Prompt],
    targets: Sequence[LinearSpec],
    solve: Solve,
    *,
    true_sequential: bool = True,
    token_weights: TokenWeightFn | None = None,
    asymmetric: Collection[str] = (),
    prepare: Prepare | None = None,
    gram: Gram | None = None,
    blocks: BlockSource | None = None,
    store: ActivationStore | None = None,
    leave: Leave | None = None,
    resume: Resume | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> None:
    """Capture the Hessian of every tap of the targets and have each group solved.

    Args:
        model: changed only by `solve` and `prepare`.
        prompts: calibration samples with their answers, at least one.
        targets: layers to solve, in the order of computation.
        solve: called once per group; what it puts into the model feeds all that follows.
        true_sequential: capture a group after the groups before it in the same block were
            solved; otherwise all groups of a block see its original output.
        token_weights: how much each token counts in Hessians; default all alike.
        asymmetric: names of targets to calibrate against the float model. Up to the last of them
            every sample passes each block from the first targeted one on a second time, through
            a copy of the block from before it was solved.
        prepare: called for each block that has targets, before its groups are captured.
        gram: a faster product for the Hessians of a model in bf16, see `Hessian`.
        blocks: where modules come from; default the model itself.
        store: where activations wait; default in memory.
        leave: called for each block once the states behind it are sealed.
        resume: go on there; default from the beginning.
        comm: who shares the samples; `solve`, `prepare` and `leave` are called in every process,
            with the same statistics.

    Raises:
        ValueError: there are no prompts, or a targeted layer saw no input (no prompt has an image
            and the vision tower is targeted).
    """
    if not prompts:
        raise ValueError("no calibration prompts; this recipe needs at least one")
    blocks = ModelBlocks(model) if blocks is None else blocks
    store = MemoryActivationStore() if store is None else store  # an empty store may be false
    walk = BlockRunner(model, prompts, blocks, store, token_weights, comm)
    steps = walk.steps()
    wanted = {step: tap_groups(targets, step) for step in steps}
    last = max((i for i, step in enumerate(steps) if wanted[step]), default=-1)
    paired = (i for i, step in enumerate(steps) if any(_meets(g, asymmetric) for g in wanted[step]))
    last_paired = max(paired, default=-1)
    first = 0 if resume is None else steps.index(resume.block)
    walk.parted = set() if resume is None else set(resume.parted)
    for index, step in enumerate(steps[: last + 1]):
        if index < first or not (wanted[step] or walk.samples(step)):
            continue  # done before, or only for pictures that there are none of
        following = steps[index + 1] if index < last else None
        walk.enter(step)
        with loaded(walk.blocks, step):
            groups = wanted[step]
            if groups and prepare is not None:
                prepare(BlockView(walk, step))
            if groups and index <= last_paired:
                walk.split(step)  # behind `prepare`: inner channels must be scaled alike
            rounds = [[group] for group in groups] if true_sequential else [groups]
            for together in rounds:
                pausing = true_sequential and walk.can_checkpoint(step, together[0].tap, following)
                for found in _observe(walk, step, together, asymmetric, gram, pausing):
                    solve(*found)
            mine = walk.advance(step, following, with_float=index < last_paired)
            if leave is not None:
                leave(_passed(walk, step, following, mine))


def _passed(
    walk: BlockRunner, step: str, following: str | None, mine: Sequence[float]
) -> BlockResult:
    if following is None:
        return BlockResult(step, None, ())
    resume = Resume(following, frozenset(walk.parted))
    largest = [value for part in all_gather(walk.comm, list(mine)) for value in part]
    return BlockResult(step, resume, tuple(walk.waiting(following)), tuple(largest))


def _meets(group: TapGroup, names: Collection[str]) -> bool:
    return any(spec.name in names for spec in group.linears)


def _observe(
    walk: BlockRunner,
    step: str,
    groups: Sequence[TapGroup],
    asymmetric: Collection[str],
    gram: Gram | None,
    pausing: bool,
) -> Iterator[tuple[TapGroup, Hessian, CrossMoment | None]]:
    """Run all samples through a block and give what each group has seen."""
    if not groups:
        return
    device = walk.blocks.device

    def watch(samples: Sequence[int]) -> list[Sum]:
        hessians = [Hessian(group.in_features, device, gram, spare) for group in groups]
        crosses = [CrossMoment(group.in_features, device) if pair else None for group, pair in met]
        for sample in samples:
            if pausing:
                walk.pause(step, groups[0].tap, sample, hessians[0])
            else:
                _watch_sample(walk, step, sample, groups, hessians, crosses)
        return [*hessians, *(cross for cross in crosses if cross is not None)]

    trim_heap()  # statistics and solving need the most memory of all
    met = [(group, _meets(group, asymmetric)) for group in groups]
    spare: list[Tensor] = []  # memory of the sums that were put aside, for the next chunk's
    found = Reduction(walk.comm, walk.parts(step), watch).run()
    trim_heap()
    hessians, crosses = iter(found[: len(groups)]), iter(found[len(groups) :])
    for group, pair in met:
        hessian, cross = next(hessians), next(crosses) if pair else None
        assert isinstance(hessian, Hessian) and isinstance(cross, CrossMoment | None)
        if not hessian.tokens:
            raise ValueError(
                f"{group.linears[0].name}: no calibration sample reaches this layer; "
                "add samples with images"
            )
        yield group, hessian, cross


def _watch_sample(
    walk: BlockRunner,
    step: str,
    sample: int,
    groups: Sequence[TapGroup],
    hessians: Sequence[Hessian],
    crosses: Sequence[CrossMoment | None],
) -> None:
    watchers: dict[str, list[Observer]] = {}
    inputs: dict[str, _InputRecorder] = {}
    for group, hessian, cross in zip(groups, hessians, crosses, strict=True):
        name = group.linears[0].name
        watchers[name] = [hessian]
        if cross is not None:
            inputs[name] = _InputRecorder()
            watchers[name].append(_Against(cross, inputs[name]))
    if inputs:
        kept = {name: [keeper] for name, keeper in inputs.items()}
        walk.watch(step, sample, kept, in_float=True)
    walk.watch(step, sample, watchers)


class _InputRecorder:
    """What a layer read last."""

    inputs: Tensor

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.inputs = inputs


class _Against:
    """Shows a cross moment a layer's inputs beside those of the float model."""

    def __init__(self, cross: CrossMoment, floats: _InputRecorder) -> None:
        self.cross, self.floats = cross, floats

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.cross.update(inputs, self.floats.inputs, weights)
