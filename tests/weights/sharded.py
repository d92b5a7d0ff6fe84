"""On eight devices: the optimizer state lies where the weights lie, and training goes as on one device."""

from __future__ import annotations

import sys
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations
from helpers import loss_arguments
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tables.optimizers import OPTIMIZERS, row_of

import braintools_optim as bo

MESH = Mesh(np.array(jax.devices()).reshape(4, 2), ('x', 'y'))
SPECS = {
    (8, 4): ('x', 'y'),
    (8, 1): ('x',),
    (1, 4): (None, 'y'),
    (4,): ('y',),
    (10, 8, 4): (None, 'x', 'y'),
    (10, 4): (None, 'y'),
}
"""How arrays are split, by shape. All others are replicated."""
OPTIONS: dict[type, dict[str, Any]] = {bo.SOAP: {'max_precondition_dim': 4}, bo.LBFGS: {'memory_size': 10}}
"""With a basis for rows, a gradient of 4 columns would leave some of SOAP's 8 eigenvectors undetermined."""


def over(*axes: str | None) -> NamedSharding:
    return NamedSharding(MESH, PartitionSpec(*axes))


def start(name: str, spread: bool, dtype: Any = jnp.float32) -> brainstate.ParamState:
    shape = (8, 4) if name == 'w' else (4,)
    value = jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)
    return brainstate.ParamState(jax.device_put(value, over(*SPECS[shape])) if spread else value)


def build(
    kind: type[bo.Optimizer], spread: bool, **options: Any
) -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
    optimizer = kind(**row_of(kind).required(), **OPTIONS.get(kind, {}), **options)
    states = {'w': start('w', spread), 'b': start('b', spread)}
    return optimizer.register_trainable_weights(states), states


def check_transfers() -> None:
    """A warm step transfers nothing implicitly, and a compiled step that advances the schedule compiles once."""
    schedule = bo.StepLR(0.1, 2)
    optimizer, states = build(bo.Adam, True, lr=schedule, grad_clip_norm=1.0, metrics=True)
    grads = {key: jnp.ones_like(state.value, device=state.value.sharding) for key, state in states.items()}

    def step(grads: Any) -> None:
        optimizer.update(grads)
        schedule.step()

    ways = [step, bo.jit(step), brainstate.transform.jit(step), lambda grads: optimizer.minimize(lambda: 0.0)]
    for way in ways:
        way(grads)
        way(grads)
        optimizer.eps = 1e-7
        optimizer.load_state_dict(optimizer.state_dict())
        with jax.transfer_guard('disallow'), compilations(0):
            way(grads)
    optimizer.lr = bo.StepLR(0.1, 2)
    update = bo.jit(optimizer.update)
    update(grads)
    with jax.transfer_guard('disallow'):
        update(grads)


def check_raising() -> None:
    """Gradients that are not finite raise in eager updates; compiled code refuses the option."""
    optimizer, states = build(bo.Adam, True, on_nonfinite='raise')
    update(optimizer, states, 0)
    before = {key: np.array(state.value) for key, state in states.items()}
    grads = {key: jnp.full_like(state.value, jnp.nan) for key, state in states.items()}
    with pytest.raises(FloatingPointError, match='not finite: w'):
        optimizer.update(grads)
    ways: Any = [bo.jit(optimizer.update), brainstate.transform.jit(optimizer.update)]
    for call in [*(lambda way=way: way(grads) for way in ways), lambda: optimizer.minimize(lambda: 0.0)]:
        with pytest.raises(ValueError, match="Invalid on_nonfinite='raise' inside a transformation"):
            call()
    for key, state in states.items():
        np.testing.assert_array_equal(state.value, before[key])


def update(optimizer: bo.Optimizer, states: dict[str, brainstate.ParamState], t: int) -> None:
    rng = np.random.default_rng(t)
    values = {key: state.value for key, state in states.items()}
    grads = {key: jax.device_put(rng.normal(size=w.shape).astype(np.float32), w.sharding) for key, w in values.items()}

    def loss() -> Any:
        return sum(jnp.sum(jnp.square(state.value)) for state in states.values())

    more = {'value_fn': loss} if isinstance(optimizer, (bo.SAM, bo.LBFGS)) else loss_arguments(optimizer, grads)
    if isinstance(optimizer, bo.LBFGS):
        more['value'], grads = loss(), {key: 2 * w for key, w in values.items()}
    optimizer.update(grads, **more)


