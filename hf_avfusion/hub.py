"""
A checkpoint that travels: weights, preprocessing, label names, model card, and the code that runs it without this package.

    from hf_avfusion import hub

    hub.export(model, processor, "folder")                        # a folder that loads anywhere
    hub.push(model, processor, "org/mbt-sounding-shapes")         # the same as one commit of a Hub repository

    AutoModelForVideoClassification.from_pretrained("org/mbt-sounding-shapes", trust_remote_code=True)   # no hf_avfusion needed
    AutoModelForVideoClassification.from_pretrained("org/mbt-sounding-shapes")                           # after import hf_avfusion

Nothing is registered on classes: the maps to the code are written into the exported files alone, so that ordinary saves, in
training for example, stay as they are.
"""

import ast
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils import logging

from .auto import ARCHITECTURES, AutoModelForAudioVisualClassification
from .model_card import CardDetails, build_card
from .tasks import task_of

logger = logging.get_logger(__name__)

PACKAGE = Path(__file__).parent
ROOMS = ("media", "processing", "models")  # the code that travels with a checkpoint
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
OWN_FILES = (
    *WEIGHTS,
    *ADAPTER,
    "config.json",
    "processor_config.json",
    "README.md",
)  # what an export holds, beside code
RETRIED = (408, 429, 500, 502, 503, 504)


