import pytest
from format_files import contents
from tiny_models import make_random_model

from vlpress.quant.checkpoint.formats.contents import Contents
from vlpress.quant.checkpoint.formats.engines import ENGINES, Support, engine_support
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.recipe.scheme import QuantScheme, Scheme, TableScheme

INT4, INT8 = QuantScheme(4, 32), QuantScheme(8, -1, activations="dynamic")


def support(checkpoint: Contents, format: str) -> dict[str, Support]:
    return {entry.engine: entry for entry in engine_support(checkpoint, format)}


def test_a_scheme_is_looked_up_by_format() -> None:
    packed, gptq = (support(contents(INT4), name) for name in ("compressed-tensors", "gptq"))
    assert [packed[name].outcome for name in ("vLLM", "transformers", "mlx-vlm")] == ["loads"] * 3
    assert packed["auto-gptq"].outcome == "untested"
    assert [gptq[name].outcome for name in ("vLLM", "auto-gptq", "GPTQModel")] == ["loads"] * 3
    assert gptq["mlx-vlm"].outcome == "refuses"
    assert gptq["transformers"].note == "asks for optimum and gptqmodel"


def test_vllm_reads_asymmetric_weights_in_the_default_format_only() -> None:
    asymmetric = contents(QuantScheme(4, 32, symmetric=False))
    formats = ("compressed-tensors", "awq", "gptq_v2")
    outcomes = [support(asymmetric, name)["vLLM"].outcome for name in formats]
    assert outcomes == ["loads", "loads", "refuses"]


def test_the_least_supported_layer_decides() -> None:
    decoder = contents(INT4)
    spec = next(spec for spec in decoder.linears.values() if spec.stage == "vision")
    for scheme, outcome in ((INT8, "loads"), (QuantScheme(8, -1), "refuses"), (INT4, "untested")):
        mixed = Contents(decoder.config, {**decoder.schemes, spec.name: scheme})
        assert support(mixed, "compressed-tensors")["vLLM"].outcome == outcome
    assert "8-bit" in support(contents(QuantScheme(8, 32)), "compressed-tensors")["vLLM"].note


def test_vllm_on_a_cpu_reads_fp8_with_scales_per_row() -> None:
    for scheme, outcome, note in (
        (TableScheme("fp8", activations="dynamic"), "loads", ""),
        (TableScheme("fp8", 32, activations="dynamic", scale_rows=32), "refuses", "AMX"),
        (TableScheme("nvfp4", activations="dynamic"), "refuses", "FP4"),
        (TableScheme("mxfp4"), "refuses", "FP4"),
        (TableScheme("fp8", activations="static"), "untested", ""),
    ):
        found = support(contents(scheme), "compressed-tensors")["vLLM"]
        assert (found.outcome, note in found.note) == (outcome, True)


def test_a_family_that_was_not_tried_is_untested_or_refused() -> None:
    other = Contents(make_random_model("qwen2_vl").config, contents(INT4).schemes)
    assert support(other, "compressed-tensors")["vLLM"].outcome == "untested"
    assert "qwen2_5_vl" in support(other, "compressed-tensors")["vLLM"].note
    assert support(other, "awq")["mlx-vlm"].outcome == "refuses"


@pytest.mark.parametrize("scheme", [INT4, TableScheme("fp8")])
def test_experts_in_transformers_need_a_conversion(scheme: Scheme) -> None:
    config = make_random_model("qwen3_vl_moe").config
    layers = ("self_attn.q_proj", "mlp.experts.0.down_proj")
    schemes = {f"model.layers.0.{layer}": scheme for layer in layers}
    with_experts = support(Contents(config, schemes), "compressed-tensors")["transformers"]
    assert with_experts.outcome == "loads" and "random" in with_experts.note
    del schemes[f"model.layers.0.{layers[1]}"]
    without = support(Contents(config, schemes), "compressed-tensors")["transformers"]
    assert without.outcome == "loads" and "random" not in without.note


def test_tables_of_levels_are_unknown_of_engines_for_integers() -> None:
    fp8 = support(contents(TableScheme("fp8", activations="dynamic")), "compressed-tensors")
    assert fp8["transformers"].outcome == "loads" and "dequantize" in fp8["transformers"].note
    assert {fp8[name].outcome for name in ("mlx-vlm", "GPTQModel")} == {"untested"}


def test_rules_name_formats_that_exist() -> None:
    assert {name for engine in ENGINES for rule in engine.rules for name in rule.formats} <= set(
        FORMATS
    )
