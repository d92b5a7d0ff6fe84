"""The file formats: how arrays by name and one string are written to a file and read from it."""

from __future__ import annotations

import errno
import importlib
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from braintools_optim.saving.trees import Arrays

__all__ = ['Format', 'format_of']

METADATA = '~metadata'  # among names of arrays, in which a digit follows each ~


class Format(NamedTuple):
    """How arrays by name and one string are written and read."""

    write: Callable[[BinaryIO, Arrays, str], None]
    read: Callable[[Path], tuple[Arrays, str]]


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that the suffix of a path names."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ValueError(f'Invalid path={os.fspath(path)!r}. Must end in {", ".join(FORMATS)}.')
    return FORMATS[suffix]


def write_npz(file: BinaryIO, arrays: Arrays, metadata: str) -> None:
    text = np.frombuffer(metadata.encode(), np.uint8)
    with zipfile.ZipFile(file, 'w') as archive:
        for name, x in {**arrays, METADATA: text}.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as entry:
                np.lib.format.write_array(entry, x, allow_pickle=False)


def read_npz(path: Path) -> tuple[Arrays, str]:
    try:
        return read_entries(path)
    except OSError as error:
        if error.errno == errno.EINVAL:  # an offset in the archive is damaged
            raise ValueError('it is no whole zip archive') from error
        raise


def read_entries(path: Path) -> tuple[Arrays, str]:
    """Return the arrays of a zip archive and the string among its entries."""
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError('it has compressed entries, which save does not write')
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError('its entries are larger than the file')
        for entry in entries:
            arrays[entry.filename.removesuffix('.npy')] = read_entry(archive, entry)
    if METADATA not in arrays:
        raise ValueError('it holds no tree')
    return arrays, arrays.pop(METADATA).tobytes().decode()


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> npt.NDArray[np.generic]:
    """Return the array of an entry, which takes no more memory than the entry has bytes."""
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f'{entry.filename} has another version of the .npy format')
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        content = file.read()  # to the end, where the checksum of the entry is compared
    if dtype.hasobject or is_fortran or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f'{entry.filename} does not hold the {dtype}{list(shape)} that it declares')
    return np.frombuffer(content, dtype).reshape(shape).copy()


def write_safetensors(file: BinaryIO, arrays: Arrays, metadata: str) -> None:
    file.write(needed('safetensors.numpy').save(arrays, {METADATA: metadata}))


def read_safetensors(path: Path) -> tuple[Arrays, str]:
    safetensors = needed('safetensors')
    try:
        with safetensors.safe_open(path, 'np') as file:
            metadata = file.metadata() or {}
            if METADATA not in metadata:
                raise ValueError('it holds no tree')
            return {name: file.get_tensor(name) for name in file.keys()}, metadata[METADATA]  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def write_msgpack(file: BinaryIO, arrays: Arrays, metadata: str) -> None:
    parts = {name: [x.dtype.str, x.shape, x.tobytes()] for name, x in arrays.items()}
    file.write(needed('msgpack').packb({METADATA: metadata, 'arrays': parts}))


def read_msgpack(path: Path) -> tuple[Arrays, str]:
    found = needed('msgpack').unpackb(path.read_bytes())
    if not isinstance(found, dict) or METADATA not in found:
        raise ValueError('it holds no tree')
    arrays: Arrays = {
        name: np.frombuffer(data, dtype).reshape(shape).copy() for name, (dtype, shape, data) in found['arrays'].items()
    }
    return arrays, found[METADATA]


def needed(name: str) -> ModuleType:
    """Return a package that one format needs; raise if it is not installed."""
    package = name.split('.')[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'A .{package} file needs the package {package}: pip install {package}.') from error


FORMATS = {
    '.npz': Format(write_npz, read_npz),
    '.safetensors': Format(write_safetensors, read_safetensors),
    '.msgpack': Format(write_msgpack, read_msgpack),
}
