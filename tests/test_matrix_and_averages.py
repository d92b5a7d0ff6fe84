"""Evaluation weights, schedule-free averaging, Muon, SOAP and SAM."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import COMPILATIONS
from golden.record_muon import MUON, muon_problem, torch_muon_path
from rule_table import RECORDED, deviation, paper_schedule_free, paper_schedule_free_adamw

import braintools_optim as bo

SLOPES = np.random.default_rng(2).normal(size=(40, 3))
START = np.array([1.0, -2.0, 0.5])
HAS_TORCH = importlib.util.find_spec('torch') is not None


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
        (bo.Muon, {'eps': 0.0}, r'Invalid eps=0\.0\. Must be > 0'),
        (bo.Muon, {'ns_steps': 100}, r'Invalid ns_steps=100. Must be in \[0, 99\]'),
        (bo.Muon, {'ns_steps': 1.5}, r'Invalid ns_steps=1\.5. Must be an integer'),
        (bo.Muon, {'adjust_lr_fn': 'none'}, r"Invalid adjust_lr_fn='none'. Must be one of \(None, 'original', 'match"),
        (bo.Muon, {'ns_coefficients': (1.0, 2.0)}, 'Invalid ns_coefficients'),
        (bo.Muon, {'adamw_betas': (0.9, 1.0)}, r'Invalid adamw_betas\[1\]'),
        (bo.Muon, {'adamw_lr': -1.0}, 'Invalid adamw_lr=-1'),
        (bo.Muon, {'adamw_weight_decay': -1.0}, 'Invalid adamw_weight_decay=-1'),
        (bo.SOAP, {'precondition_frequency': 0}, 'Invalid precondition_frequency=0'),
        (bo.SOAP, {'max_precondition_dim': -1}, 'Invalid max_precondition_dim=-1'),
        (bo.SOAP, {'shampoo_beta': 1.0}, r'Invalid shampoo_beta=1\.0'),
        (bo.SOAP, {'decoupled_weight_decay': True}, 'decoupled_weight_decay'),
    ],
)
def test_options_out_of_range(optimizer: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        optimizer(**options)


# Muon

MUON_RECORDS = np.load(Path(__file__).parent / 'golden' / 'muon.npz')


@functools.cache
def muon_path(case: str, dtype: Any) -> dict[str, np.ndarray]:
    weights, gradients = muon_problem()
    optimizer = bo.Muon(**MUON[case])
    states = registered(optimizer, **{key: jnp.asarray(w, dtype) for key, w in weights.items()})

    def update(slopes: Any) -> Any:
        optimizer.update(slopes)
        return {key: state.value for key, state in states.items()}

    slopes = {key: jnp.asarray(g, dtype) for key, g in gradients.items()}
    path = brainstate.transform.jit(lambda: brainstate.transform.for_loop(update, slopes))()
    return {key: np.concatenate([weights[key][None].astype(dtype), path[key]]) for key in weights}


def from_record(case: str, path: dict[str, np.ndarray]) -> float:
    """The worst deviation from torch's float64 over the distance travelled."""
    worst = 0.0
    for key, p in path.items():
        error = np.abs(p[list(RECORDED)] - MUON_RECORDS[f'{case}/{key}']).max(axis=(1, 2))
        worst = max(worst, float(np.max(error / MUON_RECORDS[f'{case}/{key}/travelled'])))
    return worst


@pytest.mark.parametrize('case', MUON)
def test_muon_is_torchs_in_float64(case: str) -> None:
    path = muon_path(case, np.float64)
    assert from_record(case, path) < 1e-12
    if HAS_TORCH:
        assert max(deviation(path, torch_muon_path(case, 'float64')).values()) < 1e-12


@pytest.mark.parametrize('case', MUON)
@pytest.mark.usefixtures('float32')
def test_muon_in_float32_is_as_exact_as_torch(case: str) -> None:
    path = muon_path(case, np.float32)
    assert from_record(case, path) <= 2 * MUON_RECORDS[f'{case}/float32']
    assert MUON_RECORDS[f'{case}/bfloat16'] > 10 * MUON_RECORDS[f'{case}/float32']  # what torch does by default
    if HAS_TORCH:
        exact = torch_muon_path(case, 'float64')
        theirs = deviation(torch_muon_path(case, 'float32'), exact)
        assert max(deviation(path, exact).values()) <= 2 * max(theirs.values())


