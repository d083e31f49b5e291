"""Every row of the result tables is a recipe that fits the built-in model."""

import pytest
from ablations import VARIANTS
from common.rows.decoders import SETTINGS, DecoderRow
from common.rows.families import FAMILIES, all_rows
from common.rows.grids import ACTIVATIONS, FLOAT, GRIDS, GridRow
from common.rows.masks import MaskRow
from common.rows.presets import PresetRow
from common.rows.recovered import RecoveredRow
from common.rows.rotations import RotationRow
from common.rows.row import Row
from common.rows.selections import METHODS, nearest_plain, rows_of
from common.rows.shrinks import ShrunkRow
from tiny_configs import CONFIGS
from tokenizers import Tokenizer

from vlpress.model.config import ModelConfig
from vlpress.quant.checkpoint.loading import resolve_folder
from vlpress.quant.driver.pipeline import make_plan


@pytest.mark.parametrize("row", DecoderRow.rows(), ids=lambda row: row.key)
def test_recipe_of_a_row(row: DecoderRow) -> None:
    recipe = row.recipe(7, 64)
    assert (recipe.calibration.seed, recipe.calibration.samples) == (7, 64)
    plan = make_plan(ModelConfig.from_folder(resolve_folder("tiny")), recipe)
    decoder = [r for r in plan.quantized if r.name.startswith("model.layers.")]
    tower = [r for r in plan.quantized if r.name.startswith("visual.")]
    assert len(decoder) == 5 * 7
    assert bool(tower) == row.scope.endswith("vision")
    for planned in decoder:
        assert planned.step is not None
        actual = planned.step.scheme.to_dict()
        expected = {"symmetric": True, "activations": "none"} | SETTINGS[row.setting]
        assert {key: actual[key] for key in expected} == expected
    assert {r.step.method for r in plan.quantized if r.step} == {row.method.split("+")[-1]}


def test_row_with_the_tower_quantizes_deepstack_mergers() -> None:
    tokenizer = Tokenizer.from_file(str(resolve_folder("tiny") / "tokenizer.json"))
    config = ModelConfig.from_dict(CONFIGS["qwen3_vl"](tokenizer))
    plan = make_plan(config, DecoderRow("w8a8", "rtn", "decoder+vision").recipe(0, 64))
    names = {row.name for row in plan.quantized if "deepstack" in row.name}
    assert names == {
        f"visual.deepstack_merger_list.{index}.linear_fc{layer}"
        for index in (0, 1)
        for layer in (1, 2)
    }


def test_rows_of_shrunk_decoders() -> None:
    config, labels = ModelConfig.from_folder(resolve_folder("tiny")), set()
    for row in ShrunkRow.rows():
        recipe = row.recipe(7, 64)
        (preparation,) = recipe.preparations
        assert recipe.is_float == (not row.setting.endswith("int4"))
        labels.add((row.setting, preparation.foresee(config, None).summary))
    assert len(labels) == 3 * 6 + 2
    assert ("mlp-0.875", "MLP channels: decoder 768 to 672 (by wanda, not refitted)") in labels
    assert ("mlp-0.67-int4", "MLP channels: decoder 768 to 512 (by random, refitted)") in labels
    assert ("layers-4", "decoder layers: 5 to 4 (by influence)") in labels


def test_rows_of_whole_presets_quantize_every_part() -> None:
    for row in PresetRow.rows():
        recipe = row.recipe(7, 64)
        assert (recipe.calibration.seed, recipe.calibration.samples) == (7, 64)
        plan = make_plan(ModelConfig.from_folder(resolve_folder("tiny")), recipe)
        parts = {planned.spec.part for planned in plan.quantized}
        assert parts == {"tower", "embedding", "decoder", "head"}


def test_seeds_of_a_row() -> None:
    assert GridRow("nvfp4a16", "gptq").seeds([0, 1, 2]) == [0, 1, 2]
    assert DecoderRow("w4a16", "gptq").seeds([3, 4]) == [3, 4]
    assert GridRow("int4", "gptq").seeds([3, 4]) == GridRow("nf4", "gptaq").seeds([3, 4]) == [3]


