"""Samples on their way through a model, one block at a time.

What a block needs beside the hidden states (rotary tables, segment bounds, masks) travels in each
sample's state, so pictures of unequal size never meet each other's tables.

Where layers are calibrated against the float model, every sample travels twice: a second state is
what it would be if nothing had been quantized. It comes into being where the two part, at the first
block that is quantized, and passes through a copy of each such block that stays in float.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..common.distributed import SINGLE_PROCESS, Communicator
from ..model.families import family_of
from ..model.processing.inputs import Prompt
from ..model.qwen_vl import QwenVL
from ..model.text import DecoderLayer
from .activation_store import ActivationStore, BlockSource, State, loaded
from .capture import watch_inputs
from .observers import Observer
from .reduction import chunks, owner

FEATURES = "features"
"""Where what the merger made of each sample's pictures waits for the decoder."""

CHECKPOINT_TAPS = ("o", "gate_up", "down")
"""Inputs of decoder layers in front of which samples can wait."""

TokenWeightFn = Callable[[str, Prompt], Tensor | None]
"""Called with a block's path and a sample: how much each token counts in sums, float ``[T]``, not
negative; None = all alike."""


class _StopForward(Exception):  # noqa: N818, RUF100  # control flow: the rest of the block need not run
    pass


class BlockRunner:
    """The state of all samples in front of the block that the walk has reached."""

    def __init__(
        self,
        model: QwenVL,
        prompts: Sequence[Prompt],
        blocks: BlockSource,
        store: ActivationStore,
        token_weights: TokenWeightFn | None = None,
        comm: Communicator = SINGLE_PROCESS,
    ) -> None:
        self.model, self.prompts, self.comm = model, prompts, comm
        self.blocks, self.store = blocks, store
        family = family_of(model.config)
        config = model.config
        self.vision = family.stage("vision").blocks(config)
        self.merger = family.stage("merger").blocks(config)
        self.decoder = family.stage("decoder").blocks(config)
        self.head = family.stage("head").blocks(config)
        self._entry = {stage.name: stage.entry for stage in family.stages if stage.entry}
        self._weigh = token_weights
        self.seeing = [i for i, prompt in enumerate(prompts) if prompt.visuals]
        self.parted: set[int] = set()
        """Samples whose float state differs from the quantized one and is kept beside it."""
        self._copy: nn.Module | None = None
        self._paused: dict[int, str] = {}
        """Where samples wait that are in the midst of the block, see `pause`."""

    def steps(self) -> list[str]:
        """Module paths of all blocks in the order of computation."""
        return [*self.vision, *self.merger, *self.decoder, *self.head]

    def samples(self, step: str) -> Sequence[int]:
        """Prompts that pass through a block."""
        in_vision = step in self.vision or step in self.merger
        return self.seeing if in_vision else range(len(self.prompts))

    def parts(self, step: str) -> list[list[int]]:
        """The same by chunks, see `reduction.py`."""
        samples = self.samples(step)
        return [[i for i in chunk if i in samples] for chunk in chunks(len(self.prompts))]

    def mine(self, step: str) -> list[int]:
        """Those of them that this process runs."""
        mine = (
            part
            for number, part in enumerate(self.parts(step))
            if owner(number, self.comm) == self.comm.index
        )
        return [sample for part in mine for sample in part]

    def enter(self, step: str) -> None:
        """Before the first block of the vision tower or the decoder: make the first states."""
        if step == self.vision[0]:
            with loaded(self.blocks, self._entry["vision"]):
                for sample in self.mine(step):
                    self.store.put(step, sample, self._see(self.prompts[sample]))
        elif step == self.decoder[0]:
            with loaded(self.blocks, self._entry["decoder"]):
                for sample in self.mine(step):
                    state = self._embed(sample)
                    self.store.put(step, sample, state)
                    if sample in self.parted:
                        hidden = self._embed(sample, in_float=True)["hidden"]
                        self.store.put(_key(step, True), sample, {**state, "hidden": hidden})
        elif step in self.head:
            self.blocks.load(self._entry["head"])

    def waiting(self, step: str) -> list[str]:
        """Names under which the store holds what is needed before `enter`."""
        if step == self.vision[0]:
            return []
        name = FEATURES if step == self.decoder[0] else step
        return [_key(name, in_float) for in_float in (False, True)]

    def split(self, step: str) -> None:
        """Copy a block whose layers are about to be quantized; the float states will use the copy.

        The copy lives until the walk has passed the block.
        """
        self._copy = copy.deepcopy(self.model.get_submodule(step))

    def advance(self, step: str, following: str | None, *, with_float: bool = False) -> list[float]:
        """Run all samples through a finished block; their states wait before the next one.

        Args:
            step: the block.
            following: the next one; None = no block follows, nothing runs.
            with_float: whether the float states are still needed behind the block.

        Returns:
            The largest magnitude behind the block, of each sample of this process.
        """
        largest: list[float] = []
        parting = self.parted if self._copy is None else set(self.samples(step))
        for sample in self.mine(step):
            for in_float in (False, True) if with_float and sample in parting else (False,):
                if following is not None:
                    name = FEATURES if following == self.decoder[0] else following
                    state = self._through(step, sample, in_float)
                    self.store.put(_key(name, in_float), sample, state)
                    largest.append(float(state["hidden"].abs().amax()))
            self.store.drop(step, sample)
            if sample in self.parted:
                self.store.drop(_key(step, True), sample)
        for name in self.waiting(following) if following is not None else ():
            self.store.seal(name)
        self.parted = set(parting) if with_float else set()
        self._copy = None
        return largest

    def watch(
        self,
        step: str,
        sample: int,
        observers: Mapping[str, Sequence[Observer]],
        *,
        in_float: bool = False,
    ) -> None:
        """Run one sample through a block as far as the last layer that is watched."""
        weights = self.token_weights(step, self.prompts[sample])
        remaining = len(observers)

        def watcher(watching: Sequence[Observer]) -> Callable[[Tensor], None]:
            def see(inputs: Tensor) -> None:
                nonlocal remaining
                for observer in watching:
                    observer.update(inputs, weights)
                remaining -= 1
                if not remaining:
                    raise _StopForward

            return see

        with self._standing_in(step, in_float):
            watchers = {
                self.model.get_submodule(name): watcher(watching)
                for name, watching in observers.items()
            }
            with watch_inputs(watchers):
                try:
                    self.run(step, self._state(step, sample, in_float))
                except _StopForward:
                    pass

    def can_checkpoint(self, step: str, tap: str, following: str | None) -> bool:
        """Whether `pause` may take the place of `watch` for the layers of one input.

        All layers in front of them must be as they will stay.
        """
        is_inner = step in self.decoder and tap in CHECKPOINT_TAPS
        return is_inner and following is not None and self._copy is None and not self.parted

    def pause(self, step: str, tap: str, sample: int, observer: Observer) -> None:
        """Show what layers of a decoder block read, and let the sample wait in front of them.

        It goes on from there with the next `pause`, or with `advance`.
        """
        state, inputs = self._layer(step).forward_to(tap, self._paused_state(step, sample))
        observer.update(inputs, self.token_weights(step, self.prompts[sample]))
        self._paused[sample] = f"{step} (in front of {tap})"
        self.store.put(self._paused[sample], sample, state)

    def _paused_state(self, step: str, sample: int) -> State:
        if sample not in self._paused:
            return self._state(step, sample, False)
        name = self._paused.pop(sample)
        state = self.store.get(name, sample)
        self.store.drop(name, sample)
        return state

    def output(self, step: str, sample: int) -> Tensor:
        """What a block makes of a sample as it is now, ``[..., channels]``."""
        return self._through(step, sample, False)["hidden"]

    def run(self, step: str, state: State) -> State:
        """The state behind a block."""
        if step in self.vision:
            return self.model.visual.step(self.vision.index(step), state)
        if step in self.merger:
            return {"hidden": self.model.visual.finish(state)}
        if step in self.head:
            return {"hidden": self.model.logits(self.model.model.finish(state))}
        return self.model.model.step(self.decoder.index(step), state)

    def token_weights(self, step: str, prompt: Prompt) -> Tensor | None:
        """How much each token counts in a block, float ``[T]``; None = all alike."""
        return None if self._weigh is None else self._weigh(step, prompt)

    def _through(self, step: str, sample: int, in_float: bool) -> State:
        if sample in self._paused:
            hidden = self._layer(step).forward_from(self._paused_state(step, sample))
            return {**self._state(step, sample, in_float), "hidden": hidden}
        with self._standing_in(step, in_float):
            return self.run(step, self._state(step, sample, in_float))

    def _layer(self, step: str) -> DecoderLayer:
        layer = self.model.get_submodule(step)
        assert isinstance(layer, DecoderLayer)
        return layer

    def _state(self, step: str, sample: int, in_float: bool) -> State:
        return self.store.get(_key(step, in_float and sample in self.parted), sample)

    @contextmanager
    def _standing_in(self, step: str, in_float: bool) -> Iterator[None]:
        """Put the float copy of a block, if there is one, in the block's place for a while."""
        if not in_float or self._copy is None:
            yield
            return
        path, _, leaf = step.rpartition(".")
        owner, block = self.model.get_submodule(path), self.model.get_submodule(step)
        setattr(owner, leaf, self._copy)
        try:
            yield
        finally:
            setattr(owner, leaf, block)

    def _see(self, prompt: Prompt) -> State:
        patches = torch.cat([visual.patches for visual in prompt.visuals])
        grid = torch.tensor([visual.grid for visual in prompt.visuals])
        return self.model.visual.prepare(patches, grid)

    def _embed(self, sample: int, in_float: bool = False) -> State:
        prompt = self.prompts[sample]
        parts: Sequence[Tensor] = ()
        if prompt.visuals:
            unit = self.model.config.vision.merge_unit
            sizes = [visual.patches.shape[0] // unit for visual in prompt.visuals]
            name = _key(FEATURES, in_float)
            parts = torch.split(self.store.get(name, sample)["hidden"], sizes)
            self.store.drop(name, sample)
        batch = self.model.embed([prompt], [parts])
        return self.model.model.prepare(batch.embeds, batch.position_ids)


def _key(step: str, in_float: bool) -> str:
    """Where the states in front of a block wait in the store."""
    return f"{step} (float)" if in_float else step
