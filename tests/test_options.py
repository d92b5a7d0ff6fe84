"""Options: their ranges, what reading and assigning them does, groups, and the learning rate."""

from __future__ import annotations

import inspect
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from table import OPTIMIZERS, thinned

import braintools_optim as bo

every_optimizer = pytest.mark.parametrize('optimizer', OPTIMIZERS, ids=lambda o: o.__name__)
NAN = float('nan')


def one_weight(optimizer: bo.Optimizer, start: float = 0.0) -> brainstate.ParamState:
    w = brainstate.ParamState(jnp.asarray(start))
    optimizer.register_trainable_weights({'w': w})
    return w


def moved(optimizer: bo.Optimizer, w: brainstate.ParamState, gradient: float = -1.0) -> float:
    before = float(w.value)
    optimizer.update({'w': jnp.asarray(gradient)})
    return float(w.value) - before


# ranges


INVALID = [
    (bo.SGD, {'lr': -1.0}, ValueError, r'Invalid lr=-1\.0 \(learning rate\)\. Must be >= 0\.'),
    (bo.SGD, {'lr': NAN}, ValueError, 'Invalid lr=nan'),
    (bo.SGD, {'lr': float('inf')}, ValueError, 'Invalid lr=inf'),
    (bo.SGD, {'lr': 'fast'}, TypeError, "Invalid lr='fast'. Must be a number"),
    (bo.SGD, {'lr': True}, TypeError, 'Invalid lr=True'),
    (bo.SGD, {'lr': jnp.ones(2)}, TypeError, 'Must be a number'),
    (
        bo.SGD,
        {'lr': {'w': jnp.ones(1000)}},
        TypeError,
        r'Invalid lr=.{0,70}\. Must be a number\. Weights go to register',
    ),
    (bo.SGD, {'lr': None}, TypeError, 'Invalid lr=None'),
    (bo.SGD, {'momentum': -0.1}, ValueError, r'Invalid momentum=-0\.1\. Must be in \[0, 1\]'),
    (bo.SGD, {'momentum': 1.5}, ValueError, 'Invalid momentum=1.5'),
    (bo.SGD, {'momentum': NAN}, ValueError, 'Invalid momentum=nan'),
    (bo.SGD, {'dampening': 2.0}, ValueError, 'Invalid dampening=2.0'),
    (bo.SGD, {'nesterov': True}, ValueError, 'Invalid nesterov=True with momentum=0.0'),
    (bo.SGD, {'nesterov': True, 'momentum': 0.9, 'dampening': 0.1}, ValueError, 'dampening=0.1'),
    (bo.SGD, {'nesterov': 1}, TypeError, 'Invalid nesterov=1. Must be a bool'),
    (bo.Adam, {'betas': (0.9, 1.0)}, ValueError, r'Invalid betas\[1\]=1\.0\. Must be in \[0, 1\)'),
    (bo.Adam, {'betas': (-0.1, 0.9)}, ValueError, r'Invalid betas\[0\]=-0\.1'),
    (bo.Adam, {'betas': (NAN, 0.9)}, ValueError, r'Invalid betas\[0\]=nan'),
    (bo.Adam, {'betas': 0.9}, TypeError, r'Invalid betas=0\.9\. Must be a pair'),
    (bo.Adam, {'betas': (0.9, 0.99, 0.999)}, TypeError, 'Must be a pair'),
    (bo.Adam, {'eps': -1}, ValueError, r'Invalid eps=-1\. Must be >= 0\.'),
    (bo.Adam, {'eps': NAN}, ValueError, 'Invalid eps=nan'),
    (bo.Adam, {'weight_decay': -0.1}, ValueError, 'Invalid weight_decay=-0.1'),
    (bo.Adam, {'weight_decay': NAN}, ValueError, 'Invalid weight_decay=nan'),
    (bo.Adam, {'amsgrad': 'yes'}, TypeError, "Invalid amsgrad='yes'"),
    (bo.Adam, {'grad_clip_norm': 0.0}, ValueError, r'Invalid grad_clip_norm=0\.0\. Must be > 0\.'),
    (bo.Adam, {'grad_clip_norm': -1.0}, ValueError, 'grad_clip_norm'),
    (bo.Adam, {'grad_clip_norm': NAN}, ValueError, 'grad_clip_norm'),
    (bo.Adam, {'grad_clip_value': -1.0}, ValueError, 'Invalid grad_clip_value=-1.0'),
    (bo.Adam, {'grad_clip_value': '1'}, TypeError, 'grad_clip_value'),
    (bo.Adam, {'epsilon': 1e-8}, TypeError, 'epsilon'),
    (bo.AdamW, {'weight_decay': -1.0}, ValueError, 'weight_decay'),
    (bo.RAdam, {'betas': (0.9, 1.1)}, ValueError, 'betas'),
    (bo.RMSprop, {'alpha': 1.0}, ValueError, 'Invalid alpha=1.0'),
    (bo.RMSprop, {'alpha': -0.5}, ValueError, 'Invalid alpha=-0.5'),
    (bo.RMSprop, {'centered': None}, TypeError, 'Invalid centered=None'),
    (bo.OptaxOptimizer, {'tx': 'adam'}, TypeError, "Invalid tx='adam'"),
    (bo.ConstantLR, {'base_lr': -0.1}, ValueError, 'Invalid base_lr=-0.1'),
    (bo.ConstantLR, {'base_lr': []}, ValueError, 'Invalid base_lr='),
    (bo.ConstantLR, {'factor': 1.5}, ValueError, 'Invalid factor=1.5'),
    (bo.StepLR, {'step_size': 0}, ValueError, 'Invalid step_size=0. Must be >= 1'),
    (bo.StepLR, {'step_size': 1.5}, TypeError, 'Invalid step_size=1.5'),
    (bo.StepLR, {'gamma': -1.0}, ValueError, 'Invalid gamma=-1.0'),
    (bo.StepLR, {'last_epoch': -2}, ValueError, 'Invalid last_epoch=-2'),
    (bo.ExponentialLR, {'gamma': NAN}, ValueError, 'Invalid gamma=nan'),
    (bo.CosineAnnealingLR, {'T_max': 0}, ValueError, 'Invalid T_max=0. Must be > 0'),
    (bo.CosineAnnealingLR, {'eta_min': -1.0}, ValueError, 'Invalid eta_min=-1.0'),
    (bo.CosineAnnealingLR, {'periodic': 1}, TypeError, 'Invalid periodic=1'),
    (bo.WarmupScheduler, {'warmup_epochs': -1}, ValueError, 'Invalid warmup_epochs=-1'),
    (bo.WarmupScheduler, {'warmup_start_lr': -1.0}, ValueError, 'Invalid warmup_start_lr=-1.0'),
    (bo.OptaxSchedule, {'function': 0.1}, TypeError, 'Invalid function=0.1'),
]