WEIGHTS = {
    'layers.0.weight': np.ones((2, 2)),
    'layers.0.bias': np.ones(2),
    'layer_norm.scale': np.ones((2, 2)),
    'multihead.query': np.ones((2, 2)),
    'embedding.weight': np.ones((2, 2)),
    'token_embed': np.ones((2, 2)),
    'lm_head.weight': np.ones((2, 2)),
    'readout': np.ones((2, 2)),
    'out.w': np.ones((2, 2)),
    'outer.w': np.ones((2, 2)),
    'kernel': np.ones((2, 2, 2)),
    'spectrum': np.ones((2, 2), complex),
    'tau': np.ones(()),
}
HIDDEN = ['layers.0.weight', 'multihead.query', 'outer.w']


def slopes_of(states: dict[str, Any], t: int) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    return {key: jnp.asarray(rng.normal(size=s.value.shape), s.value.dtype) for key, s in states.items()}


def test_muon_updates_hidden_matrices_and_adamw_the_rest() -> None:
    """Each to the bit as it would alone, each with its own options; and the print tells which is which."""
    options = {'momentum': 0.8, 'weight_decay': 0.3}
    adamw = {'betas': (0.8, 0.9), 'eps': 1e-3, 'weight_decay': 0.2}
    both = bo.Muon(bo.StepLR(0.1, 1, 0.5), **options, adamw_lr=0.02, **{f'adamw_{k}': v for k, v in adamw.items()})
    alone = [bo.Muon(bo.StepLR(0.1, 1, 0.5), **options), bo.AdamW(bo.StepLR(0.02, 1, 0.5), **adamw)]
    mixed = registered(both, **WEIGHTS)
    apart = [
        registered(optimizer, **{key: w for key, w in WEIGHTS.items() if (key in HIDDEN) == (i == 0)})
        for i, optimizer in enumerate(alone)
    ]
    shown = [repr(group) for group in both.param_groups]
    for algorithm, text, states in zip(('muon', 'adamw'), shown, apart, strict=True):
        assert f"algorithm='{algorithm}'" in text
        assert all((f'{key},' in text or f'{key};' in text) == (key in states) for key in WEIGHTS)
    saved = None
    for t in range(3):
        slopes = slopes_of(mixed, t)
        both.update(slopes)
        for optimizer, states in zip(alone, apart, strict=True):
            optimizer.update({key: slopes[key] for key in states})
            optimizer.lr.step()
            for key, state in states.items():
                np.testing.assert_allclose(mixed[key].value, state.value, rtol=1e-14, err_msg=key)
        both.lr.step()
        saved = saved or (both.state_dict(), {key: np.array(s.value) for key, s in mixed.items()})
    resumed = bo.Muon(bo.StepLR(0.1, 1, 0.5), **options, adamw_lr=0.02, **{f'adamw_{k}': v for k, v in adamw.items()})
    again = registered(resumed, **saved[1])
    resumed.load_state_dict(saved[0])
    for t in (1, 2):
        resumed.update(slopes_of(again, t))
        resumed.lr.step()
    for key, state in mixed.items():
        np.testing.assert_array_equal(state.value, again[key].value)


def test_the_choice_of_muon_can_be_made() -> None:
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in WEIGHTS.items()}
    first, later = {'readout': states['readout'], 'tau': states['tau']}, states['outer.w']
    optimizer = bo.Muon(muon=lambda name, w: w.ndim == 2).register_trainable_weights(first)
    optimizer.add_param_group({'outer.w': later}, algorithm='adamw', weight_decay=0.5)
    optimizer.add_param_group({'lm_head': states['lm_head.weight']}, momentum=0.1)
    groups = [(g['algorithm'], list(g['params']), g['weight_decay'], g['momentum']) for g in optimizer.param_groups]
    assert groups == [
        ('muon', ['readout'], 0.1, 0.95),
        ('adamw', ['tau'], 0.01, 0.95),
        ('adamw', ['outer.w'], 0.5, 0.95),
        ('muon', ['lm_head'], 0.1, 0.1),
    ]
    always = bo.Muon(muon=lambda name, w: True)
    for wrong in ('kernel', 'spectrum', 'layers.0.bias'):
        with pytest.raises(ValueError, match=f'real matrices only.*{wrong}'):
            optimizer.add_param_group({wrong: states[wrong]}, algorithm='muon')
        with pytest.raises(ValueError, match=f'real matrices only.*{wrong}'):
            always.register_trainable_weights({wrong: states[wrong]})
        assert (len(optimizer.param_groups), len(always.param_groups)) == (4, 0)
    with pytest.raises(ValueError, match='cannot be assigned once weights are registered'):
        optimizer.param_groups[0]['algorithm'] = 'adamw'
    with pytest.raises(ValueError, match='cannot be assigned once weights are registered'):
        optimizer.algorithm = 'adamw'
    with pytest.raises(ValueError, match='ns_steps of Muon is fixed'):
        optimizer.ns_steps = 3
    optax_muon = bo.to_optax(bo.Muon())
    with pytest.raises(ValueError, match=r'real matrices only, not weights of the shape \[2\]'):
        optax_muon.update(jnp.ones(2), optax_muon.init(jnp.ones(2)), jnp.ones(2))


