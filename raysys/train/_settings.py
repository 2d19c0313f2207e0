"""How a task is trained, as plain values."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

StrategyName = Literal["ddp", "fsdp", "zero1", "zero2", "zero3", "pipeline"]
OptimizerName = Literal["adamw", "sgd", "lars", "lamb"]
# Nothing else than where and how fast: a run may go on with other values of these.
PLACEMENT = frozenset({
    "strategy", "workers", "min_workers", "stages", "offload", "accumulate", "precision",
    "checkpoint_activations", "compression", "compile", "prefetch", "threads", "checkpoint_steps",
    "max_failures", "memory_bytes", "deterministic",
})  # fmt: skip


class TrainSettings(BaseModel):
    """How a task is trained.

    The learning rate warms up linearly and decays by a cosine (Loshchilov & Hutter, "SGDR",
    2017). The optimizers are AdamW (Loshchilov & Hutter, 2019), SGD with momentum, and for large
    batches LARS (You et al., 2017) and LAMB (You et al., 2020).
    """

    model_config = ConfigDict(extra="forbid")

    strategy: StrategyName = "ddp"
    workers: int = Field(2, ge=1)
    min_workers: int | None = Field(
        None, ge=1, description="start with fewer, down to this, if no more fit; grow later"
    )
    stages: int = Field(2, ge=2, description="of a pipeline; workers / stages run in parallel")
    offload: bool = Field(
        False, description="keep optimizer state (fsdp, zero3: parameters too) in the host's memory"
    )

    epochs: int = Field(6, ge=1)
    max_steps: int | None = Field(None, ge=1, description="end earlier, the schedule with it")
    batch_size: int = Field(512, ge=1, description="examples a step, over all workers")
    accumulate: int = Field(1, ge=1, description="micro-batches of a worker's share of a step")

    optimizer: OptimizerName = "adamw"
    learning_rate: float = Field(4e-3, gt=0)
    base_batch_size: int | None = Field(
        None, ge=1, description="the learning rate is for this one and scaled to batch_size"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd and lars")
    weight_decay: float = Field(1e-2, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: float | None = Field(None, gt=0, description="of the whole gradient")
    explosion: float | None = Field(
        None, gt=1, description="stop when the gradient's norm is this many times its median"
    )

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, else fp32"
    )
    checkpoint_activations: bool = Field(
        False, description="recompute layers backward instead of keeping what they gave"
    )
    compression: Literal["none", "fp16", "powersgd"] = Field(
        "none", description="of gradients between workers, under ddp"
    )
    compile: bool = Field(False, description="torch.compile the module")
    prefetch: int = Field(0, ge=0, description="batches made ahead in a thread")
    threads: int | None = Field(None, ge=1, description="of a worker; its logical CPUs by default")

    checkpoint_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; an epoch's by default"
    )
    max_failures: int = Field(3, ge=0, description="worker failures before the run gives up")
    memory_bytes: int | None = Field(
        None, ge=1, description="that a worker may hold; refused above it"
    )
    deterministic: bool = Field(False, description="refuse operations that differ from run to run")
    evaluate: bool = Field(True, description="call the task's evaluate after each epoch")
    seed: int = 0

    @model_validator(mode="after")
    def _agree(self) -> TrainSettings:
        if self.strategy == "pipeline" and self.workers % self.stages:
            raise ValueError(
                f"{self.workers} workers cannot make pipelines of {self.stages} stages: give a "
                f"multiple of stages={self.stages}"
            )
        if self.strategy == "pipeline":
            each = self.accumulate * (self.workers // self.stages)
            if self.batch_size % each:
                raise ValueError(
                    f"batch_size={self.batch_size} cannot be cut into the equal micro-batches of a "
                    f"pipeline: make it a multiple of accumulate x workers / stages = {each}"
                )
        if self.min_workers and self.min_workers > self.workers:
            raise ValueError(
                f"min_workers={self.min_workers} is more than workers={self.workers}: give fewer"
            )
        if self.min_workers and self.strategy == "pipeline":
            raise ValueError("a pipeline has a fixed number of workers: leave min_workers out")
        if self.compression != "none" and self.strategy != "ddp":
            raise ValueError(
                f"compression={self.compression!r} works under ddp, not {self.strategy}: leave it "
                "out, or use ddp"
            )
        if self.optimizer in ("lars", "lamb") and self.strategy.startswith("zero"):
            raise ValueError(
                f"{self.optimizer} needs each layer's norm, which ZeRO's flat shards do not have: "
                "use ddp, fsdp or pipeline"
            )
        if self.offload and self.strategy not in ("fsdp", "zero1", "zero2", "zero3"):
            raise ValueError(f"offload shards on the host under fsdp or ZeRO, not {self.strategy}")
        if self.batch_size < self.workers:
            raise ValueError(
                f"a batch of {self.batch_size} cannot be shared by {self.workers} workers: make it "
                "larger, or use fewer workers"
            )
        return self

    @property
    def trajectory(self) -> dict[str, object]:
        """The settings that decide which steps are taken; a run goes on only with the same."""
        return self.model_dump(mode="json", exclude=set(PLACEMENT))
