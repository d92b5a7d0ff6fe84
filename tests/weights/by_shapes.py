"""On eight devices: the update that is compiled from shapes alone is the update of registered weights."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from zero import bytes_per_device

import braintools_optim as bo
from benchmarks import scale

MESH = Mesh(np.array(jax.devices()), ('data',))
WEIGHTS = scale.Transformer(width=128, layers=1, tokens=512).replicated(MESH)


def registered(optimizer: bo.Optimizer) -> tuple[Any, Any]:
    """Return the optimizer state and the compiled update of registered weights."""
    states = {key: brainstate.ParamState(jax.device_put(jnp.ones(w.shape), w.sharding)) for key, w in WEIGHTS.items()}
    optimizer.donate_weights = True
    optimizer.register_trainable_weights(states)
    run: Any = bo.jit(optimizer.update)
    grads = {key: state.value for key, state in states.items()}
    return optimizer.opt_state.value, run.lower(grads).compile()


if __name__ == '__main__':
    for over in (None, 'data'):
        for kind, options in ((bo.SGD, {'momentum': 0.9}), (bo.Adam, {})):
            held, theirs = registered(kind(**options, shard_memory_over=over))
            state, ours = scale.compiled_update(kind(**options), WEIGHTS, over)
            assert scale.bytes_per_device(state.memory) == bytes_per_device(held), (kind, over)
            sizes = [program.memory_analysis().temp_size_in_bytes for program in (ours, theirs)]
            assert sizes[0] == sizes[1], (kind, over, sizes)
            found = [scale.collective_bytes(program.as_text()) for program in (ours, theirs)]
            assert found[0] == found[1], (kind, over, found)
            assert set(found[0]) == ({'all-gather'} if over else set())
            print(kind.__name__, over, sizes[0], found[0])
