"""What replicas and gateway report; that it comes to Prometheus is in tests/clusters."""

from collections.abc import Mapping

import pytest

from raysys.gateway._gateway_state import GatewayMetrics
from raysys.serve._metrics import Metrics
from raysys.telemetry import Counter


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}

    def inc(self: Counter, value: float = 1.0, labels: Mapping[str, str] | None = None) -> None:
        key = (self.name, *(labels or {}).values())
        found[key] = found.get(key, 0) + value

    monkeypatch.setattr(Counter, "inc", inc)
    return found


def test_the_gateway_counts_on_when_haproxy_begins_anew(
    counted: dict[tuple[str, ...], float],
) -> None:
    metrics = GatewayMetrics()
    for count in (5, 5, 9, 2):
        metrics.requests({("films", "2xx"): count, ("", "4xx"): 0})
    for count in (3, 1):
        metrics.shed({"films": count})

    assert counted == {
        ("raysys_serve_requests_total", "films", "2xx"): 11,
        ("raysys_serve_shed_total", "films", "gateway"): 4,
    }


def test_a_replica_counts_what_it_refused_since_it_last_said(
    counted: dict[tuple[str, ...], float],
) -> None:
    metrics = Metrics("films", "near")
    for refused in (0, 4, 4, 7):
        metrics.queue(1, refused)

    assert counted == {("raysys_serve_shed_total", "films", "replica"): 7}
