"""A worker alone in its process group, without a cluster."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from ray.exceptions import ObjectLostError
from torch import nn

from raysys.errors import StorageError, TrainError
from raysys.storage import Storage
from raysys.train import TrainSettings
from raysys.train._checkpoint import newest, opened
from raysys.train._failures import recurs
from raysys.train._run_state import RunState
from raysys.train._worker import run_worker
from tests.train.tasks import Counted, Counting, Embedded, Regression, rows


@dataclasses.dataclass
class LocalTable:
    """A Table of rows in this process."""

    rows: pa.Table

    def to_arrow(self) -> pa.Table:
        return self.rows


@dataclasses.dataclass
class Failing(Regression):
    """Fails in one of its methods."""

    method: str = ""

    def prepare(self, tables: Mapping[str, pa.Table]) -> int:
        self._fail("prepare")
        return super().prepare(tables)

    def build(self) -> nn.Module:
        self._fail("build")
        return super().build()

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        self._fail("evaluate")
        return super().evaluate(module)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        batch = super().batch(rows, rng)
        if self.method == "not a number":
            batch["y"][0] = torch.nan
        return batch

    def _fail(self, where: str) -> None:
        if self.method == where:
            raise ZeroDivisionError("of its own")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


Train = Callable[..., RunState]


@pytest.fixture
def train(alone: None, storage: Storage) -> Train:
    def train(
        task: Regression | None = None, submission: str = "mine", examples: int = 1500,
        raises: bool = True, **changes: Any,
    ) -> RunState:  # fmt: skip
        state = RunState(storage, "run")
        settings = TrainSettings.model_validate({
            "num_workers": 1, "epochs": 4, "batch_size": 500, "learning_rate": 0.05,
            "checkpoint_steps": 2, **changes,
        })  # fmt: skip
        tables: Any = {"rows": LocalTable(rows()[:examples])}
        run_worker(task or Regression(), tables, settings, state, submission, "cpu")
        failure = state.failure(submission)
        if failure and raises:
            raise failure  # as the driver does
        return state

    return train


@pytest.mark.parametrize("method", ["prepare", "build", "evaluate"])
def test_an_error_of_the_task_is_reported_to_the_driver_and_not_retried(
    method: str, train: Train, storage: Storage
) -> None:
    message = f"Failing.{method} failed: ZeroDivisionError"
    with pytest.raises(TrainError, match=message):
        train(Failing(method))
    failure = RunState(storage, "run").failure("mine")
    assert message in str(failure)
    # A group that Ray Train restarts ends at once.
    state = train(Failing(method), raises=False)
    assert state.read("result") is None
    # Another call tries again.
    assert train(Regression(), submission="next").read("result") is not None


class Returning(Regression):
    """Its module returns something else than the mean loss, or fails."""

    def __init__(self, returned: Callable[[torch.Tensor], Any]) -> None:
        self.returned = returned

    def build(self) -> nn.Module:
        returned = self.returned

        class Net(nn.Linear):
            def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
                return returned(super().forward(x)[:, 0] - y)

        return Net(4, 1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda e: {"loss": e.mean(), "logits": e}, "a dict with the keys loss, logits"),
        (
            lambda e: (e.mean(), e),
            "a tuple, not the mean loss of the batch: return the loss tensor",
        ),
        (lambda e: e**2, r"a tensor of shape \(500,\), .*: return its .mean\(\)"),
        (lambda e: float(e.mean()), r"a float, .* without float\(\) or .item\(\)"),
        (lambda e: e.detach().mean(), "a loss without a gradient, .*: compute it from the param"),
        (
            lambda e: e @ e[:3],
            r"step 1 of Returning failed: RuntimeError: .* at .*test_worker.py:\d",
        ),
        (lambda e: nn.BatchNorm1d(500)(e[None]), "Expected more than 1 value per channel"),
    ],
)
def test_a_module_without_a_mean_loss_ends_the_run_at_once(
    returned: Callable[[torch.Tensor], Any], message: str, train: Train
) -> None:
    with pytest.raises(TrainError, match=message):
        train(Returning(returned))


class Wrong(Regression):
    """Returns a value of a wrong type from one of its methods."""

    def __init__(self, **returned: Any) -> None:
        for method, value in returned.items():
            setattr(self, method, lambda *_, value=value: value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"prepare": None}, "Wrong.prepare returned None, not the number of training examples"),
        ({"build": "net"}, "Wrong.build returned str: return a torch.nn.Module"),
        ({"batch": [1, 2]}, "Wrong.batch failed: AttributeError: 'list' object"),
        ({"batch": {"z": torch.ones(1)}}, "unexpected keyword argument 'z'"),
        ({"evaluate": {"loss": "low"}}, "Wrong.evaluate failed: ValueError: could not convert"),
        ({"evaluate": 0.5}, "Wrong.evaluate failed: AttributeError: 'float' object"),
    ],
)
def test_a_method_that_returns_a_wrong_type_is_named(
    returned: dict[str, Any], message: str, train: Train
) -> None:
    with pytest.raises(TrainError, match=message):
        train(Wrong(**returned))


def test_an_evaluation_may_return_tensors(train: Train) -> None:
    state = train(Wrong(evaluate={"loss": torch.tensor(0.5), "count": np.int64(3)}), max_steps=3)
    assert state.read("result")["history"][0]["loss"] == 0.5


def test_lazy_layers_and_extra_state_survive_a_resumed_run(train: Train, storage: Storage) -> None:
    train(Counted(), max_steps=6)
    storage.remove("training/run/result.json")
    history = train(Counted(), max_steps=12).read("result")["history"]
    assert [epoch["passes"] for epoch in history] == [3, 6, 9, 12]
    folder = RunState(storage, "run").folder
    with opened(storage, folder, newest(storage, folder)) as saved:
        parameters = saved.state_dict()
    module = Counted().build()
    module.load_state_dict(parameters)
    assert module.layers[2].passes == 12


def test_extra_state_that_no_checkpoint_stores_is_refused(train: Train) -> None:
    class Odd(Counting):
        def get_extra_state(self) -> Any:
            return Path("a path")

    class Task(Regression):
        def build(self) -> nn.Module:
            return nn.Sequential(Odd())

    with pytest.raises(TrainError, match=r"0\._extra_state of Sequential is PosixPath, which"):
        train(Task())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lamb"}, "embedding.weight has sparse gradients, which optimizer='lamb'"),
        ({"strategy": "fsdp"}, "which strategy='fsdp' does not support"),
        ({"max_grad_norm": 1.0}, "which max_grad_norm or max_grad_norm_ratio does not support"),
    ],
)
def test_sparse_gradients_are_refused_where_they_do_not_work(
    changes: dict[str, Any], message: str, train: Train
) -> None:
    with pytest.raises(TrainError, match=message):
        train(Embedded(), **changes)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ValueError("Expected more than 1 value"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x1)"), True),
        (KeyError("x"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), False),
        (dist.DistBackendError("NCCL error"), False),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), False),
        (ConnectionResetError("lost"), False),
        (StorageError("disk full"), False),
        (ObjectLostError("00", None, ""), False),
    ],
)
def test_errors_of_connections_and_memory_may_pass(error: Exception, again: bool) -> None:
    assert recurs(error) is again


def test_a_step_with_a_non_finite_loss_is_named(train: Train, storage: Storage) -> None:
    with pytest.raises(TrainError, match="step 1: the loss is nan"):
        train(Failing("not a number"))
    failure = RunState(storage, "run").failure("mine")
    assert failure is not None
    assert failure.step == 1


def test_a_run_ends_at_its_next_checkpoint_after_another_call_took_it_over(
    train: Train, storage: Storage
) -> None:
    state = RunState(storage, "run")
    state.write("plan", {"submission": "later"})
    with pytest.raises(TrainError, match="another call has taken over run 'run'"):
        train()
    assert newest(storage, "run") is None
    assert train(submission="later").read("result") is not None
    assert newest(storage, state.folder) == sorted(storage.names("training/run/checkpoints"))[-1]


def test_a_run_resumes_only_with_the_same_number_of_examples(train: Train) -> None:
    train(max_steps=4)
    with pytest.raises(TrainError, match="started with 1500 training examples, now there are 1000"):
        train(examples=1000)


def test_an_interrupted_run_gives_the_same_metrics(train: Train, storage: Storage) -> None:
    class Interrupted(Regression):
        left = 7

        def batch(self, rows: np.ndarray, rng: np.random.Generator) -> dict[str, torch.Tensor]:
            self.left -= 1
            if self.left < 0:
                raise ConnectionResetError("as a lost peer")
            return super().batch(rows, rng)

    whole = train().read("result")
    storage.remove("training/run")
    with pytest.raises(ConnectionResetError, match="as a lost peer"):
        train(Interrupted())
    cut = train().read("result")
    assert whole
    assert cut
    timed = ("epoch_s", "samples_per_s")
    for first, second in zip(whole["history"], cut["history"], strict=True):
        assert {k: v for k, v in first.items() if k not in timed} == {
            k: v for k, v in second.items() if k not in timed
        }


def test_a_storage_root_that_is_not_writable_is_named(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("not a folder")
    with pytest.raises(StorageError, match=r"cannot write .*training/run/plan.json: .*"):
        RunState(Storage(root), "run").write("plan", {})


def test_remains_of_killed_writers_are_removed_after_the_run(storage: Storage) -> None:
    state = RunState(storage, "run")
    state.write("plan", {})
    state.write("failure-1", {})
    folder = Path(storage.uri(state.folder))
    (folder / ".progress.json.1.partial").write_text("{")
    (folder / "checkpoints/.0001.2.old").mkdir(parents=True)
    (folder / "checkpoints/.0001.2.old/0-of-1.pt").write_text("")
    (folder / "ray/run-1").mkdir(parents=True)
    state.clean_up()
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        "plan.json", "checkpoints"
    }  # fmt: skip
    assert json.loads((folder / "plan.json").read_text()) == {}
