"""Use of this library in place of braintools.optim, by code that imports braintools.optim itself."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from braintools_optim.optimizer import Optimizer
from braintools_optim.rules.optax import OptaxOptimizer
from braintools_optim.settings import OptimState

__all__ = ['register_with_braintools', 'replace_braintools', 'restore_braintools']

NAME = 'braintools.optim'
replaced: list[ModuleType] = []
"""The module braintools.optim while this library stands in its place."""


def register_with_braintools() -> None:
    """Let braintools.optim recognize the optimizers of this library.

    Afterwards ``isinstance(Adam(), braintools.optim.OptaxOptimizer)`` is True, also in libraries that imported
    braintools.optim before. The same holds for ``Optimizer`` and ``OptimState``. Schedules are not recognized as
    ``braintools.optim.LRScheduler``, which is an ordinary class. Optimizers of braintools cannot follow schedules of
    this library, because they expect the negative rate from a schedule.

    Calling the function again has no effect.

    Raises
    ------
    ModuleNotFoundError
        If braintools is not installed.
    """
    original = original_module()
    original.Optimizer.register(Optimizer)  # first, because it is the base of the next class
    original.OptaxOptimizer.register(OptaxOptimizer)
    original.OptimState.register(OptimState)


def replace_braintools() -> None:
    """Put this library in the place of braintools.optim.

    Afterwards ``import braintools.optim`` and ``braintools.optim.Adam`` give this library, so that other libraries
    build its optimizers. Call the function before you import libraries that use ``from braintools.optim import ...``:
    names that were imported before remain those of braintools, but recognize the optimizers of this library, as after
    :func:`register_with_braintools`.

    Calling the function again has no effect; :func:`restore_braintools` undoes it.

    Raises
    ------
    ModuleNotFoundError
        If braintools is not installed.
    """
    register_with_braintools()
    if not replaced:
        replaced.append(original_module())
        put(importlib.import_module('braintools_optim'))


def restore_braintools() -> None:
    """Undo :func:`replace_braintools`: ``import braintools.optim`` gives braintools.optim again."""
    if replaced:
        put(replaced.pop())


def original_module() -> ModuleType:
    """Return braintools.optim itself; raise if braintools is not installed."""
    if replaced:
        return replaced[0]
    try:
        return importlib.import_module(NAME)
    except ModuleNotFoundError as error:
        if error.name not in ('braintools', NAME):
            raise
        raise ModuleNotFoundError('braintools is not installed. Install it with: pip install braintools') from error


def put(module: ModuleType) -> None:
    """Make an import of braintools.optim give ``module``."""
    sys.modules[NAME] = module
    sys.modules['braintools'].optim = module  # type: ignore[attr-defined]
