"""Settings of a training run, as plain values."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from raysys.settings import Settings

StrategyName = Literal["ddp", "fsdp", "zero1", "zero2", "zero3", "pipeline"]
# What is offloaded from GPUs to the host's memory is exchanged by gloo.
GPU_BACKEND = "cpu:gloo,cuda:nccl"
OptimizerName = Literal["adamw", "sgd", "lars", "lamb"]
# Settings that decide where and how fast a run trains: a resumed run may have other values.
_EXECUTION = {
    "strategy", "num_workers", "min_workers", "num_stages", "cpu_offload",
    "gradient_accumulation_steps", "precision", "activation_checkpointing", "gradient_compression",
    "compile", "prefetch_batches", "threads_per_worker", "checkpoint_steps", "max_failures",
    "memory_limit_bytes", "deterministic",
}  # fmt: skip


class TrainSettings(Settings):
    """Settings of a training run.

    The learning rate warms up linearly and decays along a cosine (Loshchilov & Hutter, "SGDR",
    2017). The optimizers are AdamW (Loshchilov & Hutter, 2019), SGD with momentum, and for large
    batches LARS (You et al., 2017) and LAMB (You et al., 2020).
    """

    strategy: StrategyName = "ddp"
    num_workers: int = Field(2, ge=1)
    min_workers: int | None = Field(None, ge=1, description="train on as few while no more fit")
    num_stages: int = Field(
        2, ge=2, description="pipeline stages; num_workers / num_stages pipelines run in parallel"
    )
    cpu_offload: bool = Field(
        False,
        description="on GPUs: optimizer state (fsdp, zero3: parameters too) in the host's memory",
    )

    epochs: int = Field(6, ge=1)
    max_steps: int | None = Field(None, ge=1, description="end the schedule after fewer steps")
    batch_size: int = Field(512, ge=1, description="examples per step, over all workers")
    gradient_accumulation_steps: int = Field(1, ge=1, description="a worker's micro-batches a step")

    optimizer: OptimizerName = "adamw"
    learning_rate: float = Field(4e-3, gt=0)
    base_batch_size: int | None = Field(
        None, ge=1, description="batch size of learning_rate, which is scaled to batch_size"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="for sgd and lars")
    weight_decay: float = Field(1e-2, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    max_grad_norm: float | None = Field(None, gt=0, description="clip the gradient's 2-norm")
    max_grad_norm_ratio: float | None = Field(
        None, gt=1, description="stop at a gradient norm this many times the recent median"
    )

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on GPUs that support it, else fp32"
    )
    activation_checkpointing: bool = Field(False, description="recompute activations in backward")
    gradient_compression: Literal["none", "fp16", "powersgd"] = Field(
        "none", description="between workers, under ddp"
    )
    compile: bool = Field(False, description="torch.compile the module")
    prefetch_batches: int = Field(0, ge=0, description="batches prepared ahead in a thread")
    threads_per_worker: int | None = Field(None, ge=1, description="default: its logical CPUs")

    checkpoint_steps: int | None = Field(
        None, ge=1, description="steps between checkpoints; an epoch by default"
    )
    max_failures: int = Field(3, ge=0, description="worker failures before the run gives up")
    memory_limit_bytes: int | None = Field(
        None, ge=1, description="memory of a worker, above which the run is refused"
    )
    deterministic: bool = Field(False, description="refuse nondeterministic operations")
    evaluate: bool = Field(True, description="call the task's evaluate after each epoch")
    seed: int = 0

    @model_validator(mode="after")
    def _agree(self) -> TrainSettings:
        pipeline = self.strategy == "pipeline"
        if pipeline and self.num_workers % self.num_stages:
            raise ValueError(
                f"num_workers={self.num_workers} does not divide into pipelines of "
                f"{self.num_stages} stages: give a multiple of num_stages={self.num_stages}"
            )
        micro_batches = self.gradient_accumulation_steps * (self.num_workers // self.num_stages)
        if pipeline and self.batch_size % micro_batches:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into the equal micro-batches of a "
                "pipeline: give a multiple of gradient_accumulation_steps x num_workers / "
                f"num_stages = {micro_batches}"
            )
        if self.min_workers and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is more than num_workers={self.num_workers}: "
                "give fewer"
            )
        if self.min_workers and pipeline:
            raise ValueError("a pipeline has a fixed number of workers: leave min_workers out")
        if self.gradient_compression != "none" and self.strategy != "ddp":
            raise ValueError(
                f"gradient_compression={self.gradient_compression!r} works under ddp, not "
                f"{self.strategy}: leave it out, or use ddp"
            )
        if self.optimizer in ("lars", "lamb") and self.strategy.startswith("zero"):
            raise ValueError(
                f"{self.optimizer} needs each layer's norm, which ZeRO's flat shards do not have: "
                "use ddp, fsdp or pipeline"
            )
        if self.cpu_offload and self.strategy in ("ddp", "pipeline"):
            raise ValueError(
                f"cpu_offload works under fsdp or ZeRO, not {self.strategy}: leave it out"
            )
        if self.batch_size < self.num_workers:
            raise ValueError(
                f"batch_size={self.batch_size} is less than num_workers={self.num_workers}: "
                "give a larger batch, or fewer workers"
            )
        return self

    @property
    def identity_facts(self) -> dict[str, object]:
        """Settings that decide which steps are taken: a run is resumed with equal ones only."""
        return self.model_dump(mode="json", exclude=_EXECUTION)
