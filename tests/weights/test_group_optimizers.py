"""Groups that have their own rate, schedule or algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import assert_same
from compiling import compilations
from helpers import registered, thinned
from tables.optimizers import ROWS, Row

import braintools_optim as bo
from braintools_optim import constraints

START = {'w': np.array([[1.0, -2.0], [0.5, 3.0]]), 'delay': np.array([2.0, 4.0, 1.0])}
TARGET = {'w': np.zeros((2, 2)), 'delay': np.array([3.0, 3.0, 3.0])}


def slopes(states: Any, t: int) -> dict[str, Any]:
    """Gradients that do not depend on the order of the weights."""
    return {
        key: jnp.asarray(np.random.default_rng([t, *map(ord, key)]).normal(size=state.value.shape))
        for key, state in states.items()
    }


# the rate of a group


GIVEN: dict[str, Callable[[Any], bo.SGD]] = {
    'groups=': lambda lr: bo.SGD(1.0, groups={'delay': {'lr': lr}}),
    'groups= with an optimizer': lambda lr: bo.SGD(1.0, groups={'delay': bo.SGD(lr)}),
    'add_param_group': lambda lr: bo.SGD(1.0),
    'add_param_group with an optimizer': lambda lr: bo.SGD(1.0),
    "torch's form": lambda lr: bo.SGD(1.0),
    'assigned': lambda lr: bo.SGD(1.0, groups={'delay': {}}),
}


def with_rate(how: str, lr: Any) -> tuple[bo.SGD, dict[str, brainstate.ParamState]]:
    optimizer = GIVEN[how](lr)
    states = {key: brainstate.ParamState(jnp.asarray(x)) for key, x in START.items()}
    first, second = ({key: state} for key, state in states.items())
    if how == "torch's form":
        optimizer.register_trainable_weights([{'params': first}, {'params': second, 'lr': lr}])
    elif how.startswith('add'):
        optimizer.register_trainable_weights(first)
        if 'optimizer' in how:
            optimizer.add_param_group(second, bo.SGD(lr))
        else:
            optimizer.add_param_group(second, lr=lr)
    else:
        optimizer.register_trainable_weights(states)
    if how == 'assigned':
        optimizer.param_groups[1]['lr'] = lr
    return optimizer, states


@pytest.mark.parametrize('kind', ['number', 'schedule', 'callable'])
@pytest.mark.parametrize('how', GIVEN)
def test_rate_of_a_group_drives_the_group(how: str, kind: str) -> None:
    schedule = bo.StepLR(0.5, step_size=1, gamma=0.5)
    lr: Any = {'number': 0.5, 'schedule': schedule, 'callable': lambda count: 0.5 / (1 + count)}[kind]
    expected = {'number': [0.5, 0.5, 0.5], 'schedule': [0.5, 0.25, 0.125], 'callable': [0.5, 0.25, 0.5 / 3]}[kind]
    optimizer, states = with_rate(how, lr)
    for rate in expected:
        assert optimizer.get_last_lr() == [1.0, pytest.approx(rate)]
        assert float(optimizer.param_groups[1]['lr']) == pytest.approx(rate)
        before = {key: np.array(s.value) for key, s in states.items()}
        optimizer.update({key: jnp.ones_like(s.value) for key, s in states.items()})
        np.testing.assert_allclose(before['delay'] - states['delay'].value, rate)
        np.testing.assert_allclose(before['w'] - states['w'].value, 1.0)
        schedule.step()


def test_schedule_of_the_whole_drives_groups_with_a_number_only() -> None:
    schedule, own = bo.StepLR(1.0, 1, 0.5), bo.StepLR(0.3, 1, 0.1)
    groups: Any = {'a': {'lr': 0.1}, 'b': {'lr': own}, 'c': bo.SGD(0.2), 'd': bo.SGD(schedule)}
    groups['e'] = {'lr': own, 'lr_scale': 2.0}
    optimizer = bo.SGD(schedule, groups=groups)
    registered(optimizer, **dict.fromkeys('wabcde', np.ones(1)))
    assert optimizer.lr_schedulers[:2] == [schedule, own]
    assert len(optimizer.lr_schedulers) == 3
    for s in (schedule, own):
        s.step()
    assert optimizer.get_last_lr() == pytest.approx([0.5, 0.05, 0.03, 0.2, 0.5, 0.06])
    optimizer.lr = 0.4  # of the schedule of the first group
    assert optimizer.get_last_lr() == pytest.approx([0.4, 0.04, 0.03, 0.2, 0.4, 0.06])
    for i, value in ((1, 0.7), (2, 0.6), (3, 0.5)):
        optimizer.param_groups[i]['lr'] = value
    assert optimizer.get_last_lr() == pytest.approx([0.4, 0.7, 0.6, 0.5, 0.4, 1.2])
    optimizer.lr = bo.StepLR(2.0, 1, 0.5)
    assert optimizer.get_last_lr() == pytest.approx([2.0, 1.75, 0.6, 0.5, 0.4, 1.2])


@pytest.mark.parametrize('factor', [0.1, 0.5])
def test_plateau_reduces_each_group_from_its_own_rate_as_torch_does(factor: float) -> None:
    torch = pytest.importorskip('torch')
    options = {'factor': factor, 'patience': 1, 'min_lr': 1e-3, 'eps': 1e-3}
    optimizer = bo.SGD(bo.ReduceLROnPlateau(0.1, **options), groups={'b': {'lr': 0.02}, 'c': {'lr': 3.0}})
    registered(optimizer, a=np.ones(1), b=np.ones(1), c=np.ones(1))
    rates = [{'params': [torch.nn.Parameter(torch.ones(1))], 'lr': lr} for lr in (0.1, 0.02, 3.0)]
    theirs = torch.optim.SGD(rates)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, **options)
    for metric in [3.0, 2.0, *[2.0] * 12]:
        optimizer.lr.step(metric)
        schedule.step(metric)
        np.testing.assert_allclose(optimizer.get_last_lr(), [g['lr'] for g in theirs.param_groups], rtol=1e-12)
    again = bo.SGD(bo.ReduceLROnPlateau(0.1, **options), groups={'b': {'lr': 0.02}, 'c': {'lr': 3.0}})
    registered(again, a=np.ones(1), b=np.ones(1), c=np.ones(1))
    again.load_state_dict(optimizer.state_dict())
    assert again.get_last_lr() == optimizer.get_last_lr()


def test_schedules_that_no_other_rate_can_follow_refuse_it() -> None:
    for schedule in (bo.PiecewiseConstantSchedule(), lambda count: 0.1):
        optimizer = bo.SGD(schedule, groups={'delay': {'lr': 0.1}})
        with pytest.raises(ValueError, match=r'cannot have an lr of its own.*lr_scale'):
            registered(optimizer, **START)
        registered(bo.SGD(0.1, groups={'delay': {'lr': schedule}}), **START)
    plateau = bo.ReduceLROnPlateau(0.1)
    registered(bo.SGD(plateau, groups={'delay': {'lr': 0.2}}), **START)
    with pytest.raises(ValueError, match=r'Invalid lr=0.3 of group 1. Must be 0.2'):
        registered(bo.SGD(plateau, groups={'delay': {'lr': 0.3}}), **START)
    cycle = bo.OneCycleLR(0.1, total_steps=9, cycle_momentum=True)
    optimizer = bo.Adam(0.1, groups={'delay': bo.Adagrad(0.1), 'w': {'lr': cycle}})
    registered(optimizer, **START)
    with pytest.raises(ValueError, match='has neither momentum nor betas'):
        optimizer.param_groups[1]['lr'] = cycle


# the algorithm of a group


def loss_of(values: Any) -> Any:
    """A loss that couples the synapses and the delays."""
    w, delay = values['w'], values['delay']
    return jnp.sum((w - TARGET['w']) ** 2) + jnp.sum((delay - TARGET['delay']) ** 4) + w.sum() * delay.sum()


def two_in_one() -> bo.AdamW:
    return bo.AdamW(
        lr=bo.OneCycleLR(1e-2, total_steps=20),
        grad_clip_norm=1.0,
        groups={'delay': bo.SGD(lr=bo.CosineAnnealingLR(1.0, T_max=20), momentum=0.9)},
    )


def train_in_one(how: str) -> dict[str, np.ndarray]:
    optimizer = two_in_one()
    states = registered(optimizer, **START)

    def step() -> None:
        optimizer.update(brainstate.transform.grad(lambda: loss_of({k: s.value for k, s in states.items()}), states)())
        for schedule in optimizer.lr_schedulers:
            schedule.step()

    if how == 'for_loop':
        brainstate.transform.for_loop(lambda _: step(), jnp.arange(12))
    elif how == 'resumed':
        for _ in range(5):
            step()
        saved = optimizer.state_dict(), {key: np.array(s.value) for key, s in states.items()}
        optimizer = two_in_one()
        states = registered(optimizer, **saved[1])
        optimizer.load_state_dict(saved[0])
        for _ in range(7):
            step()
    elif how == 'eager':
        for _ in range(12):
            step()
    else:
        run = {'jit': brainstate.transform.jit, 'donating jit': bo.jit}[how](step)
        run()
        with compilations(0):
            for _ in range(11):
                run()
    return {key: np.array(s.value) for key, s in states.items()}


@pytest.fixture(scope='module')
def by_torch() -> dict[str, np.ndarray]:
    """The same training by two optimizers and two schedules of torch, with one norm."""
    torch = pytest.importorskip('torch')
    w, delay = (torch.nn.Parameter(torch.tensor(START[key])) for key in START)
    adam, sgd = torch.optim.AdamW([w], lr=1e-2), torch.optim.SGD([delay], lr=1.0, momentum=0.9)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=1e-2, total_steps=20, cycle_momentum=False),
        torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=20),
    ]
    for _ in range(12):
        loss = ((w - torch.tensor(TARGET['w'])) ** 2).sum() + ((delay - torch.tensor(TARGET['delay'])) ** 4).sum()
        loss = loss + w.sum() * delay.sum()
        for optimizer in (adam, sgd):
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w, delay], 1.0)
        for part in (adam, sgd, *schedules):
            part.step()
    return {'w': w.detach().numpy(), 'delay': delay.detach().numpy()}


@pytest.mark.parametrize('how', ['eager', 'jit', 'donating jit', 'for_loop', 'resumed'])
def test_two_algorithms_in_one_object_equal_two_of_torch(by_torch: dict[str, np.ndarray], how: str) -> None:
    """Synapses by AdamW with one cycle, delays by SGD with cosine annealing and 100 times the rate, one norm."""
    for key, w in train_in_one(how).items():
        np.testing.assert_allclose(w, by_torch[key], rtol=1e-12, err_msg=key)


PER_GROUP = [row.optimizer for row in ROWS if row.optimizer.works_per_group and row.optimizer is not bo.Muon]
REQUIRED = {row.optimizer: row.required for row in ROWS}
WHOLE = [row for row in ROWS if not row.optimizer.works_per_group]


@thinned(PER_GROUP, 'optimizer', 3)
def test_group_with_an_algorithm_equals_the_optimizer_alone(optimizer: Any) -> None:
    """In both places: the group of AdamW, and the optimizer with a group of Momentum."""

    def make(**more: Any) -> Any:
        return optimizer(**REQUIRED[optimizer](), **more)

    inside = bo.AdamW(0.1, groups={'delay': make()})
    outside = make(groups={'delay': bo.Momentum(0.1)})
    alone = {'adamw': bo.AdamW(0.1), 'momentum': bo.Momentum(0.1), 'w': make(), 'delay': make()}
    ours = [registered(optimizer, **START) for optimizer in (inside, outside)]
    theirs = {
        name: registered(alone[name], **{key: START[key]})
        for name, key in zip(alone, ('w', 'delay', 'w', 'delay'), strict=True)
    }
    for t in range(3):
        for each, states in zip((inside, outside, *alone.values()), (*ours, *theirs.values()), strict=True):
            each.update(slopes(states, t))
    for mine, key, name in ((0, 'w', 'adamw'), (0, 'delay', 'delay'), (1, 'w', 'w'), (1, 'delay', 'momentum')):
        np.testing.assert_allclose(ours[mine][key].value, theirs[name][key].value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize('row', WHOLE, ids=lambda row: row.optimizer.__name__)
def test_whole_tree_optimizers_say_where_they_may_not_stand(row: Row) -> None:
    name = row.optimizer.__name__
    optimizers = [bo.Adam(groups={'delay': row.optimizer(**row.required())})]
    if row.optimizer is not bo.SAM:  # SAM has the groups of its base optimizer
        optimizers.append(row.optimizer(**row.required(), groups={'delay': bo.Adam()}))
    for optimizer in optimizers:
        with pytest.raises(ValueError, match=f'{name} needs all weights together'):
            registered(optimizer, **START)
        assert optimizer.param_groups == []


def test_options_of_the_whole_are_refused_inside() -> None:
    for options in (
        {'grad_clip_norm': 1.0}, {'grad_clip_value': 1.0}, {'on_nonfinite': 'skip'}, {'metrics': True},
        {'loss_scale': 8.0}, {'loss_scale': bo.DynamicLossScale()}, {'groups': {'a': {}}}, {'norm_unit': 'own'},
        {'master_weights': True}, {'state_dtype': 'float32'}, {'rounding': 'stochastic'},
        {'stages': [bo.Stage(lambda leaf: leaf)]}, {'grad_clip_norm': bo.StepLR(1.0)},
    ):  # fmt: skip
        (option,) = options
        optimizer = bo.Adam(groups={'delay': bo.SGD(**options)})
        with pytest.raises(ValueError, match=f'(?s)Invalid {option}=.* of the SGD of a group.* give it to Adam'):
            registered(optimizer, **START)
        assert optimizer.opt_state is None


def test_optimizer_of_a_group_is_fixed_and_names_the_group() -> None:
    inner = bo.SGD(0.1, momentum=0.5)
    optimizer = bo.Adam(groups={'delay': inner})
    registered(optimizer, **START)
    for change in (
        lambda: setattr(inner, 'momentum', 0.7),
        lambda: setattr(inner, 'lr', bo.StepLR()),
        lambda: inner.register_trainable_weights({'x': brainstate.ParamState(jnp.ones(1))}),
        lambda: inner.freeze('delay') or inner.register_trainable_weights({'x': brainstate.ParamState(jnp.ones(1))}),
    ):
        with pytest.raises(ValueError, match=r'This SGD is the optimizer of a group.*param_groups'):
            change()
    assert inner.opt_state is None
    inner.lr = 0.3  # the rate of the schedule, which the group follows
    assert optimizer.get_last_lr() == pytest.approx([1e-3, 0.3])
    optimizer.param_groups[1]['momentum'] = 0.9
    assert optimizer.param_groups[1]['momentum'] == 0.9
    with pytest.raises(KeyError, match="'betas' is no option"):
        optimizer.param_groups[1]['betas'] = (0.5, 0.5)
    used = bo.SGD()
    registered(used, x=np.ones(1))
    with pytest.raises(ValueError, match='Must not have registered weights'):
        optimizer.add_param_group({'late': brainstate.ParamState(jnp.ones(1))}, used)
    with pytest.raises(TypeError, match=r'Invalid options .*momentum.* beside an optimizer'):
        optimizer.add_param_group({'late': brainstate.ParamState(jnp.ones(1))}, bo.SGD(), momentum=0.5)
    with pytest.raises(TypeError, match='Must be an unregistered Optimizer'):
        optimizer.add_param_group({'late': brainstate.ParamState(jnp.ones(1))}, 0.1)


def test_options_of_stages_reach_groups_with_their_own_algorithm() -> None:
    """What concerns the loss, such as maximize, holds for all groups unless the group's optimizer says otherwise."""
    optimizer = bo.SGD(0.1, maximize=True, groups={'delay': bo.Momentum(0.1), 'other': bo.SGD(0.1, cautious=True)})
    states = registered(optimizer, **START, other=np.ones(2))
    optimizer.update({key: jnp.ones_like(s.value) for key, s in states.items()})
    for key, before in {**START, 'other': np.ones(2)}.items():
        np.testing.assert_allclose(states[key].value, before + 0.1)
    optimizer.maximize = False
    optimizer.cautious = True
    assert [(g['maximize'], g['cautious']) for g in optimizer.param_groups] == [(False, True)] * 3
    optimizer.weight_decay = 0.5
    assert [g['weight_decay'] for g in optimizer.param_groups] == [0.5, 0.0, 0.0]


