"""Activations in files."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch

from vlpress.calib import disk_activation_store
from vlpress.calib.activation_store import State
from vlpress.calib.disk_activation_store import DiskActivationStore
from vlpress.common.safetensors_writer import write_tensors

CPU = torch.device("cpu")


def state(number: int) -> State:
    shared = torch.arange(6).reshape(2, 3)
    return {
        "hidden": torch.full((2, 4), float(number)).bfloat16(),
        "cos": shared.t(),
        "mask": shared > 2,
        "again": shared,
    }


def same(left: State, right: State) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def test_states_persist(tmp_path: Path) -> None:
    store = DiskActivationStore(tmp_path, CPU)
    for number in range(3):
        store.put("model.layers.0", number, state(number))
        store.put("model.layers.0 (float)", number, state(-number))
    store.seal("model.layers.0")
    reopened = DiskActivationStore(tmp_path, CPU)
    for number in range(3):
        assert same(reopened.get("model.layers.0", number), state(number))
        assert same(reopened.get("model.layers.0 (float)", number), state(-number))


def test_dropped_states_stay_in_files_until_others_are_kept(tmp_path: Path) -> None:
    store = DiskActivationStore(tmp_path, CPU, budget=10**6)
    store.put("a", 0, state(1))
    store.put("b", 0, state(2))
    store.drop("a", 0)
    store.seal("a")
    assert same(DiskActivationStore(tmp_path, CPU).get("a", 0), state(1))
    store.keep(["b", "c"])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert same(store.get("b", 0), state(2))


def test_the_cache_stays_within_its_budget(tmp_path: Path) -> None:
    size = sum(tensor.nbytes for tensor in state(0).values())
    store = DiskActivationStore(tmp_path, CPU, budget=2 * size)
    states = [state(number) for number in range(3)]
    for number in range(3):
        store.put("a", number, states[number])
    is_cached = [store.get("a", number) is states[number] for number in range(3)]
    assert is_cached == [True, True, False]
    store.drop("a", 0)  # makes room for the next state
    assert store.get("a", 2) is store.get("a", 2)
    for number in (1, 2):
        store.drop("a", number)
    store.put("b", 0, states[0])
    assert store.get("b", 0) is states[0]


def test_a_partial_file_is_no_state(tmp_path: Path) -> None:
    store = DiskActivationStore(tmp_path, CPU)
    store.put("a", 0, state(1))
    (tmp_path / "a" / "1.safetensors.part").write_bytes(b"half")
    store.put("a", 1, state(2))
    store.seal("a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "0.safetensors",
        "1.safetensors",
    ]
    assert same(DiskActivationStore(tmp_path, CPU).get("a", 1), state(2))


def test_a_block_without_samples_is_sealed(tmp_path: Path) -> None:
    DiskActivationStore(tmp_path, CPU).seal("features")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["put", "get", "seal", "keep"])
def test_write_errors_are_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def full(tensors: State, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    store = DiskActivationStore(tmp_path, CPU)
    monkeypatch.setattr(disk_activation_store, "write_tensors", full)
    store.put("a", 0, state(1))
    with pytest.raises(OSError, match="No space left"):
        if method == "put":
            for number in range(1, disk_activation_store.MAX_PENDING_WRITES + 1):
                store.put("a", number, state(number))
        elif method == "get":
            store.get("a", 0)
        elif method == "seal":
            store.seal("a")
        else:
            store.keep(["a"])


def test_states_are_written_asynchronously_with_a_bounded_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_finish, begun = Event(), Event()

    def slow(tensors: State, path: Path) -> None:
        begun.set()
        assert may_finish.wait(60)
        write_tensors(tensors, path)

    store = DiskActivationStore(tmp_path, CPU, budget=10**6)
    monkeypatch.setattr(disk_activation_store, "write_tensors", slow)
    for number in range(disk_activation_store.MAX_PENDING_WRITES):
        store.put("a", number, state(number))
    assert begun.wait(60)
    assert same(store.get("a", 1), state(1))  # from memory
    assert list((tmp_path / "a").glob("*.safetensors")) == []
    with ThreadPoolExecutor(1) as pool:
        more = pool.submit(store.put, "a", disk_activation_store.MAX_PENDING_WRITES, state(9))
        with pytest.raises(TimeoutError):
            more.result(0.2)
        may_finish.set()
        more.result(60)
    store.seal("a")
    reopened = DiskActivationStore(tmp_path, CPU)
    assert same(reopened.get("a", disk_activation_store.MAX_PENDING_WRITES), state(9))
    assert same(reopened.get("a", 0), state(0))


def test_nothing_is_written_after_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_finish, written = Event(), Event(), []

    def slow(tensors: State, path: Path) -> None:
        begun.set()
        assert may_finish.wait(60)
        write_tensors(tensors, path)
        written.append(path.name)

    store = DiskActivationStore(tmp_path, CPU)
    monkeypatch.setattr(disk_activation_store, "write_tensors", slow)
    for number in range(disk_activation_store.MAX_PENDING_WRITES):
        store.put("a", number, state(number))
    assert begun.wait(60)
    queued = store._pending_writes["a", disk_activation_store.MAX_PENDING_WRITES - 1]
    queued.add_done_callback(lambda _: may_finish.set())
    store.close()  # cancels the queued write, then waits for the first one
    assert queued.cancelled()
    assert written == ["0.safetensors.part"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["0.safetensors"]
