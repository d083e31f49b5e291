import json
from pathlib import Path

import pytest

from vlpress.calib.fixed_weights import FixedWeights
from vlpress.quant.recipe.presets import PRESETS
from vlpress.quant.recipe.recipe import Recipe, pattern_matches
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.steps.awq import AWQStep
from vlpress.quant.steps.gptaq import GPTAQStep
from vlpress.quant.steps.smoothquant import SmoothQuantStep


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_dict_round_trip(name: str) -> None:
    recipe = Recipe.resolve(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_file_name_is_the_default_name(tmp_path: Path) -> None:
    path = write(tmp_path, '[[step]]\nmethod = "rtn"\nbits = 4\n')
    assert Recipe.resolve(path).name == "own"


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
ASYMMETRIC = '[[step]]\nmethod = "gptaq"\nbits = 4\n'
WEIGHTS = "[calibration]\ntoken_weights = "
SMOOTH = '[[step]]\nmethod = "smoothquant"\n'


def test_transforms_come_first_and_keep_their_order(tmp_path: Path) -> None:
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
def test_recipes_that_need_calibration(tmp_path: Path, steps: str, needs: bool) -> None:
    assert Recipe.from_toml(write(tmp_path, steps)).needs_calibration == needs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step = 3 [", "not valid TOML"),
        ("", "recipe: step is missing"),
        ("[step]\nbits = 4\n", r"recipe: step is {'bits': 4}; allowed: .*\[\[step\]\]"),
        ("step = []\n", r"recipe: step is \[\]; allowed: one or more"),
        ("step = [3]\n", r"recipe: step\[0\] is 3; allowed: a table"),
        (STEP + "groupsize = 64\n", r"step\[0\]: unknown key 'groupsize'; allowed: .*group_size"),
        (STEP + STEP + "bits8 = 1\n", r"step\[1\]: unknown key 'bits8'"),
        ("tp = 0\n" + STEP, "tp is 0; allowed: .*at least 1"),
        ("tp = true\n" + STEP, "tp is True"),
        ('lm_head = "w4a16"\n' + STEP, "lm_head is 'w4a16'; allowed: w8a16, w8a16-rtn"),
        ("lm_head = [1]\n" + STEP, r"lm_head is \[1\]; allowed"),
        ("colour = 1\n" + STEP, "recipe: unknown key 'colour'; allowed: .*lm_head, name, .*, step"),
        ("[calibration]\nsample = 3\n" + STEP, "calibration: unknown key 'sample'; .* samples"),
        ("[calibration]\nsamples = 0\n" + STEP, "calibration.samples is 0"),
        ("[calibration]\nsamples = 1.5\n" + STEP, "calibration.samples is 1.5; allowed: a whole"),
        ("[calibration]\nimage_weight = 0\n" + STEP, "calibration: unknown key 'image_weight'"),
        ("[calibration]\nseed = 1.0\n" + STEP, "calibration.seed is 1.0; allowed: a whole number"),
        (
            '[calibration]\ntoken_weights = "equal"\n' + STEP,
            "token_weights is 'equal'; allowed: uniform, balanced, gradient, token-gradient, or",
        ),
        ("[calibration]\ntoken_weights = 0.3\n" + STEP, "token_weights is 0.3; allowed"),
        (
            WEIGHTS + "{video = 1}\n" + STEP,
            "token_weights: unknown key 'video'; allowed: image, text",
        ),
        (WEIGHTS + "{image = 0, text = 0}\n" + STEP, "recipe: calibration.token_weights: .* all 0"),
        (
            WEIGHTS + "{image = -0.1}\n" + STEP,
            "token_weights.image is -0.1; allowed: .* at least 0",
        ),
        (WEIGHTS + "{text = nan}\n" + STEP, "token_weights.text is nan; allowed: a number"),
        (WEIGHTS + "{text = true}\n" + STEP, "token_weights.text is True; allowed: a number"),
        (
            "[calibration]\nsamples = 0\ntoken_weights = {image = 1}\n" + STEP,
            "samples is 0; allowed",
        ),
        ("calibration = 3\n" + STEP, "calibration is 3; allowed: a table"),
        (
            "[[step]]\nbits = 4\n",
            r"step\[0\]\.method is missing; allowed: gptq, gptaq, rtn, smooth",
        ),
        ('[[step]]\nmethod = "gptq"\n', r"step\[0\]\.bits is missing"),
        (
            '[[step]]\nmethod = "obq"\n',
            "method is 'obq'; allowed: gptq, gptaq, rtn, smoothquant, awq",
        ),
        ('[[step]]\nmethod = "awq"\n', "awq alone quantizes nothing; add a step with method gptq"),
        (STEP + '[[step]]\nmethod = "awq"\n', "awq comes after gptq, .* move it to the front"),
        (
            SMOOTH + "bits = 4\n" + STEP,
            "unknown key 'bits'; allowed: alpha, ignore, method, targets$",
        ),
        (SMOOTH + "points = 4\n" + STEP, "unknown key 'points'; allowed: alpha, ignore"),
        (SMOOTH + "alpha = 1.5\n" + STEP, "alpha is 1.5; allowed: .*0 to 1, 'search'"),
        (SMOOTH + 'alpha = "best"\n' + STEP, "alpha is 'best'; allowed: .*0 to 1"),
        (SMOOTH + "alpha = true\n" + STEP, "alpha is True; allowed: .*0 to 1"),
        (SMOOTH + "targets = []\n" + STEP, r"targets is \[\]; allowed: .* at least one"),
        ('[[step]]\nmethod = "awq"\npoints = 0\n' + STEP, "points is 0"),
        ('[[step]]\nmethod = "awq"\nclip = 1\n' + STEP, "clip is 1; allowed: true or false"),
        ('[[step]]\nmethod = "rtn"\nbits = 16\n', "bits is 16"),
        (STEP + 'targets = "model"\n', "targets is 'model'; allowed: a list"),
        (STEP + "ignore = [1]\n", r"ignore is \[1\]; allowed: a list"),
        (STEP + "targets = []\n", r"targets is \[\]; allowed: .* at least one"),
        (STEP + "strength = 0.5\n", "strength is 0.5 with method gptq; allowed: .*gptaq only"),
        ('[[step]]\nmethod = "rtn"\nbits = 4\nstrength = 0\n', "strength .* with method rtn"),
        (
            '[[step]]\nmethod = "rtn"\nbits = 4\ndamp_percent = 0.01\n',
            "damp_percent is 0.01 with method rtn; allowed: .*gptq, gptaq only",
        ),
        (STEP + "scheme = 1\n", "unknown key 'scheme'; allowed: act_order, .* targets$"),
        (SMOOTH + "strength = 1\n" + STEP, "unknown key 'strength'; allowed: alpha, ignore"),
        (ASYMMETRIC + "strength = 1.5\n", "strength is 1.5; allowed: .* 0 to 1"),
        (ASYMMETRIC + "strength = -1\n", "strength is -1; allowed: .* 0 to 1"),
        (ASYMMETRIC + "strength = nan\n", "strength is nan; allowed: .* 0 to 1"),
        (ASYMMETRIC + 'strength = "all"\n', "strength is 'all'; allowed: a number"),
        (STEP + "damp_percent = 2.0\n", "damp_percent is 2.0; allowed: .* above 0, at most 1"),
        (STEP + "damp_percent = 0\n", "damp_percent is 0; allowed"),
        (STEP + "damp_percent = inf\n", "damp_percent is inf; allowed"),
        (STEP + 'act_order = "yes"\n', "act_order is 'yes'; allowed: true or false"),
        (STEP + "block_size = 0\n", "block_size is 0"),
    ],
)
def test_rejects(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Recipe.resolve(write(tmp_path, text))
    assert "own.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gptaq_has_the_options_of_gptq_and_strength(tmp_path: Path) -> None:
    path = write(tmp_path, ASYMMETRIC + "strength = 0.25\nact_order = false\ndamp_percent = 0.05\n")
    recipe = Recipe.from_toml(path)
    assert recipe.steps == (
        GPTAQStep(QuantScheme(4), act_order=False, damp_percent=0.05, strength=0.25),
    )
    assert recipe.needs_calibration
    assert recipe.to_dict()["step"][0]["strength"] == 0.25
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_toml(write(tmp_path, ASYMMETRIC)).steps == (GPTAQStep(QuantScheme(4)),)
    assert "strength" not in Recipe.from_toml(write(tmp_path, STEP)).to_dict()["step"][0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "uniform"),
        ('[calibration]\ntoken_weights = "gradient"\n', "gradient"),
        (WEIGHTS + "{image = 0.3, text = 2}\n", FixedWeights(0.3, 2)),
        (WEIGHTS + "{image = 0}\n", FixedWeights(0, 1)),
        (WEIGHTS + "{}\n", FixedWeights(1, 1)),
    ],
)
def test_token_weights(tmp_path: Path, text: str, expected: str | FixedWeights) -> None:
    recipe = Recipe.from_toml(write(tmp_path, text + STEP))
    assert recipe.calibration.token_weights == expected
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_unknown_name() -> None:
    with pytest.raises(FileNotFoundError, match=r"neither a file nor a preset.* presets are w4a16"):
        Recipe.resolve("w5a16")
