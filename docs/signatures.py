"""Sphinx extension: optimizers are shown with their own arguments, and the shared ones behind a link."""

from __future__ import annotations

import inspect
from typing import Any

from sphinx.application import Sphinx

from braintools_optim import Optimizer
from braintools_optim.options.fields import fields_of

SHARED = {name for name, field in fields_of(Optimizer).items() if field.init} - {'lr'}


class Verbatim(str):
    """A string whose representation is the string."""

    __repr__ = str.__str__


LINK = 'Further arguments are the :ref:`options of every optimizer <shared-options>`.'


def own_parameters(cls: type[Optimizer]) -> list[inspect.Parameter]:
    """Return the parameters of a constructor without those that every optimizer has."""
    parameters = inspect.signature(cls).parameters.values()
    return [shown(p) for p in parameters if p.name not in SHARED]


def shown(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter without its annotation, and with the name of a default that is a function."""
    default = Verbatim(parameter.default.__name__) if inspect.isfunction(parameter.default) else parameter.default
    return parameter.replace(annotation=parameter.empty, default=default)


def has_shared(what: str, obj: object) -> bool:
    """Return whether the documented object is an optimizer that takes the shared options."""
    is_rule = what == 'class' and isinstance(obj, type) and issubclass(obj, Optimizer) and obj is not Optimizer
    return is_rule and 'grad_clip_norm' in inspect.signature(obj).parameters


def shorten_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    """Return the signature of an optimizer with ``**shared`` in the place of the shared options."""
    if not has_shared(what, obj):
        return None
    shared = inspect.Parameter('shared', inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*own_parameters(obj), shared])), ''


def complete_parameters(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Add the learning rate to the parameters, and the link to the shared options."""
    if not has_shared(what, obj):
        return
    if 'Parameters' not in lines:
        end = next((i for i, line in enumerate(lines) if line in ('References', 'Examples')), len(lines))
        lines[end:end] = ['Parameters', '----------', '']
    start = lines.index('Parameters') + 2
    lr = inspect.signature(obj).parameters.get('lr')
    entries = [line.partition(' : ')[0] for line in lines[start:] if ' : ' in line]
    if lr is not None and 'lr' not in entries:
        default = '' if lr.default is lr.empty else f', default {lr.default}'
        lines[start:start] = [f'lr : float, LRScheduler or callable{default}', '    Learning rate, >= 0.']
    end = next((i for i in range(start, len(lines)) if lines[i].startswith('---')), len(lines) + 1) - 1
    lines[end:end] = ['', LINK, '']


def setup(app: Sphinx) -> dict[str, bool]:
    app.setup_extension('sphinx.ext.autodoc')
    app.connect('autodoc-process-signature', shorten_signature)
    app.connect('autodoc-process-docstring', complete_parameters, priority=400)  # before napoleon reads the docstring
    return {'parallel_read_safe': True}