# SOAP


def soap(w: Any, g: Any, t: int, memory: Any, lr: float, beta: float, frequency: int, longest: int, **o: Any) -> Any:
    """As its authors publish it: the first update initialises; then project, Adam, project back, renew the bases."""
    beta1, beta2 = o['betas']
    sides = [i for i in range(w.ndim) if w.ndim == 2 and w.shape[i] <= longest]

    def turn(m: Any, back: bool = False) -> Any:
        for i in sides:
            q = memory['Q', i].T if back else memory['Q', i]
            m = q.T @ m if i == 0 else m @ q
        return m

    def covariances() -> None:
        for i in sides:
            outer = g @ g.T if i == 0 else g.T @ g
            memory['GG', i] = beta * memory.get(('GG', i), 0.0) + (1 - beta) * outer

    if t == 1:
        covariances()
        for i in sides:
            memory['Q', i] = np.linalg.eigh(memory['GG', i])[1][:, ::-1]
        return w
    t -= 1
    m = memory['m'] = beta1 * memory.get('m', 0.0) + (1 - beta1) * g
    v = memory['v'] = beta2 * memory.get('v', 0.0) + (1 - beta2) * turn(g) ** 2
    step = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    w = w - step * turn(turn(m) / (np.sqrt(v) + o['eps']), back=True)
    w = w - lr * o['weight_decay'] * w
    covariances()
    if t % frequency == 0:
        for i in sides:
            q, gg = memory['Q', i], memory['GG', i]
            order = np.argsort(-np.diag(q.T @ gg @ q))
            memory['v'] = np.take(memory['v'], order, axis=i)
            memory['Q', i] = np.linalg.qr(gg @ q[:, order])[0]
    return w


@pytest.mark.parametrize(
    ('options', 'renamed'),
    [
        ({}, {}),
        ({'betas': (0.9, 0.8), 'precondition_frequency': 1, 'eps': 1e-3}, {'frequency': 1}),
        ({'shampoo_beta': 0.5, 'weight_decay': 0.0, 'precondition_frequency': 7}, {'beta': 0.5, 'frequency': 7}),
        ({'max_precondition_dim': 3}, {'longest': 3}),
    ],
)
def test_soap_is_its_authors(options: dict[str, Any], renamed: dict[str, Any]) -> None:
    rng = np.random.default_rng(5)
    start = {'wide': rng.normal(size=(3, 4)), 'tall': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)}
    mix = {'wide': rng.normal(size=(4, 4)), 'tall': rng.normal(size=(3, 3)), 'bias': np.eye(3)}
    slopes = {key: rng.normal(size=(60, *w.shape)) @ mix[key] for key, w in start.items()}
    optimizer = bo.SOAP(0.01, **options)
    states = registered(optimizer, **start)

    def update(slope: Any) -> Any:
        optimizer.update(slope)
        return {key: state.value for key, state in states.items()}

    path = brainstate.transform.for_loop(update, jax.tree.map(jnp.asarray, slopes))
    full = {'betas': (0.95, 0.95), 'eps': 1e-8, 'weight_decay': 0.01} | options
    full = {name: full[name] for name in ('betas', 'eps', 'weight_decay')}
    own = {'beta': full['betas'][1], 'frequency': 10, 'longest': 10000} | renamed
    for key, w in start.items():
        memory: dict[Any, Any] = {}
        for t in range(60):
            w = soap(w, slopes[key][t], t + 1, memory, 0.01, **own, **full)
            np.testing.assert_allclose(path[key][t], w, rtol=0, atol=1e-12, err_msg=f'{key} {t}')


# SAM


