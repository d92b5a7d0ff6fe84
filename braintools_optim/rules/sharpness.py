"""Sharpness-aware minimization: SAM, around any other optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import jax.numpy as jnp
from brainstate.graph import Node

from braintools_optim.clipping import global_norm
from braintools_optim.evaluation import refuse_inside
from braintools_optim.optimizer import Optimizer
from braintools_optim.options import Hyperparameters, Packed, validate
from braintools_optim.precision import compute_dtype
from braintools_optim.rules.whole_tree import takes_weights
from braintools_optim.settings import OptimState
from braintools_optim.states import inside_transformation
from braintools_optim.step import check_gradients

__all__ = ['SAM']

OWN = {'base_optimizer', 'perturbation', 'rho', 'adaptive'}


class SAM(Node):
    r"""Sharpness-aware minimization: the gradient at the worst weights nearby moves the weights.

    .. math::
        p_t = \rho \frac{g_t}{\lVert g_t \rVert}, \quad
        w_t = w_{t-1} - \eta \, u(\nabla L(w_{t-1} + p_t))

    with the norm over all weights together and the step :math:`u` of another optimizer. Its learning rate,
    schedule, options, groups and memory are SAM's: ``optimizer.lr``, ``optimizer.weight_decay`` and all else
    read and assign those of ``base_optimizer``, which clips the second gradient. The loss is evaluated twice
    an update, and States that it writes are written twice.

    Parameters
    ----------
    base_optimizer : Optimizer
        What makes the steps.
    rho : float, default 0.05
        :math:`\rho`, at least 0.
    adaptive : bool, default False
        Perturb in proportion to the size of each entry: :math:`p_t = \rho w^2 g_t / \lVert |w| g_t \rVert`.

    Raises
    ------
    TypeError, ValueError
        If an option is not of its kind or out of its range.

    References
    ----------
    Foret et al. (2021), Sharpness-Aware Minimization for Efficiently Improving Generalization. Kwon et al.
    (2021), ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    >>> optimizer = SAM(SGD(lr=0.125), rho=5.0).register_trainable_weights({'w': w})
    >>> float(optimizer.minimize(lambda: jnp.sum(w.value**2)))
    25.0
    >>> w.value.tolist()  # by the gradient at (6, 8)
    [1.5, 2.0]
    """

    def __init__(self, base_optimizer: Optimizer, rho: float = 0.05, adaptive: bool = False):
        if not isinstance(base_optimizer, Optimizer):
            raise TypeError(f'Invalid base_optimizer={base_optimizer!r}. Must be an Optimizer.')
        self.base_optimizer = base_optimizer
        options = {'radius': validate('radius', rho, label='rho'), 'adaptive': validate('adaptive', adaptive, True)}
        self.perturbation = OptimState(Packed.of(Hyperparameters.as_leaves(options)))

    # options, and all that is the base optimizer's

    @property
    def rho(self) -> Any:
        """The length of the perturbation; assigning acts on the next update."""
        return self.perturbation.value.tree.plain().radius

    @rho.setter
    def rho(self, value: Any) -> None:
        self._set('radius', validate('radius', value, label='rho'))

    @property
    def adaptive(self) -> bool:
        """Whether entries are perturbed in proportion to their size; assigning acts on the next update."""
        adaptive: bool = self.perturbation.value.flags.adaptive
        return adaptive

    @adaptive.setter
    def adaptive(self, value: bool) -> None:
        self._set('adaptive', validate('adaptive', value, True))

    def _set(self, name: str, value: Any) -> None:
        leaf = Hyperparameters.as_leaves({name: value}).values()
        self.perturbation.value = Packed.of(self.perturbation.value.tree.with_values(**leaf))

    def __getattr__(self, name: str) -> Any:  # reached only by what is no ordinary attribute
        if name.startswith('__') or 'base_optimizer' not in self.__dict__:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return getattr(self.base_optimizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in OWN:
            super().__setattr__(name, value)
        else:
            setattr(self.base_optimizer, name, value)

    def register_trainable_weights(self, param_states: Any) -> Self:
        """See :meth:`Optimizer.register_trainable_weights`."""
        self.base_optimizer.register_trainable_weights(param_states)
        return self

    def __repr__(self) -> str:
        return f'SAM({self.base_optimizer!r}, rho={self.rho}, adaptive={self.adaptive})'

    # one update

    def update(self, grads: Any, *, value_fn: Any = None, loss_unit: Any = None, value: Any = None) -> None:
        """Update the weights in place. ``grads`` are those at the weights, ``value_fn`` is the loss.

        The loss takes the tree of the weights, or nothing and reads the model's States. Give the same function
        each time, not a new ``lambda``: the update is compiled for it. ``value``, the loss here, is not needed.
        """
        refuse_inside(self.base_optimizer, 'An update')
        if self.opt_state is None:
            raise ValueError('register_trainable_weights must be called before step.')
        if value_fn is None:
            raise ValueError('SAM needs the loss: update(grads, value_fn=loss), or minimize(loss).')

        def loss() -> Any:
            return value_fn(self.param_states.to_pytree_value()) if takes_weights(value_fn) else value_fn()

        def run(grads: Any) -> None:
            self._descend(grads, loss_unit, loss)

        (run if inside_transformation() else self._jit((value_fn, loss_unit), run))(grads)

    def step(self, grads: Any, **arguments: Any) -> None:
        """The same as :meth:`update`."""
        self.update(grads, **arguments)

    def minimize(self, loss_fn: Callable[..., Any], *args: Any, has_aux: bool = False) -> Any:
        """Take both gradients of ``loss_fn(*args)``, update the weights, return the loss at them (and aux).

        See :meth:`Optimizer.minimize`.
        """
        minimize: Any = Optimizer.minimize  # which leaves to _update_knowing what to do with the gradient
        return minimize(self, loss_fn, *args, has_aux=has_aux)

    def _update_knowing(self, grads: Any, value: Any, value_fn: Callable[[], Any]) -> None:
        self._descend(grads, None, value_fn)

    def _jit(self, key: Any, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.base_optimizer._jit(('SAM', key), function)

    def _descend(self, grads: Any, loss_unit: Any, loss: Callable[[], Any]) -> None:
        """The base optimizer's update with the gradient at the perturbed weights."""
        base, hp = self.base_optimizer, self.perturbation.value.tree
        frozen = base.settings.frozen
        found, factors = base._weights.match(grads, loss_unit, frozen=frozen)
        weights = {key: jnp.asarray(w) for key, w in base._weights.read().items()}
        check_gradients(weights, found)
        groups = enumerate(base.param_groups)
        ascending = {key for i, group in groups if group['maximize'] for key in base.group_names(i)}
        toward, sizes = {}, {}
        for key, g in found.items():
            if key not in frozen:
                w = weights[key].astype(compute_dtype(weights[key]))
                toward[key] = jnp.conj(g.astype(w.dtype)) * factors.get(key, 1.0) * (-1.0 if key in ascending else 1.0)
                sizes[key] = abs(w) if hp.adaptive else jnp.ones((), w.real.dtype)
        norm = global_norm({key: sizes[key] * g for key, g in toward.items()})
        factor = jnp.where(norm > 0, hp.radius / jnp.where(norm > 0, norm, 1.0), 0.0)
        perturbed = {key: weights[key] + factor * sizes[key] ** 2 * g for key, g in toward.items()}
        perturbed = {key: w.astype(weights[key].dtype) for key, w in perturbed.items()}
        with base._weights.replaced(perturbed):
            second = base._gradient(lambda: base._scaled(loss()))
        base.update(second)

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """That of the base optimizer, and SAM's own options."""
        base = self.base_optimizer.state_dict()
        return {'optimizer': 'SAM', 'rho': self.rho, 'adaptive': self.adaptive, 'base_optimizer': base}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> list[str]:
        """Go on from where :meth:`state_dict` was taken; see :meth:`Optimizer.load_state_dict`."""
        if not isinstance(state_dict, Mapping) or state_dict.keys() != OWN - {'perturbation'} | {'optimizer'}:
            raise ValueError('The state_dict is not one of SAM.')
        there, rho = state_dict['adaptive'], validate('radius', state_dict['rho'], label='rho')
        problems = [] if there == self.adaptive else [f'adaptive: {there!r} there, {self.adaptive!r} here']
        if problems and strict:
            raise ValueError(f'The state_dict does not fit this optimizer, which is unchanged. {problems[0]}')
        problems += self.base_optimizer.load_state_dict(state_dict['base_optimizer'], strict)
        self.rho = rho
        return problems
