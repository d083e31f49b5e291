"""Sequential calibration: run samples block by block and give the statistics of layer inputs.

Block k runs on the outputs of the blocks before it after they were quantized, so that its layers
are calibrated on the inputs they will have. There is no forward pass of the whole model: a block is
loaded, all samples pass through it, and it is released (`block_runner`). The caller owns the loop:

    for block in CalibrationPass(model, prompts, targets):
        with block.loaded():
            for group, hessian, cross in block.statistics():
                ...  # replace the group's layers in the model
            result = block.finish()
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    hold_block,
)
from .block_runner import BlockRunner, TokenWeightFn
from .observers import CrossMoment, Hessian, Observer, Statistics, Syrk
from .reduction import Reduction


@dataclass(frozen=True)
class TapGroup:
    """Linear layers of one block that read the same tensor."""

    block: str
    """Module path, such as `model.layers.3`."""
    tap: str
    """Name of the shared input in the family table."""
    linears: tuple[LinearSpec, ...]

    @property
    def in_features(self) -> int:
        """Width of the shared input."""
        return self.linears[0].in_features


class MergeableObserver(Observer, Statistics, Protocol):
    """An observer whose statistics can be merged with those of other samples."""


MakeObservers = Callable[[], Mapping[str, Sequence[MergeableObserver]]]
"""Creates new observers by full layer name."""


@dataclass(frozen=True)
class Resume:
    """Where an interrupted run continues; its activation store still holds the states."""

    block: str
    """First unfinished block."""
    diverged: frozenset[int] = frozenset()
    """See `BlockRunner.diverged`."""


@dataclass(frozen=True)
class BlockResult:
    """A finished block: its layers are solved and all samples have passed it."""

    block: str
    following: Resume | None
    """Where to continue; None after the last block."""
    pending_keys: tuple[str, ...]
    """Keys of the activation store that are needed to continue."""
    largest: tuple[float, ...] = ()
    """Largest magnitude of the block's output for every sample."""


def tap_groups(targets: Sequence[LinearSpec], block: str) -> list[TapGroup]:
    """Group the targets inside a block by shared input, in the order of computation."""
    groups: dict[str, list[LinearSpec]] = {}
    for spec in targets:
        if spec.name == block or spec.name.startswith(block + "."):
            groups.setdefault(spec.tap, []).append(spec)
    return [TapGroup(block, tap, tuple(specs)) for tap, specs in groups.items()]


class CalibrationBlock:
    """The current block of a `CalibrationPass`; the blocks before it are finished.

    Use it inside `loaded`: first `observe`, `output` and `evaluate`, while changes of its float
    weights persist; then `statistics`, to replace its layers; then `finish`.

    Args:
        calibration: the pass.
        path: module path of the block.
        following: module path of the next block that samples run through; None after the last.
        keeps_float: whether the float path is needed in this block.
        keeps_float_after: whether it is needed in the blocks after it.
    """

    def __init__(
        self,
        calibration: "CalibrationPass",
        path: str,
        following: str | None,
        *,
        keeps_float: bool,
        keeps_float_after: bool,
    ) -> None:
        self._pass, self._runner = calibration, calibration.runner
        self._following = following
        self._keeps_float, self._keeps_float_after = keeps_float, keeps_float_after
        self.path = path
        self.groups = calibration.groups[path]
        """The targets inside the block, by shared input; may be empty."""
        self.samples: Sequence[int] = self._runner.samples(path)
        """Numbers of the samples that pass through the block."""

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Load the block with the input states of its samples; release it on exit."""
        with torch.no_grad():
            self._runner.enter(self.path)
        with hold_block(self._runner.blocks, self.path):
            yield

    def observe(
        self, make_observers: MakeObservers, samples: Sequence[int] | None = None
    ) -> dict[str, list[Statistics]]:
        """Observe the inputs of linear layers over samples of all ranks.

        Args:
            make_observers: creates observers by full layer name. Tokens have the weights that they
                have in the Hessians.
            samples: numbers of some of `samples`; None for all.

        Returns:
            Observers of the same names, merged over all ranks.

        Raises:
            ValueError: no sample reaches the block.
        """
        if not self.samples:
            raise ValueError(
                f"{self.path}: no calibration sample reaches this block; add samples with images"
            )
        selected = self.samples if samples is None else samples
        shards = [[i for i in shard if i in selected] for shard in self._runner.shards(self.path)]

        counts: dict[str, int] = {}

        def observe(shard: Sequence[int]) -> list[Statistics]:
            observers = make_observers()
            counts.update((name, len(of_layer)) for name, of_layer in observers.items())
            for sample in shard:
                self._runner.observe(self.path, sample, observers)
            return [observer for of_layer in observers.values() for observer in of_layer]

        merged = iter(Reduction(self._runner.comm, shards, observe).run())
        return {name: [next(merged) for _ in range(count)] for name, count in counts.items()}

    def evaluate(self, samples: Sequence[int], measure: Callable[[int], Any]) -> list[Any]:
        """Call `measure` once per sample, on the rank that runs it; return the results in order.

        Args:
            samples: numbers of some of `samples`.
            measure: called with a sample number; returns a JSON value.
        """
        local = {i: measure(i) for i in self.local_samples(samples)}
        gathered = all_gather(self._runner.comm, list(local.items()))
        results = {i: value for of_rank in gathered for i, value in of_rank}
        return [results[i] for i in samples]

    def local_samples(self, samples: Sequence[int]) -> list[int]:
        """Return those of some samples that this rank runs."""
        return [i for i in self._runner.local_samples(self.path) if i in samples]

    def output(self, sample: int) -> Tensor:
        """Compute the block's current output for one of `local_samples`, `[..., channels]`."""
        return self._runner.output(self.path, sample)

    def token_weights(self, sample: int) -> Tensor | None:
        """Return the weight of each token of a sample, float `[T]`; None if all are equal."""
        return self._runner.token_weights(self.path, self._runner.prompts[sample])

    @torch.no_grad()
    def statistics(self) -> Iterator[tuple[TapGroup, Hessian, CrossMoment | None]]:
        """Observe the inputs of the block's groups; yield each group with its statistics.

        Between two groups the caller replaces the layers of the first one. With `true_sequential`
        a group is observed after the groups before it were replaced; otherwise all are observed
        before any is.

        Yields:
            A group, the Hessian of its input and, if one of its layers is asymmetric, the cross
            moment of the input's deviation from the float model.

        Raises:
            ValueError: no sample reaches a group.
        """
        if self.groups and self._keeps_float:
            # The snapshot includes changes of float weights so far: they may rescale channels
            # inside the block, and the inputs of the float copy are compared with the quantized
            # ones channel by channel.
            self._runner.snapshot_float(self.path)
        sequential = self._pass.true_sequential
        for groups in [[group] for group in self.groups] if sequential else [self.groups]:
            yield from _observe(
                self._runner,
                self.path,
                groups,
                self._pass.asymmetric,
                self._pass.syrk,
                checkpointed=sequential and self._runner.can_checkpoint(self.path, groups[0].tap),
                unchanged=bool(groups) and groups[0] is self.groups[0],
            )

    @torch.no_grad()
    def finish(self) -> BlockResult:
        """Run all samples through the finished block; seals the input states of the next one."""
        following = self._following
        largest = self._runner.advance(self.path, following, with_float=self._keeps_float_after)
        if following is None:
            return BlockResult(self.path, None, ())
        resume = Resume(following, frozenset(self._runner.diverged))
        of_all_ranks = [
            value for of_rank in all_gather(self._runner.comm, list(largest)) for value in of_rank
        ]
        pending_keys = tuple(self._runner.pending_keys(following))
        return BlockResult(self.path, resume, pending_keys, tuple(of_all_ranks))