def test_schedules_of_options_inside_act_and_momentum_is_cycled() -> None:
    decay = bo.StepLR(0.5, 1, 0.5)
    cycle = bo.OneCycleLR(0.1, total_steps=10, cycle_momentum=True)
    optimizer = bo.Adam(groups={'w': bo.AdamW(0.1, weight_decay=decay), 'delay': bo.Momentum(cycle)})
    registered(optimizer, **START)
    decay.step()
    cycle.step(3)
    assert optimizer.param_groups[1]['weight_decay'] == 0.25
    assert optimizer.param_groups[2]['momentum'] == pytest.approx(float(cycle.momentum_at(3)))
    assert optimizer.param_groups[0]['betas'] == pytest.approx((0.9, 0.999))


def test_evaluation_weights_of_some_groups() -> None:
    optimizer = bo.SGD(0.1, groups={'delay': bo.ScheduleFreeSGD(0.1)})
    states, alone = registered(optimizer, **START), bo.ScheduleFreeSGD(0.1)
    same = registered(alone, delay=START['delay'])
    for t in range(3):
        optimizer.update(slopes(states, t))
        alone.update(slopes(same, t))
    trained = np.array(states['w'].value)
    with optimizer.eval_weights(), alone.eval_weights():
        np.testing.assert_array_equal(states['w'].value, trained)
        np.testing.assert_allclose(states['delay'].value, same['delay'].value, rtol=1e-12)
    with (
        pytest.raises(TypeError, match='has no evaluation weights'),
        bo.SGD(groups={}).register_trainable_weights({'w': brainstate.ParamState(jnp.ones(1))}).eval_weights(),
    ):
        pass


