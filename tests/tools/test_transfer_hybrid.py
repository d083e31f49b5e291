"""What a Qwen3.5 can take over exactly from a Qwen3-VL, it computes exactly."""

import pytest
import torch
import transfer_hybrid
from tiny_configs import CONFIGS, qwen3_5, qwen3_vl
from tokenizers import Tokenizer

from vlpress.model.config import ModelConfig
from vlpress.model.loading import resolve_model
from vlpress.model.rope import text_rotary
from vlpress.model.text import Attention, DecoderLayer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))


@pytest.fixture(scope="module")
def configs(tokenizer: Tokenizer) -> tuple[ModelConfig, ModelConfig]:
    old, new = (ModelConfig.from_dict(make(tokenizer)) for make in (qwen3_vl, qwen3_5))
    return old, new


def test_kept_rotary_pairs_have_the_same_angles(configs: tuple[ModelConfig, ModelConfig]) -> None:
    positions = torch.tensor([[[3, 8]], [[5, 1]], [[7, 2]]])  # time, height, width
    old, new = (text_rotary(positions, config.text, "interleaved")[0] for config in configs)
    kept = transfer_hybrid.channel_order(64)[: new.shape[-1]]
    assert new.shape[-1] == 8
    assert torch.allclose(old[..., kept], new)


@torch.no_grad()
def test_attention_without_rotation_is_the_same(configs: tuple[ModelConfig, ModelConfig]) -> None:
    torch.manual_seed(0)
    old, new = (Attention(config.text, 3) for config in configs)
    for norm in (old.q_norm, old.k_norm):
        assert norm is not None
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    transfer_hybrid.transfer_attention(old, new)
    x, zero = torch.randn(2, 6, 256), torch.zeros(3, 2, 6, dtype=torch.int64)
    outputs = [
        attention(x, *text_rotary(zero, config.text, "interleaved"), None, None)
        for attention, config in zip((old, new), configs, strict=True)
    ]
    assert outputs[0].abs().max() > 0.1
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)


@torch.no_grad()
def test_layers_without_a_source_add_nothing(configs: tuple[ModelConfig, ModelConfig]) -> None:
    layers = [DecoderLayer(configs[1].text, index) for index in range(8)]
    added = [at for at, source in enumerate(transfer_hybrid.SOURCES) if source is None]
    assert len(transfer_hybrid.SOURCES) - len(added) == configs[0].text.num_hidden_layers
    x, zero = torch.randn(1, 5, 256), torch.zeros(3, 1, 5, dtype=torch.int64)
    rotary = text_rotary(zero, configs[1].text, "interleaved")
    for index in added:
        assert not torch.allclose(layers[index](x, *rotary), x, atol=1e-3)
        transfer_hybrid.silence(layers[index])
        assert torch.equal(layers[index](x, *rotary), x)


def test_sources_are_in_order_and_full_layers_have_one(tokenizer: Tokenizer) -> None:
    types = CONFIGS["qwen3_5"](tokenizer)["text_config"]["layer_types"]
    sources = [source for source in transfer_hybrid.SOURCES if source is not None]
    assert sources == sorted(sources)
    for kind, source in zip(types, transfer_hybrid.SOURCES, strict=True):
        assert kind == "linear_attention" or source is not None
