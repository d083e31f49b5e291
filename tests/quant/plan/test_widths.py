import pytest

from vlpress.model.families import LinearSpec
from vlpress.quant.plan.widths import check_groups, fitting_group
from vlpress.quant.recipe.scheme import QuantScheme


def layer(name: str, in_features: int, *, input_split: bool = False) -> LinearSpec:
    return LinearSpec(name, in_features, 64, False, "vision", 0, name, input_split)


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
    message = (
        r"^proj: in_features 320 on each of 4 devices does not divide into groups of 128; "
        r"group_size 64 fits all layers of this step$"
    )
    with pytest.raises(ValueError, match=message):
        check_groups(specs, QuantScheme(4, 128), tp=4)
    check_groups(specs, QuantScheme(4, 64), tp=4)
    check_groups(specs, QuantScheme(8, -1), tp=4)
    with pytest.raises(ValueError, match="proj: in_features 1280 does not split over 3 devices"):
        check_groups(specs, QuantScheme(8, -1), tp=3)