def test_checkpoint_names_the_algorithm() -> None:
    optimizer = two_in_one()
    states = registered(optimizer, **START)
    optimizer.update(slopes(states, 0))
    saved = optimizer.state_dict()
    other = bo.AdamW(bo.OneCycleLR(1e-2, total_steps=20), grad_clip_norm=1.0,
                     groups={'delay': bo.RMSprop(bo.CosineAnnealingLR(1.0, T_max=20))})  # fmt: skip
    registered(other, **START)
    with pytest.raises(ValueError, match=r"param_groups\.1\.algorithm: 'SGD' there, 'RMSprop' here"):
        other.load_state_dict(saved)
    shorter = bo.AdamW(bo.OneCycleLR(1e-2, total_steps=20), grad_clip_norm=1.0,
                       groups={'delay': bo.SGD(bo.CosineAnnealingLR(1.0, T_max=30), momentum=0.9)})  # fmt: skip
    registered(shorter, **START)
    with pytest.raises(ValueError, match=r'1\.lr\.T_max: 20 there, 30 here'):
        shorter.load_state_dict(saved)
    for refuse in (lambda: optimizer.torch_state_dict(['w', 'delay']), lambda: optimizer.load_optax_state(())):
        with pytest.raises(ValueError, match='groups of SGD'):
            refuse()


