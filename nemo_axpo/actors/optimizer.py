"""Megatron's optimizer around Adam, also where neither Transformer Engine nor apex is installed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nemo_axpo.actors import cpu_shim

cpu_shim.install()  # before megatron is imported below

# isort: split
import megatron.core.optimizer as megatron_optimizer
import torch
from megatron.core.optimizer import OptimizerConfig, distrib_optimizer, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from torch import Tensor

from nemo_axpo.actors.memory import MemorySettings

_PLAIN = MemorySettings()
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdamSettings:
    """Adam with decoupled weight decay (AdamW)."""

    lr: float
    """Learning rate where a step does not give its own."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    """Norms and biases are exempt, as in megatron."""
    clip_grad: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""


class TorchAdamW(torch.optim.Optimizer):
    """AdamW whose state is laid out as FusedAdam's: ``exp_avg`` and ``exp_avg_sq`` per parameter, ``step`` per group.

    Megatron's distributed optimizer expects this layout when it reshards a checkpoint; torch's own keeps a step per
    parameter there.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        adam_w_mode: bool = True,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._step_group(params, group)

    def _step_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        grads = [param.grad for param in params]
        means, squares = ([self._moment(param, name) for param in params] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        correction1, correction2 = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_div_(denominators, correction2**0.5)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, means, denominators, value=-lr / correction1)

    def _moment(self, param: Tensor, name: str) -> Tensor:
        if name not in self.state[param]:
            self.state[param][name] = torch.zeros_like(param)
        return self.state[param][name]


def build_optimizer(
    model: Any, *, settings: AdamSettings, dtype: torch.dtype, memory: MemorySettings = _PLAIN
) -> Any:
    """Megatron's optimizer of a model wrapped in megatron's DDP; in bf16 it keeps float32 master weights.

    Offloaded to the host it is megatron's ``HybridDeviceOptimizer``: not yet run on a GPU.
    """
    _use_torch_adamw()
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=0.0,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_eps=settings.eps,
        weight_decay=settings.weight_decay,
        clip_grad=settings.clip_grad,
        bf16=dtype is torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=memory.distributed_optimizer,
        # Megatron's offload takes gradients where its precision-aware path leaves them.
        use_precision_aware_optimizer=memory.offload_optimizer,
        optimizer_cpu_offload=memory.offload_optimizer,
        optimizer_offload_fraction=float(memory.offload_optimizer),
        overlap_cpu_optimizer_d2h_h2d=memory.offload_optimizer,
    )
    (optimizer,) = get_megatron_optimizer(config, [model]).chained_optimizers  # a second one would be for experts
    return optimizer


def step(optimizer: Any, *, settings: AdamSettings, lr: float) -> float:
    """One optimizer step at ``lr``; returns the gradient norm before clipping.

    FloatingPointError where the norm is not finite: the weights are then unchanged.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = settings.weight_decay * group.get("wd_mult", 1.0)
    optimizer.prepare_grads()
    grad_norm = float(optimizer.get_grad_norm())
    if not grad_norm < float("inf"):
        raise FloatingPointError(
            f"the gradient norm must be finite; got {grad_norm}: lower the learning rate, or look for a bad sample"
        )
    if settings.clip_grad > 0:
        is_decoupled = optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
        clip_grad_by_total_norm_fp32(optimizer.get_parameters(), settings.clip_grad, grad_norm, is_decoupled)
    optimizer.step_with_ready_grads()
    return grad_norm


def _use_torch_adamw() -> None:
    """Gives megatron our Adam where it fell back to torch's for want of Transformer Engine and apex."""
    if not megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        logger.info("Adam: %s of %s", megatron_optimizer.Adam.__name__, megatron_optimizer.Adam.__module__)
        return
    logger.info("Transformer Engine and apex are not installed: Adam runs on plain torch")
    megatron_optimizer.Adam = distrib_optimizer.Adam = TorchAdamW
    megatron_optimizer.USING_PYTORCH_OPTIMIZER = False
    distrib_optimizer.HAVE_APEX_OR_TE = True
