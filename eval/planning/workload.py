"""Estimate the time of an evaluation from the sizes of prompts and the rates of a machine.

Counted are the linear layers, the decoder's attention and, while answering, the weights that are
read for each token. Answers are assumed to be as long as the expected ones, after a reasoning of
`REASONING_TOKENS`: a model that explains its answers takes longer. Both models are assumed to be
equally fast. The estimate is low, the more so the smaller the model; `common.schedule` corrects it
by the progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ...model.config import ModelConfig
from ...model.families import family_of
from ...model.processing.processor import Processor
from ...quant.plan.time_estimate import Probe
from ..answering.prompt_lengths import placeholders
from ..tasks.generated.reasoning import find_rule
from ..tasks.task import Item, Task

SAMPLE = 32
"""Prompts of each benchmark that are measured."""
CHOICE_TOKENS = 2
"""Tokens of an answer to a multiple-choice question: a letter and the end of the turn."""
LETTERS_PER_TOKEN = 3
REASONING_TOKENS = 512
"""Assumed tokens of a reasoning; most are longer, as the estimate is a lower bound."""


@dataclass(frozen=True)
class Workload:
    """Numbers of tokens that a model processes for a benchmark."""

    name: str
    prompts: int
    tokens: float
    """Of a prompt on average, image tokens included."""
    image_tokens: float
    """Of all different images together."""
    answer_tokens: float
    """Of an answer on average."""


@dataclass(frozen=True)
class Passes:
    """Seconds of the two passes of a model over a benchmark."""

    answering: float
    reading: float
    """Log-probabilities along given answers; the image features are stored already."""


def measure_workload(task: Task, processor: Processor) -> Workload:
    """Count the tokens of a benchmark, those of prompts and images from a sample."""
    items = task.items
    sample = items[:: max(1, len(items) // SAMPLE)]
    merged = processor.config.vision.merge_unit
    tokens = images = shown = answers = 0.0
    for item in sample:
        visuals = placeholders(item, processor)
        tokens += len(processor.encode(item.messages, visuals=visuals))
        images += sum(len(visual.patches) / merged for visual in visuals)
        shown += len(visuals)
        answers += _answer_tokens(item)
    different = len({image.digest for item in items for image in item.images})
    count = max(1, len(sample))
    return Workload(
        task.name,
        len(items),
        tokens / count,
        different * images / max(1.0, shown),
        answers / count,
    )


def estimate_passes(
    work: Workload, config: ModelConfig, rates: Probe, *, batch_size: int
) -> Passes:
    """Estimate the seconds of a model's two passes over a benchmark.

    Args:
        work: of the benchmark.
        config: of the model.
        rates: of the machine.
        batch_size: prompts that are answered together.
    """
    weights, family = Counter[str](), family_of(config)
    for spec in family.linears(config):
        per_token = config.vision.merge_unit if family.stage(spec.stage).per_patch else 1
        weights[spec.part] += per_token * spec.weights
    text, head = config.text, config.text.hidden_size * config.text.vocab_size
    # Queries times keys and weights times values; on average half of the prompt is attended to.
    attention = len(text.cached_layers) * text.num_attention_heads * text.head_dim * work.tokens
    vision = work.image_tokens * weights["tower"] * rates.mac
    prefill = work.prompts * work.tokens * (weights["decoder"] + attention) * rates.mac
    batch = min(batch_size, work.prompts)
    step = (weights["decoder"] + head) * max(rates.read, batch * rates.mac)
    steps = work.answer_tokens * -(-work.prompts // max(1, batch))
    heads = work.prompts * work.answer_tokens * head * rates.mac
    return Passes(vision + prefill + steps * step, prefill + heads)


def _answer_tokens(item: Item) -> float:
    """Estimate the number of tokens of the expected answer."""
    fields = item.fields
    reasoning = REASONING_TOKENS if find_rule(item.reasoning).has_tags else 0
    if fields.get("choices"):
        return min(reasoning + CHOICE_TOKENS, item.max_new_tokens)
    answers: Sequence[object] = fields.get("answers") or [fields.get("answer") or ""]
    letters = max(len(str(answer)) for answer in answers)
    return min(reasoning + 1 + letters / LETTERS_PER_TOKEN, item.max_new_tokens)
