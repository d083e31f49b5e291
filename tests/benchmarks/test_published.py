"""Reading of trained weights from packages, and of prose from documentation."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_weights
import torch
from hypothesis import given
from hypothesis import strategies as st
from published import decoder, encoder, prose
from published.gguf import GGUF, dequantize
from published.reading import Baseline
from published.rows import OURS, all_rows
from published.tables import markdown
from tiny_models import make_random_model
from torch import Tensor
from transformers import BertConfig, BertModel


def half(value: float) -> bytes:
    return struct.pack("<e", value)


def test_q4_1_puts_the_second_half_of_a_block_in_the_high_nibbles() -> None:
    # Byte j holds weight j (low) and weight 16 + j (high).
    block = half(0.5) + half(-2.0) + bytes(j | (15 - j) << 4 for j in range(16))
    expected = [0.5 * q - 2 for q in (*range(16), *range(15, -1, -1))]
    assert dequantize(block, "Q4_1").tolist() == expected


def test_every_block_has_its_own_scale_and_minimum() -> None:
    blocks = b"".join(half(d) + half(m) + bytes([0x21] * 16) for d, m in ((1, 0), (2, 10)))
    values = dequantize(blocks, "Q4_1")
    assert values[[0, 31, 32, 63]].tolist() == [1, 2, 12, 14]


def test_q8_0_is_a_scale_times_signed_integers() -> None:
    integers = list(range(-16, 16))
    block = half(0.25) + struct.pack("<32b", *integers)
    assert dequantize(block, "Q8_0").tolist() == [0.25 * q for q in integers]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def written(path: Path, kind: int = 0, magic: bytes = b"GGUF") -> Path:
    """A file with a string, an array and a float32 tensor of two rows of three."""
    header = magic + struct.pack("<IQQ", 3, 1, 2)
    header += text("name") + struct.pack("<I", 8) + text("llama")
    header += text("ids") + struct.pack("<IIQ3i", 9, 5, 3, 1, -2, 3)
    header += text("w") + struct.pack("<IQQIQ", 2, 3, 2, kind, 0)
    padding = bytes(-len(header) % 32)
    path.write_bytes(header + padding + np.arange(6, dtype=np.float32).tobytes())
    return path


def test_a_file_gives_its_metadata_and_tensors(tmp_path: Path) -> None:
    gguf = GGUF.open(written(tmp_path / "a.gguf"))
    assert gguf.metadata == {"name": "llama", "ids": [1, -2, 3]}
    assert gguf.types == {"w": "F32"}
    assert gguf.tensor("w").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_other_files_and_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w has type 14; allowed: F32, F16, Q4_1, Q8_0"):
        GGUF.open(written(tmp_path / "a.gguf", kind=14))
    with pytest.raises(ValueError, match="ZIPP"):
        GGUF.open(written(tmp_path / "b.gguf", magic=b"ZIPP"))


def permuted(weight: Tensor, heads: int) -> Tensor:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py, literally."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def test_two_heads_of_four_rows_get_their_order_back() -> None:
    stored = torch.tensor([[0], [2], [1], [3], [4], [6], [5], [7]])
    assert decoder.undo_permutation(stored, 2).flatten().tolist() == list(range(8))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_the_permutation_of_llama_cpp_is_undone(heads: int, pairs: int, columns: int) -> None:
    weight = torch.arange(heads * pairs * 2 * columns).reshape(-1, columns)
    assert torch.equal(decoder.undo_permutation(permuted(weight, heads), heads), weight)


SENTENCE = (
    "This function returns a sorted copy of the list that was given to it, and raises an error "
    "if two of the entries cannot be compared with each other."
)


@pytest.mark.parametrize(
    "line",
    [
        SENTENCE.lower(),
        SENTENCE[:80],
        SENTENCE[:-1],
        SENTENCE.replace("list", "`list`"),
        "Returns -> np.array[int], x_1 = 3, y_2 = 4, shape (n, m), dtype=float32, axis=0, k=3, "
        "out=None, where=True, casting=no, order=K, subok=True, x=1, y=2.",
    ],
    ids=["lower case", "short", "no end", "markup", "code"],
)
def test_other_text_than_prose_is_left_out(line: str) -> None:
    assert prose.is_prose(SENTENCE)
    assert not prose.is_prose(line)


def test_paragraphs_are_joined_lines_without_repeats() -> None:
    wrapped = SENTENCE.replace(" ", "\n   ", 3)
    other = SENTENCE.replace("list", "table")
    page = f"Title\n=====\n\n{wrapped}\n \n{other}\n\n    x = 1\n\n{SENTENCE}\n"
    assert prose.paragraphs(page) == [SENTENCE, other]


def test_only_docstrings_of_a_module_are_read(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'"""First."""\n\nX = """{SENTENCE}"""\n\ndef f():\n    """Second."""\n')
    assert prose.read(path) == "First.\n\nSecond."
    path.write_text("def f(:\n")
    assert prose.read(path) == ""


def test_a_distribution_belongs_to_one_set() -> None:
    names = [f"package{i}" for i in range(300)]
    held_out = sum(prose.set_of(name) == "held_out" for name in names)
    assert 60 < held_out < 140
    assert [prose.set_of(name) for name in names] == [prose.set_of(name) for name in names]


def files(folder: Path, names: list[str]) -> list[tuple[prose.Document, Path]]:
    """One file with five sentences of its own for each distribution."""
    made = []
    for number, name in enumerate(names):
        path = folder / f"{number}.txt"
        path.write_text("\n\n".join(f"{SENTENCE[:-1]} of {name}{i} alone." for i in range(5)))
        made.append((prose.Document(name, "1", path.name, ""), path))
    return made


def letters(text: str) -> list[int]:
    return list(text.encode())


def test_windows_of_both_sets_come_from_different_distributions(tmp_path: Path) -> None:
    counts = {"calibration": 3, "held_out": 2}
    made = files(tmp_path, [f"package{i}" for i in range(20)])
    windows = prose.collect(made, letters, counts, 150)
    for name, part in windows.items():
        assert [len(ids) for ids in part.ids] == [150] * counts[name]
        assert {prose.set_of(document.distribution) for document in part.documents} == {name}
        assert all(len(document.sha256) == 64 for document in part.documents)


def test_a_repeated_text_gives_one_window(tmp_path: Path) -> None:
    name = next(f"p{i}" for i in range(20) if prose.set_of(f"p{i}") == "calibration")
    made = files(tmp_path, [name, name])
    with pytest.raises(ValueError, match="'calibration': 1"):
        prose.collect(made, letters, {"calibration": 2, "held_out": 0}, 150)


def test_the_baseline_does_not_diverge_from_itself(tmp_path: Path) -> None:
    model, path = make_random_model(), tmp_path / "logits.safetensors"
    windows = [torch.arange(5, 15), torch.arange(20, 30)]
    baseline = Baseline(lambda: model, windows, path)
    measured = baseline.measure(model)
    assert measured["kl_windows"] == [0, 0]
    assert measured["top1_agreement"] == 1
    assert measured["perplexity"] == pytest.approx(baseline.perplexity)


def test_stored_logits_are_used_again_in_the_order_of_windows(tmp_path: Path) -> None:
    path, windows = tmp_path / "logits.safetensors", [torch.arange(n, n + 6) for n in range(12)]
    first = Baseline(make_random_model, windows, path)
    second = Baseline(lambda: pytest.fail("runs the model"), windows, path)
    assert second.nll == first.nll


def test_an_encoder_is_quantized_in_sequence_with_every_method() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = BertModel(config)
    model.train(False)
    calibration, held_out = (torch.randint(0, 64, (count, 16)) for count in (32, 8))
    rows = encoder.measure(model, list(calibration), list(held_out), bits=3)
    rtn, gptq, gptaq = (row["output_error"] for row in rows)
    assert [row["method"] for row in rows] == ["rtn", "gptq", "gptaq"]
    assert 0 < gptaq < gptq < rtn < 1


def test_rows_differ_in_their_names() -> None:
    rows = all_rows()
    assert len({row.key for row in rows}) == len(rows)
    assert {row.setting for row in rows if row.library == OURS} == {
        "w3a16-g64",
        "w4a16-g64",
        "w8a8",
    }


def test_rows_of_a_result_file_continue_on_another_machine(tmp_path: Path) -> None:
    row, kept = all_rows()[:2]
    names = [{"setting": r.setting, "library": r.library, "method": r.method} for r in (row, kept)]
    cells = [name | {"kl_mean": 0.2, "made_from": {"digest": "d"}} for name in names]
    results, stored = tmp_path / "results.json", real_weights.cell_path(tmp_path, kept)
    results.write_text(json.dumps({"rows": cells}))
    stored.parent.mkdir(parents=True)
    stored.write_text("newer")
    real_weights.restore(results, tmp_path)
    assert json.loads(real_weights.cell_path(tmp_path, row).read_text()) == cells[0]
    assert stored.read_text() == "newer"


def test_the_table_sorts_rows_of_a_setting_by_divergence() -> None:
    row: dict[str, Any] = {"setting": "w8a8", "library": OURS, "method": "rtn", "ci95": [0.1, 0.3]}
    row |= {"kl_p99": 1.0, "top1_agreement": 0.5, "perplexity": 9.0}
    rows = [row | {"kl_mean": 0.2}, row | {"method": "gptq", "kl_mean": 0.1}]
    results = {
        "date": "2026-11-29",
        "commit": "abc",
        "machine": {"processor": "p", "threads": 1},
        "versions": {"torch": "2"},
        "packages": [],
        "window": 512,
        "text": {"calibration": [], "held_out": [{"distribution": "numpy"}]},
        "baseline": {"perplexity": 8.0, "llama_difference": 0, "question": "?", "answer": "a\nb"},
        "encoder": [],
        "rows": rows,
        "missing": ["w8a8/auto-round/rtn"],
    }
    page = markdown(results)
    assert page.index("| gptq ") < page.index("| rtn ")
    assert '"a b"' in page and "numpy 1" in page
    assert "Not measured: w8a8/auto-round/rtn." in page
