"""The yardstick as a runtime of MLServer, which loads this module in an environment of its own."""

import gc

import numpy as np
from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.serving.yardstick import Yardstick


class Runtime(MLModel):
    """The yardstick; MLServer hands `predict` the merged request of a batch."""

    async def load(self) -> bool:
        """Load the models from the folder that the model's settings name."""
        self._model = Yardstick(self.settings.parameters.uri)
        gc.collect()
        gc.freeze()  # as for FastAPI: its pauses are not MLServer's fault
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Input "x" `(n, 64)` -> output "y" `(n,)`."""
        x = NumpyCodec.decode_input(payload.inputs[0])
        y = NumpyCodec.encode_output("y", self._model(x).astype(np.float32))
        return InferenceResponse(model_name=self.name, outputs=[y])
