"""Gradient centralization: the option ``centralize`` of every optimizer, and the stage that applies it."""

from __future__ import annotations

from dataclasses import KW_ONLY

from braintools_optim.options.fields import Options
from braintools_optim.step.stage import Leaf, Stage

__all__ = ['CENTRALIZE', 'Centralization']


class Centralization(Options):
    """The option ``centralize``, which :class:`Optimizer` describes."""

    _: KW_ONLY
    centralize: bool = False


def subtract_mean(leaf: Leaf) -> Leaf:
    """Subtract from the gradient of each unit its mean over the unit's inputs (Yong et al., 2020)."""
    g = leaf.gradient
    return leaf.with_gradient(g - g.mean(axis=tuple(range(g.ndim - 1)), keepdims=True))


CENTRALIZE = Stage(subtract_mean, lambda leaf: leaf.hp.centralize and leaf.gradient.ndim > 1)
