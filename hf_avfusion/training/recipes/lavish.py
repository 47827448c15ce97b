"""LAVISH recipes."""

from typing import Any

# Frames and sound of training are those of evaluation: the published data loaders augment nothing.
PLAIN: dict[str, Any] = {"frame_augmentation": None, "spec_augment": None, "init_method": "from_backbone"}
