"""Draws a mask on a frame: a tint inside, and an outline."""

import numpy as np

COLOR = (255, 40, 120)  # RGB
TINT = 0.5  # share of the colour inside the mask
OUTLINE = 1 / 160  # width of the outline, as a share of the frame's short side


def outline_of(mask: np.ndarray) -> np.ndarray:
    """The pixels just outside of a mask, bool [height, width], as wide as `OUTLINE` states but at least one pixel."""
    width = max(round(min(mask.shape) * OUTLINE), 1)
    grown = np.pad(mask, width)
    for axis in (0, 1):  # a square grows by one axis after the other
        steps = [np.roll(grown, shift, axis) for shift in range(-width, width + 1)]
        grown = np.logical_or.reduce(steps)
    return grown[width:-width, width:-width] & ~mask


def draw_mask(frame: np.ndarray, mask: np.ndarray, outline: np.ndarray | None = None) -> np.ndarray:
    """A copy of a frame with a mask.

    Args:
        frame: uint8 [height, width, 3].
        mask: bool [height, width].
        outline: `outline_of(mask)`, where it is known already.
    """
    drawn = frame.copy()
    drawn[mask] = ((1 - TINT) * frame[mask] + TINT * np.array(COLOR)).round().astype(np.uint8)
    drawn[outline_of(mask) if outline is None else outline] = COLOR
    return drawn


__all__ = ["draw_mask", "outline_of"]
