"""Subclasses of LRScheduler that override ``get_lr``, as in torch and braintools.optim."""

from __future__ import annotations

import math
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo


class PythonWarmup(bo.LRScheduler):
    """A warmup and a cosine with Python's control flow and functions, which cannot be traced."""

    def __init__(self, base_lr: Any = 0.1, warmup: int = 3, total: int = 9, last_epoch: int = 0):
        super().__init__(base_lr, last_epoch)
        self.warmup, self.total = warmup, total  # after super(), which therefore cannot call get_lr() yet

    def get_lr(self) -> list[Any]:
        epoch: Any = self.last_epoch.value
        if epoch < self.warmup:
            return [lr * (epoch + 1) / self.warmup for lr in self.base_lrs]
        progress = min((epoch - self.warmup) / (self.total - self.warmup), 1.0)
        return [lr * 0.5 * (1 + math.cos(math.pi * progress)) for lr in self.base_lrs]


class TracedInverse(bo.LRScheduler):
    """A schedule that can be traced."""

    def get_lr(self) -> list[Any]:
        return [lr / (1 + self.last_epoch.value) for lr in self.base_lrs]


class Halved(bo.StepLR):
    """A schedule that changes the rates of its base class."""

    def get_lr(self) -> list[Any]:
        return [rate / 2 for rate in super().get_lr()]


class Recursive(bo.LRScheduler):
    """A schedule in torch's chainable form, which computes each rate from the rate before."""

    def get_lr(self) -> list[Any]:
        epoch: Any = self.last_epoch.value
        return list(self.base_lrs) if epoch == 0 else [rate * 0.5 for rate in self.get_last_lr()]


def python_warmup(epoch: int) -> float:
    if epoch < 3:
        return (epoch + 1) / 3
    return 0.5 * (1 + math.cos(math.pi * min((epoch - 3) / 6, 1.0)))


