"""Rules that find their own step size: what optax and the papers say, what they are told, and the shared options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations
from rule_table import BETAS, DECAY, EPS, FLAG, STEPS, Case, combinations, deviation, optax_path, problem, run
from table import thinned

import braintools_optim as bo

DOUBLE, SINGLE = (float(np.finfo(dtype).eps) for dtype in (np.float64, np.float32))
Leaves = dict[str, Any]
Options = dict[str, Any]
GROWTH = (float('inf'), 1.02)


# references: optax, and the formulas as they are published


def optax_prodigy(
    lr: Any,
    d0: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    d_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    use_bias_correction: bool = True,
) -> Any:
    return optax.contrib.prodigy(lr, betas, None, eps, d0, d_coef, weight_decay, safeguard_warmup)


def optax_dadapt(
    lr: Any, d0: Any, betas: Any, eps: Any, weight_decay: Any = 0.0, use_bias_correction: bool = True
) -> Any:
    return optax.contrib.dadapt_adamw(lr, betas, eps, d0, weight_decay)


def optax_dog(
    lr: Any, reps_rel: Any = 1e-6, eps: Any = 1e-8, weight_decay: Any = 0.0, init_eta: Any = None
) -> optax.GradientTransformation:
    first = ('heuristic', reps_rel) if init_eta is None else ('learning_rate', init_eta)
    return optax.contrib.dog(lr, first, eps, weight_decay)


def flat(leaves: Leaves) -> Any:
    return np.concatenate([np.ravel(x) for x in leaves.values()])


def paper_prodigy(
    w: Leaves,
    g: Leaves,
    t: int,
    memory: Options,
    lr: float,
    d0: float,
    betas: Any = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    d_coef: float = 1.0,
    growth_rate: float = np.inf,
    weight_decay: float = 0.0,
    safeguard_warmup: bool = False,
) -> Leaves:
    w, g = flat(w), flat(g)
    start, d, d_max = memory.setdefault('start', w), memory.get('d', d0), memory.get('d_max', d0)
    beta3 = np.sqrt(betas[1]) if beta3 is None else beta3
    memory['r'] = beta3 * memory.get('r', 0.0) + (d / d0) * d * lr * (g @ (start - w))
    memory['s'] = beta3 * memory.get('s', 0.0) + (d / d0) * d * (1 if safeguard_warmup else lr) * g
    memory['m'] = betas[0] * memory.get('m', 0.0) + (1 - betas[0]) * d * g
    memory['v'] = betas[1] * memory.get('v', 0.0) + (1 - betas[1]) * (d * g) ** 2
    d_hat = d_coef * memory['r'] / np.abs(memory['s']).sum()
    memory['d_max'] = max(d_max, d_hat)
    memory['d'] = min(memory['d_max'], (max(d, d_hat) if d == d0 else d) * growth_rate)
    return w - lr * d * (memory['m'] / (np.sqrt(memory['v']) + memory['d'] * eps) + weight_decay * w)


def paper_dadapt(
    w: Leaves,
    g: Leaves,
    t: int,
    memory: Options,
    lr: float,
    d0: float,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    growth_rate: float = np.inf,
    weight_decay: float = 0.0,
) -> Leaves:
    w, g = flat(w), flat(g)
    d, s, v, gamma = memory.get('d', d0), memory.get('s', 0 * g), memory.get('v', 0 * g), np.sqrt(betas[1])
    memory['r'] = gamma * memory.get('r', 0.0) + (1 - gamma) * lr * d * (g @ (s / (np.sqrt(v) + eps)))
    memory['s'] = gamma * s + (1 - gamma) * lr * d * g
    memory['m'] = betas[0] * memory.get('m', 0.0) + (1 - betas[0]) * lr * d * g
    memory['v'] = betas[1] * v + (1 - betas[1]) * g**2
    d_hat = memory['r'] / ((1 - gamma) * np.abs(memory['s']).sum())
    memory['d'] = max(d, min(d_hat, d * growth_rate))
    return w - memory['m'] / (np.sqrt(memory['v']) + eps) - lr * d * weight_decay * w


def paper_ldog(
    w: Leaves,
    g: Leaves,
    t: int,
    memory: Options,
    lr: float,
    layerwise: bool,
    reps_rel: float = 1e-6,
    init_eta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Leaves:
    new = {}
    for key in w:
        start, slope = memory.setdefault(f'start {key}', w[key]), g[key] + weight_decay * w[key]
        first = reps_rel * (1 + np.linalg.norm(start)) if init_eta is None else 0.0
        memory[f'r {key}'] = max(memory.get(f'r {key}', first), np.linalg.norm(w[key] - start))
        memory[f'G {key}'] = memory.get(f'G {key}', eps) + np.sum(slope**2)
        eta = init_eta if init_eta and t == 1 else memory[f'r {key}'] / np.sqrt(memory[f'G {key}'])
        new[key] = w[key] - lr * eta * slope
    return flat(new)


def paper_path(case: Case) -> dict[str, np.ndarray]:
    """The trajectory of all weights together by a paper's formula, in NumPy."""
    options = {k: v for k, v in case.options if k not in ('maximize', 'use_bias_correction')}
    sign = -1 if dict(case.options).get('maximize') else 1
    weights, gradients = problem()
    path, memory = {key: [w] for key, w in weights.items()}, {}
    for t in range(1, STEPS + 1):
        last = {key: rows[-1] for key, rows in path.items()}
        new = case.paper(last, {key: sign * g[t - 1] for key, g in gradients.items()}, t, memory, **options)
        pieces = np.split(new, np.cumsum([w.size for w in weights.values()])[:-1])
        for rows, piece in zip(path.values(), pieces, strict=True):
            rows.append(piece.reshape(rows[0].shape))
    return {key: np.stack(rows) for key, rows in path.items()}


