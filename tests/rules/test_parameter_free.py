"""Optimizers that estimate their step size, and what all of them share."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import registered
from internals import group_state, state_leaves, update_counts
from tables import papers

import braintools_optim as bo

Options = dict[str, Any]
RNG = np.random.default_rng(3)
INPUTS, LABELS = jnp.asarray(RNG.normal(size=(64, 3))), jnp.asarray(RNG.choice([-1.0, 1.0], size=64, p=[0.2, 0.8]))
LEAST = 0.4618298102629247  # found by scipy's BFGS
START = {'w': np.array([1.0, -2.0, 0.5]), 'b': np.array(-1.0)}


def logistic(w: Any, b: Any) -> Any:
    return jnp.mean(jax.nn.softplus(-LABELS * (INPUTS @ w + b))) + 0.01 * (jnp.sum(w**2) + b**2)


FINDERS = [
    (bo.Prodigy, {}),
    (bo.DAdaptAdamW, {}),
    (bo.DoG, {}),
    (bo.DoG, {'layerwise': True}),
    (bo.PolyakSGD, {'f_min': LEAST, 'max_learning_rate': 10.0}),
    (bo.MADGRAD, {'lr': 0.1}),
    (bo.Sophia, {'lr': 0.05}),
]


@pytest.mark.parametrize(('rule', 'options'), FINDERS)
def test_finds_the_minimum_by_default(rule: Any, options: Options) -> None:
    optimizer = rule(**options)
    w = registered(optimizer, **START)
    losses = brainstate.transform.for_loop(
        lambda _: optimizer.minimize(lambda: logistic(w['w'].value, w['b'].value)), jnp.arange(400)
    )
    assert losses[0] > LEAST + 1
    assert abs(losses[-1] - LEAST) < 1e-5


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (bo.Prodigy(use_bias_correction=True), optax.contrib.prodigy()),
        (bo.DAdaptAdamW(use_bias_correction=True), optax.contrib.dadapt_adamw()),
        (bo.DoG(), optax.contrib.dog()),
    ],
    ids=lambda x: type(x).__name__,
)
def test_defaults_equal_optax_from_a_tiny_estimate(ours: Any, theirs: Any) -> None:
    """The estimate starts at 1e-6, a millionth of the distance to the solution."""
    w, start = registered(ours, **START), jax.tree.map(jnp.asarray, START)

    def update(carry: Any, _: Any) -> Any:
        params, state = carry
        changes, state = theirs.update(jax.grad(lambda p: logistic(**p))(params), state, params)
        params = optax.apply_updates(params, changes)
        return (params, state), params

    (params, _), path = jax.lax.scan(update, (start, theirs.init(start)), length=200)
    loss = lambda: logistic(w['w'].value, w['b'].value)  # noqa: E731
    brainstate.transform.for_loop(lambda _: ours.minimize(loss), jnp.arange(200))
    assert np.ptp(path['w'], axis=0).max() > 1
    np.testing.assert_allclose(w['w'].value, params['w'], rtol=1e-6)


def test_each_group_has_its_estimate() -> None:
    """Two groups equal two optimizers with these options."""
    slopes = {key: np.sin(np.arange(20.0)[:, None] + np.arange(3)) for key in 'ab'}
    slopes['b'] = 2 * slopes['b'][::-1]
    for rule, name in ((bo.Prodigy, 'd0'), (bo.DAdaptAdamW, 'd0'), (bo.DoG, 'reps_rel')):
        both, alone = rule(**{name: 0.01}), [rule(**{name: value}) for value in (0.01, 0.1)]
        w = registered(both, a=np.ones(3)) | {'b': brainstate.ParamState(jnp.ones(3))}
        both.add_param_group({'b': w['b']}, lr=0.5, **{name: 0.1})
        single = [registered(optimizer, **{key: np.ones(3)})[key] for optimizer, key in zip(alone, 'ab', strict=True)]
        alone[1].lr = 0.5
        for t in range(20):
            both.update({key: jnp.asarray(slopes[key][t]) for key in 'ab'})
            for optimizer, key in zip(alone, 'ab', strict=True):
                optimizer.update({key: jnp.asarray(slopes[key][t])})
        np.testing.assert_allclose([w['a'].value, w['b'].value], [x.value for x in single], rtol=1e-12)


def test_first_estimate_is_fixed_after_registration() -> None:
    for optimizer in (bo.Prodigy(), bo.DAdaptAdamW()):
        optimizer.d0 = 1e-3
        registered(optimizer, **START)
        assert group_state(optimizer)['d'] == 1e-3
        with pytest.raises(ValueError, match=r'd0.* cannot be assigned once weights are registered'):
            optimizer.d0 = 1e-2
        optimizer.growth_rate = 1.1


@pytest.mark.parametrize('rule', [bo.Prodigy, bo.DAdaptAdamW, bo.DoG, bo.MADGRAD])
def test_gradients_and_rates_of_zero_move_nothing(rule: Any) -> None:
    optimizer = rule(eps=0.0)
    w = registered(optimizer, w=np.ones(2))['w']
    optimizer.update({'w': jnp.zeros(2)})
    optimizer.lr = 0.0  # where a warm-up begins
    optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_array_equal(w.value, np.ones(2))
    optimizer.lr = 1.0
    optimizer.update({'w': jnp.array([1.0, 0.0])})
    assert jnp.isfinite(w.value).all()
    assert all(np.isfinite(leaf).all() for leaf in state_leaves(optimizer))


@pytest.mark.parametrize('corrected', [False, True])
@pytest.mark.parametrize(('rule', 'paper'), [(bo.Prodigy, papers.prodigy), (bo.DAdaptAdamW, papers.dadapt)])
def test_updates_with_a_rate_of_zero_are_left_out(rule: Any, paper: Any, corrected: bool) -> None:
    """The authors' releases leave out steps with lr == 0, their moments and their count included."""
    rates = np.array([0.0, 0.0, 0.1, 0.1, 0.0, 0.0, 0.1, 0.1, 0.1])
    options: Options = {'d0': 0.01, 'weight_decay': 0.1, 'use_bias_correction': corrected}
    optimizer = rule(lambda count: jnp.asarray(rates)[count], **options)
    w, state, expected = registered(optimizer, **START), {}, START
    for t, rate in enumerate(rates):
        before = jax.tree.map(np.array, state_leaves(optimizer))
        slopes = {key: np.cos(t + np.arange(np.size(x))).reshape(np.shape(x)) for key, x in START.items()}
        optimizer.update(jax.tree.map(jnp.asarray, slopes))
        expected = paper(expected, slopes, t + 1, state, lr=rate, **options)
        for key, state_of_weight in w.items():
            np.testing.assert_allclose(state_of_weight.value, expected[key], rtol=1e-12)
        if rate == 0:
            jax.tree.map(np.testing.assert_array_equal, before, state_leaves(optimizer))
    assert set(update_counts(optimizer).values()) == {np.count_nonzero(rates)}
    assert optimizer.step_count.value == len(rates)