EXPECTED = {
    PythonWarmup: python_warmup,
    TracedInverse: lambda epoch: 1 / (1 + epoch),
    Halved: lambda epoch: 0.5 * 0.1 ** (epoch // 30),
    Recursive: lambda epoch: 0.5**epoch,
}
every_class = pytest.mark.parametrize('cls', EXPECTED)


def trained(schedule: bo.LRScheduler, **group: Any) -> tuple[bo.SGD, list[brainstate.ParamState]]:
    weights = [brainstate.ParamState(jnp.zeros(())) for _ in range(2)]
    optimizer = bo.SGD(lr=schedule).register_trainable_weights({'0': weights[0]})
    optimizer.add_param_group({'1': weights[1]}, **group)
    return optimizer, weights


@every_class
@pytest.mark.parametrize('jitted', [False, True])
def test_drives_an_optimizer(cls: Any, jitted: bool) -> None:
    schedule = cls([0.1, 0.2])
    optimizer, weights = trained(schedule)
    run = brainstate.transform.jit if jitted else lambda function: function
    update = run(lambda: optimizer.update({'0': jnp.ones(()), '1': jnp.ones(())}))
    for epoch in range(12):
        rates = np.array([0.1, 0.2]) * EXPECTED[cls](epoch)
        for reported in (schedule.current_lrs.value, schedule.get_last_lr(), optimizer.get_last_lr()):
            np.testing.assert_allclose(reported, rates, rtol=1e-14)
        assert optimizer.current_lr == schedule() == reported[0]
        before = np.array([w.value for w in weights])
        update()
        np.testing.assert_allclose(before - [w.value for w in weights], rates, rtol=1e-13, atol=1e-16)
        schedule.step()


def test_is_stepped_inside_a_compiled_function() -> None:
    schedule = TracedInverse(0.1)
    optimizer, weights = trained(schedule)

    def epoch(_: Any) -> Any:
        optimizer.update({'0': jnp.ones(()), '1': jnp.ones(())})
        schedule.step()
        return weights[0].value

    path = brainstate.transform.for_loop(epoch, jnp.arange(5))
    np.testing.assert_allclose(path, -np.cumsum(0.1 / (1 + np.arange(5))), rtol=1e-14)
    with pytest.raises(TypeError, match=r'PythonWarmup.get_lr\(\) cannot be traced. Call step\(\) outside'):
        brainstate.transform.jit(PythonWarmup().step)()


def test_group_with_another_base_rate_is_scaled() -> None:
    optimizer, _ = trained(PythonWarmup(0.1), lr=0.01)
    for epoch in range(5):
        np.testing.assert_allclose(optimizer.get_last_lr(), np.array([0.1, 0.01]) * python_warmup(epoch), rtol=1e-14)
        optimizer.lr.step()


@every_class
def test_rate_set_by_hand_rescales_the_rest(cls: Any) -> None:
    schedule = cls(0.1)
    schedule.step()
    schedule.set_rate(0.5)
    assert schedule() == 0.5
    schedule.step()
    assert schedule() == pytest.approx(0.5 * EXPECTED[cls](2) / EXPECTED[cls](1))


@pytest.mark.parametrize('cls', [PythonWarmup, TracedInverse, Halved])
def test_is_a_function_of_the_epoch(cls: Any) -> None:
    rates = [0.1 * EXPECTED[cls](epoch) for epoch in range(8)]
    schedule = cls(0.1)
    np.testing.assert_allclose(schedule.lr_at(np.arange(8)), rates, rtol=1e-13)
    schedule.step(epoch=4)
    assert schedule() == pytest.approx(rates[4])
    schedule.last_epoch.value = jnp.asarray(6, jnp.int32)
    np.testing.assert_allclose(schedule.get_lr(), rates[6:7], rtol=1e-6)
    assert cls(0.1, last_epoch=4)() == pytest.approx(rates[4])
    after = bo.SequentialLR([bo.ConstantLR(0.1, 1.0, 0), cls(0.1)], [2])
    np.testing.assert_allclose(after.lr_at([0, 1, 2, 3]), [0.1, 0.1, *rates[:2]], rtol=1e-13)


@every_class
def test_position_is_saved(cls: Any) -> None:
    schedule, loaded, again = (cls([0.1, 0.2]) for _ in range(3))
    optimizers = [trained(one)[0] for one in (schedule, loaded, again)]
    for _ in range(4):
        schedule.step()
    loaded.load_state_dict(schedule.state_dict())
    optimizers[2].load_state_dict(optimizers[0].state_dict())
    for _ in range(3):
        assert schedule.get_last_lr() == loaded.get_last_lr() == again.get_last_lr()
        for one in (schedule, loaded, again):
            one.step()


def test_formula_of_the_same_class_has_precedence() -> None:
    class Both(bo.LRScheduler):
        def formula(self, epoch: Any, base_lr: Any) -> Any:
            return base_lr * 3

        def get_lr(self) -> list[Any]:
            return [7.0]

    assert Both(0.5)() == 1.5


def test_wrong_get_lr_is_refused() -> None:
    class Wrong(bo.LRScheduler):
        def __init__(self, rates: Any):
            self.rates_to_return = rates
            super().__init__([0.1, 0.2])

        def get_lr(self) -> Any:
            return self.rates_to_return

    with pytest.raises(ValueError, match=r'Wrong.get_lr\(\) returned 1 rates. Must be 2, one per base rate.'):
        Wrong([0.1])
    with pytest.raises(ValueError, match=r'Invalid Wrong.get_lr\(\)=-1.0. Must be >= 0'):
        Wrong([0.1, -1.0])
    with pytest.raises(TypeError, match=r'Invalid Wrong.get_lr\(\)=None. Must be a number'):
        Wrong(None)
    with pytest.raises(TypeError, match=r'Plateau cannot override get_lr\(\).*Override rate\(\) instead'):

        class Plateau(bo.ReduceLROnPlateau):
            def get_lr(self) -> list[Any]:
                return [0.1]

    with pytest.raises(NotImplementedError, match=r'must define formula.* or get_lr'):
        bo.LRScheduler(0.1).get_lr()
