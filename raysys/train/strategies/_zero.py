"""ZeRO through DeepSpeed: sharded optimizer state, gradients and parameters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from raysys.imports import lazy_import
from raysys.train._module import tensors_of
from raysys.train._optimizers import STATE_KEYS, make_optimizer
from raysys.train.strategies._data_parallel import mean_over_workers
from raysys.train.strategies._strategy import MicroBatch, Strategy, full_tensor

if TYPE_CHECKING:
    from raysys.train._settings import TrainSettings
from raysys.train.strategies._strategy import TensorState

deepspeed = lazy_import("deepspeed")
deepspeed_utils = lazy_import("deepspeed.utils")

# Elements of DeepSpeed's buffers: a share of the model's, within bounds. Its default of 5e8 is
# 2 GB a worker for any model.
_BUCKET_SHARE, _BUCKET_MIN, _BUCKET_MAX = 0.01, 500_000, 50_000_000


class ZeroStrategy(Strategy):
    """DeepSpeed ZeRO (Rajbhandari et al., 2020).

    Stage 1 shards the optimizer's state over the workers, stage 2 the gradients too, stage 3
    the parameters.
    """

    def __init__(
        self, module: torch.nn.Module, settings: TrainSettings, device: str, stage: int
    ) -> None:
        # DeepSpeed chooses its accelerator once, on import: at its first use below.
        os.environ["DS_ACCELERATOR"] = "cuda" if device.startswith("cuda") else "cpu"
        # Without it, DeepSpeed compiles an all-reduce in C++ on first use, for inference only.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super().__init__(settings, device)
        self._stage = stage
        self.data_shard = (dist.get_rank(), dist.get_world_size())
        optimizer = make_optimizer(module.named_parameters(), settings)
        size = sum(parameter.numel() for parameter in module.parameters())
        bucket = int(min(_BUCKET_MAX, max(_BUCKET_MIN, _BUCKET_SHARE * size)))
        self.engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=self._config(bucket), dist_init_required=False
        )
        if stage == 3 and not self.offloads:
            # DeepSpeed keeps float32 masters beside 16-bit parameters. Ours have 32: one copy.
            wrapper = self.engine.optimizer
            parts = wrapper.fp16_partitioned_groups_flat, wrapper.fp32_partitioned_groups_flat
            for low, master in zip(*parts, strict=True):
                master.data = low.data
        self.module = self.engine
        self.inner = self.engine.module

    def _config(self, bucket: int) -> dict[str, Any]:
        settings = self.settings
        zero: dict[str, Any] = {
            "stage": self._stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket,
        }  # fmt: skip
        if self._stage == 3:
            zero |= {
                "stage3_prefetch_bucket_size": bucket,
                "stage3_max_live_parameters": 2 * bucket,
                "stage3_max_reuse_distance": 2 * bucket,
                "sub_group_size": 2 * bucket,
            }
        if self.offloads:
            zero["offload_optimizer"] = {"device": "cpu"}
            if self._stage == 3:
                zero["offload_param"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,  # unused: batches are weighted
            "gradient_accumulation_steps": settings.gradient_accumulation_steps,
            # Its default of 1 would differ from the other strategies.
            "gradient_clipping": settings.max_grad_norm or 0.0,
            "zero_optimization": zero,
            # The same optimizers as elsewhere: DeepSpeed's own Adam is compiled on first use.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    def step(self, micro: Sequence[MicroBatch], learning_rate: float) -> float:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        total = torch.zeros((), device=self.device)
        result = math.nan
        for at, part in enumerate(micro):
            loss = self.forward(part)
            total += loss.detach()
            if at == len(micro) - 1:
                # Waits at once: DeepSpeed's own collectives must not come between.
                result = float(mean_over_workers(total)())
            # DeepSpeed divides by the number of micro-batches; the weights did already.
            self.engine.backward(loss * len(micro))
            if at == len(micro) - 1:
                self.grad_norm = None  # available only after the step
                self.check_finite(result)
            self.engine.step()
        if self.settings.max_grad_norm or self.settings.max_grad_norm_ratio:
            self.grad_norm = float(self.engine.get_global_grad_norm())
            self.check_finite(result)
        return result

    def gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        return deepspeed_utils.safe_get_full_grad(parameter)

    def _tensor_state(self, tensor: torch.Tensor) -> TensorState:
        if not (isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad):
            return {"value": self._full(tensor)}
        state = {"value": deepspeed_utils.safe_get_full_fp32_param(tensor)}
        for key in STATE_KEYS[self.settings.optimizer]:
            value = deepspeed_utils.safe_get_full_optimizer_state(tensor, key)
            if value is not None:
                state[key] = value.view(state["value"].shape)
        return {key: value.detach().cpu() for key, value in state.items()}

    def load_tensor_states(self, read: Callable[[str], TensorState], steps: int) -> None:
        started = False
        for name, tensor in tensors_of(self.inner).items():
            state = {key: value.to(self.device) for key, value in read(name).items()}
            value = state["value"]
            if self._stage == 3 and isinstance(tensor, torch.nn.Parameter):
                with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0):
                    tensor.data.copy_(value)
            else:
                tensor.data.copy_(value)
            if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                if len(state) > 1 and not started:
                    self._start_states(steps, [key for key in state if key != "value"])
                    started = True
                for key, part in state.items():
                    self._set(tensor, part, None if key == "value" else key)

    def _set(self, parameter: torch.Tensor, value: torch.Tensor, key: str | None) -> None:
        """Write this worker's part of a parameter in the optimizer, or of its state."""
        if self._stage < 3:
            parameter.set_full_hp_param(value, key)
            return
        # Parts have one size; the last is padded.
        size = parameter.ds_tensor.numel()
        flat = torch.zeros(size * self.data_shard[1], dtype=value.dtype, device=value.device)
        flat[: value.numel()] = value.flatten()
        mine = flat[self.data_shard[0] * size :][:size]
        if key is None:
            deepspeed_utils.safe_set_local_fp32_param(parameter, mine)
        else:
            deepspeed_utils.safe_set_local_optimizer_state(parameter, mine, key)

    def _full(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._stage < 3 or not isinstance(tensor, torch.nn.Parameter):
            return full_tensor(tensor)
        with deepspeed.zero.GatheredParameters([tensor]):
            return full_tensor(tensor).clone()

    def _start_states(self, steps: int, keys: Sequence[str]) -> None:
        """Give each flat part the empty state that a first step makes."""
        wrapper = self.engine.optimizer
        flats = (
            wrapper.fp32_partitioned_groups_flat
            if self._stage == 3
            else wrapper.single_partition_of_fp32_groups
        )
        for flat in flats:
            zeros = {key: torch.zeros_like(flat) for key in keys}
            wrapper.optimizer.state[flat] = {"step": torch.tensor(float(steps)), **zeros}
        if self._stage < 3:
            # As after a first step, each parameter is linked to its part of the state.
            wrapper._lazy_init_hp_params_optimizer_state()
