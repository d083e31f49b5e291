from typing import Any

import pytest
from tiny_models import make_tiny_config

from vlpress.model.families import LinearSpec, family_of
from vlpress.quant.plan.target_matching import check_groups, claim_layers, fitting_group
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme


def claims(*steps: dict[str, Any], tied: bool = False) -> dict[str, tuple[int | None, str]]:
    """Map each layer to its bits, or to the reason why it stays in float."""
    base = {"method": "rtn", "bits": 4, "group_size": 32}
    recipe = Recipe.from_dict({"name": "test", "step": [base | step for step in steps]})
    config = make_tiny_config(tied=tied)
    claimed = claim_layers(family_of(config).linears(config), recipe)
    return {
        name: (step.scheme.bits if step else None, reason)
        for name, (step, reason) in claimed.items()
    }


def test_steps_stages_and_reasons() -> None:
    claimed = claims(
        {"targets": ["visual.blocks.*", "visual.merger.*"], "bits": 8, "ignore": ["*.0.attn.*"]},
        {"targets": ["model.layers.*"], "ignore": ["re:.*layers\\.[01]\\..*"]},
    )
    assert claimed["visual.blocks.1.mlp.down_proj"] == (8, "")
    assert claimed["visual.merger.mlp.2"] == (8, "")
    assert claimed["visual.blocks.0.attn.qkv"] == (None, "the recipe ignores '*.0.attn.*'")
    assert claimed["model.layers.2.mlp.down_proj"] == (4, "")
    assert claimed["model.layers.1.mlp.down_proj"][0] is None
    assert claimed["lm_head"] == (None, "no step targets it (head)")


def test_newer_names_are_understood() -> None:
    claimed = claims({"targets": ["model.visual.blocks.*", "model.language_model.layers.*"]})
    assert claimed["visual.blocks.3.attn.proj"] == (4, "")
    assert claimed["model.layers.2.self_attn.k_proj"] == (4, "")


@pytest.mark.parametrize("key", ["targets", "ignore"])
@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("model.layers.0.mlp.dwn_proj", "model.layers.0.mlp.down_proj"),
        ("visual.block.*.mlp.up_proj", "visual.blocks.*.mlp.up_proj"),
        ("re:visual\\.block\\.\\d+\\.attn\\.qkv", "visual.blocks.*.attn.qkv"),
        ("model.visual.merger.mlp.1", "visual.merger.mlp.0"),
        ("nothing like it", "visual.blocks.*.attn.qkv, lm_head"),
    ],
)
def test_a_pattern_without_a_match_lists_near_misses(key: str, pattern: str, near: str) -> None:
    with pytest.raises(ValueError) as caught:
        claims({"targets": ["*"], key: [pattern]})
    what = "target" if key == "targets" else "ignore pattern"
    assert f"{what} {pattern!r} matches no linear layer; near are " in str(caught.value)
    assert near in str(caught.value).partition("near are ")[2]


@pytest.mark.parametrize("key", ["targets", "ignore"])
def test_a_tied_head_is_named_as_such(key: str) -> None:
    with pytest.raises(ValueError, match=r"'lm_head'.*tie_word_embeddings"):
        claims({"targets": ["model.layers.*"], key: ["lm_head"]}, tied=True)
    assert claims({"targets": ["lm_head"]})["lm_head"] == (4, "")


def test_two_steps_must_not_claim_one_layer() -> None:
    with pytest.raises(ValueError, match="two steps"):
        claims({"targets": ["model.layers.*"]}, {"targets": ["*.down_proj"], "bits": 8})


def layer(name: str, in_features: int, *, input_split: bool = False) -> LinearSpec:
    return LinearSpec(name, in_features, 64, False, "vision", "tower", 0, name, input_split)


@pytest.mark.parametrize(
    ("widths", "proposed"),
    [
        ([1280, 3456], "group_size 128"),
        ([192, 640, 768], "group_size 64"),
        ([192, 96], "group_size 32"),
        ([192, 36], "group_size -1 (one scale per output row)"),
    ],
)
def test_proposal_fits_every_layer(widths: list[int], proposed: str) -> None:
    specs = [layer(f"l{width}", width) for width in widths]
    assert fitting_group(specs) == proposed
    check_groups(specs, QuantScheme(4, int(proposed.split()[1])))


def test_split_inputs_divide_on_each_device() -> None:
    specs = [layer("qkv", 1280), layer("proj", 1280, input_split=True)]
    check_groups(specs, QuantScheme(4, 128), tp=2)
    message = r"^proj: in_features 320 .*4 devices .* 128; group_size 64 "
    with pytest.raises(ValueError, match=message):
        check_groups(specs, QuantScheme(4, 128), tp=4)
    check_groups(specs, QuantScheme(4, 64), tp=4)
    check_groups(specs, QuantScheme(8, -1), tp=4)
    with pytest.raises(ValueError, match=r"proj: in_features 1280 .*3 devices"):
        check_groups(specs, QuantScheme(8, -1), tp=3)
