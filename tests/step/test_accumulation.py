"""Accumulated gradients: some batches equal one batch of their union."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from helpers import registered, thinned
from tables.optimizers import ROWS

import braintools_optim as bo

START = {'a': np.array([1.0, -2.0, 3.0]), 'b': np.array([[0.5, 4.0]])}
OPTIONS: dict[str, Any] = {'grad_clip_norm': 0.7, 'grad_clip_value': 0.5, 'no_decay': 'b'}
BOX = {'constraints': {'a': bo.constraints.box(-1.5, 2.5)}}
REQUIRED = {row.optimizer: row.required for row in ROWS}
PLAIN = [row.optimizer for row in ROWS if row.kind != 'loss']


def slopes(t: int) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    return {key: jnp.asarray(rng.normal(size=x.shape)) for key, x in START.items()}


def mean(batches: list[dict[str, Any]], how: str = 'mean') -> dict[str, Any]:
    return {key: getattr(jnp, how)(jnp.stack([g[key] for g in batches]), axis=0) for key in batches[0]}


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any], rtol: float = 1e-12) -> None:
    for key, state in ours.items():
        np.testing.assert_allclose(state.value, theirs[key].value, rtol=rtol, err_msg=key)


@thinned(PLAIN, 'optimizer', 3)
def test_batches_equal_their_union(optimizer: Any) -> None:
    """Clipping, decay, constraints and schedules by count act once per update, and the counts are those of updates."""

    def build(**options: Any) -> Any:
        is_averaged = 'ScheduleFree' in optimizer.__name__  # refuses constraints
        made = optimizer(**REQUIRED[optimizer](), **OPTIONS, **({} if is_averaged else BOX), **options)
        made.lr = lambda count: 0.05 / (1 + count)
        return made

    ours, theirs = build(accumulate_steps=3), build()
    states, same = registered(ours, **START), registered(theirs, **START)
    for update in range(3):
        batches = [slopes(3 * update + i) for i in range(3)]
        for i, grads in enumerate(batches):
            before = {key: np.array(s.value) for key, s in states.items()}
            ours.update(grads)
            assert bool(ours.did_update.value) == (i == 2)
            if i < 2:
                for key, s in states.items():
                    np.testing.assert_array_equal(s.value, before[key])
        theirs.update(mean(batches))
        assert_equal(states, same)
    assert int(ours.step_count.value) == int(theirs.step_count.value) == 3
    assert ours.opt_state.value.step.tolist() == theirs.opt_state.value.step.tolist()


@pytest.mark.parametrize('how', ['jit', 'donating jit', 'for_loop', 'donated weights', 'resumed'])
def test_accumulation_in_all_ways_of_training(how: str) -> None:
    def build() -> Any:
        return bo.AdamW(0.1, accumulate_steps=2, accumulate='sum', average=bo.EMA(0.5), grad_clip_norm=1.0)

    optimizer = build()
    states = registered(optimizer, **START)
    batches = [slopes(t) for t in range(6)]
    if how == 'for_loop':
        stacked = {key: jnp.stack([g[key] for g in batches]) for key in START}
        brainstate.transform.for_loop(optimizer.update, stacked)
    elif how == 'resumed':
        for grads in batches[:3]:
            optimizer.update(grads)
        saved = optimizer.state_dict()
        optimizer = build()
        states = registered(optimizer, **{key: np.array(s.value) for key, s in states.items()})
        optimizer.load_state_dict(saved)
        for grads in batches[3:]:
            optimizer.update(grads)
    else:
        optimizer.donate_weights = how == 'donated weights'
        jits: dict[str, Any] = {'jit': brainstate.transform.jit, 'donating jit': bo.jit}
        step = jits.get(how, lambda f: f)(optimizer.update)
        step(batches[0])
        with compilations(0):
            for grads in batches[1:]:
                step(grads)
    plain = bo.AdamW(0.1, average=bo.EMA(0.5), grad_clip_norm=1.0)
    same = registered(plain, **START)
    for i in range(0, 6, 2):
        plain.update(mean(batches[i : i + 2], 'sum'))
    assert_equal(states, same)
    with optimizer.eval_weights(), plain.eval_weights():
        assert_equal(states, same)


def test_flush_applies_a_shorter_update() -> None:
    ours, theirs = bo.Adam(0.1, accumulate_steps=4, metrics=True), bo.Adam(0.1, metrics=True)
    states, same = registered(ours, **START), registered(theirs, **START)
    batches = [slopes(t) for t in range(7)]
    for i, grads in enumerate(batches):
        ours.update(grads, flush=i == 6)
        assert bool(ours.did_update.value) == (i in (3, 6))
    for part in (batches[:4], batches[4:]):
        theirs.update(mean(part))
    assert_equal(states, same)
    for name, x in theirs.metrics.items():
        np.testing.assert_allclose(ours.metrics[name], x, rtol=1e-12, err_msg=name)
    ours.update(slopes(9), flush=True)
    theirs.update(slopes(9))
    assert_equal(states, same)


@pytest.mark.parametrize('dynamic', [False, True])
def test_batch_that_is_not_finite_is_left_out(dynamic: bool) -> None:
    options: dict[str, Any] = {'loss_scale': bo.DynamicLossScale(4.0)} if dynamic else {'on_nonfinite': 'skip'}
    ours, theirs = bo.Adam(0.1, accumulate_steps=3, **options), bo.Adam(0.1)
    states, same = registered(ours, **START), registered(theirs, **START)
    batches = [slopes(t) for t in range(3)]
    for i, grads in enumerate(batches):
        factor = ours.loss_scale.current if dynamic else 1.0
        ours.update({key: g * (jnp.nan if i == 1 else factor) for key, g in grads.items()})
    theirs.update(mean([batches[0], batches[2]]))
    assert_equal(states, same)
    assert (int(ours.skipped_count), bool(ours.did_update.value)) == (1, True)
    assert not dynamic or ours.loss_scale.current == 2.0
    before = {key: np.array(s.value) for key, s in states.items()}
    for _ in range(3):
        ours.update({key: g * jnp.inf for key, g in batches[0].items()})
    assert (int(ours.skipped_count), bool(ours.did_update.value), int(ours.step_count.value)) == (4, False, 1)
    for key, s in states.items():
        np.testing.assert_array_equal(s.value, before[key])
    factor = ours.loss_scale.current if dynamic else 1.0
    for grads in batches:
        ours.update({key: g * factor for key, g in grads.items()})
    theirs.update(mean(batches))
    assert_equal(states, same)


def test_zero_and_raise_act_on_each_batch() -> None:
    bad = {**slopes(0), 'a': jnp.array([jnp.nan, 1.0, jnp.inf])}
    ours, theirs = bo.SGD(0.1, accumulate_steps=2, on_nonfinite='zero'), bo.SGD(0.1)
    states, same = registered(ours, **START), registered(theirs, **START)
    ours.update(bad)
    ours.update(slopes(1))
    theirs.update(mean([{**bad, 'a': jnp.array([0.0, 1.0, 0.0])}, slopes(1)]))
    assert_equal(states, same)
    raising = bo.SGD(0.1, accumulate_steps=2, on_nonfinite='raise')
    states = registered(raising, **START)
    raising.update(slopes(0))
    with pytest.raises(FloatingPointError, match='not finite'):
        raising.update(bad)
    raising.update(slopes(1))
    theirs = bo.SGD(0.1)
    same = registered(theirs, **START)
    theirs.update(mean([slopes(0), slopes(1)]))
    assert_equal(states, same)


def test_half_precision_gradients_are_added_in_float32() -> None:
    optimizer = bo.SGD(1.0, accumulate_steps=512, accumulate='sum', state_dtype='float16')
    w = registered(optimizer, w=jnp.zeros((), jnp.bfloat16), z=jnp.zeros((), complex))
    sums = optimizer.opt_state.value['accumulated']
    assert {x.dtype for x in sums.values()} == {jnp.dtype('float32'), jnp.dtype(float)}
    grads = {'w': jnp.ones((), jnp.bfloat16), 'z': jnp.asarray(1 + 2j)}
    brainstate.transform.for_loop(lambda _: optimizer.update(grads), jnp.arange(512))
    assert float(w['w'].value) == -512.0  # a sum in bfloat16 stops at 256
    assert complex(w['z'].value) == -512 * (1 - 2j)


def test_loss_of_polyak_is_accumulated() -> None:
    ours, theirs = bo.PolyakSGD(accumulate_steps=2), bo.PolyakSGD()
    states, same = registered(ours, **START), registered(theirs, **START)
    ours.update(slopes(0), value=jnp.asarray(3.0))
    ours.update(slopes(1), value=jnp.asarray(5.0))
    theirs.update(mean([slopes(0), slopes(1)]), value=jnp.asarray(4.0))
    assert_equal(states, same)


def test_reset_groups_and_wrong_calls() -> None:
    ours, theirs = bo.SGD(0.1, accumulate_steps=2), bo.SGD(0.1)
    states, same = registered(ours, **START), registered(theirs, **START)
    ours.update(slopes(0))
    ours.reset()
    late = brainstate.ParamState(jnp.ones(2)), brainstate.ParamState(jnp.ones(2))
    ours.add_param_group({'late': late[0]}, bo.Momentum(0.1))
    theirs.add_param_group({'late': late[1]}, bo.Momentum(0.1))
    batches = [{**slopes(t), 'late': jnp.full(2, t + 1.0)} for t in (1, 2)]
    for grads in batches:
        ours.update(grads)
    theirs.update(mean(batches))
    assert_equal({**states, 'late': late[0]}, {**same, 'late': late[1]})
    with pytest.raises(ValueError, match='Invalid partial=True with accumulate_steps'):
        ours.update(batches[0], partial=True)
    with pytest.raises(ValueError, match=r'Invalid flush=True\. Nothing is accumulated'):
        theirs.update(batches[0], flush=True)
    assert bool(theirs.did_update.value)
    with pytest.raises(TypeError, match='Invalid flush=1'):
        ours.update(batches[0], flush=1)  # type: ignore[arg-type]
    wrong: list[tuple[str, Any, type[Exception]]] = [
        ('accumulate_steps', 0, ValueError),
        ('accumulate_steps', 1.5, TypeError),
        ('accumulate', 'max', ValueError),
    ]
    for name, value, error in wrong:
        with pytest.raises(error, match=f'Invalid {name}='):
            bo.SGD(**{name: value})
    with pytest.raises(ValueError, match='give it to Adam'):
        registered(bo.Adam(groups={'a': bo.SGD(accumulate_steps=2)}), **START)
    with pytest.raises(TypeError, match='accumulate_steps'):
        bo.OptaxOptimizer(optax.MultiSteps(optax.sgd(0.1), 2))  # type: ignore[arg-type]
    second = bo.Sophia(accumulate_steps=2)
    registered(second, **START)
    with pytest.raises(ValueError, match='Invalid hessian with accumulate_steps'):
        second.update(slopes(0), hessian=slopes(1))
