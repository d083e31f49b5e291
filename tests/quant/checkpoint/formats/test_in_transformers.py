"""transformers loads our compressed-tensors folders of the built-in model: equal logits."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_model import reference_logits
from tiny_models import make_random_model, make_tiny_config, write_checkpoint_folder
from tiny_models import prompts as random_prompts

from vlpress.calib.samples.draw import load_samples
from vlpress.model.checkpoint import canonical_name
from vlpress.model.kv_quant.scales import KVScales
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import compressed_layers

pytest.importorskip("compressed_tensors", minversion="0.15")
transformers = pytest.importorskip("transformers", minversion="5.0")

DECODER = {"method": "rtn", "bits": 4, "group_size": 128}
ROUNDED = {"activations": "dynamic"}
PER_ROW = {"method": "rtn", "bits": 8, "group_size": -1}
TOWER = {"targets": ["visual.blocks.*", "visual.merger.*"]}
STEPS: dict[str, list[dict[str, Any]]] = {
    "w4a16": [DECODER],
    "w8a8": [PER_ROW | ROUNDED],
    "w4a8": [DECODER | ROUNDED],
    "asymmetric": [DECODER | {"symmetric": False}],
    "vision-w8a16": [PER_ROW | TOWER, DECODER],
    "vision-w8a8": [{"method": "smoothquant"} | TOWER, PER_ROW | ROUNDED | TOWER, DECODER],
    "mixed": [
        DECODER | {"ignore": ["*.down_proj"]},
        PER_ROW | ROUNDED | {"targets": ["model.layers.*.down_proj"], "ignore": ["*layers.2.*"]},
        PER_ROW | {"targets": ["visual.*"]},
    ],
}

QUICK = ("w4a16", "w8a8", "vision-w8a8")  # one of each layout of tensors


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    processor = Processor.from_folder(resolve_model("tiny"))
    samples = load_samples(None, n=2, seed=0)
    return [processor.encode(sample.messages, answer=sample.answer) for sample in samples]


def separate_tokens(model: Any) -> None:
    """Give each token of the tower a scale of its own, as kernels do.

    The library takes one scale for each entry of an input's first two dimensions. The tower has no
    batch dimension, so all tokens would share one.
    """
    for name, module in model.named_modules():
        if ".visual." in name and hasattr(module, "quantization_scheme"):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0][None],))
            module.register_forward_hook(lambda _, inputs, output: output[0])


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in STEPS]
)
def test_logits_agree(name: str, tmp_path: Path, prompts: list[Prompt]) -> None:
    """Weights are equal; int8 activations are rounded differently.

    The library maps a token's largest value to 127.5 levels, kernels and vlpress to 127, so
    with int8 activations the two are different roundings of one model.
    """
    model = load_model("tiny", device="cpu", dtype="fp32")
    report = quantize_(model, Recipe.from_dict({"name": name, "step": STEPS[name]}), prompts)
    save_quantized(model, report, "tiny", tmp_path / name, format="compressed-tensors")
    reloaded = load_quantized(tmp_path / name, device="cpu", dtype="fp32")
    options: dict[str, Any] = {}
    if name == "asymmetric":
        # Without this the library's version 0.20 expects zero points that are not packed.
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / name, dtype=torch.float32, **options
    )
    if name.startswith("vision"):
        assert theirs.config.vision_config.intermediate_size == 640
        separate_tokens(theirs)
    for prompt in prompts:
        assert prompt.visuals
        with torch.no_grad():
            (expected,) = reloaded([prompt])
        difference = reference_logits(theirs, prompt) - expected
        if "a16" in name:
            assert float(difference.abs().max() / expected.abs().max()) < 1e-4
        assert float(difference.norm() / expected.norm()) < 2e-2


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_logits_through_an_fp8_cache_agree(tmp_path: Path, prompts: list[Prompt]) -> None:
    model = load_model("tiny", device="cpu", dtype="fp32")
    recipe = Recipe.from_dict({"name": "kv", "step": [DECODER], "kv_cache": {"type": "fp8"}})
    report = quantize_(model, recipe, prompts)
    save_quantized(model, report, "tiny", tmp_path / "kv", format="compressed-tensors")
    reloaded = load_quantized(tmp_path / "kv", device="cpu", dtype="fp32")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "kv", dtype=torch.float32
    )
    scales = [
        KVScales(float(layer.self_attn.k_scale), float(layer.self_attn.v_scale))
        for layer in theirs.model.language_model.layers
    ]
    assert scales == reloaded.cache_scales
    for prompt in prompts:
        with torch.no_grad():
            (expected,) = reloaded([prompt])
            reloaded.cache_type = "model"
            (plain,) = reloaded([prompt])
            reloaded.cache_type = "fp8"
        difference = (reference_logits(theirs, prompt) - expected).norm()
        assert float(difference) < 0.05 * float((plain - expected).norm())


TABLES: dict[str, dict[str, Any]] = {
    "fp8": {"grid": "fp8", "activations": "dynamic"},
    "fp8-static": {"grid": "fp8", "activations": "static"},
    "fp8-block": {"grid": "fp8", "group_size": 128, "scale_rows": 128, "activations": "dynamic"},
    "nvfp4": {"grid": "nvfp4", "activations": "dynamic"},
    "nvfp4a16": {"grid": "nvfp4"},
    "mxfp4": {"grid": "mxfp4", "activations": "dynamic"},
}


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "nvfp4" else pytest.mark.slow) for n in TABLES]
)
def test_weights_of_tables_are_bit_equal(name: str, tmp_path: Path, prompts: list[Prompt]) -> None:
    """Every dequantized layer in bf16."""
    model = load_model("tiny", device="cpu")
    recipe = Recipe.from_dict({"name": name, "step": [{"method": "rtn"} | TABLES[name]]})
    report = quantize_(model, recipe, prompts)
    save_quantized(model, report, "tiny", tmp_path / name, format="compressed-tensors")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / name,
        dtype=torch.bfloat16,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    parameters = {canonical_name(name): value for name, value in theirs.named_parameters()}
    layers = compressed_layers(model)
    assert len(layers) == 5 * 7
    for layer_name, layer in layers.items():
        expected = layer.quantized().dequantize(torch.bfloat16)
        assert torch.equal(parameters[f"{layer_name}.weight"], expected), layer_name


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("family", [pytest.param("qwen3_vl", marks=pytest.mark.slow), "qwen3_5"])
def test_a_random_model(family: str, tmp_path: Path) -> None:
    """Tower, deepstack mergers and decoder; names are those of the newer libraries."""
    text = {"mtp_num_hidden_layers": 1} if family == "qwen3_5" else {}
    config = make_tiny_config(family, dtype="float32", text=text)
    carried = {}
    if text:  # ignored by the library, although the exclusion list names its layers
        module = MultiTokenPredictor(config.text).state_dict()
        carried = {f"mtp.{name}": torch.ones_like(tensor) for name, tensor in module.items()}
    source = write_checkpoint_folder(
        tmp_path / "source", make_random_model(config=config), extra=carried
    )
    model = load_model(source, device="cpu", dtype="fp32")
    samples = random_prompts(config)
    steps = [PER_ROW | {"targets": ["visual.*"]}, DECODER]
    report = quantize_(model, Recipe.from_dict({"name": "all", "step": steps}), samples)
    save_quantized(model, report, source, tmp_path / "out", format="compressed-tensors")
    reloaded = load_quantized(tmp_path / "out", device="cpu", dtype="fp32")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype="float32"
    )
    for prompt in samples[1:3]:
        expected = reference_logits(theirs, prompt)
        with torch.no_grad():
            actual = reloaded([prompt])[0]
        assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.fixture
def merged_experts(family: str) -> Iterator[None]:
    """Let transformers read single experts, as docs/use-the-checkpoint.md describes."""
    if family == "qwen3_5_moe":  # its own conversion does
        yield
        return
    mapping: Any = importlib.import_module("transformers.conversion_mapping")
    published = mapping.get_checkpoint_conversion_mapping(family)
    conversion = mapping.get_checkpoint_conversion_mapping("qwen2_moe")
    mapping.register_checkpoint_conversion_mapping(family, conversion, overwrite=True)
    yield
    mapping.register_checkpoint_conversion_mapping(family, published, overwrite=True)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.usefixtures("merged_experts")
@pytest.mark.parametrize(
    ("family", "scheme"),
    [
        pytest.param("qwen3_vl_moe", {"bits": 4, "group_size": 32}, marks=pytest.mark.slow),
        pytest.param("qwen3_vl_moe", {"grid": "fp8"}, marks=pytest.mark.slow),
        ("qwen3_5_moe", {"bits": 4, "group_size": 32}),
    ],
)
def test_single_experts_are_merged(family: str, scheme: dict[str, Any], tmp_path: Path) -> None:
    """The weights of all layers are bit-equal, and logits with images agree."""
    config = make_tiny_config(family, dtype="float32")
    source = write_checkpoint_folder(tmp_path / "source", make_random_model(config=config))
    model = load_model(source, device="cpu", dtype="fp32")
    report = quantize_(
        model, Recipe.from_dict({"name": "all", "step": [{"method": "rtn"} | scheme]}), []
    )
    save_quantized(model, report, source, tmp_path / "out", format="compressed-tensors")
    reloaded = load_quantized(tmp_path / "out", device="cpu", dtype="fp32")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out",
        dtype=torch.float32,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    parameters = dict(theirs.named_parameters())
    experts = 0
    for name, layer in compressed_layers(model).items():
        path, _, leaf = name.rpartition(".")
        if ".experts." not in name:
            weight = parameters[name.replace("model.", "model.language_model.", 1) + ".weight"]
            assert torch.equal(weight, layer.quantized().dequantize(torch.float32)), name
            continue
        path, _, expert = path.rpartition(".")
        fused = "gate_up_proj" if leaf in ("gate_proj", "up_proj") else leaf
        stacked = parameters[path.replace("model.", "model.language_model.", 1) + "." + fused]
        part = stacked[int(expert)]
        if fused != leaf:
            part = part.chunk(2)[leaf == "up_proj"]
        assert torch.equal(part, layer.quantized().dequantize(torch.float32)), name
        experts += 1
    assert experts == 4 * 6 * 3
    # Linear attention with random weights amplifies rounding: in float they differ as much.
    most = 1e-3 if family == "qwen3_5_moe" else 1e-4
    for prompt in random_prompts(config)[1:3]:
        expected = reference_logits(theirs, prompt)
        with torch.no_grad():
            actual = reloaded([prompt])[0]
        assert float((actual - expected).abs().max() / expected.abs().max()) < most


EMBEDDING = {"method": "rtn", "bits": 4, "targets": ["model.embed_tokens"]}
HEAD = {"method": "rtn", "bits": 8, "group_size": 128, "targets": ["lm_head"]}


def skip_packed_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library initialize only embeddings that have a weight.

    Version 5.23 asks every embedding for it before it has loaded, which fails for packed ones; its
    linear layers are asked whether they have one.
    """
    original = transformers.PreTrainedModel._initialize_weights

    def guarded(self: Any, module: torch.nn.Module, *args: Any) -> None:
        if not isinstance(module, torch.nn.Embedding) or hasattr(module, "weight"):
            original(self, module, *args)

    monkeypatch.setattr(transformers.PreTrainedModel, "_initialize_weights", guarded)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("bits", [4, pytest.param(2, marks=pytest.mark.slow)])
