"""Rules for matrices: Muon, SOAP."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any, Unpack

import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.groups import Group
from braintools_optim.optimizer import LearningRate, Optimizer, given
from braintools_optim.options import Hyperparameters, validate
from braintools_optim.precision import sqrt
from braintools_optim.rule import Slots
from braintools_optim.rules.adam import Moments
from braintools_optim.selection import Predicate, matches
from braintools_optim.shared_options import SharedOptions
from braintools_optim.weights import Weights

__all__ = ['SOAP', 'Muon', 'hidden_matrix']

Array = jax.Array
Bases = dict[int, Array]  # of the rows (0) and the columns (1)
NOT_HIDDEN = re.compile(r'\w*(embed|readout|output|classif|logit|vocab|norm|bias)\w*|(\w+_)?(head|out)', re.IGNORECASE)


def hidden_matrix(name: str, weight: Any) -> bool:
    """Whether a weight is a real matrix, and no part of its name speaks of an embedding, a norm or an output.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> [hidden_matrix(name, jnp.ones((2, 2))) for name in ('layers.0.weight', 'embedding.weight', 'lm_head')]
    [True, False, False]
    """
    return is_matrix(weight) and not any(NOT_HIDDEN.fullmatch(part) for part in name.split('.'))


def is_matrix(weight: Any) -> bool:
    array = brainunit.get_mantissa(weight)
    return jnp.ndim(array) == 2 and not jnp.iscomplexobj(array)


class Muon(Moments):
    r"""Muon: momentum, made orthogonal, for the matrices of hidden layers; AdamW for all other weights.

    .. math::
        b_t &= \mu b_{t-1} + (1 - \mu) g_t, \quad
        u_t = \begin{cases} (1 - \mu) g_t + \mu b_t & \text{nesterov} \\ b_t & \text{else} \end{cases} \\
        X_0 &= u_t / \max(\lVert u_t \rVert, \epsilon), \quad
        X_{i+1} = a X_i + (b X_i X_i^T + c (X_i X_i^T)^2) X_i \\
        w_t &= w_{t-1} - \eta (s X_k + \lambda w_{t-1})

    The iteration is done in the dtype of the arithmetic, float32 at least (torch: in bfloat16). Each of the
    two kinds of weights is a group: ``print(optimizer.param_groups)`` shows which is which.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 1e-3
        See :class:`Optimizer`, as for all options not listed here.
    weight_decay : float, default 0.1
        :math:`\lambda`, decoupled.
    momentum : float, default 0.95
        :math:`\mu`, in [0, 1].
    nesterov : bool, default True
        Look ahead along the momentum.
    ns_coefficients : tuple of float, default (3.4445, -4.775, 2.0315)
        :math:`(a, b, c)`.
    eps : float, default 1e-7
        The least norm that is divided by, above 0.
    ns_steps : int, default 5
        :math:`k`, in [0, 99]. Cannot be assigned.
    adjust_lr_fn : {'original', 'match_rms_adamw'}, optional
        The factor :math:`s` of a matrix of m rows and n columns: :math:`\sqrt{\max(1, m/n)}`, the default,
        or :math:`0.2 \sqrt{\max(m, n)}`, with which AdamW's lr and decay do.
    muon : predicate, default hidden_matrix
        The weights that Muon is to update: a pattern for the last parts of a dotted name, or a function
        ``(name, weight) -> bool``. Not asked for a group with an ``algorithm`` of its own, ``'muon'`` or ``'adamw'``.
    adamw_lr : float, optional
        That of all other weights, under the same schedule. Default: ``lr``.
    adamw_betas : pair of float, default (0.9, 0.999)
        See :class:`AdamW`.
    adamw_eps : float, default 1e-8
        See :class:`AdamW`.
    adamw_weight_decay : float, default 0.01
        See :class:`AdamW`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range, or Muon is to update what is no real matrix.

    References
    ----------
    Jordan et al. (2024), Muon: An optimizer for hidden layers in neural networks. Liu et al. (2025), Muon
    is Scalable for LLM Training.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w, b = brainstate.ParamState(jnp.eye(2)), brainstate.ParamState(jnp.zeros(2))
    >>> optimizer = Muon(lr=0.5, weight_decay=0.0, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=20)
    >>> _ = optimizer.register_trainable_weights({'weight': w, 'bias': b})
    >>> [(group['algorithm'], list(group['params'])) for group in optimizer.param_groups]
    [('muon', ['weight']), ('adamw', ['bias'])]
    >>> optimizer.update({'weight': jnp.diag(jnp.array([2.0, 1.0])), 'bias': jnp.array([1.0, -3.0])})
    >>> w.value.round(3).tolist(), b.value.round(3).tolist()
    ([[0.5, 0.0], [0.0, 0.5]], [-0.5, 0.5])
    """

    group_options = MappingProxyType({'algorithm': 'muon'})

    def __init__(
        self,
        lr: LearningRate = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        *,
        muon: Predicate = hidden_matrix,
        adamw_lr: float | None = None,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.01,
        **shared: Unpack[SharedOptions],
    ):
        options = given(locals(), 'ns_steps', 'muon', 'adamw_lr', 'adamw_weight_decay')
        super().__init__(**options, decoupled_weight_decay=True)
        self.muon, self.ns_steps = muon, int(validate('ns_steps', ns_steps))
        self.adamw_lr = validate('adamw_lr', adamw_lr)
        self.adamw_weight_decay = validate('adamw_weight_decay', adamw_weight_decay)

    def check_options(self, hp: Hyperparameters) -> None:
        if hp.eps == 0:
            raise ValueError('Invalid eps=0.0. Must be > 0.')

    def _parted(
        self, weights: Weights, groups: list[Group], overrides: list[dict[str, Any]]
    ) -> tuple[list[Group], list[dict[str, Any]]]:
        rest = {'algorithm': 'adamw', 'weight_decay': self.adamw_weight_decay}
        rest |= {} if self.adamw_lr is None else {'lr': self.adamw_lr}
        named, parts = weights.named(), []
        for group, own in zip(groups, overrides, strict=True):
            hidden = [key for key in group.keys if 'algorithm' in own or matches(self.muon, key, named[key])]
            others = [key for key in group.keys if key not in hidden]
            if hidden or not others:
                parts.append((hidden, own))
            if others:
                parts.append((others, rest | own))
        muon = [key for keys, own in parts if own.get('algorithm', self.algorithm) == 'muon' for key in keys]
        if wrong := [key for key in muon if not is_matrix(named[key])]:
            raise ValueError(f'Muon updates real matrices only. Give {", ".join(wrong)} to AdamW.')
        states = [Group(keys, {key: weights.state_of(key) for key in keys}) for keys, _ in parts]
        return states, [own for _, own in parts]

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'momentum_buffer': jnp.zeros_like(w)} if hp.algorithm == 'muon' else super().init_slots(w, hp)

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        return {} if hp.algorithm == 'muon' else super().prepare(hp.with_values(betas=hp.adamw_betas))

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        if hp.algorithm == 'adamw':
            new = self.moments(g, slots, hp.with_values(betas=hp.adamw_betas))
            return hp.debias1 * new['exp_avg'] / (sqrt(hp.debias2 * new['exp_avg_sq']) + hp.adamw_eps), new
        if w.ndim != 2:
            raise ValueError(f'Muon updates real matrices only, not weights of the shape {list(w.shape)}.')
        buffer = hp.momentum * slots['momentum_buffer'] + (1 - hp.momentum) * g
        ahead = hp.momentum * buffer + (1 - hp.momentum) * g if hp.nesterov else buffer
        rows, columns = w.shape
        size = 0.04 * max(w.shape) if hp.adjust_lr_fn == 'match_rms_adamw' else max(1, rows / max(columns, 1))
        return size**0.5 * self.orthogonal(ahead, hp), {'momentum_buffer': buffer}

    def orthogonal(self, m: Array, hp: Hyperparameters) -> Array:
        """About the nearest orthogonal matrix, by Newton-Schulz iterations."""
        a, b, c = hp.ns_coefficients
        tall = m.shape[0] > m.shape[1]
        x = (m.T if tall else m) / jnp.maximum(sqrt(jnp.sum(m * m)), hp.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x


class SOAP(Optimizer):
    r"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for matrices; Adam for all other weights.

    .. math::
        L_t &= \beta_3 L_{t-1} + (1 - \beta_3) g_t g_t^T, \quad R_t = \beta_3 R_{t-1} + (1 - \beta_3) g_t^T g_t \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^T g_t Q_R)^2 \\
        u_t &= \frac{\sqrt{1 - \beta_2^{t-1}}}{1 - \beta_1^{t-1}}
        Q_L \frac{Q_L^T m_t Q_R}{\sqrt{v_t} + \epsilon} Q_R^T, \quad
        w_t = (1 - \eta \lambda) (w_{t-1} - \eta u_t)

    The first update only finds the eigenvectors :math:`Q`, of all weights, and moves none; after that one
    power iteration and a QR decomposition renew them every few updates. Derivatives through updates take
    the :math:`Q` as constant.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 3e-3
        See :class:`Optimizer`, as for all options not listed here.
    betas : pair of float, default (0.95, 0.95)
        :math:`\beta_1, \beta_2`, in [0, 1).
    shampoo_beta : float, optional
        :math:`\beta_3`, in [0, 1). Default: :math:`\beta_2`.
    eps : float, default 1e-8
        Added to the denominator; at least 0.
    weight_decay : float, default 0.01
        :math:`\lambda`, of the weight after its step.
    precondition_frequency : int, default 10
        After how many updates the eigenvectors are renewed. At least 1.
    max_precondition_dim : int, default 10000
        A longer side of a matrix keeps its basis. At least 0. Cannot be assigned.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Vyas et al. (2024), SOAP: Improving and Stabilizing Shampoo using Adam.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> w = brainstate.ParamState(jnp.zeros((2, 2)))
    >>> optimizer = SOAP(lr=0.5, weight_decay=0.0).register_trainable_weights({'w': w})
    >>> for _ in range(2):
    ...     optimizer.update({'w': jnp.array([[3.0, 0.0], [0.0, -1.0]])})
    >>> w.value.round(3).tolist()
    [[-0.5, 0.0], [0.0, 0.5]]
    """

    decays = True

    def __init__(
        self,
        lr: LearningRate = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        shampoo_beta: float | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        precondition_frequency: int = 10,
        max_precondition_dim: int = 10000,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        **shared: Unpack[SharedOptions],
    ):
        super().__init__(**given(locals(), 'max_precondition_dim'))
        self.max_precondition_dim = validate('max_precondition_dim', max_precondition_dim)

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        slots = {'exp_avg': jnp.zeros_like(w), 'exp_avg_sq': jnp.zeros_like(w)}
        sides = [i for i, n in enumerate(w.shape) if w.ndim == 2 and w.size and n <= self.max_precondition_dim]
        for i in sides:
            slots |= {f'GG{i}': jnp.zeros((w.shape[i],) * 2, w.dtype), f'Q{i}': jnp.eye(w.shape[i], dtype=w.dtype)}
        return slots

    def prepare(self, hp: Hyperparameters) -> dict[str, Array]:
        past = hp.step - 1
        count = jnp.maximum(past, 1)
        renewal = jnp.where(past % hp.precondition_frequency == 0, 1, 2)
        return {
            'rate': jnp.sqrt(hp.betas[1].correction(count)) * hp.betas[0].debias(count),
            'renewal': jnp.where(past == 0, 0, renewal),
        }

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        sides = [i for i in (0, 1) if f'Q{i}' in slots]
        bases = {i: slots[f'Q{i}'] for i in sides}
        started, (beta1, beta2) = hp.step > 1, hp.betas
        exp_avg = jnp.where(started, beta1.average(slots['exp_avg'], g), 0.0)
        second = jnp.where(started, beta2.average(slots['exp_avg_sq'], rotated(g, bases) ** 2), 0.0)
        scaled = hp.rate * rotated(exp_avg, bases) / (sqrt(second) + hp.eps)
        change = rotated(scaled, {i: q.T for i, q in bases.items()})
        change = jnp.where(started, change + hp.weight_decay * (w - hp.lr * change), 0.0)
        beta = hp.shampoo_beta or beta2
        covariances = {i: beta.average(slots[f'GG{i}'], matmul(*((g, g.T) if i == 0 else (g.T, g)))) for i in sides}
        branches = (first_bases, renewed_bases, lambda covariances, bases, second: (bases, second))
        bases, second = jax.lax.switch(hp.renewal, branches, covariances, bases, second)
        kept = {f'{name}{i}': x[i] for name, x in (('GG', covariances), ('Q', bases)) for i in sides}
        return change, {'exp_avg': exp_avg, 'exp_avg_sq': second, **kept}


def matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision='highest')


def rotated(m: Array, bases: Bases) -> Array:
    """A matrix in other bases of its rows and columns; anything else as it is."""
    m = matmul(bases[0].T, m) if 0 in bases else m
    return matmul(m, bases[1]) if 1 in bases else m


def first_bases(covariances: Bases, bases: Bases, second: Array) -> tuple[Bases, Array]:
    """The eigenvectors, that of the greatest eigenvalue first."""
    return {i: jnp.linalg.eigh(jax.lax.stop_gradient(m))[1][:, ::-1] for i, m in covariances.items()}, second


def renewed_bases(covariances: Bases, bases: Bases, second: Array) -> tuple[Bases, Array]:
    """One power iteration of the vectors, in the order of their present eigenvalues; the second moment with them."""
    new = {}
    for i, m in covariances.items():
        product = matmul(*jax.lax.stop_gradient((m, bases[i])))
        order = jnp.argsort(-jnp.sum(bases[i] * product, axis=0))
        new[i] = jnp.linalg.qr(product[:, order])[0]
        second = jnp.take(second, order, axis=i)
    return new, second
