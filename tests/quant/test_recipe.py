from pathlib import Path

import pytest

from vlpress.quant.presets import PRESETS
from vlpress.quant.recipe import Recipe, pattern_matches
from vlpress.quant.scheme import QuantScheme
from vlpress.quant.steps import AWQStep, SmoothQuantStep

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


def test_head_is_short_for_a_step(tmp_path: Path) -> None:
    recipe = Recipe.from_toml(write(tmp_path, 'tp = 2\nlm_head = "w8a16"\n' + STEP))
    assert recipe.tp == 2
    head = recipe.steps[-1]
    assert (head.method, head.targets, head.scheme) == ("gptq", ("lm_head",), QuantScheme(8, 128))
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    rounded = Recipe.from_toml(write(tmp_path, 'lm_head = "w8a16-rtn"\n' + STEP))
    assert [step.method for step in rounded.steps] == ["gptq", "rtn"]
    assert rounded.tp == 1


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
SMOOTH = '[[step]]\nmethod = "smoothquant"\n'


def test_transforms_stand_first_and_keep_their_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        SMOOTH
        + 'alpha = "search"\n'
        + '[[step]]\nmethod = "awq"\nignore = ["*.down_proj"]\npoints = 8\nclip = false\n'
        + SMOOTH
        + "alpha = 1\n"
        + STEP,
    )
    recipe = Recipe.from_toml(path)
    assert recipe.transforms == (
        SmoothQuantStep(alpha="search"),
        AWQStep(ignore=("*.down_proj",), points=8, clip=False),
        SmoothQuantStep(alpha=1),
    )
    assert [step.method for step in recipe.steps] == ["gptq"]
    methods = [step["method"] for step in recipe.to_dict()["step"]]
    assert methods == ["smoothquant", "awq", "smoothquant", "gptq"]
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_defaults_of_transforms(tmp_path: Path) -> None:
    path = write(tmp_path, SMOOTH + '[[step]]\nmethod = "awq"\n' + STEP)
    smooth, awq = Recipe.from_toml(path).transforms
    assert (smooth, awq) == (SmoothQuantStep(("model.layers.*",), (), 0.5), AWQStep(points=20))


@pytest.mark.parametrize(
    ("steps", "needs"),
    [
        ('[[step]]\nmethod = "rtn"\nbits = 8\n', False),
        ('[[step]]\nmethod = "rtn"\nbits = 8\nactivations = "dynamic"\n', False),
        ('[[step]]\nmethod = "rtn"\nbits = 8\nactivations = "static"\n', True),
        (SMOOTH + '[[step]]\nmethod = "rtn"\nbits = 8\n', True),
        (STEP, True),
    ],
)
def test_who_needs_calibration(tmp_path: Path, steps: str, needs: bool) -> None:
    assert Recipe.from_toml(write(tmp_path, steps)).needs_calibration == needs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3 [", "not valid TOML"),
        ("", r"no \[\[step\]\] found"),
        ("[step]\nbits = 4\n", r"no \[\[step\]\] found"),
        (STEP + "groupsize = 64\n", "unknown key 'groupsize' in"),
        ("tp = 0\n" + STEP, "tp is 0; it must be a whole number, at least 1"),
        ("tp = true\n" + STEP, "tp is True"),
        ('lm_head = "w4a16"\n' + STEP, "lm_head is 'w4a16'; allowed are w8a16, w8a16-rtn"),
        ("lm_head = [1]\n" + STEP, r"lm_head is \[1\]; allowed"),
        ("colour = 1\n" + STEP, "unknown key 'colour' at the top level"),
        ("[calibration]\nsample = 3\n" + STEP, r"unknown key 'sample' in \[calibration\]"),
        ("[calibration]\nsamples = 0\n" + STEP, "calibration.samples is 0"),
        ("[calibration]\nsamples = 1.5\n" + STEP, "samples is 1.5; it must be of type int"),
        ("[calibration]\nimage_weight = 0\n" + STEP, "image_weight is 0"),
        ("calibration = 3\n" + STEP, r"expected a table in \[calibration\]"),
        ("[[step]]\nbits = 4\n", "a step has no 'method'"),
        ('[[step]]\nmethod = "gptq"\n', "a step has no 'bits'"),
        (
            '[[step]]\nmethod = "obq"\n',
            "method is 'obq'; allowed are gptq, rtn, smoothquant, awq",
        ),
        ('[[step]]\nmethod = "awq"\n', "awq alone quantizes nothing; add a step with method gptq"),
        (STEP + '[[step]]\nmethod = "awq"\n', "awq stands behind gptq, .* move it to the front"),
        (SMOOTH + "bits = 4\n" + STEP, "unknown key 'bits' in .* with method smoothquant"),
        (SMOOTH + "points = 4\n" + STEP, "unknown key 'points' .*; allowed are alpha, ignore"),
        (SMOOTH + "alpha = 1.5\n" + STEP, "alpha is 1.5; allowed are 0 to 1 and 'search'"),
        (SMOOTH + 'alpha = "best"\n' + STEP, "alpha is 'best'; allowed are 0 to 1"),
        (SMOOTH + "alpha = true\n" + STEP, "alpha is True; allowed are 0 to 1"),
        (SMOOTH + "targets = []\n" + STEP, "no targets"),
        ('[[step]]\nmethod = "awq"\npoints = 0\n' + STEP, "points is 0"),
        ('[[step]]\nmethod = "awq"\nclip = 1\n' + STEP, "clip is 1; it must be of type bool"),
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
