"""Directory of the deployed models: their index and their replicas' statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from raysys.gateway._wire import APP_HEADER, INDEX_PATH, STATISTICS_PATH
from raysys.imports import lazy_import

web = lazy_import("aiohttp.web")

Counts = Mapping[str, Any]
"""Counts of one model: numbers, and by stage and batch size the number and nanoseconds."""

_TOTALS = ("inference_count", "execution_count")
_STAGES = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
    "cache_hit", "cache_miss",
)  # fmt: skip


class ModelDirectory:
    """Models by application and version, with the counts of replicas that run and that have left.

    A model is an application, or an action of one. Counts are as old as a replica's last
    announcement, a second at most.
    """

    def __init__(self, current: Callable[[], Mapping[str, int]]) -> None:
        """Start empty; `current` has the deployed version of each application."""
        self._current = current
        # By application and version: the counts of models by replica.
        self._counts: dict[tuple[str, int], dict[str, Mapping[str, Counts]]] = {}
        self._left: dict[tuple[str, int], dict[str, Counts]] = {}

    def update(
        self, application: str, version: int, replica: str, counts: Mapping[str, Counts]
    ) -> None:
        """Replace the counts of a replica's models."""
        self._counts.setdefault((application, version), {})[replica] = counts

    def leave(self, application: str, version: int, replica: str) -> None:
        """Keep the counts of a replica that has ended, in the totals of its version."""
        key = application, version
        models = self._counts.get(key, {}).pop(replica, {})
        if self._current().get(application) != version:
            self._left.pop(key, None)
            return
        left = self._left.setdefault(key, {})
        for model, counts in models.items():
            left[model] = _total([counts, left[model]] if model in left else [counts])

    def index(self, ready_only: bool) -> list[dict[str, str]]:
        """The models with their state, READY or UNAVAILABLE."""
        entries = []
        for (application, version), replicas in self._deployed():
            models = dict.fromkeys(name for models in replicas.values() for name in models)
            ready = bool(models)
            if ready or not ready_only:
                state = {"state": "READY" if ready else "UNAVAILABLE",
                         "reason": "" if ready else "no replica is available"}  # fmt: skip
                names = models or self._left.get((application, version)) or [application]
                entries += [{"name": name, "version": str(version), **state} for name in names]
        return entries

    def statistics(
        self, application: str = "", model: str | None = None, version: str | None = None
    ) -> dict[str, Any]:
        """The statistics of all models, or of one of an application.

        Raises:
            LookupError: Unknown model or version.
        """
        described = []
        for (name, number), replicas in self._deployed():
            if application not in ("", name):
                continue
            parts = [*replicas.values(), self._left.get((name, number), {})]
            for own in dict.fromkeys(own for models in parts for own in models):
                if model in (None, own) and version in (None, str(number)):
                    counts = _total(models[own] for models in parts if own in models)
                    described.append({"name": own, "version": str(number), **_described(counts)})
        if model is not None and not described:
            raise LookupError(model if version is None else f"{model} version {version}")
        return {"model_stats": described}

    def routes(self) -> list[Any]:
        """The HTTP routes of the protocol's extensions."""
        return [
            web.post(INDEX_PATH, self._answer_index),
            web.get(STATISTICS_PATH, self._answer_statistics),
            web.get("/v2/models/{model:.+}/versions/{version}/stats", self._answer_statistics),
            web.get("/v2/models/{model:.+}/stats", self._answer_statistics),
        ]

    async def _answer_index(self, request: Any) -> Any:
        try:
            asked = await request.json() if request.can_read_body else {}
        except ValueError:
            return _error(request, 400, "the body is not JSON")
        except web.HTTPRequestEntityTooLarge:
            return _error(request, 413, "the body is too large")
        return web.json_response(self.index(isinstance(asked, dict) and asked.get("ready") is True))

    async def _answer_statistics(self, request: Any) -> Any:
        asked = {name: unquote(value) for name, value in request.match_info.items()}
        # The gateway has checked the key for this application, and for no other.
        application = request.headers.get(APP_HEADER, "")
        try:
            return web.json_response(self.statistics(application, **asked))
        except LookupError as error:
            return _error(request, 404, f"no statistics of {error.args[0]!r}: unknown model")

    def _deployed(self) -> Iterable[tuple[tuple[str, int], dict[str, Mapping[str, Counts]]]]:
        for key in self._current().items():
            yield key, self._counts.get(key, {})


def _error(request: Any, status: int, text: str) -> Any:
    body = {"error": text, "request_id": request.headers.get("x-request-id", "")}
    return web.json_response(body, status=status)


def _total(parts: Iterable[Counts]) -> Counts:
    """The sum of counts."""
    total: Counter[str] = Counter()
    pairs: dict[str, dict[Any, tuple[int, int]]] = {"stages": {}, "sizes": {}}
    last = 0
    for counts in parts:
        last = max(last, counts["last_inference"])
        total.update({name: counts[name] for name in _TOTALS})
        for kind, sums in pairs.items():
            for key, (count, ns) in counts[kind].items():
                before = sums.get(key, (0, 0))
                sums[key] = before[0] + count, before[1] + ns
    return {"last_inference": last, **{name: total[name] for name in _TOTALS}, **pairs}


def _described(counts: Counts) -> dict[str, Any]:
    """Counts in the protocol's form."""

    def duration(pair: tuple[int, int] = (0, 0)) -> dict[str, int]:
        return {"count": pair[0], "ns": pair[1]}

    return {
        "last_inference": counts["last_inference"],
        **{name: counts[name] for name in _TOTALS},
        "inference_stats": {
            name: duration(counts["stages"].get(name, (0, 0))) for name in _STAGES
        },
        "batch_stats": [
            {"batch_size": size, "compute_input": duration(),
             "compute_infer": duration(pair), "compute_output": duration()}
            for size, pair in sorted(counts["sizes"].items())
        ],
    }  # fmt: skip
