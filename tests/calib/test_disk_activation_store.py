"""Activations in files."""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep

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


def test_states_outlast_the_store(tmp_path: Path) -> None:
    store = DiskActivationStore(tmp_path, CPU)
    for number in range(3):
        store.put("model.layers.0", number, state(number))
        store.put("model.layers.0 (float)", number, state(-number))
    store.seal("model.layers.0")
    again = DiskActivationStore(tmp_path, CPU)
    for number in range(3):
        assert same(again.get("model.layers.0", number), state(number))
        assert same(again.get("model.layers.0 (float)", number), state(-number))


def test_what_was_dropped_lies_there_until_something_else_is_kept(tmp_path: Path) -> None:
    store = DiskActivationStore(tmp_path, CPU, budget=10**6)
    store.put("a", 0, state(1))
    store.put("b", 0, state(2))
    store.drop("a", 0)
    store.seal("a")
    assert same(DiskActivationStore(tmp_path, CPU).get("a", 0), state(1))
    store.keep(["b", "c"])
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert same(store.get("b", 0), state(2))


def test_as_much_is_in_memory_as_was_allowed(tmp_path: Path) -> None:
    size = sum(tensor.nbytes for tensor in state(0).values())
    store = DiskActivationStore(tmp_path, CPU, budget=2 * size)
    given = [state(number) for number in range(3)]
    for number in range(3):
        store.put("a", number, given[number])
    kept = [store.get("a", number) is given[number] for number in range(3)]
    assert kept == [True, True, False]
    store.drop("a", 0)  # makes room for what is read next
    assert store.get("a", 2) is store.get("a", 2)
    for number in (1, 2):
        store.drop("a", number)
    store.put("b", 0, given[0])
    assert store.get("b", 0) is given[0]


def test_a_state_that_was_torn_is_not_taken_for_one(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("ask", ["put", "get", "seal", "keep"])
def test_what_could_not_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    def full(tensors: State, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    store = DiskActivationStore(tmp_path, CPU)
    monkeypatch.setattr(disk_activation_store, "write_tensors", full)
    store.put("a", 0, state(1))
    with pytest.raises(OSError, match="No space left"):
        if ask == "put":
            for number in range(1, disk_activation_store.MAX_PENDING_WRITES + 1):
                store.put("a", number, state(number))
        elif ask == "get":
            store.get("a", 0)
        elif ask == "seal":
            store.seal("a")
        else:
            store.keep(["a"])


def test_states_are_written_behind_the_work_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, begun = Event(), Event()

    def slow(tensors: State, path: Path) -> None:
        begun.set()
        assert may_go_on.wait(60)
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
        may_go_on.set()
        more.result(60)
    store.seal("a")
    again = DiskActivationStore(tmp_path, CPU)
    assert same(again.get("a", disk_activation_store.MAX_PENDING_WRITES), state(9)) and same(
        again.get("a", 0), state(0)
    )


def test_nothing_is_written_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, written = Event(), []

    def slow(tensors: State, path: Path) -> None:
        begun.set()
        sleep(0.2)
        write_tensors(tensors, path)
        written.append(path.name)

    store = DiskActivationStore(tmp_path, CPU)
    monkeypatch.setattr(disk_activation_store, "write_tensors", slow)
    for number in range(disk_activation_store.MAX_PENDING_WRITES):
        store.put("a", number, state(number))
    assert begun.wait(60)
    store.close()
    assert written == ["0.safetensors.part"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["0.safetensors"]
