"""Averaging in place of a schedule: ScheduleFreeSGD, ScheduleFreeAdamW."""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    Betas,
    Count,
    Hyperparameters,
    NonNegative,
    Number,
    Range,
    WeightDecay,
)
from braintools_optim.options.kinds import Schedulable, is_on
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['ScheduleFreeAdamW', 'ScheduleFreeSGD']

Array = jax.Array


class ScheduleFree(Optimizer):
    """Base of the schedule-free rules: the parameter lies between the iterate ``z`` and the average ``x``."""

    decays = True

    def interpolation(self, hp: Hyperparameters) -> Array:
        """Return the share of the average in the parameter."""
        raise NotImplementedError(f'{type(self).__name__} must define interpolation(hp).')

    def scaled(self, g: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Array, Slots]:
        """Return the gradient as ``z`` descends along it, the same for the parameter, and the new slots."""
        return g, g, {}

    def check_options(self, hp: Hyperparameters) -> None:
        if hp.cautious:
            raise ValueError(f'Invalid cautious=True. {type(self).__name__} cannot leave entries out of its average.')
        if self.constraints:
            raise ValueError(f'Invalid constraints of {type(self).__name__}. Its averages would not obey them.')
        if self.state_dtype is not None and jnp.dtype(self.state_dtype).itemsize < 4:
            raise ValueError(f'Invalid state_dtype={self.state_dtype!r}. Must be float32 or wider, to add up averages.')

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'z': w, 'lr_max': jnp.zeros((), w.dtype), 'weight_sum': jnp.zeros((), w.dtype)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        warmup = jnp.minimum(hp.step / jnp.maximum(hp.warmup_steps, 1), 1.0)
        return {'warmup': warmup, 'aged': (1 - 1.0 / hp.step) ** hp.r}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        *scaled, new = self.scaled(g, slots, hp)
        for_z, for_w = (hp.warmup * (g + hp.weight_decay * w) for g in scaled)
        rate, counts = hp.lr * hp.warmup, jnp.where(hp.lr > 0, 1.0, 0.0)
        lr_max = jnp.maximum(slots['lr_max'], rate)
        growth = jnp.where(lr_max > 0, slots['lr_max'] / jnp.where(lr_max > 0, lr_max, 1.0), 1.0)
        # in units of the last coefficient, because float32 would lose digits in a sum of tiny numbers
        weight_sum = slots['weight_sum'] * growth**hp.weight_lr_power * hp.aged + counts
        c = counts / jnp.maximum(weight_sum, 1.0)
        z = slots['z'] - hp.lr * for_z
        toward_z = c * (w - z) / jnp.where(hp.lr > 0, hp.lr, 1.0)
        new |= {'z': z, 'lr_max': lr_max, 'weight_sum': weight_sum}
        return toward_z + (1 - self.interpolation(hp)) * (1 - c) * for_w, new

    def evaluation(self, w: Array, slots: Slots, hp: Hyperparameters) -> Array:
        return w + (1 / self.interpolation(hp) - 1) * (w - slots['z'])


