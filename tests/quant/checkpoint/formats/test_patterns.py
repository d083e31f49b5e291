import re

import pytest
from format_files import contents
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vlpress.model.loading import build_model
from vlpress.quant.checkpoint.formats.patterns import (
    HEAD,
    excluding_patterns,
    layer_patterns,
)
from vlpress.quant.recipe.scheme import QuantScheme

CONFIG = contents(QuantScheme(4), tie_word_embeddings=False).config
LAYERS = list(contents({}, tie_word_embeddings=False).linears)


def renamed(name: str) -> list[str]:
    """What engines call a layer that they do not fuse."""
    names = [name, f"language_model.{name}", f"model.{name}"]
    if name.startswith("model."):
        names.append("model.language_model." + name.removeprefix("model."))
    return names


def matches(patterns: list[str], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


@given(st.sets(st.sampled_from(LAYERS)), st.sets(st.sampled_from(LAYERS)))
def test_exactly_the_named_layers_match_under_every_naming(
    names: set[str], either: set[str]
) -> None:
    patterns = layer_patterns(CONFIG, names, either - names)
    for layer in LAYERS:
        if layer in names or layer not in either:
            assert {matches(patterns, name) for name in renamed(layer)} == {layer in names}
    excluded = excluding_patterns(CONFIG, names)
    for layer in LAYERS:
        assert {matches(excluded, name) for name in renamed(layer)} == {layer in names}


def test_exclusions_of_whole_stages_are_short() -> None:
    tower = [name for name in LAYERS if name.startswith("visual.")]
    assert excluding_patterns(CONFIG, LAYERS) == [r".*visual\..*", r"(.*\.)?layers\..*", HEAD]
    assert excluding_patterns(CONFIG, tower) == [r".*visual\..*"]
    assert excluding_patterns(CONFIG, tower[:-2]) == [r"(.*\.)?visual\.blocks\..*"]
    assert excluding_patterns(CONFIG, tower[-2:]) == [r"(.*\.)?visual\.merger.*"]
    assert excluding_patterns(CONFIG, []) == []


def test_targets_are_linear_layers_only() -> None:
    """Some versions of compressed-tensors give a scheme to every module that matches."""
    model = build_model(CONFIG)
    patterns = layer_patterns(CONFIG, LAYERS)
    for name, module in model.named_modules():
        assert matches(patterns, name) == isinstance(module, nn.Linear), name
    decoder = [name for name in LAYERS if name.startswith("model.layers.")]
    (pattern,) = layer_patterns(CONFIG, decoder[1:], either=decoder[:1])
    assert pattern.startswith(r"(.*\.)?layers\.\d+\.(self_attn\.q_proj|self_attn\.k_proj|")
    assert layer_patterns(CONFIG, []) == []


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        (["mlp.down_proj"], r"(.*\.)?layers\.(1)\.(mlp\.down_proj)$"),
        (
            ["mlp.gate_proj", "mlp.up_proj"],
            r"(.*\.)?layers\.(1)\.(mlp\.gate_proj|mlp\.up_proj|mlp\.gate_up_proj)$",
        ),
    ],
)
def test_engines_fused_names_are_named_too(layers: list[str], pattern: str) -> None:
    assert layer_patterns(CONFIG, [f"model.layers.1.{layer}" for layer in layers]) == [pattern]


def test_an_index_is_not_the_beginning_of_another() -> None:
    config = contents(QuantScheme(4), num_hidden_layers=12).config
    patterns = layer_patterns(config, ["model.layers.1.mlp.down_proj"])
    assert matches(patterns, "model.layers.1.mlp.down_proj")
    assert not matches(patterns, "model.layers.11.mlp.down_proj")
    everywhere = [f"model.layers.{block}.mlp.down_proj" for block in range(12)]
    assert layer_patterns(config, everywhere) == [r"(.*\.)?layers\.\d+\.(mlp\.down_proj)$"]
