import pytest

from vlpress.quant.recipe.scheme import QuantScheme


def test_levels_and_midpoints() -> None:
    assert [(QuantScheme(b).max_level, QuantScheme(b).midpoint) for b in (3, 4, 8)] == [
        (7, 4),
        (15, 8),
        (255, 128),
    ]


def test_groups() -> None:
    assert QuantScheme(4, 128).groups(512) == 4
    assert QuantScheme(4, -1).groups(3420) == 1
    with pytest.raises(ValueError, match="in_features 3420 does not divide into groups of 128"):
        QuantScheme(4, 128).groups(3420)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 1}, "bits is 1"),
        ({"bits": 9}, "bits is 9"),
        ({"bits": True}, "bits is True"),
        ({"bits": 4, "group_size": 0}, "group_size is 0"),
        ({"bits": 4, "group_size": 64.0}, "group_size is 64.0"),
        ({"bits": 4, "symmetric": "yes"}, "symmetric is 'yes'"),
        (
            {"bits": 4, "activations": "int8"},
            "activations is 'int8'; allowed: none, dynamic, static",
        ),
    ],
)
def test_rejects(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantScheme(**fields)  # type: ignore[arg-type]  # wrong types on purpose


def test_label_and_dict() -> None:
    assert QuantScheme(4).label == "int4 g128 sym"
    assert QuantScheme(8, -1, activations="dynamic").label == (
        "int8 per row sym + int8 dynamic activations"
    )
    assert QuantScheme(**QuantScheme(3, 64, False).to_dict()) == QuantScheme(3, 64, False)
