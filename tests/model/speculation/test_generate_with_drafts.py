"""Decoding with drafts gives the answers of plain decoding, whatever is drafted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from reference_model import silence
from tiny_models import EACH_FAMILY, make_random_model, make_tiny_config
from torch import Tensor

from vlpress.model.generation import Sampling, generate
from vlpress.model.mtp import MultiTokenPredictor, draft_logits
from vlpress.model.processing.inputs import Batch, Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.speculation.decoding import Speculated, generate_with_drafts
from vlpress.model.speculation.drafts import Choice, Chooser, Drafter
from vlpress.model.speculation.model_drafter import ModelDrafter
from vlpress.model.speculation.mtp_drafter import MtpDrafter
from vlpress.model.speculation.ngram_drafter import NgramDrafter

TOKENS = 14
GREEDY = Sampling()
Processors = Callable[[str], Processor]


class RandomDrafter:
    """Proposes what the model would say with errors at random places."""

    def __init__(self, answer: Sequence[int], vocabulary: int, seed: int = 0) -> None:
        self._answer, self._vocabulary = answer, vocabulary
        self._random = np.random.default_rng(seed)

    def begin(self, batch: Batch, hidden: Tensor, position: int) -> None:
        assert hidden.shape == batch.embeds.shape

    def propose(self, chooser: Chooser, count: int) -> list[Choice]:
        begin = len(chooser.tokens)
        tokens = list(self._answer[begin : begin + count])
        for index in range(len(tokens)):
            if self._random.random() < 0.3:
                tokens[index] = int(self._random.integers(self._vocabulary - 40))
        return [Choice(token, None) for token in tokens]

    def accept(self, hidden: Tensor, drafts: Sequence[int]) -> None:
        assert hidden.shape[1] == 1 + len(drafts)


def picture_prompt(processor: Processor) -> Prompt:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (84, 112, 3), dtype=np.uint8))
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "What is it? is it?"}]
    return processor.encode([{"role": "user", "content": parts}])


def loaded(family: str, seed: int = 0) -> QwenVL:
    model = make_random_model(family, seed=seed)
    silence(model, model.config.placeholder_ids)
    return model


def plain(model: QwenVL, prompt: Prompt, sampling: Sampling = GREEDY) -> tuple[int, ...]:
    (answer,) = generate(model, [prompt], max_new_tokens=TOKENS, stop_ids=(), sampling=sampling)
    return answer.token_ids


def drafted(model: QwenVL, prompt: Prompt, drafter: Drafter, **options: object) -> Speculated:
    arguments = {"max_new_tokens": TOKENS, "stop_ids": (), "draft_tokens": 3, **options}
    return generate_with_drafts(model, prompt, drafter, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_answers_are_those_of_plain_decoding(family: str, processors: Processors) -> None:
    model, prompt = loaded(family), picture_prompt(processors(family))
    expected, vocabulary = plain(model, prompt), model.config.text.vocab_size
    drafters: dict[str, Drafter] = {
        "itself": ModelDrafter(model, prompt, vocabulary),
        "other": ModelDrafter(loaded(family, seed=5), prompt, vocabulary),
        "ngram": NgramDrafter(prompt.input_ids.tolist(), ()),
        "random": RandomDrafter(expected, vocabulary),
    }
    shares = {}
    for name, drafter in drafters.items():
        result = drafted(model, prompt, drafter)
        assert result.generated.token_ids == expected, name
        assert result.passes + result.accepted == TOKENS - 1
        shares[name] = result.accepted / max(1, result.drafted)
    assert shares["itself"] == 1
    assert 0 < shares["random"] < 1


def test_other_sampling_and_cache_types(processor: Processor) -> None:
    model, prompt = loaded("qwen2_5_vl"), picture_prompt(processor)
    penalty = Sampling(repetition_penalty=1.3)
    expected = plain(model, prompt, penalty)
    assert expected != plain(model, prompt)
    wrong = RandomDrafter(expected, 280)
    assert drafted(model, prompt, wrong, sampling=penalty).generated.token_ids == expected
    model.cache_type = "int8"
    drafter = RandomDrafter(plain(model, prompt), 280)
    assert drafted(model, prompt, drafter).generated.token_ids == plain(model, prompt)


def test_an_answer_ends_where_it_ends_without_drafts(processor: Processor) -> None:
    model, prompt = loaded("qwen2_5_vl"), picture_prompt(processor)
    free = plain(model, prompt)
    heard: list[int] = []
    for stop in free[:6]:
        (expected,) = generate(model, [prompt], max_new_tokens=TOKENS, stop_ids=(stop,))
        heard.clear()
        drafter = ModelDrafter(model, prompt, 288)
        result = drafted(model, prompt, drafter, stop_ids=(stop,), on_token=heard.append)
        assert result.generated.token_ids == expected.token_ids == tuple(heard)
        assert result.generated.stopped
        # Of drafts that are all right, those after the stop token do not count.
        assert result.accepted == result.drafted
        assert 0 <= result.passes + result.accepted - len(heard) <= 1
    for limit in (1, 2, 5):
        result = drafted(model, prompt, ModelDrafter(model, prompt, 288), max_new_tokens=limit)
        assert result.generated.token_ids == free[:limit] and not result.generated.stopped


@pytest.fixture(scope="module")
def mtp_model() -> tuple[QwenVL, MultiTokenPredictor]:
    config = make_tiny_config("qwen3_5", text={"mtp_num_hidden_layers": 1})
    model = make_random_model(config=config)
    silence(model, model.config.placeholder_ids)
    torch.manual_seed(5)
    predictor = MultiTokenPredictor(model.config.text)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model, predictor.eval().requires_grad_(False)


def test_multi_token_prediction_drafts(
    mtp_model: tuple[QwenVL, MultiTokenPredictor], processors: Processors
) -> None:
    (model, predictor), prompt = mtp_model, picture_prompt(processors("qwen3_5"))
    expected = plain(model, prompt)
    assert drafted(model, prompt, MtpDrafter(model, predictor)).generated.token_ids == expected
    # The first draft of each pass is that of the module on the whole sequence.

    firsts: list[tuple[int, int]] = []

    class Recorded(MtpDrafter):
        def propose(self, chooser: Chooser, count: int) -> list[Choice]:
            drafts = super().propose(chooser, count)
            firsts.append((len(chooser.tokens), drafts[0].token))
            return drafts

    drafted(model, prompt, Recorded(model, predictor))
    answer = torch.tensor(expected)
    positions = prompt.next_position + torch.arange(len(expected)).expand(3, -1)
    ids = torch.cat([prompt.input_ids, answer])
    whole = Prompt(ids, torch.cat([prompt.position_ids, positions], 1), prompt.visuals)
    with torch.no_grad():
        batch = model.embed([whole])
        hidden = model.model(batch.embeds, batch.position_ids)
        choices = draft_logits(model, predictor, batch, hidden)[0].argmax(-1).tolist()
    assert len(firsts) > 3
    for known, first in firsts:  # row t of the drafts predicts token t + 2
        assert choices[len(prompt) + known - 2] == first


@torch.no_grad()
def test_removed_tokens_leave_no_trace(processors: Processors) -> None:
    model, prompt = loaded("qwen3_5"), picture_prompt(processors("qwen3_5"))
    batch = model.embed([prompt])
    cache = model.new_cache(1, len(prompt) + 8)
    model.model(batch.embeds, batch.position_ids, None, cache)

    def read(tokens: Sequence[int]) -> Tensor:
        at = prompt.next_position + cache.length - len(prompt)
        positions = (at + torch.arange(len(tokens))).expand(3, 1, -1)
        out: Tensor = model.model(
            model.model.embed_tokens(torch.tensor([list(tokens)])), positions, None, cache
        )
        return out

    with pytest.raises(ValueError, match="were not kept; call keep_states"):
        cache.roll_back(1)
    cache.keep_states()
    read([5, 6])
    expected = read([7])
    cache.roll_back(1)
    read([9, 10, 11])
    cache.roll_back(3)
    torch.testing.assert_close(read([7]), expected)
    with pytest.raises(ValueError, match="were not kept"):
        cache.roll_back(4)
    with pytest.raises(ValueError, match="the cache holds"):
        cache.roll_back(1000)


@pytest.mark.slow
def test_sampled_answers_have_the_models_distribution(processor: Processor) -> None:
    model, other = loaded("qwen2_5_vl"), loaded("qwen2_5_vl", seed=5)
    prompt = processor.encode([{"role": "user", "content": "hi"}])
    draws = 1500

    def count(drafter: Callable[[], Drafter] | None) -> Counter[tuple[int, ...]]:
        counts: Counter[tuple[int, ...]] = Counter()
        for seed in range(draws):
            seeded = Sampling(temperature=1.5, top_k=3, seed=seed)
            if drafter is None:
                (answer,) = generate(
                    model, [prompt], max_new_tokens=3, stop_ids=(), sampling=seeded
                )
                counts[answer.token_ids] += 1
            else:
                result = drafted(model, prompt, drafter(), max_new_tokens=3, sampling=seeded)
                counts[result.generated.token_ids] += 1
        return counts

    expected = count(None)
    actual = count(lambda: ModelDrafter(other, prompt, 288))
    assert len(expected) > 10
    # Chi-square of two samples of the same size, over answers that are not rare.
    common = [answer for answer in expected | actual if expected[answer] + actual[answer] >= 10]
    statistic = sum(
        (expected[answer] - actual[answer]) ** 2 / (expected[answer] + actual[answer])
        for answer in common
    )
    freedom = len(common) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