@pytest.mark.parametrize(('cls', 'options', 'error', 'match'), INVALID)
def test_options_out_of_range(cls: Any, options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        cls(**options)


@pytest.mark.parametrize(
    'wrong', [{'a': jnp.ones(2)}, jnp.ones(2), None, 'w', {'a': None}, [0.5]], ids=lambda wrong: type(wrong).__name__
)
def test_only_states_are_registered(wrong: Any) -> None:
    opt = bo.Adam()
    with pytest.raises(TypeError, match=r'All params values must be brainstate\.State'):
        opt.register_trainable_weights(wrong)
    assert opt.opt_state is None
    assert len(opt.param_states) == 0


def test_registration_errors_name_the_weight_and_change_nothing() -> None:
    opt, w, v = bo.Adam(), brainstate.ParamState(jnp.ones(2)), brainstate.ParamState(jnp.ones(2))
    with pytest.raises(TypeError, match=r'The weight a\.b\.n is int32'):
        opt.register_trainable_weights({'w': w, 'a': {'b': brainstate.ParamState({'n': jnp.arange(2, dtype='int32')})}})
    with pytest.raises(ValueError, match='no weights'):
        opt.register_trainable_weights({})
    with pytest.raises(ValueError, match='must be called before step'):
        opt.update({'w': jnp.ones(2)})
    with pytest.raises(ValueError, match='must be called before'):
        opt.add_param_group({'w': w})
    opt.register_trainable_weights({'w': w})
    for error, match, states, options in [
        (ValueError, 'again is registered already, as w', {'again': w}, {}),
        (ValueError, 'The name w is in use', {'w': brainstate.ParamState(jnp.ones(2))}, {}),
        (TypeError, r"Unknown options of a group: \['beta'\]\. Must be among .*'betas'", {'v': v}, {'beta': 0.5}),
        (ValueError, r'Invalid betas\[0\]=2\.0', {'v': v}, {'betas': (2.0, 0.5)}),
    ]:
        with pytest.raises(error, match=match):
            opt.add_param_group(states, **options)
    assert len(opt.param_groups) == len(opt.param_states) == 1
    opt.update({'w': jnp.ones(2)})


# reading and assigning


@every_optimizer
def test_signatures_are_shown(optimizer: type[bo.Optimizer]) -> None:
    parameters = inspect.signature(optimizer).parameters
    assert next(iter(parameters)) in ('lr', 'tx')
    assert 'grad_clip_norm' in parameters
    assert inspect.signature(bo.StepLR).parameters['step_size'].default == 30


def test_positional_order_is_that_of_existing_code() -> None:
    for cls, arguments in {
        bo.OptaxOptimizer: 'tx lr weight_decay grad_clip_norm grad_clip_value',
        bo.SGD: 'lr momentum weight_decay nesterov grad_clip_norm grad_clip_value',
        bo.Momentum: 'lr momentum weight_decay grad_clip_norm grad_clip_value',
        bo.MomentumNesterov: 'lr momentum weight_decay grad_clip_norm grad_clip_value',
        bo.Adam: 'lr betas eps weight_decay amsgrad grad_clip_norm grad_clip_value',
        bo.AdamW: 'lr betas eps weight_decay grad_clip_norm grad_clip_value',
        bo.RAdam: 'lr betas eps weight_decay grad_clip_norm grad_clip_value',
        bo.RMSprop: 'lr alpha eps weight_decay momentum centered grad_clip_norm grad_clip_value',
        bo.ConstantLR: 'base_lr factor total_iters last_epoch',
        bo.StepLR: 'base_lr step_size gamma last_epoch',
        bo.ExponentialLR: 'base_lr gamma last_epoch',
        bo.CosineAnnealingLR: 'base_lr T_max eta_min last_epoch',
        bo.WarmupScheduler: 'base_lr warmup_epochs warmup_start_lr last_epoch',
    }.items():
        positional = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == arguments.split()


def test_options_are_attributes_and_keep_their_value() -> None:
    opt = bo.Adam(1e-3, (0.8, 0.99), 1e-16, 0.3, True, 1.0)
    assert (opt.betas, opt.eps, opt.weight_decay, opt.amsgrad) == ((0.8, 0.99), 1e-16, 0.3, True)
    assert (opt.grad_clip_norm, opt.grad_clip_value, opt.base_lr) == (1.0, None, 1e-3)
    assert not hasattr(bo.RAdam(), 'momentum_decay')
    with pytest.warns(DeprecationWarning, match='beta1'):
        assert bo.Adam(beta1=0.7).betas == (0.7, 0.999)
    with pytest.warns(DeprecationWarning, match='beta2'):
        assert bo.Adam(beta2=0.7).betas == (0.9, 0.7)


@pytest.mark.usefixtures('float32')
def test_options_keep_their_value_in_float32() -> None:
    opt = bo.Adam(0.1, (0.9, 0.999), weight_decay=0.3)
    assert (opt.betas, opt.eps, opt.weight_decay) == ((0.9, 0.999), 1e-8, 0.3)
    assert opt.current_lr == opt.base_lr == float(opt.lr) == 0.1
    opt.lr_apply(lambda lr: lr * 0.5)
    assert opt.current_lr == 0.05


ASSIGNMENTS = [
    (bo.Adam, {'amsgrad': True}, {'betas': (0.5, 0.6), 'eps': 0.1, 'weight_decay': 0.2, 'maximize': True}),
    (bo.Adam, {}, {'decoupled_weight_decay': True, 'grad_clip_norm': 0.01, 'grad_clip_value': 0.001}),
    (bo.RMSprop, {'momentum': 0.5, 'centered': True}, {'alpha': 0.5, 'momentum': 0.9, 'eps': 0.3}),
    (bo.SGD, {'momentum': 0.9}, {'momentum': 0.5, 'nesterov': True}),
    (bo.SGD, {'momentum': 0.9}, {'dampening': 0.5, 'weight_decay': 0.5}),
    (bo.OptaxOptimizer, {}, {'weight_decay': 0.5, 'maximize': True}),
]


@pytest.mark.parametrize(('cls', 'options', 'assigned'), ASSIGNMENTS)
def test_assigning_acts_on_the_next_update(cls: Any, options: dict[str, Any], assigned: dict[str, Any]) -> None:
    """Each option alone moves the weight elsewhere, in a function compiled before as well."""
    slopes = (0.7, -0.2, 0.5)

    def run(change: dict[str, Any], jitted: bool) -> list[float]:
        opt = cls(lr=0.1, **options)
        w = one_weight(opt, 1.0)
        update = brainstate.transform.jit(lambda g: opt.update({'w': g})) if jitted else lambda g: opt.update({'w': g})
        path = []
        for t, slope in enumerate(slopes):
            if t == 1:
                for name, value in change.items():
                    setattr(opt, name, value)
                    assert getattr(opt, name) == opt.param_groups[0][name] if 'clip' not in name else True
            update(jnp.asarray(slope))
            path.append(float(w.value))
        return path

    plain = run({}, False)
    for name, value in assigned.items():
        needed = {'weight_decay': 0.4} if name == 'decoupled_weight_decay' else {}
        eager, compiled = run({**needed, name: value}, False), run({**needed, name: value}, True)
        np.testing.assert_allclose(eager, compiled, rtol=1e-9)
        assert eager[0] == plain[0]
        assert abs(eager[1] - (run(needed, False) if needed else plain)[1]) > 1e-6, name


def test_a_change_of_memory_is_refused() -> None:
    opt = bo.SGD(0.1)
    w = one_weight(opt)
    with pytest.raises(ValueError, match=r"{'momentum': 0\.9} cannot be .* would begin as \['momentum_buffer'\]"):
        opt.momentum = 0.9
    assert opt.momentum == 0.0
    with pytest.raises(ValueError, match='Invalid weight_decay'):
        opt.weight_decay = -1.0
    with pytest.raises(ValueError, match='Invalid nesterov=True with momentum'):
        opt.nesterov = True
    with pytest.raises(KeyError, match='is no option'):
        opt.param_groups[0]['eps'] = 1.0
    assert moved(opt, w) == 0.1
    for other, name, value in [
        (bo.Adagrad(0.1), 'initial_accumulator_value', 0.5),
        (bo.Adafactor(0.1), 'factored', False),
        (bo.Lamb(0.1), 'decoupled_weight_decay', True),
    ]:
        one_weight(other)
        with pytest.raises(ValueError, match=name):
            setattr(other, name, value)
    bo.SGD(0.1).momentum = 0.5  # before registration there is nothing to change


def test_an_optimizer_is_not_copied() -> None:
    import copy

    with pytest.raises(TypeError, match='cannot be copied'):
        copy.deepcopy(bo.SGD(0.1))


# groups


def test_groups_have_their_own_options_and_one_schedule() -> None:
    schedule = bo.StepLR(0.1, 1, 0.5)
    opt = bo.SGD(schedule, momentum=0.5)
    a, b, c = (brainstate.ParamState(jnp.asarray(1.0)) for _ in range(3))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, lr=1.0, momentum=0.0, weight_decay=0.5)
    opt.add_param_group({'c': c}, lr_scale=3.0)
    ones = {'a': jnp.asarray(1.0), 'b': jnp.asarray(1.0), 'c': jnp.asarray(1.0)}
    opt.update(ones)
    np.testing.assert_allclose([a.value, b.value, c.value], [0.9, -0.5, 0.7])
    schedule.step()
    opt.update(ones)
    np.testing.assert_allclose([a.value, b.value, c.value], [0.9 - 0.05 * 1.5, -0.5 - 0.5 * 0.75, 0.7 - 0.15 * 1.5])
    assert opt.get_last_lr() == [0.05, 0.5, pytest.approx(0.15)]
    assert [g['momentum'] for g in opt.param_groups] == [0.5, 0.0, 0.5]
    opt.momentum = 0.25  # of those that have none of their own
    assert [g['momentum'] for g in opt.param_groups] == [0.25, 0.0, 0.25]
    opt.param_groups[1]['weight_decay'] = 0.0
    opt.param_groups[2]['lr'].value = 1.0
    before = [float(x.value) for x in (a, b, c)]
    opt.update({'a': jnp.asarray(0.0), 'b': jnp.asarray(1.0), 'c': jnp.asarray(1.0)})
    np.testing.assert_allclose(float(b.value) - before[1], -0.5)
    np.testing.assert_allclose(float(c.value) - before[2], -(1 + 0.25 * 1.5))


