"""Prints all recipes, one of them, or that of a finished run: `python -m hf_avfusion.training.recipes [NAME or RUN]`."""

from pathlib import Path

from ...arguments import OneLineErrors
from . import RECIPES, get_recipe


def main(arguments: list[str] | None = None) -> None:
    parser = OneLineErrors(
        prog="python -m hf_avfusion.training.recipes", description="Print published training recipes."
    )
    parser.add_argument(
        "name", nargs="?", help="a recipe, or the folder of a run (or its recipe.json); default: a list of all recipes"
    )
    name = parser.parse_args(arguments).name
    try:
        if name is not None and not Path(name).exists():
            get_recipe(name)  # an unknown one is answered before the imports of `record`, which take seconds
        from .record import print_recipe, print_record, read_record

        if name is None:
            _overview()
        elif name not in RECIPES and Path(name).exists():
            print_record(read_record(name))
        else:
            print_recipe(name, get_recipe(name))
    except ValueError as error:
        parser.error(str(error))


def _overview() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "frames", "audio", "batch", "epochs", "uncertain values", "reported by the source", box=None)
    table.columns[0].no_wrap = True
    for name, recipe in RECIPES.items():
        table.add_row(
            name,
            str(recipe.window.get("num_frames", "")),
            f"{recipe.window['audio_seconds']:g} s" if "audio_seconds" in recipe.window else "",
            str(recipe.batch_size),
            str(recipe.training.get("num_train_epochs", "")),
            str(len(recipe.uncertain) or ""),
            recipe.reported,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