def check(optimizer: bo.Optimizer, when: str, names: tuple[str, ...] = ()) -> None:
    """Check where every array of the optimizer state lies; ``names`` leaves out slots."""
    for path, x in jax.tree_util.tree_leaves_with_path(optimizer.opt_state.value):
        where = jax.tree_util.keystr(path)
        if not any(name in where for name in names):
            wanted = over(*SPECS.get(x.shape, ()))
            assert x.sharding.is_equivalent_to(wanted, x.ndim), (when, where, x.shape, x.sharding)


def check_registration(kind: type[bo.Optimizer]) -> None:
    optimizer, _ = build(kind, True)
    check(optimizer, 'registered')
    optimizer.load_state_dict(optimizer.state_dict())
    check(optimizer, 'loaded')
    optimizer.reset()
    check(optimizer, 'reset')
    if kind not in (bo.LBFGS, bo.SAM):
        optimizer.freeze('w')
        optimizer.unfreeze('w')
        check(optimizer, 'unfrozen')
        optimizer.add_param_group({'v': start('w', True)})
        check(optimizer, 'with a further group')


def check_training(kind: type[bo.Optimizer]) -> None:
    shared = {} if kind is bo.SAM else {'metrics': True, 'grad_clip_norm': 1.0}
    runs = [build(kind, spread, **shared) for spread in (True, False)]
    for t in range(3):
        for optimizer, states in runs:
            update(optimizer, states, t)
        check(runs[0][0], 'updated', ('GG',))
    optimizer, states = runs[0]
    for key, state in states.items():
        assert state.value.sharding.is_equivalent_to(over(*SPECS[state.value.shape]), state.value.ndim), key
        np.testing.assert_allclose(state.value, runs[1][1][key].value, rtol=1e-4, atol=1e-5, err_msg=kind.__name__)
    if kind is not bo.SOAP:  # XLA splits its covariances
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.reset()
        check(optimizer, 'reset after training')
        if kind not in (bo.LBFGS, bo.SAM):
            with compilations(0):
                update(optimizer, states, 3)


def check_compiled(kind: type[bo.Optimizer]) -> None:
    """Check steps inside both kinds of ``jit``, ``minimize`` and donated weights, with master copies of weights."""
    optimizer = kind(grokfast=2.0, master_weights=True)
    states = {name: start(name, True, jnp.bfloat16) for name in ('w', 'b')}
    optimizer.register_trainable_weights(states)
    grads = {key: jnp.copy(state.value) for key, state in states.items()}
    optimizer.donate_weights = True
    optimizer.update(grads)
    check(optimizer, 'donated')
    for compile_ in (brainstate.transform.jit, bo.jit):
        compile_(optimizer.update)(grads)
        check(optimizer, f'{compile_.__module__}')
    optimizer.minimize(lambda: jnp.sum(states['w'].value) + jnp.sum(states['b'].value))
    check(optimizer, 'minimized')
    for state in states.values():
        assert state.value.sharding.is_equivalent_to(over(*SPECS[state.value.shape]), state.value.ndim)


def check_gradients_elsewhere(kind: type[bo.Optimizer]) -> None:
    """Weights and slots stay where they are if the gradients are split in another way."""
    states = {name: start(name, False) for name in ('w', 'b')}
    for state in states.values():
        state.value = jax.device_put(state.value, over())
    optimizer = kind(**row_of(kind).required()).register_trainable_weights(states)
    grads = {key: jax.device_put(np.ones(state.value.shape, np.float32), over('x')) for key, state in states.items()}

    def step(grads: Any) -> None:
        optimizer.update(grads, **loss_arguments(optimizer, grads))

    for run in (step, bo.jit(step)):
        run(grads)
        for x in jax.tree.leaves((optimizer.opt_state.value, [state.value for state in states.values()])):
            assert x.is_fully_replicated, (kind, x.sharding)


if __name__ == '__main__':
    for kind in (bo.Adam, bo.Adafactor, bo.Muon):
        check_gradients_elsewhere(kind)
    check_compiled(bo.Adam)
    check_raising()
    check_transfers()
    for kind in OPTIMIZERS if sys.argv[1] == 'all' else [bo.Adam, bo.Adafactor, bo.SM3, bo.ScheduleFreeSGD]:
        check_registration(kind)
        check_training(kind)
        print(kind.__name__)
