"""The clips that a call of a pipeline takes: one or many, and as arguments of the processor's call."""

import os
import types
from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import Dataset

from .array_inputs import encoded
from .spelling import check_spelling


class Clips(Dataset):
    """Clips whose answers are returned as a list."""

    def __init__(self, clips: Any):
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Any:
        clip = self.clips[index]
        # Of a column, a string is the content of a row, see `clip_arguments`.
        return {"path": clip} if isinstance(clip, str) and hasattr(self.clips, "column_name") else clip


def as_many(inputs: Any) -> Any:
    """`Clips` if the answers are returned as a list, an iterable if they are yielded one at a time, None for one clip."""
    if hasattr(inputs, "column_name") and hasattr(inputs, "source"):  # a column of datasets
        inputs = _undecoded(inputs)
        if isinstance(inputs, Sized):
            return Clips(inputs)
        return ({"path": clip} if isinstance(clip, str) else clip for clip in inputs)
    if isinstance(inputs, (list, tuple)):
        return Clips(inputs)
    if isinstance(inputs, (Dataset, types.GeneratorType)):
        return inputs
    one = encoded(inputs)  # a clip that datasets decoded
    if isinstance(one, (str, os.PathLike, bytes, bytearray, memoryview, dict)) or hasattr(one, "read"):
        return None
    if isinstance(inputs, Iterator):
        return (clip for clip in inputs)
    raise TypeError(
        f"got a {type(inputs).__name__}: pass a path, URL, bytes, file object or dict, or a list, generator or datasets column "
        "of these (frames and waveforms: a dict with `video`, `audio` and `sampling_rate`)"
    )


def check_loading(given: dict[str, Any]) -> None:
    """Raises ValueError for a `batch_size` below 1 or `num_workers` below 0."""
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


_FILES = ("video", "videos", "audio")  # keys of a clip that may hold a path


def clip_arguments(clip: Any, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of the processor's call for one clip; `more` are keys that the pipeline itself reads."""
    clip = encoded(clip)
    if not isinstance(clip, dict):
        return {"videos": clip}
    if "array" in clip:  # a row of datasets' `Audio`
        return {"audio": [clip]}
    content = ("bytes", "path", "video", "videos", "audio")
    if not set(content) & set(clip):
        raise TypeError(
            f"a clip passed as a dict must have `bytes` or `path`, or `video` or `audio`; got {', '.join(map(str, clip))}"
        )
    known = (*content, "sampling_rate", "start", "end", *more)
    unknown = [str(key) for key in clip if key not in known]
    if unknown and "clip_id" not in clip:
        raise TypeError(
            f"a clip passed as a dict has the unknown keys {', '.join(unknown)}; known are {', '.join(known[:-1])} "
            f"and {known[-1]}: leave the others out (only a row of a benchmark, which has a `clip_id`, may have more columns)"
        )
    check_spelling("a clip", unknown, known)
    given = {key: value for key, value in clip.items() if value is not None}
    if "clip_id" in clip:  # a row, which is untrusted: addresses are not fetched
        given = {
            key: {"path": value} if isinstance(value, str) and key in _FILES else value for key, value in given.items()
        }
    file = {key: clip[key] for key in ("bytes", "path") if key in clip}
    videos = [value for value in (file or None, given.get("video"), given.get("videos")) if value is not None]
    if len(videos) > 1:
        raise TypeError(
            "a clip passed as a dict has several of `bytes` and `path`, `video` and `videos`: leave only one"
        )
    arguments = {key: given[key] for key in ("sampling_rate", "start", "end") if key in given}
    return {"videos": videos or None, "audio": [given["audio"]] if "audio" in given else None, **arguments}


def _undecoded(column: Any) -> Any:
    """The column with its videos or sounds still encoded; otherwise datasets would decode each with torchcodec first."""
    from datasets import Audio, Video

    source, name = column.source, column.column_name
    kind = (getattr(source, "features", None) or {}).get(name)
    if isinstance(kind, (Audio, Video)) and kind.decode and hasattr(source, "cast_column"):
        return source.cast_column(name, type(kind)(decode=False))[name]
    return column


__all__ = ["Clips", "as_many", "check_loading", "clip_arguments"]
