"""SharedOptions: the keyword arguments that every optimizer has, for constructors that are written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

import brainunit
import jax
import optax
from jax.typing import DTypeLike

from braintools_optim.constraints import Constraint
from braintools_optim.groups.spec import GroupValue
from braintools_optim.loss_scale import DynamicLossScale
from braintools_optim.options.kinds import Schedulable
from braintools_optim.step.averages import Average
from braintools_optim.step.stage import Stage
from braintools_optim.weights.predicates import Predicate

__all__ = ['SharedOptions']


class SharedOptions(TypedDict, total=False):
    """The keyword arguments that every optimizer has; :class:`Optimizer` describes them.

    A constructor takes them as ``**shared: Unpack[SharedOptions]``. Classes whose options are fields do not need it.
    """

    centralize: bool
    maximize: bool
    cautious: bool
    grokfast: Schedulable | None
    grokfast_decay: Schedulable
    grad_clip_over: Literal['all', 'group', 'weight']
    grad_clip_adaptive: Schedulable | None
    on_nonfinite: Literal['ignore', 'skip', 'zero', 'raise']
    max_consecutive_skips: Schedulable
    rounding: Literal['nearest', 'stochastic']
    norm_unit: Literal['own'] | brainunit.Unit | Sequence[brainunit.Unit] | None
    loss_scale: float | DynamicLossScale | None
    groups: Mapping[Predicate, GroupValue] | None
    no_decay: Predicate | None
    constraints: Mapping[Predicate, Constraint | Callable[[jax.Array], jax.Array]] | None
    state_dtype: DTypeLike | None
    master_weights: bool
    metrics: bool | Literal['weights']
    average: Average | None
    gradient_transform: optax.GradientTransformation | Callable[[dict[str, jax.Array]], Mapping[str, jax.Array]] | None
    norm_axis_name: str | tuple[str, ...] | None
    shard_memory_over: str | None
    on_spike: Literal['ignore', 'skip', 'clip']
    spike_factor: Schedulable
    spike_decay: Schedulable
    accumulate_steps: int
    accumulate: Literal['mean', 'sum']
    stages: Sequence[Stage]
