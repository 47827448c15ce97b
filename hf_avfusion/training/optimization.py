"""The optimisers and the learning-rate schedule that MBT and AV-MAE were published with, as plain PyTorch objects.

Sources: the released configurations of scenic's `projects/mbt` and `projects/av_mae`: momentum SGD for MBT and for fine-tuning
AV-MAE, gradients clipped to global norm 1 before it; Adam with decoupled decay, without clipping, for pretraining AV-MAE; linear
warm-up times a cosine for all. What differs here: MBT's original clips each device's gradient *before* averaging over devices,
`transformers.Trainer` clips the averaged one (`max_grad_norm`, 1.0 by default), as AV-MAE does. On one device the two are the
same up to the 1e-6 that PyTorch adds to the norm.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def momentum_sgd(parameters: Iterable[Any], learning_rate: float, momentum: float = 0.9) -> torch.optim.SGD:
    """v <- momentum * v + g;  p <- p - learning_rate * v: no Nesterov, no dampening, no weight decay.

    Args:
        parameters: tensors or parameter groups; a group may carry its own `lr`.
        learning_rate: base rate; the released AudioSet recipe has 0.5 for batches of 64.
        momentum: in [0, 1).
    """
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, dampening=0.0, weight_decay=0.0, nesterov=False
    )


class AdamDecoupled(torch.optim.Adam):
    """Adam whose weights are multiplied by (1 - lr * weight_decay) after the update, as AV-MAE was pretrained.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps),  t = 1, 2, ...
        p <- (1 - lr * weight_decay) * p

    AdamW shrinks the weights before the update instead. With the published values (3e-4, 0.05) the two differ by 1.5e-5 of each
    update; the order is kept because it is the published one. Which weights decay is said by the groups: kernels alone as
    published (`layerwise_decay.kernel_names`).

    Args:
        params: tensors or parameter groups; a group may carry its own `lr` and `weight_decay`.
        lr, betas, eps: of Adam; published are 3e-4 for batches of 512, (0.9, 0.95) and 1e-8.
        weight_decay: published is 0.05. Every parameter of a group decays, one without gradient too, as in the original, where
            such a gradient is zero.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; errors and `closure` as of `torch.optim.Adam`."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0  # torch's own would be added to the gradient
        try:
            loss = super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
        for group in self.param_groups:
            if group["weight_decay"]:
                torch._foreach_mul_(group["params"], 1.0 - float(group["lr"]) * group["weight_decay"])
        return loss


def warmup_cosine_factor(step: int, warmup_steps: float, total_steps: float) -> float:
    """The published learning rate divided by the base rate, for the update numbered `step` (the first is 0).

    factor(k) = min(1, k / W) * 0.5 * (1 + cos(pi * frac(max(0, k - W) / (N - floor(W))))), k = 0 .. N - 1

    The factor of update 0 is 0 when there is a warm-up. `frac` and `floor` are the original's: at k = N, one past the last
    update, the factor is back at 1, if W is whole.

    Args:
        step: k.
        warmup_steps: W, not rounded: the recipe has 2.5 epochs, which is 792.5 updates at 317 updates an epoch.
        total_steps: N.

    Raises:
        ValueError: negative `step` or `warmup_steps`, or a warm-up that leaves nothing to decay.
    """
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"step and warmup_steps must not be negative, got {step} and {warmup_steps}.")
    if warmup_steps >= total_steps:
        raise ValueError(
            f"The warm-up of {warmup_steps:g} updates does not end within the {total_steps:g} updates of the run. "
            "Train longer or shorten it (warmup_epochs or warmup_steps)."
        )
    warmup = min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
    # Only the length of the cosine is rounded (scenic `train_lib/lr_schedules.py`), not where it begins.
    progress = math.fmod(max(0.0, step - warmup_steps) / (total_steps - math.floor(warmup_steps)), 1.0)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine_schedule(optimizer: torch.optim.Optimizer, warmup_steps: float, total_steps: float) -> LambdaLR:
    """A scheduler that sets every group's rate to its base rate times `warmup_cosine_factor`; errors as there, at
    once.
    """
    warmup_cosine_factor(0, warmup_steps, total_steps)
    return LambdaLR(optimizer, partial(warmup_cosine_factor, warmup_steps=warmup_steps, total_steps=total_steps))
