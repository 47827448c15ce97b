"""Divides a recipe's batch (the clips of one update) among devices and accumulated batches; scales its learning rate."""

from __future__ import annotations

from .recipe import Recipe


def share_batch(
    batch_size: int, devices: int, per_device: int | None = None, accumulation: int | None = None
) -> tuple[int, int]:
    """Returns (clips per device and forward pass, accumulated batches); their product with `devices` is `batch_size`.

    Args:
        batch_size: clips per update.
        devices: number of processes, or of devices of one process, that share a batch.
        per_device, accumulation: fixed values; if both are None, nothing is accumulated.

    Raises:
        ValueError: no exact division exists; the message lists values that work.
    """
    for name, value in (("batch size", batch_size), ("per_device_train_batch_size", per_device)):
        if value is not None and value < 1:
            raise ValueError(f"The {name} must be at least 1, got {value}.")
    if accumulation is not None and accumulation < 1:
        raise ValueError(f"gradient_accumulation_steps must be at least 1, got {accumulation}.")
    where = f"{devices} device{'s' if devices > 1 else ''}"
    if batch_size % devices:
        raise ValueError(
            f"A batch of {batch_size} cannot be divided equally among {where}: use a number of devices that divides it,"
            f" or give --global_batch_size {batch_size // devices * devices or devices}."
        )
    share = batch_size // devices
    given = " x ".join(
        f"{name} {value}"
        for name, value in (("per_device_train_batch_size", per_device), ("gradient_accumulation_steps", accumulation))
        if value is not None
    )
    part = (per_device or 1) * (accumulation or 1)
    if share % part or (per_device and accumulation and share != part):
        fitting = ", ".join(str(number) for number in range(1, share + 1) if share % number == 0)
        raise ValueError(
            f"{given} on {where} does not give a batch of {batch_size}: each device has {share} clips per update, so"
            f" their product must be {share} (if you give only one: {fitting}). For another batch give --global_batch_size."
        )
    if per_device is not None:
        return per_device, share // per_device
    return share // (accumulation or 1), accumulation or 1


def learning_rate_for(recipe: Recipe, name: str, batch_size: int) -> float:
    """The recipe's learning rate for another batch size, by the source's rule.

    Raises:
        ValueError: the source has no rule; the message gives the proportional rate.
    """
    rate = recipe.training["learning_rate"]
    if batch_size == recipe.batch_size:
        return rate
    scaled = rate * batch_size / recipe.batch_size
    if recipe.learning_rate_rule == "linear":
        return scaled
    raise ValueError(
        f"{name} trains with batches of {recipe.batch_size} at a learning rate of {rate:g}, and its source has no rule for"
        f" others. For batches of {batch_size} also give --learning_rate ({scaled:g} would be proportional), or keep the batch"
        " size and make --per_device_train_batch_size smaller: the rest is accumulated."
    )
