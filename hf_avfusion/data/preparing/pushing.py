"""Shards of a folder to a dataset repository on the Hub, as they are, with a card; what is there already is not sent again."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...media.sources import one_line
from ..benchmarks.loading import get_record
from ..benchmarks.records import Benchmark
from ..benchmarks.shards import count_rows, find_shards
from .coverage import REPORT, read_reports, write_text
from .shards import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

logger = logging.getLogger(__name__)

SHARD = re.compile(r"(?:data/)?(\w+)-\d+-of-\d+\.parquet")
COMMIT_FILES, COMMIT_BYTES = 20, 4 * 2**30  # of one commit: many shards make few commits, a stop loses little
ATTEMPTS = 5
LICENSES = {"Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}  # those with a name on the Hub; others: "other"
TASKS = {  # a benchmark's task -> the Hub's category
    "classification": "video-classification",
    "multi-label classification": "video-classification",
    "verb and noun classification": "video-classification",
    "audio classification": "audio-classification",
    "question answering": "visual-question-answering",
    "segmentation": "image-segmentation",
}


def push_shards(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    name: str | None = None,
    variant: str | None = None,
    private: bool = True,
    token: str | None = None,
    wait: float = 2.0,
    progress: bool = True,
) -> str:
    """Uploads the parquet shards of a folder; `load_benchmark(name, split, source=repo_id)` streams them back.

    The card (`README.md`: splits, licence, citation, coverage) is written into the folder first, unless there is one,
    whose text stays. It is sent last, so a repository with a card is complete. A push that was stopped goes on when it
    is repeated: shards whose content is in the repository are not sent again.

    Args:
        folder: with shards `<split>-0000k-of-0000n.parquet`, in it or in its `data`.
        repo_id: "org/name", made if it does not exist.
        name, variant: the benchmark, for the card; by default what `preparing` noted in the folder.
        private: of a repository that is made here; most benchmarks hold videos that others own.
        token: of the Hub; by default the one you are logged in with.
        wait: s before the first of up to 4 repetitions after a failing connection or server; it doubles each time.

    Returns:
        the address of the repository.

    Raises:
        FileNotFoundError: the folder has no shards, or not all of them. ValueError: a shard is damaged, or the repository
        holds other shards of the same split, which would mix with these. HfHubHTTPError: the Hub refuses, or does not work at all.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from tqdm.auto import tqdm

    check_repo_id(repo_id)
    folder = Path(folder)
    shards = folder_shards(folder)
    for split in shards:  # a damaged one is told before anything is sent
        count_rows(folder, split)
    about = _manifest(folder)
    if name is None and about.get("data"):
        name, variant = about["data"], variant or about.get("variant")
    record = None if name is None else get_record(name, variant)
    card = write_card(folder, shards, repo_id, record)

    api = HfApi(token=token)
    _patiently(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True), wait)
    there = _patiently(lambda: _files_there(api, repo_id), wait)
    paths = {f"data/{shard.name}": shard for found in shards.values() for shard in found}
    others = [path for path in there if (match := SHARD.fullmatch(path)) and match[1] in shards and path not in paths]
    if others:
        raise ValueError(
            f"{repo_id} holds other shards of {', '.join(sorted({SHARD.fullmatch(path)[1] for path in others}))}"
            f" ({', '.join(others[:3])}), which would mix with these; delete them there or choose another repository"
        )
    extras = [card, *(path for ending in ("json", "csv", "md") if (path := folder / f"{REPORT}.{ending}").exists())]
    total = sum(shard.stat().st_size for shard in paths.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"pushing to {repo_id}", disable=not progress) as bar:
        for batch in _batches(paths):
            missing = {}
            for path, shard in batch.items():
                addition = CommitOperationAdd(path, shard)  # reads the file for its hash
                if not _same(addition, shard, there.get(path)):
                    missing[path] = shard
            if missing:
                _patiently(lambda missing=missing: _commit(api, repo_id, missing, "Shards"), wait)
            bar.update(sum(shard.stat().st_size for shard in batch.values()))
    _patiently(lambda: _commit(api, repo_id, {path.name: path for path in extras}, "Card and coverage"), wait)
    return f"{api.endpoint}/datasets/{repo_id}"


def check_repo_id(repo_id: str) -> None:
    """Whether a name can be that of a repository; ask it before work that a push is to end.

    Raises:
        ValueError: it is not like "org/name".
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) is None:
        raise ValueError(f"repo_id must be like org/name, got {repo_id!r} (prepare_benchmark.py: --push)")


def folder_shards(folder: Path) -> dict[str, list[Path]]:
    """Split -> its shards, all of them.

    Raises:
        FileNotFoundError: when there are none, or some of a split are missing.
    """
    names = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    splits = sorted({match[1] for path in names if (match := SHARD.fullmatch(path.name))}, key=_split_order)
    if not splits:
        raise FileNotFoundError(f"{folder} holds no shards (<split>-0000k-of-0000n.parquet, in it or in its data)")
    return {split: find_shards(folder, split) for split in splits}


def _split_order(split: str) -> tuple[int, str]:
    known = ("train", "validation", "test", "eval")
    return (known.index(split) if split in known else len(known), split)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _batches(paths: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    batch: dict[str, Path] = {}
    size = 0
    for path, shard in paths.items():
        if batch and (len(batch) >= COMMIT_FILES or size + shard.stat().st_size > COMMIT_BYTES):
            yield batch
            batch, size = {}, 0
        batch[path] = shard
        size += shard.stat().st_size
    if batch:
        yield batch


def _files_there(api: HfApi, repo_id: str) -> dict[str, str]:
    """Path -> sha256 of a large file, git's hash of a small one."""
    from huggingface_hub import RepoFile

    tree = api.list_repo_tree(repo_id, repo_type="dataset", recursive=True)
    return {
        file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id
        for file in tree
        if isinstance(file, RepoFile)
    }


