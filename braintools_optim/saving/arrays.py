"""Saved arrays, compared with the arrays here and put on their devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.options.types import Tree
from braintools_optim.saving.trees import is_key

__all__ = ['fitting']


def fitting(there: Tree, here: Tree) -> tuple[jax.Array | None, str]:
    """Return a saved array on the device of the array here, or None and the difference of their shapes and dtypes."""
    there, here = there if is_key(there) else np.array(there), jnp.asarray(here)
    if (there.shape, there.dtype) != (here.shape, here.dtype):
        kinds = [f'{x.dtype}{list(x.shape)}' for x in (there, here)]
        return None, f'{kinds[0]} there, {kinds[1]} here'
    return (jax.device_put(there, here.sharding) if here.committed else jnp.asarray(there)), ''
