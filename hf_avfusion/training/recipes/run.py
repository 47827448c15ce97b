"""What a command line comes to: the recipe to train by, and what was given to change it."""

from dataclasses import dataclass
from typing import Any

from .recipe import Recipe


@dataclass(frozen=True)
class Run:
    """What a command line comes to.

    recipe: the values to train by, those of the flags included.
    name, published: the recipe that was named and its own values; None without `--recipe`.
    checkpoint: folder or Hub id of the model to go on from; None for a fresh model.
    flags: what the command line gave, by name.
    devices: processes, or devices of one process, that share a batch.
    """

    recipe: Recipe
    name: str | None
    published: Recipe | None
    checkpoint: str | None
    flags: dict[str, Any]
    devices: int
