import teacher
import tiny_data
import torch
from tiny_student import Student
from tokenizers import Tokenizer

from vlpress.model.loading import resolve_model
from vlpress.synthetic import scenes


def test_features_are_those_of_the_teachers_own_pixels() -> None:
    folder = resolve_model("tiny")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = scenes.stream_random(scenes.Stream.TRAINING, 5)
    images = tiny_data.random_images(rng, 3)
    unasked = tiny_data.unasked(images)
    trained = teacher.Teacher(folder, tokenizer, "qwen3_vl")
    ours = trained.features(tiny_data.pack([unasked], "qwen3_vl"))
    with torch.no_grad():
        batch = tiny_data.pack([unasked], "qwen2_5_vl")
        theirs = trained.student.qwen.visual(batch.patches, batch.grid)["hidden"]
    assert torch.allclose(ours, theirs, atol=1e-3)
    untrained = Student(tokenizer, "qwen2_5_vl").features(batch)["hidden"]
    assert not torch.allclose(untrained, theirs, atol=0.1)
