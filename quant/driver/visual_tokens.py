"""Reduction of the visual tokens of calibration samples, by the features of the float tower.

Hessians must not weigh tokens that the decoder never sees, so the samples are reduced before
anything is calibrated, and token weights are those of the kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...common.distributed import SINGLE_PROCESS, Communicator, all_gather
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.loading import build_model, choose_dtype, load_block
from ...model.processing.inputs import Prompt, TokenSelection
from ...model.qwen_vl import QwenVL
from ...model.token_reduction.apply import reduce_prompt
from ...model.token_reduction.rule import ReductionRule

TOWER = "visual"


@torch.no_grad()  # tensors of the inference mode could not be used for gradient token weights
def reduce_prompts(
    model: QwenVL,
    rule: ReductionRule,
    prompts: Sequence[Prompt],
    comm: Communicator = SINGLE_PROCESS,
) -> list[Prompt]:
    """Reduce calibration samples one by one; every rank encodes a share of them.

    Args:
        model: its tower is loaded, in float; its own `reduction` is not used.
        rule: the rule.
        prompts: samples with all tokens.
        comm: ranks that share the samples.
    """
    before, model.reduction = model.reduction, rule
    try:
        kept: dict[int, list[tuple[list[int], int]]] = {}
        for number in range(comm.rank, len(prompts), comm.world_size):
            (reduced,), _ = model.reduce([prompts[number]])
            kept[number] = [(each.kept.tolist(), each.total) for each in reduced.selections]
    finally:
        model.reduction = before
    gathered = {
        n: of_prompt for of_rank in all_gather(comm, kept) for n, of_prompt in of_rank.items()
    }
    return [
        reduce_prompt(
            prompt,
            [TokenSelection(torch.tensor(indices), total) for indices, total in gathered[number]],
            model.config,
        )
        if prompt.visuals
        else prompt
        for number, prompt in enumerate(prompts)
    ]


def load_tower(source: Path, device: torch.device, dtype: str | torch.dtype) -> QwenVL:
    """Load the vision tower of a float checkpoint; the rest of the model has no weights.

    Args:
        source: folder of the checkpoint.
        device: of the tower.
        dtype: of the computation, see `choose_dtype`.
    """
    config, reader = ModelConfig.from_folder(source), CheckpointReader(source)
    model = build_model(config, dtype=choose_dtype(dtype, config, reader))
    load_block(reader, model, TOWER, device=device)
    return model.eval()