class CalibrationPass:
    """One pass of the calibration samples over the blocks of a model, or the rest of one.

    Iteration yields the blocks up to the last one with a target. Blocks that no sample reaches are
    skipped, unless they have targets.
    """

    def __init__(
        self,
        model: QwenVL,
        prompts: Sequence[Prompt],
        targets: Sequence[LinearSpec],
        *,
        true_sequential: bool = True,
        token_weights: TokenWeightFn | None = None,
        asymmetric: Collection[str] = (),
        syrk: Syrk | None = None,
        blocks: BlockSource | None = None,
        store: ActivationStore | None = None,
        resume: Resume | None = None,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        """Prepare a pass; nothing runs yet.

        Args:
            model: changed by the caller only.
            prompts: calibration samples with their answers, at least one.
            targets: layers to observe, in the order of computation.
            true_sequential: see `CalibrationBlock.statistics`.
            token_weights: weights of tokens in Hessians; default all equal.
            asymmetric: names of targets to calibrate against the float model (GPTAQ). From the
                first targeted block to the last such target, every sample also runs through a
                float copy of each block.
            syrk: faster product for the Hessians of a bf16 model, see `Hessian`.
            blocks: provides the modules; default the model itself.
            store: stores activations between blocks; default in memory.
            resume: where to continue; default at the first block.
            comm: ranks that share the samples. Each of them runs the same loop and gets the same
                statistics.

        Raises:
            ValueError: there are no prompts.
        """
        if not prompts:
            raise ValueError("no calibration prompts; this recipe needs at least one")
        blocks = ModelBlocks(model) if blocks is None else blocks
        store = MemoryActivationStore() if store is None else store  # an empty store is falsy
        self.runner = BlockRunner(model, prompts, blocks, store, token_weights, comm)
        self.true_sequential, self.asymmetric, self.syrk = true_sequential, asymmetric, syrk
        order = self.runner.all_blocks()
        self.groups = {block: tap_groups(targets, block) for block in order}
        self._first = 0 if resume is None else order.index(resume.block)
        self.runner.diverged = set() if resume is None else set(resume.diverged)

    def __iter__(self) -> Iterator[CalibrationBlock]:
        order = list(self.groups)
        targeted = [i for i, block in enumerate(order) if self.groups[block]]
        last = max(targeted, default=-1)
        last_asymmetric = max(
            (i for i in targeted if _has_any(self.groups[order[i]], self.asymmetric)), default=-1
        )
        for index in range(self._first, last + 1):
            block = order[index]
            if self.groups[block] or self.runner.samples(block):
                yield CalibrationBlock(
                    self,
                    block,
                    order[index + 1] if index < last else None,
                    keeps_float=index <= last_asymmetric,
                    keeps_float_after=index < last_asymmetric,
                )


def _has_any(groups: Sequence[TapGroup], names: Collection[str]) -> bool:
    return any(spec.name in names for group in groups for spec in group.linears)


def _observe(
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
    needs_cross = [_has_any([group], asymmetric) for group in groups]
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
