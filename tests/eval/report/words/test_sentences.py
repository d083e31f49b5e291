import pytest

from vlpress.eval.report.words.sentences import WARNINGS_SHOWN, describe_samples, shown_warnings


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({"source": "a.jsonl", "samples": 8, "with_images": 3}, ("8", "a.jsonl", "3")),
        ({"source": "synthetic", "samples": 2, "with_images": 2}, ("2", "built-in drawings")),
        ({"source": "synthetic", "samples": 0, "with_images": 0}, ("none",)),
    ],
)
def test_samples_in_words(calibration: dict[str, object], words: tuple[str, ...]) -> None:
    assert all(word in describe_samples(calibration) for word in words)


def test_few_warnings_are_shown_and_many_are_counted() -> None:
    assert shown_warnings(None) == shown_warnings({}) == []
    few = [f"w{i}" for i in range(WARNINGS_SHOWN)]
    assert shown_warnings({"warnings": few}) == few
    many = shown_warnings({"warnings": [*few, "x", "y"]})
    assert (many[:-1], many[-1].split()[0]) == (few, "2")
