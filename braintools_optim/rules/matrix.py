"""Rules for matrices: Muon, SOAP."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY
from typing import Annotated, Literal

import brainunit
import jax
import jax.numpy as jnp
from jax.core import Tracer

from braintools_optim.groups.spec import GroupSpec
from braintools_optim.learning_rate import Rate
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import (
    Argument,
    Betas,
    Choice,
    Flag,
    Fraction,
    Hyperparameters,
    NonNegative,
    Number,
    Numbers,
    Period,
    PositiveFinite,
    Range,
    WeightDecay,
    option,
)
from braintools_optim.options.fields import fields_of
from braintools_optim.options.kinds import AT_LEAST_ZERO, BELOW_ONE, Schedulable
from braintools_optim.options.types import ArrayOrQuantity
from braintools_optim.rules.adam import AdamW, level_of_caller
from braintools_optim.settings import GroupOptions
from braintools_optim.step.group import Group
from braintools_optim.step.rule import Slots
from braintools_optim.weights.precision import sqrt
from braintools_optim.weights.predicates import Predicate, matches
from braintools_optim.weights.registered import Weights

__all__ = ['SOAP', 'Muon', 'hidden_matrix']

Array = jax.Array
Bases = dict[int, Array]
"""A square matrix for the rows (0), for the columns (1), or for both."""
NOT_HIDDEN = re.compile(r'\w*(embed|readout|output|classif|logit|vocab|norm|bias)\w*|(\w+_)?(head|out)', re.IGNORECASE)

ALGORITHM = Choice(('muon', 'adamw', None))


def hidden_matrix(name: str, weight: ArrayOrQuantity) -> bool:
    """Return True for a real matrix unless a part of its name suggests an embedding, a norm, a bias or an output.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> names = 'layers.0.weight', 'embedding.weight', 'lm_head'
    >>> [hidden_matrix(name, jnp.ones((2, 2))) for name in names]
    [True, False, False]
    """
    return is_matrix(weight) and not any(NOT_HIDDEN.fullmatch(part) for part in name.split('.'))


def is_matrix(weight: ArrayOrQuantity) -> bool:
    """Return whether a parameter is a real matrix, with or without a unit."""
    array = brainunit.get_mantissa(weight)
    return jnp.ndim(array) == 2 and not jnp.iscomplexobj(array)


def as_matrix(weight: ArrayOrQuantity) -> ArrayOrQuantity:
    """Return a parameter of more than two dimensions as a matrix with a row for each entry of the last axis."""
    array = brainunit.get_mantissa(weight)
    if jnp.ndim(array) <= 2:
        return weight
    return jnp.moveaxis(array, -1, 0).reshape(array.shape[-1], math.prod(array.shape[:-1]))


class Muon(Optimizer):
    r"""Muon: orthogonalized momentum for the matrices of hidden layers, AdamW for all other parameters.

    .. math::
        b_t &= \mu b_{t-1} + (1 - \mu) g_t, \quad
        u_t = \begin{cases} (1 - \mu) g_t + \mu b_t & \text{nesterov} \\ b_t & \text{else} \end{cases} \\
        X_0 &= u_t / \max(\lVert u_t \rVert, \epsilon), \quad
        X_{i+1} = a X_i + (b X_i X_i^T + c (X_i X_i^T)^2) X_i \\
        w_t &= w_{t-1} - \eta (s X_k + \lambda w_{t-1})

    Unlike torch, which iterates in bfloat16, this class iterates in float32 or wider. The two kinds of parameters are
    separate groups, each with its own optimizer, which ``print(optimizer)`` shows.

    The defaults are torch's. The author's release has ``lr=0.02`` and no weight decay for matrices, and for all other
    parameters an Adam with ``lr=3e-4``, ``betas=(0.9, 0.95)``, ``eps=1e-10`` and no weight decay. Here
    ``Muon(lr=0.02)`` alone gives AdamW the learning rate 0.02, too, which is usually too large; registering parameters
    then warns. The author's choice is ``Muon(lr=0.02, adamw_lr=3e-4)``.

    Parameters
    ----------
    weight_decay : float, default 0.1
        Strength :math:`\lambda` of the decoupled weight decay, >= 0.
    momentum : float, default 0.95
        Momentum factor :math:`\mu`, in [0, 1].
    nesterov : bool, default True
        Use Nesterov momentum.
    ns_coefficients : three floats, default (3.4445, -4.775, 2.0315)
        Coefficients :math:`(a, b, c)` of the Newton-Schulz iteration, any finite numbers.
    eps : float, default 1e-7
        Lower bound :math:`\epsilon` of the norm in the denominator, > 0.
    ns_steps : int, default 5
        Number :math:`k` of iterations, in [0, 99]. Cannot be assigned later.
    adjust_lr_fn : {'original', 'match_rms_adamw'}, optional
        Factor :math:`s` for a matrix of m rows and n columns: ``'original'``, the default, is
        :math:`\sqrt{\max(1, m/n)}`; ``'match_rms_adamw'`` is :math:`0.2 \sqrt{\max(m, n)}`, which suits the learning
        rate and the weight decay of AdamW.
    muon : predicate, default hidden_matrix
        Parameters that are updated by Muon: a pattern for the last parts of a dotted name, or a function
        ``(name, weight) -> bool``. Ignored for groups that have their own optimizer or are given ``algorithm``,
        ``'muon'`` or ``'adamw'``. Cannot be assigned later.
    adamw_lr : float, optional
        Learning rate of all other parameters, >= 0, under the same schedule. Default: ``lr``. Cannot be assigned later;
        assign ``lr`` of their group instead. Give it together with an ``lr`` that suits Muon, such as 0.02.
    adamw_betas : pair of float, default (0.9, 0.999)
        Decay rates of the moments in AdamW, in [0, 1), see :class:`AdamW`. Cannot be assigned later; assign ``betas``
        of the group instead.
    adamw_eps : float, default 1e-8
        Number that is added to the denominator in AdamW, >= 0. Cannot be assigned later; assign ``eps`` of the group
        instead.
    adamw_weight_decay : float, default 0.01
        Strength of the decoupled weight decay in AdamW, >= 0. Cannot be assigned later; assign ``weight_decay`` of the
        group instead.
    flatten : bool, default False
        Let Muon also update parameters of more than two dimensions, such as kernels of convolutions: as matrices with a
        row for each output, which is the last axis as in ``brainstate.nn``, and a column for each entry of all other
        axes. The author's release does so with the first axis, as torch has the outputs first. Without it, AdamW
        updates these parameters. Cannot be assigned later.

    Warns
    -----
    UserWarning
        If ``lr`` is above 5e-3 and AdamW is to use it as well: neither ``adamw_lr`` nor an ``lr`` of the group is
        given, and ``adjust_lr_fn`` is not ``'match_rms_adamw'``.

    Raises
    ------
    ValueError
        If a parameter that is not a real matrix is assigned to Muon.

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
    >>> [(group.algorithm, list(group['params'])) for group in optimizer.param_groups]
    [('Muon', ['weight']), ('AdamW', ['bias'])]
    >>> optimizer.update({'weight': jnp.diag(jnp.array([2.0, 1.0])), 'bias': jnp.array([1.0, -3.0])})
    >>> w.value.round(3).tolist(), b.value.round(3).tolist()
    ([[0.5, 0.0], [0.0, 0.5]], [-0.5, 0.5])
    """

    weight_decay: WeightDecay = 0.1
    momentum: Fraction = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: PositiveFinite = 1e-7
    ns_steps: Annotated[int, Argument(Number(Range(0, 99), integer=True, static=True).check)] = 5
    adjust_lr_fn: Literal[None, 'original', 'match_rms_adamw'] = None
    _: KW_ONLY
    muon: Annotated[Predicate, Argument()] = hidden_matrix
    adamw_lr: Annotated[float | None, Argument(Number(AT_LEAST_ZERO, optional=True).check)] = None
    adamw_betas: Annotated[tuple[float, float], Argument(Numbers(Number(BELOW_ONE), 2).check)] = (0.9, 0.999)
    adamw_eps: Annotated[float, Argument(Number(AT_LEAST_ZERO).check)] = 1e-8
    adamw_weight_decay: Annotated[float, Argument(Number(AT_LEAST_ZERO).check)] = 0.01
    flatten: Annotated[bool, Argument(Flag().check)] = False
    decoupled_weight_decay: bool = option(True)

    def split_groups(self, weights: Weights, specs: list[GroupSpec]) -> list[GroupSpec]:
        """Split each group without its own optimizer into the parameters of Muon and those of AdamW."""
        named = {key: as_matrix(w) if self.flatten else w for key, w in weights.named().items()}
        return [part for spec in specs for part in self.split_group(named, weights, spec)]

    def split_group(
        self, named: Mapping[str, ArrayOrQuantity], weights: Weights, spec: GroupSpec
    ) -> Iterator[GroupSpec]:
        """Yield the parts of one group."""
        group, options = spec.group, dict(spec.options.overrides)
        if group.rule is not self:
            yield spec
            return
        algorithm = ALGORITHM.check('algorithm', options.pop('algorithm', None))
        hidden = [k for k in group.keys if algorithm == 'muon' or (not algorithm and matches(self.muon, k, named[k]))]
        if wrong := [key for key in hidden if not is_matrix(named[key])]:
            raise ValueError(f'Muon updates real matrices only. Give {", ".join(wrong)} to AdamW.')
        others = [key for key in group.keys if key not in hidden]
        of_adamw = {'betas': self.adamw_betas, 'eps': self.adamw_eps, 'weight_decay': self.adamw_weight_decay}
        of_adamw |= {} if self.adamw_lr is None else {'lr': self.adamw_lr}
        if others and 'lr' not in of_adamw | options:
            self.warn_of_shared_rate(others)
        adamw, known = AdamW(), fields_of(AdamW).keys() | {'lr_scale'}
        for_adamw = {name: x for name, x in options.items() if name in known or name not in fields_of(Muon)}
        if hidden:  # options that only AdamW has
            options = {name: x for name, x in options.items() if name in fields_of(Muon) or name not in known}
        if others and hidden:
            for_adamw.pop('eps', None)  # the eps of a mixed group is that of Muon
        if hidden or not others:
            params = {key: weights.state_of(key) for key in hidden}
            yield GroupSpec(Group(hidden, params, self), GroupOptions(options), spec.treatment)
        if others:
            params = {key: weights.state_of(key) for key in others}
            given = GroupOptions(of_adamw | for_adamw, adamw.settings, follows=True)
            yield GroupSpec(Group(others, params, adamw), given, spec.treatment)

    def warn_of_shared_rate(self, names: list[str]) -> None:
        """Warn if a learning rate that is usual for Muon is about to be used by AdamW."""
        if not isinstance(self.base_lr, Tracer) and self.base_lr > 5e-3 and self.adjust_lr_fn != 'match_rms_adamw':
            warnings.warn(
                f'AdamW updates {", ".join(names)} with the lr={self.base_lr:g} of Muon, which is usually too large. '
                f"Pass adamw_lr; the author's is 3e-4 beside lr=0.02.",
                stacklevel=level_of_caller(),
            )

    def init_slots(self, w: Array, hp: Hyperparameters) -> Slots:
        return {'momentum_buffer': jnp.zeros_like(w)}

    def direction(self, g: Array, w: Array, slots: Slots, hp: Hyperparameters) -> tuple[Array, Slots]:
        buffer = hp.momentum * slots['momentum_buffer'] + (1 - hp.momentum) * g
        ahead = hp.momentum * buffer + (1 - hp.momentum) * g if hp.nesterov else buffer
        matrix = as_matrix(ahead) if self.flatten else ahead
        if matrix.ndim != 2:
            raise ValueError(f'Muon updates real matrices only, not weights of the shape {list(w.shape)}.')
        rows, columns = matrix.shape
        size = 0.04 * max(rows, columns) if hp.adjust_lr_fn == 'match_rms_adamw' else max(1, rows / max(columns, 1))
        direction = size**0.5 * self.orthogonal(matrix, hp)
        if w.ndim > 2:
            direction = jnp.moveaxis(direction.reshape(w.shape[-1], *w.shape[:-1]), 0, -1)
        return direction, {'momentum_buffer': buffer}

    def orthogonal(self, m: Array, hp: Hyperparameters) -> Array:
        """Return approximately the nearest orthogonal matrix, by Newton-Schulz iterations."""
        a, b, c = hp.ns_coefficients
        tall = m.shape[0] > m.shape[1]
        x = (m.T if tall else m) / jnp.maximum(sqrt(jnp.sum(m * m)), hp.eps)
        for _ in range(int(self.ns_steps)):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x


class SOAP(Optimizer):
    r"""SOAP: for matrices, Adam in the eigenbasis of Shampoo's preconditioner; Adam for all other parameters.

    .. math::
        L_t &= \beta_3 L_{t-1} + (1 - \beta_3) g_t g_t^T, \quad R_t = \beta_3 R_{t-1} + (1 - \beta_3) g_t^T g_t \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) (Q_L^T g_t Q_R)^2 \\
        u_t &= \frac{\sqrt{1 - \beta_2^{t-1}}}{1 - \beta_1^{t-1}}
        Q_L \frac{Q_L^T m_t Q_R}{\sqrt{v_t} + \epsilon} Q_R^T, \quad
        w_t = (1 - \eta \lambda) (w_{t-1} - \eta u_t)

    The first update only computes the eigenvectors :math:`Q` and moves no parameter. Afterwards the eigenvectors are
    renewed every few updates by one power iteration and a QR decomposition. Derivatives through updates treat
    :math:`Q` as constant.

    Equal eigenvalues do not determine their eigenvectors. If the rank of the first gradient is smaller than a side of
    the matrix, the eigenvalue 0 occurs several times, and rounding chooses the basis of its space, in which later
    gradients are scaled. Runs that round differently, such as on one device and on several, then take different paths.

    Parameters
    ----------
    lr : float, LRScheduler or callable, default 3e-3
        Learning rate :math:`\eta`, see :class:`Optimizer`.
    betas : pair of float, default (0.95, 0.95)
        Decay rates :math:`\beta_1, \beta_2` of the two moments, in [0, 1).
    shampoo_beta : float, optional
        Decay rate :math:`\beta_3` of the preconditioner, in [0, 1). Default: :math:`\beta_2`.
    eps : float, default 1e-8
        Number :math:`\epsilon` that is added to the denominator, >= 0.
    weight_decay : float, default 0.01
        Strength :math:`\lambda` of the decoupled weight decay, which acts on the parameter after its step, >= 0.
    precondition_frequency : int, default 10
        Number of updates after which the eigenvectors are renewed, >= 1.
    max_precondition_dim : int, default 10000
        Longest side of a matrix, >= 0, for which a basis is computed; a longer side is not rotated. Cannot be assigned
        later.

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

    lr: Rate = Rate(3e-3)
    betas: Betas = (0.95, 0.95)
    shampoo_beta: Annotated[Schedulable | None, Number(BELOW_ONE, optional=True, decay=True)] = None
    eps: NonNegative = 1e-8
    weight_decay: WeightDecay = 0.01
    precondition_frequency: Period = 10
    max_precondition_dim: Annotated[int, Argument(Number(AT_LEAST_ZERO, integer=True, static=True).check)] = 10000

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
    """Return a matrix in other bases of its rows and columns. Sides without a basis are not changed."""
    m = matmul(bases[0].T, m) if 0 in bases else m
    return matmul(m, bases[1]) if 1 in bases else m


def first_bases(covariances: Bases, bases: Bases, second: Array) -> tuple[Bases, Array]:
    """Return the eigenvectors in the order of descending eigenvalues, and the second moment unchanged."""
    return {i: jnp.linalg.eigh(jax.lax.stop_gradient(m))[1][:, ::-1] for i, m in covariances.items()}, second


def renewed_bases(covariances: Bases, bases: Bases, second: Array) -> tuple[Bases, Array]:
    """Return the vectors after one power iteration, and the second moment, sorted by their present eigenvalues."""
    new = {}
    for i, m in covariances.items():
        product = matmul(*jax.lax.stop_gradient((m, bases[i])))
        order = jnp.argsort(-jnp.sum(bases[i] * product, axis=0))
        new[i] = jnp.linalg.qr(product[:, order])[0]
        second = jnp.take(second, order, axis=i)
    return new, second
