"""BuiltNode: a brainstate Node that records that its constructors have returned, to refuse unknown attributes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from brainstate.graph import Node

from braintools_optim.options.transfers import explicit_transfers

__all__ = ['BuiltNode', 'refuse_unknown']

if TYPE_CHECKING:

    class BuiltNode(Node):
        graph_invisible_attrs: tuple[str, ...]

        def _finish(self) -> None: ...

else:

    class BuiltMeta(type(Node)):
        """Marks an object as built when its outermost constructor has returned."""

        @explicit_transfers
        def __call__(cls, *args, **kwargs):
            built = super().__call__(*args, **kwargs)
            built._finish()
            object.__setattr__(built, '_is_built', True)
            return built

    class BuiltNode(Node, metaclass=BuiltMeta):
        """A Node that has the attribute ``_is_built`` once its constructors have returned.

        Constructors of subclasses may set any attribute. Afterwards ``__setattr__`` can refuse unknown names.
        """

        graph_invisible_attrs = ('_is_built',)

        def _finish(self):
            """Complete the object after its constructors have returned."""


def refuse_unknown(node: object, name: str, value: object, known: Iterable[str]) -> NoReturn:
    """Raise an ``AttributeError`` for the assignment of an unknown attribute, with the known names that are similar."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    hint = f' Did you mean {" or ".join(close)}?' if close else ''
    raise AttributeError(
        f'Invalid {name}={value!r}. {type(node).__name__} has no such attribute.{hint} '
        'Attributes can be added only in the constructor of a subclass.'
    )