@pytest.mark.parametrize('rule', [bo.Prodigy, bo.DAdaptAdamW, bo.Sophia])
def test_weights_without_decay(rule: Any) -> None:
    """``no_decay`` works even where the rule applies the decay."""
    options: Options = {'lr': 0.5} if rule is bo.Sophia else {'lr': 0.5, 'd0': 0.1}
    optimizer = rule(weight_decay=0.1, no_decay='b', **options)
    w = registered(optimizer, a=np.full(2, 3.0), b=np.full(2, 3.0))
    zeros = jax.tree.map(jnp.zeros_like, {key: state.value for key, state in w.items()})
    optimizer.update(zeros, **({'hessian': zeros} if rule is bo.Sophia else {}))
    np.testing.assert_allclose(w['a'].value, 3.0 * (1 - 0.05 * options.get('d0', 1.0)))
    np.testing.assert_array_equal(w['b'].value, 3.0)


@pytest.mark.parametrize('rule', [bo.PolyakSGD, bo.Sophia])
def test_loss_scale_changes_nothing(rule: Any) -> None:
    results = []
    for scale in (None, bo.DynamicLossScale(256.0) if rule is bo.PolyakSGD else 1024.0):
        optimizer = rule(loss_scale=scale, **({'gamma': 1.0} if rule is bo.Sophia else {}))
        w = registered(optimizer, **START)
        loss = lambda w=w: logistic(w['w'].value, w['b'].value)  # noqa: E731
        for _ in range(3):
            optimizer.minimize(loss)
        results.append(np.array(w['w'].value))
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize('rule', [bo.Prodigy, bo.DAdaptAdamW, bo.DoG, bo.Sophia])
def test_state_dtype_of_group_states(rule: Any) -> None:
    optimizer = rule(state_dtype=jnp.bfloat16)
    w = registered(optimizer, w=np.ones((2, 2)))['w']
    for t in range(3):
        g = {'w': jnp.full((2, 2), 1.0 + t)}
        optimizer.update(g, **({'hessian': g} if rule is bo.Sophia else {}))
    slots = {name: x for name, x in group_state(optimizer).items() if isinstance(x, dict)}
    assert {x['w'].dtype for x in slots.values()} == {jnp.dtype(jnp.bfloat16)}
    assert w.value.dtype == np.float64
    assert (w.value < 1).all()
