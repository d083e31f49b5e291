import pytest
import torch
from ranks_of_threads import together
from safetensors.torch import save

from vlpress.common.distributed import (
    SINGLE_PROCESS,
    Communicator,
    Message,
    _unpacked,
    all_gather,
    broadcast_result,
    distribute,
    init_distributed,
    rank_zero_first,
)


def test_one_process_tells_itself() -> None:
    message = Message({"a": 1}, {"t": torch.ones(2)})
    assert SINGLE_PROCESS.broadcast_message(message, 0) is message
    assert (
        broadcast_result(SINGLE_PROCESS, lambda: 5) == 5
        and rank_zero_first(SINGLE_PROCESS, lambda: 6) == 6
    )
    assert all_gather(SINGLE_PROCESS, "x") == ["x"]
    with pytest.raises(ValueError, match="there is no process 1"):
        SINGLE_PROCESS.send(torch.ones(1), 1)


def test_what_is_packed_comes_back() -> None:
    tensors = {"a": torch.arange(3, dtype=torch.uint8), "b": torch.tensor(0.1)}
    packed = save(tensors, {"value": '{"x": [0.1, "\\u00e9"]}'})
    message = _unpacked(packed)
    assert message.value == {"x": [0.1, "é"]}
    assert all(torch.equal(message.tensors[name], tensor) for name, tensor in tensors.items())


def test_the_first_one_alone_works_and_all_know() -> None:
    worked: list[int] = []

    def work(comm: Communicator) -> object:
        def alone() -> dict[str, int]:
            worked.append(comm.index)
            return {"by": comm.index}

        return broadcast_result(comm, alone)

    assert together(3, work) == [{"by": 0}] * 3
    assert worked == [0]


def test_the_others_follow_the_first_one() -> None:
    order: list[int] = []
    together(3, lambda comm: rank_zero_first(comm, lambda: order.append(comm.index)))
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_jobs_are_dealt_in_turn_and_come_back_in_order(count: int) -> None:
    def work(comm: Communicator) -> list[tuple[int, object]]:
        def make(job: int) -> Message:
            return Message([job * job, comm.index])

        return [(job, message.value) for job, message in distribute(comm, range(7), make)]

    wanted = [(job, [job * job, job % count]) for job in range(7)]
    assert together(count, work) == [wanted] * count


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with init_distributed() as comm:
        assert comm is SINGLE_PROCESS
