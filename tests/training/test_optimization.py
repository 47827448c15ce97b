"""The published schedule against recorded values, and the published SGD by hand."""

import math

import pytest
import torch

from hf_avfusion.training.optimization import momentum_sgd, warmup_cosine_factor, warmup_cosine_schedule

# Learning rates printed by the original's scheduler for AudioSet-mini: 318 updates an epoch, 2.5 epochs of warm-up,
# 50 epochs, base 0.5.
PUBLISHED = {
    0: 0.0,
    1: 6.2893e-4,
    397: 0.249686,
    795: 0.5,
    1000: 0.499773,
    5000: 0.410331,
    10000: 0.165758,
    15000: 4.3670e-3,
    15899: 0.0,
}


@pytest.mark.parametrize(("step", "rate"), PUBLISHED.items())
def test_published_learning_rates(step, rate):
    value = 0.5 * warmup_cosine_factor(step, 2.5 * 318, 50 * 318)
    assert value == pytest.approx(rate, rel=2e-5, abs=1e-7)


def test_one_past_the_end_wraps_as_the_original_does():
    assert warmup_cosine_factor(15900, 795, 15900) == 1.0


def test_warmup_is_not_rounded_to_whole_steps():
    # 317 updates an epoch: W = 792.5, so step 792 is still below the peak and 793 is already past it.
    total = 50 * 317
    assert warmup_cosine_factor(792, 792.5, total) == pytest.approx(792 / 792.5)
    assert warmup_cosine_factor(793, 792.5, total) == pytest.approx(
        0.5 * (1 + math.cos(math.pi * 0.5 / (total - 792.5)))
    )


def test_scheduler_drives_every_group():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = momentum_sgd([{"params": [weights[0]]}, {"params": [weights[1]], "lr": 0.1}], learning_rate=0.5)
    scheduler = warmup_cosine_schedule(optimizer, 2.5, 10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = [warmup_cosine_factor(step, 2.5, 10) for step in range(10)]
    assert rates == [pytest.approx([0.5 * factor, 0.1 * factor]) for factor in factors]


def test_momentum_sgd_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = momentum_sgd([parameter], learning_rate=0.1)
    # v1 = g1, p1 = p0 - 0.1 v1; v2 = 0.9 v1 + g2, p2 = p1 - 0.1 v2; weights take no part (no decay).
    for gradient, expected in (([1.0, 2.0], [0.9, -2.2]), ([3.0, -1.0], [0.9 - 0.39, -2.2 - 0.08])):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), torch.tensor(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 10, 10), "does not end within"), ((-1, 1, 10), "negative"), ((0, -1, 10), "negative")],
)
def test_impossible_schedules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine_factor(*arguments)
