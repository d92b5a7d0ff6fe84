"""Hooked: the methods of an optimizer that register hooks."""

from __future__ import annotations

from braintools_optim.core import Core
from braintools_optim.options.hooks import HookHandle, OptimizerHook, StateDictHook, StepPostHook, StepPreHook

__all__ = ['Hooked']


class Hooked:
    """The methods of an optimizer that register hooks, as in torch. Each returns a handle that removes the hook.

    Hooks run in the order in which they were registered; ``prepend=True`` runs a hook before all others. Inside ``jit``
    and in :meth:`~Optimizer.minimize`, step hooks run while the step is traced: once for each compilation, with traced
    gradients. A function of every update belongs in a :class:`Stage` or in ``jax.debug.callback``.
    """

    _core: Core

    def register_step_pre_hook(self, hook: StepPreHook, prepend: bool = False) -> HookHandle:
        """Call ``hook(optimizer, args, kwargs)`` before each update; it may return other ``(args, kwargs)``.

        ``args`` holds the gradients, and ``kwargs`` the other arguments of the update.
        """
        return self._core.hooks.register('step_pre', hook, prepend)

    def register_step_post_hook(self, hook: StepPostHook, prepend: bool = False) -> HookHandle:
        """Call ``hook(optimizer, args, kwargs)`` after each update."""
        return self._core.hooks.register('step_post', hook, prepend)

    def register_state_dict_pre_hook(self, hook: OptimizerHook, prepend: bool = False) -> HookHandle:
        """Call ``hook(optimizer)`` before ``state_dict``, which ``save`` calls too."""
        return self._core.hooks.register('state_dict_pre', hook, prepend)

    def register_state_dict_post_hook(self, hook: StateDictHook, prepend: bool = False) -> HookHandle:
        """Call ``hook(optimizer, state_dict)`` after ``state_dict``; it may return another one."""
        return self._core.hooks.register('state_dict_post', hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: StateDictHook, prepend: bool = False) -> HookHandle:
        """Call ``hook(optimizer, state_dict)`` before ``load_state_dict``; it may return another one."""
        return self._core.hooks.register('load_state_dict_pre', hook, prepend)

    def register_load_state_dict_post_hook(self, hook: OptimizerHook, prepend: bool = False) -> HookHandle:
        """Call ``hook(optimizer)`` after ``load_state_dict``."""
        return self._core.hooks.register('load_state_dict_post', hook, prepend)
