"""Signatures: what constructors take, shown and handed on."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = ['constructor_arguments', 'constructor_signature', 'given']


def constructor_signature(cls: type, shared: Mapping[str, Any] = MappingProxyType({})) -> inspect.Signature:
    """What ``inspect.signature`` should show of a class, which brainstate's ``Node`` hides; ``shared`` spelled out."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    parameters = list(signature.parameters.values())[1:]
    if parameters and parameters[-1].name == 'shared':
        keyword = inspect.Parameter.KEYWORD_ONLY
        taken = {parameter.name for parameter in parameters}
        more = [inspect.Parameter(name, keyword, default=d) for name, d in shared.items() if name not in taken]
        parameters = [*parameters[:-1], *more]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def given(arguments: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """The arguments of a constructor by name, from its ``locals()``: each option goes on under its own name."""
    arguments = {**arguments, **arguments.get('shared', {})}
    return {name: value for name, value in arguments.items() if name not in ('self', '__class__', 'shared', *left_out)}


def constructor_arguments(cls: type) -> set[str]:
    """The names that the constructors of a class and its bases take."""
    return {name for base in cls.__mro__ for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]