def test_summary_shows_algorithm_schedule_and_present_rate() -> None:
    optimizer = bo.AdamW(bo.WarmupScheduler(0.01, warmup_epochs=5), weight_decay=0.1,
                         groups={'delay': bo.SGD(bo.StepLR(0.5), momentum=0.9), 'tau': {'lr': 0.02}})  # fmt: skip
    registered(optimizer, **START, tau=np.ones(1))
    optimizer.lr.step()
    rates = [f'{rate:g}' for rate in optimizer.get_last_lr()]
    _, header, *rows = str(optimizer).splitlines()
    assert header.split() == ['group', 'algorithm', 'lr', 'weights', 'parameters', 'own', 'options']
    assert [row.split() for row in rows] == [
        ['0', rates[0], 'w', '4'],
        ['1', 'SGD', '0.5', 'delay', '3', 'lr=StepLR,', 'momentum=0.9'],
        ['2', rates[2], 'tau', '1', 'lr=0.02'],
    ]
    assert repr(optimizer.param_groups[1]).startswith('ParamGroup(SGD: delay; lr=0.5, ')


# predicates and treatments


def test_groups_by_unit() -> None:
    tau, rest, syn = (brainstate.ParamState(x) for x in (2.0 * u.second, -60.0 * u.mV, jnp.ones(2)))
    states = {'tau': tau, 'rest': rest, 'syn': syn, 'delay': brainstate.ParamState(jnp.ones(2) * u.ms)}
    groups = {'delay': {'lr': 0.4}, u.ms: {'lr': 0.3}, float: {'lr': 0.2}, u.UNITLESS: {}}
    with pytest.warns(UserWarning, match=r'No weight is chosen by groups\[.*There are: rest \(mV\)'):
        optimizer = bo.SGD(0.1, groups=groups, norm_unit='own').register_trainable_weights(states)
    assert [optimizer.group_names(i) for i in range(4)] == [['rest'], ['delay'], ['tau'], ['syn']]
    assert optimizer.get_last_lr() == [0.1, 0.4, 0.3, 0.2]
    bounded = bo.SGD(1.0, no_decay=u.mV, constraints={u.ms: constraints.box(1 * u.second)})
    bounded.register_trainable_weights(states)
    bounded.freeze(float)
    bounded.update({'tau': 5.0 * u.second, 'rest': 1.0 * u.mV, 'delay': jnp.ones(2) * u.ms}, partial=True)
    assert (tau.value, rest.value) == (1.0 * u.second, -61.0 * u.mV)
    for wrong in (int, str, 3, bo.SGD):
        with pytest.raises(TypeError, match=r'Invalid predicate .* Must be a pattern for names, a unit, float'):
            bo.SGD(groups={wrong: {}})