def valley(a: Any, b: Any) -> Any:
    return jnp.sum(jnp.sin(3 * a) * jnp.array([1.0, 2.0, -1.0])) + b * b * jnp.sum(a**2)


def sam_steps(rho: float, adaptive: bool, clip: float, sign: float = 1.0) -> Any:
    """Weights after each update, by the formula: heavy-ball descent at a halving rate, with the gradient clipped."""
    w, buffer, rate, path = [START, np.array(0.5)], [0.0, 0.0], 0.1, []
    slope = jax.grad(lambda w: sign * valley(*w))
    for _ in range(6):
        g = [np.array(x) for x in slope([jnp.asarray(x) for x in w])]
        size = [np.abs(x) if adaptive else np.ones_like(x) for x in w]
        norm = np.sqrt(sum(np.sum((s * x) ** 2) for s, x in zip(size, g, strict=True)))
        there = [x + rho * s**2 * y / norm for x, s, y in zip(w, size, g, strict=True)]
        g = [np.array(x) for x in slope([jnp.asarray(x) for x in there])]
        norm = np.sqrt(sum(np.sum(x**2) for x in g))
        g = [x * min(1.0, clip / (norm + 1e-6)) for x in g]
        buffer = [0.9 * b + x + 0.01 * y for b, x, y in zip(buffer, g, w, strict=True)]
        w = [x - rate * b for x, b in zip(w, buffer, strict=True)]
        rate *= 0.5
        path.append(np.append(*w))
    return np.stack(path)


@pytest.mark.parametrize('way', ['minimize', 'update', 'tree', 'jit'])
@pytest.mark.parametrize(('rho', 'adaptive', 'sign'), [(0.05, False, 1.0), (2.0, True, -1.0)])
def test_sam_is_the_papers(rho: float, adaptive: bool, sign: float, way: str) -> None:
    base = bo.SGD(bo.StepLR(0.1, 1, 0.5), 0.9, weight_decay=0.01, grad_clip_norm=2.0, maximize=sign < 0)
    optimizer = bo.SAM(base, rho=rho, adaptive=adaptive)
    states = {'a': brainstate.ParamState(jnp.asarray(START)), 'b': brainstate.ParamState({'x': jnp.asarray(0.5)})}
    assert optimizer.register_trainable_weights(states) is optimizer
    loss = lambda: valley(states['a'].value, states['b'].value['x'])  # noqa: E731
    of_tree = lambda tree: valley(tree['a'], tree['b']['x'])  # noqa: E731
    in_jit = brainstate.transform.jit(lambda: optimizer.minimize(loss))
    for t, exact in enumerate(sam_steps(rho, adaptive, 2.0, sign)):
        before, compiled = loss(), len(COMPILATIONS)
        if way in ('minimize', 'jit'):
            here = optimizer.minimize(loss) if way == 'minimize' else in_jit()
            assert t == 0 or len(COMPILATIONS) == compiled
            np.testing.assert_allclose(here, before)
        else:
            gradients = brainstate.transform.grad(loss, states)()
            optimizer.update(gradients, value_fn=of_tree if way == 'tree' else loss)
        optimizer.lr.step()
        np.testing.assert_allclose(np.append(states['a'].value, states['b'].value['x']), exact, rtol=1e-12)
    assert int(optimizer.step_count.value) == 6


def test_sam_agrees_with_optax() -> None:
    optimizer = bo.SAM(bo.SGD(0.1), rho=0.3)
    w = registered(optimizer, w=START)['w']
    tx = optax.contrib.sam(optax.sgd(0.1), optax.chain(optax.contrib.normalize(), optax.sgd(0.3)), opaque_mode=True)
    params, slope = jnp.asarray(START), jax.grad(lambda x: valley(x, 0.5))
    state, loss = tx.init(params), lambda: valley(w.value, 0.5)
    for _ in range(5):
        optimizer.minimize(loss)
        changes, state = tx.update(slope(params), state, params, grad_fn=lambda x, _: slope(x))
        params = optax.apply_updates(params, changes)
        np.testing.assert_allclose(w.value, params, rtol=1e-12)


