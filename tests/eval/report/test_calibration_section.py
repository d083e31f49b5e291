import pytest

from vlpress.eval.report.calibration_section import SHOWN, describe_samples, shown_warnings


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"source": "a.jsonl", "samples": 8, "with_images": 3}, ("8", "a.jsonl", "3")),
        ({"source": "synthetic", "samples": 2, "with_images": 2}, ("2", "built-in drawings")),
        ({"source": "synthetic", "samples": 0, "with_images": 0}, ("none",)),
    ],
)
def test_samples_in_words(found: dict[str, object], words: tuple[str, ...]) -> None:
    assert all(word in describe_samples(found) for word in words)


def test_few_warnings_are_shown_and_many_are_counted() -> None:
    assert shown_warnings(None) == shown_warnings({}) == []
    few = [f"w{i}" for i in range(SHOWN)]
    assert shown_warnings({"warnings": few}) == few
    many = shown_warnings({"warnings": [*few, "x", "y"]})
    assert many[:SHOWN] == few and len(many) == SHOWN + 1 and many[-1].startswith("2 ")
