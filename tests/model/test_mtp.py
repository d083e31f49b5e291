"""Multi-token prediction equals transformers' decoder layer on inputs that are joined by hand."""

from pathlib import Path

import pytest
import torch
from reference_model import build_reference
from safetensors.torch import save_file
from tiny_models import make_random_model, make_tiny_config
from torch import Tensor

from vlpress.model.mtp import MultiTokenPredictor, draft_logits, load_predictor
from vlpress.model.processing.inputs import Batch
from vlpress.model.qwen_vl import QwenVL

MTP = {"mtp_num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return make_random_model("qwen3_5", config=make_tiny_config("qwen3_5", tied=True, text=MTP))


@pytest.fixture(scope="module")
def predictor(model: QwenVL) -> MultiTokenPredictor:
    torch.manual_seed(3)
    predictor = MultiTokenPredictor(model.config.text)
    for parameter in predictor.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return predictor.eval()


def sequences(model: QwenVL, lengths: tuple[int, ...]) -> tuple[Batch, Tensor]:
    """Random embeddings and positions, padded on the left, and the decoder's output."""
    torch.manual_seed(4)
    longest = max(lengths)
    embeds = torch.randn(len(lengths), longest, model.config.text.hidden_size)
    positions = torch.randint(0, 30, (3, len(lengths), longest)).cumsum(-1)
    batch = Batch(embeds, positions, torch.tensor([longest - n for n in lengths]))
    hidden = model.model(embeds, positions, batch.attention_mask())
    return batch, hidden


def zero_centred(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + weight)


@torch.no_grad()
def test_drafts_equal_those_of_transformers_decoder_layer(
    model: QwenVL, predictor: MultiTokenPredictor
) -> None:
    batch, hidden = sequences(model, (9,))
    weights = dict(predictor.named_parameters())
    following = zero_centred(batch.embeds[:, 1:], weights["pre_fc_norm_embedding.weight"])
    current = zero_centred(hidden[:, :-1], weights["pre_fc_norm_hidden.weight"])
    joined = torch.cat([following, current], -1) @ weights["fc.weight"].t()
    one = {"num_hidden_layers": 1, "full_attention_interval": 1, "layer_types": ["full_attention"]}
    single = make_random_model("qwen3_5", config=make_tiny_config("qwen3_5", tied=True, text=one))
    single.model.layers[0].load_state_dict(predictor.layers[0].state_dict())
    single.model.norm.load_state_dict(predictor.norm.state_dict())
    reference = build_reference(single).model.language_model
    out = reference(inputs_embeds=joined, position_ids=batch.position_ids[:, :, :-1])
    expected = out.last_hidden_state @ model.model.embed_tokens.weight.t()
    ours = draft_logits(model, predictor, batch, hidden)
    assert ours.shape == (1, 8, model.config.text.vocab_size)
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_padding_changes_no_draft(model: QwenVL, predictor: MultiTokenPredictor) -> None:
    batch, hidden = sequences(model, (5, 9))
    together = draft_logits(model, predictor, batch, hidden)[0, 4:]
    cut = Batch(batch.embeds[:1, 4:], batch.position_ids[:, :1, 4:], torch.zeros(1).long())
    alone = draft_logits(model, predictor, cut, hidden[:1, 4:])[0]
    assert torch.allclose(together, alone, atol=1e-4)


@torch.no_grad()
def test_a_draft_reads_no_later_token(model: QwenVL, predictor: MultiTokenPredictor) -> None:
    batch, hidden = sequences(model, (9,))
    before = draft_logits(model, predictor, batch, hidden)
    batch.embeds[:, 6] += 1.0
    after = draft_logits(model, predictor, batch, hidden)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5], atol=1e-3)


def test_a_checkpoint_gives_its_module(
    model: QwenVL, predictor: MultiTokenPredictor, tmp_path: Path
) -> None:
    tensors = {f"mtp.{name}": p.contiguous() for name, p in predictor.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_predictor(tmp_path, model).state_dict()
    assert {n: p.tolist() for n, p in loaded.items()} == {
        n: p.tolist() for n, p in predictor.state_dict().items()
    }
    tensors["mtp.fc.weight"] = tensors["mtp.fc.weight"][:, :128].contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"mtp\.fc\.weight .*\(128, 128\).*\(128, 256\)"):
        load_predictor(tmp_path, model)
    del tensors["mtp.fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"mtp\.fc\.weight .*none.*\(128, 256\)"):
        load_predictor(tmp_path, model)


def test_a_model_without_the_module_is_refused() -> None:
    with pytest.raises(ValueError, match="mtp_num_hidden_layers is 0"):
        MultiTokenPredictor(make_tiny_config("qwen3_5").text)