def test_embedding_and_untied_head_are_bit_equal(
    tmp_path: Path, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """The library finds the schemes of both, and decompresses them to our numbers in bf16."""
    model = load_model("tiny", device="cpu")
    steps = [EMBEDDING | {"bits": bits}, HEAD, DECODER]
    report = quantize_(model, Recipe.from_dict({"name": "all", "tie": False, "step": steps}))
    save_quantized(model, report, "tiny", tmp_path / "all", format="compressed-tensors")
    skip_packed_embeddings(monkeypatch)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "all", dtype=torch.bfloat16
    )
    reference_logits(theirs, prompts[0])  # the first forward pass decompresses
    layers = compressed_layers(model)
    for name, module in (
        ("model.embed_tokens", theirs.get_input_embeddings()),
        ("lm_head", theirs.get_output_embeddings()),
    ):
        assert torch.equal(module.weight, layers[name].quantized().dequantize(torch.bfloat16)), name


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
def test_an_embedding_of_the_only_scheme_loads_dequantized(tmp_path: Path) -> None:
    """As it is: with `dequantize` the library has one scheme for all layers."""
    model = load_model("tiny", device="cpu")
    recipe = {"name": "all", "tie": False, "step": [EMBEDDING, DECODER]}
    report = quantize_(model, Recipe.from_dict(recipe))
    save_quantized(model, report, "tiny", tmp_path / "all", format="compressed-tensors")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "all",
        dtype=torch.bfloat16,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    expected = compressed_layers(model)["model.embed_tokens"].quantized().dequantize(torch.bfloat16)
    rows = theirs.get_input_embeddings()(torch.arange(len(expected)))
    assert torch.equal(rows, expected)
    head = theirs.get_output_embeddings().weight
    assert torch.equal(head, load_model("tiny", device="cpu").model.embed_tokens.weight)
