"""Rotate a float checkpoint: plan, choice of the draw, and the rewritten folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....model.carried import CarriedTensors
from ....model.checkpoint import CheckpointReader
from ....model.config import ModelConfig
from ....model.families import family_of
from ....model.untying import open_source, untied_config
from ...steps.preparation import Foreseen
from ...steps.rotate import RotateStep
from ..context import Context
from ..rewriting import rewrite_checkpoint
from .folding import Folding
from .roles import FAMILIES, rotates_values
from .rotation import describe
from .trials import divergences

MTP_FIELD = "mtp_num_hidden_layers"


def foresee(step: RotateStep, config: ModelConfig, folder: Path | None) -> Foreseen:
    """See `Preparation.foresee`.

    Raises:
        ValueError: the family is not known here, there is nothing to rotate, or the checkpoint has
            a module for multi-token prediction that is not dropped.
    """
    if config.family not in FAMILIES:
        raise ValueError(
            f"rotate: family {config.family}; allowed: {', '.join(FAMILIES)}; remove the step"
        )
    text, tied = config.text, config.text.tie_word_embeddings
    if not step.r1 and not (step.r2 and rotates_values(config)):
        gate = "" if rotates_values(config) else f"; values of {config.family} are bound to a gate"
        raise ValueError(f"rotate: nothing is rotated{gate}; set r1 = true, or remove the step")
    if step.drop_mtp and not text.mtp_layers:
        raise ValueError(
            "rotate: drop_mtp is true, but the model has no multi-token prediction; remove drop_mtp"
        )
    drops = drops_mtp(step, config)
    facts = []
    if step.r1:
        facts.append(f"residual stream by {describe(text.hidden_size)} (R1), norms folded")
        facts += ["head apart from the embedding"] if tied else []
    if step.r2 and rotates_values(config):
        facts.append(f"values of each head by {describe(text.head_dim)} (R2)")
    elif step.r2:
        facts.append("values not rotated (R2): a gate multiplies each channel of the attention")
    if step.r1 and not step.drop_mtp and folder is not None:
        _refuse_mtp(config, folder)
    facts += ["mtp.* left out"] if drops else []
    facts += [f"best of {step.seeds} draws"] if step.seeds > 1 else []
    after = untied_config(config) if step.r1 and tied else config
    return Foreseen(_without_mtp(after) if drops else after, ", ".join(facts))


def drops_mtp(step: RotateStep, config: ModelConfig) -> bool:
    """Whether a module for multi-token prediction is left out."""
    return step.r1 and step.drop_mtp and config.text.mtp_layers > 0


def rotate(
    step: RotateStep, source: Path, destination: Path, context: Context
) -> Mapping[str, Any]:
    """See `Preparation.prepare`.

    Raises:
        ValueError: see `foresee` and `divergences`; or the checkpoint is damaged.
    """
    before = ModelConfig.from_folder(source)
    foreseen = foresee(step, before, source)
    reader = open_source(source, untied=step.r1 and before.text.tie_word_embeddings)
    keys = [f"{context.seed}/{draw}" for draw in range(step.seeds)]
    choice: dict[str, Any] = {}
    best = 0
    if step.seeds > 1:
        draws = [_draw(step, foreseen.config, reader, key) for key in keys]
        kl = divergences(draws, foreseen.config, reader, destination.parent, context, step.samples)
        best = min(range(len(kl)), key=kl.__getitem__)
        choice = {"draw": best, "kl": kl}
    folding = _draw(step, foreseen.config, reader, keys[best])
    dropped = tuple(family_of(before).carried_parts(before)) if drops_mtp(step, before) else ()
    rewrite_checkpoint(
        reader,
        destination,
        lambda name, tensor: (
            {} if dropped and name.startswith(dropped) else folding.change(name, tensor)
        ),
        config=None if foreseen.config is before else foreseen.config.raw,
        update=context.update,
    )
    return {"summary": foreseen.summary, **choice}


def _draw(step: RotateStep, config: ModelConfig, reader: CheckpointReader, key: str) -> Folding:
    return Folding.draw(config, reader, key, r1=step.r1, r2=step.r2)


def _refuse_mtp(config: ModelConfig, folder: Path) -> None:
    """Refuse tensors that read the residual stream after the final norm.

    The module normalizes what the final norm gives. Folding that norm into the head would leave its
    weight out of this second normalization, which depends on it: no fold makes up for that.
    """
    carried = CarriedTensors.of(config, CheckpointReader(folder))
    if carried.bytes:
        raise ValueError(
            f"rotate: {folder} holds a module for multi-token prediction "
            f"({min(carried.bytes)}), which normalizes the output of the final norm once more, so "
            "that R1 cannot be folded into it; set drop_mtp = true to leave it out, or r1 = false"
        )


def _without_mtp(config: ModelConfig) -> ModelConfig:
    raw = dict(config.raw)
    raw["text_config"] = {**raw["text_config"], MTP_FIELD: 0}
    return ModelConfig.from_dict(raw)
