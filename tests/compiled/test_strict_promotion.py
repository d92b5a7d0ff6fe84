"""Under ``jax.numpy_dtype_promotion('strict')`` jax refuses to mix dtypes; the library mixes none."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import loss_arguments, registered, thinned
from tables import schedules
from tables.optimizers import COMMON, OPTIMIZERS

import braintools_optim as bo

CLIPPED = {'grad_clip_norm': 1.0, 'grad_clip_value': 0.5, 'metrics': True, 'on_nonfinite': 'skip', 'loss_scale': 2.0}
NARROW = (jnp.float32, jnp.bfloat16)
GIVEN_FUNCTIONS = ('LambdaLR', 'MultiplicativeLR', 'CyclicLR-scale', 'OptaxSchedule')
"""Schedules whose rows in the table mix dtypes in a function that is given to the schedule."""


def built(kind: type[bo.Optimizer], **options: Any) -> bo.Optimizer:
    """Build an optimizer; optax's transformations are chosen such that they mix no dtypes themselves."""
    if 'weight_decay' in kind.__signature__.parameters:
        options['weight_decay'] = 0.1
    if kind is bo.SAM:
        return bo.SAM(bo.SGD(0.1, **options))
    given = {bo.Lookahead: {'base_optimizer': optax.sgd(0.1)}, bo.OptaxOptimizer: {'tx': optax.trace(0.9)}}
    return kind(**given.get(kind, {}), **options)


def arguments(optimizer: bo.Optimizer, states: Any) -> Any:
    """Return gradients, and the other arguments of an update."""

    def loss() -> Any:
        return sum(jnp.sum(jnp.square(state.value.astype(jnp.float32))) for state in states.values())

    grads = {key: jnp.ones_like(state.value) for key, state in states.items()}
    if isinstance(optimizer, (bo.LBFGS, bo.SAM)):
        return grads, {'value': jnp.asarray(3.0, jnp.float32), 'value_fn': loss}
    return grads, loss_arguments(optimizer, grads)


@pytest.mark.usefixtures('float32')
@pytest.mark.parametrize('kind', OPTIMIZERS)
def test_a_traced_update_mixes_no_dtypes(kind: type[bo.Optimizer]) -> None:
    options = {'on_nonfinite': 'skip', 'metrics': True, 'loss_scale': 2.0, 'maximize': True}
    with jax.numpy_dtype_promotion('strict'):
        optimizer = built(kind, grad_clip_norm=1.0, grad_clip_value=0.5, **options)
        shapes = {'matrix': (2, 3), 'vector': (2,), 'scalar': ()}
        weights = {f'{name} {d.__name__}': jnp.ones(shape, d) for name, shape in shapes.items() for d in NARROW}
        grads, more = arguments(optimizer, registered(optimizer, **weights))
        brainstate.transform.make_jaxpr(lambda grads: optimizer.update(grads, **more))(grads)


@thinned(COMMON, 'kind', one_in=4)
@pytest.mark.parametrize('dtype', NARROW)
def test_an_eager_update_of_narrow_weights_mixes_no_dtypes_under_x64(kind: type[bo.Optimizer], dtype: Any) -> None:
    with jax.numpy_dtype_promotion('strict'):
        optimizer = built(kind, grokfast=2.0, cautious=True, centralize=True)
        states = registered(optimizer, w=jnp.ones((2, 3), dtype))
        grads, more = arguments(optimizer, states)
        optimizer.update(grads, **more)
    assert states['w'].value.dtype == dtype
    assert jnp.isfinite(states['w'].value).all()


@pytest.mark.parametrize('x64', [True, False])
@pytest.mark.parametrize('case', schedules.CASES, ids=lambda case: case.name)
def test_a_schedule_mixes_no_dtypes(case: schedules.Case, x64: bool) -> None:
    if case.name.startswith(GIVEN_FUNCTIONS):
        pytest.skip('The given function mixes dtypes.')
    jax.config.update('jax_enable_x64', x64)
    try:
        with jax.numpy_dtype_promotion('strict'):
            schedule = case.build()
            curve = schedule.lr_at(np.arange(20))
            schedule.step()
            np.testing.assert_allclose(schedule(), curve[1], rtol=1e-6)
    finally:
        jax.config.update('jax_enable_x64', True)
