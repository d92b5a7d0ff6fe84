"""Runs of optax and of braintools.optim continue here."""

from __future__ import annotations

from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from continuing import assert_at, steps, weights
from golden.record_states import GRADIENTS, HALF, START
from internals import slots_of

import braintools_optim as bo

TXS: dict[str, tuple[Any, Any]] = {
    'adam': (lambda: optax.adam(0.01), lambda: bo.Adam(0.01)),
    'adam of a schedule': (
        lambda: optax.adam(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
        lambda: bo.Adam(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
    ),
    'adamw': (lambda: optax.adamw(0.01, weight_decay=0.1), lambda: bo.AdamW(0.01, weight_decay=0.1)),
    'nadamw': (lambda: optax.nadamw(0.01), lambda: bo.NAdamW(0.01)),
    'radam': (lambda: optax.radam(0.01, eps=0.0), lambda: bo.RAdam(0.01, eps=0.0)),
    'lamb': (lambda: optax.lamb(0.01), lambda: bo.Lamb(0.01)),
    'adamax': (lambda: optax.adamax(0.01), lambda: bo.Adamax(0.01)),
    'lion': (lambda: optax.lion(0.01, weight_decay=0.1), lambda: bo.Lion(0.01, weight_decay=0.1)),
    'momentum': (lambda: optax.sgd(0.01, 0.9), lambda: bo.Momentum(0.01)),
    'nesterov': (lambda: optax.sgd(0.01, 0.8, nesterov=True), lambda: bo.SGD(0.01, momentum=0.8, nesterov=True)),
    'sgd of a schedule': (
        lambda: optax.sgd(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
        lambda: bo.SGD(optax.linear_schedule(0.1, 0.0, 2 * HALF)),
    ),
    'adagrad': (
        lambda: optax.chain(optax.scale_by_rss(0.1, 0.0), optax.scale(-0.1)),
        lambda: bo.Adagrad(0.1, initial_accumulator_value=0.1, eps=0.0),
    ),
    'rmsprop': (lambda: optax.rmsprop(0.01, 0.9, eps_in_sqrt=False), lambda: bo.RMSprop(0.01, 0.9)),
}


def optax_run(tx: Any, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    def update(carry: Any, gradients: Any) -> Any:
        updates, state = tx.update(gradients, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    gradients = {name: jnp.asarray(g[first:last]) for name, g in GRADIENTS.items()}
    return jax.jit(lambda carry: jax.lax.scan(update, carry, gradients)[0])((params, state))


@pytest.mark.parametrize(('build_tx', 'build'), TXS.values(), ids=TXS)
def test_optax_run_continues_here(build_tx: Any, build: Any) -> None:
    tx, params = build_tx(), {name: jnp.asarray(w) for name, w in START.items()}
    half, state = optax_run(tx, params, tx.init(params), 0, HALF)
    end, _ = optax_run(tx, half, state, HALF, 2 * HALF)
    states = weights(half)
    opt = build().register_trainable_weights(states)
    opt.load_optax_state(state)
    steps(opt, states, HALF, 2 * HALF)
    assert_at(states, end)


def test_optax_trees_by_name_and_nested() -> None:
    leaves = {'x': jnp.full(2, 1.0), 'y': jnp.full(3, 2.0)}
    for register, params in [
        ({'a': {'b': brainstate.ParamState(leaves)}}, {'a': {'b': leaves}}),
        ({'a': {'b': brainstate.ParamState(leaves)}}, {'a.b': leaves}),
        ({('a', 'b'): brainstate.ParamState(leaves)}, {('a', 'b'): leaves}),
        ({('a', 'b'): brainstate.ParamState(leaves)}, {'a': {'b': leaves}}),
    ]:
        opt = bo.Lion().register_trainable_weights(register)
        opt.load_optax_state(optax.lion(0.1).init(params)[0]._replace(mu=params, count=7))
        found = slots_of(opt)['exp_avg']
        assert {name: x.tolist() for name, x in found.items()} == {'a.b.x': [1.0, 1.0], 'a.b.y': [2.0, 2.0, 2.0]}
        assert int(opt.step_count.value) == 7


def test_unfit_optax_state_changes_nothing() -> None:
    params = {name: jnp.asarray(w) for name, w in START.items()}
    adam = optax.adam(0.1).init(params)
    for build, state, match in [
        (bo.Adam, optax.lion(0.1).init(params), 'holds ScaleByLionState, for which Adam has no slot'),
        (bo.SGD, adam, 'holds ScaleByAdamState, for which SGD'),
        (bo.Adam, optax.chain(optax.adam(0.1), optax.ema(0.9)).init(params), 'holds EmaState'),
        (bo.Adam, optax.chain(optax.adam(0.1), optax.adam(0.1)).init(params), 'holds ScaleByAdamState twice'),
        (bo.Adam, optax.sgd(0.1).init(params), r'exp_avg\.b: not there'),
        (lambda: bo.Adam(amsgrad=True), adam, r'max_exp_avg_sq\.b: not there'),
        (bo.Adam, optax.adam(0.1).init({**params, 'b': jnp.ones(4)}), r'exp_avg\.b: float64\[4\] there'),
        (bo.Adam, params['b'], 'holds ArrayImpl'),
        (bo.Yogi, adam, 'Yogi has no counterpart in optax'),
    ]:
        opt = build().register_trainable_weights(weights())
        before = opt.state_dict()
        with pytest.raises(ValueError, match=match):
            opt.load_optax_state(state)
        assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    opt = bo.Adam().register_trainable_weights({'v': brainstate.ParamState(jnp.ones(2) * u.mV)})
    with pytest.raises(ValueError, match=r"The weights \['v'\] have units"):
        opt.load_optax_state(adam)
    with pytest.raises(KeyError, match='missing or None: c'):
        bo.Adam().register_trainable_weights({**weights(), 'c': weights()['b']}).load_optax_state(adam)


BRAINTOOLS: dict[str, dict[str, Any]] = {
    'SGD': {},
    'Momentum': {},
    'MomentumNesterov': {},
    'Adam': {'betas': (0.8, 0.95)},
    'AdamW': {'weight_decay': 0.1},
    'Lion': {},
    'Adamax': {},
}


@pytest.mark.parametrize('name', BRAINTOOLS)
def test_braintools_run_continues_here(name: str) -> None:
    braintools = pytest.importorskip('braintools')

    def theirs_at(build: Any) -> Any:
        states = weights()
        opt = build()
        opt.register_trainable_weights(states)
        update = brainstate.transform.jit(lambda g: opt.update(g))
        saved: list[Any] = []
        for t in range(2 * HALF):
            if t == HALF:
                saved += [opt.state_dict(), {key: np.array(state.value) for key, state in states.items()}]
            update({key: jnp.asarray(GRADIENTS[key][t]) for key in states})
        return *saved, {key: np.array(state.value) for key, state in states.items()}

    state, half, end = theirs_at(lambda: getattr(braintools.optim, name)(lr=0.01, **BRAINTOOLS[name]))
    states = weights(half)
    opt = getattr(bo, name)(lr=0.3, **BRAINTOOLS[name]).register_trainable_weights(states)
    opt.load_braintools_state_dict(state)
    assert (opt.current_lr, int(opt.step_count.value)) == (0.01, HALF)
    steps(opt, states, HALF, 2 * HALF)
    assert_at(states, end)


def test_incomplete_braintools_state_changes_nothing() -> None:
    adam = optax.adam(0.1).init({name: jnp.asarray(w) for name, w in START.items()})
    good = {'opt_state': adam, 'step_count': 3, 'lr': 0.1, 'param_groups_opt_states': {}}
    for state, match in [
        ({'opt_state': adam}, "with 'opt_state', 'step_count' and 'lr'"),
        ({**good, 'opt_state': None}, 'before weights were registered'),
        ({**good, 'param_groups_opt_states': {'0': adam}}, 'groups that were added, whose options it does not hold'),
        ({**good, 'lr': -1.0}, 'Invalid lr=-1'),
    ]:
        opt = bo.Adam().register_trainable_weights(weights())
        before = opt.state_dict()
        with pytest.raises(ValueError, match=match):
            opt.load_braintools_state_dict(state)
        assert jax.tree.all(jax.tree.map(np.array_equal, before, opt.state_dict()))
    opt.load_braintools_state_dict(good)
    assert int(opt.step_count.value) == 3
