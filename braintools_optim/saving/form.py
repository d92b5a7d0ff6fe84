"""The form of a state_dict: the entries that it must have, and their restoration from other containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from braintools_optim.options.kinds import as_number
from braintools_optim.options.types import Tree

__all__ = ['FORMAT', 'canonical', 'check_form', 'check_format', 'plain']

FORMAT = 1
ARRAYS = ('opt_state', 'states')
"""The parts of a state_dict that hold arrays by name. All other parts are plain numbers, strings, lists and dicts."""
NUMBER = (int, float)
ARRAY = (np.ndarray, np.generic, int, float)
FORM: dict[str, Tree] = {
    'optimizer': str,
    'schedule': str,
    'base_lrs': [NUMBER],
    'param_groups': [{'params': [str], 'own': [str]}],
    'weights': {'*': {'unit': str, 'frozen': bool, 'decays': bool, 'constrained': bool}},
    'opt_state': {'*': ARRAY},
    'states': {'*': {'*': ARRAY}},
}
"""Which entries a state_dict must have; ``'*'`` stands for any name, a list for a list of any length."""


def canonical(state: Tree) -> Tree:
    """Return a state_dict in the form in which :func:`state_dict` returns it.

    Other containers turn strings and numbers into arrays without dimensions, and lists into dicts with the keys
    ``'0'``, ``'1'`` and so on.
    """
    if not isinstance(state, Mapping):
        return state
    parts = {}
    for name, part in state.items():
        is_of_names = name in ARRAYS or name == 'weights'  # a weight may have the name '0'
        if is_of_names and isinstance(part, Mapping):
            parts[name] = {key: as_arrays(entry) if name in ARRAYS else plain(entry) for key, entry in part.items()}
        else:
            parts[name] = plain(part)
    return parts


def as_arrays(x: Tree) -> Tree:
    """Return a dict of arrays, or an array, with NumPy arrays in the place of all others."""
    if isinstance(x, Mapping):
        return {name: as_arrays(entry) for name, entry in x.items()}
    return np.asarray(x) if hasattr(x, 'dtype') else x


def plain(x: Tree) -> Tree:
    """Return numbers, strings and lists in the place of arrays, tuples, and dicts that were lists."""
    if isinstance(x, Mapping):
        entries = {name: plain(entry) for name, entry in x.items()}
        places = [str(i) for i in range(len(entries))]
        return [entries[i] for i in places] if entries.keys() == set(places) else entries
    if isinstance(x, (list, tuple)):
        return [plain(entry) for entry in x]
    if not hasattr(x, 'dtype'):
        return x
    array = np.asarray(x)
    if array.ndim:
        return [plain(entry) for entry in array]
    return as_number(array) if array.dtype.kind in 'fV' else array.item()


def check_format(state: Tree) -> None:
    """Raise unless this is a state_dict of this library, with a hint if it is a state of another known kind."""
    found = state.get('format') if isinstance(state, Mapping) else type(state).__name__
    if type(found) is int and found > FORMAT:
        raise ValueError(
            f'Invalid format={found} of a state_dict. Must be at most {FORMAT}: a later version of braintools_optim '
            f'wrote this one. Update braintools_optim to load it.'
        )
    if found != FORMAT:
        raise ValueError(
            f'Invalid format={found!r} of a state_dict. Must be {FORMAT}: one of this library.{hint(state)}'
        )
    if missing := FORM.keys() - state.keys():
        raise ValueError(f'The state_dict lacks {sorted(missing)}.')


def hint(state: Tree) -> str:
    """Return a sentence that says how to load a state that is not a state_dict of this library."""
    if isinstance(state, tuple):
        return " If it is optax's, load_optax_state(state) takes it."
    if not isinstance(state, Mapping):
        return ''
    if {'state', 'param_groups'} <= state.keys():
        return " This one is torch's: load_torch_state_dict(state_dict, names) takes it."
    if {'opt_state', 'step_count'} <= state.keys():
        return ' This one is of braintools.optim: load_braintools_state_dict(state_dict) takes it.'
    if isinstance(state.get('base_optimizer'), Mapping):
        return ' This one is of SAM: build SAM around the optimizer to load it.'
    if isinstance(state.get('optimizer'), Mapping):
        return ' This one holds a whole run: files.load_run(path, model=..., optimizer=...) takes the file.'
    return ''


def check_form(state: Mapping[str, Tree]) -> None:
    """Raise an error that lists all parts of a state_dict that are missing or of another type."""
    if problems := list(misfits(state, FORM, '')):
        raise ValueError(f'Invalid state_dict, whose form is damaged. {"; ".join(problems)}.')
    for i, group in enumerate(state['param_groups']):
        if unknown := [name for name in group['params'] if name not in state['weights']]:
            raise ValueError(f'Invalid param_groups.{i}.params={unknown!r} of a state_dict. Must be among its weights.')


def misfits(x: Tree, form: Tree, where: str) -> Iterator[str]:
    """Yield a description of each part of ``x`` that does not have the form."""
    prefix = f'{where}.' if where else ''
    if isinstance(form, dict):
        if not isinstance(x, Mapping):
            yield f'{where} must be a dict, not {x!r}'
        elif '*' in form:
            for name, entry in x.items():
                yield from misfits(entry, form['*'], f'{prefix}{name}')
        else:
            for name, entry_form in form.items():
                if name in x:
                    yield from misfits(x[name], entry_form, f'{prefix}{name}')
                else:
                    yield f'{prefix}{name} is missing'
    elif isinstance(form, list):
        if isinstance(x, str) or not isinstance(x, Sequence):
            yield f'{where} must be a list, not {x!r}'
        else:
            for i, entry in enumerate(x):
                yield from misfits(entry, form[0], f'{prefix}{i}')
    elif not isinstance(x, form):
        names = ' or '.join(kind.__name__ for kind in (form if isinstance(form, tuple) else (form,)))
        yield f'{where} must be {names}, not {x!r}'
