"""Sequential calibration: run samples block by block and give the statistics of layer inputs.

Block k runs on the outputs of the blocks before it after they were quantized, so that its layers
are calibrated on the inputs they will have. There is no forward pass of the whole model: a block is
loaded, all samples pass through it, and it is released (`block_runner`). The caller owns the loop:

    for block in CalibrationPass(model, prompts, targets):
        with block.loaded():
            for statistics in block.statistics():
                ...  # replace the layers of statistics.group in the model
            result = block.finish()
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.distributed import SINGLE_PROCESS, Communicator, all_gather
from ..model.families import LinearSpec
from ..model.kv_quant.ranges import LayerRange, layer_range
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .activation_store import (
    ActivationStore,
    BlockSource,
    MemoryActivationStore,
    ModelBlocks,
    hold_block,
)
from .block_runner import BlockRunner, CompareStates, TokenWeightFn
from .observers import Observer, Statistics, Syrk
from .reduction import Reduction
from .tap_groups import Needs, Roundings, needs_float, observation_passes, tap_groups
from .tap_statistics import GroupStatistics, observe_groups


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

    def float_weights(self, linears: Sequence[LinearSpec]) -> list[Tensor]:
        """Return float weights `[N, K]` of layers that were replaced; needs the float copy."""
        return self._runner.float_weights(self.path, linears)

    @torch.no_grad()
    def store_float_outputs(self) -> None:
        """Compute what the block gives in the float model, for `float_output`.

        Call it after the block's layers were replaced. The block then runs from its start again:
        what it computed up to a tap is forgotten, so that any of its layers may still change.
        """
        self._runner.store_float_outputs(self.path)

    def drop_float_outputs(self) -> None:
        """Drop what `store_float_outputs` stored."""
        self._runner.drop_float_outputs(self.path)

    def float_output(self, sample: int) -> Tensor:
        """Return the stored output of the float model for a sample, `[..., channels]`."""
        return self._runner.float_output(self.path, sample)

    def token_weights(self, sample: int) -> Tensor | None:
        """Return the weight of each token of a sample, float `[T]`; None if all are equal."""
        return self._runner.token_weights(self.path, self._runner.prompts[sample])

    @torch.no_grad()
    def statistics(self) -> Iterator[GroupStatistics]:
        """Observe the inputs of the block's groups; yield the statistics of each group.

        Between two groups the caller replaces the layers of the first one. With `true_sequential`
        a group is observed after the groups before it were replaced; otherwise all are observed
        before any is. Experts do not depend on each other and are observed a few at a time, see
        `observation_passes`.

        Yields:
            The Hessian of a group's input and the further statistics that its layers need.

        Raises:
            ValueError: no sample reaches a group.
        """
        if self.groups and self._keeps_float:
            # The snapshot includes changes of float weights so far: they may rescale channels
            # inside the block, and the inputs of the float copy are compared with the quantized
            # ones channel by channel.
            self._runner.snapshot_float(self.path)
        sequential = self._pass.true_sequential
        for groups in observation_passes(self.groups, self._pass.needs, true_sequential=sequential):
            tap = groups[0].tap
            yield from observe_groups(
                self._runner,
                self.path,
                groups,
                self._pass.needs,
                self._pass.syrk,
                checkpointed=sequential and self._runner.can_checkpoint(self.path, tap),
                unchanged=not sequential or tap == self.groups[0].tap,
            )

    @torch.no_grad()
    def cache_range(self) -> LayerRange | None:
        """Measure the keys and values that the block as it is now caches, over all samples.

        Call it after the block's layers were replaced and before `finish`.

        Returns:
            None if the block caches nothing.

        Raises:
            ValueError: a key or value is not finite.
        """
        if not self._runner.caches(self.path):
            return None
        largest: list[Tensor | None] = [None, None]
        for sample in self._runner.local_samples(self.path):
            for kind, tensor in enumerate(self._runner.cached(self.path, sample)):
                channels = tensor[0].float().abs().amax(1)
                before = largest[kind]
                largest[kind] = channels if before is None else torch.maximum(before, channels)
        local = [None if channels is None else channels.tolist() for channels in largest]
        gathered = all_gather(self._runner.comm, local)
        keys, values = (
            torch.tensor([of_rank[kind] for of_rank in gathered if of_rank[kind]]).amax(0)
            for kind in (0, 1)
        )
        for name, channels in (("keys", keys), ("values", values)):
            if not bool(channels.isfinite().all()):
                raise ValueError(
                    f"the {name} of {self.path} are not finite for a calibration sample; calibrate "
                    "in bf16 or fp32, or look at the samples"
                )
        return layer_range(self._runner.index(self.path), keys, values)

    @torch.no_grad()
    def finish(self, compare: CompareStates | None = None) -> BlockResult:
        """Run all samples through the finished block; seals the input states of the next one.

        Args:
            compare: called for each of this rank's samples, also in the last block.
        """
        following = self._following
        largest = self._runner.advance(
            self.path, following, with_float=self._keeps_float_after, compare=compare
        )
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
        needs: Needs | None = None,
        roundings: Roundings | None = None,
        syrk: Syrk | None = None,
        blocks: BlockSource | None = None,
        store: ActivationStore | None = None,
        resume: Resume | None = None,
        comm: Communicator = SINGLE_PROCESS,
        all_experts: bool = False,
        measures_cache: bool = False,
        keeps_float: bool = False,
    ) -> None:
        """Prepare a pass; nothing runs yet.

        Args:
            model: changed by the caller only.
            prompts: calibration samples with their answers, at least one.
            targets: layers to observe, in the order of computation.
            true_sequential: see `CalibrationBlock.statistics`.
            token_weights: weights of tokens in Hessians; default all equal.
            needs: statistics besides the Hessian, by name of the target; default none. From the
                first targeted block to the last target with a statistic `from_float_model`, every
                sample also runs through a float copy of each block.
            roundings: how targets round their inputs, by name; Hessians and cross moments are those
                of the rounded inputs. Default: no target does.
            syrk: faster product for the Hessians of a bf16 model, see `Hessian`.
            blocks: provides the modules; default the model itself.
            store: stores activations between blocks; default in memory.
            resume: where to continue; default at the first block.
            comm: ranks that share the samples. Each of them runs the same loop and gets the same
                statistics.
            all_experts: see `BlockRunner`.
            measures_cache: run on to the last block that caches keys and values, see
                `CalibrationBlock.cache_range`.
            keeps_float: run a float copy of every targeted block too, whatever `needs` says.

        Raises:
            ValueError: there are no prompts.
        """
        if not prompts:
            raise ValueError("no calibration prompts; this recipe needs at least one")
        blocks = ModelBlocks(model) if blocks is None else blocks
        store = MemoryActivationStore() if store is None else store  # an empty store is falsy
        self.runner = BlockRunner(
            model, prompts, blocks, store, token_weights, comm, all_experts=all_experts
        )
        self.true_sequential, self.needs, self.syrk = true_sequential, needs or {}, syrk
        order = self.runner.all_blocks()
        self.groups = {block: tap_groups(targets, block, roundings) for block in order}
        self._measures_cache, self._keeps_float = measures_cache, keeps_float
        self._first = 0 if resume is None else order.index(resume.block)
        self.runner.diverged = set() if resume is None else set(resume.diverged)

    def __iter__(self) -> Iterator[CalibrationBlock]:
        order = list(self.groups)
        targeted = [i for i, block in enumerate(order) if self.groups[block]]
        caching = [i for i, block in enumerate(order) if self.runner.caches(block)]
        last = max([*targeted, *(caching if self._measures_cache else ())], default=-1)
        with_float = [
            i
            for i in targeted
            if self._keeps_float
            or any(needs_float(group, self.needs) for group in self.groups[order[i]])
        ]
        last_with_float = max(with_float, default=-1)
        for index in range(self._first, last + 1):
            block = order[index]
            if self.groups[block] or self.runner.samples(block):
                yield CalibrationBlock(
                    self,
                    block,
                    order[index + 1] if index < last else None,
                    keeps_float=index <= last_with_float,
                    keeps_float_after=index < last_with_float,
                )
