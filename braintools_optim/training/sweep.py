"""sweep: many runs of training with different options, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import brainunit
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim.compiled.trace import Trace
from braintools_optim.options.kinds import AT_LEAST_ONE, SWEPT, MissingKeyError, Number, as_number
from braintools_optim.options.types import Tree
from braintools_optim.schedulers.arguments import OneOf
from braintools_optim.schedulers.axes import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['Sweep', 'returned_dict', 'sweep']

CHUNK_SIZE = Number(AT_LEAST_ONE, integer=True, optional=True, static=True)
MODE = OneOf(('min', 'max'))
ROWS = 25
"""The number of members that a table shows of the first and of the last ones."""


def sweep(run: Callable[..., Mapping[str, Tree]], /, *, chunk_size: int | None = None, **options: Any) -> Sweep:
    """Call ``run(**options)`` for many values of the options, side by side in one compiled call.

    ``run`` builds a model and an optimizer, trains in a loop and returns a dict of what it has measured. It is traced
    once, for all members of the sweep together, under ``jax.vmap``. Each member has the result of a separate run; a
    member that diverges does not disturb the others.

    Parameters
    ----------
    run : callable
        Function of the options that returns a dict of arrays, such as ``{'loss': losses}``. States that exist before,
        such as brainstate's random state, are the same for all members and stay as they are.
    chunk_size : int, optional
        Number of members that run side by side, >= 1; the chunks run one after another. Default: all members, which
        takes the memory of all.
    **options
        Arrays and lists are the options of the members, which must be equally many: the first entries make the first
        member. All other values are the same for all members. Numbers that decide on shapes or on Python's control flow
        must be the same for all.

    Returns
    -------
    Sweep
        The options and the results by name, members first.

    Raises
    ------
    ValueError
        If the options are not equally many, or out of the range of the option of an optimizer to which ``run`` passes
        them unchanged. Numbers that ``run`` computes are not checked.
    TypeError
        If ``run`` does not return a dict.

    Examples
    --------
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD, sweep
    >>> def run(lr, steps):
    ...     w = brainstate.ParamState(jnp.ones(()))
    ...     optimizer = SGD(lr=lr).register_trainable_weights({'w': w})
    ...     step = lambda _: optimizer.minimize(lambda: w.value**2)
    ...     return {'loss': brainstate.transform.for_loop(step, jnp.arange(steps))}
    >>> result = sweep(run, lr=[0.125, 0.25, 2.0], steps=3)
    >>> result['loss'].shape
    (3, 3)
    >>> result.best()['lr']
    0.25
    >>> print(result)
         lr    loss
      0.125  0.3164
       0.25  0.0625
          2      81
    """
    size = CHUNK_SIZE.check('chunk_size', chunk_size)
    members = {name: values for name, values in options.items() if is_swept(values)}
    constants = {name: value for name, value in options.items() if name not in members}
    swept = {name: jax.tree.map(jnp.asarray, as_array(values)) for name, values in members.items()}
    count = number_of_members(swept)
    names: list[str] = []  # in the order of the results

    def member(values: Mapping[str, Tree]) -> dict[str, Tree]:
        with numbers_known(values, swept):
            results = returned_dict(run(**constants, **values))
        if taken := sorted(results.keys() & swept.keys()):
            raise ValueError(f'run returned {taken}, which are names of options. Must be other names.')
        names[:] = results
        return results

    trace = Trace.of(member, ({name: values[0] for name, values in swept.items()},), 'sweep')

    def all_members(swept: Mapping[str, Tree], constants: Sequence[Tree], states: Sequence[Tree]) -> Tree:
        def one(values: Mapping[str, Tree]) -> Tree:
            return trace.call(constants, (values,), states)[0]

        return jax.vmap(one)(swept) if size is None or size >= count else jax.lax.map(one, swept, batch_size=int(size))

    results = jax.jit(all_members)(swept, trace.constants, [state.value for state in trace.states])
    swept, results = jax.device_get((swept, results))  # in which jax has sorted the names
    return Sweep({name: swept[name] for name in members}, {name: results[name] for name in names})


def is_swept(value: object) -> bool:
    """Return whether an option differs between members."""
    is_array = isinstance(value, (list, np.ndarray, jax.Array, brainunit.Quantity))
    return is_array and np.ndim(brainunit.get_mantissa(value)) > 0


def as_array(values: Tree) -> Tree:
    """Return a list as an array, anything else unchanged."""
    return np.asarray(values) if isinstance(values, list) else values


def number_of_members(swept: Mapping[str, jax.Array]) -> int:
    """Return the length that all options have; raise if there is none."""
    lengths = {name: len(values) for name, values in swept.items()}
    if len({*lengths.values()}) != 1 or 0 in lengths.values():
        raise ValueError(f'Invalid options of lengths {lengths}. Must be arrays or lists of one length, at least one.')
    return next(iter(lengths.values()))


@contextmanager
def numbers_known(traced: Mapping[str, Tree], swept: Mapping[str, jax.Array]) -> Iterator[None]:
    """Let the options of optimizers and schedules check the numbers for which the traced ones stand."""
    known = {id(traced[name]): values.tolist() for name, values in swept.items() if is_checkable(values)}
    SWEPT.update(known)
    try:
        yield
    finally:
        for key in known:
            del SWEPT[key]


def is_checkable(values: jax.Array) -> bool:
    """Return whether each member has a single number."""
    return values.ndim == 1 and jnp.issubdtype(values.dtype, jnp.number) and not isinstance(values, brainunit.Quantity)


def returned_dict(results: object) -> dict[str, Tree]:
    """Return what a run has measured; raise unless it is a dict."""
    if not isinstance(results, Mapping) or not all(isinstance(name, str) for name in results):
        raise TypeError(f"run returned {results!r}. Must be a dict of its measurements, such as {{'loss': losses}}.")
    return dict(results)


def is_column(values: Tree) -> bool:
    """Return whether values are numbers or curves of the members."""
    array = brainunit.get_mantissa(values)
    return isinstance(array, np.ndarray) and array.ndim in (1, 2) and 0 not in array.shape


class Sweep(Mapping[str, Any]):
    """The members of a :func:`sweep`: their options and results by name, as NumPy arrays with one entry per member."""

    def __init__(self, options: Mapping[str, Tree], results: Mapping[str, Tree]):
        self.options = dict(options)
        self.results = dict(results)

    def __getitem__(self, name: str) -> Any:
        found = {**self.options, **self.results}
        if name not in found:
            raise MissingKeyError(f'Invalid name {name!r}. Must be among {list(found)}.')
        return found[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self.options, **self.results})

    def __len__(self) -> int:
        return len(self.options) + len(self.results)

    def last(self, name: str) -> np.ndarray:
        """Return one number per member: a result, or the last entry of a curve."""
        values = np.asarray(brainunit.get_mantissa(self[name]))
        if not is_column(values):
            raise ValueError(f'Invalid name {name!r}: its shape is {list(values.shape)}. Must be a number or a curve.')
        return values if values.ndim == 1 else values[:, -1]

    def best(self, name: str = 'loss', mode: Literal['min', 'max'] = 'min') -> dict[str, Any]:
        """Return the options and results of the member whose result ``name`` is smallest (or largest).

        Of a curve the last entry counts. Members whose result is NaN are left out.
        """
        MODE.check('mode', mode)
        values = self.last(name)
        if np.isnan(values).all():
            raise ValueError(f'The result {name!r} of every member is NaN.')
        index = int(np.nanargmin(values) if mode == 'min' else np.nanargmax(values))
        entries = {key: jax.tree.map(lambda x: x[index], values) for key, values in self.items()}
        return {key: as_number(x) if isinstance(x, np.number) else x for key, x in entries.items()}

    def plot(self, name: str = 'loss', over: str | None = None, ax: Axes | None = None) -> Axes:
        """Plot the result ``name``, of a curve the last entry, against the option ``over``, by default the first one.

        Return the matplotlib axes: ``ax`` if given, new axes otherwise.
        """
        ax, over = new_axes() if ax is None else ax, next(iter(self.options)) if over is None else over
        x, y = self.last(over), self.last(name)
        order = np.argsort(x, kind='stable')
        ax.plot(x[order], y[order], '.', color='C0')
        ax.set(xlabel=over, ylabel=name)
        if x.min() > 0 and x.max() > 10 * x.min():
            ax.set_xscale('log')
        return ax

    def __str__(self) -> str:
        names = [name for name in self if is_column(self[name])]
        columns = [[name, *(f'{as_number(x):.4g}' for x in self.last(name))] for name in names]
        widths = [2 + max(map(len, column)) for column in columns]
        rows = [''.join(map(str.rjust, row, widths)) for row in zip(*columns, strict=True)]
        hidden = len(rows) - 1 - 2 * ROWS
        between = [f'  ({hidden} more)'] if hidden > 0 else []
        return '\n'.join([*rows[: 1 + ROWS], *between, *rows[1 + ROWS :][-ROWS:]])

    def __repr__(self) -> str:
        count = len(next(iter(self.options.values())))
        return f'Sweep({count} members; {", ".join(self.options)}; {", ".join(self.results)})'
