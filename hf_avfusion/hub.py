"""
Exports and pushes checkpoints with the code that loads them: weights, preprocessing, label names, model card, Python files.

    from hf_avfusion import hub

    hub.export(model, processor, "folder")                        # a folder that loads without this package
    hub.push(model, processor, "org/mbt-sounding-shapes")         # the same files as one commit of a Hub repository

    AutoModelForVideoClassification.from_pretrained("org/mbt-sounding-shapes", trust_remote_code=True)   # no hf_avfusion needed
    AutoModelForVideoClassification.from_pretrained("org/mbt-sounding-shapes")                           # after import hf_avfusion

The maps to the code (`auto_map`) are written into the exported files only. No class is changed, so `save_pretrained` writes
the same files as before, for example in training.
"""

import ast
import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from .auto import ARCHITECTURES, OWN_AUTO_CLASSES
from .lazy_registration import load_reference
from .model_card import CardDetails, build_card
from .tasks import task_of, without_adapter

logger = logging.get_logger(__name__)

PACKAGE = Path(__file__).parent
EXPORTED_PACKAGES = ("media", "processing", "models")  # sub-packages whose code is copied into an export
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
OWN_FILES = (
    *WEIGHTS,
    *ADAPTER,
    "config.json",
    "processor_config.json",
    "README.md",
)  # files of an export other than code
RETRIED = (408, 429, 500, 502, 503, 504)  # HTTP status codes


class HubError(OSError):
    """A failed push. The message names the repository, the reason and the remedy."""


