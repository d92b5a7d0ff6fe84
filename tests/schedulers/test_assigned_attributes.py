"""Attributes of schedules and of DynamicLossScale act when they are assigned, or are refused."""

from __future__ import annotations

import copy
from typing import Any

import brainstate
import jax.numpy as jnp
import pytest
from tables.schedules import DISTINCT, Case

import braintools_optim as bo


@pytest.mark.parametrize('case', DISTINCT, ids=lambda case: case.name)
def test_assigned_epoch_moves_the_schedule(case: Case) -> None:
    assigned, stepped = case.build(), case.build()
    assigned.last_epoch = 4
    stepped.step(epoch=4)
    assert isinstance(assigned.last_epoch, brainstate.State)
    assert assigned.get_lr() == stepped.get_lr()
    assert int(assigned.last_epoch.value) == 4


def test_assigned_epoch_acts_in_a_compiled_update() -> None:
    schedule = bo.ExponentialLR(1.0, gamma=0.5)
    w = brainstate.ParamState(jnp.zeros(()))
    optimizer = bo.SGD(schedule).register_trainable_weights({'w': w})
    update = brainstate.transform.jit(lambda: optimizer.update({'w': jnp.ones(())}))
    update()
    schedule.last_epoch = 3
    update()
    assert float(w.value) == -1.125
    for wrong, error in ((-1, ValueError), (1.5, TypeError), ('3', TypeError)):
        with pytest.raises(error, match='Invalid epoch='):
            schedule.last_epoch = wrong
    assert int(copy.deepcopy(schedule).last_epoch.value) == 3


step_lr = bo.StepLR(0.1, step_size=2)
plateau = bo.ReduceLROnPlateau(0.1)
warmup = bo.WarmupScheduler(bo.StepLR(0.1))
REFUSED: list[tuple[Any, str, Any, type[Exception], str]] = [
    (step_lr, 'gamma', 0.5, ValueError, 'gamma of a schedule is fixed. Build another StepLR'),
    (step_lr, 'base_lr', 0.5, ValueError, 'base_lr of a schedule is fixed'),
    (step_lr, 'base_lrs', [0.5], ValueError, 'base_lrs of a schedule is fixed'),
    (warmup, 'after', step_lr, ValueError, 'after of a schedule is fixed'),
    (step_lr, 'manual', 0.5, ValueError, 'manual of a schedule is a State. Assign manual.value instead'),
    (plateau, 'best', 0.5, ValueError, 'best of a schedule is a State. Assign best.value instead'),
    (step_lr, 'last_epoch', brainstate.LongTermState(3), ValueError, 'Assign last_epoch.value instead'),
    (step_lr, 'lr', 0.5, AttributeError, r'no such attribute. Call set_rate\(0.5\), or assign optimizer.lr'),
    (step_lr, 'gama', 0.5, AttributeError, r'Invalid gama=0.5. StepLR has no such attribute. Did you mean gamma\?'),
    (step_lr, 'last_epoc', 3, AttributeError, r'Did you mean last_epoch\?'),
    (step_lr, 'anything', 3, AttributeError, 'only in the constructor of a subclass'),
    (step_lr, 'current_lrs', [0.5], AttributeError, r'current_lrs of a schedule is computed.*set_rate'),
    (step_lr, 'step', 5, AttributeError, 'step of a schedule is a method'),
    (step_lr, 'cycle_momentum', True, ValueError, 'cycle_momentum of a schedule is fixed'),
]


@pytest.mark.parametrize(('target', 'name', 'value', 'error', 'message'), REFUSED, ids=lambda x: str(x)[:30])
def test_assignments_without_effect_are_refused(
    target: Any, name: str, value: Any, error: type[Exception], message: str
) -> None:
    before = repr(target)
    with pytest.raises(error, match=message):
        setattr(target, name, value)
    assert repr(target) == before


def test_value_of_derived_lrs_cannot_be_assigned() -> None:
    with pytest.raises(AttributeError, match='cannot be assigned'):
        step_lr.current_lrs.value = [0.5]


def test_position_within_a_cycle_can_be_assigned() -> None:
    schedule = bo.CosineAnnealingWarmRestarts(1.0, T_0=2, T_mult=2)
    schedule.step(epoch=4)
    schedule.T_cur.value = 0.5
    assert (int(schedule.last_epoch.value), schedule.T_cur.value, schedule.T_i.value) == (2, 0.5, 4)
    schedule.T_i.value = 4
    with pytest.raises(ValueError, match='Invalid T_i=8'):
        schedule.T_i.value = 8


def test_constructor_of_a_subclass_sets_any_attribute() -> None:
    class Scaled(bo.StepLR):
        def __init__(self, base_lr: float, scale: float):
            self.before = 1.0
            super().__init__(base_lr)
            self.scale, self.last_epoch = scale, 30

        def formula(self, epoch: Any, base_lr: Any) -> Any:
            return self.scale * super().formula(epoch, base_lr)

    schedule = Scaled(1.0, 0.5)
    assert schedule() == pytest.approx(0.05)
    schedule._anything = 3
    with pytest.raises(ValueError, match='scale of a schedule is fixed'):
        schedule.scale = 1.0
    with pytest.raises(ValueError, match='before of a schedule is fixed'):
        schedule.before = 1.0


def test_attributes_of_a_subclass_with_get_lr_act_on_the_next_step() -> None:
    class Scaled(bo.LRScheduler):
        def __init__(self) -> None:
            super().__init__(0.1)
            self.scale = 1.0

        def get_lr(self) -> list[Any]:
            return [lr * self.scale for lr in self.base_lrs]

    schedule = Scaled()
    schedule.scale = 0.5
    schedule.step()
    assert schedule() == 0.05
    with pytest.raises(AttributeError, match='Did you mean scale'):
        schedule.scal = 0.5


@pytest.mark.parametrize('jitted', [False, True])
def test_assigned_loss_scale_acts_on_the_next_update(jitted: bool) -> None:
    loss_scale = bo.DynamicLossScale(init_scale=8.0)
    w = brainstate.ParamState(jnp.zeros(()))
    optimizer = bo.SGD(1.0, loss_scale=loss_scale).register_trainable_weights({'w': w})
    update = (brainstate.transform.jit if jitted else lambda f: f)(lambda: optimizer.update({'w': jnp.asarray(8.0)}))
    update()
    loss_scale.current = 4.0
    assert loss_scale.current == 4.0
    update()
    assert float(w.value) == -3.0
    with pytest.raises(ValueError, match=r'Invalid current=0\.0'):
        loss_scale.current = 0.0


dynamic = bo.DynamicLossScale()


@pytest.mark.parametrize(
    ('name', 'error', 'message'),
    [
        ('growth_factor', ValueError, 'growth_factor of a DynamicLossScale is fixed. Build another one'),
        ('backoff_factor', ValueError, 'backoff_factor of a DynamicLossScale is fixed'),
        ('growth_interval', ValueError, 'growth_interval of a DynamicLossScale is fixed'),
        ('init_scale', ValueError, 'init_scale of a DynamicLossScale is fixed'),
        ('state', ValueError, 'Assign current to set the factor'),
        ('growth_intervall', AttributeError, r'Did you mean growth_interval'),
        ('anything', AttributeError, 'DynamicLossScale has no such attribute'),
    ],
)
def test_other_attributes_of_a_loss_scale_are_fixed(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        setattr(dynamic, name, 8)
