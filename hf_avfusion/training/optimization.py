"""The published optimisers and learning rate schedule of MBT and AV-MAE, and learning rates by name, as plain PyTorch objects.

Sources: the released configurations of scenic's `projects/mbt` and `projects/av_mae`. MBT, and AV-MAE in fine-tuning, use momentum
SGD on gradients clipped to global norm 1. AV-MAE in pretraining uses Adam with decoupled weight decay and no clipping. All use a
linear warm-up times a cosine.

One thing differs: the original MBT clips each device's gradient *before* averaging over devices, while `transformers.Trainer` clips
the averaged gradient (`max_grad_norm`, default 1.0), as AV-MAE does. On one device both are the same up to the 1e-6 that PyTorch
adds to the norm.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def momentum_sgd(parameters: Iterable[Any], learning_rate: float, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with momentum and without Nesterov, dampening or weight decay: v <- momentum * v + g;  p <- p - learning_rate * v.

    Args:
        parameters: tensors or parameter groups; a group may have its own `lr`.
        learning_rate: base rate; the released AudioSet recipe has 0.5 for batches of 64.
        momentum: in [0, 1).
    """
    return torch.optim.SGD(
        parameters, lr=learning_rate, momentum=momentum, dampening=0.0, weight_decay=0.0, nesterov=False
    )


class AdamDecoupled(torch.optim.Adam):
    """Adam that multiplies the weights by (1 - lr * weight_decay) after the update, the optimiser of AV-MAE pretraining.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        p <- p - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps),  t = 1, 2, ...
        p <- (1 - lr * weight_decay) * p

    AdamW shrinks the weights before the update instead. With the published values (3e-4, 0.05) the two differ by 1.5e-5 of each
    update; this class keeps the published order. The parameter groups decide which weights decay: as published, only kernels
    (`layerwise_decay.kernel_names`).

    Args:
        params: tensors or parameter groups; a group may have its own `lr` and `weight_decay`.
        lr, betas, eps: parameters of Adam; the published values are 3e-4 for batches of 512, (0.9, 0.95) and 1e-8.
        weight_decay: the published value is 0.05. All parameters of a group decay, including those without a gradient. The
            original does the same, since it has a zero gradient for these.
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
        """Makes one update; `closure` and errors are those of `torch.optim.Adam`."""
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            group["weight_decay"] = 0.0  # torch's Adam would add it to the gradient
        try:
            loss = super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays):
                group["weight_decay"] = decay
        for group in self.param_groups:
            if group["weight_decay"]:
                torch._foreach_mul_(group["params"], 1.0 - float(group["lr"]) * group["weight_decay"])
        return loss


def groups_by_rate(
    parameters: Mapping[str, torch.Tensor],
    rates: Mapping[str, float],
    learning_rate: float,
    decaying: Collection[str] = (),
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups for any PyTorch optimiser, one for each learning rate and weight decay.

    Args:
        parameters: trained parameters by name.
        rates: regular expression -> rate. The first that is found in a name counts.
        learning_rate: of the parameters in whose name none is found. Their group comes first, as the Trainer logs its rate.
        decaying: names of the parameters with weight decay.

    Raises:
        ValueError: an expression is found in no name, or only in names for which an earlier one counts.
    """
    groups: dict[tuple[str | None, bool], list[torch.Tensor]] = {}
    for name, parameter in parameters.items():
        pattern = next((each for each in rates if re.search(each, name)), None)
        groups.setdefault((pattern, name in decaying), []).append(parameter)
    found = {pattern for pattern, _ in groups}
    if idle := [pattern for pattern in rates if pattern not in found]:
        names = list(parameters)
        raise ValueError(
            f"learning_rates: {idle[0]!r} sets the rate of no trained parameter. The {len(names)} trained parameters are "
            f"{', '.join(names[:3])}, ..., {', '.join(names[-3:])}."
        )
    order = [None, *rates]
    ordered = sorted(groups.items(), key=lambda entry: (order.index(entry[0][0]), not entry[0][1]))
    return [
        {
            "params": members,
            "lr": learning_rate if pattern is None else rates[pattern],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (pattern, decays), members in ordered
    ]


def warmup_cosine_factor(step: int, warmup_steps: float, total_steps: float) -> float:
    """The published learning rate divided by the base rate, for update number `step` (the first is 0).

    factor(k) = min(1, k / W) * 0.5 * (1 + cos(pi * frac(max(0, k - W) / (N - floor(W))))), k = 0 .. N - 1

    With a warm-up, the factor of update 0 is 0. `frac` and `floor` are those of the original: at k = N, one step past the last
    update, the factor is 1 again if W is an integer.

    Args:
        step: k.
        warmup_steps: W, which is not rounded: the recipe has 2.5 epochs, which is 792.5 updates at 317 updates per epoch.
        total_steps: N.

    Raises:
        ValueError: `step` or `warmup_steps` is negative, or the warm-up does not end within the run.
    """
    if step < 0 or warmup_steps < 0:
        raise ValueError(f"step and warmup_steps must not be negative, got {step} and {warmup_steps}.")
    if warmup_steps >= total_steps:
        raise ValueError(
            f"The warm-up of {warmup_steps:g} updates does not end within the {total_steps:g} updates of the run. "
            "Train longer or shorten it (warmup_epochs or warmup_steps)."
        )
    warmup = min(1.0, step / warmup_steps) if warmup_steps > 0 else 1.0
    # Only the length of the cosine is rounded, not its start (scenic `train_lib/lr_schedules.py`).
    progress = math.fmod(max(0.0, step - warmup_steps) / (total_steps - math.floor(warmup_steps)), 1.0)
    return warmup * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_cosine_schedule(optimizer: torch.optim.Optimizer, warmup_steps: float, total_steps: float) -> LambdaLR:
    """A scheduler that sets every group's rate to its base rate times `warmup_cosine_factor`, and raises its errors early."""
    warmup_cosine_factor(0, warmup_steps, total_steps)
    return LambdaLR(optimizer, partial(warmup_cosine_factor, warmup_steps=warmup_steps, total_steps=total_steps))
