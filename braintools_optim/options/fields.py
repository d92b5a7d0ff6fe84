"""Options as class fields: what a class declares, the signature of its constructor, and how arguments are bound."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from types import MappingProxyType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
)
from weakref import WeakKeyDictionary

from braintools_optim.options.hints import hint_for, suggestion
from braintools_optim.options.kinds import ANY_FINITE, Choice, Flag, Kind, Number, Numbers
from braintools_optim.options.types import OptionValue

__all__ = [
    'LAST',
    'OVER_ALL',
    'Field',
    'Option',
    'Options',
    'bind',
    'fields_of',
    'option',
    'signature_of',
]

T = TypeVar('T')
OVER_ALL = 'over all groups'
"""The mark, in an annotation, of an option that concerns all groups together and that no group can have."""
LAST = 'last positional argument'
"""The mark, in an annotation, of a keyword that may also be given by position, after all positional arguments."""


@dataclass(frozen=True)
class Field:
    """One option that a class declares."""

    name: str
    kind: Kind
    default: OptionValue
    init: bool = True
    keyword_only: bool = False
    last: bool = False
    over_all: bool = False
    init_only: bool = False


@dataclass(frozen=True)
class Default:
    """The result of :func:`option`: a default with further properties of the field."""

    value: OptionValue
    init: bool


def option(default: T, *, init: Literal[False] = False) -> T:
    """Declare an option that is not an argument of the constructor: ``nesterov: bool = option(False)``.

    The option is an attribute all the same, which may be assigned and which a group may have.
    """
    declared: Any = Default(default, init)  # read by declare_fields, which puts an Option in the place of the field
    field: T = declared
    return field


class HasOptions(Protocol):
    """An object with options, such as an optimizer."""

    def read_option(self, name: str) -> OptionValue: ...

    def write_option(self, name: str, value: OptionValue) -> None: ...


class Option(Generic[T]):
    """The attribute of an option: it reads and assigns the value that the next update takes.

    Written with a kind in the body of a base class, ``weight_decay = Option(0.0, kind)``, it declares an option that
    is an argument of the constructor only in the subclasses that declare a field of this name.
    """

    def __init__(self, default: T, kind: Kind | None = None):
        self.default = default
        self.kind = kind
        self.name = ''

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: HasOptions | None, owner: type) -> T:
        value: T = self.default if instance is None else instance.read_option(self.name)
        return value

    def __set__(self, instance: HasOptions, value: T) -> None:
        instance.write_option(self.name, value)

    def __delete__(self, instance: object) -> None:
        raise AttributeError(f'The option {self.name} of {type(instance).__name__} cannot be deleted.')


DECLARED: WeakKeyDictionary[type, dict[str, Field]] = WeakKeyDictionary()
"""The fields that each class itself declares; kept here, so that an option may have any name."""


@dataclass_transform(field_specifiers=(option,))
class Options:
    """Base of classes whose annotated class attributes are options: the annotation is the kind, the value the default.

    ``_: KW_ONLY`` makes the fields that follow keyword-only, as in a dataclass.
    """

    def __init_subclass__(cls, **arguments: object):
        super().__init_subclass__(**arguments)
        DECLARED[cls] = declare_fields(cls)


def fields_of(cls: type) -> dict[str, Field]:
    """Return all fields of a class by name, in the order of its arguments.

    A field that a subclass declares again keeps its place, as in a dataclass, unless it was not an argument before.
    """
    fields: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        for name, field in DECLARED.get(base, {}).items():
            if name in fields and not fields[name].init:
                del fields[name]
            fields[name] = field
    return fields


def declare_fields(cls: type) -> dict[str, Field]:
    """Return the fields that a class itself declares, and put an :class:`Option` in the place of each default."""
    annotations, keyword_only = inspect.get_annotations(cls), False
    found = {
        name: Field(name, value.kind, value.default, init=False)
        for name, value in vars(cls).items()
        if isinstance(value, Option) and value.kind is not None and name not in annotations
    }
    for name, annotation in annotations.items():
        hint = evaluated(cls, name, annotation)
        if hint is KW_ONLY:
            keyword_only = True
        if name.startswith('_') or name not in vars(cls) or get_origin(hint) is ClassVar or hint is ClassVar:
            continue
        bases = cls.__mro__[1:]
        is_taken = any(name in vars(base) or name in inspect.get_annotations(base) for base in bases)
        if is_taken and not any(name in DECLARED.get(base, {}) for base in bases):
            raise TypeError(f'Invalid option {name} of {cls.__name__}. Must not be the name of an attribute or method.')
        found[name] = field = field_of(cls, name, hint, vars(cls)[name], keyword_only)
        if field.init_only:
            delattr(cls, name)
        elif not isinstance(vars(cls)[name], Option):
            attribute: Option[OptionValue] = Option(field.default)
            attribute.__set_name__(cls, name)
            setattr(cls, name, attribute)
    return found


def evaluated(cls: type, name: str, annotation: object) -> object:
    """Return the value of an annotation that may be a string."""
    if not isinstance(annotation, str):
        return annotation
    try:
        module = sys.modules.get(cls.__module__)
        return eval(annotation, {} if module is None else vars(module), dict(vars(cls)))
    except NameError as error:
        if name.startswith('_') or name not in vars(cls):
            return Any
        raise TypeError(
            f'The annotation {annotation!r} of {cls.__name__}.{name} cannot be evaluated: {error}. Import its names '
            f'in the module, or leave out `from __future__ import annotations`.'
        ) from None


def field_of(cls: type, name: str, hint: object, default: object, keyword_only: bool) -> Field:
    """Return the field that an annotation and a default declare."""
    if isinstance(default, Option) and default.kind is not None:
        return Field(name, default.kind, default.default, keyword_only=keyword_only)
    init_only = isinstance(hint, InitVar)
    hint = hint.type if isinstance(hint, InitVar) else hint
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    kind = next((mark for mark in marks if isinstance(mark, Kind)), None) or plain_kind(hint)
    if kind is None:
        raise TypeError(
            f'The option {name} of {cls.__name__} has the annotation {hint!r}. Must be one of the kinds of '
            f'braintools_optim.options, such as NonNegative, or bool, int, float, a Literal or a tuple of floats.'
        )
    default, init = (default.value, default.init) if isinstance(default, Default) else (default, True)
    marked = {'last': LAST in marks, 'over_all': OVER_ALL in marks, 'init_only': init_only}
    return Field(name, kind, default, init, keyword_only, **marked)


def plain_kind(hint: object) -> Kind | None:
    """Return the kind that a plain type stands for."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return Choice(arguments)
    if get_origin(hint) in (Union, types.UnionType) and type(None) in arguments:
        kind = plain_kind(next(x for x in arguments if x is not type(None)))
        return Number(kind.allowed, kind.integer, optional=True) if isinstance(kind, Number) else None
    if get_origin(hint) is tuple and set(arguments) <= {int, float}:
        return Numbers(Number(ANY_FINITE), len(arguments))
    kinds: dict[object, Kind] = {bool: Flag(), str: Flag(str), float: Number(ANY_FINITE)}
    kinds[int] = Number(ANY_FINITE, integer=True)
    return kinds.get(hint)


def signature_of(fields: Mapping[str, Field]) -> inspect.Signature:
    """Return the signature of a constructor that takes these fields."""
    taken = [field for field in fields.values() if field.init]
    positional = [field for field in taken if not field.keyword_only] + [field for field in taken if field.last]
    keywords = [field for field in taken if field.keyword_only and not field.last]
    return inspect.Signature(
        [
            inspect.Parameter(field.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=field.default)
            for field in positional
        ]
        + [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default) for field in keywords]
    )


def bind(
    name: str,
    signature: inspect.Signature,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    other_names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, OptionValue]:
    """Return the arguments of a call by name, defaults included; a ``TypeError`` names what the signature lacks.

    ``other_names`` maps the names that other libraries use to those of the signature, for the error.
    """
    if unknown := sorted(kwargs.keys() - signature.parameters):
        hint = suggestion(unknown[0], signature.parameters, other_names)
        raise TypeError(f'{name} has no option {unknown}. Must be among {sorted(signature.parameters)}.{hint}')
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        hint = hint_for(args[0]) if args else ''
        raise TypeError(f'Invalid arguments of {name}: {error}. Must be {signature}.{hint}') from None
    bound.apply_defaults()
    return dict(bound.arguments)