def test_numbers_of_samples() -> None:
    assert GridRow("nvfp4", "gptq").sample_counts(256, 512) == {"validation": 256, "held_out": 2048}
    assert GridRow("nvfp4", FLOAT, ACTIVATIONS).sample_counts(256, 512)["held_out"] == 2048
    assert DecoderRow("w4a16", "gptq").sample_counts(256, 512)["validation"] == 1024
    assert (
        DecoderRow("w4a16", "gptq", "decoder+vision").sample_counts(256, 512)["validation"] == 256
    )
    assert GridRow("fp8", "gptq").sample_counts(256, 512)["held_out"] == 512


def test_keys_are_distinct() -> None:
    rows = all_rows()
    assert len({row.key for row in rows}) == len(rows)
    settings = [setting for family in FAMILIES for setting in family.settings]
    assert len(set(settings)) == len(settings)


def test_variants_of_a_recipe_differ() -> None:
    recipes = [variant.recipe(0, 64).to_dict() for variant in VARIANTS]
    weights = [r["calibration"]["token_weights"] for r in recipes[:6]]
    assert weights[0] == "uniform"
    assert all(weights.count(kind) == 1 for kind in weights)
    steps = [r["step"][0] for r in recipes]
    assert [s["method"] for s in steps] == ["gptq"] * 6 + ["gptaq"] * 9
    assert [s["strength"] for s in steps[-3:]] == [0.25, 0.75, 1.0]


def test_rows_of_grids_fit_the_built_in_model() -> None:
    config = ModelConfig.from_folder(resolve_folder("tiny"))
    for row in GridRow.rows():
        plan = make_plan(config, row.recipe(0, 64))
        grid = GRIDS[row.setting].get("grid")
        assert {r.step.scheme.to_dict().get("grid") for r in plan.quantized if r.step} == {grid}
        assert len(plan.quantized) == 5 * 7
        assert row.scored == (row.method == "rtn")


@pytest.mark.parametrize("row", RotationRow.rows(), ids=lambda row: row.key)
def test_rows_of_rotations(row: RotationRow) -> None:
    recipe = row.recipe(7, 64)
    plan = make_plan(ModelConfig.from_folder(resolve_folder("tiny")), recipe)
    is_rotated = row.method.startswith("rotate")
    assert len(plan.quantized) == 5 * 7 and len(plan.preparations) == is_rotated
    assert (row.unrotated in RotationRow.rows()) is is_rotated
    assert plan.config.text.tie_word_embeddings is not is_rotated


def test_table_of_methods_has_rows_of_families() -> None:
    rows = rows_of(METHODS)
    assert len({row.key for row in rows}) == len(rows)
    assert set(rows) <= set(all_rows())
    unplaced = {DecoderRow, PresetRow}
    assert {type(row) for row in rows} == {*FAMILIES} - unplaced
    assert {row.scheme["score"] for row in rows if isinstance(row, MaskRow)} == {
        "magnitude",
        "wanda",
        "sparsegpt",
    }
    for row in rows:
        if row.is_beside_start and row.beside is not None:
            assert row.beside in rows
    widths = [row.setting for row in rows if row.is_plain]
    assert widths == ["int2", "int3", "int4", "int5", "int8", "int3-g32", "int4-g32"]


@pytest.mark.parametrize(("bits", "rate"), [(2, 0.002), (3, 0.0005)])
def test_recovered_rows_train_one_after_the_other(bits: int, rate: float) -> None:
    row = RecoveredRow(f"int{bits}-recovered", "gptaq>rounding>scales")
    recover, (later,) = row.recipe(0, 128).recover, row.later_trainings
    assert recover is not None and recover.params == ("rounding",) and recover.lr == 0.02
    assert later.params == ("scales",) and later.lr == rate
    assert row.beside == RecoveredRow(row.setting, "gptaq") and not row.beside.later_trainings


def test_nearest_plain_row() -> None:
    rows = rows_of(METHODS)
    sizes = {"int2": 20, "int3": 30, "int3-g32": 35, "int4": 40, "int4-g32": None}
    masked, recovered = MaskRow("int4-0.5-wanda", "gptq"), RecoveredRow("int2-recovered", "gptaq")
    sizes |= {masked.setting: 37, recovered.setting: 20}

    def nearest(row: Row) -> str | None:
        other = nearest_plain(row, rows, lambda each: sizes.get(each.setting))
        return None if other is None else other.key

    assert nearest(masked) == "int3-g32/gptq"
    assert nearest(recovered) == "int2/gptq"
    assert nearest(MaskRow("int4-0.75-wanda", "gptq")) is None  # of unknown size
    assert nearest_plain(masked, [masked], lambda row: 1) is None
