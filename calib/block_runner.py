"""Blockwise forward pass over the calibration samples.

The stages of the family say which samples pass a block, how their first state is made, what a block
computes and what remains after the last one; nothing here depends on a model type. The state of a
sample holds its hidden states and everything else a block needs (rotary tables, segment bounds,
masks, features for later layers), so samples with images of different sizes need no padding.

Some layers are calibrated against the float model (GPTAQ). Samples then have a second state, the
float state, that of the float model. Both are the same up to the first quantized block. From there
on, float states run through a float copy of each quantized block.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Protocol, cast

from torch import Tensor, nn

from ..common.distributed import SINGLE_PROCESS, Communicator
from ..model.expert_linear import all_tokens_to_experts, routed_tokens
from ..model.families import LinearSpec, Stage, family_of
from ..model.features import HIDDEN
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .activation_store import ActivationStore, BlockSource, State, hold_block
from .capture import watch_inputs
from .observers import Observer
from .reduction import shard_rank, shard_samples

TokenWeightFn = Callable[[str, Prompt], Tensor | None]
"""Called with the module path of a block and a sample; returns the weight of each token in sums,
float `[T]`, not negative, or None if all are equal."""

CompareStates = Callable[[int, Tensor, Tensor], None]
"""Called with the number of a sample, the hidden states before a block and its output, each
`[..., T, H]`."""

ROUTER = "router"
"""Place of the checkpoints that serve all experts' taps."""


class _Resumable(Protocol):
    """The module of a block with checkpoints, see `DecoderLayer`."""

    def forward_to(self, tap: str, state: Mapping[str, Tensor]) -> tuple[State, Tensor]: ...

    def expert_inputs(
        self, tap: str, state: Mapping[str, Tensor], experts: Collection[int], *, all_tokens: bool
    ) -> Iterator[tuple[int, Tensor | None, Tensor]]: ...

    def forward_from(self, state: Mapping[str, Tensor]) -> Tensor: ...


class _StopForward(Exception):  # noqa: N818, RUF100  # control flow
    """Raised by a hook to skip the layers after the last observed one."""


