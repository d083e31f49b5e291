"""Walk a model block by block, and stop where layers are to be solved.

Block k runs on the output of the blocks before it as they are by then, that is, quantized. No
forward pass of the whole model ever happens: a block is loaded, all samples pass through it, and it
is released. Vision blocks, merger and decoder layers are stages of the same walk.

What a block needs beside the hidden states (rotary tables, segment bounds, masks) travels in each
sample's state, so pictures of unequal size never meet each other's tables.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.families import LinearSpec, family_of
from ..model.inputs import Prompt
from ..model.qwen_vl import QwenVL
from .capture import watch_inputs
from .observers import Hessian, Observer
from .store import ActivationStore, BlockSource, MemoryStore, ModelBlocks, State, loaded


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


Solve = Callable[[TapGroup, Hessian], None]
"""Called with a group and its Hessian; replaces the group's layers in the model."""


class BlockView:
    """A block that the walk has reached, and the samples in front of it.

    Its layers are not solved yet; everything before it is. What is changed in its weights while
    this view is open stays changed for all that follows.
    """

    def __init__(self, walk: "_Walk", path: str) -> None:
        self._walk = walk
        self.path = path
        """Module path of the block."""
        self.samples: Sequence[int] = walk.samples(path)
        """Numbers of the samples that pass through it."""

    def observe(
        self, observers: Mapping[str, Sequence[Observer]], samples: Sequence[int] | None = None
    ) -> None:
        """Run samples and show observers what linear layers read.

        Args:
            observers: for each layer name (in full) what watches its input; tokens are weighted
                as they are in the Hessians.
            samples: numbers of some of `samples`; None = all.

        Raises:
            ValueError: no sample reaches the block.
        """
        if not self.samples:
            raise ValueError(
                f"{self.path}: no calibration sample reaches this block; add samples with images"
            )
        for sample in self.samples if samples is None else samples:
            self._walk.watch(self.path, sample, observers)

    def output(self, sample: int) -> Tensor:
        """What the block makes of a sample as it is now, ``[..., channels]``."""
        walk = self._walk
        return walk.run(self.path, walk.store.get(self.path, sample))["hidden"]

    def token_weights(self, sample: int) -> Tensor | None:
        """How much each token of a sample counts, float ``[T]``; None = all alike."""
        return self._walk.token_weights(self.path, self._walk.prompts[sample])


Prepare = Callable[[BlockView], None]
"""Called with a block before its groups are solved; may change its float weights."""


class _Seen(Exception):  # noqa: N818, RUF100  # control flow: the rest of the block need not run
    pass


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
    image_weight: float = 1.0,
    prepare: Prepare | None = None,
    blocks: BlockSource | None = None,
    store: ActivationStore | None = None,
) -> None:
    """Capture the Hessian of every tap of the targets and have each group solved.

    Args:
        model: changed only by `solve` and `prepare`.
        prompts: calibration samples with their answers, at least one.
        targets: layers to solve, in the order of computation.
        solve: called once per group; what it puts into the model feeds all that follows.
        true_sequential: capture a group after the groups before it in the same block were
            solved; otherwise all groups of a block see its original output.
        image_weight: weight of an image or video token in decoder Hessians (text counts 1).
        prepare: called for each block that has targets, before its groups are captured.
        blocks: where modules come from; default the model itself.
        store: where activations wait; default in memory.

    Raises:
        ValueError: there are no prompts, or a targeted layer saw no input (no prompt has an image
            and the vision tower is targeted).
    """
    if not prompts:
        raise ValueError("no calibration prompts; this recipe needs at least one")
    walk = _Walk(model, prompts, blocks or ModelBlocks(model), store or MemoryStore(), image_weight)
    steps = walk.steps()
    wanted = {step: tap_groups(targets, step) for step in steps}
    last = max((i for i, step in enumerate(steps) if wanted[step]), default=-1)
    for index, step in enumerate(steps[: last + 1]):
        following = steps[index + 1] if index < last else None
        walk.enter(step)
        with loaded(walk.blocks, step):
            groups = wanted[step]
            if groups and prepare is not None:
                prepare(BlockView(walk, step))
            rounds = [[group] for group in groups] if true_sequential else [groups]
            for together in rounds:
                for group, hessian in walk.observe(step, together):
                    solve(group, hessian)
            walk.advance(step, following)


