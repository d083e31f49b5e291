"""Outlier channels of keys, and the warnings about them."""

from __future__ import annotations

import torch

from vlpress.model.kv_quant.ranges import clipping_warning, layer_range, outlier_warning
from vlpress.model.kv_quant.scales import KVScales


def test_the_ratio_is_that_of_the_worst_head() -> None:
    keys = torch.ones(2, 33)
    keys[0, 3], keys[1, 5] = 4.0, 40.0
    found = layer_range(7, keys * 2, torch.full((2, 33), 3.0))
    assert (found.layer, found.head, found.channel) == (7, 1, 5)
    assert found.key_outlier_ratio == 40.0 and found.key_max == 80.0 and found.value_max == 3.0


def test_channels_of_zeros() -> None:
    keys = torch.zeros(2, 9)
    assert layer_range(0, keys, keys).key_outlier_ratio == 1.0
    keys[1, :3] = torch.tensor([1.0, 8.0, 2.0])
    found = layer_range(0, keys, keys)
    assert (found.key_outlier_ratio, found.head, found.channel) == (4.0, 1, 1)


def test_warning_names_the_largest_ratios_first() -> None:
    def layer(index: int, ratio: float) -> torch.Tensor:
        return torch.cat([torch.ones(1, 8), torch.tensor([[ratio]])], 1)

    ratios = [3.0, 20.0, 16.0, 55.5, 17.0, 18.0, 19.0]
    ranges = [layer_range(i, layer(i, ratio), torch.ones(1, 9)) for i, ratio in enumerate(ratios)]
    warning = outlier_warning(ranges)
    assert warning is not None and "layer 3 (55.5, head 0, channel 8)" in warning
    assert warning.index("layer 3") < warning.index("layer 1 (20.0") < warning.index("layer 6")
    assert "layer 4" not in warning and "and 1 more" in warning and "layer 2" not in warning
    assert outlier_warning(ranges[:1]) is None


def test_clipping_is_found_at_the_scale_of_the_layer() -> None:
    channels = torch.full((1, 4), 500.0)
    ranges = [layer_range(0, channels, channels / 2), layer_range(1, channels / 2, channels)]
    warning = clipping_warning(ranges, None)
    assert warning is not None and "[kv_cache]" in warning
    assert "keys of layer 0 (up to 500, kept 448)" in warning and "values of layer 1" in warning
    assert "values of layer 0" not in warning
    assert clipping_warning(ranges, [KVScales(2.0, 1.0), KVScales(1.0, 2.0)]) is None
