"""Evaluation weights, schedule-free averaging, Muon, SOAP and SAM."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rule_table import paper_schedule_free, paper_schedule_free_adamw

import braintools_optim as bo

SLOPES = np.random.default_rng(2).normal(size=(40, 3))
START = np.array([1.0, -2.0, 0.5])


def registered(optimizer: Any, **weights: Any) -> dict[str, brainstate.ParamState]:
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in weights.items()}
    optimizer.register_trainable_weights(states)
    return states


# evaluation weights


@pytest.mark.parametrize('way', ['eager', 'jit'])
@pytest.mark.parametrize(
    ('optimizer', 'paper', 'options'),
    [
        (bo.ScheduleFreeSGD, paper_schedule_free, {'momentum': 0.7}),
        (bo.ScheduleFreeAdamW, paper_schedule_free_adamw, {'betas': (0.8, 0.99), 'eps': 1e-3}),
    ],
)
def test_the_average_follows_a_schedule(optimizer: Any, paper: Any, options: dict[str, Any], way: str) -> None:
    """The paper's ``x`` and ``y``, with a rate that rises and falls: each acts on the next update."""
    rates = 0.1 * np.concatenate([np.linspace(0.2, 1, 10), np.linspace(1, 0.1, 30)])
    built = optimizer(lambda t: jnp.asarray(rates)[t], **options)
    w = registered(built, w=START)['w']

    def update(slope: Any) -> Any:
        built.update({'w': slope})
        with built.eval_weights():
            return w.value

    if way == 'jit':
        update = brainstate.transform.jit(update)
    y, memory = START, {}
    for t, slope in enumerate(SLOPES, 1):
        x = update(jnp.asarray(slope))
        y = paper(y, slope, t, memory, lr=rates[t - 1], **options)
        np.testing.assert_allclose(w.value, y, rtol=1e-12)
        np.testing.assert_allclose(x, memory['x'], rtol=1e-12)


def test_the_average_is_optaxs() -> None:
    built, tx = bo.ScheduleFreeAdamW(0.1), optax.contrib.schedule_free_adamw(0.1)
    w, params = registered(built, w=START)['w'], jnp.asarray(START)
    state = tx.init(params)
    for slope in SLOPES:
        built.update({'w': jnp.asarray(slope)})
        changes, state = tx.update(jnp.asarray(slope), state, params)
        params = optax.apply_updates(params, changes)
    with built.eval_weights():
        np.testing.assert_allclose(w.value, optax.contrib.schedule_free_eval_params(state, params), rtol=1e-12)


@pytest.mark.parametrize('rate', [0.0, 1e-30])
def test_a_vanishing_rate_moves_nothing(rate: float) -> None:
    """Before any other rate and after it; and the average goes on from there as if those updates had not been."""
    path = []
    for rates in ([1.0, 1.0, 0.5], [rate, 1.0, 1.0, rate, 0.5]):
        optimizer = bo.ScheduleFreeSGD(0.1, weight_lr_power=2.0)
        w = registered(optimizer, w=START)['w']
        for t, lr in enumerate(rates):
            optimizer.lr = 0.1 * lr
            before = w.value
            optimizer.update({'w': jnp.asarray(SLOPES[t if lr == rate else 0])})
            assert (lr != rate or rate) or (w.value == before).all()
        path.append(np.array(w.value))
    if not rate:
        np.testing.assert_array_equal(*path)
    assert np.isfinite(path[1]).all()


def with_averages() -> list[Any]:
    return [
        bo.ScheduleFreeAdamW(0.1),
        bo.ASGD(0.1, t0=0.0),
        bo.Lookahead(bo.Adam(0.1), sync_period=2),
    ]


