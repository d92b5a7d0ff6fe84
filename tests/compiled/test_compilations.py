"""Functions that contain an update are traced and compiled no more often than needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import pytest
from compiling import compilations
from models import nested_gradients, nested_model
from tables.optimizers import COMMON
from tables.schedules import DISTINCT

import braintools_optim as bo

every_optimizer = pytest.mark.parametrize('optimizer', COMMON, ids=lambda o: o.__name__)
transform = brainstate.transform


@every_optimizer
def test_second_call_compiles_nothing(optimizer: type[bo.Optimizer]) -> None:
    states, scheduler = nested_model(), bo.WarmupScheduler(0.1, 3)
    opt = optimizer(lr=scheduler, grad_clip_norm=1.0, weight_decay=0.01).register_trainable_weights(states)
    compiled = transform.jit(lambda g: opt.update(g))
    some, others = nested_gradients(0.0), nested_gradients(1.0)
    opt.update(some)
    compiled(some)
    scheduler.step()
    opt.lr, opt.weight_decay = 0.05, 0.02  # compiles the arithmetic of assignments
    with compilations(0):
        opt.update(others)
        compiled(others)
        scheduler.step()
        opt.lr = 0.02
        opt.weight_decay = 0.1
        opt.update(some)
        compiled(some)
        compiled(others)


@pytest.mark.parametrize('scheduler', [case.build for case in DISTINCT], ids=[case.name for case in DISTINCT])
def test_stepping_a_schedule_compiles_nothing(scheduler: Callable[[], bo.LRScheduler]) -> None:
    states = nested_model()
    opt = bo.SGD(lr=scheduler(), momentum=0.5).register_trainable_weights(states)
    some, others = nested_gradients(0.0), nested_gradients(1.0)
    opt.update(some)
    opt.lr.step()
    with compilations(0):
        opt.lr.step()
        opt.update(others)


def test_weakly_typed_weights_get_their_type_at_registration() -> None:
    states = {
        'weak': brainstate.ParamState(jnp.broadcast_to(jnp.asarray(0.0), 3)),
        'number': brainstate.ParamState(1.0),
    }
    opt = bo.Adam().register_trainable_weights(states)
    g = {'weak': jnp.ones(3), 'number': jnp.asarray(1.0)}
    opt.update(g)
    with compilations(0):
        opt.update(g)
    mixed = {'volts': jnp.ones(2) * u.mV, 'gain': [jnp.ones(2)]}
    assert float(bo.global_norm(mixed)) == 2.0


def test_compiled_function_follows_assigned_options() -> None:
    states = nested_model()
    opt = bo.SGD(lr=1.0, momentum=0.5).register_trainable_weights(states)
    compiled = transform.jit(lambda g: opt.update(g))
    flat = jax.tree.map(jnp.ones_like, nested_gradients())
    compiled(flat)
    assert float(states[('scale',)].value) == 1.0
    opt.maximize = True  # a flag
    compiled(flat)
    assert float(states[('scale',)].value) == 1.5  # the buffer is 0.5 * 1 - 1
    opt.lr = bo.ConstantLR(0.0)  # another schedule
    compiled(flat)
    assert float(states[('scale',)].value) == 1.5
    opt.lr, opt.grad_clip_value, opt.momentum = bo.ConstantLR(1.0, factor=1.0), 0.25, 1e-30
    compiled(flat)
    assert float(states[('scale',)].value) == 1.75


def lowered_update(rule: type[bo.Optimizer], *shapes: tuple[int, ...], **options: Any) -> Any:
    weights = {f'w{i}': brainstate.ParamState(jnp.ones(shape, jnp.float32)) for i, shape in enumerate(shapes)}
    gradients = {key: jnp.ones_like(state.value) for key, state in weights.items()}
    optimizer = rule(grad_clip_norm=1.0, **options).register_trainable_weights(weights)
    return bo.jit(lambda gradients: optimizer.update(gradients)).lower(gradients)


class Counted(bo.SGD):
    traced = 0

    def direction(self, *arguments: Any) -> Any:
        Counted.traced += 1
        return super().direction(*arguments)


def test_direction_is_traced_once_per_shape() -> None:
    Counted.traced = 0
    lowered_update(Counted, *[(2, 2), (3,)] * 10, lr=0.1, momentum=0.9)
    assert Counted.traced == 2
