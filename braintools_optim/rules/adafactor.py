"""Second moments of rows and columns: Adafactor."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Choice, Hyperparameters, Number, Numbers, Positive, WeightDecay, option
from braintools_optim.options.kinds import AT_LEAST_ZERO, BELOW_ONE, Scalar, Schedulable
from braintools_optim.options.types import Options
from braintools_optim.step.counterparts import TorchCounterpart
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt

__all__ = ['Adafactor']

Array = jax.Array


class Adafactor(Optimizer):
    r"""Adafactor: factored second moments, and step sizes relative to the size of each parameter.

    .. math::
        r_t &= (1 - t^{-\kappa}) r_{t-1} + t^{-\kappa} \operatorname{mean}_j g_t^2, \quad
        c_t = (1 - t^{-\kappa}) c_{t-1} + t^{-\kappa} \operatorname{mean}_i g_t^2, \quad
        v_t = \frac{r_t c_t}{\operatorname{mean}(r_t)} \\
        u_t &= \frac{g_t}{\max(\sqrt{v_t}, \epsilon_1)}, \quad
        \hat u_t = \frac{u_t}{\max(1, \operatorname{rms}(u_t) / d)}, \quad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) \alpha_t \hat u_t \\
        w_t &= w_{t-1} - \eta (m_t + \lambda w_{t-1}), \quad
        \alpha_t = \frac{\max(\epsilon_2, \operatorname{rms}(w_{t-1}))}{\max(1, \eta \sqrt{t})}

    The moments :math:`r_t` and :math:`c_t` belong to the last two axes of a parameter. Vectors, scalars and, without
    ``factored``, all parameters keep :math:`v_t = (1 - t^{-\kappa}) v_{t-1} + t^{-\kappa} g_t^2` instead. Without
    ``beta1``, :math:`m_t = \alpha_t \hat u_t`.

    With ``relative_step``, or if no ``lr`` is given, a step has about the length
    :math:`\max(\epsilon_2, \operatorname{rms}(w)) \min(\eta, 1 / \sqrt t)`, which is not proportional to ``lr``.
    This is torch's Adafactor: torch's ``Adafactor(lr=0.01)`` is ``Adafactor(lr=0.01, relative_step=True)`` here.
    Otherwise :math:`\alpha_t = 1`, and ``lr`` is the length of a step. ``scale_parameter`` chooses the two factors of
    :math:`\alpha_t` separately, and with ``warmup_init`` the bound :math:`\eta` grows from 0 during the first 10,000
    updates. Options of these names are Hugging Face's, where ``relative_step`` and ``scale_parameter`` are True by
    default, ``relative_step`` excludes an ``lr``, and weight decay is multiplied by the whole length of a step.

    As in torch, :math:`\epsilon_1` is a lower bound, also for :math:`\operatorname{mean}(r_t)`. The paper and Hugging
    Face add :math:`\epsilon_1` to the squared gradients instead.

    Parameters
    ----------
    lr : float, LRScheduler or callable, optional
        Learning rate, see :class:`Optimizer`. Default: 1e-2 with ``relative_step``.
    eps : pair of float, default (1e-30, 1e-3)
        Lower bounds, >= 0: :math:`\epsilon_1` of the root of a second moment, and :math:`\epsilon_2` of the size of a
        parameter in relative steps.
    clip_threshold : float, default 1.0
        Largest root mean square :math:`d` of the direction :math:`u`, > 0. With ``inf`` the direction is not clipped.
    decay_rate : float, default 0.8
        Exponent :math:`\kappa` of the decay of the second moments, any finite number. The sign is ignored, because
        torch writes -0.8.
    beta1 : float, optional
        Decay rate of the mean of the directions, in [0, 1). Default: no mean is kept.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    factored : bool, default True
        Keep the means over rows and over columns instead of the whole second moment.
    relative_step : bool, default False
        Bound the length of a step by :math:`1 / \sqrt t`, with ``lr`` as the upper bound. Always True if no ``lr`` is
        given.
    scale_parameter : bool, optional
        Multiply the step by the size of the parameter, :math:`\max(\epsilon_2, \operatorname{rms}(w))`. Default: the
        value of ``relative_step``.
    warmup_init : bool, default False
        Let the upper bound grow as :math:`10^{-4} \eta t` from 0. Requires ``relative_step``.

    Raises
    ------
    ValueError
        If ``warmup_init`` is True although ``relative_step`` is not.

    References
    ----------
    Shazeer and Stern (2018), Adafactor: Adaptive Learning Rates with Sublinear Memory Cost.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.full((2, 3), 5.0))
    >>> optimizer = Adafactor().register_trainable_weights({'w': w})
    >>> optimizer.update({'w': jnp.full((2, 3), 0.1)})  # 5 - 1e-2 * rms(w)
    >>> round(float(w.value[0, 0]), 6)
    4.95
    >>> [optimizer.opt_state.value[slot]['w'].shape for slot in ('row_var', 'col_var')]
    [(2, 1), (1, 3)]
    """

    torch_counterpart = TorchCounterpart(
        ('maximize', 'weight_decay', 'eps', 'clip_threshold', 'decay_rate'),
        fixed={'relative_step': True, 'factored': True, 'beta1': None, 'scale_parameter': None, 'warmup_init': False},
        renamed={'clip_threshold': 'd', 'decay_rate': 'beta2_decay'},
    )
    author_names: ClassVar = {'d': 'clip_threshold', 'beta2_decay': 'decay_rate'}
    lr: Rate = Rate(None)
    eps: Annotated[tuple[Scalar, Scalar], Numbers(Number(AT_LEAST_ZERO))] = (1e-30, 1e-3)
    clip_threshold: Positive = 1.0
    decay_rate: Annotated[Schedulable, Number()] = 0.8
    beta1: Annotated[Schedulable | None, Number(BELOW_ONE, optional=True, decay=True)] = None
    weight_decay: WeightDecay = 0.0
    factored: bool = True
    _: KW_ONLY
    relative_step: bool = False
    scale_parameter: Annotated[bool | None, Choice((None, False, True))] = None
    warmup_init: bool = False
    decoupled_weight_decay: bool = option(True)

    def resolve(self, options: Options) -> Options:
        if options['lr'] is None:
            relative = options['relative_step'] is False or options['relative_step']  # refused later if not a bool
            options = {**options, 'lr': 1e-2, 'relative_step': relative}
        return options

    def check_options(self, hp: Hyperparameters) -> None:
        if hp.warmup_init and not hp.relative_step:
            raise ValueError('Invalid warmup_init=True with relative_step=False. Must have relative_step=True.')

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        zeros: Slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda g: second_moments(g, hp), w))
        return zeros if hp.beta1 is None else zeros | {'exp_avg': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        unbounded = 1e4 / hp.step if hp.warmup_init else 1.0
        return {
            'fresh': hp.step ** -jnp.abs(hp.decay_rate),
            'slowing': jnp.maximum(hp.lr * jnp.sqrt(hp.step), unbounded),
        }

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = {name: slots[name] + hp.fresh * (v - slots[name]) for name, v in second_moments(g, hp).items()}
        if 'variance' in new:
            root = sqrt(new['variance'])
        else:  # the roots are taken one by one, because the product of the moments could underflow
            mean = jnp.maximum(new['row_var'].mean(-2, keepdims=True), hp.eps[0])
            root = sqrt(new['row_var'] / mean) * sqrt(new['col_var'])
        u = g / jnp.maximum(root, hp.eps[0])
        u = u / jnp.maximum(rms(u) / hp.clip_threshold, 1.0)
        if hp.scale_parameter or (hp.scale_parameter is None and hp.relative_step):
            u = u * jnp.maximum(rms(w), hp.eps[1])
        if hp.relative_step:
            u = u / hp.slowing
        if hp.beta1 is not None:
            u = new['exp_avg'] = hp.beta1.average(slots['exp_avg'], u)
        return u, new


def second_moments(g: Array, hp: Hyperparameters) -> Slots:
    """Return the squares of ``g``, or their means over rows and over columns if the moments are factored."""
    square = g * g
    if hp.factored and g.ndim > 1 and g.size > 0:
        return {'row_var': square.mean(-1, keepdims=True), 'col_var': square.mean(-2, keepdims=True)}
    return {'variance': square}


def rms(x: Array) -> Array:
    """Return the root mean square."""
    return sqrt(jnp.sum(x * x) / max(x.size, 1))
