"""Wrong calls: each is the documented error, names the argument and its value, and changes nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo
from braintools_optim import constraints, rules, schedulers
from braintools_optim.shared_options import SHARED

NAN, INF = float('nan'), float('inf')
RULES = sorted({*(getattr(bo, name) for name in rules.__all__), bo.OptaxOptimizer}, key=lambda rule: rule.__name__)
SCHEDULES = [getattr(schedulers, name) for name in schedulers.__all__]
NEEDED: dict[Any, dict[str, Any]] = {  # arguments without a default
    bo.Lookahead: {'base_optimizer': optax.sgd(0.1)},
    bo.LambdaLR: {'base_lr': 0.1, 'lr_lambda': lambda t: 1.0},
    bo.MultiplicativeLR: {'base_lr': 0.1, 'lr_lambda': lambda t: 1.0},
    bo.OneCycleLR: {'total_steps': 10},
    bo.PerUpdate: {'schedule': bo.ConstantLR(0.1), 'steps_per_epoch': 2},
    bo.SequentialLR: {'schedulers': [bo.ConstantLR(0.1)], 'milestones': []},
    bo.ChainedScheduler: {'schedulers': [bo.ConstantLR(0.1)]},
    bo.OptaxSchedule: {'function': lambda t: 0.1},
}
NUMBERS = {  # those whose default does not tell; whether they may be None
    'lr': False, 'base_lr': False, 'max_lr': False, 'min_lr': False, 'base_momentum': False, 'max_momentum': False,
    'steps_per_epoch': True, 'grad_clip_norm': True, 'grad_clip_value': True, 'grad_clip_adaptive': True,
    'grokfast': True, 'loss_scale': True, 'beta1': True, 'beta2': True, 'total_steps': True, 'epochs': True,
    'step_size_down': True, 'end_value': True,
}  # fmt: skip
SIGNED = {'decay_rate', 'f_min', 'ns_coefficients'}  # may be below 0


def wrong_values(name: str, default: Any) -> Iterator[Any]:
    """Values that an option with this default cannot have."""
    if isinstance(default, bool):
        yield from ('yes', 1, 0.0, None)
    elif isinstance(default, tuple) and name != 'milestones':
        yield from (default[:-1], 'x', None, 0.5)
        for i in range(len(default)):
            yield from (
                (*default[:i], wrong, *default[i + 1 :]) for wrong in (NAN, 'x', *([] if name in SIGNED else [-1.0]))
            )
    elif name in NUMBERS or (isinstance(default, (int, float)) and not isinstance(default, bool)):
        yield from (NAN, 'x', {}, 1j, jnp.ones((1, 2)), 1 * u.mV)
        yield from () if name in SIGNED else (-2,)
        yield from () if default is None or NUMBERS.get(name) else (None,)


def constructor_calls(classes: list[Any]) -> list[tuple[Any, str, Any]]:
    return [
        (cls, name, value)
        for cls in classes
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in SHARED or cls is bo.SGD  # written once, and refused once
        for value in wrong_values(name, parameter.default)
        if not (cls is bo.LBFGS and name == 'lr' and value is None)  # its default
    ]


OF_RULES, OF_SCHEDULES = constructor_calls(RULES), constructor_calls(SCHEDULES)


@pytest.mark.filterwarnings('ignore:beta. is deprecated')
@pytest.mark.parametrize('cls', [*RULES, *SCHEDULES], ids=lambda cls: cls.__name__)
def test_wrong_options(cls: Any) -> None:
    for _, name, value in (call for call in OF_RULES + OF_SCHEDULES if call[0] is cls):
        with pytest.raises((TypeError, ValueError), match=rf'Invalid ({name}|betas)(\[\d+\])?=.*\. Must ') as caught:
            cls(**{**NEEDED.get(cls, {}), name: value})
        shown = re.search(r'=(.*?)( \(learning rate\))?\. Must', str(caught.value), re.DOTALL)[1]
        assert shown[:40] in repr(value), str(caught.value)
        if isinstance(value, (str, dict, bool)) or value is None:
            assert caught.type is TypeError, str(caught.value)


# calls on an optimizer that is in use


def live(cls: Any = bo.Adam, **options: Any) -> tuple[bo.Optimizer, dict[str, brainstate.ParamState]]:
    states = {
        'w': brainstate.ParamState(jnp.ones((2, 3))),
        'b': brainstate.ParamState(jnp.full(3, 2.0) * u.mV),
        'v': brainstate.ParamState(jnp.ones(3)),
    }
    optimizer = cls(**{'lr': 0.1, **options}).register_trainable_weights({'w': states['w'], 'b': states['b']})
    optimizer.add_param_group({'v': states['v']})
    if not isinstance(optimizer, bo.LBFGS):
        optimizer.update(GOOD)
    return optimizer, states


def everything(optimizer: bo.Optimizer, states: dict[str, brainstate.State]) -> Any:
    """All that an optimizer and its model are, in States and besides."""
    found = {str(key): state for key, state in {**brainstate.graph.states(optimizer), **states}.items()}
    settings = optimizer.settings
    besides = [settings.own, settings.schedules, list(optimizer._freezing), optimizer.weight_names, str(optimizer)]
    besides += [len(optimizer.param_groups), {k: v for k, v in optimizer.__dict__.items() if k[0] != '_'}]
    return {key: jax.tree.map(np.array, state.value) for key, state in found.items()}, besides


GOOD = {'w': jnp.ones((2, 3)), 'b': jnp.ones(3) * u.mV, 'v': jnp.ones(3)}
NEW = lambda: {'new': brainstate.ParamState(jnp.ones(2))}  # noqa: E731
NOT_A_NUMBER = 'Must be a number'


def assigned(name: str, value: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: setattr(optimizer, name, value)


def in_group(name: str, value: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.param_groups[0].__setitem__(name, value)


def added(**options: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.add_param_group(NEW(), **options)


def registered(states: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.register_trainable_weights(states)


def updated(grads: Any = GOOD, **arguments: Any) -> Callable[[bo.Optimizer], Any]:
    return lambda optimizer: optimizer.update(grads, **arguments)


def loaded(**changes: Any) -> Callable[[bo.Optimizer], Any]:
    """Load a state_dict in which some entries, written ``param_groups__0__own``, are others or ``KeyError``: gone."""

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
        state['step_count'] = 17  # a damaged dict is not taken in part
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
            ('lr', 'lr', lambda v: assigned('lr', v)),
            ('current_lr', 'lr', lambda v: assigned('current_lr', v)),
            ('lr_apply', 'lr', lambda v: lambda o: o.lr_apply(lambda lr: v)),
            ('set_rate', 'lr', lambda v: lambda o: o.lr.set_rate(v)),
            ('group lr', 'lr', lambda v: in_group('lr', v)),
            ('group rate', 'lr', lambda v: lambda o: setattr(o.param_groups[1]['lr'], 'value', v)),
            ('added lr', 'lr', lambda v: added(lr=v)),
            ('eps', 'eps', lambda v: assigned('eps', v)),
            ('group eps', 'eps', lambda v: in_group('eps', v)),
            ('added lr_scale', 'lr_scale', lambda v: added(lr_scale=v)),
        )
    ),
    *(
        (f'{how} {value!r:.20}', call(value), error, f'Invalid {name}={shown}')
        for value, error, shown in NUMBER_REFUSALS[1:]  # None is a value of these
        for how, name, call in (
            ('loss_scale', 'loss_scale', lambda v: updated(loss_scale=v)),
            ('grad_clip_norm', 'grad_clip_norm', lambda v: assigned('grad_clip_norm', v)),
        )
        if how == 'loss_scale' or value is not INF  # which clips nothing
    ),
    *(
        (f'{name}={value!r}', assigned(name, value), error, match)
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
            ('settings', 3, TypeError, 'Invalid settings=3. Must be Settings'),
            ('param_groups', [], AttributeError, 'param_groups'),
            ('lr_scheduler', 0.1, AttributeError, 'lr_scheduler'),
            ('metrics', True, AttributeError, 'metrics'),
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
        (f'group {name}={value!r}', in_group(name, value), error, match)
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
        (f'add_param_group {options}', added(**options), error, match)
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
        (f'register {match}', registered(states), error, match)
        for states, error, match in [
            (brainstate.nn.Linear(2, 2), TypeError, r'must be brainstate\.State, but \(the root\) is Linear'),
            ({'a': {'b': jnp.ones(2)}}, TypeError, r'must be brainstate\.State, but a\.b is '),
            ({'n': brainstate.ParamState(jnp.arange(3))}, TypeError, 'The weight n is int'),
            ({'n': brainstate.ParamState(jnp.ones(3, bool))}, TypeError, 'The weight n is bool'),
            ({'s': state_of('x', 'abc')}, TypeError, 'The weight s.x is str. Must be an array'),
            ({'o': state_of('x', object())}, TypeError, 'The weight o.x is object. Must be an array'),
            ({('w', 'x'): brainstate.ParamState(jnp.ones(2))}, ValueError, 'The name w.x lies inside w, which is'),
            ({'w': brainstate.ParamState(jnp.ones(2))}, ValueError, 'The name w is in use for another weight'),
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
            (3, TypeError, 'Invalid predicate 3. Must be a pattern for names or a function'),
            (None, TypeError, 'Invalid predicate None'),
            (['w'], TypeError, r"Invalid predicate \['w'\]"),
            ('nothing', ValueError, "No weight is chosen by 'nothing'. There are: w, b, v"),
            (lambda name: True, TypeError, 'takes 1 positional argument'),
            (lambda name, w: np.ones(2), TypeError, 'Invalid predicate .*Must return True or False; for w it is'),
        ]
    ),
    *(
        (f'update {match}', updated(grads, **arguments), error, match)
        for grads, arguments, error, match in [
            (None, {}, KeyError, '^Gradients must be those of the registered weights. missing or None: w, b, v$'),
            (3.0, {}, KeyError, r'not registered: \(the root\)'),
            (jnp.ones(3), {}, KeyError, r'not registered: \(the root\)'),
            ([1.0, 2.0], {}, KeyError, 'not registered: 0, 1'),
            ('w', {'partial': True}, KeyError, r'not registered: \(the root\)'),
            ({'W': GOOD['w']}, {'partial': True}, KeyError, 'not registered: W'),
            ({**GOOD, 'w': None}, {}, KeyError, 'missing or None: w$'),
            ({**GOOD, 'x': GOOD['w']}, {}, KeyError, 'not registered: x$'),
            ({**GOOD, 'w': jnp.ones((3, 2))}, {}, ValueError, r'w: the weight is .*\[2, 3\], its gradient .*\[3, 2\]'),
            ({**GOOD, 'w': 1.0}, {}, ValueError, r'w: the weight is .*\[2, 3\], its gradient .*\[\]'),
            ({**GOOD, 'w': jnp.ones((2, 3), int)}, {}, ValueError, 'w: the weight is .*, its gradient int'),
            ({**GOOD, 'w': jnp.ones((2, 3), bool)}, {}, ValueError, 'w: the weight is .*, its gradient bool'),
            ({**GOOD, 'w': jnp.ones((2, 3)) * 1j}, {}, ValueError, 'w: the weight is .*, its gradient complex'),
            ({**GOOD, 'w': 'x'}, {}, TypeError, r'The gradient of w is str\. Must be an array'),
            ({**GOOD, 'w': object()}, {}, TypeError, r'The gradient of w is object\. Must be an array'),
            ({**GOOD, 'w': np.array([None])}, {}, TypeError, r'The gradient of w is ndarray\. Must be an array'),
            ({**GOOD, 'w': brainstate.State(jnp.ones(2))}, {}, TypeError, r'The gradient of w is State\. Must be an'),
            ({**GOOD, 'w': [GOOD['w']]}, {}, ValueError, 'The gradient of w has the structure'),
            ({**GOOD, 'w': {'x': GOOD['w']}}, {}, ValueError, 'The gradient of w has the structure'),
            ({**GOOD, 'b': jnp.ones(3) * u.ms}, {}, ValueError, 'The gradient of b has the unit ms, its weight mV'),
            ({**GOOD, 'w': GOOD['w'] * u.mV}, {}, ValueError, 'The gradient of w has the unit mV'),
            (GOOD, {'loss_unit': 'mV'}, TypeError, "Invalid loss_unit='mV'. Must be a brainunit.Unit"),
            (GOOD, {'loss_unit': 1.0}, TypeError, r'Invalid loss_unit=1\.0'),
            (GOOD, {'loss_unit': [u.mV]}, TypeError, r'Invalid loss_unit=\['),
            (GOOD, {'loss_unit': u.ms}, ValueError, 'The gradient of '),
            (GOOD, {'partial': 'yes'}, TypeError, "Invalid partial='yes'. Must be a bool"),
            (GOOD, {'partial': 1}, TypeError, 'Invalid partial=1. Must be a bool'),
            (GOOD, {'partial': None}, TypeError, 'Invalid partial=None. Must be a bool'),
            (GOOD, {'partial': [True]}, TypeError, r'Invalid partial=\[True\]'),
            (GOOD, {'loss_scale': 0.0}, ValueError, r'Invalid loss_scale=0\.0\. Must be > 0'),
            (GOOD, {'loss_scale': bo.DynamicLossScale()}, TypeError, 'Invalid loss_scale=DynamicLossScale'),
            (GOOD, {'foo': 1}, TypeError, "unexpected keyword argument 'foo'"),
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
        (f'load {changes}', loaded(**changes), error, match)
        for changes, error, match in [
            ({'format': 2}, ValueError, 'Invalid format=2 of a state_dict. Must be 1'),
            ({'format': KeyError}, ValueError, 'Invalid format=None of a state_dict'),
            ({'param_groups': KeyError}, ValueError, r"lacks \['param_groups'\]"),
            ({'opt_state': KeyError}, ValueError, r"lacks \['opt_state'\]"),
            ({'param_groups': None}, ValueError, 'Invalid param_groups=None of a state_dict. Must be a sequence'),
            ({'param_groups': 'xy'}, ValueError, "Invalid param_groups='xy' of a state_dict. Must be a sequence"),
            ({'param_groups': []}, ValueError, 'param_groups: 0 there, 2 here'),
            ({'param_groups__0__own': KeyError}, ValueError, r'Invalid param_groups\.0\.own=None'),
            ({'param_groups__0__own': 3}, ValueError, r'Invalid param_groups\.0\.own=3 of a state_dict'),
            ({'param_groups__1__params': 'v'}, ValueError, r"Invalid param_groups\.1\.params='v' of a state_dict"),
            ({'param_groups__1__params': ['w']}, ValueError, r"param_groups\.1\.params: \['w'\] there, \['v'\] here"),
            ({'param_groups__0__amsgrad': True}, ValueError, r'param_groups\.0\.amsgrad: True there, False here'),
            ({'base_lrs': None}, ValueError, 'Invalid base_lrs=None of a state_dict. Must be a sequence'),
            ({'base_lrs': [0.3]}, ValueError, r'base_lrs: \[0\.3\] there, \[0\.1\] here'),
            ({'optimizer': 'SGD'}, ValueError, "optimizer: 'SGD' there, 'Adam' here"),
            ({'schedule': 'StepLR'}, ValueError, "schedule: 'StepLR' there, 'ConstantLR' here"),
            ({'opt_state': 3}, ValueError, 'Invalid opt_state=3 of a state_dict. Must be a mapping'),
            ({'states': []}, ValueError, r'Invalid states=\[\] of a state_dict. Must be a mapping'),
            ({'states': {}}, ValueError, 'not there'),
            ({'states__foo': {}}, ValueError, 'foo: not here'),
            ({'states__foo': 3}, ValueError, r'Invalid states\.foo=3 of a state_dict'),
            ({'opt_state__exp_avg.w': KeyError}, ValueError, r'opt_state\.exp_avg\.w: not there'),
            ({'opt_state__exp_avg.x': np.ones(2)}, ValueError, r'opt_state\.exp_avg\.x: not here'),
            ({'opt_state__exp_avg.w': np.ones(2)}, ValueError, r'exp_avg\.w: float64\[2\] there, float64\[2, 3\] here'),
            ({'opt_state__exp_avg.w': 'x'}, ValueError, r'exp_avg\.w: <U1\[\] there, float64\[2, 3\] here'),
            ({'opt_state__exp_avg.w': None}, ValueError, r'exp_avg\.w: object\[\] there, float64\[2, 3\] here'),
            ({'opt_state__step.w': np.ones(2)}, ValueError, r'step\.w: .* there, int32\[\] here'),
        ]
    ),
    ('load None', lambda o: o.load_state_dict(None), ValueError, "Invalid format='NoneType' of a state_dict"),
    ('load a list', lambda o: o.load_state_dict([1]), ValueError, "Invalid format='list' of a state_dict"),
]  # fmt: skip


@pytest.mark.parametrize('compiled', [pytest.param(False, marks=pytest.mark.slow), True])
def test_wrong_calls_change_nothing(compiled: bool) -> None:
    with jax.disable_jit(not compiled):
        optimizer, states = live(norm_unit='own')
        before = everything(optimizer, states)
        for name, call, error, match in CALLS:
            with pytest.raises(error) as raised:  # noqa: PT012
                call(optimizer)
                pytest.fail(f'{name} is accepted')
            assert re.search(match, str(raised.value), re.DOTALL), name  # without the notes that jax adds
            after = everything(optimizer, states)
            assert before[1] == after[1], name
            jax.tree.map(np.testing.assert_array_equal, before[0], after[0])
        optimizer.update(GOOD)


LOSS = lambda: 1.0  # noqa: E731


@pytest.mark.parametrize('linesearch', ['zoom', 'backtracking', optax.scale_by_backtracking_linesearch(5)])
@pytest.mark.parametrize('jitted', [False, True])
def test_a_line_search_without_the_loss_changes_nothing(linesearch: Any, jitted: bool) -> None:
    optimizer, states = live(bo.LBFGS, linesearch=linesearch)
    for arguments in ({}, {'value': 1.0}, {'value_fn': LOSS}, {'value': 1.0, 'value_fn': 3.0}):
        update = lambda g, arguments=arguments: optimizer.update(g, **arguments)  # noqa: E731
        before = everything(optimizer, states)
        with pytest.raises(ValueError, match=r'Invalid value=.*, value_fn=.*\. A line search must be told the loss'):
            (brainstate.transform.jit(update) if jitted else update)(GOOD)
        jax.tree.map(np.testing.assert_array_equal, before[0], everything(optimizer, states)[0])


# what is built


CONSTRUCTIONS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    *(
        (lambda name=name, value=value: bo.Adam(**{name: value}), error, match)
        for name, value, error, match in [
            ('master_weights', 'yes', TypeError, "Invalid master_weights='yes'. Must be a bool"),
            ('master_weights', None, TypeError, 'Invalid master_weights=None. Must be a bool'),
            ('metrics', 1, TypeError, 'Invalid metrics=1. Must be a bool'),
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
    (lambda: live(constraints={'w': constraints.unit_norm(5)}), ValueError, 'Invalid constraint of w, of shape'),
    (lambda: live(constraints={'w': constraints.keep_sign(np.ones(7))}), ValueError, 'Invalid constraint of w'),
    (lambda: live(constraints={'w': lambda w: None}), ValueError, 'Invalid constraint of w, .* it makes None'),
    (lambda: live(no_decay=lambda name, w: w), TypeError, 'Invalid predicate .*Must return True or False; for w'),
    (lambda: bo.OneCycleLR(0.1), ValueError, 'Invalid total_steps=None. Must be given'),
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
    (lambda: bo.StepLR(0.1).attach_optimizer(3), TypeError, 'optimizer must be an Optimizer'),
]  # fmt: skip


@pytest.mark.parametrize('number', range(len(CONSTRUCTIONS)))
def test_wrong_constructions(number: int) -> None:
    build, error, match = CONSTRUCTIONS[number]
    with jax.disable_jit(), pytest.raises(error, match=re.compile(match, re.DOTALL)):
        build()


def test_a_schedule_loads_all_or_nothing() -> None:
    """Where it stands is another place, so that a part would be seen."""
    good = {'last_epoch': 5, 'best': 0.5, 'num_bad_epochs': 2, 'cooldown_counter': 1, 'reduction': [0.1]}
    for changes, error, match in [
        ({'last_epoch': -2}, ValueError, 'Invalid last_epoch=-2'),
        ({'last_epoch': None}, TypeError, 'Invalid last_epoch=None'),
        ({'manual': {}}, ValueError, r"Invalid manual=\{\} of a state_dict. Must have 'rate' and 'reference'"),
        ({'manual': 3}, ValueError, 'Invalid manual=3'),
        ({'manual': {'rate': NAN, 'reference': 1.0}}, ValueError, 'Invalid rate=nan'),
        ({'manual': {'rate': 'x', 'reference': 1.0}}, TypeError, "Invalid rate='x'"),
        ({'best': 'x'}, TypeError, "Invalid best='x'"),
        ({'num_bad_epochs': -1}, ValueError, 'Invalid num_bad_epochs=-1'),
        ({'cooldown_counter': 0.5}, TypeError, r'Invalid cooldown_counter=0\.5'),
        ({'reduction': [0.1, 0.2]}, ValueError, r'Invalid reduction=\[0\.1, 0\.2\]. Must be 1 numbers'),
        ({'reduction': 0.1}, TypeError, r'Invalid reduction=0\.1'),
    ]:
        schedule = bo.ReduceLROnPlateau(0.1)
        before = schedule.state_dict()
        with pytest.raises(error, match=match):
            schedule.load_state_dict({**good, **changes})
        assert schedule.state_dict() == before
    schedule.load_state_dict(good)
    assert schedule.state_dict()['reduction'] == [pytest.approx(0.1)]


@pytest.mark.parametrize('metric', ['x', None, {}, [1.0, 2.0], jnp.ones(2), 1 * u.mV])
def test_wrong_metrics_of_a_plateau(metric: Any) -> None:
    schedule = bo.ReduceLROnPlateau(0.1)
    with pytest.raises((TypeError, ValueError), match='metric'):
        schedule.step(metric)
    assert int(schedule.last_epoch.value) == 0


def test_a_pattern_that_chooses_nothing_is_said() -> None:
    for options, match in (
        ({'constraints': {'weights': constraints.non_negative()}}, r"No weight is chosen by constraints\['weights'\]"),
        ({'no_decay': 'biases'}, "No weight is chosen by no_decay='biases'"),
        ({'groups': {'biases': {}}}, r"No weight is chosen by groups\['biases'\]"),
    ):
        with pytest.warns(UserWarning, match=match):
            bo.Adam(0.1, **options).register_trainable_weights({'w': brainstate.ParamState(jnp.ones(2))})


def test_attributes_of_ones_own() -> None:
    """A subclass sets what it likes in its constructor, before and after; what begins with _ at any time."""

    class Own(bo.SGD):
        def __init__(self, speed: float):
            self.before = speed
            super().__init__(lr=speed)
            self.after = [speed]

    optimizer = Own(0.5)
    optimizer.after, optimizer.before, optimizer._note = [1.0], 2.0, 'mine'
    optimizer.donate_weights = True
    with pytest.raises(AttributeError, match=r'Invalid befor=2\.0\. Own has no such option'):
        optimizer.befor = 2.0
    copy = brainstate.graph.treefy_merge(*brainstate.graph.treefy_split(optimizer))
    assert (copy.after, copy.before, copy.current_lr) == ([1.0], 2.0, 0.5)


def test_copies_are_refused() -> None:
    """They would update the weights of another model, and share their memory."""
    model = {'w': brainstate.ParamState(jnp.ones(2))}
    optimizer = bo.Adam(0.5).register_trainable_weights(model)
    copy = brainstate.graph.clone(optimizer)
    for use in (
        lambda: copy.update({'w': jnp.ones(2)}),
        lambda: copy.minimize(lambda: model['w'].value.sum()),
        lambda: copy.register_trainable_weights(model),
        lambda: copy.freeze('w'),
    ):
        with pytest.raises(ValueError, match=r'cannot be copied: build another one\. Adam is a copy'):
            use()
    optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(model['w'].value, 0.5)


def test_there_are_many() -> None:
    assert len(OF_RULES) > 1000
    assert len(OF_SCHEDULES) > 500
    assert len(CALLS) > 200


@pytest.mark.parametrize('jit', [lambda f: f, bo.jit], ids=['update', 'jit'])
def test_transformations_of_jax_are_refused(jit: Any) -> None:
    """brainstate's message says what to use instead; it is an error to trace a step that nobody could follow."""
    w = brainstate.ParamState(jnp.ones(2))
    optimizer = bo.Adam(lr=0.1).register_trainable_weights({'w': w})
    step = jit(lambda g: optimizer.update({'w': g}))
    for closed_over in (False, True):
        with pytest.raises(brainstate.TraceContextError, match=r'brainstate\.transform\.jit'):
            jax.jit((lambda g: step(jnp.ones(2))) if closed_over else step)(jnp.ones(2))
    np.testing.assert_array_equal(w.value, 1.0)
    assert optimizer.step_count.value == 0
    step(jnp.ones(2))
    assert (w.value < 1).all()
