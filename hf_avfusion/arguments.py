"""Command lines that answer wrong arguments in one line, and before anything slow is imported. Imports nothing of ours.

A script parses twice: once before its imports, and again where it uses the options. A wrong option of
`finetune_classification.py` is answered in 0.25 s, but the imports of `hf_avfusion.training.arguments` alone take 10.5 s
(`benchmarks/speed_code.py --only arguments`, transformers 5.23, torch 2.14). So transformers' `TrainingArguments` and its parser
are read from their source files here.

    def parse() -> Options: ...

    if __name__ == "__main__":
        parse()  # answers wrong arguments before the imports below

    import torch
"""

import argparse
import ast
import difflib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import field, make_dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlparse

PACKAGE = Path(__file__).parent
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu", "musa")
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu")  # NVIDIA, AMD, WSL, Jetson


class OneLineErrors(argparse.ArgumentParser):
    """A parser whose errors have one line. If `strict`, an unknown option is named with the nearest that exists."""

    strict = True

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        for text in args[: args.index("--") if "--" in args else None]:
            name = text.partition("=")[0]
            known = self._option_string_actions
            if (
                self.strict
                and re.fullmatch(r"--[\w.-]+", name)
                and not any(option.startswith(name) for option in known)
            ):
                self.error(f"unknown option {name}{did_you_mean(name, known)}; --help lists all options")
        return super().parse_known_args(args, namespace)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Text such as "; did you mean X?" for the nearest of the known names; empty if none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


