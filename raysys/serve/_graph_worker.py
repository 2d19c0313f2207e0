"""The process that runs an application's own nodes, apart from the HTTP server of its replica.

What a node does to its process (exit, crash, hang, hold the interpreter) does not reach the server,
which ends the process and goes on with another: see `_graph_workers`.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import pickle
import socket
import time
from typing import TYPE_CHECKING, Any

import psutil
from ray import cloudpickle

from raysys.cluster import error_traceback, listen, raise_priority
from raysys.errors import GraphError, RaysysError
from raysys.ray_internals import process
from raysys.serve._compiler import ENTRY
from raysys.serve._metrics import Metrics
from raysys.serve._outputs import as_outputs
from raysys.serve._request_context import current_requests, running_requests
from raysys.serve.http._body_budget import give_back_memory
from raysys.serve.http._request_reader import RequestReader
from raysys.telemetry import logs

if TYPE_CHECKING:
    from raysys.serve._application import Application
    from raysys.serve._column_types import Columns
    from raysys.serve._request_context import RequestContext


def set_up_process() -> None:
    """Priority and logs of a process that serves; before threads start, which inherit it."""
    raise_priority()
    logs.set_up()
    logs.add_source("request_ids", lambda: [request.request_id for request in current_requests()])


def as_exception(error: BaseException) -> Exception:
    """The error; SystemExit, CancelledError and others that end more than a request, as one."""
    if isinstance(error, Exception):
        return error
    return GraphError(f"a node raised {type(error).__name__}: {error}")


class GraphWorker:
    """Actor that runs batches of the entry's nodes; its replica asks over a local socket."""

    def __init__(self, application: bytes) -> None:
        set_up_process()
        self._pickled = application

    def load(self, last_words: str) -> tuple[int, str, int]:
        """Load the nodes and listen.

        Args:
            last_words: Address for the reason of an exit or a crash.

        Returns:
            Process id, address for batches, and bytes that the nodes take.
        """
        this = psutil.Process()
        self._application: Application = pickle.loads(self._pickled)
        graphs = self._application.graphs
        self._metrics = {action: Metrics(self._application.name, action) for action in graphs}
        self._readers = {action: RequestReader(self._application, action) for action in graphs}
        before = this.memory_info().rss
        for graph in graphs.values():
            graph.load(graph.plan.stages[ENTRY].nodes)
        gc.collect()
        gc.freeze()  # otherwise each full collection walks all objects of the models' libraries
        _report_end(last_words)
        address = listen(self._answer)
        if address is None:
            raise RaysysError("serving needs abstract Unix sockets, which Linux has")
        return this.pid, address, this.memory_info().rss - before

    def _answer(self, request: bytes) -> bytes:
        """Result of `_run` or `_read`, or the error and its traceback."""
        method, *args = pickle.loads(request)
        try:
            return _dumps((self._run if method == "run" else self._read)(*args), "")
        except BaseException as error:  # sys.exit() in a node ends its request alone
            return _dumps_error(error)

    def _run(
        self, action: str, number: int, values: Columns, rows: int,
        contexts: tuple[RequestContext, ...],
    ) -> tuple[Columns, float]:  # fmt: skip
        """The values of a step over a batch, and its seconds."""
        graph = self._application.graphs[action]
        step, output, started = graph.plan.steps[number], graph.output, time.perf_counter()
        with running_requests(contexts):
            results = graph.run(step.nodes, values, self._metrics[action].node)
        seconds = time.perf_counter() - started
        values = {name: results[name] for name in step.gives}
        if output in values:
            values[output] = as_outputs(output, values[output], rows)
        return values, seconds

    def _read(self, action: str, method: str, *args: Any) -> Any:
        """A large body, read by a method of `RequestReader`."""
        try:
            return getattr(self._readers[action], method)(*args)
        finally:
            give_back_memory()


def _dumps(result: Any, traceback: str) -> bytes:
    try:
        return pickle.dumps((result, traceback), 5)
    except Exception:  # such as instances of a class that was pickled by value
        return cloudpickle.dumps((result, traceback), 5)


def _dumps_error(error: BaseException) -> bytes:
    text = error_traceback(error)
    error = as_exception(error)
    try:
        data = _dumps(error, text)
        pickle.loads(data)  # some errors do not come back
    except Exception:
        data = _dumps(GraphError(f"{type(error).__name__}: {error}"), text)
    return data


def _report_end(address: str) -> None:
    """Tell the replica of a crash, with its traceback, and of an exit; silence is a kill."""
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(address)
    channel.sendall(b"%d\n" % os.getpid())
    faulthandler.enable(channel.fileno(), all_threads=False)
    process.before_exit(lambda status: channel.sendall(b"os._exit(%d)" % status))
