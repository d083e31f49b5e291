from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx_exports import initializers

from vlpress.quant.deployment.onnx.external_data import ALIGNMENT, ExternalData
from vlpress.quant.deployment.onnx.graph import GraphBuilder, save_model, signature


def saved(folder: Path, weight: torch.Tensor) -> onnx.ModelProto:
    """Write a graph that adds a weight, widened, and one to its input."""
    with ExternalData(folder / "sum.onnx.data") as data:
        graph = GraphBuilder("sum", data)
        x = graph.input("x", "float32", ("rows", 3))
        with graph.scope("outer"), graph.scope("inner"):
            wide = graph.cast(graph.weight("weight", weight), weight)
            total = graph.node("Add", x, wide)
        one, other = graph.constant(1, "float32"), graph.constant(1, "float32")
        assert one == other != graph.constant([1], "float32")
        graph.node("Add", total, one, output="y")
        graph.output("y", "float32", ("rows", 3))
    model = graph.model()
    save_model(model, folder / "sum.onnx")
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_of_any_float_dtype_is_added(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.tensor([0.5, -3.25, 1.7]).to(dtype)
    model = saved(tmp_path, weight)
    session = onnxruntime.InferenceSession(str(tmp_path / "sum.onnx"))
    (y,) = session.run(["y"], {"x": np.ones((2, 3), np.float32)})
    assert np.array_equal(y, (weight.float() + 2).expand(2, 3).numpy())
    names = [node.name for node in model.graph.node]
    assert all(name.startswith("outer/inner/") for name in names[:-1])
    assert not names[-1].startswith("outer")


def test_the_signature_names_dimensions(tmp_path: Path) -> None:
    assert signature(saved(tmp_path, torch.ones(3)).graph) == {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["rows", 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["rows", 3]}],
    }


def test_tensors_are_appended_at_pages(tmp_path: Path) -> None:
    first = torch.arange(5, dtype=torch.uint8)
    second = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).t()
    with ExternalData(tmp_path / "data") as data:
        protos = [data.add("first", first), data.add("second", second)]
    entries = [{each.key: each.value for each in proto.external_data} for proto in protos]
    assert [each["offset"] for each in entries] == ["0", str(ALIGNMENT)]
    assert [each["length"] for each in entries] == ["5", "48"]
    written = (tmp_path / "data").read_bytes()
    assert written[:5] == bytes(range(5)) and not any(written[5:ALIGNMENT])
    assert written[ALIGNMENT:] == second.contiguous().numpy().tobytes()


def test_a_graph_that_is_no_valid_model_is_not_accepted(tmp_path: Path) -> None:
    with ExternalData(tmp_path / "bad.onnx.data") as data:
        graph = GraphBuilder("bad", data)
        graph.node("Add", "unknown", "other", output="y")
        graph.output("y", "float32", (1,))
    with pytest.raises(onnx.checker.ValidationError):
        save_model(graph.model(), tmp_path / "bad.onnx")


def test_weights_are_read_back(tmp_path: Path) -> None:
    saved(tmp_path, torch.tensor([0.5, -3.25, 1.75]))
    assert np.array_equal(initializers(tmp_path, "sum")["weight"], [0.5, -3.25, 1.75])
