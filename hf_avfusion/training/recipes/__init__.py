"""Published training recipes as data: `RECIPES` by name, one file per architecture.

    python -m hf_avfusion.training.recipes                       # one line each
    python -m hf_avfusion.training.recipes mbt/vggsound          # every value, with source and doubts
    python -m hf_avfusion.training.recipes runs/mine             # what a finished run took and what it changed

    python examples/finetune_classification.py --recipe mbt/vggsound ...

A name is `ARCHITECTURE/BENCHMARK`, with `@VARIANT` where sources differ: without it, the released code's settings or what comes
nearest to them; `@paper`, the paper's where they are others.
"""

import difflib

from . import avmae, mbt
from .recipe import Recipe

RECIPES: dict[str, Recipe] = {**mbt.RECIPES, **avmae.RECIPES}

__all__ = ["RECIPES", "Recipe", "get_recipe"]


def get_recipe(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; the message lists the names.
    """
    if name in RECIPES:
        return RECIPES[name]
    close = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"There is no recipe {name!r}.{hint} The recipes are: {', '.join(RECIPES)}.")
