"""Checkpoints under another schedule or with other fixed arguments are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo

Make = Callable[[], bo.Optimizer]


def built(make: Make) -> bo.Optimizer:
    return make().register_trainable_weights({'w': brainstate.ParamState(jnp.ones((2, 2)))})


def sgd(schedule: Callable[[], Any]) -> Make:
    return lambda: bo.SGD(schedule())


SCHEDULES: dict[str, tuple[Callable[[], Any], Callable[[], Any], str]] = {
    'T_max': (
        lambda: bo.CosineAnnealingLR(0.1, T_max=10),
        lambda: bo.CosineAnnealingLR(0.1, T_max=99),
        'schedule.T_max: 10 there, 99 here',
    ),
    'step_size': (lambda: bo.StepLR(0.1, 30), lambda: bo.StepLR(0.1, 3), 'schedule.step_size: 30 there, 3 here'),
    'milestones': (
        lambda: bo.MultiStepLR(0.1, [3, 5]),
        lambda: bo.MultiStepLR(0.1, [3, 6]),
        'schedule.milestones: [3, 5] there, [3, 6] here',
    ),
    'fewer milestones': (
        lambda: bo.MultiStepLR(0.1, [3, 5]),
        lambda: bo.MultiStepLR(0.1, [3]),
        'schedule.milestones: [3, 5] there, [3] here',
    ),
    'class inside': (
        lambda: bo.PerUpdate(bo.StepLR(0.1), 5),
        lambda: bo.PerUpdate(bo.ExponentialLR(0.1), 5),
        "schedule.schedule: 'StepLR' there, 'ExponentialLR' here",
    ),
    'argument inside': (
        lambda: bo.PerUpdate(bo.WarmupScheduler(bo.StepLR(0.1, 30), 5), 5),
        lambda: bo.PerUpdate(bo.WarmupScheduler(bo.StepLR(0.1, 3), 5), 5),
        'schedule.schedule.after.step_size: 30 there, 3 here',
    ),
    'plateau': (
        lambda: bo.ReduceLROnPlateau(bo.StepLR(0.1, 30), min_lr=[0.01]),
        lambda: bo.ReduceLROnPlateau(bo.StepLR(0.1, 3), min_lr=[0.02]),
        'schedule.min_lr: [0.01] there, [0.02] here; schedule.schedule.step_size: 30 there, 3 here',
    ),
    'sequence': (
        lambda: bo.SequentialLR([bo.StepLR(0.1), bo.StepLR(0.2, 30)], [4]),
        lambda: bo.SequentialLR([bo.StepLR(0.1), bo.StepLR(0.3, 3)], [5]),
        'schedule.schedulers.1.base_lr: [0.2] there, [0.3] here; schedule.schedulers.1.step_size: 30 there, 3 here; '
        'schedule.milestones: [4] there, [5] here',
    ),
    'momentum': (
        lambda: bo.CyclicLR(0.1, 0.2, cycle_momentum=False),
        lambda: bo.CyclicLR(0.1, 0.3, 10, mode='exp_range', cycle_momentum=False),
        'schedule.max_lr: [0.2] there, [0.3] here; schedule.step_size_up: 2000 there, 10 here; '
        "schedule.step_size_down: 2000 there, 10 here; schedule.mode: 'triangular' there, 'exp_range' here",
    ),
    'constant': (
        lambda: bo.ConstantLR(0.1, 0.5, 10),
        lambda: 0.1,
        'schedule.factor: 0.5 there, 1.0 here; schedule.total_iters: 10 there, 0 here',
    ),
}


def scaled(**options: Any) -> Make:
    return lambda: bo.SGD(0.1, loss_scale=bo.DynamicLossScale(**options))


ARGUMENTS: dict[str, tuple[Make, Make, str]] = {
    'loss_scale': (
        lambda: bo.SGD(0.1, loss_scale=8.0),
        lambda: bo.SGD(0.1, loss_scale=4.0),
        'loss_scale: 8.0 there, 4.0 here',
    ),
    'no loss_scale': (lambda: bo.SGD(0.1, loss_scale=8.0), lambda: bo.SGD(0.1), 'loss_scale: 8.0 there, None here'),
    'dynamic loss_scale': (
        scaled(growth_factor=2.0, growth_interval=7),
        scaled(growth_factor=3.0, backoff_factor=0.25),
        'loss_scale.growth_factor: 2.0 there, 3.0 here; loss_scale.backoff_factor: 0.5 there, 0.25 here; '
        'loss_scale.growth_interval: 7 there, 2000 here',
    ),
    'norm_unit': (
        lambda: bo.SGD(0.1, norm_unit=[u.mV, u.UNITLESS]),
        lambda: bo.SGD(0.1, norm_unit='own'),
        "norm_unit: ['mV', '1'] there, 'own' here",
    ),
    'Lookahead': (
        lambda: bo.Lookahead(bo.Adam(bo.StepLR(0.1, 3), betas=(0.5, 0.9)), sync_period=5, alpha=0.5),
        lambda: bo.Lookahead(bo.Adam(bo.StepLR(0.1, 4)), sync_period=6, alpha=0.25),
        'base_optimizer.betas: [0.5, 0.9] there, [0.9, 0.999] here; '
        'base_optimizer.schedule.step_size: 3 there, 4 here; sync_period: 5 there, 6 here; alpha: 0.5 there, 0.25 here',
    ),
    'Muon': (lambda: bo.Muon(ns_steps=3), lambda: bo.Muon(ns_steps=4), 'ns_steps: 3 there, 4 here'),
    'LBFGS': (
        lambda: bo.LBFGS(scale_init_precond=False),
        lambda: bo.LBFGS(linesearch=optax.scale_by_zoom_linesearch(5)),
        'scale_init_precond: False there, True here; linesearch: None there',
    ),
    'SOAP': (
        lambda: bo.SOAP(max_precondition_dim=5),
        lambda: bo.SOAP(max_precondition_dim=6),
        'max_precondition_dim: 5 there, 6 here',
    ),
    'stages': (lambda: bo.SGD(0.1, stages=[bo.Stage(lambda leaf: leaf)]), lambda: bo.SGD(0.1), 'stages: '),
    'option schedule': (
        lambda: bo.SGD(0.1, weight_decay=bo.StepLR(0.1, 30)),
        lambda: bo.SGD(0.1, weight_decay=bo.StepLR(0.2, 3)),
        'defaults.weight_decay.base_lr: [0.1] there, [0.2] here; defaults.weight_decay.step_size: 30 there, 3 here',
    ),
}


CASES = {name: (sgd(a), sgd(b), match) for name, (a, b, match) in SCHEDULES.items()} | ARGUMENTS


@pytest.mark.parametrize(('make', 'other', 'expected'), CASES.values(), ids=CASES)
def test_other_arguments_are_refused(make: Make, other: Make, expected: str) -> None:
    saved, optimizer = built(make).state_dict(), built(other)
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match='does not fit this optimizer, which is unchanged') as caught:
        optimizer.load_state_dict(saved)
    assert expected in str(caught.value)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, optimizer.state_dict()))
    assert built(make).load_state_dict(saved) == []


@pytest.mark.parametrize(('make', 'other', 'expected'), CASES.values(), ids=CASES)
def test_state_dict_without_the_arguments_is_accepted(make: Make, other: Make, expected: str) -> None:
    """Earlier versions did not write the entry."""
    saved = built(make).state_dict()
    del saved['arguments']
    assert built(make).load_state_dict(saved) == []
    assert not any(expected in problem for problem in built(other).load_state_dict(saved, strict=False))


def test_functions_are_not_compared() -> None:
    a = built(lambda: bo.SGD(bo.LambdaLR(0.1, lambda epoch: 0.5**epoch), no_decay=lambda name, w: False))
    b = built(lambda: bo.SGD(bo.LambdaLR(0.1, jnp.cos), no_decay=lambda name, w: name == 'b'))
    assert b.load_state_dict(a.state_dict()) == []
    c = built(lambda: bo.OptaxOptimizer(optax.chain(optax.sgd(0.1), optax.identity())))
    assert (
        built(lambda: bo.OptaxOptimizer(optax.chain(optax.sgd(0.2), optax.identity()))).load_state_dict(c.state_dict())
        == []
    )


class Scaled(bo.Optimizer):
    """An optimizer of a user, whose constructor has arguments that are no options."""

    def __init__(self, scales: Any, lr: float = 0.1):
        super().__init__(lr=lr)
        self.scales = scales

    def direction(self, g: Any, w: Any, slots: Any, hp: Any) -> Any:
        return g * self.scales[0], slots


def test_arguments_of_users_are_compared() -> None:
    saved = built(lambda: Scaled((0.5, np.ones(2)))).state_dict()
    assert built(lambda: Scaled([0.5, jnp.ones(2)])).load_state_dict(saved) == []
    with pytest.raises(ValueError, match=r'scales: \[0\.5, \[1\.0, 1\.0\]\] there, \[0\.75\] here'):
        built(lambda: Scaled([0.75])).load_state_dict(saved)


def test_groups_chosen_by_functions_are_saved() -> None:
    def choose(end: str) -> Callable[[str, Any], bool]:
        return lambda name, weight: name.endswith(end)

    def build() -> bo.Optimizer:
        groups = {choose('a'): {'weight_decay': 0.1}, choose('b'): {'lr_scale': 0.5}, 'c': {'maximize': True}}
        constraints = {
            choose('a'): bo.constraints.non_negative(),
            'b': bo.constraints.unit_norm(),
            choose('c'): jnp.tanh,
        }
        weights = {name: brainstate.ParamState(jnp.ones(2)) for name in 'abc'}
        return bo.Adam(0.1, groups=groups, constraints=constraints).register_trainable_weights(weights)

    optimizer, again = build(), build()
    optimizer.update({name: jnp.ones(2) for name in 'abc'})
    assert again.load_state_dict(optimizer.state_dict()) == []
    assert jax.tree.all(jax.tree.map(np.array_equal, optimizer.state_dict(), again.state_dict()))
