"""Groups with scaled rates: layer-wise decay of the rate, and the rates of muP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import jax.numpy as jnp

from braintools_optim.options.kinds import Number, Range
from braintools_optim.options.types import ArrayOrQuantity, Tree
from braintools_optim.weights.predicates import Predicate
from braintools_optim.weights.registered import Weights

__all__ = ['layer_decay', 'mup']

Scales = dict[Predicate, dict[str, float]]
"""Groups by predicate, each with an ``lr_scale``, for the option ``groups`` of an optimizer."""


def layer_decay(states: Tree, decay: float = 0.75, layer_of: Callable[[str], int | None] | None = None) -> Scales:
    r"""Return groups whose rates decay from the last layer to the first, as for fine-tuning.

    .. math:: \eta_l = \eta \, d^{L - l}

    Layer :math:`l` is the first number in the name of a weight, plus 1. Weights before the first numbered layer are
    layer 0, and weights after the last one, such as a readout, are layer :math:`L`, which has the full rate.

    Parameters
    ----------
    states : tree
        The States of the weights, in the order of the layers.
    decay : float, default 0.75
        Factor :math:`d` between neighbouring layers, in (0, 1].
    layer_of : callable, optional
        Function from the name of a weight to the number of its layer, None for weights outside of numbered layers.

    References
    ----------
    Clark et al. (2020), ELECTRA. Bao et al. (2021), BEiT.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import AdamW
    >>> names = ['embedding', 'layers.0', 'layers.1', 'readout']
    >>> weights = {name: brainstate.ParamState(jnp.zeros(2)) for name in names}
    >>> optimizer = AdamW(1.0, groups=layer_decay(weights, 0.5)).register_trainable_weights(weights)
    >>> [(list(g['params']), float(g['lr'])) for g in optimizer.param_groups[1:]]
    [(['embedding'], 0.125), (['layers.0'], 0.25), (['layers.1'], 0.5), (['readout'], 1.0)]
    """
    Number(Range(0, 1, low_open=True)).check('decay', decay)
    numbers = {name: (layer_of or first_number)(name) for name in names_and_shapes(states)}
    numbered = [n for n in numbers.values() if n is not None]
    last, layers, seen = max(numbered, default=-1) + 2, {}, False
    for name, number in numbers.items():
        seen = seen or number is not None
        layers[name] = last * seen if number is None else number + 1
    return scaled({name: decay ** (last - layer) for name, layer in layers.items()})


def mup(states: Tree, base_states: Tree, algorithm: Literal['adam', 'sgd'] = 'adam') -> Scales:
    r"""Return groups with the rates of muP, under which the best rate does not depend on the width of the network.

    With the widths :math:`n_{in}, n_{out}` of a weight relative to those in the base model, the rate is multiplied by

    ==========================  =============  ================  ================
    algorithm                   input, bias    hidden            output
    ==========================  =============  ================  ================
    Adam                        1              1 / n_in          1 / n_in
    SGD                         n_out          1                 1 / n_in
    ==========================  =============  ================  ================

    Hidden weights grow in both widths, input weights and biases in the last axis, output weights in all others. Scale
    the initial weights as the paper says, too: the variance is 1 / fan_in, for output weights 1 / fan_in ** 2.

    Parameters
    ----------
    states : tree
        The States of the weights.
    base_states : tree
        The States of the same model with the width for which the rate was found, under the same names.
    algorithm : {'adam', 'sgd'}, default 'adam'
        Whether the optimizer divides gradients by their size, as Adam does, or not.

    References
    ----------
    Yang et al. (2022), Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer, table 3.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> def model(width):
    ...     shapes = {'in': (3, width), 'hidden': (width, width), 'out': (width, 2)}
    ...     return {name: brainstate.ParamState(jnp.zeros(shape)) for name, shape in shapes.items()}
    >>> list(mup(model(64), model(16)).values())
    [{'lr_scale': 1.0}, {'lr_scale': 0.25}]
    """
    if algorithm not in ('adam', 'sgd'):
        raise ValueError(f"Invalid algorithm={algorithm!r}. Must be one of ('adam', 'sgd').")
    shapes, base = names_and_shapes(states), names_and_shapes(base_states)
    if shapes.keys() != base.keys() or any(len(shapes[name]) != len(base[name]) for name in shapes):
        differing = sorted(n for n in {*shapes, *base} if len(shapes.get(n, ())) != len(base.get(n, (0,))))
        raise ValueError(f'Invalid base_states. Must have the weights of states; {", ".join(differing)} differ.')
    scales = {}
    for name, shape in shapes.items():
        fan_in = math.prod(shape[:-1]) / max(math.prod(base[name][:-1]), 1)
        fan_out = shape[-1] / max(base[name][-1], 1) if shape else 1.0
        is_output = fan_in != 1 and fan_out == 1
        if algorithm == 'adam':
            scales[name] = 1 / fan_in
        else:
            scales[name] = 1 / fan_in if is_output else fan_out if fan_in == 1 else 1.0
    return scaled(scales)


def names_and_shapes(states: Tree) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights by the names under which an optimizer registers them."""
    weights = Weights().extended(states)[0]
    return {name: jnp.shape(w) for name, w in weights.named().items()}


def first_number(name: str) -> int | None:
    """Return the first part of a dotted name that is a number, None if there is none."""
    return next((int(part) for part in name.split('.') if part.isdecimal()), None)


def scaled(scales: Mapping[str, float]) -> Scales:
    """Return a group for each scale."""
    return {
        among(name for name, own in scales.items() if own == scale): {'lr_scale': scale}
        for scale in dict.fromkeys(scales.values())
    }


def among(names: Iterable[str]) -> Predicate:
    """Return a predicate that chooses weights by their full names."""
    chosen = frozenset(names)

    def is_chosen(name: str, weight: ArrayOrQuantity) -> bool:
        return name in chosen

    return is_chosen
