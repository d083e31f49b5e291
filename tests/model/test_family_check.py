"""Tables that contradict the modules or themselves are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tiny_models import make_tiny_config, prompts
from toy_family import MERGER, MORE, TOY, registered, toy_config, toy_model

from vlpress.model.config import ModelConfig
from vlpress.model.families import (
    FAMILIES,
    BlockLinear,
    Checkpoints,
    Family,
    KeptLinear,
    NormBinding,
    PaddedWidth,
    PairBinding,
    Stage,
)
from vlpress.model.loading import build_model


def build(family: Family, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the modules of a config with another table."""
    monkeypatch.setitem(FAMILIES, config.family, family)
    build_model(config)


def changed(number: int, **fields: Any) -> Family:
    """The toy family with another stage `number`."""
    stages = list(TOY.stages)
    stages[number] = replace(stages[number], **fields)
    return replace(TOY, stages=tuple(stages))


def linears(number: int, index: int, **fields: Any) -> Family:
    """The toy family with another linear layer in stage `number`."""
    entries = list(TOY.stages[number].linears)
    entries[index] = replace(entries[index], **fields)
    return changed(number, linears=tuple(entries))


VISION, EXTRA, LAST, DECODER, HEAD = range(5)
CASES: dict[str, tuple[Family, str]] = {
    "no such block": (changed(EXTRA, path="visual.others.{}"), r"visual\.others\.0"),
    "too few blocks": (changed(EXTRA, count=lambda config: 1), r"visual\.more\.1\..* belongs to 0"),
    "no entry": (changed(DECODER, entry=()), r"model\.embed_tokens\.weight belongs to 0"),
    "two owners": (changed(HEAD, entry=("model.norm", "visual.merger")), r"belongs to 2"),
    "unlisted linear": (
        changed(EXTRA, linears=MORE.linears[:1]),
        r"visual\.more\.0\.mlp\.2 is .* of the model only",
    ),
    "unknown linear": (
        changed(EXTRA, linears=(*MORE.linears, replace(MORE.linears[0], name="mlp.9"))),
        r"visual\.more\.0\.mlp\.9 is .* of the table only",
    ),
    "kept": (
        changed(EXTRA, kept=(KeptLinear("mlp.9", "hidden", "hidden", "router", "it routes"),)),
        r"visual\.more\.0\.mlp\.9 is .* of the table only",
    ),
    "width": (linears(EXTRA, 1, outputs="merged"), r"visual\.more\.0\.mlp\.2 has .*64.*128"),
    "row parts": (
        linears(EXTRA, 0, row_parts=("vision", "hidden")),
        r"visual\.more\.0\.mlp\.0 has 128 outputs, .*\(32, 64\)",
    ),
    "bias": (linears(DECODER, 3, bias=True), r"self_attn\.o_proj has .*False.*True"),
    "tiles": (changed(EXTRA, norms=(NormBinding("ln_q", ("mlp.0",)),)), r"ln_q gives 32 channels"),
    "norm": (
        changed(EXTRA, norms=(NormBinding("norm", ("mlp.0",), tiles=4),)),
        r"visual\.more\.0\.norm gives 0 channels",
    ),
    "pair": (
        changed(EXTRA, pairs=(PairBinding("mlp.0", "mlp.2", part=(2, 3)),)),
        r"part \(2, 3\) of the 128 outputs of mlp\.0",
    ),
    "heads": (
        changed(DECODER, pairs=(PairBinding("mlp.up_proj", "self_attn.o_proj", (0, 1), True),)),
        r"128 outputs of mlp\.up_proj .* 64 inputs",
    ),
    "checkpoints": (
        changed(EXTRA, checkpoints=Checkpoints(("more_in",), lambda m, i, state, out: state)),
        r"visual\.more\.0 .* forward_to",
    ),
    "layer of a feature": (
        replace(TOY, features=lambda config: ("hidden", "deepstack.0", "deepstack.2")),
        r"deepstack\.2; allowed: .*deepstack\.1",
    ),
    "first feature": (replace(TOY, features=lambda config: ("deepstack.0",)), "hidden"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_table_of_other_modules_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family, message = CASES[case]
    with registered():
        build(TOY, toy_config(), monkeypatch)  # the family itself is accepted
        with pytest.raises(ValueError, match=rf"family toy: .*{message}"):
            build(family, toy_config(), monkeypatch)


def test_other_modules_are_refused(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of the other family, whose MLP and norms differ."""
    other = "qwen2_5_vl" if family == "qwen2_vl" else "qwen2_vl"
    with pytest.raises(ValueError, match=r"\.0\.mlp|q_proj has|linear_attn"):
        build(FAMILIES[other], make_tiny_config(family), monkeypatch)


def test_features_that_the_table_does_not_list() -> None:
    with registered():
        model = toy_model()
        FAMILIES["toy"] = replace(TOY, features=lambda config: ("hidden",))
        with pytest.raises(ValueError, match=r"deepstack\.1.* lists hidden"):
            model.encode(prompts(model.config)[1].visuals)


LINEAR = BlockLinear("a", "hidden", "mlp", bias=False, tap="x")
OTHER = BlockLinear("b", "mlp", "hidden", bias=False, tap="y")


def stage(**fields: Any) -> Stage:
    return replace(MERGER, **{"linears": (LINEAR, OTHER), "norms": (), **fields})


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "part": (lambda: stage(part="audio"), r"'audio'.*tower, embedding, decoder, head"),
    "norm's linear": (lambda: stage(norms=(NormBinding("n", ("c",)),)), "linear c .*a, b"),
    "pair's linear": (lambda: stage(pairs=(PairBinding("a", "c"),)), "linear c "),
    "fused linear": (lambda: stage(fused=(("a", "c"),)), "linear c "),
    "fused taps": (lambda: stage(fused=(("a", "b"),)), "tap of fused linears y"),
    "twice": (lambda: stage(linears=(LINEAR, LINEAR)), "linear of two entries a"),
    "tap": (lambda: stage(checkpoints=Checkpoints(("z",), lambda m, i, s, o: s)), "tap z .*x, y"),
    "padded": (
        lambda: stage(padded=(PaddedWidth("kv", ("a",), ("b",), ("", "kv")),)),
        "padded width mlp .*kv",
    ),
    "order": (lambda: replace(TOY, stages=TOY.stages[::-1]), "head, decoder, tower"),
    "no tower": (lambda: replace(TOY, stages=TOY.stages[3:]), "decoder, head"),
    "name": (lambda: replace(TOY, stages=(TOY.stages[0], *TOY.stages)), "vision, vision"),
    "enter": (lambda: replace(TOY, stages=TOY.stages[1:]), "more mergers needs `enter`"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_contradicting_fields_are_refused(case: str) -> None:
    make, message = BROKEN[case]
    with pytest.raises(ValueError, match=message):
        make()