class ScheduleFreeSGD(ScheduleFree):
    r"""Schedule-free stochastic gradient descent: averaging replaces a schedule and momentum.

    .. math::
        z_t &= z_{t-1} - \eta_t (g_t + \lambda y_{t-1}), \quad \eta_t = \eta \min(1, t / T_\text{warmup}) \\
        x_t &= (1 - c_t) x_{t-1} + c_t z_t, \quad
        c_t = \frac{t^r \hat\eta_t^p}{\sum_{i \le t} i^r \hat\eta_i^p}, \quad \hat\eta_t = \max_{i \le t} \eta_i \\
        y_t &= (1 - \beta) z_t + \beta x_t

    The parameter is :math:`y`, at which gradients are taken. Inside ``with optimizer.eval_weights():`` the States hold
    the averages :math:`x`, at which the model is evaluated. A step with an ``lr`` of 0 changes none of the three.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        Learning rate :math:`\eta`, see :class:`Optimizer`. Meant to be constant, apart from a warm-up.
    momentum : float, default 0.9
        Share :math:`\beta` of the average in the parameter, in (0, 1).
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the L2 penalty at :math:`y`, >= 0.
    warmup_steps : int, default 0
        Number of updates over which the learning rate rises from 0, >= 0.
    r : float, default 0.0
        Power of the update count in the coefficients of the average, >= 0.
    weight_lr_power : float, default 2.0
        Power :math:`p` of the largest learning rate so far in the coefficients of the average, >= 0.

    Raises
    ------
    ValueError
        If ``constraints``, ``cautious`` or a ``state_dtype`` narrower than float32 is given, which the averages do not
        allow.

    References
    ----------
    Defazio et al. (2024), The Road Less Scheduled.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array(2.0))
    >>> optimizer = ScheduleFreeSGD(lr=0.5, momentum=0.5).register_trainable_weights({'w': w})
    >>> for _ in range(2):
    ...     optimizer.update({'w': jnp.array(1.0)})
    >>> with optimizer.eval_weights():
    ...     float(w.value)  # the mean of z_1 = 1.5 and z_2 = 1.0
    1.25
    >>> float(w.value)  # halfway between this mean and z_2
    1.125
    """

    lr: Rate = Rate(1.0)
    momentum: Annotated[Schedulable, Number(Range(0, 1, low_open=True, high_open=True))] = 0.9
    weight_decay: WeightDecay = 0.0
    warmup_steps: Count = 0
    r: NonNegative = 0.0
    weight_lr_power: NonNegative = 2.0

    def interpolation(self, hp: Hyperparameters) -> Array:
        share: Array = hp.momentum
        return share


class ScheduleFreeAdamW(ScheduleFree):
    r"""Schedule-free AdamW: :class:`ScheduleFreeSGD` on the gradient divided by the root of its mean square.

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
        z_t = z_{t-1} - \eta_t \Big(\frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_{t-1}\Big)

    The bias of :math:`v` is corrected under the root, as in optax and in the authors' releases since 1.3. The paper
    corrects the bias in :math:`\eta_t`, which affects the weight decay and the average, too.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 0.0025
        Learning rate :math:`\eta`, see :class:`Optimizer`. Meant to be constant, apart from a warm-up.
    betas : pair of float, default (0.9, 0.999)
        Share :math:`\beta_1` of the average in the parameter, in (0, 1), and the decay rate :math:`\beta_2` of the
        second moment, in [0, 1).
    eps : float, default 1e-8
        Number :math:`\epsilon` that is added to the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the weight decay, which is not divided by the root, >= 0.
    warmup_steps, r, weight_lr_power
        See :class:`ScheduleFreeSGD`.

    Raises
    ------
    ValueError
        In the same cases as :class:`ScheduleFreeSGD`.

    References
    ----------
    Defazio et al. (2024), The Road Less Scheduled.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 2.0]))
    >>> optimizer = ScheduleFreeAdamW(lr=0.5).register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.array([0.1, -3.0])})
    >>> w.value.round(5).tolist()
    [0.5, 2.5]
    """

    lr: Rate = Rate(0.0025)
    betas: Betas = (0.9, 0.999)
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.0
    warmup_steps: Count = 0
    r: NonNegative = 0.0
    weight_lr_power: NonNegative = 2.0

    def interpolation(self, hp: Hyperparameters) -> Array:
        share: Array = hp.betas[0].value
        return share

    def check_options(self, hp: Hyperparameters) -> None:
        super().check_options(hp)
        if not is_on(hp.betas[0]):
            raise ValueError(f'Invalid betas[0]={hp.betas[0]}. Must be in (0, 1).')

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'exp_avg_sq': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return super().prepare(hp) | {'debias': hp.betas[1].debias(hp.step)}

    def scaled(self, g: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Array, Slots]:
        second = hp.betas[1].average(slots['exp_avg_sq'], g * g)
        # the same root written in two ways, because XLA would keep one array for both
        roots = sqrt(hp.debias * second), sqrt(hp.debias) * sqrt(second)
        for_z, for_w = (g / (root + hp.eps) for root in roots)
        return for_z, for_w, {'exp_avg_sq': second}
