"""An optimizer written by a user."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo


def test_user_defined_rule() -> None:
    class SignMomentum(bo.Optimizer):
        def __init__(self, lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0):
            super().__init__(lr, momentum=momentum, weight_decay=weight_decay)

        def init_slots(self, w: Any, hp: Any) -> Any:
            return {'momentum_buffer': jnp.zeros_like(w)}

        def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
            buffer = hp.momentum * slots['momentum_buffer'] + g
            return jnp.sign(buffer), {'momentum_buffer': buffer}

    w = brainstate.ParamState(jnp.array([1.0, 1.0]))
    opt = SignMomentum(lr=0.5).register_trainable_weights({'w': w})
    opt.update({'w': jnp.array([2.0, -3.0])})
    opt.update({'w': jnp.array([-1.0, -3.0])})
    np.testing.assert_allclose(w.value, [0.0, 2.0])
    opt.momentum = 0.25
    opt.update({'w': jnp.array([-0.5, 0.5])})  # the buffer is 0.25 * 0.8 - 0.5
    np.testing.assert_allclose(w.value, [0.5, 2.5])


def test_subclass_attributes() -> None:
    """A subclass sets attributes in its constructor, and names that begin with an underscore at any time."""

    class Own(bo.SGD):
        def __init__(self, speed: float):
            self.before = speed
            super().__init__(lr=speed)
            self.after = [speed]

    optimizer = Own(0.5)
    optimizer.after, optimizer.before, optimizer._note = [1.0], 2.0, 'mine'
    optimizer.donate_weights = True
    with pytest.raises(AttributeError, match=r'Invalid befor=2\.0\. Own has no such option'):
        optimizer.befor = 2.0
    copy = brainstate.graph.treefy_merge(*brainstate.graph.treefy_split(optimizer))
    assert (copy.after, copy.before, copy.current_lr) == ([1.0], 2.0, 0.5)
