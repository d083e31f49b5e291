import pytest
import torch
from ranks_of_threads import run_ranks
from safetensors.torch import save

from vlpress.common.distributed import (
    SINGLE_PROCESS,
    Communicator,
    Message,
    _unpack,
    all_gather,
    broadcast_result,
    distribute,
    init_distributed,
    rank_zero_first,
)


def test_a_single_process_broadcasts_to_itself() -> None:
    message = Message({"a": 1}, {"t": torch.ones(2)})
    assert SINGLE_PROCESS.broadcast_message(message, 0) is message
    assert broadcast_result(SINGLE_PROCESS, lambda: 5) == 5
    assert rank_zero_first(SINGLE_PROCESS, lambda: 6) == 6
    assert all_gather(SINGLE_PROCESS, "x") == ["x"]
    with pytest.raises(ValueError, match="rank 1"):
        SINGLE_PROCESS.send(torch.ones(1), 1)


def test_messages_survive_packing() -> None:
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.tensor(0.1)}
    packed = save(tensors, {"value": '{"x": [0.1, "\\u00e9"]}'})
    message = _unpack(packed)
    assert message.value == {"x": [0.1, "é"]}
    assert all(torch.equal(message.tensors[name], tensor) for name, tensor in tensors.items())


def test_the_result_of_rank_0_is_broadcast() -> None:
    ran_on: list[int] = []

    def work(comm: Communicator) -> object:
        def action() -> dict[str, int]:
            ran_on.append(comm.rank)
            return {"by": comm.rank}

        return broadcast_result(comm, action)

    assert run_ranks(3, work) == [{"by": 0}] * 3
    assert ran_on == [0]


def test_rank_0_runs_first() -> None:
    order: list[int] = []
    run_ranks(3, lambda comm: rank_zero_first(comm, lambda: order.append(comm.rank)))
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_jobs_are_distributed_in_turn_and_yielded_in_order(world_size: int) -> None:
    def work(comm: Communicator) -> list[tuple[int, object]]:
        def make(job: int) -> Message:
            return Message([job * job, comm.rank])

        return [(job, message.value) for job, message in distribute(comm, range(7), make)]

    expected = [(job, [job * job, job % world_size]) for job in range(7)]
    assert run_ranks(world_size, work) == [expected] * world_size


def test_without_torchrun_there_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with init_distributed() as comm:
        assert comm is SINGLE_PROCESS
