"""Wrong constructions name the argument and its value."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import optimizer_in_use as built_with

import braintools_optim as bo
from braintools_optim import constraints

NAN, INF = float('nan'), float('inf')
CONSTRUCTIONS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    *(
        (lambda name=name, value=value: bo.Adam(**{name: value}), error, match)
        for name, value, error, match in [
            ('master_weights', 'yes', TypeError, "Invalid master_weights='yes'. Must be a bool"),
            ('master_weights', None, TypeError, 'Invalid master_weights=None. Must be a bool'),
            ('metrics', 1, TypeError, 'Invalid metrics=1. Must be True, False'),
            ('groups', ['w'], TypeError, r"Invalid groups=\['w'\]. Must be a dict"),
            ('groups', {'w': 3}, TypeError, r"Invalid groups\['w'\]=3. Must be a dict of options"),
            ('groups', {3: {}}, TypeError, 'Invalid predicate 3'),
            ('constraints', [constraints.box(0)], TypeError, 'Invalid constraints=.* Must be a dict'),
            ('constraints', {'w': 3}, TypeError, 'Invalid constraint 3'),
            ('constraints', {3: constraints.box(0)}, TypeError, 'Invalid predicate 3'),
            ('no_decay', 3, TypeError, 'Invalid predicate 3'),
            ('no_decay', ['bias'], TypeError, r"Invalid predicate \['bias'\]"),
            ('norm_unit', 'mV', TypeError, "Invalid norm_unit='mV'. Must be 'own' or"),
            ('norm_unit', [u.mV, 3], TypeError, r'Invalid norm_unit=\[.*, 3\]'),
            ('state_dtype', 'int8', TypeError, "Invalid state_dtype='int8'. Must be a floating-point dtype"),
            ('state_dtype', 'half a float', TypeError, "Invalid state_dtype='half a float'"),
            ('loss_scale', 0.0, ValueError, r'Invalid loss_scale=0\.0\. Must be > 0\.'),
            ('loss_scale', INF, ValueError, r'Invalid loss_scale=inf\. Must be finite and > 0\.'),
            ('loss_scale', bo.DynamicLossScale, TypeError, 'Invalid loss_scale=<class'),
            ('grokfast', INF, ValueError, 'Invalid grokfast=inf. Must be finite and > 0'),
            ('rounding', jnp.ones(2), ValueError, 'Invalid rounding=.*Must be one of'),
            ('on_nonfinite', None, ValueError, 'Invalid on_nonfinite=None. Must be one of'),
            ('lr', lambda t: 'fast', TypeError, 'valid JAX type'),
            ('lr', lambda t: [0.1], TypeError, r'Must return a number, not \['),
        ]
    ),
    *(
        (lambda options=options: bo.DynamicLossScale(**options), error, match)
        for options, error, match in [
            ({'init_scale': 0.0}, ValueError, r'Invalid init_scale=0\.0'),
            ({'init_scale': INF}, ValueError, 'Invalid init_scale=inf. Must be finite'),
            ({'init_scale': None}, TypeError, 'Invalid init_scale=None'),
            ({'growth_factor': 0.5}, ValueError, r'Invalid growth_factor=0\.5'),
            ({'growth_factor': INF}, ValueError, 'Invalid growth_factor=inf'),
            ({'growth_factor': NAN}, ValueError, 'Invalid growth_factor=nan'),
            ({'backoff_factor': 0.0}, ValueError, r'Invalid backoff_factor=0\.0'),
            ({'backoff_factor': 1.0}, ValueError, r'Invalid backoff_factor=1\.0'),
            ({'backoff_factor': 'x'}, TypeError, "Invalid backoff_factor='x'"),
            ({'growth_interval': 0}, ValueError, 'Invalid growth_interval=0'),
            ({'growth_interval': 1.5}, TypeError, r'Invalid growth_interval=1\.5. Must be an integer'),
        ]
    ),
    (lambda: bo.LBFGS(memory_size=1.5), TypeError, r'Invalid memory_size=1\.5. Must be an integer'),
    (lambda: bo.LBFGS(linesearch=3), ValueError, 'Invalid linesearch=3. Unknown linesearch method. Must be one of'),
    (lambda: bo.Lookahead(3), TypeError, 'Invalid base_optimizer=3. Must be an Optimizer or'),
    (lambda: bo.Lookahead(None), TypeError, 'Invalid base_optimizer=None'),
    (lambda: bo.OptaxOptimizer(bo.SGD), TypeError, 'Invalid tx=<class'),
    (lambda: constraints.box('a'), TypeError, "Invalid lower='a' of a box"),
    (lambda: constraints.box(upper=NAN), TypeError, 'Invalid upper=nan of a box'),
    (lambda: constraints.box(1j), TypeError, 'Invalid lower=1j of a box'),
    (lambda: constraints.box(2, 1), ValueError, 'Invalid lower=2 of a box. Must be at most upper=1'),
    (lambda: constraints.box(1 * u.mV, 1 * u.ms), ValueError, 'Must have the dimension of upper'),
    (lambda: constraints.box(1 * u.mV, 2.0), ValueError, 'Must have the dimension of upper'),
    (lambda: constraints.keep_sign(NAN), TypeError, 'Invalid sign=nan'),
    (lambda: constraints.keep_sign('+'), TypeError, r"Invalid sign='\+'"),
    (lambda: built_with(constraints={'w': constraints.unit_norm(5)}), ValueError, 'Invalid constraint of w, of shape'),
    (lambda: built_with(constraints={'w': constraints.keep_sign(np.ones(7))}), ValueError, 'Invalid constraint of w'),
    (lambda: built_with(constraints={'w': lambda w: None}), ValueError, 'Invalid constraint of w, .* it makes None'),
    (lambda: built_with(no_decay=lambda name, w: w), TypeError, 'Invalid predicate .*Must return True or False; for w'),
    (lambda: bo.OneCycleLR(0.1), ValueError, 'Invalid total_steps=None. Must be an integer'),
    (lambda: bo.MultiStepLR(0.1, [3, 2]), ValueError, r'Invalid milestones=\[3, 2\]. Must be increasing'),
    (lambda: bo.MultiStepLR(0.1, 'ab'), TypeError, "Invalid milestones='ab'"),
    (lambda: bo.SequentialLR([0.1], []), TypeError, r'Invalid schedulers\[0\]=0\.1. Must be an LRScheduler'),
    (lambda: bo.SequentialLR([], []), ValueError, r'Invalid schedulers=\[\]'),
    (lambda: bo.ChainedScheduler(3), TypeError, 'Invalid schedulers=3'),
    (lambda: bo.PerUpdate(0.1, 3), TypeError, r'Invalid schedule=0\.1'),
    (lambda: bo.CyclicLR(0.1, mode='up'), ValueError, "Invalid mode='up'. Must be one of"),
    (lambda: bo.CyclicLR(0.1, scale_fn=3), TypeError, 'Invalid scale_fn=3'),
    (lambda: bo.ReduceLROnPlateau(0.1, mode='low'), ValueError, "Invalid mode='low'"),
    (lambda: bo.ReduceLROnPlateau(0.1, factor=1.0), ValueError, r'Invalid factor=1\.0'),
    (lambda: bo.LambdaLR(0.1, 0.5), TypeError, r'Invalid lr_lambda=0\.5'),
    (lambda: bo.StepLR(0.1).load_state_dict(3), TypeError, 'Invalid state_dict=3 of a StepLR. Must be a mapping'),
    (lambda: bo.StepLR(0.1).attach_optimizer(3), TypeError, 'Invalid optimizer=3. Must be an Optimizer'),
]  # fmt: skip


@pytest.mark.parametrize('number', range(len(CONSTRUCTIONS)))
def test_wrong_constructions(number: int) -> None:
    build, error, match = CONSTRUCTIONS[number]
    with jax.disable_jit(), pytest.raises(error, match=re.compile(match, re.DOTALL)):
        build()


def test_misspelled_options_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Adam has no option \['weight_decai'\]\. Must be among \['accumulate', "):
        bo.Adam(0.1, weight_decai=0.1)
    with pytest.raises(ValueError, match='no_decay of Adam is fixed'):
        bo.Adam(0.1).no_decay = 'bias'