class BlockRunner:
    """Runs all samples through the model, one block at a time.

    Between two blocks the states of all samples are in the store. Blocks are named by their module
    paths.

    Args:
        model: its blocks are loaded and released by `blocks`.
        prompts: calibration samples.
        blocks: provides modules with their weights.
        store: holds the input states of the next block.
        token_weights: weights of tokens in sums; default all equal.
        comm: ranks that share the samples.
        all_experts: experts are observed with all tokens instead of those routed to them.
    """

    def __init__(
        self,
        model: QwenVL,
        prompts: Sequence[Prompt],
        blocks: BlockSource,
        store: ActivationStore,
        token_weights: TokenWeightFn | None = None,
        comm: Communicator = SINGLE_PROCESS,
        *,
        all_experts: bool = False,
    ) -> None:
        self.model, self.prompts, self.comm = model, prompts, comm
        self._all_experts = all_experts
        self.blocks, self.store = blocks, store
        self._places: dict[str, tuple[Stage, int]] = {
            path: (stage, index)
            for stage in family_of(model.config).stages
            for index, path in enumerate(stage.blocks(model.config))
        }
        order = list(self._places)
        self._block_before = dict(zip(order[1:], order, strict=False))
        self._token_weights = token_weights
        self._with_visuals = [i for i, prompt in enumerate(prompts) if prompt.visuals]
        self.diverged: set[int] = set()
        """Samples with a float state that differs from the quantized one."""
        self._float_block: nn.Module | None = None
        self._checkpoints: dict[tuple[int, bool], str] = {}
        """Store key of the states inside the block, by sample and whether it is the float state;
        see `run_to_tap`."""

    def all_blocks(self) -> list[str]:
        """Return the module paths of all blocks in the order of computation."""
        return list(self._places)

    def samples(self, block: str) -> Sequence[int]:
        """Return the numbers of the samples that pass through a block."""
        in_tower = self._stage(block).part == "tower"
        return self._with_visuals if in_tower else range(len(self.prompts))

    def entry_key(self, block: str) -> str:
        """Return the store key of the states that `enter` needs, or else the block."""
        stage, index = self._places[block]
        return f"{block} (entry)" if stage.enter is not None and index == 0 else block

    def shards(self, block: str) -> list[list[int]]:
        """Return the samples of a block by shard, see `reduction`."""
        samples = self.samples(block)
        return [[i for i in shard if i in samples] for shard in shard_samples(len(self.prompts))]

    def local_samples(self, block: str) -> list[int]:
        """Return the samples of a block that this rank runs."""
        return [
            sample
            for number, shard in enumerate(self.shards(block))
            if shard_rank(number, self.comm) == self.comm.rank
            for sample in shard
        ]

    def enter(self, block: str) -> None:
        """Create the first states of the samples, if the block is the first of its stage."""
        stage, _ = self._places[block]
        key = self.entry_key(block)
        if stage.enter is None or key == block:
            return
        with ExitStack() as held:
            for path in stage.entry:
                held.enter_context(hold_block(self.blocks, path))
            before = self._block_before.get(block)
            arriving = () if before is None else self.samples(before)
            for sample in self.local_samples(block):
                previous = self._take(key, sample) if sample in arriving else None
                state = stage.enter(self.model, self.prompts[sample], previous)
                self.store.put(block, sample, state)
                if sample in self.diverged:
                    previous = self._take(_key(key, True), sample)
                    float_state = stage.enter(self.model, self.prompts[sample], previous)
                    # Rotary tables and masks are equal, and stored once in memory.
                    own = {"hidden", *(previous or ())}
                    shared = {name: value for name, value in state.items() if name not in own}
                    self.store.put(_key(block, True), sample, {**float_state, **shared})

    def pending_keys(self, block: str) -> list[str]:
        """Return the keys of the stored states that `enter` and the block need."""
        if block == next(iter(self._places)):
            return []
        return [_key(self.entry_key(block), in_float) for in_float in (False, True)]

    def snapshot_float(self, block: str) -> None:
        """Copy a block before its layers are quantized, for the float states.

        The copy is dropped by `advance`.
        """
        self._float_block = copy.deepcopy(self.model.get_submodule(block))

    def float_weights(self, block: str, linears: Sequence[LinearSpec]) -> list[Tensor]:
        """Return weights `[N, K]` of the float copy of a block."""
        assert self._float_block is not None
        names = [spec.name.removeprefix(block).removeprefix(".") for spec in linears]
        layers = [self._float_block.get_submodule(name) for name in names]
        weights = [layer.weight for layer in layers]
        return [weight.detach() for weight in weights if isinstance(weight, Tensor)]

    def advance(
        self,
        block: str,
        following: str | None,
        *,
        with_float: bool = False,
        compare: CompareStates | None = None,
    ) -> list[float]:
        """Run all samples through a finished block and store the input states of the next one.

        Args:
            block: the finished block.
            following: the next block; with None, nothing runs unless `compare` is given.
            with_float: whether float states are needed after the block.
            compare: called for each of this rank's samples.

        Returns:
            The largest magnitude of each output of this rank's samples.
        """
        largest: list[float] = []
        # A float copy exists if the block was quantized: then the outputs of all samples differ.
        diverged = self.diverged if self._float_block is None else set(self.samples(block))
        for sample in self.local_samples(block):
            for in_float in (False, True) if with_float and sample in diverged else (False,):
                if following is None and compare is None:
                    continue
                state = self._run_sample(block, sample, in_float)
                if compare is not None and not in_float:
                    inputs = self._state(block, sample, False)[HIDDEN]
                    compare(sample, inputs, self._output(block, state))
                if following is not None:
                    largest.append(float(self._output(block, state).abs().amax()))
                    state = self._leave(block, following, state)
                    self.store.put(_key(self.entry_key(following), in_float), sample, state)
            self.store.drop(block, sample)
            if sample in self.diverged:
                self.store.drop(_key(block, True), sample)
            for in_float in (False, True):  # those that nothing continues from
                if (sample, in_float) in self._checkpoints:
                    self.store.drop(self._checkpoints.pop((sample, in_float)), sample)
        for key in self.pending_keys(following) if following is not None else ():
            self.store.seal(key)
        self.diverged = set(diverged) if with_float else set()
        self._float_block = None
        return largest

    def observe(
        self,
        block: str,
        sample: int,
        observers: Mapping[str, Sequence[Observer]],
        *,
        in_float: bool = False,
    ) -> None:
        """Run one sample through a block up to the last observed layer.

        Args:
            block: the block.
            sample: number of the sample.
            observers: updated with the inputs of the linear layers, by full layer name.
            in_float: run the float state through the float copy of the block.
        """
        weights = self.token_weights(block, self.prompts[sample])
        remaining = len(observers)

        def watcher(layer_observers: Sequence[Observer]) -> Callable[[Tensor], None]:
            def update(inputs: Tensor) -> None:
                nonlocal remaining
                tokens = routed_tokens()
                own = _of_tokens(weights, tokens)
                for observer in layer_observers:
                    observer.update(inputs, own)
                remaining -= 1
                if not remaining:
                    raise _StopForward

            return update

        with self._float_copy(block, in_float):
            watchers = {
                self.model.get_submodule(name): watcher(layer_observers)
                for name, layer_observers in observers.items()
            }
            everywhere = all_tokens_to_experts() if self._all_experts else nullcontext()
            with watch_inputs(watchers), everywhere:
                try:
                    self.run(block, self._state(block, sample, in_float))
                except _StopForward:
                    pass

    def can_checkpoint(self, block: str, tap: str) -> bool:
        """Return whether `run_to_tap` can replace `observe` for a tap.

        Calibrated in sequence, the layers before a tap are final when the tap is reached, so no
        sample has to run through them again: with checkpoints a block runs once per state,
        without them once per tap and once more at the end.
        """
        checkpoints = self._stage(block).checkpoints
        return checkpoints is not None and tap in checkpoints.taps

    def run_to_tap(self, block: str, tap: str, sample: int, *, in_float: bool = False) -> Tensor:
        """Run a sample up to `tap`, checkpoint its state there, and return the tensor at the tap.

        The sample continues from there in the next `run_to_tap`, or in `advance`.

        Args:
            block: a block of a stage with checkpoints.
            tap: one of its taps; all layers before it are final.
            sample: number of the sample.
            in_float: run the float state through the float copy of the block.

        Returns:
            `[1, tokens, channels]`.
        """
        return self._run_to(block, tap, tap, sample, in_float)[1]

    def run_to_expert_tap(
        self,
        block: str,
        tap: str,
        experts: Collection[int],
        sample: int,
        *,
        in_float: bool = False,
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Run a sample up to a tap of some experts; checkpoint its state before the router.

        From there it continues to any experts' taps, or in `advance`. The other experts do not run.

        Args:
            block: a block of a stage with checkpoints.
            tap: one of its taps; all layers before it are final, those of the experts included.
            experts: numbers of experts.
            sample: number of the sample.
            in_float: run the float state through the float copy of the block.

        Yields:
            The number of an expert, its input `[n, channels]`, and the weights of these tokens,
            float `[n]` (None = all equal). Experts without a token are left out.
        """
        if self._checkpoints.get((sample, in_float)) == _checkpoint_key(block, ROUTER, in_float):
            state = self.store.get(self._checkpoints[sample, in_float], sample)
        else:
            state, _ = self._run_to(block, tap, ROUTER, sample, in_float)
        weights = self.token_weights(block, self.prompts[sample])
        layer = self._layer(block, in_float)
        for expert, tokens, inputs in layer.expert_inputs(
            tap, state, experts, all_tokens=self._all_experts
        ):
            yield expert, inputs, _of_tokens(weights, tokens)

    def _run_to(
        self, block: str, tap: str, place: str, sample: int, in_float: bool
    ) -> tuple[State, Tensor]:
        """Run a sample from its checkpoint to `tap`, and checkpoint it there by name of `place`.

        Returns:
            Its state there, and the tensor at the tap.
        """
        state = self._take_checkpoint(sample, in_float)
        if state is None:
            state = self._state(block, sample, in_float)
        state, inputs = self._layer(block, in_float).forward_to(tap, state)
        key = _checkpoint_key(block, place, in_float)
        self._checkpoints[sample, in_float] = key
        self.store.put(key, sample, state, persistent=False)
        return state, inputs

    def _take_checkpoint(self, sample: int, in_float: bool) -> State | None:
        """Take a sample's checkpoint inside the block out of the store; None if it has none."""
        if (sample, in_float) not in self._checkpoints:
            return None
        return self._take(self._checkpoints.pop((sample, in_float)), sample)

    def output(self, block: str, sample: int) -> Tensor:
        """Compute the output of a block as it is now for one sample, `[..., channels]`."""
        return self._output(block, self._run_sample(block, sample, False))

    def store_float_outputs(self, block: str) -> None:
        """Store the float block's outputs; the block starts again from its inputs afterwards."""
        for (sample, _), key in self._checkpoints.items():
            self.store.drop(key, sample)
        self._checkpoints.clear()
        for sample in self.local_samples(block):
            output = self._output(block, self._run_sample(block, sample, True))
            self.store.put(_output_key(block), sample, {"output": output}, persistent=False)

    def float_output(self, block: str, sample: int) -> Tensor:
        """Return a stored output of the float block, `[..., channels]`."""
        return self.store.get(_output_key(block), sample)["output"]

    def drop_float_outputs(self, block: str) -> None:
        """Drop what `store_float_outputs` stored."""
        for sample in self.local_samples(block):
            self.store.drop(_output_key(block), sample)

    def caches(self, block: str) -> bool:
        """Return whether a block caches keys and values."""
        stage, index = self._places[block]
        return stage.caches(self.model.config, index)

    def cached(self, block: str, sample: int) -> tuple[Tensor, Tensor]:
        """Compute the keys and values that a block as it is now caches for one sample.

        Args:
            block: one that `caches` keys and values.
            sample: number of the sample.

        Returns:
            Keys after the rotary embedding, and values, `[1, kv_heads, tokens, head_dim]`.
        """
        stage, index = self._places[block]
        assert stage.cached is not None
        return stage.cached(self.model, index, self._state(block, sample, False))

    def index(self, block: str) -> int:
        """Return the index of a block in its stage."""
        return self._places[block][1]

    def run(self, block: str, state: State) -> State:
        """Compute the state after a block."""
        stage, index = self._places[block]
        return stage.step(self.model, index, state)

    def token_weights(self, block: str, prompt: Prompt) -> Tensor | None:
        """Return the weight of each token in a block, float `[T]`; None if all are equal."""
        return None if self._token_weights is None else self._token_weights(block, prompt)

    def _stage(self, block: str) -> Stage:
        return self._places[block][0]

    def _output(self, block: str, state: State) -> Tensor:
        """Return the output of a block from the state after it."""
        stage, index = self._places[block]
        return state[stage.output_key(index)]

    def _leave(self, block: str, following: str, state: State) -> State:
        """Return what remains of the state after a block."""
        stage = self._stage(block)
        if stage.leave is None or self._stage(following) is stage:
            return state
        return stage.leave(self.model, state)

    def _run_sample(self, block: str, sample: int, in_float: bool) -> State:
        checkpoint = self._take_checkpoint(sample, in_float)
        if checkpoint is not None:
            stage, index = self._places[block]
            assert stage.checkpoints is not None
            output = self._layer(block, in_float).forward_from(checkpoint)
            state = self._state(block, sample, in_float)
            return stage.checkpoints.complete(self.model, index, state, output)
        with self._float_copy(block, in_float):
            return self.run(block, self._state(block, sample, in_float))

    def _layer(self, block: str, in_float: bool) -> _Resumable:
        layer = self._float_block if in_float else None
        return cast(_Resumable, self.model.get_submodule(block) if layer is None else layer)

    def _take(self, key: str, sample: int) -> State:
        """Take a state out of the store."""
        state = self.store.get(key, sample)
        self.store.drop(key, sample)
        return state

    def _state(self, block: str, sample: int, in_float: bool) -> State:
        return self.store.get(_key(block, in_float and sample in self.diverged), sample)

    @contextmanager
    def _float_copy(self, block: str, in_float: bool) -> Iterator[None]:
        """Replace a block by its float copy, if there is one, for the length of a `with` block."""
        if not in_float or self._float_block is None:
            yield
            return
        path, _, leaf = block.rpartition(".")
        parent, quantized = self.model.get_submodule(path), self.model.get_submodule(block)
        setattr(parent, leaf, self._float_block)
        try:
            yield
        finally:
            setattr(parent, leaf, quantized)


def _of_tokens(weights: Tensor | None, tokens: Tensor | None) -> Tensor | None:
    """Select the weights of some tokens; None: all weights are equal, or all tokens are meant."""
    return weights if weights is None or tokens is None else weights[tokens]


def _checkpoint_key(block: str, place: str, in_float: bool) -> str:
    """Return the store key of states inside a block."""
    return f"{block} (at {place}{', float' if in_float else ''})"


def _output_key(block: str) -> str:
    """Return the store key of the outputs of a float block."""
    return f"{block} (float output)"


def _key(block: str, in_float: bool) -> str:
    """Return the store key of a block's input states."""
    return f"{block} (float)" if in_float else block
