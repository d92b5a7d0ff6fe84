"""Units: gradients of weights that have a unit, as mantissas on the scale of that unit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import brainunit
from brainunit import UNITLESS

from braintools_optim.options.types import ArrayOrQuantity

__all__ = ['check_loss', 'gradient_scales', 'is_quantity', 'norm_scales', 'warn_of_mixed_norms']


def is_quantity(x: object) -> bool:
    """Return whether ``x`` is a Quantity."""
    return isinstance(x, brainunit.Quantity)


def check_loss(loss: ArrayOrQuantity) -> None:
    """Raise unless a loss that is to be minimized is without a unit."""
    unit = brainunit.get_unit(loss)
    if unit.dim != UNITLESS.dim:
        raise TypeError(
            f'Invalid loss_fn. It must return a loss without a unit, not one in {unit}: divide by a unit, or compute '
            f'the gradients with unit_aware=True and call update(grads, loss_unit=...).'
        )


def gradient_scales(
    weights: Mapping[str, brainunit.Unit],
    gradients: Mapping[str, ArrayOrQuantity],
    loss_unit: brainunit.Unit | None = None,
) -> dict[str, float]:
    """Return the factors of the mantissas of gradients, by name, where they are not 1, from the units of the weights.

    Either each gradient has the unit of its weight, which is the default form of ``brainstate.transform.grad``, or
    each has the unit of the loss divided by the unit of its weight (``unit_aware=True``). A loss with a unit is
    accepted if ``loss_unit`` gives the unit, or if weights of two dimensions agree on it.
    """
    plain = all(unit == UNITLESS for unit in weights.values()) and not any(map(is_quantity, gradients.values()))
    if plain and loss_unit is None:
        return {}
    units = [(name, w, brainunit.get_unit(gradients[name])) for name, w in weights.items()]
    foreign = [(name, w, g) for name, w, g in units if g.dim != w.dim]
    if not foreign and loss_unit is None:
        scales = {name: g.magnitude / w.magnitude for name, w, g in units}
    else:
        loss = loss_unit or foreign[0][2] * foreign[0][1]
        believed = loss_unit is not None or loss.dim == UNITLESS.dim or len({w.dim for _, w, _ in units}) > 1
        if not believed or any((g * w).dim != loss.dim for _, w, g in units):
            name, w, g = next(((n, w, g) for n, w, g in foreign if (g * w).dim != loss.dim), (foreign or units)[0])
            raise ValueError(
                f'The gradient of {name} has the unit {g}, its weight {w}. Must be {w}, or the unit of the loss '
                f'divided by {w}, alike for all gradients (give loss_unit if the loss has one).'
            )
        reference = loss.magnitude if loss_unit is not None or loss.dim != UNITLESS.dim else 1.0
        scales = {name: (g * w).magnitude / reference for name, w, g in units}
    return {name: scale for name, scale in scales.items() if scale != 1.0}


def norm_scales(units: Mapping[str, brainunit.Unit], norm_unit: object) -> dict[str, float]:
    """Return the factors of gradients in norms, by name, where they are not 1.

    With its factor a gradient counts as if its weight were written in the unit of ``norm_unit`` that has its dimension.
    The weight itself would be divided by the factor.
    """
    if norm_unit is None or (isinstance(norm_unit, str) and norm_unit == 'own'):
        return {}
    listed = norm_unit if isinstance(norm_unit, (list, tuple)) else [norm_unit]
    units_of_norm = [unit for unit in listed if isinstance(unit, brainunit.Unit)]
    if len(units_of_norm) < len(listed):
        raise TypeError(f"Invalid norm_unit={norm_unit!r}. Must be 'own' or brainunit.Units.")
    chosen = {unit.dim: unit for unit in units_of_norm}
    without = [f'{name} ({unit})' for name, unit in units.items() if unit.dim not in chosen]
    if without:
        raise ValueError(f'Invalid norm_unit={norm_unit!r}. Must have the dimensions of all weights: {without}.')
    scales = {name: chosen[unit.dim].magnitude / unit.magnitude for name, unit in units.items()}
    return {name: scale for name, scale in scales.items() if scale != 1.0}


def warn_of_mixed_norms(units: Mapping[str, brainunit.Unit], members: Sequence[Sequence[str]]) -> bool:
    """Warn if a norm is taken over weights of different dimensions, and return whether it is."""
    mixed = [names for names in members if len({units[name].dim for name in names}) > 1]
    if mixed:
        listed = ', '.join(f'{name} ({units[name]})' for names in mixed for name in names)
        warnings.warn(
            f'grad_clip_norm takes a norm over weights of different dimensions, by their numbers alone: {listed}. '
            f"Give norm_unit='own' if this is intended, the units to count in, or grad_clip_over='group'.",
            stacklevel=3,
        )
    return bool(mixed)
