"""A preparation defined from outside: removes the last channels of every decoder MLP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from vlpress.common.lazy_tensor import LazyTensor, TensorLike
from vlpress.common.validation import Integer, validated
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.quant.prepare.context import Context
from vlpress.quant.prepare.rewriting import mapped, rewrite_checkpoint
from vlpress.quant.steps.preparation import Foreseen, Preparation

INNER = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}


@validated
class CutStep(Preparation):
    """Keep the first channels."""

    width: Annotated[int, Integer(1)]

    method: ClassVar[str] = "cut"

    @property
    def uses_samples(self) -> bool:
        return True

    def foresee(self, config: ModelConfig, folder: Path | None) -> Foreseen:
        before = config.text.intermediate_size
        if self.width >= before:
            raise ValueError(f"cut: width is {self.width}; allowed: less than {before}")
        raw = dict(config.raw)
        target = raw["text_config"] = dict(raw["text_config"]) if "text_config" in raw else raw
        if target is raw:
            del raw["text_config"]
        target["intermediate_size"] = self.width
        return Foreseen(ModelConfig.from_dict(raw), f"MLPs {before} -> {self.width} wide")

    def prepare(self, source: Path, destination: Path, context: Context) -> Mapping[str, Any]:
        config = self.foresee(ModelConfig.from_folder(source), source).config

        def change(name: str, tensor: LazyTensor) -> Mapping[str, TensorLike]:
            leaf = ".".join(name.split(".")[-2:])
            if not name.startswith("model.layers.") or leaf not in INNER:
                return {name: tensor}
            dim = INNER[leaf]
            shape = (*tensor.shape[:dim], self.width, *tensor.shape[dim + 1 :])
            return {name: mapped(tensor, lambda w: w.narrow(dim, 0, self.width), shape)}

        rewrite_checkpoint(
            CheckpointReader(source),
            destination,
            change,
            config=config.raw,
            update=context.update,
        )
        return {"tokens": sum(len(prompt) for prompt in context.prompts(source))}
