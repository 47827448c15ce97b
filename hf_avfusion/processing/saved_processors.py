"""Checks the file of a saved processor before transformers builds its parts."""

from collections.abc import Mapping
from typing import Any

PARTS = ("video_processor", "feature_extractor")


def check_parts(source: Any, fields: Mapping[str, Any] | None) -> None:
    """Raises ValueError if a part is no object with fields and the name of its class.

    Args:
        source: folder or name of the checkpoint, for the message.
        fields: the content of the file.
    """
    for name in PARTS:
        part = (fields or {}).get(name)
        kind = part.get(f"{name}_type", "") if isinstance(part, Mapping) else None
        if part is not None and not isinstance(kind, str):
            raise ValueError(
                f"{source}: `{name}` must be an object with its fields, got {part!r:.200}. The file may be corrupt."
            )


__all__ = ["check_parts"]
