"""Diagnosis: which gradients are not finite, which are zero, and which have the largest norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from braintools_optim.weights.sharding import is_here

__all__ = ['Diagnosis']


@dataclass(frozen=True)
class Diagnosis:
    """Which gradients of a model are not finite, which are zero, and the 2-norms of the others, by name.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> print(Diagnosis.of({'a': jnp.array([jnp.nan, 1.0]), 'b': jnp.zeros(2), 'c': jnp.array([3.0, 4.0])}))
    not finite: a (1 NaN, 0 inf of 2)
    all zero: b
    largest norms: c 5
    """

    not_finite: dict[str, tuple[int, int, int]]
    """The numbers of NaN, infinite and all entries of each gradient that is not finite."""
    zero: list[str]
    """The gradients whose entries are all zero."""
    norms: dict[str, float]
    """The norms of the other gradients, in descending order."""

    @classmethod
    def of(cls, gradients: Mapping[str, ArrayLike]) -> Diagnosis:
        """Examine gradients by name."""
        # a gradient that is split over several processes stays on their devices
        arrays: dict[str, Any] = {name: np.asarray(g) if is_here(g) else g for name, g in gradients.items()}
        arrays = {name: g.astype(np.result_type(g.dtype, np.float32)) for name, g in arrays.items()}
        counts, norms = {}, {}
        for name, g in arrays.items():
            xp: Any = np if isinstance(g, np.ndarray) else jnp
            counts[name] = int(xp.isnan(g).sum()), int(xp.isinf(g).sum()), int(g.size)
            if sum(counts[name][:2]) == 0 and g.any():
                norms[name] = float(xp.linalg.norm(g))
        bad = {name: count for name, count in counts.items() if count[0] + count[1]}
        zero = [name for name in arrays if name not in bad and name not in norms]
        return cls(bad, zero, dict(sorted(norms.items(), key=lambda item: -item[1])))

    def __str__(self) -> str:
        bad = [f'{name} ({nan} NaN, {inf} inf of {size})' for name, (nan, inf, size) in self.not_finite.items()]
        largest = [f'{name} {norm:.3g}' for name, norm in list(self.norms.items())[:5]]
        lines = {'not finite': bad, 'all zero': self.zero, 'largest norms': largest}
        return '\n'.join(f'{title}: {", ".join(entries) or "none"}' for title, entries in lines.items())
