"""What a driver does on a cluster that has no workers yet: `python -m ..._driver gpu|train`."""

import sys

from raysys import cluster


def gpu() -> None:
    """A task that asks for a GPU."""
    import ray

    @ray.remote(num_gpus=1)
    def ids() -> list[str]:
        return ray.get_runtime_context().get_accelerator_ids()["GPU"]

    assert len(ray.get(ids.remote())) == 1


def training() -> None:
    """Two workers of data-parallel training, on more CPUs than one node has."""
    from benchmarks.train.tasks import LanguageTask, text
    from raysys import train
    from raysys.data import Table
    from raysys.storage import Storage

    settings = train.TrainSettings(
        num_workers=2, threads_per_worker=2, epochs=1, max_steps=40, batch_size=64
    )
    tables = {"text": Table.load(lambda: text())}
    fitted = train.fit("grown", LanguageTask(layers=2), tables, settings, Storage())
    assert fitted.history


if __name__ == "__main__":
    cluster.connect()
    {"gpu": gpu, "train": training}[sys.argv[1]]()