@cache
def _dataclass_parser() -> type:
    """transformers' parser of dataclasses, from its file alone, since `import transformers` takes seconds."""
    file = Path(next(iter(find_spec("transformers").submodule_search_locations))) / "hf_argparser.py"
    spec = spec_from_file_location("_hf_argparser_alone", file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    class Parser(OneLineErrors, module.HfArgumentParser):
        def parse_args_into_dataclasses(self, *args: Any, exits: bool = True, **kwargs: Any) -> tuple:
            """As in transformers; errors of the dataclasses' own checks end the process too, unless `exits` is False."""
            try:
                return super().parse_args_into_dataclasses(*args, **kwargs)
            except (ValueError, OSError) as error:
                if not exits:
                    raise
                self.error(str(error))

    return Parser


def argument_parser(*types: type, description: str | None = None, **options: Any) -> Any:
    """transformers' `HfArgumentParser` of dataclasses, with errors in one line and without importing transformers."""
    return _dataclass_parser()(types, description=description, **options)


# -------------------------------------------------------------------------------------- what a value must be, checked early


def check_at_least(least: int, **numbers: float | None) -> None:
    """Raises ValueError for numbers below `least`; their names are those of the options."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ValueError(f"--{name} must be at least {least}, got {number}")


def check_at_most(most: int, **numbers: float | None) -> None:
    """Raises ValueError for numbers above `most`; their names are those of the options."""
    for name, number in numbers.items():
        if number is not None and number > most:
            raise ValueError(f"--{name} must be at most {most}, got {number}")


def check_output_file(flag: str, name: str | None) -> None:
    """Raises ValueError if a file cannot be written under this name: it is a folder, or its folder cannot be made."""
    if name is None:
        return
    if Path(name).is_dir():
        raise ValueError(f"{flag} {name}: is a folder; give a file")
    check_output_folder(flag, str(Path(name).parent))


def check_output_folder(flag: str, name: str | None) -> None:
    """Raises ValueError if a folder is a file, or lies where nothing can be written."""
    if name is None:
        return
    place = next(path for path in (Path(name), *Path(name).absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise ValueError(
            f"{flag} {name}: {place} is {'not writable' if place.is_dir() else 'a file'}; choose another place"
        )


def check_device(device: str | None) -> None:
    """Raises ValueError for a device that PyTorch does not know, or for CUDA where PyTorch is built without it, or there is no GPU.

    Imports no PyTorch.
    """
    if device is None:
        return
    if not re.fullmatch(rf"({'|'.join(_DEVICES)})(:\d+)?", device):
        raise ValueError(
            f"--device {device}: is not one of {', '.join(_DEVICES)}, or one of these with a number (cuda:1)"
        )
    if device.split(":")[0] != "cuda":
        return
    version = Path(next(iter(find_spec("torch").submodule_search_locations))) / "version.py"
    built = re.search(r"^(?:cuda|hip)\b[^=\n]*= *'", version.read_text(), re.MULTILINE) if version.is_file() else True
    there = not sys.platform.startswith("linux") or any(map(os.path.exists, _GPU_FILES))
    torch = sys.modules.get("torch")  # an imported PyTorch states it exactly
    if not built or not there or (torch is not None and not torch.cuda.is_available()):
        raise ValueError(f"--device {device}: PyTorch finds no GPU here; use --device cpu")


def check_checkpoint(flag: str, name: str) -> None:
    """Checks that a name is the folder of a checkpoint, or the id of a Hub repository, cached or on a Hub that answers.

    Raises:
        ValueError, OSError: it looks like a path and is not there, holds no checkpoint, or the Hub cannot be asked for it.
    """
    allowed = "give the folder of a checkpoint, or the id of a Hub repository (owner/name)"
    path = Path(name)
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            within = sorted(str(found.parent) for found in path.glob("*/config.json"))
            hint = f"; its sub-folders {', '.join(within[:3])} do" if within else ""
            raise ValueError(f"{flag} {name}: holds no config.json{hint}: {allowed}")
        return
    if path.exists():
        raise ValueError(f"{flag} {name}: is a file: {allowed}")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) or path.parent.is_dir():
        raise FileNotFoundError(f"{flag} {name}: no such folder: {allowed}")
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    cached = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}"
    if cached.is_dir():
        return
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        raise OSError(
            f"{flag} {name}: no such folder, and not in the cache of the Hub, which HF_HUB_OFFLINE forbids to ask: {allowed}"
        )
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    proxies = ("https_proxy", "http_proxy", "all_proxy")
    if any(os.environ.get(proxy) or os.environ.get(proxy.upper()) for proxy in proxies):
        return
    if reason := _unreachable(endpoint):
        raise OSError(f"{flag} {name}: no such folder, and the Hub at {endpoint} does not answer ({reason}): {allowed}")


def _unreachable(address: str, seconds: float = 5.0) -> str | None:
    """Why a server cannot be reached, or None. In a thread, since looking up a name has no time limit."""
    parts = urlparse(address)
    outcome = [f"no connection within {seconds:g} s"]

    def connect() -> None:
        try:
            socket.create_connection(
                (parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)), seconds
            ).close()
            outcome[0] = None
        except OSError as error:
            outcome[0] = str(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return outcome[0]


# ------------------------------------------------------------------------------------------------ flags of the training scripts

_SIMPLE = {"int": int, "float": float, "bool": bool, "str": str, "list[str]": list[str]}


@cache
def training_flags() -> type:
    """A dataclass with the fields of `AVTrainingArguments`, read from the source: importing them takes seconds.

    It serves to find wrong names and numbers early. Fields of other types than numbers, booleans and text take any text.
    """
    files = {
        Path(next(iter(find_spec("transformers").submodule_search_locations)))
        / "training_args.py": "TrainingArguments",
        PACKAGE / "training" / "arguments.py": "AVTrainingArguments",
    }
    fields: dict[str, tuple[type, Any]] = {}
    for file, name in files.items():
        for node in _class(file, name).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                annotation, default = ast.unparse(node.annotation), _default(node.value)
                if "ClassVar" not in annotation and default is not _NO_FIELD:
                    kind = _SIMPLE.get(annotation.removesuffix(" | None").removeprefix("None | "), list[str])
                    fields[node.target.id] = (
                        kind | None if kind is not bool else bool,
                        default if kind is bool else None,
                    )
    return make_dataclass(
        "TrainingFlags", [(name, kind, field(default=value)) for name, (kind, value) in fields.items()]
    )


@cache
def training_choices() -> dict[str, tuple[str, ...]]:
    """The allowed texts of the Trainer's options that are enums, read from transformers' source."""
    folder = Path(next(iter(find_spec("transformers").submodule_search_locations)))
    trees = [
        ast.parse((folder / name).read_text(encoding="utf-8")) for name in ("trainer_utils.py", "training_args.py")
    ]
    enums = {
        node.name: tuple(
            entry.value.value
            for entry in node.body
            if isinstance(entry, ast.Assign) and isinstance(entry.value, ast.Constant)
        )
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    fields = _class(folder / "training_args.py", "TrainingArguments").body
    annotated = {node.target.id: ast.unparse(node.annotation) for node in fields if isinstance(node, ast.AnnAssign)}
    return {
        name: enums[kind]
        for name, annotation in annotated.items()
        if annotation.endswith(" | str") and enums.get(kind := annotation.removesuffix(" | str"))
    }


@cache
def model_sizes(model_type: str) -> tuple[str, ...]:
    """The sizes of an architecture, read from its configuration file; empty if it lists none."""
    file = next(PACKAGE.glob(f"models/*/configuration_{model_type}.py"))
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "_SIZES":
            return tuple(key.value for key in node.value.keys)
    return ()


_NO_FIELD = object()


def _default(value: ast.expr | None) -> Any:
    """The default of a field if it is a literal, else None; `_NO_FIELD` for `field(init=False)`."""
    keywords = {word.arg: word.value for word in value.keywords} if isinstance(value, ast.Call) else {"default": value}
    if isinstance(keywords.get("init"), ast.Constant) and keywords["init"].value is False:
        return _NO_FIELD
    default = keywords.get("default")
    return default.value if isinstance(default, ast.Constant) else None


def _class(file: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


@cache
def model_types() -> tuple[str, ...]:
    """The architectures, by the `model_type` in their configuration files."""
    files = sorted(PACKAGE.glob("models/*/configuration_*.py"))
    found = (re.findall(r'^    model_type = "(\w+)"', file.read_text(encoding="utf-8"), re.MULTILINE) for file in files)
    return tuple(name for names in found for name in names)


@cache
def start_sources() -> dict[str, bool]:
    """Start method of the models (`start_methods`) -> whether it takes a file, not a checkpoint. Read from the models' files."""
    found: dict[str, bool] = {}
    for file in sorted(PACKAGE.glob("models/*/modeling_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "start_methods":
                for key, value in zip(node.value.keys, node.value.values):
                    fields = {each.arg: each.value for each in getattr(value, "keywords", ())}
                    found[key.value] = "file" in fields and fields["file"].value
    return found


@cache
def start_flags() -> type:
    """A dataclass with a flag for each start method of the models."""
    return make_dataclass("StartFlags", [(name, str | None, field(default=None)) for name in start_sources()])


def _check_start(flag: str, method: str, source: str) -> None:
    """Raises ValueError or OSError if a source is not of the kind that its start method takes."""
    if not start_sources().get(method):
        check_checkpoint(flag, source)
    elif not Path(source).is_file():
        raise FileNotFoundError(f"{flag} {source}: no such file: give the file of the published weights")


def check_one_of(flag: str, value: str, allowed: Sequence[str]) -> None:
    """Raises ValueError if a value is not one of those allowed; the message names the nearest."""
    if value not in allowed:
        raise ValueError(f"{flag} {value}: is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}")


def _check_values(given: dict[str, Any]) -> None:
    """Raises ValueError for values of the training scripts' flags that are wrong whatever the data are."""
    for name, allowed in training_choices().items():
        if isinstance(value := given.get(name), list):  # enums are parsed as lists of text, see `training_flags`
            value = value[0] if value else ""
        if value is not None:
            check_one_of(f"--{name}", value, allowed)
    names = ("image_size", "num_frames", "per_device_train_batch_size", "per_device_eval_batch_size")
    names += ("gradient_accumulation_steps", "global_batch_size", "num_segments")
    check_at_least(1, **{name: given[name] for name in names if isinstance(given.get(name), int)})
    for name in ("span", "audio_seconds"):
        if given.get(name) is not None and not given[name] > 0:
            raise ValueError(f"--{name} must be above 0 s, got {given[name]}")
    for name, example in (("config", '{"fusion_layer": 8}'), ("adapter_config", '{"reduction": 8}')):
        if name in given:
            try:
                fields = json.loads(given[name])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"--{name} {given[name]}: is not JSON ({error})") from error
            if not isinstance(fields, dict):
                raise ValueError(f"--{name} {given[name]}: must be a JSON object, such as '{example}'")
    if "size" in given and given["model"] in model_types() and (sizes := model_sizes(given["model"])):
        check_one_of("--size", given["size"], sizes)
    if "output_dir" in given and Path(given["output_dir"]).is_file():
        raise ValueError(f"--output_dir {given['output_dir']}: is a file; give a folder")
    resumed = given.get("resume_from_checkpoint")
    if resumed is not None and resumed.lower() not in ("true", "false") and not Path(resumed).is_dir():
        raise ValueError(f"--resume_from_checkpoint {resumed}: no such folder; give OUTPUT_DIR/checkpoint-N or `true`")


def check_training(*types: type, args: Callable[[], list[str]] | None = None) -> None:
    """Ends the process with one line if the command line of a training script is wrong.

    Args:
        types: the script's dataclasses of options; `model` and `start` of them name checkpoints.
        args: returns the arguments; default: those of the process.
    """
    parser = argument_parser(*types, start_flags(), training_flags())
    try:
        given_args = sys.argv[1:] if args is None else args()
    except OSError as error:
        parser.error(str(error))
    if {"-h", "--help"} & set(given_args):  # the script's own parser has all texts
        return
    parsed = parser.parse_args_into_dataclasses(given_args, look_for_args_file=False)
    given = {name: value for options in parsed for name, value in vars(options).items() if value is not None}
    sources = [(f"--{name}", name, given[name]) for name in vars(parsed[len(types)]) if name in given]
    if "=" in given.get("start", ""):
        method, _, source = given["start"].partition("=")
        sources.append(("--start", method, source))
    try:
        _check_values(given)
        if not Path(given["model"]).exists() and "/" not in given["model"] and given["model"] not in model_types():
            raise ValueError(
                f"--model {given['model']}: neither an architecture ({', '.join(model_types())}) nor a folder"
                f"{did_you_mean(given['model'], model_types())}"
            )
        if given["model"] not in model_types():
            check_checkpoint("--model", given["model"])
        for flag, method, source in sources:
            if source.lower() != "none":
                _check_start(flag, method, source)
    except (ValueError, OSError) as error:
        parser.error(str(error))
