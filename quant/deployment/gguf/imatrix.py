"""llama.cpp's importance matrix: the mean square of every input channel of a layer.

`llama-quantize --imatrix` weights the errors of its K-quants with it. The form is that of
llama.cpp's `tools/imatrix/imatrix.cpp`: for a tensor X of the text model, `X.in_sum2` holds sums of
squares `[n, K]` and `X.counts` numbers of tokens `[n, 1]`; n is the number of experts, or 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ....calib.observers import MeanSquare
from ....model.config import ModelConfig
from .text import naming, value_channels


def write_imatrix(
    path: Path,
    config: ModelConfig,
    observers: Mapping[str, MeanSquare],
    *,
    source: str,
    lengths: Sequence[int],
) -> list[str]:
    """Write the file.

    Args:
        path: of the new file.
        config: of the model.
        observers: of the inputs of linear layers, by canonical name; experts in their order.
        source: name of the calibration samples.
        lengths: their numbers of tokens.

    Returns:
        The names of the tensors of the text model that have an entry.

    Raises:
        ValueError: a mean square is not finite.
    """
    import gguf

    groups: dict[str, list[MeanSquare]] = {}
    for layer, observer in observers.items():
        if not bool(observer.values.isfinite().all()):
            raise ValueError(
                f"the inputs of {layer} are not finite for a calibration sample; calibrate in bf16 "
                "or fp32, or look at the samples"
            )
        groups.setdefault(f"{naming(config).module(layer)}.weight", []).append(observer)
    writer = gguf.GGUFWriter(path, arch="")  # the form has no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", [source])
    writer.add_uint32("imatrix.chunk_count", len(lengths))
    writer.add_uint32("imatrix.chunk_size", max(1, round(sum(lengths) / len(lengths))))
    for name, of_tensor in groups.items():
        sums = np.stack([(each.values * each.weight).cpu().numpy() for each in of_tensor])
        if name.endswith("ssm_out.weight"):
            assert config.text.linear_attention is not None
            sums = sums[:, value_channels(config.text.linear_attention)]
        counts = np.array([[each.weight] for each in of_tensor], np.float32)
        writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(sums, np.float32))
        writer.add_tensor(f"{name}.counts", counts)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return list(groups)
