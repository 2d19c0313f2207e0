"""A lease has one owner, whoever asks at the same time."""

import random
import threading
import time

import pytest
import ray

from raysys.ray_internals import key_value, process
from raysys.workflow import _lease
from raysys.workflow._lease import Lease


class Store:
    """A key-value store in memory whose calls interleave at random."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self._lock = threading.Lock()

    def pause(self) -> None:
        if random.random() < 0.3:
            time.sleep(random.random() * 1e-3)

    def put(self, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        self.pause()
        with self._lock:
            is_new = key not in self.values
            if is_new or overwrite:
                self.values[key] = value
            return is_new

    def get(self, key: bytes) -> bytes | None:
        self.pause()
        with self._lock:
            return self.values.get(key)

    def delete(self, key: bytes) -> None:
        self.pause()
        with self._lock:
            self.values.pop(key, None)

    def keys(self, prefix: bytes) -> list[bytes]:
        self.pause()
        with self._lock:
            return [key for key in self.values if key.startswith(prefix)]


class Drivers:
    """Drivers, one per thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.living: set[str] = set()
        self._local = threading.local()
        monkeypatch.setattr(_lease, "_driver", lambda: self._local.name)
        monkeypatch.setattr(process, "live_jobs", lambda: set(self.living))

    def become(self, name: str) -> None:
        self._local.name = name
        self.living.add(name)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    for name in ("put", "get", "delete", "keys"):
        monkeypatch.setattr(key_value, name, getattr(store, name))
    return store


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Drivers:
    return Drivers(monkeypatch)


def test_a_lease_is_taken_released_and_inherited(store: Store, drivers: Drivers) -> None:
    drivers.become("01")
    first = Lease("step", "run-1")
    assert first.take() is None
    assert first.take() is None  # by the same run again
    drivers.become("02")
    second = Lease("step", "run-2")
    assert second.take() == "run-1"
    second.release()  # releases nothing, since it owns nothing
    assert second.take() == "run-1"
    assert Lease("another step", "run-2").take() is None
    first.release()
    assert second.take() is None
    drivers.living.remove("02")  # dies without a release
    drivers.become("03")
    third = Lease("step", "run-3")
    assert third.take() is None
    second.release()  # is not its owner any more
    drivers.become("04")
    assert Lease("step", "run-4").take() == "run-3"
    assert len([key for key in store.values if key.startswith(b"lease:step:")]) <= 2


@pytest.mark.parametrize("seed", range(3))
def test_of_concurrent_takers_one_owns(store: Store, drivers: Drivers, seed: int) -> None:
    random.seed(seed)
    owners: set[str] = set()
    taken, conflicts = [], []

    def run(name: str) -> None:
        for turn in range(20):
            driver = f"{name}.{turn}"
            drivers.become(driver)
            lease = Lease("step", f"run-{driver}")
            if lease.take() is None:
                if owners:
                    conflicts.append((driver, *owners))
                owners.add(driver)
                store.pause()
                owners.remove(driver)
                taken.append(driver)
                if random.random() < 0.5:
                    lease.release()
            drivers.living.remove(driver)

    threads = [threading.Thread(target=run, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert conflicts == []
    assert len(taken) >= 8


@pytest.mark.usefixtures("ray_cluster")
def test_two_runs_that_find_a_dead_owner_do_not_both_take_over() -> None:
    key_value.put(b"lease:steps/found dead:00000000", b"ffffffff run-0")
    start, results = threading.Barrier(8), []

    def take(run: str) -> None:
        start.wait()
        results.append((run, Lease("steps/found dead", run).take()))

    threads = [threading.Thread(target=take, args=(f"run-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = [run for run, other in results if other is None]
    assert {other for _, other in results} == {None, owner}
    assert ray.is_initialized()
