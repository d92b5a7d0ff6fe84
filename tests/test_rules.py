"""Each rule is what torch, optax or its paper says, for every combination of options; and every option acts."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import COMPILATIONS
from golden.record_rules import torch_path
from rule_table import CASES, RECORDED, Case, deviation, optax_path, paper_path, run
from table import OPTIMIZERS, thinned

import braintools_optim as bo
from braintools_optim import rules
from braintools_optim.precision import from_working, to_working
from braintools_optim.shared_options import SHARED

RECORDS = np.load(Path(__file__).parent / 'golden' / 'rules.npz')
HAS_TORCH = importlib.util.find_spec('torch') is not None
DOUBLE, SINGLE = (float(np.finfo(dtype).eps) for dtype in (np.float64, np.float32))
WHOLE_TREE = {rules.DAdaptAdamW, rules.DoG, rules.PolyakSGD, rules.Prodigy, rules.Sophia}  # see test_parameter_free
ELSEWHERE = WHOLE_TREE | {rules.Muon, rules.SOAP}
RULES = sorted({case.optimizer for case in CASES} | ELSEWHERE, key=lambda rule: rule.__name__)
every_rule = pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)


OF_TORCH = [case for case in CASES if case.torch]
OTHERS = [case for case in CASES if not case.torch]


def weights_of(optimizer: bo.Optimizer, **start: Any) -> dict[str, brainstate.ParamState]:
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in start.items()}
    optimizer.register_trainable_weights(states)
    return states


def told(optimizer: bo.Optimizer, grads: Any) -> dict[str, Any]:
    """What an optimizer is told besides the gradients: the loss, or a diagonal of its Hessian."""

    def diagonal(g: Any) -> Any:
        return from_working(1e3 * (1 + jnp.abs(to_working(g))), g.dtype)

    if isinstance(optimizer, rules.PolyakSGD):
        return {'value': jnp.asarray(3.0)}
    return {'hessian': jax.tree.map(diagonal, grads)} if isinstance(optimizer, rules.Sophia) else {}


def update(optimizer: bo.Optimizer, grads: Any) -> None:
    optimizer.update(grads, **told(optimizer, grads))


# trajectories


def check_record(case: Case, path: dict[str, np.ndarray]) -> tuple[dict[str, float], dict[str, float]]:
    """Our worst deviations from torch's float64 and those of torch's float32, over the distances travelled."""
    recorded = np.split(RECORDS[case.name], np.cumsum([len(RECORDED) * p[0].size for p in path.values()]))
    distances, theirs = np.split(recorded.pop(), [len(RECORDED) * len(path)])
    ours = {}
    for (key, p), exact, distance in zip(path.items(), recorded, np.split(distances, len(path)), strict=True):
        error = np.abs(p[list(RECORDED)].reshape(len(RECORDED), -1) - exact.reshape(len(RECORDED), -1)).max(axis=1)
        if p.dtype == np.float64:
            error = np.maximum(error - DOUBLE * np.array(RECORDED) * np.abs(p).max(), 0)  # roundings of the weight
        ours[key] = float(np.max(error / distance))
    return ours, dict(zip(path, theirs, strict=True))


@thinned(OF_TORCH)
def test_torch_in_float64(case: Case) -> None:
    path = run(case, np.float64)
    assert max(check_record(case, path)[0].values()) < 1e-12
    if HAS_TORCH:
        assert max(deviation(path, torch_path(case, 'float64'), DOUBLE).values()) < 1e-12


@thinned(OF_TORCH, one_in=3)
@pytest.mark.usefixtures('float32')
def test_torch_in_float32(case: Case) -> None:
    """No further from torch's float64 than twice torch's own float32, but for a few roundings of a small tensor."""
    path = run(case, np.float32)
    comparisons = [check_record(case, path)]
    if HAS_TORCH:
        exact = torch_path(case, 'float64')
        comparisons.append((deviation(path, exact), deviation(torch_path(case, 'float32'), exact)))
    for ours, theirs in comparisons:
        assert max(ours.values()) <= 2 * max(theirs.values())
        assert all(ours[key] <= max(2 * theirs[key], 1e-6) for key in ours)


@thinned(OTHERS)
def test_optax_or_paper(case: Case) -> None:
    exact = optax_path(case) if case.optax else paper_path(case)
    assert max(deviation(run(case, np.float64), exact, DOUBLE).values()) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize('case', OTHERS, ids=lambda case: case.name)
@pytest.mark.usefixtures('float32')
def test_optax_or_paper_in_float32(case: Case) -> None:
    jax.config.update('jax_enable_x64', True)
    exact = optax_path(case) if case.optax else paper_path(case)
    jax.config.update('jax_enable_x64', False)
    assert max(deviation(run(case, np.float32), exact, SINGLE).values()) < 1e-5


def test_the_table_has_every_rule() -> None:
    elsewhere = {rules.SGD, rules.Momentum, rules.MomentumNesterov, rules.Adam, rules.AdamW, rules.RAdam, rules.RMSprop}
    exported = {getattr(rules, name) for name in rules.__all__}
    assert exported - {rules.LBFGS, rules.Lookahead, rules.SAM} == set(RULES) | elsewhere
    assert rules.NAdam is rules.Nadam


# a few updates, for what depends on no reference


SLOPES = np.random.default_rng(1).normal(size=(12, 2, 3)) * np.array([1.0, 0.1, 3.0])
START = np.array([[1.0, -2.0, 0.5], [-1.5, 0.7, 2.0]])


def positions(rule: type[bo.Optimizer], **options: Any) -> Any:
    """The weights after a few updates, and their means where there are any."""
    optimizer = rule(**options)
    w = weights_of(optimizer, w=START)['w']
    with jax.disable_jit():
        for slope in SLOPES:
            update(optimizer, {'w': jnp.asarray(slope)})
    return np.stack([w.value, optimizer.opt_state.value.get('ax', {'w': w.value})['w']])


OTHERS = {  # another value for an option
    'lr': 0.37,
    'betas': (0.4, 0.45, 0.55),
    'beta1': 0.5,
    'rho': 0.3,
    'eps': 0.3,
    'etas': (0.25, 3.0),
    'step_sizes': (0.02, 0.011),
    'alpha': 0.2,
    't0': 1.0,
    'momentum': 0.4,
    'factored': False,
    'use_clipping': False,
    'mixing_warmup': 50,
    'warmup_steps': 3,
    'ns_coefficients': (3.0, -4.0, 2.5),
    'ns_steps': 3,
    'adjust_lr_fn': 'match_rms_adamw',
    'muon': lambda name, w: False,
    'adamw_betas': (0.4, 0.45),
    'precondition_frequency': 3,
    'max_precondition_dim': 2,
    'beta3_warmup': 50,
    'growth_rate': 1.1,
    'update_period': 3,
    'seed': 1,
}
NEEDED = {  # what must be set for an option to matter
    'weight_lr_power': {'warmup_steps': 5},
    'Muon.eps': {'grad_clip_norm': 1e-3},
    **{f'Muon.adamw_{name}': {'muon': OTHERS['muon']} for name in ('lr', 'betas', 'eps', 'weight_decay')},
    'ScheduleFreeAdamW.grad_clip_norm': {'eps': 1.0},
    'decoupled_weight_decay': {'weight_decay': 0.3},
    'ASGD.alpha': {'lambd': 0.5, 'lr': 0.5},
    'Adafactor.relative_step': {'lr': 0.05},
    'Adafactor.eps': {'lr': None},
    'SignSGD.grad_clip_norm': {'momentum': 0.9},
    'SignSGD.grad_clip_value': {'momentum': 0.9},
    'Fromage.grad_clip_norm': {'momentum': 0.9},
    'Lars.grad_clip_norm': {'weight_decay': 0.3},
    'safeguard_warmup': {'lr': 0.5},
}
NO_EFFECT = {  # by design: clipping changes no sign, what is told is not estimated, there is one weight
    'Rprop.grad_clip_norm',
    'Rprop.grad_clip_value',
    'Sophia.seed',
    'DoG.layerwise',
}


@pytest.mark.slow
@every_rule
def test_every_option_acts(rule: type[bo.Optimizer]) -> None:
    seen: dict[str, Any] = {}
    for name, parameter in inspect.signature(rule).parameters.items():
        if name in SHARED and name != 'maximize':  # written once for all rules, and tested once
            continue
        key, default = f'{rule.__name__}.{name}', parameter.default
        needed = NEEDED.get(key, NEEDED.get(name, {}))
        other = OTHERS.get(name, not default if isinstance(default, bool) else 0.3)
        values: list[Any] = [other]
        if isinstance(default, tuple):  # one entry at a time
            others = other if isinstance(other, tuple) else (other, 5.0)
            values = [tuple(others[i] if i == j else d for j, d in enumerate(default)) for i in range(len(default))]
        if str(needed) not in seen:
            seen[str(needed)] = positions(rule, **needed)
        for value in values:
            changed = not np.allclose(positions(rule, **needed, **{name: value}), seen[str(needed)], rtol=0, atol=1e-9)
            assert changed == (key not in NO_EFFECT), f'{name}={value}'


@pytest.mark.slow
@pytest.mark.parametrize('rule', [r for r in RULES if not r.__name__.startswith('ScheduleFree')])
def test_a_change_of_lr_acts_on_the_next_update(rule: type[bo.Optimizer]) -> None:
    steps = []
    for factor in (1.0, 0.5, 0.0):
        optimizer = rule(lr=0.01)
        w = weights_of(optimizer, w=START)['w']
        with jax.disable_jit():
            for slope in SLOPES[:3]:
                update(optimizer, {'w': jnp.asarray(slope)})
            before = w.value
            optimizer.lr = factor * 0.01
            update(optimizer, {'w': jnp.asarray(SLOPES[3])})
            steps.append(np.array(w.value - before))
            before = w.value
            optimizer.lr = 0.01
            update(optimizer, {'w': jnp.asarray(SLOPES[4])})
        assert np.isfinite(w.value).all()
        assert (w.value != before).any()
    full, half, none = steps
    if rule is rules.MADGRAD:  # lr weighs the gradients that are summed
        assert (np.abs(half - full) > 1e-3 * np.abs(full)).all()
    else:
        np.testing.assert_allclose(half, full / 2, rtol=0.02, atol=0.01 * np.abs(full).max())
    assert (none == 0).all()


@pytest.mark.slow
@every_rule
def test_leaves_of_every_shape(rule: type[bo.Optimizer]) -> None:
    start = {
        'scalar': 2.0,
        'none': np.ones((0, 3)),
        'deep': np.ones((2, 3, 2)),
        'zero': np.zeros(3),
        'half': jnp.ones(3, jnp.bfloat16),
        'complex': np.array([1 + 2j, 3.0]),  # the same numbers as those of the output, which Muon gives to AdamW
        'output': np.array([[1.0, 2.0], [3.0, 0.0]]),
    }
    optimizer = rule(lr=0.1)
    states = weights_of(optimizer, **start)
    for t in range(3):
        slopes = {key: jnp.full_like(w, (0.5, 1.0, -0.25)[t]) for key, w in start.items()}
        slopes['zero'] = jnp.zeros(3)
        slopes['output'], slopes['complex'] = jnp.array([[0.5, -1.0], [0.0, 2.0]]), jnp.array([0.5 + 1j, -2j])
        update(optimizer, slopes)
    for key, state in states.items():
        w = jnp.asarray(start[key])
        assert (state.value.shape, state.value.dtype) == (w.shape, w.dtype)
        assert jnp.isfinite(state.value).all(), key
        assert key == 'half' or (state.value != w).any() == (key not in ('none', 'zero')), key
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(optimizer.opt_state.value))
    z = states['complex'].value
    np.testing.assert_allclose(np.stack([z.real, z.imag], -1), states['output'].value, rtol=1e-12)


@pytest.mark.slow
@every_rule
def test_derivatives_through_updates_are_finite(rule: type[bo.Optimizer]) -> None:
    """Where a gradient is zero, too."""
    optimizer = rule(lr=0.1)
    tx = bo.to_optax(optimizer)
    slopes = jnp.asarray(SLOPES[:3]).at[:, 0].set(0.0).at[0, 1, 0].set(0.0)

    def final(w: Any, slopes: Any) -> Any:
        state = tx.init({'w': w})
        for slope in slopes:
            extra = told(optimizer, {'w': slope})
            change, state = tx.update({'w': slope}, state, {'w': w}, **extra)
            w = w + change['w']
        return jnp.sum(w)

    with jax.disable_jit():
        derivatives = jax.grad(final, (0, 1))(jnp.asarray(START), slopes)
    assert all(jnp.isfinite(d).all() for d in derivatives)


# options


INVALID = [
    (rules.Rprop, {'etas': (1.2, 0.5)}, ValueError, r'Invalid etas=\(1\.2, 0\.5\)\. Must have'),
    (rules.Rprop, {'etas': (0.0, 1.2)}, ValueError, r'Invalid etas\[0\]=0\.0'),
    (rules.Rprop, {'etas': (0.5, 1.0)}, ValueError, 'Invalid etas='),
    (rules.Rprop, {'step_sizes': (1.0, 0.5)}, ValueError, 'Invalid step_sizes='),
    (rules.Rprop, {'step_sizes': (-1.0, 0.5)}, ValueError, r'Invalid step_sizes\[0\]=-1\.0'),
    (rules.Lars, {'nesterov': True, 'momentum': 0.0}, ValueError, 'Invalid nesterov=True with momentum=0.0'),
    (rules.Lars, {'trust_coefficient': 0.0}, ValueError, 'Invalid trust_coefficient=0.0'),
    (rules.Adan, {'betas': (0.9, 0.99)}, TypeError, r'Invalid betas=\(0\.9, 0\.99\)\. Must be 3 numbers\.'),
    (rules.Adan, {'betas': (0.9, 0.99, 1.0)}, ValueError, r'Invalid betas\[2\]=1\.0'),
    (rules.AdEMAMix, {'mixing': -1.0}, ValueError, 'Invalid mixing=-1.0'),
    (rules.AdEMAMix, {'beta3_warmup': 0.5}, TypeError, 'Invalid beta3_warmup=0.5. Must be an integer'),
    (rules.AdEMAMix, {'mixing_warmup': -1}, ValueError, 'Invalid mixing_warmup=-1'),
    (rules.Adagrad, {'lr_decay': -1.0}, ValueError, 'Invalid lr_decay=-1.0'),
    (rules.Adagrad, {'initial_accumulator_value': -1.0}, ValueError, 'Invalid initial_accumulator_value=-1.0'),
    (rules.Adadelta, {'rho': 1.5}, ValueError, 'Invalid rho=1.5'),
    (rules.Adamax, {'betas': (0.9, 1.0)}, ValueError, r'Invalid betas\[1\]'),
    (rules.Nadam, {'momentum_decay': -1.0}, ValueError, 'Invalid momentum_decay=-1.0'),
    (rules.ASGD, {'lambd': -1.0}, ValueError, 'Invalid lambd=-1.0'),
    (rules.ASGD, {'alpha': 1.5}, ValueError, 'Invalid alpha=1.5'),
    (rules.ASGD, {'t0': -1.0}, ValueError, 'Invalid t0=-1.0'),
    (rules.Adafactor, {'eps': 1e-30}, TypeError, 'Invalid eps=1e-30. Must be a pair'),
    (rules.Adafactor, {'eps': (-1.0, 1e-3)}, ValueError, r'Invalid eps\[0\]=-1\.0'),
    (rules.Adafactor, {'clip_threshold': 0.0}, ValueError, 'Invalid clip_threshold=0.0'),
    (rules.Adafactor, {'beta1': 1.0}, ValueError, 'Invalid beta1=1.0'),
    (rules.Adafactor, {'factored': 1}, TypeError, 'Invalid factored=1'),
    (rules.AdaBelief, {'eps_root': -1.0}, ValueError, 'Invalid eps_root=-1.0'),
    (rules.ADOPT, {'use_clipping': None}, TypeError, 'Invalid use_clipping=None'),
    (rules.SM3, {'momentum': 2.0}, ValueError, 'Invalid momentum=2.0'),
    (rules.Fromage, {'weight_decay': 0.1}, TypeError, 'weight_decay'),
]


@pytest.mark.parametrize(('rule', 'options', 'error', 'match'), INVALID)
def test_options_out_of_range(rule: Any, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        rule(**options)


def test_positional_order_is_that_of_existing_code() -> None:
    for name, arguments in {
        'Adagrad': 'lr lr_decay weight_decay initial_accumulator_value eps',
        'Adadelta': 'lr rho eps weight_decay',
        'Adamax': 'lr betas eps weight_decay',
        'Nadam': 'lr betas eps weight_decay momentum_decay',
        'Lamb': 'lr betas eps weight_decay',
        'Lars': 'lr momentum weight_decay trust_coefficient eps',
        'Yogi': 'lr betas eps weight_decay',
        'Rprop': 'lr etas step_sizes',
        'Adafactor': 'lr eps clip_threshold decay_rate beta1 weight_decay factored',
        'AdaBelief': 'lr betas eps weight_decay',
        'Lion': 'lr betas weight_decay',
        'SM3': 'lr momentum eps weight_decay',
        'Novograd': 'lr betas eps weight_decay',
        'Fromage': 'lr momentum',
    }.items():
        parameters = inspect.signature(getattr(rules, name)).parameters.values()
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == [*arguments.split(), 'grad_clip_norm', 'grad_clip_value']
        optimizer = getattr(rules, name)()
        given = {p.name: p.default for p in parameters if p.name not in ('lr', 'relative_step', 'metrics')}
        assert {option: getattr(optimizer, option) for option in given} == given


def test_options_of_the_learning_rate() -> None:
    assert rules.Adafactor(lr=0.0).base_lr == 0.0
    assert rules.Adafactor().base_lr == 0.01
    assert rules.Adafactor().relative_step
    assert not rules.Adafactor(0.1).relative_step
    np.testing.assert_allclose(*(positions(rules.Adafactor, decay_rate=rate) for rate in (0.8, -0.8)))


# relations


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (rules.Adagrad(0.1, initial_accumulator_value=0.1, eps=1e-7), optax.adagrad(0.1)),
        (rules.Lamb(0.1, weight_decay=0.01), optax.lamb(0.1, weight_decay=0.01)),
        (rules.Novograd(0.1, weight_decay=0.01), optax.novograd(0.1, weight_decay=0.01)),
        (rules.Fromage(0.1), optax.fromage(0.1)),
        (rules.SM3(0.1, 0.9, 1e-8), optax.sm3(0.1, 0.9)),
        (rules.SM3(0.1, 0.0, 1e-8), optax.sm3(0.1, 0.0)),
        (rules.Lion(0.1, weight_decay=0.01), optax.lion(0.1, weight_decay=0.01)),
        (rules.AdaBelief(0.1), optax.adabelief(0.1)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_defaults_are_those_of_optax(ours: bo.Optimizer, theirs: optax.GradientTransformation) -> None:
    params, slope = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    w, state = weights_of(ours, w=params)['w'], theirs.init(params)
    for _ in range(3):
        ours.update({'w': slope})
        changes, state = theirs.update(slope, state, params)
        params = optax.apply_updates(params, changes)
    np.testing.assert_allclose(w.value, params, rtol=1e-6)


@pytest.mark.parametrize(
    ('rule', 'options', 'other', 'same'),
    [
        (rules.AdEMAMix, {'mixing': 0.0, 'weight_decay': 0.1}, rules.AdamW, {'weight_decay': 0.1}),
        (rules.Signum, {}, rules.SignSGD, {'momentum': 0.9}),
        (rules.ASGD, {'lambd': 0.0}, rules.SGD, {}),
        (rules.Lars, {'trust_coefficient': 1e-30, 'momentum': 0.0}, rules.SGD, {'lr': 0.0}),
        (rules.Lion, {'betas': (0.0, 0.5)}, rules.SignSGD, {}),
        (rules.Adadelta, {'rho': 1.0}, rules.SGD, {}),
        (rules.Adan, {'betas': (0.0, 0.0, 0.999)}, rules.Adam, {'betas': (0.0, 0.999)}),
    ],
)
def test_reductions(rule: Any, options: dict[str, Any], other: Any, same: dict[str, Any]) -> None:
    np.testing.assert_allclose(
        positions(rule, **{'lr': 0.01, **options})[0], positions(other, **{'lr': 0.01, **same})[0], rtol=1e-9
    )


def test_asgd_keeps_the_mean_of_the_weights() -> None:
    optimizer = rules.ASGD(0.1, lambd=0.0, t0=2.0)
    w = weights_of(optimizer, w=1.0)['w']
    assert optimizer.opt_state.value['ax']['w'] == 1.0
    path = []
    for slope in (1.0, -2.0, 0.5, 3.0, -1.0):
        optimizer.update({'w': jnp.asarray(slope)})
        path.append(float(w.value))
    np.testing.assert_allclose(optimizer.opt_state.value['ax']['w'], np.mean(path[-2:]))


def test_adafactor_clips_what_it_says() -> None:
    """No update of a weight is longer than lr times the threshold, root mean square."""
    for threshold, rms in ((1.0, 0.1), (0.5, 0.05), (float('inf'), 1.0)):
        optimizer = rules.Adafactor(0.1, clip_threshold=threshold, decay_rate=1.0)
        w = weights_of(optimizer, w=np.zeros(4))['w']
        for slope in (0.01, 1.0):
            before = w.value
            optimizer.update({'w': jnp.full(4, slope)})
        assert jnp.sqrt(jnp.mean((w.value - before) ** 2)) <= rms * 1.5
    assert jnp.max(jnp.abs(w.value - before)) > 0.1


NOT_IN_THE_OTHER_TABLE = sorted(
    set(rules.__all__) - {optimizer.__name__ for optimizer in OPTIMIZERS} - {'NAdam', 'Lookahead', 'SAM'}
)


@pytest.mark.slow
@pytest.mark.parametrize('name', NOT_IN_THE_OTHER_TABLE)
def test_every_other_rule_keeps_house(name: str) -> None:
    """Eager equals compiled, the second call compiles nothing, dtypes are kept, and a checkpoint goes on to the bit."""
    slopes = [np.sin(np.arange(4.0) + t).reshape(2, 2) for t in range(4)]

    def build(values: Any) -> tuple[bo.Optimizer, list[brainstate.ParamState]]:
        states = [brainstate.ParamState(jnp.asarray(v)) for v in values]
        optimizer = getattr(rules, name)(lr=bo.StepLR(0.1, 2, 0.5), grad_clip_norm=1.0)
        return optimizer.register_trainable_weights(states), states

    start = [np.ones((2, 2)), np.ones((2, 2), jnp.bfloat16), np.ones((), np.float32)]
    (eager, ours), (compiled, theirs) = build(start), build(start)
    jitted = brainstate.transform.jit(lambda g: update(compiled, g))
    for t, slope in enumerate(slopes):
        g = [jnp.asarray(slope), jnp.asarray(slope, jnp.bfloat16), jnp.asarray(slope[0, 0], np.float32)]
        before = len(COMPILATIONS)
        update(eager, g)
        jitted(g)
        assert t == 0 or len(COMPILATIONS) == before
        eager.lr.step()
        compiled.lr.step()
        if t == 1:
            saved, weights = eager.state_dict(), [np.array(state.value) for state in ours]
        if t == 2:
            resumed, again = build(weights)
            resumed.load_state_dict(saved)
            update(resumed, g)
            for one, other in zip(again, ours, strict=True):
                np.testing.assert_array_equal(np.array(one.value), np.array(other.value))
    for one, other, initial in zip(ours, theirs, start, strict=True):
        assert one.value.dtype == initial.dtype
        np.testing.assert_allclose(np.asarray(one.value, float), np.asarray(other.value, float), rtol=1e-2)
    np.testing.assert_allclose(ours[0].value, theirs[0].value, rtol=1e-9)
