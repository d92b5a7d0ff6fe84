"""Under ``jax.transfer_guard('disallow')`` jax refuses implicit transfers between host and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import loss_arguments, registered
from tables import schedules
from tables.optimizers import COMMON, OPTIMIZERS, row_of

import braintools_optim as bo

pytestmark = pytest.mark.usefixtures('float32')
KINDS = [pytest.param(kind, marks=[] if kind in COMMON else pytest.mark.slow) for kind in OPTIMIZERS]


def arguments(optimizer: bo.Optimizer, states: Any) -> dict[str, Any]:
    """Return the arguments of an update besides the gradients, on the device."""
    if isinstance(optimizer, (bo.LBFGS, bo.SAM)):
        loss = lambda: sum(jnp.sum(jnp.square(state.value)) for state in states.values())  # noqa: E731
        return {'value_fn': loss} | ({'value': loss()} if isinstance(optimizer, bo.LBFGS) else {})
    return loss_arguments(optimizer, {key: jnp.ones_like(state.value) for key, state in states.items()})


@pytest.mark.parametrize('compile_', [None, bo.jit])
@pytest.mark.parametrize('kind', KINDS)
def test_a_warm_update_transfers_nothing_implicitly(kind: type[bo.Optimizer], compile_: Any) -> None:
    shared = {} if kind is bo.SAM else {'grad_clip_norm': 1.0, 'loss_scale': 2.0, 'metrics': True}
    optimizer = kind(**row_of(kind).required(), **shared)
    states = registered(optimizer, w=jnp.ones((2, 3)), b=jnp.ones(3))
    grads, more = {'w': jnp.ones((2, 3)), 'b': jnp.ones(3)}, arguments(optimizer, states)

    def update(grads: Any) -> None:
        optimizer.update(grads, **more)

    step = update if compile_ is None else compile_(update)
    step(grads)
    step(grads)
    with jax.transfer_guard('disallow'):
        step(grads)


@pytest.fixture
def optimizer() -> bo.Optimizer:
    optimizer = bo.Momentum(lr=bo.StepLR(0.1, 2))
    registered(optimizer, w=jnp.ones(2))
    registered(optimizer, v=jnp.ones(2))
    optimizer.update({'w': jnp.ones(2), 'v': jnp.ones(2)})
    return optimizer


def assigned(name: str, value: Any) -> Callable[[Any], None]:
    return lambda optimizer: setattr(optimizer, name, value)


def assign_in_group(name: str, value: Any) -> Callable[[Any], None]:
    return lambda optimizer: optimizer.param_groups[1].__setitem__(name, value)


ACTIONS = {
    'lr': assigned('lr', 0.5),
    'current_lr': assigned('current_lr', 0.5),
    'schedule': lambda optimizer: optimizer.add_scheduler(bo.ExponentialLR(0.1, 0.5)),
    'momentum': assigned('momentum', 0.5),
    'grad_clip_norm': assigned('grad_clip_norm', 0.5),
    'lr of a group': assign_in_group('lr', 0.5),
    'momentum of a group': assign_in_group('momentum', 0.5),
    'step': lambda optimizer: optimizer.lr.step(),
    'step to': lambda optimizer: optimizer.lr.step(epoch=5),
    'read': lambda optimizer: [optimizer.current_lr, optimizer.get_last_lr(), optimizer.momentum, str(optimizer)],
    'skipped_count': lambda optimizer: int(optimizer.skipped_count),
    'freeze': lambda optimizer: [optimizer.freeze('v'), optimizer.unfreeze('v')],
    'state_dict': lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    'reset': lambda optimizer: optimizer.reset(),
    'loss_scale': lambda optimizer: optimizer.update(GRADS, loss_scale=2.0),
    'partial': lambda optimizer: optimizer.update({'w': GRADS['w'], 'v': None}, partial=True),
    'minimize': lambda optimizer: optimizer.minimize(lambda: jnp.sum(optimizer.param_states.to_pytree()['w'].value)),
}
GRADS = {'w': jax.device_put(np.ones(2, np.float32)), 'v': jax.device_put(np.ones(2, np.float32))}


@pytest.mark.parametrize('action', ACTIONS.values(), ids=ACTIONS)
def test_an_action_transfers_nothing_implicitly(optimizer: bo.Optimizer, action: Callable[[Any], None]) -> None:
    with jax.transfer_guard('disallow'):
        action(optimizer)
        optimizer.update(GRADS)


@pytest.mark.parametrize('case', schedules.CASES, ids=lambda case: case.name)
def test_a_schedule_transfers_nothing_implicitly(case: schedules.Case) -> None:
    schedule = case.build()
    with jax.transfer_guard('disallow'):
        schedule.step()
        assert schedule() == schedule.get_last_lr()[0]
        schedule.set_rate(0.5)
        schedule.load_state_dict(schedule.state_dict())


def test_a_plateau_transfers_nothing_implicitly() -> None:
    schedule, metric = bo.ReduceLROnPlateau(0.1, patience=0), jnp.asarray(1.0)
    with jax.transfer_guard('disallow'):
        for _ in range(2):
            schedule.step(metric)
        np.testing.assert_allclose(schedule(), 0.01)


def test_a_dynamic_loss_scale_transfers_nothing_implicitly() -> None:
    scale = bo.DynamicLossScale(8.0)
    optimizer = bo.SGD(0.1, loss_scale=scale, metrics=True)
    states = registered(optimizer, w=jnp.ones(2))
    grads = {'w': jnp.ones(2)}
    optimizer.update(grads)
    with jax.transfer_guard('disallow'):
        scale.current = 4.0
        optimizer.update(grads)
        assert scale.current == 4.0
        assert not optimizer.metrics['grad_norm'].is_deleted()
        scale.scale(states['w'].value)


def test_an_optimizer_can_be_built_without_implicit_transfers() -> None:
    w = brainstate.ParamState(jnp.ones(2))
    with jax.transfer_guard('disallow'):
        optimizer = bo.Adam(lr=bo.StepLR(0.1, 2), on_nonfinite='raise').register_trainable_weights({'w': w})
        optimizer.update({'w': GRADS['w']})
    np.testing.assert_allclose(w.value, 0.9, rtol=1e-6)


def test_an_explicit_transfer_may_be_refused_too(optimizer: bo.Optimizer) -> None:
    with jax.transfer_guard('disallow_explicit'), pytest.raises(Exception, match='Disallowed host-to-device'):
        optimizer.lr = 0.5
    brainstate.transform.jit(lambda: optimizer.update(GRADS))()
