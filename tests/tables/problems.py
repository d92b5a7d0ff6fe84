"""The problems on which optimizers are compared with their references: weights, and gradients for every step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ['CORRELATED', 'CURVED', 'LATE', 'LEAVES', 'LOSSES', 'MATRICES', 'SCALES', 'Arrays', 'Data', 'Problem']

Arrays = dict[str, np.ndarray]
STEPS = 200
DOUBLE = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Data:
    """The numbers of a problem, all of them exact in float32.

    ``extra`` holds what an update is given besides the gradients, by the name of the argument: an array, or a
    dict of arrays like the gradients, with one entry per step.
    """

    weights: Arrays
    gradients: Arrays
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """A named problem.

    ``recorded`` are the steps at which torch's weights are kept in the recorded file. ``rounding`` is the relative
    error of one rounding of the weight in float64, if steps are so small that it must be allowed at each of them.
    """

    name: str
    draw: Callable[[int], Data]
    steps: int = STEPS
    recorded: tuple[int, ...] = (1, 2, 20, STEPS)
    rounding: float = DOUBLE

    @functools.cached_property
    def data(self) -> Data:
        """The problem's numbers, drawn once."""
        return self.draw(self.steps)

    def __repr__(self) -> str:
        return self.name


def rounded(arrays: dict[str, Any]) -> Arrays:
    """Round to float32 and return float64, so that every dtype starts from the same numbers."""
    return {key: np.float64(np.float32(x)) for key, x in arrays.items()}


def normal(rng: np.random.Generator, shapes: dict[str, tuple[tuple[int, ...], float]], steps: int) -> Data:
    """Draw normal weights, and normal gradients on the scale of each leaf."""
    weights = {key: rng.normal(size=shape) for key, (shape, _) in shapes.items()}
    gradients = {key: scale * rng.normal(size=(steps, *shape)) for key, (shape, scale) in shapes.items()}
    return Data(rounded(weights), rounded(gradients))


def draw_scales(steps: int) -> Data:
    """Twelve leaves: three shapes, each with gradients of four scales."""
    shapes, scales = ((), (3,), (2, 2)), (1e-6, 1e-3, 1.0, 1e3)
    leaves = {f'{i}{j}': (shape, scale) for i, shape in enumerate(shapes) for j, scale in enumerate(scales)}
    return normal(np.random.default_rng(0), leaves, steps)


def draw_leaves(steps: int) -> Data:
    """Three leaves of different shapes and scales; the weights start far from zero."""
    shapes = {'scalar': ((), 1.0), 'small': ((3,), 1e-6), 'large': ((2, 3), 1e3)}
    rng = np.random.default_rng(0)
    signs = {key: rng.choice([-1, 1], size=shape) for key, (shape, _) in shapes.items()}
    weights = {key: sign * rng.uniform(2, 3, size=sign.shape) for key, sign in signs.items()}
    gradients = {key: scale * rng.normal(size=(steps, *shape)) for key, (shape, scale) in shapes.items()}
    return Data(rounded(weights), rounded(gradients))


def draw_late(steps: int) -> Data:
    """The three leaves, whose first three gradients are zero."""
    leaves = draw_leaves(steps)
    late = np.arange(steps) >= 3
    return Data(leaves.weights, {key: g * late.reshape(-1, *[1] * (g.ndim - 1)) for key, g in leaves.gradients.items()})


def draw_matrices(steps: int) -> Data:
    """Three matrices: tall, wide and square."""
    return normal(
        np.random.default_rng(3), {'tall': ((4, 3), 1.0), 'wide': ((2, 5), 1e-3), 'square': ((3, 3), 1e3)}, steps
    )


def draw_correlated(steps: int) -> Data:
    """Matrices whose gradients have correlated columns, and a vector."""
    rng = np.random.default_rng(5)
    weights = {'wide': rng.normal(size=(3, 4)), 'tall': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)}
    mix = {'wide': rng.normal(size=(4, 4)), 'tall': rng.normal(size=(3, 3)), 'bias': np.eye(3)}
    gradients = {key: rng.normal(size=(steps, *w.shape)) @ mix[key] for key, w in weights.items()}
    return Data(rounded(weights), rounded(gradients))


def draw_curved(steps: int) -> Data:
    """A matrix, with the diagonal of the Hessian for every step."""
    rng = np.random.default_rng(2)
    gradients = {'w': rng.normal(size=(steps, 2, 3))}
    hessians = {'w': 1e3 * rng.normal(1.0, 1.0, size=(steps, 2, 3))}
    return Data({'w': np.full((2, 3), 2.0)}, rounded(gradients), {'hessian': rounded(hessians)})


def draw_losses(steps: int) -> Data:
    """The three leaves, with the value of the loss for every step."""
    leaves = draw_leaves(steps)
    losses = rounded({'value': 3e6 * np.random.default_rng(7).uniform(0.5, 1.5, size=steps)})
    return Data(leaves.weights, leaves.gradients, losses)


SCALES = Problem('scales', draw_scales, recorded=(1, 2, 5, 6, 7, 10, 50, STEPS), rounding=0.0)
LEAVES = Problem('leaves', draw_leaves)
LATE = Problem('late', draw_late)
MATRICES = Problem('matrices', draw_matrices, rounding=0.0)
CORRELATED = Problem('correlated', draw_correlated, steps=60)
CURVED = Problem('curved', draw_curved)
LOSSES = Problem('losses', draw_losses)