def export(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: str | os.PathLike,
    *,
    card: CardDetails | ModelCard | None = None,
    repo_id: str | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Writes a model and its processor into a folder that loads with and without this package.

    Args:
        model: one of this package's models, or a `peft.PeftModel` around one (then only the adapter is written).
        processor: its processor.
        folder: must not exist or must be empty. It is written atomically: either complete or not at all.
        card: details for the model card, or a complete card.
        repo_id: the name that the card's code example loads; default: the folder.
        max_shard_size: larger weights are split into several files.
        overwrite: replace an earlier export in that folder. A folder that holds any other file is never changed.

    Returns:
        The folder. It holds `model*.safetensors`, `config.json` and `processor_config.json` with maps to the code, the code
        (`*.py`), and `README.md`.

    Raises:
        ValueError: a model or processor whose class is not of this package, a folder that is not empty, or inconsistent
            details of the card.
    """
    folder = Path(folder)
    _check_free(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        written, replaced = Path(temporary) / "new", Path(temporary) / "old"
        _write(model, processor, written, card, repo_id or str(folder), max_shard_size)
        if folder.exists():
            os.replace(folder, replaced)
        try:
            os.replace(written, folder)
        except OSError:
            if replaced.exists():
                os.replace(replaced, folder)
            raise
    return folder


def push(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    repo_id: str,
    *,
    card: CardDetails | ModelCard | None = None,
    private: bool | None = None,
    create_repo: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "5GB",
    attempts: int = 4,
) -> CommitInfo:
    """Exports a model and its processor and uploads all files in one commit.

    Args:
        model, processor, card, max_shard_size: see `export`.
        repo_id: "org/name", or "name" in the namespace of the token's user.
        private: visibility of a new repository.
        create_repo: create the repository if it does not exist. A pull request never creates one.
        revision: branch, created if it does not exist; default "main".
        create_pr: open a pull request instead of committing to the branch.
        commit_message: default `"Upload <class of the model>"`.
        token: default: the one of `hf auth login` or `HF_TOKEN`.
        attempts: maximum number of attempts if the server fails (5xx, 408, 429) or the connection is lost. The pauses
            between them grow. Uploaded files are not sent again.

    Returns:
        The result of `HfApi.upload_folder`: `.oid` of the commit, `.pr_url` of a pull request.

    Raises:
        ValueError: see `export`; or an invalid `repo_id`.
        HubError: the Hub refused the push, or could not be reached.
    """
    _check_repo_id(repo_id)
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    api = HfApi(token=token, library_name="hf_avfusion")
    message = commit_message or f"Upload {type(without_adapter(model)).__name__}"
    if "/" not in repo_id:  # the card's code example needs the full name
        with _readable_errors(repo_id, api.endpoint):
            repo_id = f"{_retried(api.whoami, attempts)['name']}/{repo_id}"
    with tempfile.TemporaryDirectory(prefix="hf_avfusion-push-") as temporary:
        folder = Path(temporary) / "export"
        _write(model, processor, folder, card, repo_id, max_shard_size)  # before the first request to the Hub
        with _readable_errors(repo_id, api.endpoint):
            if create_repo and not create_pr:
                _retried(lambda: api.create_repo(repo_id, private=private, exist_ok=True), attempts)
            if revision is not None and not create_pr and not revision.startswith("refs/"):
                _retried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), attempts)
            listed = _retried(lambda: api.list_repo_files(repo_id, revision=revision), attempts)
            # Weight files of another sharding, which would be loaded instead of the new ones.
            stale = [name for name in listed if _is(name, WEIGHTS) and not (folder / name).exists()]
            return _retried(
                lambda: api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    revision=revision,
                    create_pr=create_pr,
                    commit_message=message,
                    delete_patterns=stale if without_adapter(model) is model and stale else None,
                ),
                attempts,
            )


def exported_files(folder: str | os.PathLike) -> list[tuple[str, int]]:
    """Names and sizes (bytes) of the files of a folder, as `push` would send them."""
    return [(file.name, file.stat().st_size) for file in sorted(Path(folder).iterdir()) if file.is_file()]


# ------------------------------------------------------------------------------------------------------------ the folder


def _write(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path,
    card: CardDetails | ModelCard | None,
    repo_id: str,
    max_shard_size: int | str,
) -> None:
    base = without_adapter(model)
    for name, value, kind in (("model", base, PreTrainedModel), ("processor", processor, ProcessorMixin)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        if not type(value).__module__.startswith(tuple(f"{__package__}.{package}." for package in EXPORTED_PACKAGES)):
            raise ValueError(
                f"{type(value).__module__}.{type(value).__name__} is not a class of hf_avfusion, so its code cannot be exported: "
                "pass an instance of a class of this package (load the checkpoint after `import hf_avfusion`), or use "
                "register_for_auto_class and push_to_hub of transformers"
            )
    row = next((row for row in ARCHITECTURES if row[0] is type(base.config)), None)
    if row is None:
        known = ", ".join(config.model_type for config, *_ in ARCHITECTURES)
        raise ValueError(
            f"{type(base).__name__} has the config {type(base.config).__name__}: pass a model of an architecture of this "
            f"package ({known})"
        )
    _warn_unnamed_labels(base)

    folder.mkdir(parents=True)
    processor.save_pretrained(folder)
    references = _processor_references(processor)
    processor_map = {name: _flat(reference) for name, reference in references.items()}
    if base is model:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        model_references = _model_references(row, model.config)
        references |= model_references
        code_entries = {"auto_map": {name: _flat(reference) for name, reference in model_references.items()}}
        task = task_of(model)
        if task is not None and task.pipeline is not None:
            pt = [
                auto.__name__
                for auto, reference in row[2].items()
                if reference.endswith(f":{type(model).__name__}") and auto not in OWN_AUTO_CLASSES
            ]
            entry = task.pipeline
            implementation = entry.reference.replace(":", ".")
            code_entries["custom_pipelines"] = {
                entry.name: {"impl": _flat(implementation), "pt": pt, "type": entry.type}
            }
            references["pipeline"] = f"{__package__}.{implementation}"
        _add_to_json(folder / "config.json", code_entries)
    else:
        _write_adapter(model, folder)
    _add_to_json(folder / "processor_config.json", {"auto_map": processor_map})
    for file in _code_files(references.values()):
        (folder / file.name).write_text(_flattened(file), encoding="utf-8")
    text = card if isinstance(card, ModelCard) else build_card(base, processor, card or CardDetails(), repo_id, model)
    (folder / "README.md").write_text(str(text), encoding="utf-8")


def _write_adapter(model: Any, folder: Path) -> None:
    """Saves the adapter of a PeftModel, and checks that it names its base checkpoint."""
    model.save_pretrained(folder)
    saved = json.loads((folder / "adapter_config.json").read_text())
    if not saved.get("base_model_name_or_path"):
        raise ValueError(
            "the adapter's config does not name its base checkpoint: load the base model with from_pretrained before "
            "get_peft_model, or set model.peft_config['default'].base_model_name_or_path"
        )


def _flat(reference: str) -> str:
    """hf_avfusion.models.mbt.modeling_mbt.MBTModel -> modeling_mbt.MBTModel, its name in an exported folder."""
    return ".".join(reference.split(".")[-2:])


def _model_references(row: tuple, config: PreTrainedConfig) -> dict[str, str]:
    """Full names of a configuration's class and of the model classes that it can build, by Auto class of transformers."""
    config_class, _, models = row
    references = {"AutoConfig": f"{config_class.__module__}.{config_class.__name__}"}
    for auto_class, reference in models.items():
        if auto_class not in OWN_AUTO_CLASSES and _can_build(load_reference(reference), config):
            references[auto_class.__name__] = f"{__package__}.{reference.replace(':', '.')}"
    return references


def _can_build(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether a configuration is one of this model. A head for masks, for example, needs a backbone with four stages."""
    try:
        with torch.device("meta"):
            model_class(copy.deepcopy(config))
    except ValueError:
        return False
    return True


def _processor_references(processor: ProcessorMixin) -> dict[str, str]:
    parts = {"AutoProcessor": processor}
    parts |= {"AutoVideoProcessor": processor.video_processor, "AutoFeatureExtractor": processor.feature_extractor}
    return {name: f"{type(part).__module__}.{type(part).__name__}" for name, part in parts.items()}


def _relative_imports(file: Path) -> Iterator[tuple[ast.ImportFrom, Path]]:
    """Every relative import of a file, also inside functions, and the imported file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield node, file.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")


def _with_imports(files: set[Path], is_code: Callable[[Path], bool] = lambda file: True) -> set[Path]:
    """The files and all files that they import by relative imports, directly or indirectly, if they are code."""
    found, waiting = set(), set(files)
    while waiting:
        file = waiting.pop()
        if is_code(file):
            found.add(file)
            waiting |= {imported for _, imported in _relative_imports(file)} - found
    return found


def _code_files(references: Iterable[str]) -> list[Path]:
    """The files of the referenced classes (`hf_avfusion.<sub-package>.<module>.<Class>`) and of all their imports."""
    modules = (reference.split(".")[1:-1] for reference in references)
    return sorted(_with_imports({PACKAGE.joinpath(*module).with_suffix(".py") for module in modules}))


def _flattened(file: Path) -> str:
    """The text of a file with `from ..package.name import x` as `from .name import x`: an export is one flat folder."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for node, imported in _relative_imports(file):
        written = f"from {'.' * node.level}{node.module} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(written, f"from .{imported.stem} import")
    return "".join(lines)


def _exported_code(folder: Path) -> set[str]:
    """Names of the code files of an earlier export of any version: those in its maps to the code, and their imports."""
    modules = set()
    for name in ("config.json", "processor_config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            references = [*content.get("auto_map", {}).values()]
            references += [entry["impl"] for entry in content.get("custom_pipelines", {}).values()]
            modules |= {reference.partition(".")[0] for reference in references}
        except (OSError, ValueError, AttributeError, KeyError, TypeError):
            continue
    files = {folder / f"{module}.py" for module in modules}
    return {file.name for file in _with_imports(files, lambda file: file.parent == folder and file.is_file())}


def _add_to_json(path: Path, entries: dict[str, Any]) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **entries}
    if path.name == "processor_config.json":
        by_part = {"video_processor": "AutoVideoProcessor", "feature_extractor": "AutoFeatureExtractor"}
        for part, auto_class in by_part.items():
            content[part]["auto_map"] = {auto_class: entries["auto_map"][auto_class]}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _warn_unnamed_labels(model: PreTrainedModel) -> None:
    names = model.config.id2label or {}
    task = task_of(model)
    if task is not None and task.class_heads(model.config) and all(name == f"LABEL_{i}" for i, name in names.items()):
        logger.warning(
            "the labels have no names (LABEL_0, LABEL_1, ...), so users cannot interpret the scores: set "
            "model.config.id2label = dict(enumerate(names)) before the export"
        )


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: pass a folder that does not exist yet")
    there = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not there:
        return
    if not overwrite:
        raise ValueError(f"{folder} is not empty: pass another folder, or overwrite=True to replace an earlier export")
    code = _exported_code(folder)
    if foreign := [name for name in there if name not in code and not _is(name, OWN_FILES)]:
        raise ValueError(
            f"{folder} holds files that are not of an export ({', '.join(foreign[:5])}), which overwrite=True would delete: "
            "pass another folder"
        )


# -------------------------------------------------------------------------------------------------------------- the Hub


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a valid repository id: pass 'name' or 'org/name' ({error})") from error


def _is_temporary(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in RETRIED
    if isinstance(error, OfflineModeIsEnabled):  # a subclass of ConnectionError
        return False
    # The HTTP library of huggingface_hub raises its own errors for a lost connection or a timeout.
    from_http = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")
    return from_http or isinstance(error, (ConnectionError, TimeoutError))


def _retried(action: Callable[[], Any], attempts: int) -> Any:
    """Returns the result of `action`, which is repeated after temporary errors. Repeating a commit is safe: a commit is
    atomic, and a second one with the same files changes nothing.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == attempts or not _is_temporary(error):
                raise
            wait = 0.5 * 2**attempt
            logger.warning(f"attempt {attempt} of {attempts} failed ({_reason(error)}); retrying in {wait:g} s")
            time.sleep(wait)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@contextmanager
def _readable_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turns errors of the Hub into a `HubError` that names the repository, the reason and the remedy."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id} was not pushed: HF_HUB_OFFLINE is set; unset it") from error
    except RevisionNotFoundError as error:
        raise HubError(
            f"{repo_id} was not pushed: it has no such revision ({_reason(error)}); pass an existing one"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            why = "the token is missing or invalid (401): log in with `hf auth login`, set HF_TOKEN, or pass token="
        elif status == 403:
            why = "the token has no write access (403): use a token with write access to this repository"
        elif isinstance(error, RepositoryNotFoundError) or status == 404:
            why = "no such repository, or the token has no read access (404): create it, or pass create_repo=True"
        else:
            why = _reason(error)
        raise HubError(f"{repo_id} was not pushed and has no new commit. {endpoint}: {why}") from error
    except Exception as error:
        if not _is_temporary(error):
            raise
        raise HubError(
            f"{repo_id} was not pushed: {endpoint} cannot be reached ({_reason(error)}): push again; uploaded files are not "
            "sent twice"
        ) from error


__all__ = ["CardDetails", "HubError", "export", "exported_files", "push"]
