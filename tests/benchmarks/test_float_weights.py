"""Rounded activations with float weights, as a row of the accuracy table."""

import torch
from common.float_weights import RoundedInputLinear, restore_weights_
from common.rows.grids import ACTIVATIONS, FLOAT, GridRow
from tiny_models import prompts, small_model

from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.methods.grids.activation_rounding import rounded_activations
from vlpress.quant.recipe.scheme import TableScheme


def test_layers_round_their_input_and_keep_their_weight() -> None:
    model, original = small_model(), small_model()
    scheme = TableScheme("nvfp4", activations="dynamic")
    quantize_(model, GridRow("nvfp4", FLOAT, ACTIVATIONS).recipe(0, 2), prompts(model.config))
    restore_weights_(model, original)
    name = "model.layers.0.mlp.gate_proj"
    layer, weight = model.get_submodule(name), original.get_parameter(f"{name}.weight").detach()
    assert isinstance(layer, RoundedInputLinear) and layer.scheme == scheme
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    rounded = rounded_activations(x, scheme, layer.input_scale)
    assert not torch.equal(rounded, x)
    assert torch.equal(layer(x), torch.nn.functional.linear(rounded, weight.float()))
    restored = [m for m in model.modules() if isinstance(m, RoundedInputLinear)]
    assert len(restored) == 7 * model.config.text.num_hidden_layers
    samples = prompts(model.config)
    with torch.no_grad():
        assert bool(torch.cat(model(samples)).isfinite().all())
