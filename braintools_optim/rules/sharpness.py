"""Sharpness-aware minimization: SAM, around any other optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import brainunit
import jax
import jax.numpy as jnp

from braintools_optim.compiled.access import is_traced
from braintools_optim.optimizer import Optimizer
from braintools_optim.options.hyperparameters import Hyperparameters, Packed, replace
from braintools_optim.options.kinds import AT_LEAST_ZERO, Flag, Number, Scalar
from braintools_optim.options.types import ArrayOrQuantity, OptionValue, Tree
from braintools_optim.saving.checkpoint import UNFIT, fitted_state
from braintools_optim.saving.form import plain
from braintools_optim.settings import OptimState
from braintools_optim.step.clipping import global_norm
from braintools_optim.step.step import check_gradients
from braintools_optim.weights.precision import compute_dtype

__all__ = ['SAM']

SAM_ATTRIBUTES = {'base_optimizer', 'perturbation', 'rho', 'adaptive'}
RHO = Number(AT_LEAST_ZERO)


class SAM(Optimizer):
    r"""Sharpness-aware minimization: the gradient at the worst weights nearby moves the weights.

    .. math::
        p_t = \rho \frac{g_t}{\lVert g_t \rVert}, \quad
        w_t = w_{t-1} - \eta \, u(\nabla L(w_{t-1} + p_t))

    with the norm over all weights together and the step :math:`u` of another optimizer. Learning rate, schedule,
    options, groups and optimizer state are those of ``base_optimizer``: ``optimizer.lr``, ``optimizer.weight_decay``
    and all other attributes read and assign those of ``base_optimizer``, which clips the second gradient. An update
    evaluates the loss twice, and States that the loss writes are written twice.

    Parameters
    ----------
    base_optimizer : Optimizer
        The optimizer that makes the steps.
    rho : float, default 0.05
        Length :math:`\rho` of the perturbation, >= 0.
    adaptive : bool, default False
        Perturb each entry in proportion to its size: :math:`p_t = \rho w^2 g_t / \lVert |w| g_t \rVert`. The release
        of ASAM uses :math:`|w| + 0.01` in place of :math:`|w|` for parameters that are called ``weight``, 1 for all
        others, and ``rho=0.5``; the package davda54/sam uses :math:`|w|`, as this class does.

    Raises
    ------
    TypeError
        If ``base_optimizer`` is not an Optimizer, or is a SAM itself.

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
    >>> w.value.tolist()  # a step along the gradient at (6, 8)
    [1.5, 2.0]
    """

    replaces_gradient: ClassVar[bool] = True
    works_per_group: ClassVar[bool] = False

    def __init__(self, /, base_optimizer: Optimizer, rho: float = 0.05, adaptive: bool = False):
        if not isinstance(base_optimizer, Optimizer) or base_optimizer.replaces_gradient:
            raise TypeError(f'Invalid base_optimizer={base_optimizer!r}. Must be an Optimizer other than SAM.')
        self.base_optimizer = base_optimizer
        rho, adaptive = RHO.check('rho', rho), Flag().check('adaptive', adaptive)
        self.perturbation = OptimState(Packed.of(Hyperparameters({'radius': RHO.to_leaf(rho), 'adaptive': adaptive})))

    # options: those of SAM, and all others of the base optimizer

    @property
    def rho(self) -> Scalar:
        """The length of the perturbation; assigning it acts on the next update."""
        rho: Scalar = RHO.from_leaf(self.perturbation.value.tree.radius)
        return rho

    @rho.setter
    def rho(self, value: Scalar) -> None:
        self.set_perturbation(radius=RHO.to_leaf(RHO.check('rho', value)))

    @property
    def adaptive(self) -> bool:
        """Whether entries are perturbed in proportion to their size; assigning it acts on the next update."""
        adaptive: bool = self.perturbation.value.flags.adaptive
        return adaptive

    @adaptive.setter
    def adaptive(self, value: bool) -> None:
        self.set_perturbation(adaptive=Flag().check('adaptive', value))

    def set_perturbation(self, **leaves: OptionValue) -> None:
        """Replace options of the perturbation."""
        self.perturbation.value = Packed.of(replace(self.perturbation.value.tree, **leaves))

    def __getattr__(self, name: str) -> OptionValue:  # called only if SAM itself has no such attribute
        if name.startswith('__') or 'base_optimizer' not in self.__dict__:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return getattr(self.base_optimizer, name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in SAM_ATTRIBUTES:
            object.__setattr__(self, name, value)
        else:
            setattr(self.base_optimizer, name, value)

    def read_option(self, name: str) -> OptionValue:
        return self.base_optimizer.read_option(name)

    def __repr__(self) -> str:
        return f'SAM({self.base_optimizer!r}, rho={self.rho}, adaptive={self.adaptive})'

    # one update

    def update(  # type: ignore[override]  # the second gradient is computed here, so it is neither partial nor scaled
        self,
        grads: Tree,
        *,
        value_fn: Callable[..., ArrayOrQuantity] | None = None,
        loss_unit: brainunit.Unit | None = None,
        value: ArrayOrQuantity | None = None,
    ) -> None:
        """Update the weights in place, given the gradients at the weights and the loss as ``value_fn``.

        The loss takes the tree of the weights, or takes nothing and reads the States of the model. As in
        :meth:`minimize`, it is traced in every call outside a transformation. ``value`` is ignored.
        """
        self._core.refuse_evaluating('An update')
        self._core.registered('step')
        if value_fn is None:
            raise ValueError('SAM needs the loss: update(grads, value_fn=loss), or minimize(loss).')

        loss = self._core.weights.reading(value_fn)

        def step(of: Callable[[], ArrayOrQuantity], grads: Tree) -> None:
            self.descend(grads, loss_unit, of)

        if is_traced() or jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            step(loss, grads)
        else:
            self._updater.replay(('SAM', loss_unit), step, loss, (), (grads,))

    def update_from_loss(self, grads: Tree, value: ArrayOrQuantity, value_fn: Callable[[], ArrayOrQuantity]) -> None:
        self.descend(grads, None, value_fn)

    def descend(self, grads: Tree, loss_unit: brainunit.Unit | None, loss: Callable[[], ArrayOrQuantity]) -> None:
        """Update the weights by the base optimizer, with the gradient at the perturbed weights."""
        base, weights, hp = self.base_optimizer, self._core.weights, self.perturbation.value.tree
        frozen = base.settings.frozen
        found, factors = weights.match(grads, loss_unit, frozen=frozen)
        leaves = {key: jnp.asarray(w) for key, w in weights.read().items()}
        check_gradients(leaves, found)
        groups = enumerate(base.param_groups)
        ascending = {key for i, group in groups if group['maximize'] for key in base.group_names(i)}
        toward, sizes, wide = {}, {}, {}
        for key, g in found.items():
            if key not in frozen:
                wide[key] = w = leaves[key].astype(compute_dtype(leaves[key]))
                toward[key] = jnp.conj(g.astype(w.dtype)) * factors.get(key, 1.0) * (-1.0 if key in ascending else 1.0)
                sizes[key] = abs(w) if hp.adaptive else jnp.ones((), w.real.dtype)
        norm = global_norm({key: sizes[key] * g for key, g in toward.items()})
        factor = jnp.where(norm > 0, hp.radius / jnp.where(norm > 0, norm, 1.0), 0.0)
        perturbed = {key: wide[key] + factor * sizes[key] ** 2 * g for key, g in toward.items()}
        perturbed = {key: w.astype(leaves[key].dtype) for key, w in perturbed.items()}
        with weights.replaced(perturbed):
            second = self.gradient_of(lambda: self.scaled_loss(loss()))
        base.update(second)

    # checkpoints

    def state_dict(self) -> dict[str, Tree]:
        """Return the state_dict of the base optimizer together with the options of SAM."""
        base = self.base_optimizer.state_dict()
        return {'optimizer': 'SAM', 'rho': self.rho, 'adaptive': self.adaptive, 'base_optimizer': base}

    def load_state_dict(
        self, state_dict: Mapping[str, Tree], strict: bool = True, rename: Mapping[str, str] | None = None
    ) -> list[str]:
        """Restore the state that :meth:`state_dict` returned; see :meth:`Optimizer.load_state_dict`."""
        base = state_dict.get('base_optimizer') if isinstance(state_dict, Mapping) else None
        if base is None or not {'rho', 'adaptive'} <= state_dict.keys():
            raise ValueError(
                'The state_dict is not one of SAM. Must have rho, adaptive and base_optimizer. '
                'If it is one of the base optimizer alone, base_optimizer.load_state_dict(state_dict) takes it.'
            )
        there, rho, problems = plain(state_dict['adaptive']), self.rho, []
        try:
            rho = RHO.check('rho', plain(state_dict['rho']))
        except (TypeError, ValueError) as error:
            problems.append(str(error))
        if there != self.adaptive:
            problems.append(f'adaptive: {there!r} there, {self.adaptive!r} here')
        if problems and strict:
            problems += fitted_state(self._core, base, rename).problems
            raise ValueError(f'{UNFIT} {"; ".join(problems)}')
        problems += self.base_optimizer.load_state_dict(base, strict, rename)
        self.rho = rho
        return problems
