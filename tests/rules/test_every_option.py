"""Every option and every learning rate acts; relations between optimizers."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import registered, update
from internals import SHARED, slots_of, state_leaves
from tables.optimizers import STANDALONE

import braintools_optim as bo
from braintools_optim import rules

every_rule = pytest.mark.parametrize('rule', STANDALONE, ids=lambda rule: rule.__name__)
SLOPES = np.random.default_rng(1).normal(size=(12, 2, 3)) * np.array([1.0, 0.1, 3.0])
START = np.array([[1.0, -2.0, 0.5], [-1.5, 0.7, 2.0]])


def positions(rule: type[bo.Optimizer], **options: Any) -> Any:
    """Return the weights after a few updates, and their means if the optimizer keeps any."""
    optimizer = rule(**options)
    w = registered(optimizer, w=START)['w']
    with jax.disable_jit():
        for slope in SLOPES:
            update(optimizer, {'w': jnp.asarray(slope)})
    return np.stack([w.value, slots_of(optimizer).get('ax', {'w': w.value})['w']])


OTHER_VALUES = {  # another value for an option
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
    'scale_parameter': True,
}
NEEDED = {  # what must be set for an option to matter
    'weight_lr_power': {'warmup_steps': 5},
    'Muon.eps': {'grad_clip_norm': 1e-3},
    **{f'Muon.adamw_{name}': {'muon': OTHER_VALUES['muon']} for name in ('lr', 'betas', 'eps', 'weight_decay')},
    'ScheduleFreeAdamW.grad_clip_norm': {'eps': 1.0},
    'decoupled_weight_decay': {'weight_decay': 0.3},
    'ASGD.alpha': {'lambd': 0.5, 'lr': 0.5},
    'Adafactor.relative_step': {'lr': 0.05},
    'Adafactor.eps': {'lr': None},
    'Adafactor.scale_parameter': {'lr': 0.05},
    'Adafactor.warmup_init': {'lr': None},
    'SignSGD.grad_clip_norm': {'momentum': 0.9},
    'SignSGD.grad_clip_value': {'momentum': 0.9},
    'Fromage.grad_clip_norm': {'momentum': 0.9},
    'Lars.grad_clip_norm': {'weight_decay': 0.3},
    'safeguard_warmup': {'lr': 0.5},
    'SGD.dampening': {'momentum': 0.9},
    'SGD.nesterov': {'momentum': 0.9},
}
DEPRECATED = {'Adam.beta1', 'Adam.beta2'}
NO_EFFECT = {  # clipping keeps signs, a given Hessian is not estimated, there is one weight, a matrix
    'Rprop.grad_clip_norm',
    'Rprop.grad_clip_value',
    'Sophia.seed',
    'DoG.layerwise',
    'Muon.flatten',
}


@pytest.mark.slow
@every_rule
def test_every_option_changes_the_trajectory(rule: type[bo.Optimizer]) -> None:
    seen: dict[str, Any] = {}
    for name, parameter in inspect.signature(rule).parameters.items():
        if (name in SHARED and name != 'maximize') or f'{rule.__name__}.{name}' in DEPRECATED:  # tested elsewhere
            continue
        key, default = f'{rule.__name__}.{name}', parameter.default
        needed = NEEDED.get(key, NEEDED.get(name, {}))
        other = OTHER_VALUES.get(name, not default if isinstance(default, bool) else 0.3)
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
@pytest.mark.parametrize('rule', [r for r in STANDALONE if not r.__name__.startswith('ScheduleFree')])
def test_assigned_lr_acts_on_the_next_update(rule: type[bo.Optimizer]) -> None:
    steps = []
    for factor in (1.0, 0.5, 0.0):
        optimizer = rule(lr=0.01)
        w = registered(optimizer, w=START)['w']
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
    if rule is rules.MADGRAD:  # lr is a factor of the summed gradients
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
        'complex': np.array([1 + 2j, 3.0]),  # the numbers of 'output', which Muon leaves to AdamW
        'output': np.array([[1.0, 2.0], [3.0, 0.0]]),
    }
    optimizer = rule(lr=0.1)
    states = registered(optimizer, **start)
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
    assert all(np.isfinite(leaf).all() for leaf in state_leaves(optimizer))
    z = states['complex'].value
    np.testing.assert_allclose(np.stack([z.real, z.imag], -1), states['output'].value, rtol=1e-12)


def test_adafactor_default_learning_rate() -> None:
    assert rules.Adafactor(lr=0.0).base_lr == 0.0
    assert rules.Adafactor().base_lr == 0.01
    assert rules.Adafactor().relative_step
    assert not rules.Adafactor(0.1).relative_step
    np.testing.assert_allclose(*(positions(rules.Adafactor, decay_rate=rate) for rate in (0.8, -0.8)))


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
def test_special_cases_equal_simpler_optimizers(
    rule: Any, options: dict[str, Any], other: Any, same: dict[str, Any]
) -> None:
    np.testing.assert_allclose(
        positions(rule, **{'lr': 0.01, **options})[0], positions(other, **{'lr': 0.01, **same})[0], rtol=1e-9
    )