class HubError(OSError):
    """A push that did not happen: which repository, why, and what to do."""


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
        model: one of this package's models, or a `peft.PeftModel` around one (then the adapter alone is written).
        processor: its processor.
        folder: where to; must not exist, or be empty. It appears when all of it is written, or not at all.
        card: what the model card is to say of this checkpoint, or a card of your own.
        repo_id: the name under which the card's lines load it; default: the folder's.
        max_shard_size: weights beyond it are split into several files.
        overwrite: replace an earlier export in that folder; a folder that holds anything else is never touched.

    Returns:
        The folder: `model*.safetensors`, `config.json` and `processor_config.json` with maps to the code, the code (`*.py`),
        `README.md`.

    Raises:
        ValueError: a model or processor whose code would not travel, a folder that is not free, or details of the card that
            contradict each other.
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
    """Exports a model and its processor and uploads the result as one commit: all of it arrives, or nothing.

    Args:
        model, processor, card, max_shard_size: see `export`.
        repo_id: "org/name", or "name" in the namespace of the token's user.
        private: of a repository that is created.
        create_repo: create it where it does not exist; a pull request never creates one.
        revision: branch, created where it does not exist; default "main".
        create_pr: open a pull request instead of committing to the branch.
        commit_message: default `"Upload <class of the model>"`.
        token: default: the one of `hf auth login` or `HF_TOKEN`.
        attempts: how often an upload is tried when the server fails (5xx, 429) or the connection is lost, with growing
            pauses. What was uploaded is not sent again.

    Returns:
        What `HfApi.upload_folder` returns: `.oid` of the commit, `.pr_url` of a pull request.

    Raises:
        ValueError: as `export`, and a `repo_id` that is none. HubError: the Hub refused, or stayed out of reach.
    """
    _check_repo_id(repo_id)
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    api = HfApi(token=token, library_name="hf_avfusion")
    message = commit_message or f"Upload {type(_without_adapter(model)).__name__}"
    if "/" not in repo_id:  # the card's lines need the whole name
        with _told_plainly(repo_id, api.endpoint):
            repo_id = f"{_retried(api.whoami, attempts)['name']}/{repo_id}"
    with tempfile.TemporaryDirectory(prefix="hf_avfusion-push-") as temporary:
        folder = Path(temporary) / "export"
        _write(model, processor, folder, card, repo_id, max_shard_size)  # before anything is asked of the Hub
        with _told_plainly(repo_id, api.endpoint):
            if create_repo and not create_pr:
                _retried(lambda: api.create_repo(repo_id, private=private, exist_ok=True), attempts)
            if revision is not None and not create_pr and not revision.startswith("refs/"):
                _retried(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), attempts)
            listed = _retried(lambda: api.list_repo_files(repo_id, revision=revision), attempts)
            # Of another sharding: they would be loaded in place of these.
            stale = [name for name in listed if _is(name, WEIGHTS) and not (folder / name).exists()]
            return _retried(
                lambda: api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    revision=revision,
                    create_pr=create_pr,
                    commit_message=message,
                    delete_patterns=stale if _without_adapter(model) is model and stale else None,
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
    base = _without_adapter(model)
    for name, value, kind in (("model", base, PreTrainedModel), ("processor", processor, ProcessorMixin)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        if not type(value).__module__.startswith(tuple(f"{__package__}.{room}." for room in ROOMS)):
            raise ValueError(
                f"{type(value).__module__}.{type(value).__name__} is no class of hf_avfusion, so its code would not travel: "
                "give an instance of the package's own class (load the checkpoint after `import hf_avfusion`), or use "
                "transformers' register_for_auto_class and push_to_hub"
            )
    row = next((row for row in ARCHITECTURES if row[0] is type(base.config)), None)
    if row is None:
        known = ", ".join(config.model_type for config, *_ in ARCHITECTURES)
        raise ValueError(
            f"{type(base).__name__} has the config {type(base.config).__name__}; architectures are {known}"
        )
    _tell_unnamed_labels(base)

    folder.mkdir(parents=True)
    processor.save_pretrained(folder)
    references = _processor_references(processor)
    processor_map = {name: _flat(reference) for name, reference in references.items()}
    if base is model:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        model_references = _model_references(row)
        references |= model_references
        about_code = {"auto_map": {name: _flat(reference) for name, reference in model_references.items()}}
        task = task_of(model)
        if task is not None and task.pipeline is not None:
            names = [
                auto.__name__ for auto, reference in row[2].items() if reference.endswith(f":{type(model).__name__}")
            ]
            pt = [name for name in names if name != AutoModelForAudioVisualClassification.__name__]
            entry = task.pipeline
            implementation = {"impl": _flat(entry.implementation), "pt": pt, "type": entry.type}
            about_code["custom_pipelines"] = {entry.name: implementation}
            references["pipeline"] = f"{__package__}.{entry.implementation}"
        _add_to_json(folder / "config.json", about_code)
    else:
        _write_adapter(model, folder)
    _add_to_json(folder / "processor_config.json", {"auto_map": processor_map})
    for file in _code_files(references.values()):
        (folder / file.name).write_text(_flattened(file), encoding="utf-8")
    text = card if isinstance(card, ModelCard) else build_card(base, processor, card or CardDetails(), repo_id, model)
    (folder / "README.md").write_text(str(text), encoding="utf-8")


def _without_adapter(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _write_adapter(model: Any, folder: Path) -> None:
    """The adapter of a PeftModel, and which checkpoint it belongs to."""
    model.save_pretrained(folder)
    saved = json.loads((folder / "adapter_config.json").read_text())
    if not saved.get("base_model_name_or_path"):
        raise ValueError(
            "the adapter does not say which checkpoint it was trained on: load the base model with from_pretrained before "
            "get_peft_model, or set model.peft_config['default'].base_model_name_or_path"
        )


def _flat(reference: str) -> str:
    """hf_avfusion.models.mbt.modeling_mbt.MBTModel -> modeling_mbt.MBTModel, its name in an exported folder."""
    return ".".join(reference.split(".")[-2:])


def _model_references(row: tuple) -> dict[str, str]:
    """Full names of a model's config and of every class that the architecture has under an Auto class of transformers."""
    config, _, models = row
    references = {"AutoConfig": f"{config.__module__}.{config.__name__}"}
    for auto_class, reference in models.items():
        if auto_class is not AutoModelForAudioVisualClassification:  # transformers has no name for it
            references[auto_class.__name__] = f"{__package__}.{reference.replace(':', '.')}"
    return references


def _processor_references(processor: ProcessorMixin) -> dict[str, str]:
    parts = {"AutoProcessor": processor}
    parts |= {"AutoVideoProcessor": processor.video_processor, "AutoFeatureExtractor": processor.feature_extractor}
    return {name: f"{type(part).__module__}.{type(part).__name__}" for name, part in parts.items()}


def _relative_imports(file: Path) -> Iterator[tuple[ast.ImportFrom, Path]]:
    """Every `from .name import ...` of a file, also inside functions, and the file that it reads."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            yield node, file.parents[node.level - 1].joinpath(*node.module.split(".")).with_suffix(".py")


def _with_imports(files: set[Path]) -> set[Path]:
    """The files and everything that they import by relative imports, directly or not."""
    found, waiting = set(), set(files)
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= {imported for _, imported in _relative_imports(file)} - found
    return found


def _code_files(references: Iterable[str]) -> list[Path]:
    """The files of the referenced classes (`hf_avfusion.<room>.<module>.<Class>`) and of all that they import."""
    modules = (reference.split(".")[1:-1] for reference in references)
    return sorted(_with_imports({PACKAGE.joinpath(*module).with_suffix(".py") for module in modules}))


def _flattened(file: Path) -> str:
    """A file's text with `from ..room.name import x` as `from .name import x`: in an export all files lie in one folder."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for node, imported in _relative_imports(file):
        written = f"from {'.' * node.level}{node.module} import"
        lines[node.lineno - 1] = lines[node.lineno - 1].replace(written, f"from .{imported.stem} import")
    return "".join(lines)


def _exported_code(folder: Path) -> set[str]:
    """Names of the code files of an earlier export, whatever version wrote it: those that its maps to the code reach."""
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
    found: set[Path] = set()
    while files:
        file = files.pop()
        if file not in found and file.parent == folder and file.is_file():
            found.add(file)
            files |= {imported for _, imported in _relative_imports(file)}
    return {file.name for file in found}


def _add_to_json(path: Path, entries: dict[str, Any]) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **entries}
    if path.name == "processor_config.json":
        by_part = {"video_processor": "AutoVideoProcessor", "feature_extractor": "AutoFeatureExtractor"}
        for part, auto_class in by_part.items():
            content[part]["auto_map"] = {auto_class: entries["auto_map"][auto_class]}
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tell_unnamed_labels(model: PreTrainedModel) -> None:
    names = model.config.id2label or {}
    task = task_of(model)
    if task is not None and task.class_heads(model.config) and all(name == f"LABEL_{i}" for i, name in names.items()):
        logger.warning(
            "the labels have no names (LABEL_0, LABEL_1, ...): set model.config.id2label = dict(enumerate(names)) before, "
            "or no one will know what the scores mean"
        )


def _is(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder that does not exist yet")
    there = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not there:
        return
    if not overwrite:
        raise ValueError(
            f"{folder} is not empty: name another folder, or pass overwrite=True to replace an earlier export"
        )
    code = _exported_code(folder)
    if foreign := [name for name in there if name not in code and not _is(name, OWN_FILES)]:
        raise ValueError(
            f"{folder} holds more than an export ({', '.join(foreign[:5])}), which overwrite=True would delete: name another "
            "folder"
        )


# -------------------------------------------------------------------------------------------------------------- the Hub


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a Hub repository ('name' or 'org/name'): {error}") from error


def _from_http(error: BaseException) -> bool:
    """Whether an error came from the HTTP library (huggingface_hub's choice of it, not ours): a lost connection, a timeout."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2")


def _passing(error: Exception) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in RETRIED
    if isinstance(error, OfflineModeIsEnabled):  # a ConnectionError by its class
        return False
    return _from_http(error) or isinstance(error, (ConnectionError, TimeoutError))


def _retried(action: Callable[[], Any], attempts: int) -> Any:
    """What `action` returns, tried again after failures that pass. A commit is all or nothing, and one that had arrived
    before the connection was lost is found to change nothing.
    """
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == attempts or not _passing(error):
                raise
            wait = 0.5 * 2**attempt
            logger.warning(f"attempt {attempt} of {attempts} failed ({_reason(error)}); again in {wait:g} s")
            time.sleep(wait)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@contextmanager
def _told_plainly(repo_id: str, endpoint: str) -> Iterator[None]:
    """Whatever the Hub answers, one message: which repository, why, what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"{repo_id} was not pushed: HF_HUB_OFFLINE is set; unset it") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo_id} was not pushed: it has no such revision ({_reason(error)})") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            why = "it does not know the token (401): log in with `hf auth login`, set HF_TOKEN, or pass token="
        elif status == 403:
            why = "the token may not write there (403): use one with the right to write to this repository"
        elif isinstance(error, RepositoryNotFoundError) or status == 404:
            why = "there is no such repository, or the token may not see it (404): create it, or pass create_repo=True"
        else:
            why = _reason(error)
        raise HubError(f"{repo_id} was not pushed, nothing was committed. {endpoint}: {why}") from error
    except Exception as error:
        if not _passing(error):
            raise
        raise HubError(
            f"{repo_id} was not pushed: {endpoint} cannot be reached ({_reason(error)}); push again, what is there already is "
            "not sent twice"
        ) from error


__all__ = ["CardDetails", "HubError", "export", "exported_files", "push"]
