"""What the tests call equal: the same bits, or the same up to rounding.

Bits are promised where values are copied (weights saved, loaded, converted), where the same arithmetic runs on the same
tensors in one process, and where a run is resumed in the layout in which it was stopped. Everywhere else only rounding is
promised: kernels choose their order of arithmetic by instruction set, alignment and shape, so another process, a file mapped
into memory, a batch of another size or another way of sharding may differ in the last bits.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch

# Of the largest value. A file mapped into memory moved the outputs of tests/travellers.py by up to 3.1 on one AMD EPYC; other
# machines may differ by more. A weight changed by 1 % moved at least one of their outputs by 1,500 or more.
ULPS = 64
TRAINING = {"rtol": 1e-4, "atol": 1e-6}  # weights after some tens of steps, whose rounding errors add up

Tensors = torch.Tensor | Mapping[str, torch.Tensor]


def _named(tensors: Tensors) -> dict[str, torch.Tensor]:
    return {"": tensors} if isinstance(tensors, torch.Tensor) else dict(tensors)


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    """The same names, and under each the same values to the bit."""
    found, expected = _named(found), _named(expected)
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


def assert_rounding(found: Tensors, expected: Tensors) -> None:
    """The same names; floats within `ULPS` units in the last place of the largest expected value, all else equal."""
    found, expected = _named(found), _named(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.is_floating_point() and value.numel():
            atol = ULPS * torch.finfo(value.dtype).eps * value.abs().max().item()
            torch.testing.assert_close(
                found[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
        else:
            assert torch.equal(found[name], value), name


@contextmanager
def changed_weight(weight: torch.Tensor, place: int) -> Iterator[None]:
    """One value of a weight is 1 % larger inside the block."""
    values = weight.detach().view(-1)
    before = values[place].clone()
    values[place] *= 1.01
    try:
        yield
    finally:
        values[place] = before


def assert_outputs_of(model: torch.nn.Module, found: Tensors, run: Callable[[], Tensors]) -> None:
    """`found` is what `run` computes with the model, up to rounding, and would not be if one weight were 1 % off.

    Tried with the first and the last matrix that take part, each at the value to which the outputs are most sensitive.
    """
    with torch.enable_grad():
        outputs = [value for value in _named(run()).values() if value.is_floating_point()]
        generator = torch.Generator().manual_seed(0)
        total = sum((value * torch.randn(value.shape, generator=generator)).sum() for value in outputs)
        matrices = [weight for weight in model.parameters() if weight.dim() == 2 and weight.requires_grad]
        gradients = torch.autograd.grad(total, matrices, allow_unused=True)
    effects = [(w, (w * g).detach().abs()) for w, g in zip(matrices, gradients) if g is not None]
    # Gradients of weights that change nothing, such as queries for a single key, are rounding errors.
    noise = 1e-4 * max(effect.max() for _, effect in effects)
    taking_part = [(weight, effect) for weight, effect in effects if effect.max() > noise]
    with torch.no_grad():
        assert_rounding(found, run())
        for weight, effect in (taking_part[0], taking_part[-1]):
            with changed_weight(weight, int(effect.argmax())), pytest.raises(AssertionError):
                assert_rounding(found, run())


def assert_trained_alike(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Weights of two runs that train alike but add in another order; a weight that is 1 % off would fail."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **TRAINING, msg=lambda text, name=name: f"{name}: {text}")
        if value.abs().max() > 1e-3:
            changed = value.clone()
            with changed_weight(changed, int(changed.abs().argmax())), pytest.raises(AssertionError):
                torch.testing.assert_close(found[name], changed, **TRAINING)
