"""The yardstick on LitServe.

`python -m benchmarks.serving._litserve '{"folder": ..., "port": ..., ...}'`
"""

import gc
import json
import sys
from typing import Any

import litserve
import numpy as np

from benchmarks.serving.yardstick import Yardstick


class Api(litserve.LitAPI):
    """The yardstick, batched by LitServe's loop in a worker process."""

    def __init__(self, folder: str, **settings: Any) -> None:
        super().__init__(api_path="/", **settings)
        self._folder = folder

    def setup(self, device: str) -> None:
        """Load the models in the worker."""
        self._model = Yardstick(self._folder)
        gc.collect()
        gc.freeze()

    def decode_request(self, request: dict[str, list[float]]) -> list[float]:
        """One request's row."""
        return request["x"]

    def batch(self, inputs: list[list[float]]) -> np.ndarray:
        """Rows as `(n, 64)`."""
        return np.array(inputs)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Rows `(n, 64)` -> `(n,)`."""
        return self._model(x)

    def unbatch(self, output: np.ndarray) -> list[float]:
        """One prediction for each row."""
        return output.tolist()

    def encode_response(self, output: float) -> dict[str, float]:
        """One answer."""
        return {"y": output}


def main() -> None:
    settings = json.loads(sys.argv[1])
    api = Api(settings["folder"], max_batch_size=64, batch_timeout=settings["batch_timeout_s"])
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=settings["workers"],
        fast_queue=settings["fast_queue"],
    )
    server.run(
        host="127.0.0.1",
        port=settings["port"],
        num_api_servers=settings["api_servers"],
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
