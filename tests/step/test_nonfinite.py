"""Gradients that are NaN or infinite."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from internals import state_leaves
from tables.optimizers import STANDALONE, row_of
from two_weights import START, build, slopes

import braintools_optim as bo

SIMPLE = sorted(optimizer.__name__ for optimizer in STANDALONE if row_of(optimizer).kind != 'loss')


def everything(opt: bo.Optimizer, states: Any) -> list[np.ndarray]:
    found: Any = brainstate.graph.states(opt)
    state = state_leaves(opt, without_skips=True)
    others = [state.value for path, state in found.items() if path != ('opt_state',)]
    return [np.array(x) for x in jax.tree.leaves([state, others, [state.value for state in states.values()]])]


def assert_same(one: list[np.ndarray], other: list[np.ndarray]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=() if name in ('Adam', 'SGD') else pytest.mark.slow) for name in SIMPLE]
)
def test_skipped_updates_leave_no_trace_in_ten_thousand_steps(name: str) -> None:
    """One in three gradients is not finite; the schedule counts only the updates that were made."""
    schedule = optax.linear_schedule(0.01, 0.001, 5000)
    (opt, states), (clean, others) = (
        build(name, lr=schedule, on_nonfinite='skip', max_consecutive_skips=10_000, grad_clip_norm=1.0)
        for _ in range(2)
    )
    rng = np.random.default_rng(0)
    good = {key: rng.normal(size=(10_000, *w.shape)) for key, w in START.items()}
    bad = rng.random(10_000) < 1 / 3
    mixed = {key: g.copy() for key, g in good.items()}
    mixed['w'][bad, 0, 1] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
    mixed['b'][bad & (rng.random(10_000) < 0.5)] = np.nan

    def update(mixed: Any, good: Any, bad: Any) -> None:
        opt.update(mixed)
        brainstate.transform.cond(bad, lambda: None, lambda: clean.update(good))

    arrays = jax.tree.map(jnp.asarray, (mixed, good, bad))
    brainstate.transform.for_loop(update, *arrays)
    assert int(opt.skipped_count) == bad.sum()
    kept = jax.tree.leaves([state_leaves(opt), [state.value for state in states.values()]])
    assert all(jnp.isfinite(x).all() for x in kept)
    for one, other in zip(everything(opt, states), everything(clean, others), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize('how', ['eager', 'jit'])
@pytest.mark.parametrize(
    'options', [{}, {'loss_scale': 8.0}, {'groups': {'b': {'betas': (0.5, 0.9)}}}, {'metrics': True}]
)
def test_skipped_update_changes_nothing_and_compiles_nothing(how: str, options: Any) -> None:
    opt, states = build(on_nonfinite='skip', grad_clip_norm=1.0, **options)
    update = brainstate.transform.jit(lambda g: opt.update(g)) if how == 'jit' else opt.update
    update(slopes(0))
    before, state = everything(opt, states), opt.state_dict()
    with compilations(0):
        for bad in (np.nan, np.inf):
            update(slopes(1, bad))
    if 'metrics' not in options:
        assert_same(before, everything(opt, states))
    assert int(opt.skipped_count) == 2
    assert opt.state_dict()['step_count'] == state['step_count'] == 1
    update(slopes(2))
    assert int(opt.step_count.value) == 2


def test_nonfinite_entries_are_zeroed() -> None:
    for options in ({}, {'grad_clip_norm': 0.5}, {'loss_scale': 4.0}, {'groups': {'b': {'lr_scale': 0.5}}}):
        (opt, states), (clean, others) = (build('SGD', **options) for _ in range(2))
        opt.on_nonfinite = 'zero'
        for t, bad in enumerate((np.nan, np.inf, -np.inf)):
            opt.update(slopes(t, bad))
            clean.update(slopes(t, 0.0))
        for key in START:
            np.testing.assert_allclose(states[key].value, others[key].value, rtol=1e-12)
    assert int(opt.skipped_count) == 0


def test_ignored_nonfinite_gradients_reach_the_weights() -> None:
    opt, states = build()
    opt.update(slopes(0, np.nan))
    assert np.isnan(states['w'].value).any()
    for wrong in ('drop', None, True):
        with pytest.raises(ValueError, match='Invalid on_nonfinite='):
            bo.Adam(on_nonfinite=wrong)
        with pytest.raises(ValueError, match='Invalid on_nonfinite='):
            opt.on_nonfinite = wrong
    with pytest.raises(ValueError, match='Invalid max_consecutive_skips=0'):
        bo.Adam(max_consecutive_skips=0)


@pytest.mark.parametrize('metrics', [False, True])
def test_raise_names_the_gradient_and_changes_nothing(metrics: bool) -> None:
    opt, states = build(on_nonfinite='raise', metrics=metrics)
    opt.update(slopes(0))
    before = everything(opt, states)
    with pytest.raises(FloatingPointError, match=r'all States are as they were\. not finite: w \(1 NaN, 0 inf of 4\)'):
        opt.update(slopes(1, np.nan))
    assert_same(before, everything(opt, states))
    opt.update(slopes(1))


def test_raise_in_a_compiled_function() -> None:
    opt, states = build(on_nonfinite='raise')
    update = brainstate.transform.jit(lambda g: opt.update(g))
    update(slopes(0))
    before = everything(opt, states)
    with pytest.raises(Exception, match='Gradients are not finite; all States are as they were'):
        (update(slopes(1, np.nan)), jax.effects_barrier())
    assert_same(before, everything(opt, states))


@pytest.mark.parametrize('how', ['eager', 'jit'])
def test_too_many_skips_in_a_row_warn(how: str) -> None:
    opt, _ = build('SGD', on_nonfinite='skip', max_consecutive_skips=3)
    update = brainstate.transform.jit(lambda g: opt.update(g)) if how == 'jit' else opt.update

    def heard(*bad: Any) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            for t, entry in enumerate(bad):
                update(slopes(t, entry))
            jax.effects_barrier()
        return [str(warning.message) for warning in caught]

    assert heard(np.nan, np.inf, None, np.nan, np.nan) == []
    assert heard(np.nan) == ['3 updates in a row were skipped: gradients were not finite. See diagnose(grads).']
    assert len(heard(*[np.nan] * 6)) == 2


def test_ensemble_skips_member_by_member() -> None:
    g = jnp.array([1.0, jnp.nan, 2.0])

    def member(slope: Any) -> Any:
        w = brainstate.ParamState(jnp.zeros(()))
        opt = bo.SGD(1.0, on_nonfinite='skip').register_trainable_weights({'w': w})
        opt.update({'w': slope})
        return w.value, opt.step_count.value

    with warnings.catch_warnings():
        moved, counts = jax.vmap(brainstate.transform.jit(member))(g)
    assert moved.tolist() == [-1.0, 0.0, -2.0]
    assert counts.tolist() == [1, 0, 1]
