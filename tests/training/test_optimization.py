"""The published schedule against recorded values, and the published optimisers against updates computed by hand."""

import math

import pytest
import torch

from hf_avfusion.training.optimization import (
    AdamDecoupled,
    momentum_sgd,
    warmup_cosine_factor,
    warmup_cosine_schedule,
)

# Learning rates printed by the original's scheduler for AudioSet-mini: 318 updates per epoch, 2.5 epochs of warm-up,
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


def test_factor_wraps_after_the_last_update_as_in_the_original():
    assert warmup_cosine_factor(15900, 795, 15900) == 1.0


def test_warmup_is_not_rounded_to_whole_steps():
    # 317 updates per epoch: W = 792.5, so step 792 is before the peak and 793 is after it.
    total = 50 * 317
    assert warmup_cosine_factor(792, 792.5, total) == pytest.approx(792 / 792.5)
    assert warmup_cosine_factor(793, 792.5, total) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5 / (total - 792))))


def test_length_of_the_cosine_is_rounded():
    """Values of the original's formula with int(W) in the denominator: 3 updates per epoch, 2.5 epochs of warm-up, 10 epochs."""
    expected = [0.0, 2 / 15, 14 / 15, 0.9988344, 0.5680833, 0.0560574]
    for step, factor in zip((0, 1, 7, 8, 18, 27), expected, strict=True):
        assert warmup_cosine_factor(step, 7.5, 30) == pytest.approx(factor, abs=1e-6)


def test_scheduler_scales_every_group():
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
    # v1 = g1, p1 = p0 - 0.1 v1; v2 = 0.9 v1 + g2, p2 = p1 - 0.1 v2; there is no weight decay.
    for gradient, expected in (([1.0, 2.0], [0.9, -2.2]), ([3.0, -1.0], [0.9 - 0.39, -2.2 - 0.08])):
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        torch.testing.assert_close(parameter.detach(), torch.tensor(expected))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 10, 10), "does not end within"), ((-1, 1, 10), "negative"), ((0, -1, 10), "negative")],
)
def test_impossible_schedules_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine_factor(*arguments)


def decaying_pair(weight_decay=0.5):
    """A parameter with weight decay and one without, both [1, -2], and their optimiser with learning rate 0.1."""
    values = [torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)) for _ in range(2)]
    groups = [{"params": [values[0]], "weight_decay": weight_decay}, {"params": [values[1]]}]
    return values, AdamDecoupled(groups, lr=0.1)


def test_adam_decoupled_decays_after_the_update():
    values, optimizer = decaying_pair()
    gradient = torch.tensor([3.0, -1.0], dtype=torch.float64)
    for value in values:
        value.grad = gradient.clone()
    optimizer.step()
    # Adam's first update is the sign of the gradient: 1 - 0.1 and -2 + 0.1; the decay multiplies by 1 - 0.1 * 0.5.
    torch.testing.assert_close(values[1].detach(), torch.tensor([0.9, -1.9], dtype=torch.float64))
    torch.testing.assert_close(values[0].detach(), 0.95 * torch.tensor([0.9, -1.9], dtype=torch.float64))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


def test_adam_decoupled_decays_without_a_gradient_but_not_at_rate_0():
    values, optimizer = decaying_pair()
    optimizer.step()
    assert values[0].tolist() == [0.95, -1.9]
    assert values[1].tolist() == [1.0, -2.0]
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert values[0].tolist() == [0.95, -1.9]


def test_adam_decoupled_resumes_from_its_state():
    def run(stop):
        values, optimizer = decaying_pair()
        for step in range(4):
            if step == stop:
                state = optimizer.state_dict()
                fresh, optimizer = decaying_pair(weight_decay=0.0)  # the loaded state restores it
                for new, old in zip(fresh, values):
                    new.data.copy_(old.data)
                optimizer.load_state_dict(state)
                values = fresh
            for number, value in enumerate(values):
                value.grad = torch.tensor([step - 1.5, number + 0.5], dtype=torch.float64)
            optimizer.step()
        return torch.stack([value.detach() for value in values])

    assert torch.equal(run(stop=2), run(stop=None))


def test_adam_decoupled_calls_its_closure_once():
    values, optimizer = decaying_pair()
    calls = []

    def closure():
        calls.append(1)
        for value in values:
            value.grad = torch.ones(2, dtype=torch.float64)
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert len(calls) == 1
