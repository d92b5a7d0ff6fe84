"""Saved: the methods of an optimizer that save and load its state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from braintools_optim import files
from braintools_optim.core import Core
from braintools_optim.options.types import Tree
from braintools_optim.saving import checkpoint, optax, torch
from braintools_optim.weights.predicates import Predicate

__all__ = ['Saved']


class Saved:
    """The methods of an optimizer that save and load its state."""

    _core: Core

    def state_dict(self) -> dict[str, Tree]:
        """Return everything that the next update depends on except the weights, by path.

        The result consists of nested dicts and lists of strings, numbers and NumPy arrays, which later updates do not
        change.

        Raises
        ------
        ValueError
            If an array is split over several processes and this one does not hold all of it. Use orbax then.
        """
        hooks = self._core.hooks
        for hook in hooks.of('state_dict_pre'):
            hook(self)
        return hooks.changed_by('state_dict_post', self, checkpoint.state_dict(self._core))

    def load_state_dict(
        self, state_dict: Mapping[str, Tree], strict: bool = True, rename: Mapping[str, str] | None = None
    ) -> list[str]:
        """Restore the state that :meth:`state_dict` returned.

        Parameters
        ----------
        state_dict : mapping
            The state of an optimizer that was built alike. The slots go to the weights of the same names.
        strict : bool, default True
            If False, everything that fits is loaded and a description of everything else is returned. A weight gets
            all of its slots or none; a group gets its options if it has the same weights.
        rename : dict from str to str, optional
            The names here of weights that have other names in ``state_dict``.

        Raises
        ------
        ValueError
            If the algorithm, fixed arguments, schedules, names, shapes, dtypes, units or flags differ, or if a number
            is out of the range of its option. The error lists all differences, and nothing has changed. Also if the
            weights lie on several processes, and not all of them load the same.
        """
        hooks = self._core.hooks
        if hooks.by_event:
            state_dict = hooks.changed_by('load_state_dict_pre', self, dict(state_dict))
        problems = checkpoint.load_state_dict(self._core, state_dict, strict, rename)
        for hook in hooks.of('load_state_dict_post'):
            hook(self)
        return problems

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the :meth:`state_dict` to an ``.npz``, ``.safetensors`` or ``.msgpack`` file, whole or not at all.

        See :func:`braintools_optim.files.save_run`, which writes the weights, too.
        """
        files.save(path, self.state_dict())

    def load(
        self, path: str | os.PathLike[str], strict: bool = True, rename: Mapping[str, str] | None = None
    ) -> list[str]:
        """Restore the state that :meth:`save` wrote, as :meth:`load_state_dict` does.

        Raises
        ------
        ValueError
            If the file was not written by :meth:`save`, is not whole or does not fit. Nothing has changed then.
        """
        return self.load_state_dict(files.load(path), strict, rename)

    def reset(self, predicate: Predicate | None = None) -> None:
        """Clear the slots and update counts of all weights, or of the weights that ``predicate`` chooses.

        Weights, options, constraints and schedules stay as they are. Without a predicate ``step_count``, the number of
        skipped updates and the metrics are cleared too, and so is a schedule that is a function of the update count.

        Parameters
        ----------
        predicate : str or callable, optional
            A pattern for the last parts of a dotted name, or a function ``(name, weight) -> bool``.

        Raises
        ------
        ValueError
            If no weight is chosen, or only some of those that a rule such as :class:`LBFGS` remembers together.
        """
        checkpoint.reset(self._core, predicate)

    def load_torch_state_dict(self, state_dict: Mapping[str, Tree], names: Sequence[str]) -> None:
        """Continue a run of ``torch.optim`` with its optimizer state, its options and its learning rates.

        Arrays are taken unchanged: where a layout differs (the weight of torch's ``Linear`` is transposed), transpose
        them as you transpose the weights. The options of torch's groups replace the options here. A rate that differs
        is set by hand, so move the schedule, if there is one, to its epoch before.

        Parameters
        ----------
        state_dict : mapping
            ``optimizer.state_dict()`` of torch, of tensors or of NumPy arrays.
        names : sequence of str
            The names here of the weights, in the order of torch's parameters.

        Raises
        ------
        ValueError
            If torch has no such optimizer, or if names, groups, options, shapes or slots do not fit. Nothing has
            changed then.
        """
        torch.load_torch_state_dict(self._core, state_dict, names)

    def torch_state_dict(
        self, names: Sequence[str], tensor: Callable[[npt.NDArray[np.generic]], object] = np.asarray
    ) -> dict[str, Tree]:
        """Return the optimizer state, options and learning rates as a ``state_dict`` of ``torch.optim``.

        Parameters
        ----------
        names : sequence of str
            The names of the weights in the order of torch's parameters.
        tensor : callable, default numpy.asarray
            Function that turns an array into a tensor: ``load_state_dict`` of torch needs ``torch.as_tensor``.

        Raises
        ------
        ValueError
            If torch has no such optimizer or lacks one of the options, or if the names do not fit.
        """
        return torch.torch_state_dict(self._core, names, tensor)

    def load_optax_state(self, state: Tree, count: int | None = None) -> None:
        """Continue with the state of an optax transformation such as ``optax.adam(...)`` of the same weights.

        The options and the learning rate stay as they are, because optax's state does not hold them.

        Parameters
        ----------
        state : tuple
            The state that ``tx.init`` or ``tx.update`` returned for a tree of the weights, nested or by name.
        count : int, optional
            The number of updates, if the state does not hold it (``optax.sgd``). Default: 1 for each weight.

        Raises
        ------
        ValueError
            If the state holds something else, or too little, or does not fit. Nothing has changed then.
        """
        optax.load_optax_state(self._core, state, count)

    def load_braintools_state_dict(self, state_dict: Mapping[str, Tree]) -> None:
        """Continue from a ``state_dict`` of ``braintools.optim``, with its optimizer state, update count and rate.

        The state_dict holds neither other options nor the epoch of a schedule: move the schedule to its epoch before.

        Raises
        ------
        ValueError
            If the state does not hold enough, or does not fit. Nothing has changed then.
        """
        optax.load_braintools_state_dict(self._core, state_dict)