def test_treatments_in_a_group_equal_those_of_the_optimizer() -> None:
    box = constraints.box(0.9, 1.1)
    whole = bo.SGD(0.1, weight_decay=0.5, no_decay='delay', constraints={'tau': box}, groups={'delay': {}, 'tau': {}})
    whole.freeze('w')
    inside = bo.SGD(
        0.1,
        weight_decay=0.5,
        groups={'w': {'freeze': True}, 'delay': {'no_decay': True, 'freeze': False}, 'tau': {'constraints': box}},
    )
    inner = bo.SGD(0.1, groups={
        'w': {'freeze': 'w'},
        'delay': {'no_decay': 'delay', 'weight_decay': 0.5},
        'tau': bo.SGD(0.1, weight_decay=0.5, constraints={'*': box}),
    })  # fmt: skip
    found = []
    for optimizer in (whole, inside, inner):
        states = registered(optimizer, **START, tau=np.ones(2))
        for t in range(3):
            optimizer.update(slopes(states, t))
        found.append({key: np.array(s.value) for key, s in states.items()})
    for key, x in found[0].items():
        np.testing.assert_allclose(found[1][key], x, rtol=1e-12, err_msg=key)
        np.testing.assert_allclose(found[2][key], x, rtol=1e-12, err_msg=key)
    np.testing.assert_array_equal(found[0]['w'], START['w'])
    inside.unfreeze('w')
    states = inside.param_states.to_dict()
    inside.update(slopes(states, 9))
    assert not np.array_equal(states['w'].value, START['w'])
    with pytest.raises(TypeError, match='Invalid constraint 3'):
        registered(bo.SGD(groups={'w': {'constraints': 3}}), **START)
    inner_box = {'w': {'constraints': constraints.box(None, 0.5)}}
    both = bo.SGD(0.1, constraints={'w': constraints.box(0.0)}, groups=inner_box)
    states = registered(both, w=np.array([-3.0, 0.2, 3.0]))
    both.update({'w': jnp.zeros(3)})
    np.testing.assert_allclose(states['w'].value, [0.0, 0.2, 0.5])


