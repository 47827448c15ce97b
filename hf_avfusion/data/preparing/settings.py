"""How clips become shards, and the form of a repository id. Imports nothing slow, so that wrong values are answered at once."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ClipSettings:
    """How clips are changed for a shard.

    A clip is re-encoded if it is trimmed, or if `short_side` or `fps` is set; otherwise its bytes do not change.

    Args:
        trim: trim to the annotated [start, end); a file that is the clip itself is not trimmed.
        short_side: pixels of the shorter side; larger frames are resized, smaller ones are not.
        fps: frames per second; None keeps the file's (average) rate.
        crf: x264's constant rate factor, 0 (lossless) to 40.
        check: for clips that are not re-encoded: True decodes each once to find broken files, False only copies them.
    """

    trim: bool = False
    short_side: int | None = None
    fps: float | None = None
    crf: int = 20
    check: bool = True

    def __post_init__(self):
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"short_side must be at least 16 pixels, got {self.short_side}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"fps must lie in 0 (excluded) to 1000, got {self.fps}")
        if not 0 <= self.crf <= 40:
            raise ValueError(f"crf must lie in 0 (lossless) to 40, got {self.crf}")

    def encodes(self, start: float | None, end: float | None) -> bool:
        """Whether a clip with this annotated part (None: the whole file) is re-encoded."""
        trimmed = self.trim and (start is not None or end is not None)
        return trimmed or self.short_side is not None or self.fps is not None


def check_repo_id(repo_id: str) -> None:
    """Checks the form of a repository id; call it before long work that ends with a push.

    Raises:
        ValueError: the id is not like "org/name".
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) is None:
        raise ValueError(f"repo_id must be like org/name, got {repo_id!r} (prepare_benchmark.py: --push)")
