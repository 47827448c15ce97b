"""The record of a run: the settings it trained with and their differences from its recipe, saved as `recipe.json`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...files import read_json, write_text
from ..checkpoints import check_no_checkpoints
from .nested_fields import flat_fields
from .recipe import SECTIONS, Recipe

if TYPE_CHECKING:
    from ..trainer import AVTrainer
    from .run import Run

FILE = "recipe.json"


def keep_record(run: Run, trainer: AVTrainer, augmentation: Any = None) -> dict[str, Any]:
    """Writes the record of a new or resumed run into its folder and prints its differences from the recipe.

    Call it before training. Only the first of several processes writes and prints. The arguments are those of `record_run`.

    Raises:
        ValueError: the run is new, but its folder holds checkpoints of another run.
    """
    if trainer.args.resume_from_checkpoint is None:
        check_no_checkpoints(trainer.args.output_dir)
    record = record_resumed(record_run(run, trainer, augmentation), trainer.args.resume_from_checkpoint)
    if trainer.is_world_process_zero():
        save_record(record, trainer.args.output_dir)
        if run.published is not None or "resumed" in record:
            print_record(record)
    return record


def record_run(run: Run, trainer: AVTrainer, augmentation: Any = None) -> dict[str, Any]:
    """The record of a run: recipe, flags, every value that differs from the recipe, and all settings.

    Differences are found by comparing the recipe with the objects of the trainer, not with the flags, so that they include
    values from a checkpoint.

    Args:
        run: the result of `parse_with_recipe`.
        trainer: the trainer before training; its model, processor, collator and arguments are read.
        augmentation: the `FrameAugmentation` of the training frames.
    """
    adapters = getattr(trainer.model, "peft_config", None)
    adapter = None if adapters is None else adapters[trainer.model.active_adapter].to_dict()
    args, config, processor, collator = (
        trainer.args,
        trainer.model.config,
        trainer.processing_class,
        trainer.data_collator,
    )
    settings = {
        "model": config.to_dict(),
        "window": processor.window,
        "audio": processor.feature_extractor.to_dict(),
        "video": processor.video_processor.to_dict(),
        "frame_augmentation": None if augmentation is None else asdict(augmentation),
        "spec_augment": None if collator.spec_augment is None else asdict(collator.spec_augment),
        "collator": {name: getattr(collator, name) for name in (*collator.RECIPE_FIELDS, "modality_dropout")},
        **({} if adapter is None else {"adapter": adapter}),
        "training": args.to_dict(),
        "batch_size": run.devices * args.per_device_train_batch_size * args.gradient_accumulation_steps,
    }
    settings = _plain(settings)
    fields = flat_fields(settings["model"], config.sub_configs)
    compared = {**settings, "model": fields, "regularization": fields}
    overridden = {}
    if run.published is not None:
        for key, published in {**_whole_configuration(run.published), **run.published.values()}.items():
            actual = compared
            for part in key.split(".", 1):
                actual = None if actual is None else actual.get(part)
            if not _same(_plain(published), actual):
                overridden[key] = {"recipe": _plain(published), "run": actual}
        method = None if adapter is None else str(adapter["peft_type"].value).lower()
        for key, published, own in (
            ("adapter_method", run.published.adapter_method, method),
            ("train_norms", run.published.train_norms, run.recipe.train_norms),
            ("quantize", run.published.quantize, run.recipe.quantize),
        ):
            if published != own:
                overridden[key] = {"recipe": published, "run": own}
        start = run.checkpoint or run.recipe.init
        if start != run.published.init:
            overridden["init"] = {"recipe": run.published.init, "run": start}
    return {
        "recipe": run.name,
        "source": None if run.published is None else run.published.source,
        "start": run.checkpoint or run.recipe.init,
        **({"part_starts": dict(run.recipe.part_inits)} if run.recipe.part_inits else {}),
        "views": run.recipe.views,
        "versions": {"hf_avfusion": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "flags": _plain(run.flags),
        "overridden": overridden,
        "uncertain": {} if run.published is None else dict(run.published.uncertain),
        "batch": {
            "global": settings.pop("batch_size"),
            "devices": run.devices,
            "per_device": args.per_device_train_batch_size,
            "accumulated": args.gradient_accumulation_steps,
        },
        "settings": settings,
    }


def record_resumed(record: dict[str, Any], checkpoint: str | os.PathLike | None) -> dict[str, Any]:
    """The record of a resumed run, with its differences from the earlier run.

    Args:
        record: the result of `record_run`.
        checkpoint: the checkpoint to resume from, in the folder of the earlier run; None for a new run, whose record is returned
            unchanged.

    Returns:
        The record with `resumed`, a list with one `{"checkpoint": name, "changed": {setting: {"before": ..., "since": ...}}}`
        for each resume. `changed` is None if the earlier run left no record.
    """
    if checkpoint is None:
        return record
    folder = Path(checkpoint)
    try:
        earlier = read_record(folder.parent)
    except ValueError:
        return {**record, "resumed": [{"checkpoint": folder.name, "changed": None}]}
    before, since = (
        _flat({**earlier.get("settings", {}), "batch": earlier.get("batch")}),
        _flat({**record["settings"], "batch": record["batch"]}),
    )
    changed = {
        key: {"before": before.get(key), "since": since.get(key)}
        for key in sorted({*before, *since} - _NO_SETTINGS)
        if before.get(key) != since.get(key)
    }
    return {**record, "resumed": [*earlier.get("resumed", []), {"checkpoint": folder.name, "changed": changed}]}


# Arguments of the Trainer about the output and logging of a process, which do not affect training.
_PROCESS_ARGUMENTS = (
    "resume_from_checkpoint", "output_dir", "run_name", "logging_dir", "disable_tqdm", "report_to", "local_rank", "log_level",
)  # fmt: skip
# With the fields of a configuration that transformers writes when a model is loaded or saved.
_NO_SETTINGS = {*(f"training.{name}" for name in _PROCESS_ARGUMENTS), "model.architectures", "model.dtype"}


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """{section: {name: value}} -> {"section.name": value}."""
    flat = {}
    for section, values in settings.items():
        values = values if isinstance(values, dict) else {"all": values}
        sub_configs = [name for name, value in values.items() if isinstance(value, dict) and "model_type" in value]
        flat |= {f"{section}.{name}": value for name, value in flat_fields(values, sub_configs).items()}
    return flat


# Fields of a configuration that the data or transformers decide, not a recipe.
_NON_RECIPE_FIELDS = (
    "id2label", "label2id", "num_labels", "problem_type", "class_splits", "vocab_size", "question_types", "architectures", "dtype",
)  # fmt: skip


def _whole_configuration(recipe: Recipe) -> dict[str, Any]:
    """{"model.field": value} of the configuration that the recipe builds, including sizes, which the recipe does not list."""
    # Imported here, since `building` imports torchvision, which printing recipes does not need.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from .building import build_processor, config_values

    values = config_values(recipe, {}, build_processor(recipe))
    config = getattr(CONFIG_MAPPING[recipe.architecture], recipe.size)(**values)
    left_out = {*_NON_RECIPE_FIELDS, "transformers_version", "model_type"}
    return {
        f"model.{name}": value
        for name, value in flat_fields(config.to_dict(), config.sub_configs).items()
        if name not in recipe.regularization and name.rpartition(".")[2] not in left_out
    }


def save_record(record: dict[str, Any], folder: str | os.PathLike) -> Path:
    """Writes `recipe.json` into the folder atomically."""
    return write_text(Path(folder) / FILE, json.dumps(record, indent=1))


def read_record(place: str | os.PathLike) -> dict[str, Any]:
    """Reads the record of a run from its folder or file.

    Raises:
        ValueError: there is no such file, or it is not the record of a run.
    """
    path = Path(place) / FILE if Path(place).is_dir() else Path(place)
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} does not hold the record of a run: {error}") from error
    if not isinstance(record, dict) or "overridden" not in record:
        raise ValueError(f"{path} does not hold the record of a run: it has no 'overridden'. Give the folder of a run.")
    return record


def print_recipe(name: str, recipe: Recipe) -> None:
    """Prints every value of a recipe by section, with its source and uncertainties."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"[bold]{escape(name)}[/bold]  {recipe.task} on {recipe.benchmark or 'any data'}", end="")
    console.print(f" ({recipe.variant})" if recipe.variant else "")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("source", escape(recipe.source))
    table.add_row("reported", escape(recipe.reported or "nothing"))
    table.add_row("model", escape(f"{recipe.architecture} {recipe.size}, from {recipe.init or 'random weights'}"))
    for key, value in recipe.values().items():
        doubt = recipe.uncertain.get(key)
        shown = "none" if value is None and key in SECTIONS else json.dumps(_plain(value))
        table.add_row(key, escape(shown) + (f"  [yellow]uncertain: {escape(doubt)}[/]" if doubt else ""))
    if recipe.adapter_method is not None:
        norms = " and the norms" if recipe.train_norms else ""
        weights = f", {recipe.quantize} weights" if recipe.quantize else ""
        table.add_row("adapter", f"{recipe.adapter_method}{norms}, on the frozen model{weights}")
    table.add_row("learning rate at other batch sizes", recipe.learning_rate_rule or "no rule in the source")
    table.add_row("views", str(recipe.views))
    table.add_row("notes", "\n".join(f"- {escape(note)}" for note in recipe.notes))
    console.print(table)


