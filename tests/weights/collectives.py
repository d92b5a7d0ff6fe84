"""On eight devices: print the collectives in the compiled steps of optimizers, as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

import jax.numpy as jnp
from helpers import loss_arguments
from sharded import build
from tables.optimizers import OPTIMIZERS

import braintools_optim as bo
from benchmarks.scale import COLLECTIVE


def collectives(kind: type[bo.Optimizer], clips: bool) -> list[str]:
    """Return the collectives of the compiled step, each with the shapes of its results."""
    optimizer, states = build(kind, True, **({'grad_clip_norm': 1.0} if clips else {}))
    grads = {key: jnp.ones_like(state.value) for key, state in states.items()}
    more: dict[str, Any] = loss_arguments(optimizer, grads)
    step: Any = bo.jit(lambda grads: optimizer.update(grads, **more))
    text = step.lower(grads).compile().as_text()
    return [f'{name} {shape}' for shape, name in COLLECTIVE.findall(text)]


if __name__ == '__main__':
    chosen = [kind for kind in OPTIMIZERS if kind.__name__ in sys.argv[1:]]
    print(json.dumps({kind.__name__: [collectives(kind, clips) for clips in (False, True)] for kind in chosen}))
