from pathlib import Path

import float32_muon
import pytest
import tiny_data
import tiny_student
import tiny_talk
import tiny_tokenizer
import tiny_truth
import torch
import train_tiny
from tiny_configs import CONFIGS
from tokenizers import Tokenizer
from torch.optim import _muon

from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.mtp import MultiTokenPredictor
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL

STAGES = ("vision", "drill", "joint", "look", "decoder")
THINKING = ("qwen3_5",)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(resolve_model("tiny") / "tokenizer.json"))


def one_batch(tokenizer: Tokenizer, stage: str, family: str) -> tiny_data.PackedBatch:
    return next(tiny_data.batches(tiny_talk.Writer(tokenizer), stage, 1, 2, 2, family=family))


@pytest.mark.parametrize(
    ("family", "stage"),
    [
        ("qwen2_5_vl", "vision"),
        ("qwen2_5_vl", "drill"),
        pytest.param("qwen3_vl", "joint", marks=pytest.mark.slow),
        pytest.param("qwen3_5", "joint", marks=pytest.mark.slow),
        pytest.param("qwen3_5", "draft", marks=pytest.mark.slow),
        *(pytest.param("qwen2_5_vl", stage, marks=pytest.mark.slow) for stage in STAGES[2:]),
    ],
)
def test_every_stage_lowers_its_loss_on_one_batch(
    family: str, stage: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    muon = _muon._zeropower_via_newtonschulz
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", muon)  # restored after the test
    float32_muon.install()  # in bf16 a step takes minutes on a processor without such units
    student = tiny_student.Student(tokenizer, family)
    batch = one_batch(tokenizer, stage, family)
    tuners = train_tiny.optimizers(student, stage, 2e-3)
    losses = []
    for _ in range(3):
        loss, _ = tiny_student.step_loss(student, batch, stage, noise=0.0)
        torch.autograd.backward(loss)
        for tuner in tuners:
            tuner.step()
            tuner.zero_grad()
        losses.append(float(loss.detach()))
    # Of drafts, most of the loss is the entropy of the model that they imitate.
    assert losses[-1] < (0.995 if stage == "draft" else 0.95) * losses[0]


def test_true_features_carry_the_labels(tokenizer: Tokenizer) -> None:
    student = tiny_student.Student(tokenizer, "qwen2_5_vl")
    labels = one_batch(tokenizer, "decoder", "qwen2_5_vl").labels
    features = student.true_features(labels, noise=0.0)
    similarity = (features - student.constant) @ student.codes.t()
    things = [0, tiny_truth.THINGS]
    for patch in range(4):
        first, last = (patch * tiny_truth.LABELS + t for t in things)
        group = similarity[:, first:last], labels[:, first:last]
        assert ((group[0] > 0.5) == (group[1] > 0.5)).float().mean() > 0.999


@pytest.mark.parametrize("family", CONFIGS)
def test_models_of_all_families_are_at_most_16_megabytes(family: str, tokenizer: Tokenizer) -> None:
    config = ModelConfig.from_dict(CONFIGS[family](tokenizer))
    with torch.device("meta"):
        parts: list[torch.nn.Module] = [QwenVL(config)]
        if config.text.mtp_layers:
            parts.append(MultiTokenPredictor(config.text))
    size = sum(p.numel() for part in parts for p in part.parameters())
    assert 12e6 < 2 * size < 15.98e6  # bf16; the names of the tensors take 20 kB


def test_plain_attention_equals_scaled_dot_product_attention() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    ours = train_tiny.plain_attention(q, k, v, mask)
    assert torch.allclose(
        ours, torch.nn.functional.scaled_dot_product_attention(q, k, v, mask), atol=1e-5
    )
    assert torch.allclose(ours, train_tiny.plain_attention(q, k, v, is_causal=True), atol=1e-5)


def test_learning_rate_warms_up_stays_and_falls() -> None:
    assert train_tiny.learning_rate(1.0, 0, None) == pytest.approx(0.01)
    assert train_tiny.learning_rate(1.0, 500, 0.3) == 1.0
    assert train_tiny.learning_rate(1.0, 500, 0.7) == pytest.approx(0.5)
    assert train_tiny.learning_rate(1.0, 500, 1.0) == pytest.approx(0.02)


@pytest.mark.slow  # 54 s without bf16 units
@pytest.mark.parametrize("family", CONFIGS)
def test_training_resumes_and_exports_a_loadable_folder(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tokenizer.write(tmp_path / "tokenizer", thinking=family in THINKING)
    state, out = tmp_path / "joint.pt", tmp_path / "out"
    common = ["--state", str(state), "--tokenizer", str(tmp_path / "tokenizer"), "--batch", "1"]
    common += ["--family", family, "--images", "1"]
    for _ in range(2):
        piece = ["x", "joint", *common, "--minutes", "0.01", "--questions", "2", "--device", "cpu"]
        monkeypatch.setattr("sys.argv", piece)
        monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention",
                            torch.nn.functional.scaled_dot_product_attention)  # fmt: skip
        train_tiny.main()
    saved = torch.load(state, weights_only=True)
    assert saved["stage"] == "joint" and saved["step"] >= 2 and saved["spent"] > 0
    monkeypatch.setattr("sys.argv", ["x", "export", *common, "--out", str(out)])
    train_tiny.main()
    model = load_model(out)
    prompt = Processor.from_folder(out).encode([{"role": "user", "content": "How many?"}])
    assert torch.isfinite(model([prompt])[0]).all()