# the cases


def all_cases() -> Iterator[Case]:
    common: Options = {'lr': (0.1,), 'd0': (0.01,)}  # the estimate grows tenfold or more, and does not run away
    for rule, paper in ((bo.Prodigy, paper_prodigy), (bo.DAdaptAdamW, paper_dadapt)):
        yield from combinations(rule, {**common, 'maximize': (True,)}, paper=paper)
        yield from combinations(
            rule, {**common, 'growth_rate': GROWTH, 'eps': EPS, 'weight_decay': (0.0, *DECAY)}, paper=paper
        )
    yield from combinations(bo.Prodigy, {**common, 'beta3': (0.5,), 'd_coef': (0.5, 0.8)}, paper=paper_prodigy)
    corrected: Options = {'lr': (0.2,), 'd0': (0.01,), 'use_bias_correction': (True,), 'weight_decay': DECAY}
    corrected |= {'betas': BETAS, 'eps': EPS}
    yield from combinations(bo.Prodigy, {**corrected, 'safeguard_warmup': FLAG, 'd_coef': (0.5,)}, optax=optax_prodigy)
    yield from combinations(bo.DAdaptAdamW, corrected, optax=optax_dadapt)
    rates = {'lr': (1.0, 0.5), 'eps': (1e-8, 1.0), 'weight_decay': DECAY}
    yield from combinations(bo.DoG, {**rates, 'reps_rel': (1e-2, 1e-3)}, optax=optax_dog)
    yield from combinations(bo.DoG, {'lr': (1.0,), 'init_eta': (1e-3,)}, optax=optax_dog)
    yield from combinations(bo.DoG, {**rates, 'layerwise': (True,), 'reps_rel': (1e-2, 1e-3)}, paper=paper_ldog)
    yield from combinations(bo.DoG, {'lr': (1.0,), 'layerwise': (True,), 'init_eta': (1e-3,)}, paper=paper_ldog)


CASES = list(all_cases())


def reference(case: Case) -> dict[str, np.ndarray]:
    return optax_path(case) if case.optax else paper_path(case)


@thinned(CASES)
def test_optax_or_paper(case: Case) -> None:
    assert max(deviation(run(case, np.float64), reference(case), DOUBLE).values()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES[::8], ids=lambda case: case.name)
@pytest.mark.usefixtures('float32')
def test_optax_or_paper_in_float32(case: Case) -> None:
    jax.config.update('jax_enable_x64', True)
    exact = reference(case)
    jax.config.update('jax_enable_x64', False)
    assert max(deviation(run(case, np.float32), exact, SINGLE).values()) < 1e-5


# on a problem: all of them find the way down, from where they start by default


RNG = np.random.default_rng(3)
INPUTS, LABELS = jnp.asarray(RNG.normal(size=(64, 3))), jnp.asarray(RNG.choice([-1.0, 1.0], size=64, p=[0.2, 0.8]))
LEAST = 0.4618298102629247  # as scipy's BFGS finds it
START = {'w': np.array([1.0, -2.0, 0.5]), 'b': np.array(-1.0)}


def logistic(w: Any, b: Any) -> Any:
    return jnp.mean(jax.nn.softplus(-LABELS * (INPUTS @ w + b))) + 0.01 * (jnp.sum(w**2) + b**2)


