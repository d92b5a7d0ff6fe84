"""Files: trees of numbers and arrays, and whole training runs, written atomically and read without pickle."""

from __future__ import annotations

import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from braintools_optim.options.types import Tree
from braintools_optim.saving.formats import format_of
from braintools_optim.saving.models import fitted_values, model_tree
from braintools_optim.saving.trees import decode, encode

__all__ = ['load', 'load_run', 'save', 'save_run']

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
FilePath = str | os.PathLike[str]


class HasStateDict(Protocol):
    """An object with a ``state_dict``, such as an optimizer."""

    def state_dict(self) -> dict[str, Tree]: ...

    def load_state_dict(self, state_dict: Mapping[str, Tree], /) -> object: ...


def save(path: FilePath, tree: Mapping[Tree, Tree]) -> None:
    """Write a tree of dicts, lists, strings, numbers and arrays to a file.

    The suffix determines the format: ``.npz``, ``.safetensors`` or ``.msgpack``. The latter two need the packages of
    that name. The file is replaced atomically: after an error or a crash, it is either the previous file or the new
    one. A process that is killed may leave a file ``.<name>.<random>.partial`` behind.

    Parameters
    ----------
    path : path-like
        The file, or a link to it. The directory must exist. A file that is replaced keeps its permissions.
    tree : mapping
        Keys are strings, integers, or tuples of these. Arrays may be NumPy's or jax's, quantities with units, or random
        keys; a State stands for its value. :func:`load` returns dicts, keys, quantities and random keys as they were,
        jax arrays and scalars of NumPy as NumPy arrays, and tuples as lists.

    Raises
    ------
    TypeError, ValueError
        If the tree holds anything else, if an array is split over several processes and this one does not hold all of
        it, or if the suffix is unknown. No file has changed then.
    ModuleNotFoundError
        If the format needs a package that is not installed.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> path = Path(tempfile.mkdtemp()) / 'tree.npz'
    >>> save(path, {('layer', 'w'): np.ones(2), 'epoch': 3})
    >>> load(path)
    {('layer', 'w'): array([1., 1.]), 'epoch': 3}
    """
    form, path = format_of(path), Path(os.path.realpath(path))
    arrays, metadata = encode(tree)
    replace_file(path, lambda file: form.write(file, arrays, metadata))


def replace_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file, keep the permissions of the file that it replaces, and leave that file as it is after an error."""
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0
    try:
        with open(partial, 'xb', opener=lambda name, flags: os.open(name, flags, mode or 0o666)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if mode:
            partial.chmod(mode)  # regardless of the umask
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if hasattr(os, 'O_DIRECTORY'):  # the new name must survive a loss of power, too
        directory = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def load(path: FilePath) -> dict[Tree, Tree]:
    """Return the tree that :func:`save` wrote. Nothing in the file is executed.

    Raises
    ------
    ValueError
        If the file is damaged or was not written by :func:`save`, or if the suffix is unknown.
    FileNotFoundError
        If there is no such file.
    ModuleNotFoundError
        If the format needs a package that is not installed.
    """
    form, path = format_of(path), Path(path)
    try:
        if path.is_dir():
            raise ValueError('it is a directory')
        return decode(*form.read(path))
    except UNREADABLE as error:
        raise ValueError(
            f'{path} cannot be read: {error}. Must be a whole {path.suffix} file written by files.save.'
        ) from error


def save_run(path: FilePath, *, model: Tree = None, optimizer: HasStateDict | None = None, **more: Tree) -> None:
    """Write the weights of a model, the state of its optimizer and whatever else a run needs to one file.

    Parameters
    ----------
    path : path-like
        The file, see :func:`save`.
    model : brainstate.nn.Module or tree of State, optional
        The model, of which all ``LongTermState`` are written (weights and running statistics, no hidden states), or a
        tree of States such as ``model.states(brainstate.ParamState)``, of which all are written.
    optimizer : Optimizer, optional
        The optimizer, whose ``state_dict()`` is written.
    **more
        Further entries of the tree, such as ``epoch=3``.

    Examples
    --------
    >>> import tempfile
    >>> import brainstate, jax.numpy as jnp
    >>> from braintools_optim import SGD
    >>> weights = {'w': brainstate.ParamState(jnp.ones(2))}
    >>> optimizer = SGD(0.1, momentum=0.9).register_trainable_weights(weights)
    >>> path = Path(tempfile.mkdtemp()) / 'run.npz'
    >>> save_run(path, model=weights, optimizer=optimizer, epoch=3)
    >>> weights['w'].value = jnp.zeros(2)
    >>> load_run(path, model=weights, optimizer=optimizer)
    {'epoch': 3}
    >>> weights['w'].value.tolist()
    [1.0, 1.0]
    """
    tree = dict(more)
    if model is not None:
        tree['model'] = model_tree(model)
    if optimizer is not None:
        tree['optimizer'] = optimizer.state_dict()
    save(path, tree)


def load_run(path: FilePath, *, model: Tree = None, optimizer: HasStateDict | None = None) -> dict[str, Tree]:
    """Restore what :func:`save_run` wrote, and return the entries of the file that were not restored.

    Parameters
    ----------
    path : path-like
        The file.
    model : brainstate.nn.Module or tree of State, optional
        The model that was saved, or another one with the same States. The numbers are restored bit for bit.
    optimizer : Optimizer, optional
        An optimizer that was built with the same arguments, and with the weights registered.

    Raises
    ------
    ValueError
        If the file does not hold what is asked for, or if paths, shapes, dtypes or units differ. The error lists all
        differences, and neither the model nor the optimizer has changed. See also :func:`load`.
    """
    found = load(path)
    asked = [name for name, part in (('model', model), ('optimizer', optimizer)) if part is not None]
    if missing := [name for name in asked if name not in found]:
        raise ValueError(f'{path} holds no {" and no ".join(missing)}. There are: {", ".join(map(str, found))}.')
    values = [] if model is None else fitted_values(model, found['model'])
    if optimizer is not None:
        optimizer.load_state_dict(found['optimizer'])
    for state, value in values:
        state.value = value
    return {name: entry for name, entry in found.items() if name not in asked}
