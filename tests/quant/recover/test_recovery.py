"""Training of a whole model: what changes, what stays, and what an interruption does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_recovery import RTN, Small, make_small

from vlpress.model.text import RMSNorm
from vlpress.quant.methods.affine import QuantizedWeight, round_scales
from vlpress.quant.recover import trainer
from vlpress.quant.targets import compressed_linears


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("recovery") / "teacher")


def weights_of(model: torch.nn.Module) -> dict[str, QuantizedWeight]:
    weights = {name: layer.quantized() for name, layer in compressed_linears(model).items()}
    return {name: w for name, w in weights.items() if isinstance(w, QuantizedWeight)}


def test_scales_approach_the_teacher_and_integers_stay(small: Small) -> None:
    student = small.quantized()
    before = weights_of(student)
    result = small.recover(student)
    losses = result.record["held_out_loss"]
    assert min(losses) < 0.9 * losses[0]
    assert result.record["best_epoch"] == losses.index(min(losses))
    after = weights_of(student)
    assert result.weights.keys() <= after.keys() and result.weights and not result.floats
    for name, weight in after.items():
        assert torch.equal(weight.integers, before[name].integers)
        assert torch.equal(weight.zero_points, before[name].zero_points)
        assert torch.equal(weight.scales, round_scales(weight.scales))
        changed = not torch.equal(weight.scales, before[name].scales)
        assert changed == (name in result.weights)
        if changed:
            assert weight.equals(result.weights[name])


@pytest.mark.slow
def test_the_held_out_loss_is_that_of_the_model_that_is_left(small: Small) -> None:
    student = small.quantized()
    result = small.recover(student)
    again = small.recover(student, epochs=1, lr=1e-9)
    assert again.record["held_out_loss"][0] == pytest.approx(
        min(result.record["held_out_loss"]), rel=1e-4
    )


def test_training_that_harms_leaves_the_start(small: Small) -> None:
    student = small.quantized()
    before = weights_of(student)
    result = small.recover(student, lr=5.0, epochs=1)
    first, *others = result.record["held_out_loss"]
    assert all(loss > first for loss in others) and result.record["best_epoch"] == 0
    assert not result.weights and not result.floats
    assert all(weight.equals(before[name]) for name, weight in weights_of(student).items())


class StopError(Exception):
    pass


def test_an_interrupted_training_ends_alike(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 2)
    straight = small.recover(small.quantized())

    for last in (1, 4, 5):

        def stop(done: int, total: int, detail: str, last: int = last) -> None:
            if done == last:
                raise StopError

        with pytest.raises(StopError):
            small.recover(small.quantized(), folder=tmp_path, update=stop)
    resumed = small.recover(small.quantized(), folder=tmp_path)
    assert resumed.record == straight.record
    assert resumed.weights.keys() == straight.weights.keys()
    assert all(w.equals(straight.weights[name]) for name, w in resumed.weights.items())


def test_norms_change_alone_and_as_they_are_stored(small: Small) -> None:
    student = small.quantized()
    before = weights_of(student)
    result = small.recover(student, "norms")
    assert min(result.record["held_out_loss"]) < result.record["held_out_loss"][0]
    assert not result.weights and result.floats
    norms = {name for name, module in student.named_modules() if isinstance(module, RMSNorm)}
    for name, values in result.floats.items():
        assert name.removesuffix(".weight") in norms and name.startswith("model.")
        assert torch.equal(values, student.get_parameter(name))
        assert torch.equal(values, values.to(torch.bfloat16).float())
    assert all(weight.equals(before[name]) for name, weight in weights_of(student).items())


@pytest.mark.slow
def test_scales_and_norms_together(small: Small) -> None:
    result = small.recover(small.quantized(), ("scales", "norms"))
    assert result.weights and result.floats


def test_answers_as_targets(small: Small) -> None:
    student = small.quantized()
    result = small.recover(student, targets="answers", held_out=0.2)
    assert "teachers" not in result.record
    losses = result.record["training_loss"]
    assert losses[-1] < losses[0]


def test_scales_that_are_no_float_numbers_are_refused(small: Small) -> None:
    student = small.quantized({"method": "rtn", "grid": "mxfp4"})
    with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj: its scales .* integers, fp8"):
        small.recover(student)
    small.recover(small.quantized({"method": "rtn", "grid": "mxfp4"}), "norms", epochs=1)


def test_a_float_model_has_no_scales(small: Small) -> None:
    with pytest.raises(ValueError, match="no linear layer of the decoder is quantized"):
        small.recover(small.model)


def test_a_diverging_training_is_an_error(small: Small) -> None:
    with pytest.raises(ValueError, match=r"the loss is .* smaller lr"):
        small.recover(small.quantized(), "norms", lr=1e38)


def test_adapters_are_trained_alone(small: Small) -> None:
    step = RTN | {"bits": 2, "group_size": -1, "adapter_rank": 2, "adapter": "svd"}
    student = small.quantized(step)
    before = weights_of(student)
    result = small.recover(student, "adapter")
    losses = result.record["held_out_loss"]
    assert min(losses) < losses[0] and not result.weights and not result.floats
    layers = compressed_linears(student)
    assert result.adapters.keys() == before.keys()
    for name, part in result.adapters.items():
        adapter = layers[name].adapter
        assert adapter is not None and part.down.dtype == torch.bfloat16
        assert torch.equal(adapter.down, part.down) and torch.equal(adapter.up, part.up)
        assert weights_of(student)[name].equals(before[name])
    with pytest.raises(ValueError, match="no layer of the decoder has an adapter"):
        small.recover(small.quantized(), "adapter")


@pytest.mark.slow
def test_an_adapter_counts_while_scales_are_trained(small: Small) -> None:
    plain = small.recover(small.quantized(), epochs=1).record["held_out_loss"][0]
    step = RTN | {"adapter_rank": 16, "adapter": "svd"}
    assert small.recover(small.quantized(step), epochs=1).record["held_out_loss"][0] < plain
