"""Wrong calls on an optimizer in use name the argument and its value, and change nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from internals import OPTIONS_ATTRIBUTE
from models import GRADS, optimizer_in_use, snapshot

import braintools_optim as bo

NAN, INF = float('nan'), float('inf')
NEW = lambda: {'new': brainstate.ParamState(jnp.ones(2))}  # noqa: E731


def assign(name: str, value: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: setattr(optimizer, name, value)


def assign_in_group(name: str, value: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.param_groups[0].__setitem__(name, value)


def add_group(**options: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.add_param_group(NEW(), **options)


def register(states: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.register_trainable_weights(states)


def update(grads: Any = GRADS, **arguments: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.update(grads, **arguments)


def load(**changes: Any) -> Callable[[bo.Optimizer], Any]:
    """Load a state_dict with changed entries: ``param_groups__0__own`` is a path, ``KeyError`` removes the entry."""

    def call(optimizer: bo.Optimizer) -> None:
        state = optimizer.state_dict()
        for path, value in changes.items():
            *way, last = path.split('__')
            place: Any = state
            for key in way:
                place = place[int(key) if isinstance(place, list) else key]
            if value is KeyError:
                del place[last]
            else:
                place[last] = value
        state['step_count'] = 17  # would show a partial load
        state['states'] = {**state['states']} if isinstance(state['states'], dict) else state['states']
        optimizer.load_state_dict(state)

    return call


def state_of(name: str, value: Any) -> Any:
    return brainstate.ParamState({name: value})


NUMBER_REFUSALS: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, 'None'),
    ('x', TypeError, "'x'"),
    (True, TypeError, 'True'),
    ({'a': 1}, TypeError, r"\{'a': 1\}"),
    (jnp.ones(2), TypeError, 'Array'),
    (1.0 * u.mV, TypeError, 'Quantity'),
    (-1.0, ValueError, r'-1\.0'),
    (NAN, ValueError, 'nan'),
    (INF, ValueError, 'inf'),
]
CALLS: list[tuple[str, Callable[[bo.Optimizer], Any], type[Exception], str]] = [
    *(
        (f'{how} {value!r:.20}', call(value), error, f'Invalid {name}={shown}')
        for value, error, shown in NUMBER_REFUSALS
        for how, name, call in (
            ('lr', 'lr', lambda v: assign('lr', v)),
            ('current_lr', 'lr', lambda v: assign('current_lr', v)),
            ('lr_apply', 'lr', lambda v: lambda o: o.lr_apply(lambda lr: v)),
            ('set_rate', 'lr', lambda v: lambda o: o.lr.set_rate(v)),
            ('group lr', 'lr', lambda v: assign_in_group('lr', v)),
            ('group rate', 'lr', lambda v: lambda o: setattr(o.param_groups[1]['lr'], 'value', v)),
            ('added lr', 'lr', lambda v: add_group(lr=v)),
            ('eps', 'eps', lambda v: assign('eps', v)),
            ('group eps', 'eps', lambda v: assign_in_group('eps', v)),
            ('added lr_scale', 'lr_scale', lambda v: add_group(lr_scale=v)),
        )
    ),
    *(
        (f'{how} {value!r:.20}', call(value), error, f'Invalid {name}={shown}')
        for value, error, shown in NUMBER_REFUSALS[1:]  # None is allowed
        for how, name, call in (
            ('loss_scale', 'loss_scale', lambda v: update(loss_scale=v)),
            ('grad_clip_norm', 'grad_clip_norm', lambda v: assign('grad_clip_norm', v)),
        )
        if how == 'loss_scale' or value is not INF  # an infinite bound is allowed
    ),
    *(
        (f'{name}={value!r}', assign(name, value), error, match)
        for name, value, error, match in [
            ('weigth_decay', 0.1, AttributeError, r"Invalid weigth_decay=0\.1\. Adam has no .*\['weight_decay'"),
            ('learning_rate', 0.1, AttributeError, r"Invalid learning_rate=0\.1\..*Must be among .*'lr'"),
            ('beta', 0.9, AttributeError, r"Invalid beta=0\.9\..*'betas'"),
            ('epsilon', 1e-3, AttributeError, r"Invalid epsilon=0\.001\..*'eps'"),
            ('clip_norm', 1.0, AttributeError, r"Invalid clip_norm=1\.0\..*'grad_clip_norm'"),
            ('schedules', 'x', AttributeError, "Invalid schedules='x'"),
            ('frozen', 'w', AttributeError, "Invalid frozen='w'"),
            ('opt_state', None, TypeError, 'Invalid opt_state=None. Must be OptimState'),
            ('step_count', 3, TypeError, 'Invalid step_count=3. Must be OptimState'),
            (OPTIONS_ATTRIBUTE[0], 3, TypeError, 'Invalid {}=3. Must be {}'.format(*OPTIONS_ATTRIBUTE)),
            ('param_groups', [], AttributeError, 'param_groups'),
            ('lr_scheduler', 0.1, AttributeError, 'lr_scheduler'),
            ('metrics', True, ValueError, 'metrics of Adam is fixed'),
            ('base_lr', 0.1, AttributeError, 'base_lr'),
            ('skipped_count', 0, AttributeError, 'skipped_count'),
            ('donate_weights', 'yes', TypeError, "Invalid donate_weights='yes'. Must be a bool"),
            ('donate_weights', 1, TypeError, 'Invalid donate_weights=1. Must be a bool'),
            ('state_dtype', 'float16', ValueError, 'state_dtype of Adam is fixed'),
            ('loss_scale', 2.0, ValueError, 'loss_scale of Adam is fixed'),
            ('groups', {}, ValueError, 'groups of Adam is fixed'),
            ('constraints', {}, ValueError, 'constraints of Adam is fixed'),
            ('norm_unit', 'own', ValueError, 'norm_unit of Adam is fixed'),
            ('master_weights', True, ValueError, 'master_weights of Adam is fixed'),
            ('betas', 0.9, TypeError, r'Invalid betas=0\.9\. Must be a pair'),
            ('betas', (0.9, NAN), ValueError, r'Invalid betas\[1\]=nan'),
            ('betas', (0.9, 'x'), TypeError, r"Invalid betas\[1\]='x'"),
            ('betas', (0.9,), TypeError, r'Invalid betas=\(0\.9,\)'),
            ('maximize', 1, TypeError, 'Invalid maximize=1. Must be a bool'),
            ('cautious', 'yes', TypeError, "Invalid cautious='yes'. Must be a bool"),
            ('amsgrad', True, ValueError, r"\{'amsgrad': True\} cannot be assigned once weights are registered"),
            ('grokfast', 0.5, ValueError, r"\{'grokfast': .*\} cannot be assigned once weights are registered"),
            ('grokfast', -1.0, ValueError, r'Invalid grokfast=-1\.0'),
            ('grokfast_decay', 1.0, ValueError, r'Invalid grokfast_decay=1\.0'),
            ('grad_clip_value', 0.0, ValueError, r'Invalid grad_clip_value=0\.0'),
            ('grad_clip_adaptive', -1.0, ValueError, r'Invalid grad_clip_adaptive=-1\.0'),
            ('grad_clip_over', 'each', ValueError, "Invalid grad_clip_over='each'. Must be one of"),
            ('on_nonfinite', 'drop', ValueError, "Invalid on_nonfinite='drop'. Must be one of"),
            ('rounding', 'up', ValueError, "Invalid rounding='up'. Must be one of"),
            ('max_consecutive_skips', 0, ValueError, 'Invalid max_consecutive_skips=0'),
            ('max_consecutive_skips', 1.5, TypeError, r'Invalid max_consecutive_skips=1\.5. Must be an integer'),
            ('decoupled_weight_decay', 0, TypeError, 'Invalid decoupled_weight_decay=0. Must be a bool'),
            ('weight_decay', -0.1, ValueError, r'Invalid weight_decay=-0\.1'),
            ('lr', [0.1], TypeError, r'Invalid lr=\[0\.1\]'),
            ('lr', lambda t: jnp.ones(3), TypeError, 'Invalid function=.*Must return a number'),
            ('lr', lambda: 0.1, TypeError, 'takes 0 positional arguments'),
            ('weight_decay', lambda t: jnp.ones(3), TypeError, 'Invalid function=.*Must return a number'),
        ]
    ),
    *(
        (f'group {name}={value!r}', assign_in_group(name, value), error, match)
        for name, value, error, match in [
            ('momentum', 0.5, KeyError, "^'momentum' is no option. Must be among .'amsgrad'"),
            ('grad_clip_norm', 1.0, KeyError, "^'grad_clip_norm' is no option"),
            ('params', [], KeyError, "^The 'params' of a group are fixed"),
            ('betas', (2.0, 0.9), ValueError, r'Invalid betas\[0\]=2\.0'),
            ('maximize', None, TypeError, 'Invalid maximize=None'),
            ('amsgrad', True, ValueError, 'cannot be assigned once weights are registered'),
            ('lr_scale', -1.0, ValueError, r'Invalid lr_scale=-1\.0'),
        ]
    ),
    ('read a group', lambda o: o.param_groups[0]['foo'], KeyError, "^'foo' is no option of a group. Must be among"),
    ('delete from a group', lambda o: o.param_groups[0].pop('eps'), TypeError, "cannot be deleted: 'eps'"),
    ('no such group', lambda o: o.param_groups[7], IndexError, 'out of range'),
    ('read', lambda o: o.momentum, AttributeError, "no attribute 'momentum'"),
    ('delete', lambda o: delattr(o, 'eps'), AttributeError, 'eps'),
    *(
        (f'add_param_group {options}', add_group(**options), error, match)
        for options, error, match in [
            ({'beta': 0.5}, TypeError, r"Unknown options of a group: \['beta'\]. Must be among .*'betas'"),
            ({'grad_clip_norm': 1.0}, TypeError, r"Unknown options of a group: \['grad_clip_norm'\]"),
            ({'betas': (0.5, 1.0)}, ValueError, r'Invalid betas\[1\]=1\.0'),
            ({'maximize': 'yes'}, TypeError, "Invalid maximize='yes'"),
            ({'weight_decay': None}, TypeError, 'Invalid weight_decay=None'),
            ({'eps': 'x'}, TypeError, "Invalid eps='x'"),
        ]
    ),
    *(
        (f'register {match}', register(states), error, match)
        for states, error, match in [
            (brainstate.nn.Linear(2, 2), TypeError, r'must be brainstate\.State, but \(the root\) is Linear'),
            ({'a': {'b': jnp.ones(2)}}, TypeError, r'must be brainstate\.State, but a\.b is '),
            ({'n': brainstate.ParamState(jnp.arange(3))}, TypeError, 'The weight n is int'),
            ({'n': brainstate.ParamState(jnp.ones(3, bool))}, TypeError, 'The weight n is bool'),
            ({'s': state_of('x', 'abc')}, TypeError, 'The weight s.x is str. Must be an array'),
            ({'o': state_of('x', object())}, TypeError, 'The weight o.x is object. Must be an array'),
            ({('w', 'x'): brainstate.ParamState(jnp.ones(2))}, ValueError, 'The name w.x lies inside w, which is'),
            ({'a': {'b': NEW()['new']}, 'a.b': NEW()['new']}, ValueError, r'The name a\.b is in use'),
        ]
    ),
    ('add what is there', lambda o: o.add_param_group({'again': o.param_states.to_dict()['w']}), ValueError,
     'again is registered already, as w'),
    ('add nothing', lambda o: o.add_param_group({}), ValueError, 'There are no weights to register'),
    *(
        (f'{how} {predicate!r:.40}', lambda o, how=how, p=predicate: getattr(o, how)(p), error, match)
        for how in ('freeze', 'unfreeze')
        for predicate, error, match in [
            (3, TypeError, 'Invalid predicate 3. Must be a pattern for names, a unit'),
            (None, TypeError, 'Invalid predicate None'),
            (['w'], TypeError, r"Invalid predicate \['w'\]"),
            ('nothing', ValueError, "No weight is chosen by 'nothing'. There are: w, b, v"),
            (lambda name: True, TypeError, 'takes 1 positional argument'),
            (lambda name, w: np.ones(2), TypeError, 'Invalid predicate .*Must return True or False; for w it is'),
        ]
    ),
    *(
        (f'update {match}', update(grads, **arguments), error, match)
        for grads, arguments, error, match in [
            (None, {}, KeyError, '^Gradients must be those of the registered weights. missing or None: w, b, v$'),
            (3.0, {}, KeyError, r'not registered: \(the root\)'),
            (jnp.ones(3), {}, KeyError, r'not registered: \(the root\)'),
            ([1.0, 2.0], {}, KeyError, 'not registered: 0, 1'),
            ('w', {'partial': True}, KeyError, r'not registered: \(the root\)'),
            ({'W': GRADS['w']}, {'partial': True}, KeyError, 'not registered: W'),
            ({**GRADS, 'w': None}, {}, KeyError, 'missing or None: w$'),
            ({**GRADS, 'x': GRADS['w']}, {}, KeyError, 'not registered: x$'),
            ({**GRADS, 'w': jnp.ones((3, 2))}, {}, ValueError, r'w: the weight is .*\[2, 3\], its gradient .*\[3, 2\]'),
            ({**GRADS, 'w': 1.0}, {}, ValueError, r'w: the weight is .*\[2, 3\], its gradient .*\[\]'),
            ({**GRADS, 'w': jnp.ones((2, 3), int)}, {}, ValueError, 'w: the weight is .*, its gradient int'),
            ({**GRADS, 'w': jnp.ones((2, 3), bool)}, {}, ValueError, 'w: the weight is .*, its gradient bool'),
            ({**GRADS, 'w': jnp.ones((2, 3)) * 1j}, {}, ValueError, 'w: the weight is .*, its gradient complex'),
            ({**GRADS, 'w': 'x'}, {}, TypeError, r'The gradient of w is str\. Must be an array'),
            ({**GRADS, 'w': object()}, {}, TypeError, r'The gradient of w is object\. Must be an array'),
            ({**GRADS, 'w': np.array([None])}, {}, TypeError, r'The gradient of w is ndarray\. Must be an array'),
            ({**GRADS, 'w': brainstate.State(jnp.ones(2))}, {}, TypeError, r'The gradient of w is State\. Must be an'),
            ({**GRADS, 'w': [GRADS['w']]}, {}, ValueError, 'The gradient of w has the structure'),
            ({**GRADS, 'w': {'x': GRADS['w']}}, {}, ValueError, 'The gradient of w has the structure'),
            ({**GRADS, 'b': jnp.ones(3) * u.ms}, {}, ValueError, 'The gradient of b has the unit ms, its weight mV'),
            ({**GRADS, 'w': GRADS['w'] * u.mV}, {}, ValueError, 'The gradient of w has the unit mV'),
            (GRADS, {'loss_unit': 'mV'}, TypeError, "Invalid loss_unit='mV'. Must be a brainunit.Unit"),
            (GRADS, {'loss_unit': 1.0}, TypeError, r'Invalid loss_unit=1\.0'),
            (GRADS, {'loss_unit': [u.mV]}, TypeError, r'Invalid loss_unit=\['),
            (GRADS, {'loss_unit': u.ms}, ValueError, 'The gradient of '),
            (GRADS, {'partial': 'yes'}, TypeError, "Invalid partial='yes'. Must be a bool"),
            (GRADS, {'partial': 1}, TypeError, 'Invalid partial=1. Must be a bool'),
            (GRADS, {'partial': None}, TypeError, 'Invalid partial=None. Must be a bool'),
            (GRADS, {'partial': [True]}, TypeError, r'Invalid partial=\[True\]'),
            (GRADS, {'loss_scale': 0.0}, ValueError, r'Invalid loss_scale=0\.0\. Must be > 0'),
            (GRADS, {'loss_scale': bo.DynamicLossScale()}, TypeError, 'Invalid loss_scale=DynamicLossScale'),
            (GRADS, {'foo': 1}, TypeError, "unexpected keyword argument 'foo'"),
        ]
    ),
    ('diagnose', lambda o: o.diagnose(3), KeyError, r'not registered: \(the root\)'),
    ('minimize', lambda o: o.minimize(3), TypeError, 'Invalid loss_fn=3. Must be callable'),
    ('minimize', lambda o: o.minimize(lambda: 3.0, has_aux=1), TypeError, 'Invalid has_aux=1. Must be a bool'),
    (
        'minimize',
        lambda o: o.minimize(lambda: jnp.ones(()), has_aux=True),
        TypeError,
        r'Invalid has_aux=True. loss_fn must return \(loss, aux\)',
    ),
    ('metrics', lambda o: o.metrics, ValueError, 'Give metrics=True to the constructor'),
    ('lr_at', lambda o: o.lr.lr_at('x'), TypeError, "'x'"),
    *(
        (f'step {value!r}', lambda o, v=value: o.lr.step(v), error, match)
        for value, error, match in [
            (-1, ValueError, 'Invalid epoch=-1. Must be >= 0'),
            (1.5, TypeError, r'Invalid epoch=1\.5. Must be an integer'),
            ('x', TypeError, "Invalid epoch='x'"),
            (True, TypeError, 'Invalid epoch=True'),
            (NAN, TypeError, 'Invalid epoch=nan'),
            ([1], TypeError, r'Invalid epoch=\[1\]'),
        ]
    ),
    *(
        (f'load {changes}', load(**changes), error, match)
        for changes, error, match in [
            ({'format': 2}, ValueError, 'Invalid format=2 of a state_dict. Must be at most 1'),
            ({'format': KeyError}, ValueError, 'Invalid format=None of a state_dict'),
            ({'param_groups': KeyError}, ValueError, r"lacks \['param_groups'\]"),
            ({'opt_state': KeyError}, ValueError, r"lacks \['opt_state'\]"),
            ({'param_groups': None}, ValueError, 'damaged. param_groups must be a list, not None'),
            ({'param_groups': 'xy'}, ValueError, "damaged. param_groups must be a list, not 'xy'"),
            ({'param_groups': []}, ValueError, 'param_groups: 0 there, 2 here'),
            ({'param_groups__0__own': KeyError}, ValueError, r'damaged. param_groups\.0\.own is missing'),
            ({'param_groups__0__own': 3}, ValueError, r'damaged. param_groups\.0\.own must be a list, not 3'),
            ({'param_groups__1__params': 'v'}, ValueError, r"damaged. param_groups\.1\.params must be a list, not 'v'"),
            ({'param_groups__1__params': ['w']}, ValueError, r"param_groups\.1\.params: \['w'\] there, \['v'\] here"),
            ({'param_groups__0__amsgrad': True}, ValueError, r'param_groups\.0\.amsgrad: True there, False here'),
            ({'base_lrs': None}, ValueError, 'damaged. base_lrs must be a list, not None'),
            ({'base_lrs': [0.3]}, ValueError, r'base_lrs: \[0\.3\] there, \[0\.1\] here'),
            ({'optimizer': 'SGD'}, ValueError, "optimizer: 'SGD' there, 'Adam' here"),
            ({'schedule': 'StepLR'}, ValueError, "schedule: 'StepLR' there, 'ConstantLR' here"),
            ({'opt_state': 3}, ValueError, 'damaged. opt_state must be a dict, not 3'),
            ({'states': []}, ValueError, r'damaged. states must be a dict, not \[\]'),
            ({'states': {}}, ValueError, 'not there'),
            ({'states__foo': {}}, ValueError, 'foo: not here'),
            ({'states__foo': 3}, ValueError, r'damaged. states\.foo must be a dict, not 3'),
            ({'opt_state__exp_avg.w': KeyError}, ValueError, r'opt_state\.exp_avg\.w: not there'),
            ({'opt_state__exp_avg.x': np.ones(2)}, ValueError, r'opt_state\.exp_avg\.x: not here'),
            ({'opt_state__exp_avg.w': np.ones(2)}, ValueError, r'exp_avg\.w: float64\[2\] there, float64\[2, 3\] here'),
            ({'opt_state__exp_avg.w': 'x'}, ValueError, r"damaged. opt_state\.exp_avg\.w must be .*, not 'x'"),
            ({'opt_state__exp_avg.w': None}, ValueError, r'damaged. opt_state\.exp_avg\.w must be .*, not None'),
            ({'opt_state__step.w': np.ones(2)}, ValueError, r'step\.w: .* there, int32\[\] here'),
        ]
    ),
    ('load None', lambda o: o.load_state_dict(None), ValueError, "Invalid format='NoneType' of a state_dict"),
    ('load a list', lambda o: o.load_state_dict([1]), ValueError, "Invalid format='list' of a state_dict"),
]  # fmt: skip


@pytest.mark.parametrize('compiled', [pytest.param(False, marks=pytest.mark.slow), True])
def test_wrong_calls_change_nothing(compiled: bool) -> None:
    with jax.disable_jit(not compiled):
        optimizer, states = optimizer_in_use(norm_unit='own')
        before = snapshot(optimizer, states)
        for name, call, error, match in CALLS:
            with pytest.raises(error) as raised:  # noqa: PT012
                call(optimizer)
                pytest.fail(f'{name} is accepted')
            assert re.search(match, str(raised.value), re.DOTALL), name  # without the notes added by jax
            after = snapshot(optimizer, states)
            assert before[1] == after[1], name
            jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
        optimizer.update(GRADS)
    assert len(CALLS) > 200


@pytest.mark.parametrize('compile_', [brainstate.transform.jit, bo.jit])
@pytest.mark.parametrize('optimizer', [bo.SGD, bo.RMSprop, bo.Lars, bo.Fromage, bo.Signum, bo.SM3])
def test_a_traced_momentum_is_refused_without_its_slot(optimizer: type, compile_: Any) -> None:
    """An optimizer built without momentum keeps no buffer, so a traced momentum would have no effect."""

    def train(momentum: Any) -> None:
        built.momentum = momentum
        built.update({'w': jnp.ones((2, 2))})

    built = optimizer(lr=0.1, momentum=0.0).register_trainable_weights({'w': brainstate.ParamState(jnp.ones((2, 2)))})
    with pytest.raises(ValueError, match=r"momentum.* cannot be assigned .* as .*'momentum_buffer'"):
        compile_(train)(jnp.asarray(0.9))
    assert built.momentum == 0.0
    built = optimizer(lr=0.1, momentum=0.5).register_trainable_weights({'w': brainstate.ParamState(jnp.ones((2, 2)))})
    compile_(train)(jnp.asarray(0.9))
    assert np.isclose(built.momentum, 0.9)


def test_a_traced_momentum_is_refused_in_a_group_without_its_slot() -> None:
    """The buffers of another group do not make a traced momentum act."""

    def train(momentum: Any) -> None:
        built.param_groups[1]['momentum'] = momentum
        built.update({'w': jnp.ones(2), 'v': jnp.ones(2)})

    built = bo.SGD(lr=0.1, momentum=0.9)
    built.register_trainable_weights({'w': brainstate.ParamState(jnp.ones(2))})
    built.add_param_group({'v': brainstate.ParamState(jnp.ones(2))}, momentum=0.0)
    with pytest.raises(ValueError, match=r"momentum.* cannot be assigned .* would begin as \['momentum_buffer'\]"):
        brainstate.transform.jit(train)(jnp.asarray(0.9))
    assert built.param_groups[1]['momentum'] == 0.0
