from vlpress.calib.samples.sample import image_digests
from vlpress.calib.samples.synthetic import calibration_samples


def test_calibration_samples_are_reproducible_and_cover_all_scenes() -> None:
    first, second = (calibration_samples(48, seed=3) for _ in range(2))
    assert [s.answer for s in first] == [s.answer for s in second]
    assert image_digests(first) == image_digests(second)
    assert len({s.id for s in first}) == 48
    letters = sum(s.answer in tuple("ABCD") for s in first)
    assert 10 <= letters <= 38
    assert any(len(s.messages[0]["content"]) > 2 for s in first), "several images"


def test_calibration_answers_are_never_empty() -> None:
    assert all(s.answer for s in calibration_samples(200, seed=0))
