"""Averaging in place of a schedule: ScheduleFreeSGD, ScheduleFreeAdamW."""

from __future__ import annotations

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['ScheduleFreeAdamW', 'ScheduleFreeSGD']

Array = jax.Array


class ScheduleFree(Optimizer):
    """Steps of ``z``, their average ``x``, and the weight between the two, where gradients are taken."""

    decays = True

    def __init__(self, **options: Any):
        super().__init__(**options)
        if self.constraints:
            raise ValueError(f'Invalid constraints of {type(self).__name__}. Its averages would not obey them.')
        if self.state_dtype is not None and jnp.dtype(self.state_dtype).itemsize < 4:
            raise ValueError(f'Invalid state_dtype={self.state_dtype!r}. Must be float32 or wider, to add up averages.')

    def interpolation(self, hp: Hyperparameters) -> Array:
        """The share of the average in the weight."""
        raise NotImplementedError(f'{type(self).__name__} must define interpolation(hp).')

    def scaled(self, g: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Array, Slots]:
        """The gradient as ``z`` descends it; the same for the weight; and the memory that this takes."""
        return g, g, {}

    def check_options(self, hp: Hyperparameters) -> None:
        if hp.cautious:
            raise ValueError(f'Invalid cautious=True. {type(self).__name__} cannot leave entries out of its average.')
        share = self.interpolation(hp)
        if not 0 < share < 1:
            name = 'momentum' if 'momentum' in hp.values() else 'betas[0]'
            raise ValueError(f'Invalid {name}={share}. Must be in (0, 1).')

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'z': w, 'lr_max': jnp.zeros((), w.dtype), 'weight_sum': jnp.zeros((), w.dtype)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        warmup = jnp.minimum(hp.step / jnp.maximum(hp.warmup_steps, 1), 1.0)
        return {'warmup': warmup, 'aged': (1 - 1.0 / hp.step) ** hp.r}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        *scaled, new = self.scaled(g, slots, hp)
        for_z, for_w = (hp.warmup * (g + hp.weight_decay * w) for g in scaled)
        rate, counts = hp.lr * hp.warmup, hp.lr > 0
        lr_max = jnp.maximum(slots['lr_max'], rate)
        growth = jnp.where(lr_max > 0, slots['lr_max'] / jnp.where(lr_max > 0, lr_max, 1.0), 1.0)
        # in units of the last weight: a sum of tiny numbers would lose them in float32
        weight_sum = slots['weight_sum'] * growth**hp.weight_lr_power * hp.aged + counts
        c = counts / jnp.maximum(weight_sum, 1.0)
        z = slots['z'] - hp.lr * for_z
        toward_z = c * (w - z) / jnp.where(counts, hp.lr, 1.0)
        new |= {'z': z, 'lr_max': lr_max, 'weight_sum': weight_sum}
        return toward_z + (1 - self.interpolation(hp)) * (1 - c) * for_w, new

    def evaluation(self, w: Array, slots: Slots, hp: Hyperparameters) -> Array:
        return w + (1 / self.interpolation(hp) - 1) * (w - slots['z'])


class ScheduleFreeSGD(ScheduleFree):
    r"""Schedule-free gradient descent: the average of the steps replaces a schedule and momentum.

    .. math::
        z_t &= z_{t-1} - \eta_t (g_t + \lambda y_{t-1}), \quad \eta_t = \eta \min(1, t / T_\text{warmup}) \\
        x_t &= (1 - c_t) x_{t-1} + c_t z_t, \quad
        c_t = \frac{t^r \hat\eta_t^p}{\sum_{i \le t} i^r \hat\eta_i^p}, \quad \hat\eta_t = \max_{i \le t} \eta_i \\
        y_t &= (1 - \beta) z_t + \beta x_t

    The weight is :math:`y`, where gradients are taken; :math:`x`, where to evaluate, is what the States
    hold inside ``with optimizer.eval_weights():``. A step with an lr of 0 leaves all three as they are.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1.0
        See :class:`Optimizer`, as for all options not listed here. A constant, or with a warm-up.
    momentum : float, default 0.9
        :math:`\beta`, in (0, 1).
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0.
    warmup_steps : int, default 0
        Over how many updates the rate rises from 0. At least 0.
    r : float, default 0.0
        The power of the update count in the weights of the average. At least 0.
    weight_lr_power : float, default 2.0
        :math:`p`, the power of the greatest rate so far in the weights of the average. At least 0.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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
    ...     float(w.value)  # the mean of z, 1.5 and 1.0
    1.25
    >>> float(w.value)  # half way from there to z
    1.125
    """

    def __init__(
        self,
        lr: LearningRate = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def interpolation(self, hp: Hyperparameters) -> Array:
        share: Array = hp.momentum
        return share


class ScheduleFreeAdamW(ScheduleFree):
    r"""Schedule-free AdamW: :class:`ScheduleFreeSGD` with the gradient over the root of its mean square.

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
        z_t = z_{t-1} - \eta_t \Big(\frac{g_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon} + \lambda y_{t-1}\Big)

    The correction of :math:`v` stands under the root, as in optax and in the authors' releases since 1.3;
    the paper has it in :math:`\eta_t`, and so in the decay and the average too.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 0.0025
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.9, 0.999)
        The share of the average in the weight, in (0, 1), and the decay rate of :math:`v`, in [0, 1).
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay, warmup_steps, r, weight_lr_power
        See :class:`ScheduleFreeSGD`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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

    def __init__(
        self,
        lr: LearningRate = 0.0025,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()))

    def interpolation(self, hp: Hyperparameters) -> Array:
        share: Array = getattr(hp.betas[0], 'value', hp.betas[0])  # a plain number where options are checked
        return share

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return super().init_slots(w, hp) | {'exp_avg_sq': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return super().prepare(hp) | {'debias': hp.betas[1].debias(hp.step)}

    def scaled(self, g: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Array, Slots]:
        second = hp.betas[1].average(slots['exp_avg_sq'], g * g)
        # written in two ways: XLA would keep one root for both
        roots = sqrt(hp.debias * second), sqrt(hp.debias) * sqrt(second)
        for_z, for_w = (g / (root + hp.eps) for root in roots)
        return for_z, for_w, {'exp_avg_sq': second}
