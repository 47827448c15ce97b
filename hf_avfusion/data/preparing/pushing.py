"""Uploads the shards of a folder to a dataset repository on the Hub, with a card; skips files that it already has."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import read_json, write_text
from ...media.sources import one_line
from ...tasks import task_of_benchmark
from ..benchmarks.loading import get_record
from ..benchmarks.records import Benchmark
from ..benchmarks.shards import count_rows, find_shards
from .coverage import REPORT, read_reports
from .settings import check_repo_id
from .shards import MANIFEST

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

logger = logging.getLogger(__name__)

SHARD = re.compile(r"(?:data/)?(\w+)-\d+-of-\d+\.parquet")
COMMIT_FILES, COMMIT_BYTES = 20, 4 * 2**30  # limits of one commit: few commits, but a stopped push loses little
ATTEMPTS = 5
LICENSES = {"Apache-2.0": "apache-2.0", "CC BY-NC 4.0": "cc-by-nc-4.0"}  # -> names on the Hub; all others: "other"


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

    The card (`README.md`: splits, licence, citation, coverage) is written into the folder first; the text of an existing
    card stays. The card is uploaded last, so a repository with a card is complete. Repeat a stopped push to continue it:
    shards that the repository already has are not uploaded again.

    Args:
        folder: folder with shards `<split>-0000k-of-0000n.parquet`, in it or in its `data`.
        repo_id: "org/name", created if it does not exist.
        name, variant: the benchmark, for the card; by default, those in the folder's `preparation.json`.
        private: whether a new repository is private; most benchmarks contain videos that others own.
        token: Hub token; by default, the one you are logged in with.
        wait: seconds before the first of up to 4 retries after a connection or server error; doubles with each retry.

    Returns:
        the URL of the repository.

    Raises:
        FileNotFoundError: the folder has no shards, or an incomplete set.
        ValueError: a shard is damaged, or the repository has other shards of the same split.
        HfHubHTTPError: the Hub refuses the request, or all attempts fail.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from tqdm.auto import tqdm

    check_repo_id(repo_id)
    folder = Path(folder)
    shards = folder_shards(folder)
    for split in shards:  # raises for damaged shards before anything is uploaded
        count_rows(folder, split)
    about = _manifest(folder)
    if name is None and about.get("data"):
        name, variant = about["data"], variant or about.get("variant")
    record = None if name is None else get_record(name, variant)
    card = write_card(folder, shards, repo_id, record)

    api = HfApi(token=token)
    _with_retries(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True), wait)
    uploaded = _with_retries(lambda: _uploaded_files(api, repo_id), wait)
    paths = {f"data/{shard.name}": shard for found in shards.values() for shard in found}
    others = [
        path for path in uploaded if (match := SHARD.fullmatch(path)) and match[1] in shards and path not in paths
    ]
    if others:
        raise ValueError(
            f"{repo_id} contains other shards of {', '.join(sorted({SHARD.fullmatch(path)[1] for path in others}))}"
            f" ({', '.join(others[:3])}), which would mix with these; delete them there or choose another repository"
        )
    extras = [card, *(path for ending in ("json", "csv", "md") if (path := folder / f"{REPORT}.{ending}").exists())]
    total = sum(shard.stat().st_size for shard in paths.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"pushing to {repo_id}", disable=not progress) as bar:
        for batch in _batches(paths):
            missing = {}
            for path, shard in batch.items():
                addition = CommitOperationAdd(path, shard)  # reads the file for its hash
                if not _has_hash(addition, shard, uploaded.get(path)):
                    missing[path] = shard
            if missing:
                _with_retries(lambda missing=missing: _commit(api, repo_id, missing, "Shards"), wait)
            bar.update(sum(shard.stat().st_size for shard in batch.values()))
    _with_retries(lambda: _commit(api, repo_id, {path.name: path for path in extras}, "Card and coverage"), wait)
    return f"{api.endpoint}/datasets/{repo_id}"


def folder_shards(folder: Path) -> dict[str, list[Path]]:
    """Returns the complete list of shards of each split in a folder.

    Raises:
        FileNotFoundError: there are no shards, or some of a split are missing.
    """
    names = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    splits = sorted({match[1] for path in names if (match := SHARD.fullmatch(path.name))}, key=_split_order)
    if not splits:
        raise FileNotFoundError(
            f"{folder} contains no shards (<split>-0000k-of-0000n.parquet, in it or in its data); pass a folder that"
            " prepare_benchmark or prepare_folder wrote"
        )
    return {split: find_shards(folder, split) for split in splits}


def _split_order(split: str) -> tuple[int, str]:
    known = ("train", "validation", "test", "eval")
    return (known.index(split) if split in known else len(known), split)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / MANIFEST)
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


def _uploaded_files(api: HfApi, repo_id: str) -> dict[str, str]:
    """Maps the paths in a repository to hashes: sha256 for large files, git's hash for small ones."""
    from huggingface_hub import RepoFile

    tree = api.list_repo_tree(repo_id, repo_type="dataset", recursive=True)
    return {
        file.path: file.lfs.sha256 if file.lfs is not None else file.blob_id
        for file in tree
        if isinstance(file, RepoFile)
    }


def _has_hash(addition: CommitOperationAdd, file: Path, uploaded: str | None) -> bool:
    """Whether a file has the hash of the uploaded one (None: not uploaded)."""
    from huggingface_hub.utils.sha import git_hash

    if uploaded is None:
        return False
    if len(uploaded) == 64:
        return addition.upload_info.sha256.hex() == uploaded
    return git_hash(file.read_bytes()) == uploaded


def _commit(api: HfApi, repo_id: str, files: Mapping[str, Path], message: str) -> None:
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(path, file) for path, file in files.items()]
    api.create_commit(repo_id, additions, commit_message=message, repo_type="dataset")


def _with_retries(call: Callable[[], Any], wait: float) -> Any:
    """Repeats a call after a connection or server error, but not after a refusal."""
    from huggingface_hub.errors import HfHubHTTPError

    # A lost connection raises an error of huggingface_hub's HTTP library, which is the base class of HfHubHTTPError.
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
            logger.warning("Hub error: %s; retry %d of %d in %g s", one_line(error), attempt, ATTEMPTS - 1, pause)
            time.sleep(pause)
    raise AssertionError  # the last attempt returns or raises


def write_card(folder: Path, shards: Mapping[str, Sequence[Path]], repo_id: str, record: Benchmark | None) -> Path:
    """Writes the folder's `README.md`: updates the splits of an existing card, or makes a new one."""
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
            categories = task_of_benchmark(record.task).dataset_categories
            if record.task in categories:
                data["task_categories"] = [categories[record.task]]
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
            f"{record.task.capitalize()}, measured by {record.metric}. Clips with video and audio, in parquet shards.",
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
        lines += ["", f"`{REPORT}.json` lists every missing clip; `{REPORT}.csv` counts them per class."]
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
