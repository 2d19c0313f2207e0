"""A lean HTTP/1.1 load generator, in a process of its own: `python -m benchmarks.serving.load`.

The program reads one JSON object (the arguments of `run_load`) from standard input and writes one
(the fields of `Load`) to standard output. In the closed loop each of `clients` keep-alive
connections sends its next request when it has its answer. In the open loop (`rate`) requests are
due at even intervals whether or not earlier ones are answered, and latency counts from the moment
a request was due, so that a server that stalls cannot hide it.
"""

import gc
import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving._generator import Generator, Records


@dataclass(frozen=True)
class Latency:
    """Milliseconds from when requests were sent (closed loop) or due (open loop)."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Second:
    """The answers and failures that came in one second of the run, the warm-up included.

    Attributes:
        second: From the start of the load.
        status: Answers by HTTP status.
        errors: Failures by kind, as in `Load`.
        p99_ms: Of the 200s; None if there were none.
    """

    second: int
    status: dict[str, int]
    errors: dict[str, int]
    p99_ms: float | None


@dataclass(frozen=True)
class Load:
    """What a load run measured. Requests of the warm-up count in `series` alone.

    Attributes:
        seconds: Length of the run after the warm-up.
        sent: Requests sent (open loop: due) after the warm-up; each is in `status` or `errors`.
        status: Answers by HTTP status.
        errors: Requests without an answer: "refused" (no connection), "reset" (by the server),
            "closed" (before the answer was whole), "timeout", "invalid" (not HTTP).
        requests_per_s: 200s that came within the run, by its length.
        ok: Latency of the 200s.
        unavailable: Latency of the 503s.
        wrong: 200s whose JSON lacks the key that was asked for.
        lag_p99_ms: How late the generator itself sent a request that was due (open loop).
        cpu_us: Processor time of the generator for each request, in microseconds.
        series: Second by second.
    """

    seconds: float
    sent: int
    status: dict[str, int]
    errors: dict[str, int]
    requests_per_s: float
    ok: Latency
    unavailable: Latency
    wrong: int
    lag_p99_ms: float
    cpu_us: float
    series: list[Second]

    @property
    def failed(self) -> int:
        """Requests that had no answer, or one that is neither 200 nor 503, or a wrong one."""
        answered = sum(self.status.get(code, 0) for code in ("200", "503"))
        return self.sent - answered + self.wrong


class RunningLoad:
    """A load generator at work in its own process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def result(self) -> Load:
        """Wait for the end of the run."""
        said, _ = self._process.communicate()
        if self._process.returncode:
            raise RuntimeError(f"the load generator ended with status {self._process.returncode}")
        return _load_from(json.loads(said))


def start_load(
    url: str, bodies: Sequence[bytes | str], *, clients: int = 32, seconds: float = 5.0,
    rate: float | None = None, warmup_s: float = 1.0, headers: Mapping[str, str] | None = None,
    key: str | None = None, timeout_s: float = 30.0,
) -> RunningLoad:  # fmt: skip
    """Start a run and return at once, for a caller that meanwhile does something to the server.

    Args:
        url: `http://host:port/path`; each request is a POST.
        bodies: JSON, sent in turn.
        clients: Connections; in the open loop the most that may be open at a time. A request that
            is due when all are busy waits, and its latency counts.
        seconds: Length of the run after the warm-up.
        rate: Requests due in a second, for the open loop.
        warmup_s: Seconds of the same load before anything is counted.
        headers: Sent besides Host, Content-Type and Content-Length.
        key: What the JSON of a 200 must have at its top level.
        timeout_s: For one answer, from when its request was sent.
    """
    texts = [body.decode() if isinstance(body, bytes) else body for body in bodies]
    task = {
        "url": url, "bodies": texts, "clients": clients, "seconds": seconds, "rate": rate,
        "warmup_s": warmup_s, "headers": dict(headers or {}), "key": key, "timeout_s": timeout_s,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving.load"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    process.stdin.write(json.dumps(task).encode())
    process.stdin.close()
    process.stdin = None
    return RunningLoad(process)


def run_load(
    url: str, bodies: Sequence[bytes | str], *, clients: int = 32, seconds: float = 5.0,
    rate: float | None = None, warmup_s: float = 1.0, headers: Mapping[str, str] | None = None,
    key: str | None = None, timeout_s: float = 30.0,
) -> Load:  # fmt: skip
    """Send requests from a process of its own and wait for the figures; see `start_load`."""
    return start_load(
        url, bodies, clients=clients, seconds=seconds, rate=rate, warmup_s=warmup_s,
        headers=headers, key=key, timeout_s=timeout_s,
    ).result()  # fmt: skip


def _load_from(said: dict[str, Any]) -> Load:
    known = {field.name: said[field.name] for field in fields(Load)}
    for name in ("ok", "unavailable"):
        known[name] = Latency(**known[name])
    known["series"] = [Second(**second) for second in known["series"]]
    return Load(**known)


def _load(records: Records, seconds: float, warmup_s: float) -> Load:
    """The figures of a run."""
    latency_ms = (records.done_s - records.due_s) * 1e3
    counted = records.due_s >= warmup_s
    ok, unavailable = records.outcome == 200, records.outcome == 503
    in_time = (records.done_s >= warmup_s) & (records.done_s < warmup_s + seconds)
    status, errors = _counts(records.outcome[counted])
    series = []
    second_of = records.done_s.astype(int)
    for second in range(int(second_of.max(initial=-1)) + 1):
        here = second_of == second
        times = latency_ms[here & ok]
        p99 = float(np.percentile(times, 99)) if len(times) else None
        series.append(Second(second, *_counts(records.outcome[here]), p99))
    return Load(
        seconds=seconds,
        sent=int(counted.sum()),
        status=status,
        errors=errors,
        requests_per_s=int(np.sum(ok & in_time)) / seconds,
        ok=_latency(latency_ms[counted & ok]),
        unavailable=_latency(latency_ms[counted & unavailable]),
        wrong=int(np.sum(records.wrong_s >= warmup_s)),
        lag_p99_ms=float(np.percentile(records.lag_s, 99)) * 1e3 if len(records.lag_s) else 0.0,
        cpu_us=records.cpu_s / max(1, len(records.due_s)) * 1e6,
        series=series,
    )


def _counts(outcomes: np.ndarray) -> tuple[dict[str, int], dict[str, int]]:
    counts = Counter(outcomes.tolist())
    status = {str(kind): n for kind, n in counts.items() if isinstance(kind, int)}
    return status, {kind: n for kind, n in counts.items() if isinstance(kind, str)}


def _latency(times_ms: np.ndarray) -> Latency:
    if not len(times_ms):
        return Latency(0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = np.percentile(times_ms, [50, 90, 99]).tolist()
    return Latency(len(times_ms), p50, p90, p99, float(times_ms.max()))


def main() -> None:
    import uvloop

    task = json.loads(sys.stdin.read())
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection is an open file
    gc.disable()  # nothing here is cyclic but the connections, and a run is short
    records = uvloop.run(Generator(task).run())
    json.dump(asdict(_load(records, task["seconds"], task["warmup_s"])), sys.stdout)


if __name__ == "__main__":
    main()
