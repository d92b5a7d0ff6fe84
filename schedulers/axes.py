"""The axes that plots are drawn on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['new_axes']


def new_axes() -> Axes:
    """Return the axes of a new figure; raise an ``ImportError`` if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot() needs matplotlib: pip install matplotlib.') from error
    return Figure(figsize=(4.5, 3), layout='constrained').add_subplot()
