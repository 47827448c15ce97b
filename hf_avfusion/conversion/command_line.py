"""The command line of all converters: converts one original file to a folder that `from_pretrained` loads."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from ..arguments import OneLineErrors, did_you_mean
from ..files import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def check_arguments(*processor_files: str, splits_adapter: bool = False) -> None:
    """Ends the process with one line if a converter's arguments are wrong; for the time before its imports.

    Args:
        processor_files: the flags of `convert_file`'s `processor_files`.
        splits_adapter: whether it has a `split_adapter`.
    """
    if not {"-h", "--help"} & set(sys.argv[1:]):
        _parse(None, "", "", "", dict.fromkeys(processor_files, ""), splits_adapter)


def _parse(
    arguments: list[str] | None,
    description: str,
    file_help: str,
    fields_help: str,
    processor_files: Mapping[str, str],
    splits_adapter: bool,
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = OneLineErrors(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help=file_help)
    parser.add_argument(
        "--config", help=f"JSON file with {fields_help}; the rest is inferred from the checkpoint's names and shapes"
    )
    for flag, text in processor_files.items():
        parser.add_argument(flag, help=text)
    parser.add_argument("--output", required=True, help="folder to write")
    if splits_adapter:
        parser.add_argument(
            "--adapter_output", help="folder to write the adapter to; --output then holds the model without adapters"
        )
    options = parser.parse_args(arguments)
    for flag in ("--checkpoint", "--config", *processor_files):
        file = getattr(options, flag.removeprefix("--"))
        if file is not None and not Path(file).exists():
            parser.error(f"{flag} {file}: no such file")
    outputs = {"--output": options.output, "--adapter_output": getattr(options, "adapter_output", None)}
    for flag, folder in outputs.items():
        if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
            parser.error(f"{flag} {folder}: is a file; give a folder to write")
    if outputs["--adapter_output"] and Path(outputs["--adapter_output"]).resolve() == Path(options.output).resolve():
        parser.error(f"--adapter_output {options.output}: is the folder of --output; give another")
    return parser, options


def convert_file(
    load: Callable[[str, dict[str, Any]], PreTrainedModel],
    description: str,
    file_help: str,
    fields_help: str,
    summarize: Callable[[PreTrainedModel], str],
    arguments: list[str] | None = None,
    *,
    make_processor: Callable[..., ProcessorMixin | None] | None = None,
    processor_files: Mapping[str, str] | None = None,
    split_adapter: Callable[[PreTrainedModel], Any] | None = None,
) -> None:
    """Parses the command line, converts and saves. Errors end with one line and a non-zero exit status.

    Args:
        load: (checkpoint file, config fields) -> model; its ValueErrors are printed.
        description: of the command; file_help: describes the original file; fields_help: fields that the file does not hold.
        summarize: model -> text printed after its number of parameters.
        arguments: default: the process's.
        make_processor: (model, one file of each of `processor_files` or None) -> the processor to save beside the model, or None.
        processor_files: flag -> help of the files that it takes.
        split_adapter: model -> a peft model whose base is the model without its adapters, for `--adapter_output`.
    """
    processor_files = processor_files or {}
    parser, options = _parse(arguments, description, file_help, fields_help, processor_files, split_adapter is not None)
    fields = {}
    if options.config:
        try:
            fields = parse_json(Path(options.config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"--config {options.config}: {error}")
        if not isinstance(fields, dict):
            parser.error(
                f"--config {options.config}: holds a JSON {type(fields).__name__}, expected an object of fields"
            )
    try:
        model = load(options.checkpoint, fields)
        files = {name: getattr(options, name) for name in (flag.removeprefix("--") for flag in processor_files)}
        processor = None if make_processor is None else make_processor(model, **files)
        adapted = split_adapter(model) if getattr(options, "adapter_output", None) else None
    except (ValueError, StrictDataclassError) as error:
        parser.exit(1, f"error: {error}\n")
    except (TypeError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:  # values of a wrong type
        given = f"{options.checkpoint} with --config {options.config}" if fields else options.checkpoint
        parser.exit(1, f"error: {given} does not describe a model: {type(error).__name__}: {error}\n")
    known = sorted({"num_labels", *(each.name for each in dataclasses.fields(model.config))})
    if unknown := [name for name in fields if name not in known]:
        hint = did_you_mean(unknown[0], known)
        parser.exit(
            1, f"error: --config {options.config}: {type(model.config).__name__} has no field {unknown[0]}{hint}\n"
        )
    folders = [options.output]
    if adapted is None:
        model.save_pretrained(options.output)
    else:
        folders.append(options.adapter_output)
        adapted.peft_config["default"].base_model_name_or_path = str(options.output)
        adapted.save_pretrained(options.adapter_output, save_embedding_layers=False)
        adapted.unload().save_pretrained(options.output)
    for folder in folders if processor is not None else ():
        processor.save_pretrained(folder)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {type(model).__name__}, {parameters:,} parameters, {summarize(model)}")