def print_record(record: dict[str, Any]) -> None:
    """Prints the recipe of a run and every value that differs from it."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(
        f"recipe [bold]{escape(str(record['recipe']))}[/bold], from {escape(str(record['start'] or 'random weights'))}"
    )
    batch = record["batch"]
    devices = f"{batch['devices']} device{'s' if batch['devices'] > 1 else ''}"
    console.print(
        f"batch {batch['global']} = {devices} x {batch['per_device']} clips x {batch['accumulated']} accumulated"
    )
    for resumed in record.get("resumed", []):
        console.print(f"resumed from {escape(resumed['checkpoint'])}: {escape(changes(resumed))}")
    if not record["overridden"]:
        console.print("all values are the recipe's" if record["recipe"] else "no recipe was given")
        return
    table = Table("overridden", "recipe", "run", box=None)
    for key, values in record["overridden"].items():
        table.add_row(key, escape(json.dumps(values["recipe"])), escape(json.dumps(values["run"])))
    console.print(table)


def changes(resumed: dict[str, Any]) -> str:
    """The changed settings of an entry of `resumed`, in one line."""
    if resumed["changed"] is None:
        return "the earlier settings are unknown"
    changed = (
        f"{key} {json.dumps(values['since'])} (before {json.dumps(values['before'])})"
        for key, values in resumed["changed"].items()
    )
    return ", ".join(changed) or "the same settings"


def _same(published: Any, actual: Any) -> bool:
    """Whether two values are equal; of dictionaries (`size`) only the published fields are compared."""
    if isinstance(published, dict) and isinstance(actual, dict):
        return all(_same(value, actual.get(name)) for name, value in published.items())
    return published == actual


def _plain(value: Any) -> Any:
    """The value as it is after writing to JSON and reading back."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "items"):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
