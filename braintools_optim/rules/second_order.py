"""The diagonal of the Hessian, estimated now and then: Sophia."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.optimizer import LearningRate, given
from braintools_optim.options import Hyperparameters
from braintools_optim.precision import from_working, to_working
from braintools_optim.rules.whole_tree import GroupRule, Leaves, loss_of_leaves, updates
from braintools_optim.shared_options import SharedOptions

__all__ = ['Sophia']

Array = jax.Array
State = dict[str, Any]


class Sophia(GroupRule):
    r"""Sophia: the mean gradient over the mean diagonal of the Hessian, clipped entry by entry.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        h_t = \beta_2 h_{t-1} + (1 - \beta_2) \hat h_t \text{ every } k \text{ steps, else } h_{t-1} \\
        w_t &= w_{t-1} - \eta \left( \mathrm{clip}\Bigl(\frac{m_t}{\max(\gamma h_t, \epsilon)}, \rho\Bigr)
        + \lambda w_{t-1} \right)

    It needs the loss: ``minimize(loss_fn)``, or ``update(grads, value_fn=loss_of)`` in the forms of :class:`LBFGS`.
    Every :math:`k` steps it takes Hutchinson's estimate :math:`\hat h = u \odot (\nabla^2 f) u` with random signs
    :math:`u`, for each group its own. The loss is computed once more for that, on the States as they are then; what
    it writes to them is dropped. Or give :math:`\hat h`, a tree like the gradients:
    ``update(grads, hessian=estimate)``, such as the Gauss-Newton-Bartlett estimate of Sophia-G. It is read on the
    steps that are due: all of them with ``update_period=1``.

    As in the paper, :math:`h_t` acts on the step that estimates it and :math:`m_t` is not corrected for its
    start; optax does it one step later, and corrects.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.96, 0.99)
        Decay rates of the gradient and of the Hessian, in [0, 1).
    gamma : float, default 0.01
        Scale of the Hessian, at least 0. The smaller, the more entries are clipped.
    eps : float, default 1e-12
        The least denominator; at least 0.
    weight_decay : float, default 0.0
        :math:`\lambda`, decoupled: it decays the weight itself.
    clip_threshold : float, default 1.0
        :math:`\rho`, above 0.
    update_period : int, default 10
        :math:`k`, at least 1.
    seed : int, default 0
        Of the random signs, which follow from it and the update count; at most :math:`2^{24}`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range, or an update has no source of the Hessian.

    References
    ----------
    Liu et al. (2024), Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 1.0]))
    >>> optimizer = Sophia(lr=1.0, betas=(0.0, 0.0), gamma=1.0).register_trainable_weights({'w': w})
    >>> _ = optimizer.minimize(lambda: jnp.sum(jnp.array([1.0, 100.0]) * (w.value - 0.5) ** 2))  # Newton's step
    >>> w.value.tolist()
    [0.5, 0.5]
    """

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        clip_threshold: float = 1.0,
        update_period: int = 10,
        seed: int = 0,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals()), decoupled_weight_decay=True)

    def init_group(self, w: Leaves, hp: Hyperparameters) -> State:
        zeros = jax.tree.map(jnp.zeros_like, w)
        return {'exp_avg': zeros, 'hessian': zeros}

    def group_direction(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, extra: Any
    ) -> tuple[Leaves, State]:
        estimate = self.hessian_source(w, hp, extra)
        beta1, beta2 = hp.betas

        def averaged(hessian: Leaves) -> Leaves:
            new = estimate()
            return {key: beta2.average(h, new[key]).astype(h.dtype) for key, h in hessian.items()}

        due = (updates(hp) - 1) % hp.update_period == 0
        hessian = jax.lax.cond(due, averaged, lambda hessian: hessian, state['hessian'])
        exp_avg = jax.tree.map(beta1.average, state['exp_avg'], g)

        def newton(m: Array, h: Array) -> Array:
            ratio = jnp.where(m == 0, 0.0, m / jnp.maximum(hp.gamma * h, hp.eps))
            return jnp.clip(ratio, -hp.clip_threshold, hp.clip_threshold)

        return jax.tree.map(newton, exp_avg, hessian), {'exp_avg': exp_avg, 'hessian': hessian}

    def hessian_source(self, w: Leaves, hp: Hyperparameters, extra: Any) -> Callable[[], Leaves]:
        """What computes an estimate of the diagonal: of the loss, which is descended."""
        sign = -1 if hp.maximize else 1
        if 'hessian' in extra:
            given = {key: to_working(h) for key, h in extra['hessian'].items()}
            if wrong := [key for key in w if key not in given or w[key].shape != given[key].shape]:
                raise ValueError(f'Invalid hessian of {", ".join(wrong)}. Must have the shape of the weight.')
            return lambda: {key: sign * h for key, h in given.items()}
        if 'value_fn' not in extra:
            raise ValueError(
                'Sophia must be told the loss or its Hessian: minimize(loss_fn), update(grads, value_fn=loss_of) '
                'or update(grads, hessian=estimate).'
            )
        value_fn = loss_of_leaves(extra['value_fn'], self._weights)
        kinds = self._weights.read()

        def loss(w: Leaves) -> Any:
            return sign * brainunit.get_mantissa(value_fn({k: from_working(x, kinds[k].dtype) for k, x in w.items()}))

        key = jax.random.fold_in(jax.random.key(hp.seed.astype(int)), updates(hp))
        return lambda: hutchinson(loss, w, key)

    def update(
        self,
        grads: Any,
        *,
        loss_unit: Any = None,
        partial: bool = False,
        loss_scale: Any = None,
        value: Any = None,
        value_fn: Any = None,
        hessian: Any = None,
    ) -> None:
        """Update the weights in place, given the loss as ``value_fn`` or an estimate of its ``hessian``'s diagonal."""
        extra = self._told(value, value_fn)
        if hessian is not None and self.opt_state is not None:
            leaves, scales = self._weights.match(hessian)
            if scales:
                raise ValueError('Invalid hessian. Its leaves must wear the units of their weights.')
            extra = {'hessian': leaves}
        self._update(grads, loss_unit, extra, partial, loss_scale)

    def _told(self, value: Any, value_fn: Any) -> dict[str, Any]:
        return {} if value_fn is None else {'value_fn': value_fn}


def hutchinson(loss: Callable[[Leaves], Any], w: Leaves, key: Array) -> Leaves:
    """The diagonal of the Hessian, and of its other entries a share of either sign."""
    keys = dict(zip(w, jax.random.split(key, len(w)), strict=True))
    signs = {name: jax.random.rademacher(keys[name], x.shape, x.dtype) for name, x in w.items()}
    products = jax.jvp(jax.grad(loss), (w,), (signs,))[1]
    return {name: sign * products[name] for name, sign in signs.items()}
