"""Several processes at one checkpoint: the bytes that one alone writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from blockwise_jobs import GPTQ, STEPS, contents, finish, job, source_of
from ranks_of_threads import run_ranks
from tiny_models import prompts

from vlpress.calib import tap_groups
from vlpress.common.distributed import Communicator, rank_zero_first
from vlpress.model.config import ModelConfig
from vlpress.quant.checkpoint.saving import save_finished
from vlpress.quant.driver.blockwise import BlockwiseQuantizer
from vlpress.quant.driver.journal import Journal


def share(streaming: BlockwiseQuantizer, work: Path, out: Path, count: int) -> dict[str, bytes]:
    def take_part(comm: Communicator) -> None:
        part = BlockwiseQuantizer(**{**vars(streaming), "comm": comm})
        done = rank_zero_first(comm, lambda: Journal(work, writes=comm.rank == 0))
        report = part.quantize(done)
        if comm.rank == 0:
            out.mkdir()
            save_finished(done.tensors(), report, streaming.source, out)

    run_ranks(count, take_part)
    return contents(out)


@pytest.mark.parametrize(
    "count, family, name",
    [
        (3, "qwen2_5_vl", "rounded"),
        (3, "qwen2_5_vl", "solved"),
        pytest.param(2, "qwen2_5_vl", "smoothed", marks=pytest.mark.slow),
        pytest.param(2, "qwen2_5_vl", "awq", marks=pytest.mark.slow),
        pytest.param(2, "qwen2_5_vl", "adapted", marks=pytest.mark.slow),
        pytest.param(3, "qwen2_5_vl", "against the float model", marks=pytest.mark.slow),
        pytest.param(2, "qwen3_vl", "smoothed", marks=pytest.mark.slow),
        pytest.param(2, "qwen3_vl", "against the float model", marks=pytest.mark.slow),
    ],
)
def test_several_write_the_bytes_of_one(tmp_path: Path, count: int, family: str, name: str) -> None:
    source = source_of(tmp_path, family, steps=STEPS[name])
    streaming = job(source, STEPS[name], prompts(ModelConfig.from_folder(source)))
    expected = finish(streaming, tmp_path / "alone", tmp_path / "one")
    assert share(streaming, tmp_path / "work", tmp_path / "out", count) == expected


@pytest.mark.parametrize("method", ["gptq", pytest.param("gptaq", marks=pytest.mark.slow)])
def test_several_observe_experts_a_few_at_a_time(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes of one process that observes all experts of a layer at once."""
    source = source_of(tmp_path, "qwen3_vl_moe")
    samples = prompts(ModelConfig.from_folder(source))
    calibration = {"all_experts": method == "gptaq"}
    streaming = job(source, [GPTQ | {"method": method}], samples, calibration=calibration)
    expected = finish(streaming, tmp_path / "alone", tmp_path / "one")
    monkeypatch.setattr(tap_groups, "OBSERVED_BYTES", 1)
    assert share(streaming, tmp_path / "work", tmp_path / "out", 2) == expected