# parts of a model


class Net(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = brainstate.nn.Linear(2, 3), brainstate.nn.Linear(3, 1)


def in_parts(net: Net, form: str) -> bo.Adam:
    parts = [part.states(brainstate.ParamState) for part in (net.base, net.head)]
    optimizer = bo.Adam(0.1)
    if form == 'list':
        return optimizer.register_trainable_weights([{'params': parts[0]}, {'params': parts[1], 'lr': 1e-2}])
    optimizer.register_trainable_weights(parts[0])
    optimizer.add_param_group(*([{'params': parts[1], 'lr': 1e-2}] if form == 'dict' else [parts[1]]),
                              **({} if form == 'dict' else {'lr': 1e-2}))  # fmt: skip
    return optimizer


@pytest.mark.parametrize('form', ['list', 'dict', 'arguments'])
def test_parts_of_a_model_keep_unique_stable_names(form: str) -> None:
    net = Net()
    optimizer = in_parts(net, form)
    assert optimizer.weight_names == ['weight.bias', 'weight.weight', '1.weight.bias', '1.weight.weight']
    assert optimizer.get_last_lr() == pytest.approx([0.1, 0.01])
    parts = [part.states(brainstate.ParamState) for part in (net.base, net.head)]
    as_list = [jax.tree.map(jnp.ones_like, {k: s.value for k, s in part.items()}) for part in parts]
    by_name = jax.tree.map(jnp.ones_like, optimizer.param_states.to_pytree_value())
    before = [jax.tree.map(np.array, {k: s.value for k, s in part.items()}) for part in parts]
    for grads in (as_list, tuple(as_list), by_name):
        optimizer.update(grads)
    for part, old, rate in zip(parts, before, (0.1, 0.01), strict=True):
        for key, state in part.items():
            assert_same(state.value, jax.tree.map(lambda x, rate=rate: x - 3 * rate, old[key]), rtol=1e-5)
    again = in_parts(Net(), form)
    again.load_state_dict(optimizer.state_dict())
    assert again.weight_names == optimizer.weight_names
    with pytest.raises(KeyError, match='not registered'):
        optimizer.update([as_list[0]])
    with pytest.raises(KeyError, match=r'missing or None: weight\.bias'):
        optimizer.update([{}, as_list[1]])


def test_list_of_groups_refuses_what_it_cannot_mean() -> None:
    w = brainstate.ParamState(jnp.ones(1))
    with pytest.raises(ValueError, match='beside groups='):
        bo.SGD(groups={'a': {}}).register_trainable_weights([{'params': {'w': w}}])
    with pytest.raises(TypeError, match=r"Unknown options of a group: \['learning_rate'\]"):
        bo.SGD().register_trainable_weights([{'params': {'w': w}, 'learning_rate': 1.0}])
    optimizer = bo.SGD(0.1).register_trainable_weights([{'params': w, 'lr': 0.2}])
    assert optimizer.get_last_lr() == [0.2]
    with pytest.raises(ValueError, match='registered already'):
        optimizer.add_param_group({'params': {'again': w}})
    plain = bo.SGD(0.1).register_trainable_weights({'params': brainstate.ParamState(jnp.ones(1))})
    assert plain.weight_names == ['params']


# rates as numbers


def test_rates_compute_compare_and_format_as_numbers() -> None:
    optimizer = bo.SGD(bo.StepLR(0.1), groups={'delay': {'lr': 0.02}})
    registered(optimizer, **START)
    for rate, value in ((optimizer.lr, 0.1), (optimizer.param_groups[1]['lr'], 0.02)):
        assert (rate + 1, 1 + rate, rate - 1, 1 - rate) == pytest.approx((1 + value, 1 + value, value - 1, 1 - value))
        assert (rate * 2, 2 * rate, rate / 2, 1 / rate) == pytest.approx((2 * value, 2 * value, value / 2, 1 / value))
        assert (rate**2, 2**rate, -rate, abs(rate)) == pytest.approx((value**2, 2**value, -value, value))
        assert (rate < 1, rate <= value, rate > 1, rate >= 1) == (True, True, False, False)
        assert (rate == value, rate != value, rate == 1, value == rate) == (True, False, False, True)
        assert (f'{rate:.3f}', f'{rate:.2e}', round(rate, 1)) == (f'{value:.3f}', f'{value:.2e}', round(value, 1))
        assert rate == rate and rate != 'a' and {rate: 1}[rate] == 1  # noqa: PT018
        assert (float(jnp.asarray(rate)), float(np.asarray(rate))) == pytest.approx((value, value))
        assert float(jnp.ones(()) * rate) == pytest.approx(value)
    assert optimizer.lr > optimizer.param_groups[1]['lr']
    assert optimizer.lr != bo.StepLR(0.1)  # schedules are equal only to themselves
    optimizer.lr *= 2
    assert optimizer.get_last_lr() == pytest.approx([0.2, 0.04])
    for group in optimizer.param_groups:
        group['lr'] *= 0.5
    assert optimizer.get_last_lr() == pytest.approx([0.1, 0.02])
    optimizer.param_groups[1]['lr'] = optimizer.param_groups[0]['lr']
    assert optimizer.get_last_lr() == pytest.approx([0.1, 0.1])
    optimizer.lr = 0.1

    @brainstate.transform.jit
    def double() -> Any:
        for group in optimizer.param_groups:
            group['lr'] *= 2
        return optimizer.param_groups[1]['lr'] + 1

    assert float(double()) == pytest.approx(1.2)
    assert optimizer.get_last_lr() == pytest.approx([0.2, 0.2])


# rates by depth and width


def test_layer_decay_equals_timms_rule() -> None:
    """timm: the rate of layer l of L + 1 is decay ** (L - l); the embedding is layer 0, the head the last."""
    names = ['embed.w', 'blocks.0.w', 'blocks.0.b', 'blocks.1.w', 'blocks.2.w', 'norm', 'head.w']
    states = {name: brainstate.ParamState(jnp.zeros(2)) for name in names}
    optimizer = bo.AdamW(1.0, groups=bo.layer_decay(states, 0.75)).register_trainable_weights(states)
    rates = {name: float(g['lr']) for g in optimizer.param_groups for name in g['params']} | {}
    expected = dict(zip(names, (0.75**4, 0.75**3, 0.75**3, 0.75**2, 0.75, 1.0, 1.0), strict=True))
    assert rates == pytest.approx(expected)
    chosen = bo.layer_decay(states, 0.5, layer_of=lambda name: int(name == 'head.w'))
    assert sorted(own['lr_scale'] for own in chosen.values()) == [0.25, 0.5]
    for wrong in (0.0, 1.5, float('nan')):
        with pytest.raises(ValueError, match='Invalid decay'):
            bo.layer_decay(states, wrong)


@pytest.mark.parametrize(('algorithm', 'expected'), [('adam', (1, 1, 1 / 4, 1 / 4, 1)), ('sgd', (4, 4, 1, 1 / 4, 1))])
def test_mup_equals_table_3(algorithm: Any, expected: tuple[float, ...]) -> None:
    """Widths grow by 4. Tensor Programs V, table 3: input, bias, hidden, output, and a bias of the output."""

    def model(width: int) -> dict[str, brainstate.ParamState]:
        shapes = [(3, width), (width,), (width, width), (width, 2), (2,)]
        return {name: brainstate.ParamState(jnp.zeros(shape)) for name, shape in zip('abcde', shapes, strict=True)}

    optimizer = bo.SGD(1.0, groups=bo.mup(model(32), model(8), algorithm)).register_trainable_weights(model(32))
    rates = {name: float(g['lr']) for g in optimizer.param_groups for name in g['params']}
    assert rates == dict(zip('abcde', expected, strict=True))
    with pytest.raises(ValueError, match='Invalid base_states'):
        bo.mup(model(4), {'a': brainstate.ParamState(jnp.zeros((2, 2)))})
    with pytest.raises(ValueError, match="Invalid algorithm='rmsprop'"):
        bo.mup(model(4), model(4), 'rmsprop')  # type: ignore[arg-type]
