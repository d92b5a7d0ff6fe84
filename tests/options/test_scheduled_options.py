"""Options that follow schedules."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from internals import option_schedule_path, option_schedules

import braintools_optim as bo


@pytest.mark.parametrize('where', ['eager', 'jit'])
def test_any_number_may_be_scheduled(where: str) -> None:
    decay = bo.StepLR(0.5, 1, 0.5)
    opt = bo.SGD(0.1, weight_decay=decay, grad_clip_value=optax.linear_schedule(3.0, 1.0, 2))
    a, b = (brainstate.ParamState(jnp.asarray(1.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, weight_decay=bo.ConstantLR(0.0, 1.0), momentum=bo.StepLR(0.5, 1, 0.0))
    update = lambda g: opt.update({'a': g, 'b': g})  # noqa: E731
    update = brainstate.transform.jit(update) if where == 'jit' else update
    expected = np.array([1.0, 1.0])
    buffer = 0.0
    for clip, wd, momentum in [(3.0, 0.5, 0.5), (2.0, 0.25, 0.0), (1.0, 0.125, 0.0)]:
        assert opt.weight_decay == opt.param_groups[0]['weight_decay'] == wd
        assert (opt.grad_clip_value, opt.param_groups[1]['weight_decay']) == (clip, 0.0)
        assert opt.param_groups[1]['momentum'] == momentum
        buffer = momentum * buffer + clip
        expected -= 0.1 * np.array([clip + wd * expected[0], buffer])
        update(jnp.asarray(10.0))
        np.testing.assert_allclose([a.value, b.value], expected, rtol=1e-12)
        decay.step()
        for schedule in option_schedules(opt, group=1):
            schedule.step()
    assert (*option_schedule_path('weight_decay'), 'last_epoch') in brainstate.graph.states(opt)
    opt.weight_decay = 0.0  # a number replaces the schedule
    opt.grad_clip_value = None
    update(jnp.asarray(10.0))
    np.testing.assert_allclose(a.value, expected[0] - 1.0, rtol=1e-12)
    opt.momentum = bo.ConstantLR(0.0, 1.0)  # a schedule replaces the number
    with pytest.raises(TypeError, match='Invalid nesterov'):
        opt.nesterov = bo.ConstantLR(0.0)
    with pytest.raises(TypeError, match='Must be a pair'):
        opt.betas = bo.ConstantLR(0.5) if hasattr(opt, 'betas') else bo.Adam(betas=bo.ConstantLR(0.5))


def test_cycled_momentum_needs_momentum_or_betas() -> None:
    class Plain(bo.Optimizer):
        def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
            return g, {}

    with pytest.raises(ValueError, match='neither momentum nor betas'):
        Plain(bo.schedulers.OneCycleLR(0.2, 12, cycle_momentum=True))


def test_cycled_momentum_needs_a_momentum_above_zero() -> None:
    with pytest.raises(ValueError, match='momentum above 0'):
        bo.SGD(bo.OneCycleLR(0.2, 12, cycle_momentum=True))
