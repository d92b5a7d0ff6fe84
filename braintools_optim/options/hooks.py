"""Hooks: functions that run before and after updates, and before and after a state_dict is taken or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from braintools_optim.options.types import Tree

__all__ = ['HookHandle', 'Hooks', 'OptimizerHook', 'StateDictHook', 'StepPostHook', 'StepPreHook']

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
StepPreHook = Callable[[Any, Args, Kwargs], tuple[Args, Kwargs] | None]
StepPostHook = Callable[[Any, Args, Kwargs], None]
OptimizerHook = Callable[[Any], None]
StateDictHook = Callable[[Any, dict[str, Tree]], dict[str, Tree] | None]


class HookHandle:
    """Removes a hook: ``handle.remove()``, or the end of a ``with`` block."""

    def __init__(self, hooks: dict[HookHandle, Callable[..., Any]]):
        self.hooks = hooks

    def remove(self) -> None:
        """Remove the hook, if it has not been removed yet."""
        self.hooks.pop(self, None)

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()


class Hooks:
    """The hooks of one optimizer, by the event that they follow."""

    def __init__(self) -> None:
        self.by_event: dict[str, dict[HookHandle, Callable[..., Any]]] = {}

    def register(self, event: str, hook: Callable[..., Any], prepend: bool) -> HookHandle:
        """Add a hook after the present ones of an event, or before them."""
        if not callable(hook):
            raise TypeError(f'Invalid hook={hook!r}. Must be callable.')
        if type(prepend) is not bool:
            raise TypeError(f'Invalid prepend={prepend!r}. Must be a bool.')
        hooks = self.by_event.setdefault(event, {})
        handle, present = HookHandle(hooks), dict(hooks)
        hooks.clear()
        hooks.update({handle: hook, **present} if prepend else {**present, handle: hook})
        return handle

    def of(self, event: str) -> Iterator[Callable[..., Any]]:
        """Return the hooks of an event in their order."""
        return iter(list(self.by_event.get(event, {}).values()))

    def changed_by(self, event: str, optimizer: object, value: dict[str, Tree]) -> dict[str, Tree]:
        """Return ``value`` after the hooks of an event, which may return another one."""
        for hook in self.of(event):
            returned = hook(optimizer, value)
            value = value if returned is None else returned
        return value

    def run_step(self, optimizer: object, args: Args, kwargs: Kwargs, step: Callable[..., None]) -> None:
        """Call ``step`` with the arguments that its hooks return."""
        for hook in self.of('step_pre'):
            returned = hook(optimizer, args, kwargs)
            if returned is None:
                continue
            if not (isinstance(returned, tuple) and len(returned) == 2):
                raise TypeError(f'A step pre-hook returned {returned!r}. Must be None or (args, kwargs).')
            args, kwargs = returned
        step(*args, **kwargs)
        for hook in self.of('step_post'):
            hook(optimizer, args, kwargs)
