"""Sequential calibration: run a model block by block and call a solver for the targeted layers.

Block k runs on the outputs of the blocks before it after they were quantized, so that its layers
are calibrated on the inputs they will have. There is no forward pass of the whole model: a block is
loaded, all samples pass through it, and it is released (`block_runner`).
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


Solve = Callable[[TapGroup, Hessian, CrossMoment | None], None]
"""Called with a group, the Hessian of its input and, if one of its layers is calibrated against the
float model, the cross moment of the input's deviation from the float model; replaces the group's
layers in the model."""


class MergeableObserver(Observer, Statistics, Protocol):
    """An observer whose statistics can be merged with those of other samples."""


MakeObservers = Callable[[], Mapping[str, Sequence[MergeableObserver]]]
"""Creates new observers by full layer name."""


class BlockView:
    """The current block of a `BlockRunner` before its layers are solved.

    The blocks before it are finished. Changes of the block's weights persist.

    Args:
        runner: holds the input states of the block.
        path: module path of the block.
    """

    def __init__(self, runner: BlockRunner, path: str) -> None:
        self._runner = runner
        self.path = path
        self.samples: Sequence[int] = runner.samples(path)
        """Numbers of the samples that pass through the block."""

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


OnBlockDone = Callable[[BlockResult], None]
"""Called with a finished block while it is still loaded."""

Prepare = Callable[[BlockView], None]
"""Called with a block before its groups are solved; may change its float weights."""


def tap_groups(targets: Sequence[LinearSpec], block: str) -> list[TapGroup]:
    """Group the targets inside a block by shared input, in the order of computation."""
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
    syrk: Syrk | None = None,
    blocks: BlockSource | None = None,
    store: ActivationStore | None = None,
    on_block_done: OnBlockDone | None = None,
    resume: Resume | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> None:
    """Compute the Hessian of every tap of the targets and solve each group with it.

    Args:
        model: changed only by `solve` and `prepare`.
        prompts: calibration samples with their answers, at least one.
        targets: layers to solve, in the order of computation.
        solve: called once per group; later groups and blocks run on the layers it sets.
        true_sequential: observe a group after the previous groups of the same block were solved;
            otherwise all groups are observed before any of the block is solved.
        token_weights: weights of tokens in Hessians; default all equal.
        asymmetric: names of targets to calibrate against the float model (GPTAQ). From the first
            targeted block to the last such target, every sample also runs through a float copy of
            each block.
        prepare: called for each block with targets, before its groups are observed.
        syrk: faster product for the Hessians of a bf16 model, see `Hessian`.
        blocks: provides the modules; default the model itself.
        store: stores activations between blocks; default in memory.
        on_block_done: called for each block once the input states of the next one are sealed.
        resume: where to continue; default at the first block.
        comm: ranks that share the samples; `solve`, `prepare` and `on_block_done` are called on
            every rank with the same statistics.

    Raises:
        ValueError: there are no prompts, or no sample reaches a targeted layer (none has an image
            and the vision tower is targeted).
    """
    if not prompts:
        raise ValueError("no calibration prompts; this recipe needs at least one")
    blocks = ModelBlocks(model) if blocks is None else blocks
    store = MemoryActivationStore() if store is None else store  # an empty store is falsy
    runner = BlockRunner(model, prompts, blocks, store, token_weights, comm)
    order = runner.all_blocks()
    groups_of = {block: tap_groups(targets, block) for block in order}
    last = max((i for i, block in enumerate(order) if groups_of[block]), default=-1)
    last_asymmetric = max(
        (
            i
            for i, block in enumerate(order)
            if any(_has_any(g, asymmetric) for g in groups_of[block])
        ),
        default=-1,
    )
    first = 0 if resume is None else order.index(resume.block)
    runner.diverged = set() if resume is None else set(resume.diverged)
    for index, block in enumerate(order[: last + 1]):
        groups = groups_of[block]
        if index < first or not (groups or runner.samples(block)):
            continue  # finished before, or a vision block without images and targets
        following = order[index + 1] if index < last else None
        runner.enter(block)
        with hold_block(runner.blocks, block):
            if groups and prepare is not None:
                prepare(BlockView(runner, block))
            if groups and index <= last_asymmetric:
                # After `prepare`: it may rescale channels inside the block, and the inputs of the
                # float copy are compared with the quantized ones channel by channel.
                runner.snapshot_float(block)
            for round_groups in [[group] for group in groups] if true_sequential else [groups]:
                checkpointed = true_sequential and runner.can_checkpoint(
                    block, round_groups[0].tap, following
                )
                for group, hessian, cross in _observe(
                    runner, block, round_groups, asymmetric, syrk, checkpointed
                ):
                    solve(group, hessian, cross)
            largest = runner.advance(block, following, with_float=index < last_asymmetric)
            if on_block_done is not None:
                on_block_done(_block_result(runner, block, following, largest))


def _block_result(
    runner: BlockRunner, block: str, following: str | None, largest: Sequence[float]
) -> BlockResult:
    if following is None:
        return BlockResult(block, None, ())
    resume = Resume(following, frozenset(runner.diverged))
    of_all_ranks = [
        value for of_rank in all_gather(runner.comm, list(largest)) for value in of_rank
    ]
    return BlockResult(block, resume, tuple(runner.pending_keys(following)), tuple(of_all_ranks))


def _has_any(group: TapGroup, names: Collection[str]) -> bool:
    return any(spec.name in names for spec in group.linears)


def _observe(
    runner: BlockRunner,
    block: str,
    groups: Sequence[TapGroup],
    asymmetric: Collection[str],
    syrk: Syrk | None,
    checkpointed: bool,
) -> Iterator[tuple[TapGroup, Hessian, CrossMoment | None]]:
    """Run all samples through a block and yield the statistics of each group.

    Args:
        runner: holds the input states of the block.
        block: the block.
        groups: groups to observe in one pass; a single one if `checkpointed`.
        asymmetric: names of the targets that need a cross moment.
        syrk: see `Hessian`.
        checkpointed: continue each sample from the checkpoint at the previous tap.
    """
    if not groups:
        return
    device = runner.blocks.device
    needs_cross = [_has_any(group, asymmetric) for group in groups]
    free_buffers: list[Tensor] = []  # squares of packed Hessians, reused for the next shard

    def observe(samples: Sequence[int]) -> list[Statistics]:
        hessians = [Hessian(group.in_features, device, syrk, free_buffers) for group in groups]
        crosses = [
            CrossMoment(group.in_features, device) if is_needed else None
            for group, is_needed in zip(groups, needs_cross, strict=True)
        ]
        for sample in samples:
            if checkpointed:
                runner.checkpoint_at_tap(block, groups[0].tap, sample, hessians[0])
            else:
                _observe_sample(runner, block, sample, groups, hessians, crosses)
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


def _observe_sample(
    runner: BlockRunner,
    block: str,
    sample: int,
    groups: Sequence[TapGroup],
    hessians: Sequence[Hessian],
    crosses: Sequence[CrossMoment | None],
) -> None:
    observers: dict[str, list[Observer]] = {}
    recorders: dict[str, _InputRecorder] = {}
    for group, hessian, cross in zip(groups, hessians, crosses, strict=True):
        name = group.linears[0].name  # the input is shared, so one hook per group is enough
        observers[name] = [hessian]
        if cross is not None:
            recorders[name] = _InputRecorder()
            observers[name].append(_CrossObserver(cross, recorders[name]))
    if recorders:
        float_observers = {name: [recorder] for name, recorder in recorders.items()}
        runner.observe(block, sample, float_observers, in_float=True)
    runner.observe(block, sample, observers)


class _InputRecorder:
    """Keeps the last input of a layer."""

    inputs: Tensor

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.inputs = inputs


class _CrossObserver:
    """Updates a cross moment with a layer's inputs and the recorded float inputs."""

    def __init__(self, cross: CrossMoment, float_recorder: _InputRecorder) -> None:
        self.cross, self.float_recorder = cross, float_recorder

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`."""
        self.cross.update(inputs, self.float_recorder.inputs, weights)