@pytest.mark.parametrize('optimizer', with_averages(), ids=lambda o: type(o).__name__)
def test_evaluation_weights(optimizer: Any) -> None:
    """They come and go, to the bit; what cannot be meant inside is an error that changes nothing."""
    states = registered(optimizer, w=START, half=jnp.ones(3, jnp.bfloat16))
    states['both'] = brainstate.ParamState({'a': jnp.ones(2), 'z': jnp.asarray(1 + 2j)})
    optimizer.add_param_group({'both': states['both']}, weight_decay=0.1)

    def gradients(t: int) -> dict[str, Any]:
        slope = jnp.asarray(SLOPES[t])
        return {'w': slope, 'half': slope.astype(jnp.bfloat16), 'both': {'a': slope[:2], 'z': jnp.asarray(1j)}}

    update = brainstate.transform.jit(optimizer.update)
    for t in range(5):
        update(gradients(t))
    before, saved = {key: s.value for key, s in states.items()}, optimizer.state_dict()
    loss = lambda: jnp.sum(states['w'].value ** 2)  # noqa: E731
    minimize = lambda: optimizer.minimize(loss)  # noqa: E731
    forbidden = {
        'An update': [lambda: update(gradients(5)), lambda: optimizer.update(gradients(5)), minimize],
        'Registering weights': [lambda: optimizer.add_param_group({'v': brainstate.ParamState(jnp.ones(2))})],
        'A checkpoint': [optimizer.state_dict, lambda: optimizer.load_state_dict(saved)],
        'eval_weights': [lambda: optimizer.eval_weights().__enter__()],
    }
    inside: dict[str, Any] = {}

    def evaluate() -> None:
        inside.update({key: s.value for key, s in states.items()})
        for what, actions in forbidden.items():
            for action in actions:
                with pytest.raises(ValueError, match=f'{what} inside eval_weights'):
                    action()
        jax.tree.map(np.testing.assert_array_equal, {key: s.value for key, s in states.items()}, inside)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), optimizer.eval_weights():
        evaluate()
    for key, state in states.items():
        assert (jnp.asarray(jax.tree.leaves(inside[key])[0]) != jax.tree.leaves(before[key])[0]).any()
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (state.value, before[key])), strict=True))
        kinds = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(v[key])] for v in (inside, before)]
        assert kinds[0] == kinds[1]
    update(gradients(5))  # goes on as if nothing had been
    after = {key: s.value for key, s in states.items()}
    optimizer.load_state_dict(saved)
    for key, state in states.items():
        state.value = before[key]
    update(gradients(5))
    jax.tree.map(np.testing.assert_array_equal, {key: s.value for key, s in states.items()}, after)


def test_evaluation_weights_are_the_documented_ones() -> None:
    asgd, lookahead = bo.ASGD(0.1, t0=0.0), bo.Lookahead(bo.SGD(1.0), sync_period=3, alpha=0.5)
    a, b = registered(asgd, w=START)['w'], registered(lookahead, w=START)['w']
    for slope in SLOPES[:4]:
        asgd.update({'w': jnp.asarray(slope)})
        lookahead.update({'w': jnp.asarray(slope)})
    with asgd.eval_weights(), lookahead.eval_weights():
        np.testing.assert_array_equal(a.value, asgd.opt_state.value['ax']['w'])
        np.testing.assert_allclose(b.value, START - 0.5 * SLOPES[:3].sum(0))


@pytest.mark.parametrize('optimizer', [bo.Adam(), bo.LBFGS()], ids=lambda o: type(o).__name__)
def test_optimizers_without_evaluation_weights_say_so(optimizer: Any) -> None:
    with pytest.raises(ValueError, match='register_trainable_weights must be called before eval_weights'):
        optimizer.eval_weights().__enter__()
    w = registered(optimizer, w=START)['w']
    with (
        pytest.raises(TypeError, match=f'{type(optimizer).__name__} has no evaluation weights'),
        optimizer.eval_weights(),
    ):
        pass
    optimizer.update({'w': jnp.ones(3)})
    assert (w.value != START).all()


@pytest.mark.parametrize(
    ('optimizer', 'options', 'match'),
    [
        (bo.ScheduleFreeSGD, {'momentum': 0.0}, r'Invalid momentum=0\.0. Must be in \(0, 1\)'),
        (bo.ScheduleFreeSGD, {'momentum': 1.0}, r'Invalid momentum=1\.0'),
        (bo.ScheduleFreeAdamW, {'betas': (0.0, 0.9)}, r'Invalid betas\[0\]=0\.0'),
        (bo.ScheduleFreeSGD, {'r': -1.0}, r'Invalid r=-1\.0'),
        (bo.ScheduleFreeSGD, {'weight_lr_power': -1.0}, r'Invalid weight_lr_power=-1\.0'),
        (bo.ScheduleFreeSGD, {'warmup_steps': 0.5}, r'Invalid warmup_steps=0\.5'),
    ],
)
def test_options_out_of_range(optimizer: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        optimizer(**options)
