"""Second-order optimization with forward-mode derivatives only: SOFO, SOFOScan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Unpack

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.compiled.access import inside_transformation
from braintools_optim.learning_rate import LearningRate
from braintools_optim.options import option
from braintools_optim.options.types import Tree
from braintools_optim.rules.sgd import SGD, Dampening
from braintools_optim.rules.shared_options import SharedOptions

__all__ = ['SOFO', 'SOFOScan']

Array = jax.Array
LossFunction = Callable[[Tree, Tree], Array]


class ForwardMode(SGD):
    """Base of optimizers that compute their direction from derivatives along random tangents of the weights."""

    torch_counterpart, optax_slots = SGD.torch_counterpart, SGD.optax_slots
    graph_invisible_attrs = (*SGD.graph_invisible_attrs, 'model', 'rnn_cell')  # type: ignore[assignment]  # not saved
    replaces_gradient = True
    works_per_group = False
    dampening: Dampening = option(0.0)
    decoupled_weight_decay: bool = option(True)

    def __init__(
        self,
        /,
        loss_fn: LossFunction,
        loss: str,
        tangent_size: int,
        damping: float,
        key: Array | None,
        **options: Any,
    ):
        if options.get('loss_scale') is not None:
            raise ValueError(f'Invalid loss_scale. {type(self).__name__} computes no gradient that could underflow.')
        self.loss_fn, self.loss, self.tangent_size, self.damping, self.key = loss_fn, loss, tangent_size, damping, key
        super().__init__(**options)

    def predict(self, *inputs: Tree) -> Array:
        """Return the predictions of the network, whose first axis are the samples."""
        raise NotImplementedError

    def direction_along_tangents(self, inputs: tuple[Tree, ...], targets: Tree) -> tuple[Tree, Array]:
        """Return the direction in the tree of the registered weights, and the predictions."""
        self._core.registered('step')
        key = brainstate.random.split_key() if self.key is None else jax.random.fold_in(self.key, self.step_count.value)
        states = self.param_states.unique_states
        tangents = random_tangents(key, [state.value for state in states], self.tangent_size)
        transform: Any = brainstate.transform.GradientTransform(
            self.predict,
            subspace_newton,
            grad_states=self.registered_tree(),
            return_value=True,
            transform_params={
                'loss_of': lambda predictions: self.loss_fn(predictions, targets),
                'loss': self.loss,
                'damping': self.damping,
                # by id, as GradientTransform passes the weights
                'tangents': {id(state): tangent for state, tangent in zip(states, tangents, strict=True)},
            },
        )
        direction, predictions = transform(*inputs)
        return direction, predictions

    def registered_tree(self) -> Tree:
        """Return the registered States in the tree in which they were registered, as a dict if there are groups."""
        trees = [group.params for group in self._core.groups]
        if len(trees) == 1:
            return trees[0]
        if all(isinstance(tree, Mapping) for tree in trees):
            return {key: entry for tree in trees for key, entry in tree.items()}
        return self.param_states.to_pytree()

    def step_along_tangents(self, inputs: tuple[Tree, ...], targets: Tree) -> Array:
        """Update the weights and return the loss before the update."""

        def run(inputs: tuple[Tree, ...], targets: Tree) -> Array:
            direction, predictions = self.direction_along_tangents(inputs, targets)
            self.update_with(direction, {})
            return self.loss_fn(predictions, targets)

        self._core.registered('step')
        self._core.refuse_evaluating('An update')
        if inside_transformation():
            return run(inputs, targets)
        loss: Array = self._updater.jit('step_along_tangents', run)(inputs, targets)
        return loss

    def minimize(self, loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False) -> NoReturn:
        """Raise a ``TypeError``: the optimizer has its loss already, and :meth:`step` computes it."""
        raise TypeError(f'{type(self).__name__} computes its direction from the model: call step instead of minimize.')


class SOFO(ForwardMode):
    r"""Second-order forward-mode optimization: Gauss-Newton steps in a random subspace, without backpropagation.

    .. math::
        h = V^T (U |\Lambda| U^T + \epsilon I)^{-1} V \nabla L, \quad
        U \Lambda U^T = V G V^T, \quad \epsilon = \text{damping} \cdot \max |\Lambda|

    The rows of :math:`V` are random tangents of norm 1, and :math:`G` is the generalized Gauss-Newton matrix. One pass
    of ``jax.jvp`` for each tangent gives :math:`V \nabla L` and :math:`V G V^T`. The direction :math:`h` takes the
    place of the gradient in :class:`SGD`: it is clipped, and has momentum and decoupled weight decay. Neither
    ``step`` nor ``update`` takes gradients.

    Parameters
    ----------
    model : callable
        The network, ``model(inputs)``. Its weights are registered with :meth:`~Optimizer.register_trainable_weights`.
    loss_fn : callable
        ``loss_fn(predictions, targets)``, a scalar.
    loss : {'mse', 'ce'}, default 'mse'
        Whether the Gauss-Newton matrix is that of the mean squared error or of the cross-entropy of a softmax. For
        ``'ce'`` the last axis of the predictions are the logits.
    tangent_size : int, default 100
        Number of random tangents. Memory grows with it.
    damping : float, default 1e-5
        Damping relative to the largest eigenvalue.
    momentum : float, default 0.0
        Momentum factor, in [0, 1].
    nesterov : bool, default False
        Use Nesterov momentum. Requires ``momentum > 0``.
    weight_decay : float, default 0.0
        Strength of the decoupled weight decay, >= 0.
    key : jax.random key, optional
        Key of the tangents, which each update combines with the update count. Default: ``brainstate.random``.

    Raises
    ------
    ValueError
        If a step finds another ``loss`` than ``'mse'`` or ``'ce'``.

    References
    ----------
    Yu et al. (2024), Second-order forward-mode optimization of recurrent neural networks for neuroscience.

    Examples
    --------
    >>> import brainstate, jax, jax.numpy as jnp
    >>> model = brainstate.nn.Linear(2, 1)
    >>> loss = lambda y, target: jnp.mean((y - target) ** 2)
    >>> optimizer = SOFO(model, loss, lr=0.5, key=jax.random.key(0))
    >>> optimizer = optimizer.register_trainable_weights(model.states(brainstate.ParamState))
    >>> losses = [float(optimizer.step(jnp.eye(2), jnp.ones((2, 1)))) for _ in range(20)]
    >>> losses[-1] < 1e-3 * losses[0]
    True
    """

    def __init__(
        self,
        /,
        model: Callable[..., Array],
        loss_fn: LossFunction,
        lr: LearningRate = 1e-3,
        loss: str = 'mse',
        tangent_size: int = 100,
        damping: float = 1e-5,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        key: Array | None = None,
        **shared: Unpack[SharedOptions],
    ):
        self.model = model
        options: Any = {'lr': lr, 'momentum': momentum, 'nesterov': nesterov, 'weight_decay': weight_decay, **shared}
        options |= {'grad_clip_norm': grad_clip_norm, 'grad_clip_value': grad_clip_value}
        super().__init__(loss_fn, loss, tangent_size, damping, key, **options)

    def predict(self, *inputs: Tree) -> Array:
        return self.model(*inputs)

    def step(self, inputs: Tree, targets: Tree) -> Array:  # type: ignore[override]  # computes the direction itself
        """Update the weights and return the loss before the update."""
        return self.step_along_tangents((inputs,), targets)

    def update(self, inputs: Tree, targets: Tree) -> Array:  # type: ignore[override]
        """Call :meth:`step`."""
        return self.step(inputs, targets)

    def _compute_direction(self, inputs: Tree, targets: Tree) -> tuple[Tree, Array]:
        return self.direction_along_tangents((inputs,), targets)


class SOFOScan(ForwardMode):
    r""":class:`SOFO` for a recurrent network, whose tangents are carried forward through time.

    Every sample at every time counts as a sample of the Gauss-Newton matrix.

    Parameters
    ----------
    rnn_cell : callable
        One step of the network, ``rnn_cell(state, inputs) -> (state, output)``. Its weights are registered with
        :meth:`~Optimizer.register_trainable_weights`.
    loss_fn : callable
        ``loss_fn(predictions, targets)``, a scalar. The axes of time and batch are one axis of both arguments.
    loss, tangent_size, damping, momentum, nesterov, weight_decay, key
        See :class:`SOFO`.

    Raises
    ------
    ValueError
        If a step finds another ``loss`` than ``'mse'`` or ``'ce'``.

    Examples
    --------
    >>> import brainstate, jax, jax.numpy as jnp
    >>> linear = brainstate.nn.Linear(2, 1)
    >>> def cell(state, x):  # a leaky sum of the inputs
    ...     state = 0.5 * state + linear(x)
    ...     return state, state
    >>> loss = lambda y, target: jnp.mean((y - target) ** 2)
    >>> optimizer = SOFOScan(cell, loss, lr=0.5, key=jax.random.key(0))
    >>> optimizer = optimizer.register_trainable_weights(linear.states(brainstate.ParamState))
    >>> batch = jnp.ones((3, 4, 2)), jnp.ones((3, 4, 1))
    >>> losses = [float(optimizer.step(jnp.zeros((4, 1)), batch)) for _ in range(20)]
    >>> losses[-1] < losses[0]
    True
    """

    def __init__(
        self,
        /,
        rnn_cell: Callable[[Tree, Tree], tuple[Tree, Array]],
        loss_fn: LossFunction,
        lr: LearningRate = 1e-3,
        loss: str = 'mse',
        tangent_size: int = 100,
        damping: float = 1e-5,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        grad_clip_norm: float | None = None,
        grad_clip_value: float | None = None,
        key: Array | None = None,
        **shared: Unpack[SharedOptions],
    ):
        self.rnn_cell = rnn_cell
        options: Any = {'lr': lr, 'momentum': momentum, 'nesterov': nesterov, 'weight_decay': weight_decay, **shared}
        options |= {'grad_clip_norm': grad_clip_norm, 'grad_clip_value': grad_clip_value}
        super().__init__(loss_fn, loss, tangent_size, damping, key, **options)

    def predict(self, *inputs: Tree) -> Array:
        sequence, first_state = inputs
        _, outputs = brainstate.transform.scan(self.rnn_cell, first_state, sequence)
        return merge_time_and_batch(outputs)

    def step(self, z_init: Tree, batch: tuple[Tree, Array]) -> Array:  # type: ignore[override]
        """Update the weights with a batch ``(inputs, targets)`` of sequences and return the loss before the update.

        The first two axes of inputs and targets are time and batch. ``z_init`` is the state before the first input.
        """
        sequence, targets = batch
        return self.step_along_tangents((sequence, z_init), merge_time_and_batch(targets))

    def update(self, z_init: Tree, batch: tuple[Tree, Array]) -> Array:  # type: ignore[override]
        """Call :meth:`step`."""
        return self.step(z_init, batch)

    def _compute_direction(self, z_init: Tree, batch: tuple[Tree, Array]) -> tuple[Tree, Array]:
        sequence, targets = batch
        return self.direction_along_tangents((sequence, z_init), merge_time_and_batch(targets))


def merge_time_and_batch(x: Array) -> Array:
    """Return an array whose first two axes are one."""
    return x.reshape(-1, *x.shape[2:])


def subspace_newton(
    function: Callable[..., tuple[Array, Tree]],
    *,
    loss_of: Callable[[Array], Array],
    loss: str,
    damping: float,
    tangents: Tree,
    **_: object,
) -> Callable[..., tuple[Tree, Tree]]:
    """Return a function that computes a damped Gauss-Newton direction in a random subspace.

    ``function`` maps weights and further arguments to predictions and auxiliary values. The result returns the
    direction and the auxiliary values, as brainstate's ``GradientTransform`` requires.
    """
    if loss not in CURVATURES:
        raise ValueError(f'Invalid loss={loss!r}. Must be one of {", ".join(map(repr, CURVATURES))}.')

    def direction(weights: Tree, *arguments: Tree) -> tuple[Tree, Tree]:
        def along(tangent: Tree) -> tuple[Array, Array, Tree]:
            predictions, slope, aux = jax.jvp(lambda w: function(w, *arguments), (weights,), (tangent,), has_aux=True)
            return predictions, slope, aux

        # the values are the same along all tangents, and XLA computes them once
        predictions, slopes, aux = jax.vmap(along)(tangents)
        predictions, aux = jax.tree.map(lambda x: x[0], (predictions, aux))
        gradient = jax.vmap(lambda slope: jax.jvp(loss_of, (predictions,), (slope,))[1])(slopes)
        values, vectors = jnp.linalg.eigh(CURVATURES[loss](predictions, slopes))
        sizes = jnp.abs(values)
        damped = jnp.maximum(sizes + damping * jnp.max(sizes), np.finfo(sizes.dtype).eps)
        shares = vectors @ ((vectors.T @ gradient) / damped)
        return jax.tree.map(lambda v: jnp.tensordot(shares.astype(v.dtype), v, 1), tangents), aux

    return direction


def random_tangents(key: Array, weights: Tree, number: int) -> Tree:
    """Return random tangents of norm 1 over all weights, stacked along a new first axis of each leaf."""
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    tangents = [jax.random.normal(k, (number, *w.shape), w.dtype) for k, w in zip(keys, leaves, strict=True)]
    norm = jnp.sqrt(sum(jnp.sum(jnp.abs(t.reshape(number, -1)) ** 2, axis=1) for t in tangents))
    scaled = [t / norm.reshape(number, *[1] * (t.ndim - 1)).astype(t.dtype) for t in tangents]
    return jax.tree.unflatten(structure, scaled)


def squared_error_curvature(predictions: Array, slopes: Array) -> Array:
    """Return the Gauss-Newton matrix of half the squared error in the subspace, averaged over the samples."""
    flat = slopes.reshape(len(slopes), -1)
    return flat @ flat.T / predictions.shape[0]


def cross_entropy_curvature(predictions: Array, slopes: Array) -> Array:
    """Return the Gauss-Newton matrix of the cross-entropy in the subspace, averaged over the samples."""
    probabilities = jax.nn.softmax(predictions.reshape(-1, predictions.shape[-1]))
    flat = slopes.reshape(len(slopes), *probabilities.shape)
    means = jnp.einsum('knc,nc->kn', flat, probabilities)
    second = jnp.einsum('knc,nc,lnc->kl', flat, probabilities, flat)
    return (second - means @ means.T) / len(probabilities)


CURVATURES = {'mse': squared_error_curvature, 'ce': cross_entropy_curvature}
