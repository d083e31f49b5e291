"""Tables of levels, and the schemes over them."""

from dataclasses import replace
from statistics import NormalDist

import pytest

from vlpress.quant.recipe.grids import E2M1, E4M3, E5M2, GRIDS, NF4_LEVELS, Grid, table_grid
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, TableScheme


def test_tables_are_sorted_and_short() -> None:
    for grid in GRIDS.values():
        assert list(grid.levels) == sorted(grid.levels) and len(grid.levels) <= 256
        assert grid.levels[grid.zero] == 0
        assert max(grid.codes) < 2**grid.bits and len(set(grid.codes)) == len(grid.codes)


def test_known_numbers() -> None:
    assert E2M1.magnitudes == (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    assert E4M3.magnitudes[1] == 2.0**-9 and E4M3.magnitudes[-1] == 448
    assert E5M2.magnitudes[1] == 2.0**-16 and E5M2.magnitudes[-1] == 57344
    assert [len(GRIDS[name].levels) for name in ("fp8", "fp8-e5m2", "nvfp4")] == [253, 247, 15]
    assert GRIDS["pot4"].levels[8:] == tuple(2.0**-k for k in range(6, -1, -1))


def test_nf4_is_made_of_quantiles() -> None:
    """8 probabilities from 1 - (1/32 + 1/30) / 2 down to 1/2 above zero, and 7 below."""
    quantile, outermost = NormalDist().inv_cdf, 0.9677083
    above, below = (
        [
            quantile(outermost - (outermost - 0.5) / count * i) / quantile(outermost)
            for i in range(count)
        ]
        for count in (8, 7)
    )
    expected = [*(-level for level in below), 0.0, *reversed(above)]
    assert pytest.approx(expected, abs=2e-7) == list(NF4_LEVELS)


def test_unusable_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="grid x: the levels are not 2 to 256 ascending numbers"):
        table_grid("x", (0.0, 1.0, 0.5), 2)
    with pytest.raises(ValueError, match="ascending numbers"):
        table_grid("x", tuple(map(float, range(257))), 8)
    with pytest.raises(ValueError, match="zero is one of them"):
        table_grid("x", (-1.0, 1.0), 2)
    with pytest.raises(ValueError, match="each level needs a code"):
        Grid("x", (0.0, 1.0), (0,), 1)


def test_schemes_take_the_defaults_of_the_grid() -> None:
    assert TableScheme("nvfp4").group_size == 16 and TableScheme("mxfp4").group_size == 32
    assert TableScheme("fp8").group_size == -1 and TableScheme("nf4").group_size == 64
    assert TableScheme("fp8").bits == 8 and TableScheme("ternary").bits == 2
    assert TableScheme("fp8").label == "fp8 per row"
    assert TableScheme("fp8", 128, 128, "dynamic").label == "fp8 128x128 + fp8 dynamic activations"
    assert TableScheme("nvfp4").scale_shape(48, 64) == (48, 4)
    assert TableScheme("fp8", 32, 32).scale_shape(48, 64) == (2, 2)
    changed = replace(TableScheme("nvfp4"), activations="dynamic")
    assert (
        changed.calibrates_input
        and not TableScheme("mxfp4", activations="dynamic").calibrates_input
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"grid": "int4"}, r"grid is 'int4'; allowed: fp8, .*; integers are stated by bits"),
        ({"grid": "nvfp4", "group_size": 32}, "grid nvfp4 with group_size 32; allowed: 16"),
        ({"grid": "nvfp4", "bits": 4}, "unknown key 'bits'; allowed: .*grid"),
        ({"bits": 4, "scale_rows": 128}, "unknown key 'scale_rows'"),
        ({"grid": "nvfp4", "scale_rows": 16}, "scale_rows is 16 with grid nvfp4 .*; allowed: 1"),
        ({"grid": "fp8", "scale_rows": 128}, "scale_rows is 128 .* group_size -1; allowed: 1"),
        ({"grid": "nf4", "activations": "dynamic"}, "'dynamic' with grid nf4; allowed: none$"),
        ({"grid": "nvfp4", "activations": "static"}, "'static' with grid nvfp4; .* none, dynamic$"),
        (
            {"grid": "fp8", "group_size": 128, "scale_rows": 128, "activations": "static"},
            "'static' with grid fp8 in blocks; allowed: none, dynamic$",
        ),
    ],
)
def test_recipes_refuse_what_a_grid_has_not(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({"step": [{"method": "gptq"} | keys]})


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptaq"])
def test_recipes_state_a_grid_or_bits(method: str) -> None:
    recipe = Recipe.from_dict({"step": [{"method": method, "grid": "mxfp4"}]})
    assert recipe.steps[0].scheme == TableScheme("mxfp4", 32)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    integers = Recipe.from_dict({"step": [{"method": method, "bits": 4}]})
    assert integers.steps[0].scheme == QuantScheme(4, 128)
    assert list(integers.steps[0].scheme.to_dict()) == [
        "bits",
        "group_size",
        "symmetric",
        "activations",
    ]
