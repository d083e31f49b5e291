"""Predicted loss of every scheme for every layer.

A layer whose weight is off by e, `[N, K]`, is off by `x e'` in its output for an input x. With the
sensitivities of `calib.output_sensitivity`, the divergence per predicted token is

    1/2 sum_n G_n (e H e')_nn / P,    H = sum_t a_t x_t' x_t / sum_t a_t,

where G_n is the squared gradient at output n, summed over tokens, a_t that at token t, summed over
outputs, and P the number of predicted tokens. The weights a_t leave out tokens whose error no
prediction sees, such as almost all of the last layer's. Losses of different layers are added: their
errors are taken for uncorrelated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...calib.activation_store import ModelBlocks
from ...calib.block_runner import BlockRunner
from ...calib.disk_activation_store import DiskActivationStore
from ...calib.observers import Hessian
from ...calib.output_sensitivity import OutputSensitivity, Progress, Sensitivities
from ...calib.statistics import HESSIAN
from ...calib.tap_groups import TapGroup, tap_groups
from ...model.expert_linear import routed_tokens
from ...model.families import EMBEDDING, LinearSpec
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..compressed_weight import CompressedWeight
from ..driver.experts import EXPERT_TOKENS
from ..kernels.bf16_linear import select_syrk
from ..methods.layer_error import row_energy
from ..methods.layer_inputs import LayerInputs, SharedInput
from ..recipe.mask import MaskRule
from ..recipe.scheme import Scheme
from ..targets import weight_of
from .steps import make_step

Rounding = tuple[Scheme, MaskRule | None]
"""How the weights of a layer are rounded: the scheme, and which weights are zero."""
Layer = tuple[str, Scheme, MaskRule | None]
"""Name of a layer, a scheme and a mask for it."""


@dataclass(frozen=True)
class Scores:
    """Predicted losses of the schemes of layers, in nats per predicted token."""

    losses: Mapping[Layer, float]
    weights: Mapping[Layer, CompressedWeight]
    """The weights that were asked for, quantized by the method of the recipe."""

    def loss(
        self,
        layers: Sequence[LinearSpec],
        schemes: Sequence[Scheme | None],
        mask: MaskRule | None = None,
    ) -> float:
        """Return the sum over some layers with a mask; 0 for those in float."""
        pairs = zip(layers, schemes, strict=True)
        return sum(self.losses[spec.name, s, mask] for spec, s in pairs if s is not None)


def output_loss(error: Tensor, outputs: Tensor, hessian: Tensor, predicted: int) -> float:
    """Compute the predicted loss of a weight error.

    Args:
        error: `[N, K]`.
        outputs: G, float32 `[N]`, see the module.
        hessian: H, `[K, K]`.
        predicted: P.
    """
    return 0.5 * float((outputs * row_energy(error, hessian)).sum()) / predicted


def score_layers(
    model: QwenVL,
    prompts: Sequence[Prompt],
    schemes: Mapping[str, Collection[Rounding]],
    targets: Sequence[LinearSpec],
    sensitivities: Sensitivities,
    store: DiskActivationStore,
    *,
    errors: str,
    keep: Collection[Layer] = (),
    on_progress: Progress | None = None,
) -> Scores:
    """Measure the error of every scheme on every layer, one block at a time.

    Inputs are those of the float model: no layer is replaced.

    Args:
        model: float model; left unchanged.
        prompts: samples with their answers, the same as for the sensitivities.
        schemes: to measure with their masks, by name of the layer.
        targets: all layers in the order of computation.
        sensitivities: of these layers.
        store: for the activations between blocks.
        errors: see `make_step`.
        keep: layers whose weights are returned, as the recipe's method quantizes them; the token
            embedding has none.
        on_progress: called with the number of finished layers, their total and the last one.
    """
    return _Scoring(model, prompts, schemes, targets, sensitivities, errors, keep).run(
        store, on_progress or (lambda done, total, detail: None)
    )


class _Scoring:
    """One pass over the blocks."""

    def __init__(
        self,
        model: QwenVL,
        prompts: Sequence[Prompt],
        schemes: Mapping[str, Collection[Rounding]],
        targets: Sequence[LinearSpec],
        sensitivities: Sensitivities,
        errors: str,
        keep: Collection[Layer],
    ) -> None:
        self._model, self._prompts = model, prompts
        self._schemes, self._sensitivities = schemes, sensitivities
        self._errors, self._keep = errors, keep
        self._targets = [spec for spec in targets if schemes.get(spec.name)]
        self._losses: dict[Layer, float] = {}
        self._weights: dict[Layer, CompressedWeight] = {}
        self._done = 0

    @torch.no_grad()
    def run(self, store: DiskActivationStore, on_progress: Progress) -> Scores:
        """Score the embedding, then all blocks up to the last with a target."""
        total = len(self._targets)
        if any(spec.name == EMBEDDING for spec in self._targets):
            self._score_embedding()
            on_progress(self._done, total, EMBEDDING)
        runner = BlockRunner(self._model, self._prompts, ModelBlocks(self._model), store)
        order = runner.all_blocks()
        of_blocks = {block: tap_groups(self._targets, block) for block in order}
        last = max((i for i, block in enumerate(order) if of_blocks[block]), default=-1)
        for index, block in enumerate(order[: last + 1]):
            if not runner.samples(block):
                continue
            runner.enter(block)
            inputs = self._observe(runner, block, of_blocks[block])
            while inputs:  # frees the statistics of a group before the next is solved
                self._score_group(inputs.pop(0))
                on_progress(self._done, total, block)
            following = order[index + 1] if index < last else None
            runner.advance(block, following)
            store.keep(runner.pending_keys(following) if following is not None else ())
        return Scores(self._losses, self._weights)

    def _score_embedding(self) -> None:
        """Score the token embedding, whose inputs are the ids of tokens."""
        of_layer = self._sensitivities.layers[EMBEDDING]
        weight = self._model.model.embed_tokens.weight
        assert isinstance(weight, Tensor)
        energy = torch.zeros(len(weight))
        for sample, tokens in of_layer.tokens.items():
            energy.index_add_(0, self._prompts[sample].input_ids.cpu(), tokens)
        seen = energy.nonzero()[:, 0]
        rows = weight[seen.to(weight.device)]
        shares = (energy[seen] / energy.sum().clamp_min(1e-30)).to(weight.device)
        for scheme, _ in self._schemes[EMBEDDING]:  # no mask outside the decoder
            solved = make_step("embedding", scheme, "rtn").solve(rows, None)
            error = rows.float() - solved.weight.dequantize()
            loss = 0.5 * float(shares @ (error.square() @ of_layer.outputs))
            self._losses[EMBEDDING, scheme, None] = loss / self._sensitivities.predicted
        self._done += 1

    def _observe(
        self, runner: BlockRunner, block: str, groups: Sequence[TapGroup]
    ) -> list[_TapInputs]:
        """Run all samples through a block and return the statistics of its inputs."""
        syrk = select_syrk(self._model.device)
        inputs = [
            _TapInputs(
                group,
                [self._sensitivities.layers[spec.name] for spec in group.linears],
                [
                    Hessian(group.in_features, self._model.device, syrk)
                    for _ in range(1 + len(group.linears))
                ],
            )
            for group in groups
        ]
        if not inputs:
            return []
        for sample in runner.samples(block):
            for each in inputs:
                each.sample = sample
            observers = {each.group.linears[0].name: [each] for each in inputs}
            runner.observe(block, sample, observers)
        return inputs

    def _score_group(self, inputs: _TapInputs) -> None:
        """Score the layers that read one input."""
        uniform, *weighted = inputs.hessians
        shared = SharedInput({HESSIAN: uniform})
        for spec, of_layer, hessian in zip(
            inputs.group.linears, inputs.sensitivities, weighted, strict=True
        ):
            weight = weight_of(self._model, spec)
            matrix = hessian.values
            for rounding in self._schemes[spec.name]:
                compressed = _compress(weight, spec, rounding, shared, self._errors)
                error = weight.float() - compressed.dequantize()
                layer = (spec.name, *rounding)
                self._losses[layer] = output_loss(
                    error, of_layer.outputs, matrix, self._sensitivities.predicted
                )
                if layer in self._keep:
                    self._weights[layer] = _compress(weight, spec, rounding, shared, "gptq")
            self._done += 1


def _compress(
    weight: Tensor, spec: LinearSpec, rounding: Rounding, shared: SharedInput, errors: str
) -> CompressedWeight:
    """Quantize a layer; see `make_step` for `errors`."""
    scheme, mask = rounding
    step = make_step(spec.part, scheme, errors, mask)
    if spec.expert is not None and shared.hessian.tokens < EXPERT_TOKENS:
        return step.round(weight)
    # Rounding instead of the solver searches the scales, as the solver does.
    clip = errors == "rtn" and make_step(spec.part, scheme, "gptq").method != step.method
    return step.solve(weight, LayerInputs(shared), clip=clip).weight


@dataclass
class _TapInputs:
    """Observer of the input that the layers of a group share."""

    group: TapGroup
    sensitivities: Sequence[OutputSensitivity]
    """Of the layers."""
    hessians: Sequence[Hessian]
    """With equal weights of all tokens, then with the sensitivities of each layer as weights."""
    sample: int = 0
    """Number of the sample that runs."""

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """See `Observer.update`; the weights are not used."""
        uniform, *weighted = self.hessians
        uniform.update(inputs)
        routed = routed_tokens()
        for of_layer, hessian in zip(self.sensitivities, weighted, strict=True):
            tokens = of_layer.tokens.get(self.sample)
            if tokens is None:  # it predicts nothing, or no token reaches the expert
                continue
            hessian.update(inputs, tokens if routed is None else tokens[routed.cpu()])
