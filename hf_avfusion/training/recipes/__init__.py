"""Published training recipes as data: `RECIPES` by name, one file per architecture.

    python -m hf_avfusion.training.recipes                       # all recipes, one line each
    python -m hf_avfusion.training.recipes mbt/vggsound          # every value, with its source and uncertainties
    python -m hf_avfusion.training.recipes runs/mine             # the recipe of a finished run and its changes to it

    python examples/finetune_classification.py --recipe mbt/vggsound ...

A name is `ARCHITECTURE/BENCHMARK`, with `@VARIANT` where sources differ. Names without a variant are the settings of the released
code, or the closest to them; `@paper` are the paper's where they differ.
"""

import difflib
from typing import Any

from . import avmae, lavish, mbt
from .recipe import Recipe

RECIPES: dict[str, Recipe] = {**mbt.RECIPES, **avmae.RECIPES}

# Architecture -> fields of the `Recipe` that training starts from without a published one, where they differ from MBT's.
PLAIN_FIELDS: dict[str, dict[str, Any]] = {"lavish": lavish.PLAIN}

__all__ = ["PLAIN_FIELDS", "RECIPES", "Recipe", "get_recipe"]


def get_recipe(name: str) -> Recipe:
    """The recipe with this name.

    Raises:
        ValueError: the name is unknown; the message lists all names.
    """
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"There is no recipe {name!r}.{hint} The recipes are: {', '.join(RECIPES)}.")
