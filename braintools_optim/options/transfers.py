"""Transfers between host and device: functions that transfer numbers by design."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

__all__ = ['explicit_transfers']

P = ParamSpec('P')
R = TypeVar('R')
GUARDS: dict[str, Any] = {
    'jax_transfer_guard_host_to_device': jax.transfer_guard_host_to_device,
    'jax_transfer_guard_device_to_host': jax.transfer_guard_device_to_host,
    'jax_transfer_guard_device_to_device': jax.transfer_guard_device_to_device,
}


def explicit_transfers(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function such that its transfers count as explicit under ``jax.transfer_guard``.

    Such a function computes with Python's numbers outside of compiled functions, where jax transfers every number
    implicitly. Explicit transfers are allowed under ``'disallow'`` and refused under ``'disallow_explicit'``.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        guarded = [name for name in GUARDS if getattr(jax.config, name) == 'disallow']
        if not guarded:
            return function(*args, **kwargs)
        with contextlib.ExitStack() as stack:
            for name in guarded:
                stack.enter_context(GUARDS[name]('allow'))
            return function(*args, **kwargs)

    return run
