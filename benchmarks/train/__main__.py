"""`python -m benchmarks.train`: training, and what it would be written with by hand."""

from benchmarks._figures import run
from benchmarks.train import boosting, equality, kills, memory, pipeline, speed

if __name__ == "__main__":
    run(
        __doc__,
        speed.measure,
        equality.measure,
        memory.measure,
        pipeline.measure,
        boosting.measure,
        kills.measure,
    )