def registered(optimizer: bo.Optimizer, **start: Any) -> dict[str, brainstate.ParamState]:
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in (start or START).items()}
    optimizer.register_trainable_weights(states)
    return states


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
def test_finds_the_least_loss(rule: Any, options: Options) -> None:
    optimizer = rule(**options)
    w = registered(optimizer)
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
def test_defaults_are_those_of_optax(ours: Any, theirs: Any) -> None:
    """From an estimate of 1e-6 to the solution, which is a million times as far."""
    w, start = registered(ours), jax.tree.map(jnp.asarray, START)

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


def test_the_estimate_is_that_of_a_group() -> None:
    """Two groups are two optimizers, but for clipping, which is global; and each has options of its own."""
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


def test_the_first_estimate_is_fixed_once_there_is_memory() -> None:
    for optimizer in (bo.Prodigy(), bo.DAdaptAdamW()):
        optimizer.d0 = 1e-3
        registered(optimizer)
        assert optimizer.opt_state.value['tree']['0']['d'] == 1e-3
        with pytest.raises(ValueError, match=r'd0.* cannot be assigned once weights are registered'):
            optimizer.d0 = 1e-2
        optimizer.growth_rate = 1.1


@pytest.mark.parametrize(
    ('rule', 'options', 'match'),
    [
        (bo.Prodigy, {'d0': 0.0}, 'Invalid d0=0.0. Must be > 0'),
        (bo.Prodigy, {'growth_rate': 0.9}, 'Invalid growth_rate=0.9. Must be >= 1'),
        (bo.Prodigy, {'beta3': 1.0}, 'Invalid beta3=1.0'),
        (bo.Prodigy, {'d_coef': -1.0}, 'Invalid d_coef=-1.0'),
        (bo.DAdaptAdamW, {'betas': (0.9, 1.0)}, r'Invalid betas\[1\]=1.0'),
        (bo.DoG, {'reps_rel': 0.0}, 'Invalid reps_rel=0.0'),
        (bo.DoG, {'init_eta': -1.0}, 'Invalid init_eta=-1.0'),
        (bo.PolyakSGD, {'max_learning_rate': 0.0}, 'Invalid max_learning_rate=0.0'),
        (bo.MADGRAD, {'momentum': 1.5}, 'Invalid momentum=1.5'),
        (bo.Sophia, {'update_period': 0}, 'Invalid update_period=0'),
        (bo.Sophia, {'seed': -1}, 'Invalid seed=-1'),
        (bo.Sophia, {'gamma': -1.0}, 'Invalid gamma=-1.0'),
    ],
)
def test_options_out_of_range(rule: Any, options: Options, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        rule(**options)


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
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(optimizer.opt_state.value))


# PolyakSGD


def polyak(w: Leaves, g: Leaves, value: float, **options: Any) -> Leaves:
    """One update from these weights, the second of them a group of its own."""
    optimizer = bo.PolyakSGD(**options)
    states = {key: brainstate.ParamState(jnp.asarray(x)) for key, x in w.items()}
    optimizer.register_trainable_weights({'a': states['a']})
    optimizer.add_param_group({'b': states['b']})
    optimizer.update(jax.tree.map(jnp.asarray, g), value=value)
    return {key: np.array(state.value) for key, state in states.items()}


def test_polyak_halves_the_way_on_a_parabola() -> None:
    w = brainstate.ParamState(jnp.array(4.0))
    optimizer = bo.PolyakSGD().register_trainable_weights({'w': w})
    loss = lambda: w.value**2  # noqa: E731
    for t in range(10):
        with compilations(0) if t > 1 else nullcontext():
            optimizer.minimize(loss)
        assert w.value == 4.0 / 2 ** (t + 1)  # w - w**2 / (2 w)**2 * 2 w
    optimizer.lr = 0.5
    before = w.value
    optimizer.minimize(loss)
    assert w.value == before * 0.75
    value, aux = optimizer.minimize(lambda: (w.value**2, w.value), has_aux=True)
    assert value == aux**2 == (before * 0.75) ** 2


@pytest.mark.parametrize('options', [{}, {'eps': 0.5}, {'f_min': 0.7}, {'max_learning_rate': 0.05}])
def test_polyak_is_optaxs_and_groups_share_its_norm(options: Options) -> None:
    w, g = {'a': np.array([1.0, -2.0]), 'b': np.array(0.5)}, {'a': np.array([3.0, 0.5]), 'b': np.array(-2.0)}
    tx = optax.polyak_sgd(**options)
    changes, _ = tx.update(g, tx.init(w), w, value=2.0)
    for lr in (1.0, 0.3):
        for key, new in polyak(w, g, 2.0, lr=lr, **options).items():
            np.testing.assert_allclose(new, w[key] + lr * changes[key], rtol=1e-12)


