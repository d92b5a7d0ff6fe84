"""Plots for the pages: transparent, in colours that can be read on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path

from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.text import Text

__all__ = ['save']

GREY = '#808080'


def save(figure: Figure, path: Path) -> None:
    """Save a figure without a background, with grey axes and labels."""
    for text in figure.findobj(Text):
        if same_color(text.get_color(), 'black'):
            text.set_color(GREY)
    for ax in figure.axes:
        ax.tick_params(which='both', color=GREY, labelcolor=GREY)
        if ax.images:
            ax.grid(visible=False)
        else:
            ax.grid(visible=True, alpha=0.25)
        for name, spine in ax.spines.items():
            spine.set_color(GREY)
            spine.set_visible(spine.get_visible() and name != 'top')
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130, transparent=True)
