"""Second moments of rows and columns: Adafactor."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, Optimizer
from braintools_optim.options import Hyperparameters, validate
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.shared_options import SharedOptions

__all__ = ['Adafactor']

Array = jax.Array


class Adafactor(Optimizer):
    r"""Adafactor: the second moments of a matrix kept as a row and a column, steps relative to the weight.

    .. math::
        r_t &= (1 - t^{-\kappa}) r_{t-1} + t^{-\kappa} \operatorname{mean}_j g_t^2, \quad
        c_t = (1 - t^{-\kappa}) c_{t-1} + t^{-\kappa} \operatorname{mean}_i g_t^2, \quad
        v_t = \frac{r_t c_t}{\operatorname{mean}(r_t)} \\
        u_t &= \frac{g_t}{\max(\sqrt{v_t}, \epsilon_1)}, \quad
        \hat u_t = \frac{u_t}{\max(1, \operatorname{rms}(u_t) / d)}, \quad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) \alpha_t \hat u_t \\
        w_t &= w_{t-1} - \eta (m_t + \lambda w_{t-1}), \quad
        \alpha_t = \frac{\max(\epsilon_2, \operatorname{rms}(w_{t-1}))}{\max(1, \eta \sqrt{t})}

    for the last two axes of a weight; vectors, scalars and all weights without ``factored`` have
    :math:`v_t = (1 - t^{-\kappa}) v_{t-1} + t^{-\kappa} g_t^2`; without ``beta1``, :math:`m_t = \alpha_t \hat u_t`.

    Steps are relative, :math:`\max(\epsilon_2, \operatorname{rms}(w)) \min(\eta, 1 / \sqrt t)` long, and so not
    proportional to lr, if no lr is given or ``relative_step`` is set, which is torch's Adafactor.
    Otherwise :math:`\alpha_t = 1` and lr is the length.

    Parameters
    ----------
    lr : float, LRScheduler or callable, optional
        See :class:`Optimizer`, as for all options not listed here. Default: relative steps of at most 1e-2.
    eps : pair of float, default (1e-30, 1e-3)
        :math:`\epsilon_1`, the least root of a second moment, and :math:`\epsilon_2`, the least size of a
        weight in relative steps; at least 0. As in torch, where the paper adds
        :math:`\epsilon_1` to the squares; :math:`\epsilon_1` bounds :math:`\operatorname{mean}(r_t)` too.
    clip_threshold : float, default 1.0
        :math:`d`, the greatest root mean square of :math:`u`, above 0; ``inf`` does not clip.
    decay_rate : float, default 0.8
        :math:`\kappa`; its sign does not matter (torch writes -0.8).
    beta1 : float, optional
        Decay rate of the mean direction, in [0, 1). Default: no mean.
    weight_decay : float, default 0.0
        :math:`\lambda`, at least 0: the weight itself decays.
    factored : bool, default True
        Keep rows and columns, not the whole second moment.
    relative_step : bool, default False
        Relative steps, with lr the greatest; without an lr they are relative in any case.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

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

    def __init__(
        self,
        lr: LearningRate | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = 0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        factored: bool = True,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        relative_step: bool = False,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(
            1e-2 if lr is None else lr,
            grad_clip_norm,
            grad_clip_value,
            weight_decay=weight_decay,
            decoupled_weight_decay=True,
            **shared,
            eps=eps,
            clip_threshold=clip_threshold,
            decay_rate=decay_rate,
            beta1=beta1,
            factored=factored,
            relative_step=validate('relative_step', relative_step, like=False) or lr is None,
        )

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        zeros: Slots = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda g: second_moments(g, hp), w))
        return zeros if hp.beta1 is None else zeros | {'exp_avg': jnp.zeros_like(w)}

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        step = hp.step.astype(hp.lr.dtype)
        return {'fresh': step ** -jnp.abs(hp.decay_rate), 'slowing': jnp.maximum(hp.lr * jnp.sqrt(step), 1.0)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        new = {name: slots[name] + hp.fresh * (v - slots[name]) for name, v in second_moments(g, hp).items()}
        if 'variance' in new:
            root = sqrt(new['variance'])
        else:  # a root each: the product of the squares could underflow
            mean = jnp.maximum(new['row_var'].mean(-2, keepdims=True), hp.eps[0])
            root = sqrt(new['row_var'] / mean) * sqrt(new['col_var'])
        u = g / jnp.maximum(root, hp.eps[0])
        u = u / jnp.maximum(rms(u) / hp.clip_threshold, 1.0)
        if hp.relative_step:
            u = u * jnp.maximum(rms(w), hp.eps[1]) / hp.slowing
        if hp.beta1 is not None:
            u = new['exp_avg'] = hp.beta1.average(slots['exp_avg'], u)
        return u, new


def second_moments(g: Array, hp: Hyperparameters) -> Slots:
    """The squares of ``g``: their means over rows and columns if these are kept."""
    square = g * g
    if hp.factored and g.ndim > 1 and g.size > 0:
        return {'row_var': square.mean(-1, keepdims=True), 'col_var': square.mean(-2, keepdims=True)}
    return {'variance': square}


def rms(x: Array) -> Array:
    """The root of the mean square."""
    return sqrt(jnp.sum(x * x) / max(x.size, 1))
