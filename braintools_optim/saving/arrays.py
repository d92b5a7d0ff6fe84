"""Saved arrays, compared with the arrays here and put on their devices."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from braintools_optim.options.types import Tree
from braintools_optim.saving.trees import encode, is_key
from braintools_optim.weights.sharding import placed

__all__ = ['check_alike', 'fitting']


def fitting(there: Tree, here: Tree) -> tuple[jax.Array | None, str]:
    """Return a saved array on the device of the array here, or None and the difference of their shapes and dtypes."""
    there, here = there if is_key(there) else np.array(there), jnp.asarray(here)
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        kinds = [f'{x.dtype}{list(x.shape)}' for x in (there, here)]
        return None, f'{kinds[0]} there, {kinds[1]} here'
    return (placed(there, here.sharding) if here.committed else jnp.asarray(there)), ''


def check_alike(there: Mapping[Any, Tree], here: Tree) -> None:
    """Raise unless all processes load the same tree, if an array here lies on devices of several processes.

    Otherwise each process would go on with its own numbers for an array that is to be the same in all.
    """
    if all(getattr(x, 'is_fully_addressable', True) for x in jax.tree.leaves(here)):
        return
    _, checksums = encode(there)
    found = multihost_utils.process_allgather(np.uint32(zlib.crc32(checksums.encode())))
    if others := [i for i, number in enumerate(found) if number != found[0]]:
        raise ValueError(
            f'Process {", ".join(map(str, others))} and process 0 load different states. Every process must load the '
            'same file or the same state_dict.'
        )
