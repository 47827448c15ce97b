"""Describes the data of a run in a few lines before the first step: classes, splits that were made, and missing modalities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from ...data.benchmarks.splits import SplitRows
from ...media.container import MediaInfo
from ...media.reader import ClipReader, MediaError

if TYPE_CHECKING:
    from .building_runs import RunData

CLIPS_LOOKED_AT = 64
NAMES_SHOWN = 10


def describe_data(
    data: RunData, classes: dict[str, tuple[str, ...]], modalities: Sequence[str], best_by: str | None = None
) -> list[str]:
    """Lines about the data of a run.

    Args:
        classes: label column -> class names (`Task.class_names`).
        modalities: of the model. The headers of up to 64 training clips are read, until each modality was found once.
        best_by: the metric that chooses the best checkpoint; None if the last one is kept.
    """
    parts = [part for part in (data.trained, data.validation, data.evaluated) if part is not None]
    lines = [f"{column}: {len(names)} classes: {_some(names)}" for column, names in classes.items()]
    made = dict.fromkeys(part.division for part in parts if part.division)
    if made:
        lines.append(f"the data have no such splits, so they were divided: {'; '.join(made)}")
        lines.append(f"clips per split: {', '.join(f'{part.split} {part.num_rows}' for part in parts)}")
    if made and "label" in classes:
        counts = [Counter(part.rows["label"]) for part in parts]
        of_class = [f"{name} {'/'.join(str(count[n]) for count in counts)}" for n, name in enumerate(classes["label"])]
        lines.append(f"clips per class ({'/'.join(part.split for part in parts)}): {_some(of_class)}")
    if best_by is not None:
        reported = "" if data.evaluated is None else f"; `{data.evaluated.split}` is evaluated once, at the end"
        lines.append(f"the best checkpoint is chosen by {best_by} on `{data.validation.split}`{reported}")
    return lines + _missing_modalities(data.trained, modalities)


def _missing_modalities(trained: SplitRows, modalities: Sequence[str]) -> list[str]:
    missing, looked = set(modalities), 0
    for info in _headers(trained.rows):
        looked += 1
        missing -= {name for name in missing if getattr(info, f"has_{name}")}
        if not missing:
            return []
    if not looked or missing == set(modalities):  # nothing could be read; the stream reports these clips
        return []
    [absent] = missing
    others = " and ".join(name for name in modalities if name != absent)
    whole = (
        "the" if looked == trained.num_rows else "the first" if not hasattr(trained.rows, "select") else "a sample of"
    )
    return [
        f"none of {whole} {looked} training clips has {absent}: the model learns from {others} alone. Check the clips, or leave"
        f' {absent} out (--config \'{{"modalities": ["{others}"]}}\')'
    ]


def _headers(rows: Any) -> Iterator[MediaInfo]:
    """The headers of some clips, spread over rows with random access; of a stream the first. Nothing is decoded."""
    if hasattr(rows, "select"):
        step = max(1, len(rows) // CLIPS_LOOKED_AT)
        chosen = (rows[number] for number in range(0, len(rows), step))
    else:
        chosen = iter(rows)
    for row in islice(chosen, CLIPS_LOOKED_AT):
        content, path = row["video"].get("bytes"), row["video"].get("path")
        if content is None and (path is None or "://" in str(path)):
            continue
        try:
            with ClipReader(content if content is not None else path, name=path) as reader:
                yield reader.info
        except (MediaError, OSError):
            continue


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names) - NAMES_SHOWN} more)" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
