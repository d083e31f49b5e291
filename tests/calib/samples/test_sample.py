import io
from pathlib import Path

from PIL import Image

from vlpress.calib.samples.sample import (
    Sample,
    fingerprint,
    has_images,
    image_digest,
    image_digests,
)


def png(colour: str = "red", size: tuple[int, int] = (8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def test_digest_is_of_pixels_not_of_files(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(stream, "BMP")
    assert image_digest(stream.getvalue()) == image_digest(png())
    assert image_digest(Image.new("RGB", (8, 6), "red")) == image_digest(png())
    # 8 x 6 and 6 x 8 hold the same bytes
    assert image_digest(png(size=(6, 8))) != image_digest(png())


def test_fingerprint_notices_everything() -> None:
    def sample(text: str = "Colour?", colour: str = "red", answer: str = "Red") -> Sample:
        content = [{"type": "image", "image": png(colour)}, {"type": "text", "text": text}]
        return Sample([{"role": "user", "content": content}], answer, "a")

    base = fingerprint([sample()])
    assert base == fingerprint([sample()])
    changed = [
        [sample(text="Which?")],
        [sample(colour="blue")],
        [sample(answer="red")],
        [sample(), sample()],
        [Sample(sample().messages, "Red", "b")],
    ]
    assert len({base, *map(fingerprint, changed)}) == 6


def test_fingerprint_is_of_contents_and_options(tmp_path: Path) -> None:
    for name, data in (("a.mp4", b"one"), ("b.mp4", b"one"), ("c.mp4", b"other")):
        (tmp_path / name).write_bytes(data)

    def sample(name: str, **options: int) -> Sample:
        part = {"type": "video", "video": tmp_path / name, **options}
        return Sample([{"role": "user", "content": [part]}], "x", "a")

    base = fingerprint([sample("a.mp4")])
    assert base == fingerprint([sample("b.mp4")])
    others = [sample("c.mp4"), sample("a.mp4", nframes=4), sample("a.mp4", nframes=6)]
    frames = Sample([{"role": "user", "content": [{"type": "video", "video": [png()]}]}], "x", "a")
    assert len({base, *(fingerprint([other]) for other in (*others, frames))}) == 5


def test_frames_are_images_and_video_files_are_not() -> None:
    def sample(video: object) -> Sample:
        content = [{"type": "video", "video": video}, {"type": "text", "text": "What?"}]
        return Sample([{"role": "user", "content": content}], "x", "a")

    text = Sample([{"role": "user", "content": "What?"}], "x", "a")
    frames, file = sample([png(), png("blue")]), sample(Path("v.mp4"))
    assert has_images(frames) and has_images(file) and not has_images(text)
    assert image_digests([frames, file, text]) == {image_digest(png()), image_digest(png("blue"))}
