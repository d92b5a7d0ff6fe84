"""Whole: arrays as NumPy arrays, where this process can read all of their parts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from braintools_optim.options.types import Tree
from braintools_optim.weights.sharding import is_here

__all__ = ['whole']


def whole(x: Tree, name: str) -> npt.NDArray[Any]:
    """Return an array of this name as a NumPy array; raise if other processes hold parts that this one does not."""
    if not is_here(x):
        raise ValueError(
            f'{name} of shape {list(x.shape)} is split over {jax.process_count()} processes, and no process can read '
            'all of it, which a state_dict or a file needs. Save with orbax instead, in every process: '
            'orbax.checkpoint.StandardCheckpointer().save(directory, arrays(model, optimizer)), with the function '
            'arrays of the section Orbax in docs/checkpoints.md.'
        )
    return np.asarray(x)
