"""A graph over a stored model, referenced by its import path."""

import functools
from pathlib import Path

import numpy as np

from raysys.models import ModelStore, StoredModel
from raysys.serve import Array, Graph, LazyModel
from raysys.storage import Storage
from raysys.tracking import open_run


class Doubler:
    def __init__(self, folder: Path) -> None:
        self.factor = float((folder / "factor").read_text())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.factor * x


def graph(storage: Storage, model: StoredModel) -> Graph:
    nodes = {"y": LazyModel(Doubler, storage, model)}
    return Graph(inputs={"x": Array("float32", (2,))}, nodes=nodes, output="y")


def write(factor: float, folder: Path) -> None:
    (folder / "factor").write_text(str(factor))


def store(storage: Storage, factor: float) -> StoredModel:
    run = open_run(storage, "served", f"times {factor}", settings={"factor": factor})
    write_model = functools.partial(write, factor)
    path = f"models/times-{factor}"
    models = ModelStore(storage)
    model = models.register("times", write_model, manifest={}, run=run, path=path)
    models.promote(model)
    run.end("FINISHED", {})
    return model