def test_polyak_never_overshoots_its_rate() -> None:
    w, g = {'a': np.ones(2), 'b': np.array(1.0)}, {'a': np.ones(2), 'b': np.array(-1.0)}
    assert (polyak(w, g, 0.5, f_min=1.0)['a'] == 1).all()  # below the least value there is no step up
    up, down = polyak(w, g, -3.0, f_min=0.0, maximize=True), polyak(w, g, 3.0)
    np.testing.assert_allclose(up['a'] - 1, 1 - down['a'])
    clipped = polyak(w, g, 1.5, grad_clip_norm=np.sqrt(3) / 4)  # a step of 1/2 along a gradient of a quarter
    np.testing.assert_allclose(clipped['a'], 1 - 0.125, rtol=1e-5)
    assert (polyak(w, jax.tree.map(np.zeros_like, g), 1.0)['a'] == 1).all()


def test_polyak_is_told_the_loss() -> None:
    optimizer = bo.PolyakSGD()
    w = brainstate.ParamState(jnp.ones(2) * u.mV)
    optimizer.register_trainable_weights({'w': w})
    for wrong in (None, np.ones(2)):
        with pytest.raises(ValueError, match=r'Invalid value=.* must be told the loss'):
            optimizer.update({'w': jnp.ones(2) * u.mV}, value=wrong)
    assert optimizer.step_count.value == 0
    optimizer.update({'w': jnp.ones(2) / u.mV}, value=1.0)
    np.testing.assert_allclose(w.value / u.mV, 0.5)


# the options that all optimizers share


@pytest.mark.parametrize('rule', [bo.Prodigy, bo.DAdaptAdamW, bo.Sophia])
def test_weights_without_decay(rule: Any) -> None:
    """Where the rule applies decay itself, too."""
    options: Options = {'lr': 0.5} if rule is bo.Sophia else {'lr': 0.5, 'd0': 0.1}
    optimizer = rule(weight_decay=0.1, no_decay='b', **options)
    w = registered(optimizer, a=np.full(2, 3.0), b=np.full(2, 3.0))
    zeros = jax.tree.map(jnp.zeros_like, {key: state.value for key, state in w.items()})
    optimizer.update(zeros, **({'hessian': zeros} if rule is bo.Sophia else {}))
    np.testing.assert_allclose(w['a'].value, 3.0 * (1 - 0.05 * options.get('d0', 1.0)))
    np.testing.assert_array_equal(w['b'].value, 3.0)


def test_a_frozen_weight_stops_no_count() -> None:
    """The bias correction, the signs and what is due are counted on without the first weight."""
    hessian = {'b': jnp.ones(2)}
    for rule, options in ((bo.Prodigy, {'d0': 0.1, 'use_bias_correction': True}), (bo.Sophia, {'update_period': 3})):
        paths = []
        for frozen in (True, False):
            optimizer = rule(**options)
            w = registered(optimizer, **({'a': np.ones(2)} if frozen else {}), b=np.ones(2))
            if frozen:
                optimizer.freeze('a')
            for t in range(5):
                told = {'hessian': hessian | ({'a': jnp.ones(2)} if frozen else {})} if rule is bo.Sophia else {}
                optimizer.update({'b': jnp.array([1.0, t])}, **told)
            paths.append(np.array(w['b'].value))
        np.testing.assert_array_equal(*paths)


@pytest.mark.parametrize('rule', [bo.PolyakSGD, bo.Sophia])
def test_a_loss_scale_changes_nothing(rule: Any) -> None:
    results = []
    for scale in (None, bo.DynamicLossScale(256.0) if rule is bo.PolyakSGD else 1024.0):
        optimizer = rule(loss_scale=scale, **({'gamma': 1.0} if rule is bo.Sophia else {}))
        w = registered(optimizer)
        loss = lambda w=w: logistic(w['w'].value, w['b'].value)  # noqa: E731
        for _ in range(3):
            optimizer.minimize(loss)
        results.append(np.array(w['w'].value))
    np.testing.assert_allclose(*results, rtol=1e-12)


@pytest.mark.parametrize('rule', [bo.Prodigy, bo.DAdaptAdamW, bo.DoG, bo.Sophia])
def test_memory_is_kept_in_its_dtype(rule: Any) -> None:
    optimizer = rule(state_dtype=jnp.bfloat16)
    w = registered(optimizer, w=np.ones((2, 2)))['w']
    for t in range(3):
        g = {'w': jnp.full((2, 2), 1.0 + t)}
        optimizer.update(g, **({'hessian': g} if rule is bo.Sophia else {}))
    slots = {name: x for name, x in optimizer.opt_state.value['tree']['0'].items() if isinstance(x, dict)}
    assert {x['w'].dtype for x in slots.values()} == {jnp.dtype(jnp.bfloat16)}
    assert w.value.dtype == np.float64
    assert (w.value < 1).all()
