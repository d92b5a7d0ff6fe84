"""Loss scaling: a factor on the loss that keeps half-precision gradients from vanishing and adapts itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from braintools_optim.options.built import BuiltNode, refuse_unknown
from braintools_optim.options.kinds import AT_LEAST_ONE, POSITIVE_AND_FINITE, Number, Range, Scalar
from braintools_optim.options.transfers import explicit_transfers
from braintools_optim.options.types import ArrayOrQuantity
from braintools_optim.settings import OptimState

__all__ = ['LOSS_SCALE', 'DynamicLossScale', 'check_loss_scale']

LEAST_SCALE = 2.0**-100
"""The factor never falls below this, so that it does not become 0 after many skipped updates."""
LOSS_SCALE = Number(POSITIVE_AND_FINITE, optional=True)
"""The kind of a constant loss scale."""
INIT_SCALE = Number(Range(0, float(np.finfo(np.float32).max), low_open=True))
"""The kind of an adaptive loss scale, which is a float32."""

Array = jax.Array


class DynamicLossScale(BuiltNode):
    r"""A factor on the loss that grows until gradients overflow, and is reduced when they do.

    .. math::
        s \leftarrow \begin{cases} s \cdot \text{backoff} & \text{if a gradient is not finite; no update} \\
        s \cdot \text{growth} & \text{after growth\_interval updates in a row} \end{cases}

    Assigning ``current`` sets the factor, in compiled functions too. The other attributes are fixed.

    Parameters
    ----------
    init_scale : float, default 2.0**16
        The first factor, > 0.
    growth_factor : float, default 2.0
        Number by which the factor is multiplied when it grows, >= 1.
    backoff_factor : float, default 0.5
        Number by which the factor is multiplied after a skipped update, in (0, 1).
    growth_interval : int, default 2000
        The number of updates in a row without overflow after which the factor grows, >= 1.

    References
    ----------
    Micikevicius et al. (2018), Mixed Precision Training; ``torch.amp.GradScaler``.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> loss_scale = DynamicLossScale(init_scale=8.0)
    >>> w = brainstate.ParamState(jnp.array(1.0, jnp.float16))
    >>> optimizer = SGD(0.5, loss_scale=loss_scale).register_trainable_weights({'w': w})
    >>> grads = brainstate.transform.grad(lambda: loss_scale.scale(w.value**2), {'w': w})()
    >>> optimizer.update(grads)
    >>> float(w.value)
    0.0
    >>> optimizer.update({'w': jnp.array(jnp.inf, jnp.float16)})
    >>> float(w.value), loss_scale.current
    (0.0, 4.0)
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
    ):
        scale = INIT_SCALE.check('init_scale', init_scale)
        self.growth_factor = Number(Range(1, high_open=True)).check('growth_factor', growth_factor)
        self.backoff_factor = Number(Range(0, 1, True, True)).check('backoff_factor', backoff_factor)
        self.growth_interval = Number(AT_LEAST_ONE, integer=True).check('growth_interval', growth_interval)
        self.state = OptimState({'scale': jnp.asarray(scale, jnp.float32), 'updates': jnp.zeros((), jnp.int32)})

    @property
    @explicit_transfers
    def current(self) -> Scalar:
        """The present factor."""
        scale = self.state.value['scale']
        return scale if isinstance(scale, Tracer) else float(scale)

    @current.setter
    @explicit_transfers
    def current(self, value: Scalar) -> None:
        self.state.value = {**self.state.value, 'scale': jnp.asarray(INIT_SCALE.check('current', value), jnp.float32)}

    def __setattr__(self, name: str, value: object) -> None:
        if '_is_built' in self.__dict__ and name != 'current' and not name.startswith('_'):
            if name == 'state':
                raise ValueError('state of a DynamicLossScale is a State. Assign current to set the factor.')
            if name in self.__dict__ or name == 'init_scale':
                raise ValueError(f'{name} of a DynamicLossScale is fixed. Build another one and another optimizer.')
            refuse_unknown(self, name, value, {*self.__dict__, 'current'} - {'_is_built', 'state'})
        super().__setattr__(name, value)

    def scale(self, loss: ArrayOrQuantity) -> ArrayOrQuantity:
        """Return the loss times the factor, in float32 at least. Differentiate this product."""
        return loss * self.state.value['scale']

    def after(self, state: dict[str, Array], finite: Array) -> dict[str, Array]:
        """Return the state after an update whose gradients were finite or not."""
        updates = jnp.where(finite, state['updates'] + 1, 0)
        grown = updates == self.growth_interval
        # as in torch, a factor that would leave float32's range stays as it is
        larger = state['scale'] * jnp.where(grown, self.growth_factor, 1.0)
        scale = jnp.where(jnp.isfinite(larger), larger, state['scale'])
        return {
            'scale': jnp.where(finite, scale, jnp.maximum(state['scale'] * self.backoff_factor, LEAST_SCALE)),
            'updates': jnp.where(grown, 0, updates),
        }


def check_loss_scale(name: str, value: object) -> DynamicLossScale | Scalar | None:
    """Return a number, a dynamic loss scale or None."""
    return value if isinstance(value, DynamicLossScale) else LOSS_SCALE.check(name, value)
