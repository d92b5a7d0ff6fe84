"""Files: trees of strings, numbers and NumPy arrays, written whole or not at all, and read without pickle."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # this module is also used without jax
    from braintools_optim.options.types import Tree

__all__ = ['load', 'save']

KIND = 'braintools_optim tree 1'
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
METADATA = '~metadata'  # among names of arrays, in which a ~ is followed by 0 or 1
Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]


class Format(NamedTuple):
    """How arrays by name and one string go into a file, and come back."""

    write: Callable[[BinaryIO, Arrays, str], None]
    read: Callable[[Path], tuple[Arrays, str]]


def save(path: str | os.PathLike[str], tree: Mapping[str, Tree]) -> None:
    """Write a tree of dicts, lists, strings, numbers and NumPy arrays to a file.

    The suffix decides on the format: ``.npz``, ``.safetensors`` or ``.msgpack`` (which need the packages
    of that name). Whatever happens meanwhile, the file is the former one, whole, or the new one, whole.
    A process that is killed may leave a file ``.<name>.<random>.partial`` beside it.

    Parameters
    ----------
    path : path-like
        Where to; a link is followed. The directory must exist.
    tree : mapping
        With strings as keys. Tuples come back as lists, and NumPy's scalars as arrays.

    Raises
    ------
    TypeError, ValueError
        If something in the tree is of another kind, or the suffix is unknown.
    ModuleNotFoundError
        If the format needs a package that is not installed.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / 'tree.npz'
    >>> save(path, {'weights': {'w': np.ones(2)}, 'epoch': 3})
    >>> load(path)
    {'weights': {'w': array([1., 1.])}, 'epoch': 3}
    """
    form, path = format_of(path), Path(os.path.realpath(path))
    arrays, metadata = encode(tree)
    partial = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
    try:
        with open(partial, 'xb') as file:
            form.write(file, arrays, metadata)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if hasattr(os, 'O_DIRECTORY'):  # the new name, too, is to survive a loss of power
        directory = os.open(path.parent, os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def load(path: str | os.PathLike[str]) -> dict[str, Tree]:
    """The tree that :func:`save` wrote. Nothing in the file is executed.

    Raises
    ------
    ValueError
        If the file is something else, or not whole, or the suffix is unknown.
    FileNotFoundError
        If there is none.
    ModuleNotFoundError
        If the format needs a package that is not installed.
    """
    form, path = format_of(path), Path(path)
    try:
        if path.is_dir():
            raise ValueError('no file')
        return decode(*form.read(path))
    except UNREADABLE as error:
        raise ValueError(
            f'{path} is {what_it_is(path)} ({error}). Must be a whole {path.suffix} file written by save.'
        ) from error


def format_of(path: str | os.PathLike[str]) -> Format:
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(f'Invalid path={os.fspath(path)!r}. Must end in {", ".join(FORMATS)}.')
    return FORMATS[suffix]


def what_it_is(path: Path) -> str:
    """What a file that cannot be read seems to be."""
    if path.is_dir():
        return 'a directory'
    with open(path, 'rb') as file:
        head = file.read(512)
    kinds = {b'PK\x03\x04': 'a zip archive, truncated or of something else', b'\x93NUMPY': 'an .npy file'}
    for start, kind in kinds.items():
        if head.startswith(start):
            return kind
    if head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'a pickle'
    if head and all(byte >= 32 or byte in b'\t\n\r\f' for byte in head):
        return 'a text file'
    return 'a file truncated or of something else' if head else 'an empty file'


# a tree as arrays and a string


def encode(tree: Mapping[str, Tree]) -> tuple[Arrays, str]:
    """The arrays of a tree by path, such as ``'opt_state/exp_avg.w'``, and the rest as JSON."""
    arrays: Arrays = {}
    dtypes: dict[str, str] = {}

    def rest(node: object, path: tuple[str, ...]) -> object:
        if isinstance(node, (np.ndarray, np.generic)):
            arrays[joined(path)], dtypes[joined(path)] = to_bits(np.asarray(node), path), node.dtype.name
            return None
        if isinstance(node, Mapping) and all(isinstance(key, str) for key in node):
            return {key: rest(value, (*path, key)) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [rest(value, (*path, str(i))) for i, value in enumerate(node)]
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise TypeError(
            f'Invalid {joined(path) or "tree"} of type {type(node).__name__}. Must be a dict with strings as keys, '
            f'a list, a string, a number or a NumPy array.'
        )

    return arrays, json.dumps({'kind': KIND, 'dtypes': dtypes, 'tree': rest(tree, ())})


def decode(arrays: Arrays, metadata: str) -> dict[str, Tree]:
    """The inverse of :func:`encode`."""
    found = json.loads(metadata)
    if not isinstance(found, dict) or found.get('kind') != KIND:
        raise ValueError(f'it does not say {KIND!r}')
    dtypes = found['dtypes']
    if dtypes.keys() != arrays.keys():
        raise ValueError(f'its arrays are not those listed: {sorted(dtypes.keys() ^ arrays.keys())}')

    def whole(node: object, path: tuple[str, ...]) -> Tree:
        if node is None and joined(path) in arrays:
            return from_bits(arrays[joined(path)], dtypes[joined(path)])
        if isinstance(node, dict):
            return {key: whole(value, (*path, key)) for key, value in node.items()}
        return [whole(value, (*path, str(i))) for i, value in enumerate(node)] if isinstance(node, list) else node

    tree: dict[str, Tree] = whole(found['tree'], ())
    return tree


def joined(path: tuple[str, ...]) -> str:
    """A path as a string that no other path has (JSON pointers are escaped so)."""
    return '/'.join(key.replace('~', '~0').replace('/', '~1') for key in path)


def to_bits(x: Array, path: tuple[str, ...]) -> Array:
    """An array of a dtype that every format knows: others (bfloat16, complex128) as their bytes."""
    if x.dtype.kind in 'biuf' and x.dtype.isbuiltin == 1:
        return np.asarray(x, order='C')
    if x.dtype.kind not in 'fcV' or x.dtype.fields or x.dtype.name.startswith('void'):
        raise TypeError(f'Invalid {joined(path)} of dtype {x.dtype}. Must be numbers.')
    return np.asarray(x, order='C')[..., None].view(np.uint8)


def from_bits(x: Array, dtype: str) -> Array:
    """The inverse of :func:`to_bits`."""
    if x.dtype.name == dtype:
        return x
    if not hasattr(np, dtype):
        import ml_dtypes  # which is where jax has its dtypes from

        return x.view(np.dtype(getattr(ml_dtypes, dtype, 'no dtype')))[..., 0]
    return x.view(np.dtype(dtype))[..., 0]


# the formats


def write_npz(file: BinaryIO, arrays: Arrays, metadata: str) -> None:
    text = np.frombuffer(metadata.encode(), np.uint8)
    with zipfile.ZipFile(file, 'w') as archive:
        for name, x in {**arrays, METADATA: text}.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
                np.lib.format.write_array(entry, x, allow_pickle=False)


def read_npz(path: Path) -> tuple[Arrays, str]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as entry:
                arrays[name.removesuffix('.npy')] = np.lib.format.read_array(entry, allow_pickle=False)
    return arrays, arrays.pop(METADATA).tobytes().decode()


def write_safetensors(file: BinaryIO, arrays: Arrays, metadata: str) -> None:
    file.write(needed('safetensors.numpy').save(arrays, {METADATA: metadata}))


def read_safetensors(path: Path) -> tuple[Arrays, str]:
    safetensors = needed('safetensors')
    try:
        with safetensors.safe_open(path, 'np') as file:
            return {name: file.get_tensor(name) for name in file.keys()}, (file.metadata() or {})[METADATA]  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def write_msgpack(file: BinaryIO, arrays: Arrays, metadata: str) -> None:
    parts = {name: [x.dtype.str, x.shape, x.tobytes()] for name, x in arrays.items()}
    file.write(needed('msgpack').packb({METADATA: metadata, 'arrays': parts}))


def read_msgpack(path: Path) -> tuple[Arrays, str]:
    found = needed('msgpack').unpackb(path.read_bytes())
    arrays: Arrays = {
        name: np.frombuffer(data, dtype).reshape(shape).copy() for name, (dtype, shape, data) in found['arrays'].items()
    }
    return arrays, found[METADATA]


def needed(name: str) -> ModuleType:
    """A package that one format needs."""
    package = name.split('.')[0]
    try:
        return __import__(name, fromlist=['_'])
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'A .{package} file needs the package {package}: pip install {package}.') from error


FORMATS = {
    '.npz': Format(write_npz, read_npz),
    '.safetensors': Format(write_safetensors, read_safetensors),
    '.msgpack': Format(write_msgpack, read_msgpack),
}