def test_the_rate_set_is_the_rate_of_the_first_group_and_moves_the_others_in_proportion() -> None:
    opt = bo.SGD(bo.StepLR(0.1, 1, 0.5))
    a, b = (brainstate.ParamState(jnp.asarray(0.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, lr=0.4)
    opt.param_groups[0]['lr'] = 0.2
    assert opt.get_last_lr() == [0.2, 0.4]
    opt.current_lr = 0.1
    assert opt.get_last_lr() == [0.1, 0.2]
    opt.lr_apply(lambda lr: 3 * lr)
    assert opt.get_last_lr() == [pytest.approx(0.3), pytest.approx(0.6)]
    opt.param_groups[0]['lr_scale'] = 0.0
    with pytest.raises(ValueError, match='lr_scale of 0'):
        opt.lr = 0.1


def test_a_list_of_base_rates_serves_the_groups_in_order() -> None:
    opt = bo.SGD(bo.StepLR([0.1, 0.2], 1, 0.5))
    a, b = (brainstate.ParamState(jnp.asarray(0.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b})
    opt.lr.step()
    opt.update({'a': jnp.asarray(1.0), 'b': jnp.asarray(1.0)})
    np.testing.assert_allclose([a.value, b.value], [-0.05, -0.1])
    assert opt.lr.current_lrs.value == opt.get_last_lr() == [0.05, 0.1]


def test_param_groups_read_as_in_torch_and_braintools() -> None:
    opt = bo.Adam(0.1)
    one_weight(opt)
    (group,) = opt.param_groups
    assert group['lr'].value == 0.1
    assert {'params', 'lr', 'weight_decay', 'betas'} <= set(group)
    group['lr'] = 0.2
    assert opt.current_lr == float(opt.lr) == group['lr'].value == 0.2
    assert 'betas=(0.9, 0.999)' in repr(group)
    assert repr(opt).startswith('Adam(lr=ConstantLR(')
    with pytest.raises(TypeError, match='cannot be deleted'):
        del group['lr']
    with pytest.raises(KeyError, match='fixed'):
        group['params'] = {}


# the learning rate


def test_a_callable_follows_the_update_count() -> None:
    opt = bo.SGD(optax.linear_schedule(1.0, 0.0, 4))
    w = one_weight(opt)
    for expected in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0):
        assert opt.current_lr == expected
        assert moved(opt, w) == pytest.approx(expected)
    with pytest.raises(TypeError, match='do not step it'):
        opt.lr.step()
    with pytest.raises(ValueError, match='one optimizer'):
        bo.SGD(opt.lr)
    with pytest.raises(ValueError, match='lr_scale'):
        opt.add_param_group({'v': brainstate.ParamState(jnp.zeros(1))}, lr=0.1)


def test_a_schedules_own_function_follows_the_update_count() -> None:
    opt = bo.SGD(bo.StepLR(1.0, 2, 0.5).lr_at)
    w = one_weight(opt)
    assert [moved(opt, w) for _ in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_a_rate_set_by_hand_rescales_the_schedule() -> None:
    schedule = bo.StepLR(1.0, 1, 0.5)
    opt = bo.SGD(schedule)
    w = one_weight(opt)
    opt.lr = 0.25
    assert opt.current_lr == float(opt.lr) == schedule.current_lrs.value[0] == moved(opt, w) == 0.25
    schedule.step()
    assert opt.current_lr == moved(opt, w) == 0.125
    brainstate.transform.jit(lambda rate: setattr(opt, 'lr', rate))(0.5)
    assert opt.current_lr == moved(opt, w) == 0.5
    schedule.step()
    assert opt.current_lr == moved(opt, w) == 0.25
    for wrong in (-1.0, NAN):
        with pytest.raises(ValueError, match='Invalid lr'):
            opt.lr = wrong
    assert opt.current_lr == 0.25


def test_a_rate_set_where_the_schedule_is_zero_holds_until_it_is_not() -> None:
    opt = bo.SGD(bo.WarmupScheduler(1.0, 4))
    w = one_weight(opt)
    opt.lr = 0.5
    assert opt.current_lr == moved(opt, w) == 0.5
    opt.lr.step()
    assert opt.current_lr == moved(opt, w) == 0.25
    opt.lr = 0.0
    assert moved(opt, w) == 0.0


def test_one_schedule_serves_two_optimizers() -> None:
    schedule = bo.StepLR(1.0, 1, 0.5)
    opts = [bo.SGD(schedule), bo.SGD(schedule)]
    weights = [one_weight(opt) for opt in opts]
    schedule.step()
    assert [opt.current_lr for opt in opts] == [moved(o, w) for o, w in zip(opts, weights, strict=True)] == [0.5, 0.5]


def test_the_rest_of_the_schedulers_surface() -> None:
    schedule = bo.StepLR(0.1, 2, 0.5, last_epoch=-1)
    assert schedule.get_lr() == schedule.get_last_lr() == [0.1]
    assert schedule() == 0.1
    assert schedule(4) == pytest.approx(0.025)
    schedule.step_epoch()
    schedule.step(epoch=4)
    assert int(schedule.last_epoch.value) == 4
    assert schedule.get_lr() == [pytest.approx(0.025)]
    schedule.apply(lambda lr: lr * 2)
    restored = bo.StepLR(0.1, 2, 0.5)
    restored.load_state_dict(schedule.state_dict())
    assert restored.get_lr() == schedule.get_lr() == [pytest.approx(0.05)]
    opt = bo.SGD(1.0)
    schedule.attach_optimizer(opt)
    assert opt.lr is opt.lr_scheduler is schedule
    with pytest.raises(TypeError, match='OptaxOptimizer'):
        schedule.attach_optimizer('x')
    with pytest.raises(ValueError, match='gamma of a schedule is fixed'):
        schedule.gamma = 0.9
    with pytest.raises(TypeError, match='Invalid epoch'):
        schedule.step(epoch='now')
    assert repr(schedule) == 'StepLR(0.1, step_size=2, gamma=0.5; epoch 4, lr 0.05)'


def test_unique_state_manager() -> None:
    a, b = (brainstate.ParamState(jnp.asarray(float(i))) for i in range(2))
    manager = bo.UniqueStateManager()
    assert manager.make_unique({}) == manager.to_pytree() == manager.to_pytree_value() == {}
    manager.make_unique({'layer': {'w': a, 'tied': a}, 'list': [b]})
    assert len(manager) == manager.num_unique_states == 2
    assert manager.to_pytree() == {'layer': {'w': a}, 'list': {0: b}}
    assert manager.to_dict() == {'layer.w': a, 'list.0': b}
    assert manager.to_dict_value() == {'layer.w': a.value, 'list.0': b.value}
    assert manager.get_flattened() == [(('layer', 'w'), a), (('list', 0), b)]
    assert manager.get_state_by_path(('layer', 'w')) is a
    assert manager.get_state_by_path(('nothing',)) is None
    assert manager.update_state(('layer', 'w'), b)
    assert not manager.update_state(('nothing',), b)
    assert manager.merge_with({'more': a}).num_unique_states == 3
    manager.clear()
    assert len(manager) == 0


# options that schedules drive


@pytest.mark.parametrize('where', ['eager', 'jit'])
def test_any_number_may_be_scheduled(where: str) -> None:
    decay = bo.StepLR(0.5, 1, 0.5)
    opt = bo.SGD(0.1, weight_decay=decay, grad_clip_value=optax.linear_schedule(3.0, 1.0, 2))
    a, b = (brainstate.ParamState(jnp.asarray(1.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b}, weight_decay=bo.ConstantLR(0.0, 1.0), momentum=bo.StepLR(0.5, 1, 0.0))
    update = lambda g: opt.update({'a': g, 'b': g})  # noqa: E731
    update = brainstate.transform.jit(update) if where == 'jit' else update
    expected = np.array([1.0, 1.0])
    buffer = 0.0
    for clip, wd, momentum in [(3.0, 0.5, 0.5), (2.0, 0.25, 0.0), (1.0, 0.125, 0.0)]:
        assert opt.weight_decay == opt.param_groups[0]['weight_decay'] == wd
        assert (opt.grad_clip_value, opt.param_groups[1]['weight_decay']) == (clip, 0.0)
        assert opt.param_groups[1]['momentum'] == momentum
        buffer = momentum * buffer + clip
        expected -= 0.1 * np.array([clip + wd * expected[0], buffer])
        update(jnp.asarray(10.0))
        np.testing.assert_allclose([a.value, b.value], expected, rtol=1e-12)
        decay.step()
        for schedule in opt.settings.schedules['1'].values():
            schedule.step()
    assert ('settings', 'schedules', 'defaults', 'weight_decay', 'last_epoch') in brainstate.graph.states(opt)
    opt.weight_decay = 0.0  # a number takes the schedule's place
    opt.grad_clip_value = None
    update(jnp.asarray(10.0))
    np.testing.assert_allclose(a.value, expected[0] - 1.0, rtol=1e-12)
    opt.momentum = bo.ConstantLR(0.0, 1.0)  # and a schedule a number's
    with pytest.raises(TypeError, match='Invalid nesterov'):
        opt.nesterov = bo.ConstantLR(0.0)
    with pytest.raises(TypeError, match='Must be a pair'):
        opt.betas = bo.ConstantLR(0.5) if hasattr(opt, 'betas') else bo.Adam(betas=bo.ConstantLR(0.5))


@pytest.mark.parametrize(('name', 'cls'), [('SGD', bo.SGD), ('Adam', bo.Adam), ('RMSprop', bo.RMSprop)])
def test_momentum_is_cycled_as_in_torch(name: str, cls: Any) -> None:
    torch = pytest.importorskip('torch')
    common = {'momentum': 0.9} if name != 'Adam' else {}
    parameter = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    theirs = getattr(torch.optim, name)([parameter], lr=0.1, **common)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.2, 12, cycle_momentum=True)
    schedule = bo.schedulers.OneCycleLR(0.2, 12, cycle_momentum=True)
    ours = cls(schedule, **common)
    w = one_weight(ours, 1.0)
    update = brainstate.transform.jit(lambda g: (ours.update({'w': g}), schedule.step())[0])
    for t in range(12):
        group = theirs.param_groups[0]
        momentum = ours.betas[0] if name == 'Adam' else ours.momentum
        assert momentum == pytest.approx(group['betas'][0] if name == 'Adam' else group['momentum'], rel=1e-12)
        slope = np.sin(t + 1.0)
        parameter.grad = torch.tensor(slope, dtype=torch.float64)
        theirs.step()
        cycle.step()
        update(jnp.asarray(slope))
        np.testing.assert_allclose(w.value, parameter.item(), rtol=1e-12)


def test_momentum_is_cycled_only_where_there_is_one() -> None:
    class Plain(bo.Optimizer):
        def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
            return g, {}

    with pytest.raises(ValueError, match='neither momentum nor betas'):
        Plain(bo.schedulers.OneCycleLR(0.2, 12, cycle_momentum=True))


def test_a_group_takes_an_option_out_of_a_schedule_in_compiled_functions_too() -> None:
    opt = bo.SGD(0.1, weight_decay=lambda count: 1.0 + 0 * count)
    a, b = (brainstate.ParamState(jnp.asarray(1.0)) for _ in range(2))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b})
    zero = {'a': jnp.asarray(0.0), 'b': jnp.asarray(0.0)}
    update = brainstate.transform.jit(lambda: opt.update(zero))
    for run in (lambda: opt.update(zero), update):
        run()
    b.value = jnp.asarray(1.0)
    opt.param_groups[1]['weight_decay'] = 5.0
    for expected, run in ((0.5, lambda: opt.update(zero)), (0.25, update)):
        run()
        np.testing.assert_allclose(b.value, expected)


def test_cycled_momentum_needs_a_momentum() -> None:
    with pytest.raises(ValueError, match='momentum above 0'):
        bo.SGD(bo.OneCycleLR(0.2, 12, cycle_momentum=True))


def test_a_plateau_lists_the_rates_of_groups() -> None:
    opt = bo.SGD(bo.ReduceLROnPlateau([0.1, 1.0], factor=0.1, patience=0, min_lr=0.01))
    a, b, c = (brainstate.ParamState(jnp.asarray(0.0)) for _ in range(3))
    opt.register_trainable_weights({'a': a})
    opt.add_param_group({'b': b})
    with pytest.raises(ValueError, match='list the base rates'):
        opt.add_param_group({'c': c}, lr=1.0)
    for _ in range(6):
        opt.lr.step(1.0)
    assert opt.get_last_lr() == pytest.approx([0.01, 0.01])


def test_arguments_that_are_no_options_are_fixed() -> None:
    opt = bo.Lookahead(optax.sgd(0.1))
    for name, value in (('alpha', 0.1), ('sync_period', 2), ('base_optimizer', None)):
        with pytest.raises(ValueError, match=f'{name} of Lookahead is fixed'):
            setattr(opt, name, value)


@thinned([bo.SGD, bo.Momentum, bo.Adam, bo.RMSprop, bo.Lars, bo.Rprop], 'optimizer')
def test_an_optimizer_may_live_inside_a_transformation(optimizer: Any) -> None:
    def final(lr: Any) -> Any:
        w = brainstate.ParamState(jnp.asarray(1.0))
        opt = optimizer(lr=lr).register_trainable_weights({'w': w})
        opt.update({'w': jnp.asarray(0.5)})
        if 'momentum' in inspect.signature(optimizer).parameters and optimizer is not bo.SGD:
            opt.momentum = 0.5
        opt.update({'w': jnp.asarray(0.5)})
        return w.value

    inside = brainstate.transform.jit(final)(0.1)
    if optimizer is not bo.RMSprop:  # which would grow a memory outside
        np.testing.assert_allclose(inside, final(0.1), rtol=1e-9)
    assert np.isfinite(brainstate.transform.grad(final)(0.1))


def test_every_optimizer_takes_the_loss() -> None:
    for opt in (bo.Adam(0.1), bo.OptaxOptimizer(lr=0.1), bo.LBFGS()):
        w = one_weight(opt, 1.0)
        opt.step({'w': jnp.asarray(0.5)}, value=jnp.asarray(1.0), value_fn=lambda params: params['w'] ** 2)
        assert w.value != 1.0
    with pytest.raises(TypeError, match='values'):
        bo.Adam(0.1).update({}, values=1.0)
