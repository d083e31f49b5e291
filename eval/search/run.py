"""The verb `search` of the Python API: a recipe with the smallest predicted loss under a budget."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...bench.layer_times import Shape, time_layers
from ...calib.disk_activation_store import DiskActivationStore
from ...calib.output_sensitivity import output_sensitivities
from ...calib.samples.draw import draw_samples
from ...calib.samples.sample import Sample, has_images
from ...common.atomic import write_text
from ...common.options import verb
from ...common.progress import Reporter, reporting
from ...common.threads import use_threads
from ...model.families import family_of
from ...model.loading import load_model
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ...model.untying import untie_model_
from ...quant.checkpoint.loading import is_quantized
from ...quant.config import ModelSettings
from ...quant.driver.padding import pad_model_
from ...quant.job import calibration_warnings
from ...quant.plan.plan import make_plan
from ...quant.recipe.recipe import Calibration, Recipe
from ...quant.recipe.scheme import QuantScheme
from ...quant.resolve import Source, encode_samples, sample_length
from ...quant.search.budget import Budget, Solution, find_best
from ...quant.search.knapsack import Table
from ...quant.search.scores import Layer, Rounding, Scores, score_layers
from ...quant.search.sizes import parse_size
from ...quant.search.space import SCORE, SearchSpace, masks_by
from ...quant.search.steps import format_recipe, recipe_data
from .check import check_scores, draw_pairs
from .config import SearchOptions, check_limits, check_target
from .summary import describe, header

CHECK_SAMPLES = 32
"""Samples that the predicted losses are checked on."""


@verb(SearchOptions)
def search(options: SearchOptions) -> dict[str, Any]:
    """Choose bits and grid of every group of layers under a budget, and write the recipe.

    The loss of every choice is predicted from one backward pass over the calibration samples and
    the weight error that the choice leaves; the choices with the smallest sum within the budget are
    the recipe, which `quantize` runs. The whole model is in memory, in its own dtype.

    Returns:
        The budget, the predicted loss and bytes, the choice of every group with its alternatives,
        and the check of the predictions.

    Raises:
        FileNotFoundError: model, calibration source or the folder of `out` do not exist.
        ValueError: an option does not fit, `out` exists, the model is quantized, no sample has an
            image or an answer, or nothing is within the budget.
    """
    check_limits(options)
    check_target(Path(options.out), overwrite=options.overwrite)
    use_threads(options.threads)
    with reporting(options.progress) as reporter:
        return _Search(options, reporter).result()


@dataclass(frozen=True)
class Scored:
    """The predicted losses of a model, from which recipes for any budget follow."""

    space: SearchSpace
    losses: Table
    """Of every choice of every group, nats per predicted token."""
    check: dict[str, Any] | None

    def solve(self, budget: Budget, milliseconds: Table | None = None) -> Solution:
        """Find the best choices within a budget, see `find_best`."""
        return find_best(self.space, self.losses, budget, milliseconds)

    def recipe(self, solution: Solution, name: str, *, samples: int, seed: int) -> dict[str, Any]:
        """Return the plain data of a recipe, see `recipe_data`."""
        return recipe_data(
            name,
            self.space.prepared,
            self.space.groups,
            solution.choices(self.space),
            samples=samples,
            seed=seed,
            tp=self.space.tp,
        )


class _Search:
    """One call of `search`."""

    def __init__(self, options: SearchOptions, reporter: Reporter) -> None:
        self._options, self._reporter = options, reporter
        self._source = Source.find(options.model, options.group(ModelSettings))
        if is_quantized(self._source.folder):
            raise ValueError(
                f"{self._source.name}: is quantized already; start from the original model"
            )
        default = Calibration()
        samples = options.calib_samples
        self._samples = default.samples if samples is None else samples
        self._seed = default.seed if options.seed is None else options.seed
        self._budget = Budget(
            None if options.budget is None else parse_size(options.budget),
            options.bits,
            options.latency,
            options.keep,
        )

    def result(self) -> dict[str, Any]:
        """Score, solve, write the recipe and describe it."""
        options, source = self._options, self._source
        masks = (None,) if options.keep is None else masks_by(options.score or SCORE)
        space = SearchSpace.of(source.config, options.tp or 1, source.carried, masks)
        # Before any weight is read: a budget that is too small is refused at once.
        zeros = [[0.0] * len(group.choices) for group in space.groups]
        find_best(space, zeros, replace(self._budget, milliseconds=None))
        times = self._times(space)
        if times is not None:
            find_best(space, zeros, self._budget, times)
        scored = self._score(space)
        solution = scored.solve(self._budget, times)
        name = Path(options.out).stem
        data = scored.recipe(solution, name, samples=self._samples, seed=self._seed)
        plan = make_plan(source.config, Recipe.from_dict(data), carried=source.carried)
        if plan.candidate_bytes != solution.bytes:
            raise AssertionError(
                f"the plan counts {plan.candidate_bytes} bytes, the search {solution.bytes}"
            )
        result = describe(scored, solution, times, self._budget, plan) | {
            "model": source.name,
            "out": str(options.out),
            "command": options.command(),
            "vlpress": __version__,
        }
        write_text(Path(options.out), format_recipe(data, header(result)))
        return result

    def _times(self, space: SearchSpace) -> Table | None:
        """Time the layers of decoder and head if there is a limit on the latency."""
        if self._budget.milliseconds is None:
            return None
        if self._source.device.type != "cpu":
            raise ValueError(
                f"--latency with --device {self._source.device}; layers are timed on the CPU only "
                "so far; leave one of them out"
            )
        with self._reporter.stage("timing layers") as update:
            times = time_layers(layer_shapes(space), self._source.dtype, update)
        return latency_table(space, times)

    def _score(self, space: SearchSpace) -> Scored:
        options = self._options
        prompts, checked = self._prompts()
        with self._reporter.step("loading the model"):
            model = load_prepared(self._source, space)
        return score_model(
            model,
            space,
            prompts,
            checked,
            errors=options.errors,
            checks=options.check,
            seed=self._seed,
            cache_bytes=options.cache_bytes,
            reporter=self._reporter,
        )

    def _prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """Draw the samples to score on, and others to check the scores on."""
        options, processor = self._options, self._source.processor()

        def measure(sample: Sample) -> int:
            return sample_length(sample, processor)

        drawn = draw_samples(
            options.calib,
            n=self._samples,
            seed=self._seed,
            measure=measure,
            skip_bad=options.skip_bad_samples,
        )
        for warning in calibration_warnings(self._source.name, drawn, options):
            self._reporter.warn(warning)
        if not any(map(has_images, drawn.samples)):
            raise ValueError(
                "no calibration sample has an image, without which the vision tower cannot be "
                "scored; give samples with images"
            )
        if not options.check:
            return encode_samples(drawn.samples, processor), []
        others = draw_samples(
            options.calib,
            n=2 * CHECK_SAMPLES,
            seed=self._seed + 1,
            measure=measure,
            skip_bad=options.skip_bad_samples,
        )
        known = {sample.id for sample in drawn.samples}
        unseen = [sample for sample in others.samples if sample.id not in known][:CHECK_SAMPLES]
        if not unseen:
            self._reporter.warn(
                "the calibration source has no further samples: predictions are checked on those "
                "that they were made from"
            )
            unseen = drawn.samples[:CHECK_SAMPLES]
        return encode_samples(drawn.samples, processor), encode_samples(unseen, processor)


def load_prepared(source: Source, space: SearchSpace) -> QwenVL:
    """Load a float model, with a head of its own and all widths padded as `space.prepared`."""
    model = load_model(source.folder, device=source.device, dtype=source.dtype)
    if source.config.text.tie_word_embeddings:
        untie_model_(model)
    pad_model_(model, space.padding)
    return model


def score_model(
    model: QwenVL,
    space: SearchSpace,
    prompts: Sequence[Prompt],
    checked: Sequence[Prompt] = (),
    *,
    errors: str = "rtn",
    checks: int = 0,
    seed: int = 0,
    cache_bytes: int = 0,
    reporter: Reporter,
) -> Scored:
    """Predict the loss of every choice of every group.

    Args:
        model: from `load_prepared`; left unchanged.
        space: its groups.
        prompts: samples with answers.
        checked: other samples, for the check.
        errors: "gptq" or "rtn".
        checks: number of choices to check; 0 = none.
        seed: of random vectors and of the choices to check.
        cache_bytes: of activations in memory; all are in files too.
        reporter: shows the stages.

    Raises:
        ValueError: no sample has a token to predict, or an input is not finite.
    """
    family = family_of(model.config)
    targets = [family.embedding(model.config), *family.linears(model.config)]
    pairs = draw_pairs(space.groups, checks, seed)
    keep: set[Layer] = {layer for pair in pairs for layer in pair.layers}
    with reporter.stage("backward passes") as update:
        sensitivities = output_sensitivities(model, prompts, targets, seed=seed, on_progress=update)
    with tempfile.TemporaryDirectory(prefix="vlpress-search-") as folder:
        states = DiskActivationStore(Path(folder), model.device, cache_bytes)
        with closing(states) as store, reporter.stage("errors of all choices") as update:
            scores = score_layers(
                model,
                prompts,
                layer_roundings(space),
                targets,
                sensitivities,
                store,
                errors=errors,
                keep=keep,
                on_progress=update,
            )
    check = None
    if pairs:
        with reporter.stage("checking predictions") as update:
            check = check_scores(model, checked, pairs, scores, update)
    return Scored(space, loss_table(space, scores), check)


def layer_roundings(space: SearchSpace) -> dict[str, list[Rounding]]:
    """List the schemes with their masks that some choice has for each layer."""
    roundings: dict[str, list[Rounding]] = {}
    for group in space.groups:
        for choice in group.choices:
            for spec, scheme in zip(group.layers, choice.schemes, strict=True):
                of_layer = roundings.setdefault(spec.name, [])
                if scheme is not None and (scheme, choice.mask) not in of_layer:
                    of_layer.append((scheme, choice.mask))
    return roundings


def loss_table(space: SearchSpace, scores: Scores) -> list[list[float]]:
    """Return the predicted loss of every choice of every group."""
    return [
        [scores.loss(group.layers, choice.schemes, choice.mask) for choice in group.choices]
        for group in space.groups
    ]


def layer_shapes(space: SearchSpace) -> list[Shape]:
    """List the different layers that a generated token passes, with all their schemes."""
    shapes: dict[Shape, None] = {}
    for group in space.groups:
        for choice in group.choices:
            for spec, scheme in zip(group.layers, choice.schemes, strict=True):
                if spec.part in ("decoder", "head"):
                    assert scheme is None or isinstance(scheme, QuantScheme)
                    shapes[spec.in_features, spec.out_features, scheme] = None
    return list(shapes)


def latency_table(space: SearchSpace, times: dict[Shape, float]) -> list[list[float]]:
    """Return the milliseconds per generated token of every choice of every group.

    Experts count by the share of tokens that reaches them.
    """

    def time_of(spec: Any, scheme: Any) -> float:
        if spec.part not in ("decoder", "head"):
            return 0.0
        return float(spec.token_share * times[spec.in_features, spec.out_features, scheme])

    return [
        [
            sum(time_of(*pair) for pair in zip(group.layers, choice.schemes, strict=True))
            for choice in group.choices
        ]
        for group in space.groups
    ]
