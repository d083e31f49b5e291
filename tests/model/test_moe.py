"""Mixture of experts: routing, grouping of tokens, and the orientation of stored weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from expert_files import write_single_experts
from reference_model import encode, reference_logits
from safetensors.torch import load_file, save_file
from tiny_models import RandomModel, TinyConfig, make_random_model, write_checkpoint_folder

from vlpress.model.config import ModelConfig
from vlpress.model.expert_linear import ExpertLinear, routed_tokens
from vlpress.model.families import family_of
from vlpress.model.loading import load_model
from vlpress.model.moe import Expert, MixtureOfExperts
from vlpress.model.processing.processor import Processor
from vlpress.model.sizes import ExpertSizes
from vlpress.quant.targets import weight_of

HIDDEN, INNER, COUNT, ACTIVE = 8, 6, 5, 2


def block(*, input_major: bool = True) -> MixtureOfExperts:
    sizes = ExpertSizes(COUNT, ACTIVE, INNER, input_major)
    made = MixtureOfExperts(HIDDEN, sizes)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return made.requires_grad_(False)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(1))


def by_formula(moe: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """All experts for every token, with the shares of the others 0."""
    probabilities = (x @ moe.gate.weight.t()).softmax(-1)
    largest, chosen = probabilities.topk(ACTIVE)
    shares = torch.zeros_like(probabilities).scatter(-1, chosen, largest / largest.sum(-1, True))
    gate_up = moe.experts.get_parameter("gate_up_proj")
    gate, up = torch.einsum("bth,ehi->btei", x, gate_up).chunk(2, dim=-1)
    down = moe.experts.get_parameter("down_proj")
    return torch.einsum("btei,eih,bte->bth", F.silu(gate) * up, down, shares)


def test_equals_the_formula() -> None:
    moe, x = block(), inputs(2, 7)
    torch.testing.assert_close(moe(x), by_formula(moe, x))


def test_shares_add_up_to_one_and_are_computed_in_float32() -> None:
    shares, chosen = block().to(torch.bfloat16).route(inputs(50).to(torch.bfloat16))
    assert shares.dtype == torch.bfloat16 and chosen.dtype == torch.int64
    assert float((shares.float().sum(-1) - 1).abs().max()) < 0.01
    assert (shares[:, 0] >= shares[:, 1]).all()


def test_only_experts_with_tokens_run() -> None:
    moe, x = block(), inputs(1, 3)
    _, chosen = moe.route(x[0])
    seen: dict[int, list[int]] = {}

    def record(expert: Expert, args: tuple[torch.Tensor]) -> None:
        tokens = routed_tokens()
        assert tokens is not None and torch.equal(args[0], x[0, tokens])
        assert isinstance(expert.gate_proj, ExpertLinear)
        seen[expert.gate_proj.slice.index] = tokens.tolist()

    for module in moe.modules():
        if isinstance(module, Expert):
            module.register_forward_pre_hook(record)
    moe(x)
    expected = {e: torch.where(chosen == e)[0].tolist() for e in chosen.flatten().tolist()}
    assert seen == expected and len(seen) < COUNT
    assert routed_tokens() is None


def test_inputs_are_those_that_experts_read() -> None:
    moe, x = block(), inputs(1, 9)
    seen: dict[int, torch.Tensor] = {}
    for index in range(COUNT):
        expert = moe.expert(index)
        down = expert.down_proj
        down.register_forward_pre_hook(lambda _, args, e=index: seen.update({e: args[0]}))
    moe(x)
    expected = dict(seen)
    assert len(expected) > 2
    some = list(expected)[1:]
    for index, tokens, rows in moe.inputs(x, some):
        assert tokens is not None and torch.equal(rows, x[0, tokens])
        assert torch.equal(moe.expert(index).inner(rows), expected[index])
    assert [index for index, _, _ in moe.inputs(x, some)] == some
    of_all = list(moe.inputs(x, [3, 1], all_tokens=True))
    assert [(index, tokens) for index, tokens, _ in of_all] == [(1, None), (3, None)]
    assert all(torch.equal(rows, x[0]) for _, _, rows in of_all)


def test_orientations_are_equal() -> None:
    left, right = block(), block(input_major=False)
    right.gate.weight.copy_(left.gate.weight)
    for name in ("gate_up_proj", "down_proj"):
        right.experts.get_parameter(name).copy_(left.experts.get_parameter(name).transpose(1, 2))
    torch.testing.assert_close(left(inputs(1, 9)), right(inputs(1, 9)))


def test_gradients_equal_those_of_the_formula() -> None:
    moe, x = block().requires_grad_(True), inputs(2, 7).requires_grad_(True)
    names, wanted = ["x", *dict(moe.named_parameters())], [x, *moe.parameters()]
    actual, expected = (
        torch.autograd.grad(out.square().mean(), wanted) for out in (moe(x), by_formula(moe, x))
    )
    for name, left, right in zip(names, actual, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("square", [False, True])
def test_files_are_read_in_the_published_orientation(
    tmp_path: Path, tiny_config: TinyConfig, square: bool
) -> None:
    """Also with hidden_size = 2 x moe_intermediate_size, where both orientations have one shape."""
    config = tiny_config("qwen3_vl_moe", text={"moe_intermediate_size": 64 if square else 96})
    model = make_random_model(config=config)
    folder = write_checkpoint_folder(tmp_path / "checkpoint", model)
    stored = load_file(folder / "model.safetensors")
    tensor = stored["model.language_model.layers.1.mlp.experts.gate_up_proj"]
    expert = load_model(folder, device="cpu").get_submodule("model.layers.1.mlp.experts.3")
    assert isinstance(expert, Expert)
    gate, up = (getattr(expert, name).weight for name in ("gate_proj", "up_proj"))
    assert torch.equal(gate, tensor[3, :, : tensor.shape[2] // 2].t())
    assert torch.equal(up, tensor[3, :, tensor.shape[2] // 2 :].t())


def test_transformers_reads_the_same_files(tmp_path: Path, random_model: RandomModel) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    ours = random_model("qwen3_vl_moe")
    folder = write_checkpoint_folder(tmp_path / "checkpoint", ours)
    theirs = transformers.Qwen3VLMoeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    prompt = encode(Processor.from_folder(folder), "mixed")
    expected = reference_logits(theirs, prompt)
    with torch.no_grad():
        logits = load_model(folder, device="cpu")([prompt])[0]
    assert float((logits - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    saved = tmp_path / "saved"
    theirs.save_pretrained(saved)
    again = load_model(saved, device="cpu")
    assert again.config.text.experts and not again.config.text.experts.input_major
    for spec in family_of(again.config).linears(again.config):
        assert torch.equal(weight_of(again, spec), weight_of(ours, spec)), spec.name
    with torch.no_grad():  # not to the bit: the two orientations differ in memory
        torch.testing.assert_close(again([prompt])[0], logits)
    config = json.loads((saved / "config.json").read_text())
    assert config.pop("transformers_version") >= "5.2"
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"gate_up_proj is .* by config\.json.*or missing; set it"):
        load_model(saved, device="cpu")


@pytest.mark.parametrize(
    ("version", "input_major"), [("4.57.0.dev0", True), (None, True), ("5.2.0", False)]
)
def test_the_library_that_saved_a_file_tells_the_orientation(
    tiny_config: TinyConfig, version: str | None, input_major: bool
) -> None:
    raw = {**tiny_config("qwen3_vl_moe").raw, "transformers_version": version}
    experts = ModelConfig.from_dict(raw).text.experts
    assert experts is not None and experts.input_major is input_major
    with pytest.raises(ValueError, match="transformers_version is 'dev'; allowed: a version"):
        ModelConfig.from_dict(raw | {"transformers_version": "dev"})


def test_square_tensors_of_transformers_5_are_refused(
    tmp_path: Path, tiny_config: TinyConfig
) -> None:
    """It may have left them as published, depending on where its model came from."""
    config = tiny_config("qwen3_vl_moe", text={"moe_intermediate_size": 64})
    raw = {**config.raw, "transformers_version": "5.23.0"}
    model = make_random_model(config=ModelConfig.from_dict(raw))
    write_checkpoint_folder(tmp_path, model)
    with pytest.raises(
        ValueError, match=r"gate_up_proj is \[6, 128, 128\], saved by transformers 5.*allowed"
    ):
        load_model(tmp_path, device="cpu")


def test_weights_of_single_experts_are_read(tmp_path: Path, random_model: RandomModel) -> None:
    """As transformers 5.0 and 5.1 write them."""
    model = random_model("qwen3_vl_moe")
    folder = write_checkpoint_folder(tmp_path / "published", model)
    single = write_single_experts(folder, tmp_path / "single")
    names = load_file(single / "model.safetensors")
    assert "model.language_model.layers.1.mlp.experts.3.gate_proj.weight" in names
    assert not [name for name in names if name.endswith("experts.gate_up_proj")]
    loaded = load_model(single, device="cpu")
    expected = dict(load_model(folder, device="cpu").named_parameters())
    for name, parameter in loaded.named_parameters():
        # In memory they have the orientation of transformers 5.
        weight = parameter.transpose(1, 2) if ".experts." in name else parameter
        assert torch.equal(weight, expected[name]), name
    missing = "model.language_model.layers.1.mlp.experts.3.up_proj.weight"
    del names[missing]
    save_file(names, single / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.experts\.3\.up_proj\.weight is missing"):
        load_model(single, device="cpu")
