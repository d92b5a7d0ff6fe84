"""The diagonal of the Hessian, estimated every few steps: Sophia."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY
from typing import Annotated, Any, ClassVar

import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    Betas,
    Hyperparameters,
    NonNegative,
    Number,
    Period,
    Positive,
    Range,
    WeightDecay,
    option,
)
from braintools_optim.options.kinds import Schedulable
from braintools_optim.options.types import ArrayOrQuantity, Tree
from braintools_optim.rules.loss import loss_of_leaves
from braintools_optim.step.rule import Extra, GroupInfo, Leaves, RealGroupRule
from braintools_optim.weights.precision import from_working, to_working

__all__ = ['Sophia']

Array = jax.Array
State = dict[str, Tree]
Seed = Annotated[Schedulable, Number(Range(0, 2**24), integer=True)]  # the integers that float32 tells apart


class Sophia(RealGroupRule, Optimizer):
    r"""Sophia: the mean gradient over the mean diagonal of the Hessian, clipped entry by entry.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        h_t = \beta_2 h_{t-1} + (1 - \beta_2) \hat h_t \text{ every } k \text{ steps, else } h_{t-1} \\
        w_t &= w_{t-1} - \eta \left( \mathrm{clip}\Bigl(\frac{m_t}{\max(\gamma h_t, \epsilon)}, \rho\Bigr)
        + \lambda w_{t-1} \right)

    The optimizer needs the loss: ``minimize(loss_fn)``, or ``update(grads, value_fn=loss_of)`` in the forms of
    :class:`LBFGS`. Every :math:`k` steps it computes Hutchinson's estimate :math:`\hat h = u \odot (\nabla^2 f) u` with
    random signs :math:`u`, separately for each group. This computes the loss once more, on the present values of the
    States; what the loss writes to States is dropped. Alternatively, pass :math:`\hat h` as a tree like the gradients:
    ``update(grads, hessian=estimate)``, such as the Gauss-Newton-Bartlett estimate of Sophia-G. The estimate is read on
    every :math:`k`-th step, and on all steps with ``update_period=1``.

    As in the paper, :math:`h_t` acts on the step that estimates it and the bias of :math:`m_t` is not corrected; optax
    uses :math:`h_t` one step later, and corrects the bias. The authors' training loop estimates the Hessian after a
    step, so that :math:`h_t` acts one step later there, too; their code adds 1e-15 to the denominator instead of
    bounding it. Their ``rho``, times the batch size ``bs`` for SophiaG, is ``gamma`` here.

    Parameters
    ----------
    betas : pair of float, default (0.96, 0.99)
        Decay rates of the averages of the gradient and of the Hessian, each in [0, 1).
    gamma : float, default 0.01
        Scale :math:`\gamma` of the Hessian, >= 0. The smaller it is, the more entries are clipped.
    eps : float, default 1e-12
        Lower bound :math:`\epsilon` of the denominator, >= 0.
    weight_decay : float, default 0.0
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    clip_threshold : float, default 1.0
        Greatest size :math:`\rho` of an entry of the direction, > 0.
    update_period : int, default 10
        Number of steps :math:`k` between two estimates of the Hessian, >= 1.
    seed : int, default 0
        Seed of the random signs, from 0 to :math:`2^{24}`. The signs depend on the seed and the update count.

    Raises
    ------
    ValueError
        If an update is given neither the loss nor an estimate of the Hessian.

    References
    ----------
    Liu et al. (2024), Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.array([1.0, 1.0]))
    >>> optimizer = Sophia(lr=1.0, betas=(0.0, 0.0), gamma=1.0).register_trainable_weights({'w': w})
    >>> loss = lambda: jnp.sum(jnp.array([1.0, 100.0]) * (w.value - 0.5) ** 2)
    >>> _ = optimizer.minimize(loss)  # Newton's step
    >>> w.value.tolist()
    [0.5, 0.5]
    """

    works_per_group = False
    author_names: ClassVar = {'rho': 'gamma', 'k': 'update_period'}
    betas: Betas = (0.96, 0.99)
    gamma: NonNegative = 0.01
    eps: NonNegative = 1e-12
    weight_decay: WeightDecay = 0.0
    _: KW_ONLY
    clip_threshold: Positive = 1.0
    update_period: Period = 10
    seed: Seed = 0
    decoupled_weight_decay: bool = option(True)

    def init_state(self, w: Leaves, hp: Hyperparameters) -> State:
        zeros = jax.tree.map(jnp.zeros_like, w)
        return {'exp_avg': zeros, 'hessian': zeros}

    def directions(
        self, g: Leaves, w: Leaves, state: State, hp: Hyperparameters, info: GroupInfo
    ) -> tuple[Leaves, State]:
        estimate = self.hessian_source(w, hp, info)
        beta1, beta2 = hp.betas

        def averaged(hessian: Leaves) -> Leaves:
            new = estimate()
            return {key: beta2.average(h, new[key]).astype(h.dtype) for key, h in hessian.items()}

        due = (info.count - 1).astype(hp.lr.dtype) % hp.update_period == 0
        hessian = jax.lax.cond(due, averaged, lambda hessian: hessian, state['hessian'])
        exp_avg = jax.tree.map(beta1.average, state['exp_avg'], g)

        def newton(m: Array, h: Array) -> Array:
            ratio = jnp.where(m == 0, 0.0, m / jnp.maximum(hp.gamma * h, hp.eps))
            return jnp.clip(ratio, -hp.clip_threshold, hp.clip_threshold)

        return jax.tree.map(newton, exp_avg, hessian), {'exp_avg': exp_avg, 'hessian': hessian}

    def hessian_source(self, w: Leaves, hp: Hyperparameters, info: GroupInfo) -> Callable[[], Leaves]:
        """Return a function that estimates the diagonal of the Hessian of the objective that is minimized."""
        extra = info.extra
        sign = -1 if hp.maximize else 1
        if 'hessian' in extra:
            given = {key: to_working(h) for key, h in extra['hessian'].items()}
            if wrong := [key for key in w if key not in given or w[key].shape != given[key].shape]:
                raise ValueError(f'Invalid hessian of {", ".join(wrong)}. Must have the shape of the weight.')
            return lambda: {key: sign * h for key, h in given.items()}
        if 'value_fn' not in extra:
            raise ValueError(
                'Sophia needs the loss or its Hessian: minimize(loss_fn), update(grads, value_fn=loss_of) '
                'or update(grads, hessian=estimate).'
            )
        value_fn = loss_of_leaves(extra['value_fn'], self._core.weights)
        kinds = self._core.weights.read()

        def loss(w: Leaves) -> Array:
            value = value_fn({k: from_working(x, kinds[k].dtype) for k, x in w.items()})
            signed: Array = sign * brainunit.get_mantissa(value)
            return signed

        key = jax.random.fold_in(jax.random.key(hp.seed.astype(int)), info.count)
        return lambda: hutchinson(loss, w, key)

    def update(
        self,
        grads: Tree,
        *,
        value: ArrayOrQuantity | None = None,
        value_fn: Callable[..., ArrayOrQuantity] | None = None,
        hessian: Tree = None,
        **arguments: Any,
    ) -> None:
        """Update the weights in place, given the loss as ``value_fn`` or an estimate of the Hessian's diagonal."""
        extra = self.extra_args(value, value_fn)
        if hessian is not None and self.opt_state is not None:
            leaves, scales = self._core.weights.match(hessian)
            if scales:
                raise ValueError('Invalid hessian. Each leaf must have the unit of its weight.')
            extra = {'hessian': leaves}
        self.update_with(grads, extra, **arguments)

    def extra_args(self, value: ArrayOrQuantity | None, value_fn: Callable[..., ArrayOrQuantity] | None) -> Extra:
        return {} if value_fn is None else {'value_fn': value_fn}


def hutchinson(loss: Callable[[Leaves], Array], w: Leaves, key: Array) -> Leaves:
    """Return an unbiased estimate of the diagonal of the Hessian."""
    keys = dict(zip(w, jax.random.split(key, len(w)), strict=True))
    signs = {name: jax.random.rademacher(keys[name], x.shape, x.dtype) for name, x in w.items()}
    products = jax.jvp(jax.grad(loss), (w,), (signs,))[1]
    return {name: sign * products[name] for name, sign in signs.items()}