def _same(addition: CommitOperationAdd, file: Path, known: str | None) -> bool:
    from huggingface_hub.utils.sha import git_hash

    if known is None:
        return False
    if len(known) == 64:
        return addition.upload_info.sha256.hex() == known
    return git_hash(file.read_bytes()) == known


def _commit(api: HfApi, repo_id: str, files: Mapping[str, Path], message: str) -> None:
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(path, file) for path, file in files.items()]
    api.create_commit(repo_id, additions, commit_message=message, repo_type="dataset")


def _patiently(call: Callable[[], Any], wait: float) -> Any:
    """Repeats a call that failed for the connection or the server, not one that was refused."""
    from huggingface_hub.errors import HfHubHTTPError

    # A lost connection is an error of the HTTP library that huggingface_hub has chosen: the base of its own error.
    http_error = HfHubHTTPError.__bases__[0]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except http_error as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            refused = status is not None and status < 500 and status != 429
            if refused or attempt == ATTEMPTS:
                raise
            pause = wait * 2 ** (attempt - 1)
            logger.warning("the Hub: %s; again in %g s (%d of %d)", one_line(error), pause, attempt, ATTEMPTS - 1)
            time.sleep(pause)
    raise AssertionError  # the last attempt returns or raises


def write_card(folder: Path, shards: Mapping[str, Sequence[Path]], repo_id: str, record: Benchmark | None) -> Path:
    """`README.md` of the folder: its own, with the splits brought up to date, or a new one."""
    from huggingface_hub import DatasetCard, DatasetCardData

    file = folder / "README.md"
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in shards]
    configs = [{"config_name": "default", "data_files": files}]
    if file.exists():
        card = DatasetCard.load(file)
        card.data.configs = configs
        text = str(card)
    else:
        data = {"configs": configs}
        if record is not None:
            data |= {"pretty_name": record.title, "license": LICENSES.get(record.license, "other")}
            if data["license"] == "other":
                data["license_name"] = "see-text"
            if record.task in TASKS:
                data["task_categories"] = [TASKS[record.task]]
        text = f"---\n{DatasetCardData(**data).to_yaml()}\n---\n\n{_card_body(folder, shards, repo_id, record)}"
    write_text(file, text)
    return file


def _card_body(folder: Path, shards: Mapping[str, Sequence[Path]], repo_id: str, record: Benchmark | None) -> str:
    import pyarrow.parquet as pq

    reports, about = read_reports(folder), _manifest(folder)
    counts = {split: count_rows(folder, split) for split in shards}
    columns = pq.read_schema(next(iter(shards.values()))[0]).names
    title = record.title if record is not None else repo_id.partition("/")[2]
    lines = [f"# {title}", ""]
    if record is not None:
        lines += [
            f"{record.task.capitalize()}, measured by {record.metric}. Clips with both tracks, in parquet shards.",
            "",
        ]
    lines += ["| split | clips | annotated | vanished | do not decode |", "|---|---|---|---|---|"]
    for split, count in counts.items():
        report = reports.get(split)
        rest = (
            f"{report.annotated:,} | {len(report.vanished):,} | {len(report.undecodable):,}" if report else "- | - | -"
        )
        lines.append(f"| {split} | {count:,} | {rest} |")
    if reports:
        lines += ["", f"`{REPORT}.json` names every clip that is missing, `{REPORT}.csv` counts them per class."]
    if about:
        changes = [f"cut to the annotated part: {'yes' if about['trim'] else 'no'}"]
        changes += [f"{key} {about[key]}" for key in ("short_side", "fps") if about.get(key)]
        lines += ["", f"The clips: {', '.join(changes)}."]
    lines += ["", f"Columns: {', '.join(columns)}.", "", "```python"]
    split = next(iter(counts))
    if record is not None:
        chosen = f", variant={about['variant']!r}" if about.get("variant") else ""
        lines += [
            "from hf_avfusion import load_benchmark",
            "",
            f'rows = load_benchmark("{record.name}", "{split}", source="{repo_id}"{chosen})',
        ]
    else:
        lines += [
            "from datasets import load_dataset",
            "",
            f'rows = load_dataset("{repo_id}", split="{split}", streaming=True).decode(False)',
        ]
    lines += ["```", ""]
    if record is not None:
        lines += ["## Licence", "", record.license, "", "## Citation", "", record.citation, ""]
    return "\n".join(lines)
