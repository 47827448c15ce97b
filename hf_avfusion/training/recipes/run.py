"""The `Run` class: the parsed command line of a training script."""

from dataclasses import dataclass
from typing import Any

from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """The parsed command line of a training script.

    recipe: the values to train with, including those of the flags.
    name, published: the name of the recipe and its own values; None without `--recipe`.
    checkpoint: folder or Hub id of the model to start from; None for a new model.
    flags: the flags on the command line and their values.
    devices: number of processes, or of devices of one process, that share a batch.
    """

    recipe: Recipe
    name: str | None
    published: Recipe | None
    checkpoint: str | None
    flags: dict[str, Any]
    devices: int
