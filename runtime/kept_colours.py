"""Colours of what a frame keeps, the same on a page and in a picture."""

from __future__ import annotations

from typing import Final

LOST: Final = (240, 196, 182)
NOTHING: Final = (255, 255, 255)
WHOLE: Final = (120, 190, 140)
VERBATIM: Final = "#33589c"
"""Line under what also travels as it is."""
LEGEND: Final = (
    ("all of the surprise taken away", 1.0),
    ("half of it", 0.5),
    ("none", 0.0),
    ("misled", -1.0),
)


def colour(kept: float) -> str:
    """``#rrggbb`` of a share: green towards 1, white at 0, red towards -1 and below."""
    share = min(max(kept, -1.0), 1.0)
    end = WHOLE if share > 0 else LOST
    mixed = (round(a + (b - a) * abs(share)) for a, b in zip(NOTHING, end, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)
