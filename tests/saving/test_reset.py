"""Reset of the optimizer state."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from internals import group_state, update_counts
from training import build, train

import braintools_optim as bo


@pytest.mark.parametrize('optimizer', [bo.Adam, bo.ASGD, functools.partial(bo.OptaxOptimizer, None)])
def test_reset_equals_a_new_optimizer(optimizer: Callable[..., bo.Optimizer]) -> None:
    opt, states = build(lambda: optimizer(bo.StepLR(0.1, 2, 0.5), weight_decay=0.1, metrics=True), groups=3)
    train(opt, states, 0, 3)
    opt.reset()
    saved, values = opt.state_dict(), {name: jax.tree.map(np.array, state.value) for name, state in states.items()}
    new, _ = build(lambda: optimizer(bo.StepLR(0.1, 2, 0.5), weight_decay=0.1, metrics=True), values, groups=3)
    assert opt.lr.last_epoch.value == 3
    new.lr.step(3)
    assert jax.tree.all(jax.tree.map(np.array_equal, saved, new.state_dict()))
    with compilations(0):
        opt.update({name: jax.tree.map(np.ones_like, value) for name, value in values.items()})


def test_reset_of_some_weights() -> None:
    opt, states = build(lambda: bo.Adam(0.1, grokfast=1.0, on_nonfinite='skip'), groups=3)
    with pytest.raises(ValueError, match=r"No weight is chosen by 'z'. There are: a\.x, a\.y"):
        opt.reset('z')
    train(opt, states, 0, 2)
    before = opt.state_dict()['opt_state']
    opt.reset('b.*')
    opt.reset(lambda name, weight: name.startswith('c') and weight.ndim == 0)
    after = opt.state_dict()['opt_state']
    forgotten = ('.b.x', '.b.y', '.c.y')
    for key, x in after.items():
        np.testing.assert_array_equal(x, 0 * x if key.endswith(forgotten) else before[key])
    assert int(opt.step_count.value) == 2
    with pytest.raises(ValueError, match='must be called before reset'):
        bo.Adam(0.1).reset()


def test_reset_of_a_group_with_joint_state() -> None:
    opt, states = build(lambda: bo.OptaxOptimizer(optax.adam(0.1)), groups=3)
    train(opt, states, 0, 2)
    before = opt.state_dict()
    with pytest.raises(ValueError, match=r'OptaxOptimizer remembers b\.x, b\.y together. Must be reset all or none'):
        opt.reset('b.x')
    assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    opt.reset('b.*')
    assert [int(group_state(opt, i)[0].count) for i in range(3)] == [2, 0, 2]
    assert list(update_counts(opt).values()) == [2, 2, 0, 0, 2, 2]


def test_reset_of_frozen_weights_and_of_the_update_count() -> None:
    opt, states = build(lambda: bo.Adam(optax.linear_schedule(1.0, 0.0, 10)))
    train_once = lambda: opt.update({name: jax.tree.map(jnp.ones_like, s.value) for name, s in states.items()})  # noqa: E731
    train_once()
    opt.freeze('a.*')
    opt.reset('a.*')
    assert 'exp_avg.a.x' not in opt.state_dict()['opt_state']
    assert opt.current_lr == pytest.approx(0.9)
    opt.unfreeze('a.*')
    assert not np.any(opt.state_dict()['opt_state']['exp_avg.a.x'])
    opt.reset()
    assert opt.current_lr == 1.0
    train_once()