def test_sam_shows_the_base_optimizer() -> None:
    """Options act on the next update, in compiled functions; a checkpoint goes on to the bit; a group is a group."""

    def build(start: Any = START, b: Any = 0.5, **options: Any) -> Any:
        optimizer = bo.SAM(bo.ScheduleFreeAdamW(0.1), **options)
        states = {'a': brainstate.ParamState(jnp.asarray(start))}
        optimizer.register_trainable_weights(states)
        states['b'] = brainstate.ParamState(jnp.asarray(b, jnp.bfloat16))
        optimizer.add_param_group({'b': states['b']}, lr=0.3)
        loss = lambda: valley(states['a'].value, states['b'].value.astype(float))  # noqa: E731
        return optimizer, states, loss

    (optimizer, states, loss), reference = build(rho=0.1), build(rho=0.4, adaptive=True)
    assert float(optimizer.lr) == optimizer.current_lr == 0.1
    assert [float(group['lr']) for group in optimizer.param_groups] == [0.1, 0.3]
    optimizer.minimize(loss)
    optimizer.rho, optimizer.adaptive, optimizer.lr, optimizer.eps = 0.4, True, 0.05, 0.1
    assert (optimizer.rho, optimizer.adaptive, optimizer.base_optimizer.eps) == (0.4, True, 0.1)
    reference[0].load_state_dict(optimizer.state_dict())
    for key, state in reference[1].items():
        state.value = states[key].value
    for _ in range(2):
        optimizer.minimize(loss)
        reference[0].minimize(reference[2])
    jax.tree.map(np.testing.assert_array_equal, *({k: s.value for k, s in x.items()} for x in (states, reference[1])))
    assert states['b'].value.dtype == jnp.bfloat16
    with optimizer.eval_weights():
        with pytest.raises(ValueError, match='An update inside eval_weights'):
            optimizer.minimize(loss)
        with pytest.raises(ValueError, match='An update inside eval_weights'):
            optimizer.update({}, value_fn=loss)
    with pytest.raises(ValueError, match='adaptive: True there, False here'):
        build()[0].load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match='not one of SAM'):
        optimizer.load_state_dict(optimizer.base_optimizer.state_dict())
    assert 'SAM(ScheduleFreeAdamW(lr=' in repr(optimizer)
    assert len(brainstate.graph.states(optimizer)) == len(brainstate.graph.states(optimizer.base_optimizer)) + 1


def test_sam_refuses_what_it_cannot_do() -> None:
    optimizer = bo.SAM(bo.Adam(), rho=0.1)
    loss = lambda: 0.0  # noqa: E731
    for update in (lambda: optimizer.update({}, value_fn=loss), lambda: optimizer.minimize(loss)):
        with pytest.raises(ValueError, match='register_trainable_weights must be called before'):
            update()
    w = registered(optimizer, w=START)['w']
    before = [w.value, *jax.tree.leaves(optimizer.state_dict())]
    with pytest.raises(ValueError, match=r'SAM needs the loss: update\(grads, value_fn=loss\)'):
        optimizer.update({'w': w.value})
    with pytest.raises(ValueError, match='shapes of their weights'):
        optimizer.update({'w': jnp.ones((2, 3))}, value_fn=lambda: jnp.sum(w.value**2))
    with pytest.raises(KeyError, match='missing or None: w'):
        optimizer.update({}, value_fn=lambda: jnp.sum(w.value**2))
    for wrong in (-0.1, 'x'):
        with pytest.raises((ValueError, TypeError), match=f'Invalid rho={wrong!r}'):
            optimizer.rho = wrong
        with pytest.raises((ValueError, TypeError), match=f'Invalid rho={wrong!r}'):
            bo.SAM(bo.Adam(), rho=wrong)
    with pytest.raises(TypeError, match='Invalid adaptive=1'):
        optimizer.adaptive = 1
    with pytest.raises(TypeError, match='Invalid base_optimizer='):
        bo.SAM(optax.sgd(0.1))
    after = [w.value, *jax.tree.leaves(optimizer.state_dict())]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    optimizer.minimize(lambda: 0.0 * jnp.sum(w.value))  # a gradient of zero perturbs nothing
    np.testing.assert_array_equal(w.value, START)


def test_functions_compiled_for_several_losses_are_no_part_of_the_graph() -> None:
    optimizer = bo.ASGD()
    w = registered(optimizer, w=START)['w']
    states = set(brainstate.graph.states(optimizer))
    for power in (2, 4):
        optimizer.minimize(lambda power=power: jnp.sum(w.value**power))
    with optimizer.eval_weights():
        assert set(brainstate.graph.states(optimizer)) == states
    assert optimizer.state_dict()['step_count'] == 2


# with the options that every optimizer shares


