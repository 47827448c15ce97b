"""The command line of every converter: one file of the original into a folder that `from_pretrained` loads."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def convert_file(
    load: Callable[[str, dict[str, Any]], PreTrainedModel],
    description: str,
    file_help: str,
    fields_help: str,
    told: Callable[[PreTrainedModel], str],
    arguments: list[str] | None = None,
) -> None:
    """Reads the command line, converts and saves; what cannot be ends with one line and a status that is not 0.

    Args:
        load: (checkpoint file, fields of the configuration) -> model; its ValueErrors are told.
        description: of the command; file_help: which file the original is; fields_help: which fields it does not tell.
        told: what is said of the model beside its number of parameters.
        arguments: default: those of the process.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help=file_help)
    parser.add_argument(
        "--config", help=f"JSON file with {fields_help}; the rest is inferred from the checkpoint's names and shapes"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    options = parser.parse_args(arguments)
    if Path(options.output).exists() and not Path(options.output).is_dir():
        parser.error(f"--output {options.output}: is a file; give a folder to write")
    fields = {}
    if options.config:
        try:
            fields = json.loads(Path(options.config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--config {options.config}: {error}")
        if not isinstance(fields, dict):
            parser.error(
                f"--config {options.config}: holds a JSON {type(fields).__name__}, expected an object of fields"
            )
    try:
        model = load(options.checkpoint, fields)
    except (ValueError, StrictDataclassError) as error:
        parser.exit(1, f"error: {error}\n")
    except (TypeError, AttributeError, ArithmeticError) as error:  # values of a kind that no field can have
        if not fields:
            raise
        parser.exit(1, f"error: --config {options.config} does not describe a model: {error}\n")
    model.save_pretrained(options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {type(model).__name__}, {parameters:,} parameters, {told(model)}")
