"""Patches and labels of training match the model's input."""

import random

import pytest
import tiny_truth
import torch

from vlpress.model.loading import resolve_model
from vlpress.model.processing.processor import Processor
from vlpress.synthetic import scenes
from vlpress.synthetic.canvas import AnnotatedImage, Mark
from vlpress.synthetic.glyphs import GLYPHS


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(resolve_model("tiny"))


@pytest.mark.parametrize("kind", ["shapes", "album", "text"])
def test_patches_equal_those_of_the_processor(kind: str, processor: Processor) -> None:
    scene = scenes.SCENES[kind](random.Random(1))
    for annotated in scene.images:
        visual = processor.image(annotated.image)
        assert torch.equal(
            torch.from_numpy(tiny_truth.patches(annotated, "qwen2_5_vl")), visual.patches
        )


def test_a_mark_labels_its_patch_and_no_other() -> None:
    scene = scenes.SCENES["shapes"](random.Random(0))
    mark = Mark(x=20.0, y=5.0, colour="red", glyph="K")
    labels = tiny_truth.patch_labels(AnnotatedImage(scene.images[0].image, (mark,)))
    # patch (row 0, column 1) is the second of the four patches of the first token
    assert labels[0].reshape(4, -1)[1].nonzero()[0].tolist()[0] == GLYPHS.index("K")
    assert labels.sum() == 3  # the glyph, its colour and its line


def test_a_shape_is_labelled_with_its_third_of_width_and_height() -> None:
    image = scenes.SCENES["shapes"](random.Random(0)).images[0].image
    mark = Mark(x=100.0, y=50.0, colour="red", shape="star", blurred=True)
    labels = tiny_truth.patch_labels(AnnotatedImage(image, (mark,))).reshape(
        -1, 4, tiny_truth.LABELS
    )
    here = labels[labels.sum(axis=2) > 0]
    first = tiny_truth.FIRST
    expected = [first["rank"] + 2, first["line"] + 1, first["blur"]]
    assert here.shape == (1, tiny_truth.LABELS) and all(here[0, i] == 1 for i in expected)
    assert here.sum() == 5  # the shape and its colour too