class _Walk:
    """The state of all samples on their way through the model."""

    def __init__(
        self,
        model: QwenVL,
        prompts: Sequence[Prompt],
        blocks: BlockSource,
        store: ActivationStore,
        image_weight: float,
    ) -> None:
        self.model, self.prompts = model, prompts
        self.blocks, self.store = blocks, store
        family = family_of(model.config)
        config = model.config
        self.vision = family.stage("vision").blocks(config)
        self.merger = family.stage("merger").blocks(config)
        self.decoder = family.stage("decoder").blocks(config)
        self.head = family.stage("head").blocks(config)
        self.image_weight = image_weight
        self.features: dict[int, Tensor] = {}
        self.seeing = [i for i, prompt in enumerate(prompts) if prompt.visuals]

    def steps(self) -> list[str]:
        """Module paths of all blocks in the order of computation."""
        return [*self.vision, *self.merger, *self.decoder, *self.head]

    def samples(self, step: str) -> Sequence[int]:
        """Prompts that pass through a block."""
        in_vision = step in self.vision or step in self.merger
        return self.seeing if in_vision else range(len(self.prompts))

    def enter(self, step: str) -> None:
        """Before the first block of the vision tower or the decoder: make the first states."""
        if step == self.vision[0]:
            with loaded(self.blocks, "visual.patch_embed"):
                for sample in self.seeing:
                    self.store.put(step, sample, self._see(self.prompts[sample]))
        elif step == self.decoder[0]:
            with loaded(self.blocks, "model.embed_tokens"):
                for sample, prompt in enumerate(self.prompts):
                    self.store.put(step, sample, self._embed(sample, prompt))

    def observe(self, step: str, groups: Sequence[TapGroup]) -> Iterator[tuple[TapGroup, Hessian]]:
        """Run all samples through a block and give each group's Hessian."""
        if not groups:
            return
        device = self.model.device
        observers = [Hessian(group.in_features, device) for group in groups]
        watchers = {
            group.linears[0].name: [observer]
            for group, observer in zip(groups, observers, strict=True)
        }
        for sample in self.samples(step):
            self.watch(step, sample, watchers)
        for group, observer in zip(groups, observers, strict=True):
            if not observer.tokens:
                raise ValueError(
                    f"{group.linears[0].name}: no calibration sample reaches this layer; "
                    "add samples with images"
                )
            yield group, observer

    def advance(self, step: str, following: str | None) -> None:
        """Run all samples through a finished block; their states wait before the next one."""
        for sample in self.samples(step):
            if following is not None:
                state = self.run(step, self.store.get(step, sample))
                if step in self.merger:
                    self.features[sample] = state["hidden"]
                else:
                    self.store.put(following, sample, state)
            self.store.drop(step, sample)

    def watch(self, step: str, sample: int, observers: Mapping[str, Sequence[Observer]]) -> None:
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
                    raise _Seen

            return see

        watchers = {
            self.model.get_submodule(name): watcher(watching)
            for name, watching in observers.items()
        }
        with watch_inputs(watchers):
            try:
                self.run(step, self.store.get(step, sample))
            except _Seen:
                pass

    def _see(self, prompt: Prompt) -> State:
        patches = torch.cat([visual.patches for visual in prompt.visuals])
        grid = torch.tensor([visual.grid for visual in prompt.visuals])
        return self.model.visual.prepare(patches, grid)

    def _embed(self, sample: int, prompt: Prompt) -> State:
        parts: Sequence[Tensor] = ()
        if prompt.visuals:
            unit = self.model.config.vision.merge_unit
            sizes = [visual.patches.shape[0] // unit for visual in prompt.visuals]
            parts = torch.split(self.features.pop(sample), sizes)
        batch = self.model.embed([prompt], [parts])
        return self.model.model.prepare(batch.embeds, batch.position_ids)

    def run(self, step: str, state: State) -> State:
        """The state behind a block."""
        if step in self.vision:
            return {**state, "hidden": self.model.visual.step(self.vision.index(step), state)}
        if step in self.merger:
            return {"hidden": self.model.visual.finish(state)}
        if step in self.head:
            return {"hidden": self.model.logits(self.model.model.finish(state["hidden"]))}
        layer = self.model.get_submodule(step)
        hidden = layer(state["hidden"], state["cos"], state["sin"], state.get("mask"))
        return {**state, "hidden": hidden}

    def token_weights(self, step: str, prompt: Prompt) -> Tensor | None:
        """How much each token counts in a block, float ``[T]``; None = all alike."""
        if self.image_weight == 1.0 or step not in self.decoder + self.head:
            return None
        config = self.model.config
        ids = prompt.input_ids
        visual = (ids == config.image_token_id) | (ids == config.video_token_id)
        return torch.where(visual, self.image_weight, 1.0)
