from pathlib import Path

import pytest

from vlpress.quant.recipe import PRESETS, Recipe, pattern_matches
from vlpress.quant.scheme import QuantScheme

EXAMPLES = Path(__file__).parents[2] / "examples" / "recipes"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["w4a16", "w8a16", "w3a16"])
def test_example_files_spell_out_the_presets(name: str) -> None:
    assert Recipe.resolve(EXAMPLES / f"{name}.toml") == Recipe.resolve(name)


def test_presets() -> None:
    recipe = Recipe.resolve("w4a16")
    assert recipe.steps[0].scheme == QuantScheme(4, 128)
    assert recipe.steps[0].method == "gptq"
    assert recipe.needs_calibration
    assert not Recipe.resolve("w3a16-rtn").needs_calibration
    assert Recipe.resolve("w3a16-rtn").steps[0].scheme.bits == 3


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip(name: str) -> None:
    recipe = Recipe.resolve(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_file_name_is_the_default_name(tmp_path: Path) -> None:
    path = write(tmp_path, '[[step]]\nmethod = "rtn"\nbits = 4\n')
    assert Recipe.resolve(path).name == "mine"


def test_two_steps_and_patterns(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '[[step]]\nmethod = "rtn"\nbits = 8\ntargets = ["re:.*down_proj"]\n'
        '[[step]]\nmethod = "gptq"\nbits = 4\nignore = ["*down_proj"]\ndamp_percent = 1\n',
    )
    first, second = Recipe.from_toml(path).steps
    assert (first.scheme.bits, second.scheme.bits) == (8, 4)
    assert second.ignore == ("*down_proj",)


def test_patterns() -> None:
    name = "model.layers.10.mlp.down_proj"
    assert pattern_matches("model.layers.*", name)
    assert pattern_matches(r"re:model\.layers\.\d+\.mlp\..*", name)
    assert not pattern_matches("down_proj", name)
    assert not pattern_matches(r"re:down_proj", name)
    with pytest.raises(ValueError, match="not a valid expression"):
        pattern_matches("re:(", name)


STEP = '[[step]]\nmethod = "gptq"\nbits = 4\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3 [", "not valid TOML"),
        ("", r"no \[\[step\]\] found"),
        ("[step]\nbits = 4\n", r"no \[\[step\]\] found"),
        (STEP + "groupsize = 64\n", "unknown key 'groupsize' in"),
        ("colour = 1\n" + STEP, "unknown key 'colour' at the top level"),
        ("[calibration]\nsample = 3\n" + STEP, r"unknown key 'sample' in \[calibration\]"),
        ("[calibration]\nsamples = 0\n" + STEP, "calibration.samples is 0"),
        ("[calibration]\nsamples = 1.5\n" + STEP, "samples is 1.5; it must be of type int"),
        ("[calibration]\nimage_weight = 0\n" + STEP, "image_weight is 0"),
        ("calibration = 3\n" + STEP, r"expected a table in \[calibration\]"),
        ("[[step]]\nbits = 4\n", "a step has no 'method'"),
        ('[[step]]\nmethod = "gptq"\n', "a step has no 'bits'"),
        ('[[step]]\nmethod = "awq"\nbits = 4\n', "method is 'awq'; allowed are gptq, rtn"),
        ('[[step]]\nmethod = "rtn"\nbits = 16\n', "bits is 16"),
        (STEP + 'targets = "model"\n', "targets is 'model'; it must be a list"),
        (STEP + "targets = []\n", "no targets"),
        (STEP + "damp_percent = 2.0\n", "damp_percent is 2.0"),
        (STEP + 'act_order = "yes"\n', "act_order is 'yes'; it must be of type bool"),
        (STEP + "block_size = 0\n", "block_size is 0"),
    ],
)
def test_rejects(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.resolve(write(tmp_path, text))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_name() -> None:
    with pytest.raises(FileNotFoundError, match="neither a file nor a preset; presets are w4a16"):
        Recipe.resolve("w5a16")