def test_evaluation_weights_know_master_copies_and_constraints() -> None:
    exact, half = (bo.ScheduleFreeSGD(0.01, 0.5, master_weights=master) for master in (False, True))
    a = registered(exact, w=jnp.asarray(START, np.float32))['w']
    b = registered(half, w=jnp.asarray(START, jnp.bfloat16))['w']
    for slope in SLOPES[:20]:
        rounded = jnp.asarray(slope, jnp.bfloat16)
        exact.update({'w': rounded.astype(np.float32)})
        half.update({'w': rounded})
    with exact.eval_weights(), half.eval_weights():
        assert b.value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(b.value, a.value.astype(jnp.bfloat16))
    bounded = bo.ASGD(1.0, t0=0.0, constraints={'w': bo.constraints.box(-0.5, 0.5)})
    w = registered(bounded, w=np.zeros(2))['w']
    bounded.update({'w': jnp.array([3.0, -0.25])})
    with bounded.eval_weights():
        np.testing.assert_allclose(w.value, [-0.5, 0.25])


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'constraints': {'w': bo.constraints.non_negative()}}, 'Invalid constraints of ScheduleFreeSGD'),
        ({'state_dtype': jnp.bfloat16}, 'Invalid state_dtype=.* Must be float32 or wider'),
        ({'cautious': True}, 'Invalid cautious=True'),
    ],
)
def test_schedule_free_refuses_what_breaks_its_average(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        bo.ScheduleFreeSGD(**options)


def test_muon_in_groups_of_options() -> None:
    names = {
        key: brainstate.ParamState(jnp.asarray(WEIGHTS[key])) for key in ('layers.0.weight', 'layers.0.bias', 'tau')
    }
    optimizer = bo.Muon(0.1, adamw_lr=0.2, groups={'layers.*': {'momentum': 0.5}, 'tau': {'lr': 0.3}}, muon='weight')
    optimizer.register_trainable_weights(names)
    optimizer.freeze('layers.0.bias')
    shown = [(g['algorithm'], list(g['params']), float(g['lr']), g['momentum']) for g in optimizer.param_groups]
    assert [row for row in shown if row[1]] == [
        ('muon', ['layers.0.weight'], 0.1, 0.5),
        ('adamw', ['layers.0.bias'], 0.2, 0.5),
        ('adamw', ['tau'], 0.3, 0.95),
    ]
    before = {key: np.array(s.value) for key, s in names.items()}
    optimizer.update({key: jnp.ones_like(s.value) for key, s in names.items() if key != 'layers.0.bias'})
    assert [bool((s.value != before[key]).any()) for key, s in names.items()] == [True, False, True]


@pytest.mark.parametrize('dynamic', [False, True])
def test_sam_under_a_loss_scale_with_frozen_weights(dynamic: bool) -> None:
    """The scale changes nothing; what is frozen is neither perturbed nor moved; what is not finite is skipped."""
    scale = bo.DynamicLossScale(2.0**10) if dynamic else 2.0**10
    path = []
    for loss_scale in (None, 1.0, scale):
        optimizer = bo.SAM(bo.SGD(0.1, loss_scale=loss_scale), rho=0.5)
        states = registered(optimizer, w=START)
        other = brainstate.ParamState(jnp.ones(2))
        if loss_scale is not None:  # else it is unknown to the optimizer
            states['other'] = other
            optimizer.register_trainable_weights(states)
            optimizer.freeze('other')
        factor = brainstate.ShortTermState(jnp.asarray(1.0))

        def loss(s: Any = states, o: Any = other, f: Any = factor) -> Any:
            return f.value * valley(s['w'].value, 0.5) + 9 * jnp.sum(o.value**2)

        for _ in range(3):
            optimizer.minimize(loss)
        times = 2.0**10 if loss_scale is scale else 1.0
        gradients = brainstate.transform.grad(lambda loss=loss, times=times: times * loss(), states)()
        optimizer.update(gradients, value_fn=loss)
        path.append(np.array(states['w'].value))
        assert (other.value == 1.0).all()
    for again in path[1:]:
        np.testing.assert_allclose(again, path[0], rtol=1e-12)
    if dynamic:
        factor.value = jnp.asarray(jnp.nan)
        optimizer.minimize(loss)
        np.testing.assert_array_equal(states['w'].value, path[-1])
        assert (scale.current, int(optimizer.skipped_count)) == (2.0**9, 1)
