"""A small quantized model with its samples and its teacher, for the tests of recovery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import prompt, small_config, small_model

from vlpress.calib.activation_store import MemoryActivationStore
from vlpress.calib.samples.sample import Sample, content_digest
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.recover import Recover
from vlpress.quant.recover.answers import Answers
from vlpress.quant.recover.recovery import Recovered, recover_
from vlpress.quant.recover.teachers import store_teacher

SAMPLES = 12
RTN: dict[str, Any] = {"method": "rtn", "bits": 3, "group_size": 32}


def quiet(done: int, total: int, detail: str) -> None:
    pass


@dataclass(frozen=True)
class Small:
    """A float model, and samples with its log-probabilities in a store."""

    model: QwenVL
    samples: list[Sample]
    prompts: list[Prompt]
    store: Path

    def quantized(self, step: dict[str, Any] = RTN) -> QwenVL:
        student = small_model(dict(self.model.config.raw))
        student.load_state_dict(self.model.state_dict())
        quantize_(student, Recipe.from_dict({"step": [step]}))
        return student.float()

    def recover(self, student: QwenVL, params: Any = "scales", **more: Any) -> Recovered:
        keys = ("folder", "update", "stored", "teachers")
        settings = {key: more.pop(key) for key in keys if key in more}
        options = Recover(
            params=params, **{"samples": SAMPLES, "epochs": 3, "batch": 4, "lr": 0.01, **more}
        )
        teachers = [] if options.targets == "answers" else [(self.store, 1.0)]
        return recover_(
            student,
            options,
            self.samples,
            self.prompts,
            settings.pop("teachers", teachers),
            **{"stored": torch.bfloat16, **settings},
        )


def make_small(folder: Path, family: str = "qwen2_5_vl") -> Small:
    model = small_model(small_config(family))
    prompts = [
        replace(prompt(model.config, [(1, 2, 2)] if i % 2 else [], 8, 50 + i), answer_tokens=4)
        for i in range(SAMPLES)
    ]
    samples = [
        Sample([{"role": "user", "content": f"question {i}"}], f"answer {i}", str(i))
        for i in range(SAMPLES)
    ]
    store_answers(folder, model, samples, prompts)
    return Small(model, samples, prompts, folder)


def store_answers(
    folder: Path, model: QwenVL, samples: list[Sample], prompts: list[Prompt], **more: Any
) -> None:
    answers = Answers(model, prompts, MemoryActivationStore())
    digests = [content_digest(sample) for sample in samples]
    options: dict[str, Any] = {"batch": 5, "update": quiet, **more}
    store_teacher(folder, answers, digests, {"model": "float"}, **options)
