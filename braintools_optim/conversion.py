"""Memories from elsewhere: of torch.optim, there and back, of optax, and of braintools.optim."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import brainunit
import jax
import jax.numpy as jnp
import numpy as np

from braintools_optim import checkpoint
from braintools_optim.evaluation import refuse_inside
from braintools_optim.options import Hyperparameters, as_number, validate
from braintools_optim.registration import first_memory
from braintools_optim.step import NOT_SLOTS, first_slots

if TYPE_CHECKING:
    from braintools_optim.optimizer import Optimizer

__all__ = ['load_braintools_state_dict', 'load_optax_state', 'load_torch_state_dict', 'torch_state_dict']

Array = np.ndarray[Any, Any]
Found = Mapping[str, Mapping[str, Any]]  # slot, weight


class Counterpart(NamedTuple):
    """An optimizer of torch: the options that are in its groups, and what ours must be in others."""

    options: tuple[str, ...]
    fixed: Mapping[str, Any]


def torch_has(options: str, **fixed: Any) -> Counterpart:
    return Counterpart(tuple(options.split()), fixed)


SGD = torch_has('weight_decay maximize momentum dampening nesterov', decoupled_weight_decay=False)
ADAM = torch_has('weight_decay maximize betas eps amsgrad decoupled_weight_decay')
TORCH = {
    'SGD': SGD,
    'Momentum': SGD,
    'MomentumNesterov': SGD,
    'Adam': ADAM,
    'AdamW': ADAM,
    'RAdam': torch_has('weight_decay maximize betas eps decoupled_weight_decay'),
    'Nadam': torch_has('weight_decay maximize betas eps momentum_decay decoupled_weight_decay'),
    'Adamax': torch_has('weight_decay maximize betas eps', decoupled_weight_decay=False),
    'RMSprop': torch_has('weight_decay maximize alpha eps momentum centered', decoupled_weight_decay=False),
    'Adagrad': torch_has('weight_decay maximize eps lr_decay initial_accumulator_value', decoupled_weight_decay=False),
    'Adadelta': torch_has('weight_decay maximize rho eps', decoupled_weight_decay=False),
    'ASGD': torch_has('weight_decay maximize lambd alpha t0', decoupled_weight_decay=False),
    'Rprop': torch_has('maximize etas step_sizes', weight_decay=0.0),
    'Adafactor': torch_has(
        'weight_decay maximize eps clip_threshold decay_rate', relative_step=True, factored=True, beta1=None
    ),
}
RENAMED = {'clip_threshold': 'd', 'decay_rate': 'beta2_decay'}
YOUNG = {'maximize', 'decoupled_weight_decay'}  # of torch's options: an old state_dict has them not
OURS = NOT_SLOTS | {'master'}
DERIVED = {'eta', 'mu'}  # what ASGD keeps of its options and the count

MOMENTS = {'ScaleByAdamState': {'mu': 'exp_avg', 'nu': 'exp_avg_sq'}}
TRACE = {'TraceState': {'trace': 'momentum_buffer'}}
OPTAX: dict[str, dict[str, dict[str, str]]] = {
    **dict.fromkeys(('Adam', 'AdamW', 'RAdam', 'NAdamW', 'Lamb'), MOMENTS),
    **dict.fromkeys(('SGD', 'Momentum', 'MomentumNesterov'), TRACE),
    'Adamax': {'ScaleByAdamState': {'mu': 'exp_avg', 'nu': 'exp_inf'}},
    'Lion': {'ScaleByLionState': {'mu': 'exp_avg'}},
    'Adagrad': {'ScaleByRssState': {'sum_of_squares': 'sum'}},
    'RMSprop': {'ScaleByRmsState': {'nu': 'square_avg'}},
}


# torch


def load_torch_state_dict(optimizer: Optimizer, state_dict: Mapping[str, Any], names: Sequence[str]) -> None:
    """Go on with a run of ``torch.optim``: its memory, its options and its learning rates.

    Arrays are taken as they are: where a layout differs (torch's ``Linear`` has its weight transposed), transpose
    them as you do the weights. The options that torch's groups have replace those here; a rate that differs
    is set by hand, so move the schedule, if there is one, to its epoch before.

    Parameters
    ----------
    state_dict : mapping
        ``optimizer.state_dict()`` in torch, of tensors or of NumPy arrays.
    names : sequence of str
        The names here of the weights, in the order of torch's parameters.

    Raises
    ------
    ValueError
        If torch has no such optimizer, or names, groups, options, shapes or the memory do not fit;
        nothing has changed then.
    """
    counterpart = counterpart_of(optimizer, TORCH, 'torch.optim')
    if not isinstance(state_dict, Mapping) or not {'state', 'param_groups'} <= state_dict.keys():
        raise ValueError("Invalid state_dict. Must be torch's, with 'state' and 'param_groups'.")
    check_names(optimizer, names)
    ids = [i for group in state_dict['param_groups'] for i in group['params']]
    if len(ids) != len(names):
        raise ValueError(f'Invalid names of {len(names)} weights. Must be {len(ids)}, as many as torch has parameters.')
    name_of = dict(zip(ids, names, strict=True))
    found: dict[str, dict[str, Any]] = {}
    counts = {}
    with unchanged_by_errors(optimizer):
        for theirs, i in matched_groups(optimizer, state_dict['param_groups'], name_of):
            take_options(optimizer, i, counterpart, theirs)
            take_rate(optimizer, i, theirs['lr'])
            for key in theirs['params']:
                own = state_dict['state'].get(key, {})
                slots = {slot: as_array(x) for slot, x in own.items() if x is not None and slot not in DERIVED}
                counts[name_of[key]] = int(slots.pop('step', bool(slots)))  # SGD does not count
                if 'step_size' in slots:  # here in units of lr
                    if theirs['lr'] == 0:
                        raise ValueError('Invalid lr=0 of a group. Must be > 0: step sizes here are in units of lr.')
                    slots['step_size'] = slots['step_size'] / as_number(as_array(theirs['lr']))
                for slot, x in slots.items():
                    found.setdefault(slot, {})[name_of[key]] = x
        put(optimizer, found, counts)
        if counterpart is not SGD:
            optimizer.step_count.value = jnp.asarray(max(counts.values()), jnp.int32)


def torch_state_dict(
    optimizer: Optimizer, names: Sequence[str], tensor: Callable[[Array], Any] = np.asarray
) -> dict[str, Any]:
    """The memory, options and learning rates as a ``state_dict`` of ``torch.optim``.

    Parameters
    ----------
    names : sequence of str
        The names of the weights in the order of torch's parameters.
    tensor : callable, default numpy.asarray
        What makes an array torch's: ``load_state_dict`` in torch needs ``torch.as_tensor``.

    Raises
    ------
    ValueError
        If torch has no such optimizer or it cannot have these options, or the names do not fit.
    """
    counterpart = counterpart_of(optimizer, TORCH, 'torch.optim')
    check_names(optimizer, names)
    memory = registered(optimizer)
    counts = dict(zip(optimizer.weight_names, memory['step'].tolist(), strict=True))
    place = {name: i for i, name in enumerate(names)}
    state: dict[int, Any] = {}
    groups = []
    for i in range(len(optimizer.param_groups)):
        options = optimizer.settings.plain(i)
        refuse_what_torch_has_not(optimizer, counterpart, options)
        own = {RENAMED.get(name, name): options[name] for name in counterpart.options}
        if 'beta2_decay' in own:
            own['beta2_decay'] = -abs(own['beta2_decay'])
        params = [place[name] for name in optimizer.group_names(i)]
        groups.append({'lr': options['lr'], **own, 'params': sorted(params)})
        for name in optimizer.group_names(i):
            slots = {slot: np.array(x[name]) for slot, x in memory.items() if slot not in OURS and name in x}
            slots = with_torchs_own(slots, counts[name], options)
            if counterpart is not SGD:
                slots['step'] = np.array(counts[name], np.float32)
            elif not counts[name]:
                slots = {}
            if slots:
                state[place[name]] = {slot: tensor(x) for slot, x in slots.items()}
    return {'state': dict(sorted(state.items())), 'param_groups': groups}


def with_torchs_own(slots: dict[str, Array], count: int, options: Mapping[str, Any]) -> dict[str, Array]:
    """A weight's memory with what torch keeps otherwise."""
    lr = options['lr']
    if 'step_size' in slots:
        slots['step_size'] = slots['step_size'] * lr
    if 'ax' in slots:
        slots['eta'] = np.array(lr / (1 + options['lambd'] * lr * count) ** options['alpha'])
        slots['mu'] = np.array(1 / max(1, count - options['t0']))
    return slots


def check_names(optimizer: Optimizer, names: Sequence[str]) -> None:
    registered(optimizer)
    ours = optimizer.weight_names
    problems = [f'missing: {sorted(set(ours) - set(names))}'] if set(ours) - set(names) else []
    problems += [f'not registered: {sorted(set(names) - set(ours))}'] if set(names) - set(ours) else []
    problems += ['some are there twice'] if len(set(names)) < len(names) else []
    if problems:
        raise ValueError(f'Invalid names. Must be those of the weights, each once. {"; ".join(problems)}')


def matched_groups(
    optimizer: Optimizer, groups: Sequence[Mapping[str, Any]], name_of: Mapping[Any, str]
) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Each group there with the place of the group here that has the same weights."""
    ours = [set(optimizer.group_names(i)) for i in range(len(optimizer.param_groups))]
    theirs = [{name_of[key] for key in group['params']} for group in groups]
    if sorted(map(sorted, ours)) != sorted(map(sorted, theirs)):
        raise ValueError(f'The groups differ: {[*map(sorted, theirs)]} there, {[*map(sorted, ours)]} here.')
    return ((group, ours.index(own)) for group, own in zip(groups, theirs, strict=True))


def take_options(optimizer: Optimizer, group: int, counterpart: Counterpart, theirs: Mapping[str, Any]) -> None:
    """Give a group the options that torch's has."""
    here, settings = optimizer.settings.plain(group), optimizer.settings
    refuse_what_torch_has_not(optimizer, counterpart, here)
    options = {}
    for name in counterpart.options:
        if RENAMED.get(name, name) in theirs:
            value = theirs[RENAMED.get(name, name)]
            if name == 'eps' and isinstance(value, (list, tuple)) and value[0] is None:  # that of the weights' dtype
                value = (least_eps(optimizer, group), value[1])
            plain = tuple(map(as_number, value)) if isinstance(value, (list, tuple)) else value
            plain = as_number(as_array(plain)) if hasattr(plain, 'detach') else plain
            options[name] = validate(name, plain, like=here[name])
        elif name not in YOUNG:
            raise ValueError(
                f"The state_dict's groups have no {RENAMED.get(name, name)!r}. "
                f"Must be those of torch's {type(optimizer).__name__}."
            )
    if 'decay_rate' in options and abs(options['decay_rate']) == abs(here['decay_rate']):
        del options['decay_rate']  # whose sign does not matter
    options = {name: value for name, value in options.items() if value != here[name]}
    before, after = Hyperparameters(here), Hyperparameters(here | options)
    old, new = (first_slots(optimizer, jnp.zeros((1, 1)), hp, optimizer._treatment) for hp in (before, after))
    if old.keys() == new.keys():  # else that refuses it; how the memory begins does not matter now
        optimizer._admit(after)
    else:
        optimizer._check_change(before, after)
    alone = len(optimizer.param_groups) == 1
    for name, value in options.items():
        everywhere = alone and name not in settings.own[group]
        settings.set(name, value, None if everywhere else group, lambda before, after: None)


def refuse_what_torch_has_not(optimizer: Optimizer, counterpart: Counterpart, options: Mapping[str, Any]) -> None:
    for name, value in counterpart.fixed.items():
        if options[name] != value:
            raise ValueError(
                f"Invalid {name}={options[name]!r}. Must be {value!r}: torch's {type(optimizer).__name__} is so."
            )


def least_eps(optimizer: Optimizer, group: int) -> float:
    named = optimizer._weights.named()
    kinds = {jnp.result_type(brainunit.get_mantissa(named[name])) for name in optimizer.group_names(group)}
    if len(kinds) > 1:
        raise ValueError(f'Invalid eps=None of torch, that of the dtype: the weights are {sorted(map(str, kinds))}.')
    return float(jnp.finfo(kinds.pop()).eps)  # type: ignore[no-untyped-call]


# optax


def load_optax_state(optimizer: Optimizer, state: Any, count: int | None = None) -> None:
    """Go on with the memory of an optax transformation such as ``optax.adam(...)`` of the same weights.

    The options, the learning rate too, stay: optax's state does not hold them.

    Parameters
    ----------
    state : tuple
        What ``tx.init`` or ``tx.update`` returned for a tree of the weights, nested or by name.
    count : int, optional
        The number of updates, where the state does not hold it (``optax.sgd``); else 1 for each weight.

    Raises
    ------
    ValueError
        If the state holds something else, or too little, or does not fit; nothing has changed then.
    """
    row = counterpart_of(optimizer, OPTAX, 'optax')
    if wearing := [name for name, w in checkpoint.weights(optimizer).items() if w['unit'] != '1']:
        raise ValueError(f'The weights {wearing} have units, and the memory of optax has not ours.')
    found: dict[str, dict[str, Any]] = {}
    counts = [] if count is None else [count]
    for part in parts_of(state):
        kind = type(part).__name__
        if kind in row:
            for field, slot in row[kind].items():
                if slot in found:
                    raise ValueError(f'The state holds {kind} twice. Must be that of one optimizer.')
                found[slot] = by_name(optimizer, getattr(part, field))
        elif kind != 'ScaleByScheduleState':
            raise ValueError(f'The state holds {kind}, for which {type(optimizer).__name__} has no place.')
        if 'count' in part._fields:
            counts.append(int(part.count))
    with unchanged_by_errors(optimizer):
        put(optimizer, found, dict.fromkeys(optimizer.weight_names, counts[-1] if counts else 1), whole=True)
        if counts:
            optimizer.step_count.value = jnp.asarray(counts[0], jnp.int32)


def parts_of(state: Any) -> Iterator[Any]:
    """The states of a chain that hold something."""
    if isinstance(state, (tuple, list)) and not hasattr(state, '_fields'):
        for part in state:
            yield from parts_of(part)
    elif jax.tree.leaves(state):
        yield state


def by_name(optimizer: Optimizer, tree: Any) -> dict[str, Any]:
    """The leaves of a tree that is shaped as the weights, or has them by name."""
    paths = dict(zip(optimizer.param_states.to_dict(), optimizer.param_states.unique_paths, strict=True))
    if isinstance(tree, Mapping) and tree.keys() == paths.keys():
        tree = {paths[name]: leaf for name, leaf in tree.items()}
    leaves: dict[str, Any] = optimizer._weights.match(tree)[0]
    return leaves


def load_braintools_state_dict(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Go on from a ``state_dict`` of ``braintools.optim``: the memory, the update count and the rate.

    It holds neither other options nor the epoch of a schedule: move the schedule to its epoch before.

    Raises
    ------
    ValueError
        If it does not hold enough, or does not fit; nothing has changed then.
    """
    if not isinstance(state_dict, Mapping) or not {'opt_state', 'step_count', 'lr'} <= state_dict.keys():
        raise ValueError("Invalid state_dict. Must be of braintools.optim, with 'opt_state', 'step_count' and 'lr'.")
    if state_dict['opt_state'] is None:
        raise ValueError('The state_dict was taken before weights were registered: it holds no memory.')
    if state_dict.get('param_groups_opt_states'):
        raise ValueError(
            'The state_dict has groups that were added, whose options it does not hold '
            '(braintools.optim runs them as Adam). Must be that of one group.'
        )
    with unchanged_by_errors(optimizer):
        load_optax_state(optimizer, state_dict['opt_state'], int(state_dict['step_count']))
        for i in range(len(optimizer.param_groups)):
            take_rate(optimizer, i, state_dict['lr'])


# common to all


def counterpart_of(optimizer: Optimizer, table: Mapping[str, Any], library: str) -> Any:
    name = type(optimizer).__name__
    if name not in table or not type(optimizer).__module__.startswith('braintools_optim.'):
        raise ValueError(f'{name} has no counterpart in {library}. Must be one of {", ".join(table)}.')
    return table[name]


def registered(optimizer: Optimizer) -> dict[str, Any]:
    if optimizer.opt_state is None:
        raise ValueError('register_trainable_weights must be called first.')
    refuse_inside(optimizer, 'A checkpoint')
    memory: dict[str, Any] = optimizer.opt_state.value
    return memory


@contextmanager
def unchanged_by_errors(optimizer: Optimizer) -> Iterator[None]:
    """Either all that happens inside, or nothing."""
    settings = optimizer.settings
    values = {name: state.value for name, state in checkpoint.named_states(optimizer).items()}
    own, schedules, done = settings.own, settings.schedules, False
    try:
        yield
        done = True
    finally:
        if not done:
            settings.own, settings.schedules = own, schedules
            for name, state in checkpoint.named_states(optimizer).items():
                state.value = values[name]


def take_rate(optimizer: Optimizer, group: int, rate: Any) -> None:
    rate = as_number(as_array(rate))
    if rate != optimizer.settings.lr_of(group):
        optimizer.param_groups[group]['lr'] = rate


def as_array(x: Any) -> Array:
    """An array or a tensor of torch, on any device, as an array."""
    if hasattr(x, 'detach'):
        x = x.detach().cpu()
        x = x.float() if 'bfloat16' in str(x.dtype) else x
    return np.asarray(x)


def put(optimizer: Optimizer, found: Found, counts: Mapping[str, int], whole: bool = False) -> None:
    """Make what was found the memory; a weight of which nothing was begins anew, unless ``whole``."""
    memory, named = registered(optimizer), optimizer._weights.named()
    some = {name for values in found.values() for name in values}
    fresh: dict[str, Any] = {slot: {} for slot in memory.keys() - NOT_SLOTS}
    for i in range(len(optimizer.param_groups)):
        own, options = {name: named[name] for name in optimizer.group_names(i)}, optimizer.settings.plain(i)
        frozen = optimizer.settings.frozen - some
        first = first_memory(optimizer, str(i), own, options, optimizer._treatment, frozen)
        for slot in first.keys() - NOT_SLOTS:
            fresh[slot] |= first[slot]
    problems = [f'{slot}.{n}: not here' for slot in found for n in found[slot] if n not in fresh.get(slot, {})]
    for slot in fresh.keys() - OURS:
        for name, here in fresh[slot].items():
            there = as_array(found[slot][name]) if name in found.get(slot, {}) else None
            if there is None:
                problems += [f'{slot}.{name}: not there'] * (whole or name in some)
            elif there.shape != here.shape or not jnp.issubdtype(there.dtype, jnp.floating):
                problems.append(f'{slot}.{name}: {there.dtype}{[*there.shape]} there, {here.dtype}{[*here.shape]} here')
            else:
                fresh[slot][name] = jnp.array(there, here.dtype)
    if problems:
        raise ValueError(f'The state does not fit this optimizer, which is unchanged. {"; ".join(problems)}')
    step = jnp.asarray([counts[name] for name in optimizer.weight_names], jnp.int32)
    optimizer.opt_state.value = {**memory, **fresh, 'step': step}  # type: ignore[union-attr]
