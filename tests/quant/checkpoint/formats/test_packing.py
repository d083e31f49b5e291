import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.quant.checkpoint.formats import packing
from vlpress.quant.checkpoint.formats.packing import pack, unpack


def reference_pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack through one Python integer per column, split into words."""
    columns = []
    for column in values.t().tolist():
        stream = sum(value << (bits * index) for index, value in enumerate(column))
        words = []
        for _ in range(len(column) * bits // 32):
            word = stream & 0xFFFFFFFF
            words.append(word - 2**32 if word >= 2**31 else word)
            stream >>= 32
        columns.append(words)
    return torch.tensor(columns, dtype=torch.int32).t()


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    runs=st.integers(1, 3),
    columns=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_round_trip_and_reference(bits: int, runs: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(2**bits, (32 * runs, columns), generator=generator, dtype=torch.uint8)
    words = pack(values, bits)
    assert words.dtype == torch.int32
    assert words.shape == (runs * bits, columns)
    assert torch.equal(words, reference_pack(values, bits))
    assert torch.equal(unpack(words, bits), values)


@pytest.mark.parametrize(
    ("value", "bits", "word"),
    [(7, 4, 0x77777777), (8, 4, 0x88888888), (127, 8, 0x7F7F7F7F), (128, 8, 0x80808080)],
)
def test_known_words(value: int, bits: int, word: int) -> None:
    words = pack(torch.full((32, 2), value), bits)
    assert torch.equal(words.long() & 0xFFFFFFFF, torch.full_like(words, 1).long() * word)


def test_low_bits_first() -> None:
    values = torch.zeros(32, 1, dtype=torch.uint8)
    values[1] = 1
    assert int(pack(values, 4)[0]) == 1 << 4
    assert int(pack(values, 8)[0]) == 1 << 8


def test_three_bits_cross_words() -> None:
    values = torch.zeros(32, 1, dtype=torch.uint8)
    values[10] = 0b101  # two bits in word 0, one in word 1
    values[21] = 0b110  # one bit in word 1, two in word 2
    words = [int(word) & 0xFFFFFFFF for word in pack(values, 3)]
    assert words == [0b01 << 30, 0b1 | 0 << 31, 0b11]


def test_rejects() -> None:
    with pytest.raises(ValueError, match="cannot pack 33 values"):
        pack(torch.zeros(33, 1, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="values from 0 to 16 do not fit 4 unsigned bits"):
        pack(torch.tensor([16] + [0] * 31)[:, None], 4)
    with pytest.raises(ValueError, match="values from -1 to 0 do not fit"):
        pack(torch.tensor([-1] + [0] * 31)[:, None], 4)
    with pytest.raises(ValueError, match="cannot unpack 4 words"):
        unpack(torch.zeros(4, 1, dtype=torch.int32), 3)


def test_runs_of_columns_give_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(8, (64, 7), generator=torch.Generator().manual_seed(0))
    whole = pack(values, 3)
    monkeypatch.setattr(packing, "CHUNK_ELEMENTS", 3 * 64)
    assert torch.equal(pack(values, 3), whole)
