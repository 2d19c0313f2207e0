"""The yardstick as users of Ray Serve write it: four deployments joined by handles.

`python -m benchmarks.serving._serve_by_hand '{"folder": ..., "port": ..., "temp": ...}'`
"""

import json
import signal
import sys
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from benchmarks.serving import yardstick

MAX_BATCH = 64
MAX_ONGOING = 1000


class Scale:
    """One row at a time: there is nothing to gain from a batch."""

    def __init__(self, folder: str) -> None:
        self._scale = yardstick.Scale(folder)

    async def __call__(self, x: list[float]) -> np.ndarray:
        return self._scale(np.array([x]))[0]


class Mlp:
    """The perceptron, in batches."""

    def __init__(self, folder: str) -> None:
        self._model = yardstick.Mlp(folder)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def __call__(self, rows: list[np.ndarray]) -> list[np.float32]:
        return list(self._model(np.stack(rows)))


class Trees:
    """The trees, in batches."""

    def __init__(self, folder: str) -> None:
        self._model = yardstick.Trees(folder)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def __call__(self, rows: list[np.ndarray]) -> list[np.float32]:
        return list(self._model(np.stack(rows)))


class Ingress:
    """HTTP, and how the others are joined."""

    def __init__(self, scale: Any, mlp: Any, trees: Any) -> None:
        self._scale, self._mlp, self._trees = scale, mlp, trees

    async def __call__(self, request: Request) -> dict[str, float]:
        scaled = self._scale.remote((await request.json())["x"])
        mlp, trees = self._mlp.remote(scaled), self._trees.remote(scaled)
        return {"y": float(yardstick.mean(await mlp, await trees))}


def main() -> None:
    settings = json.loads(sys.argv[1])
    folder = settings["folder"]
    ray.init(
        address="local",
        num_cpus=5,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=settings["temp"],
    )
    serve.start(http_options={"host": "127.0.0.1", "port": settings["port"]})
    many = serve.deployment(max_ongoing_requests=MAX_ONGOING)
    models = [many(stage).bind(folder) for stage in (Scale, Mlp, Trees)]
    app = many(Ingress).bind(*models)
    serve.run(app, name="yardstick", route_prefix="/")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
