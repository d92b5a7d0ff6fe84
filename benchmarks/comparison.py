"""What this library and its peers do, as the table of the README. Each cell is checked against the installed versions.

python -m benchmarks.comparison
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax

import braintools_optim as ours

__all__ = ['PEERS', 'TABLE', 'false_cells', 'is_installed', 'table']

PEERS = ('braintools_optim', 'torch.optim', 'optax', 'braintools.optim', 'flax.nnx')
Probe = Callable[[], object]
Cell = tuple[str, Probe]


def is_installed(peer: str) -> bool:
    """Return whether the package of a peer can be imported."""
    return importlib.util.find_spec(peer.partition('.')[0]) is not None


def fails(error: type[Exception] | tuple[type[Exception], ...], call: Probe) -> bool:
    """Return whether a call raises this error."""
    try:
        call()
    except error:
        return True
    return False


def weight(unit: Any = 1.0) -> brainstate.ParamState:
    return brainstate.ParamState(jnp.ones(3) * unit)


# each function updates a weight of three ones by a gradient, and returns the new weight


def by_states(library: Any, gradient: Any, unit: Any = 1.0, **options: Any) -> Any:
    state = weight(unit)
    optimizer = library.Adam(lr=0.1, **options)
    optimizer.register_trainable_weights({'w': state})
    optimizer.update({'w': gradient})
    return state.value


def by_ours(gradient: Any, unit: Any = 1.0, **options: Any) -> Any:
    return by_states(ours, gradient, unit, **options)


def by_braintools(gradient: Any, unit: Any = 1.0, **options: Any) -> Any:
    import braintools

    return by_states(braintools.optim, gradient, unit, **options)


def by_optax(gradient: Any, unit: Any = 1.0, tx: Any = None) -> Any:
    tx, w = tx or optax.adam(0.1), jnp.ones(3) * unit
    updates, _ = tx.update(gradient, tx.init(w), w)
    return optax.apply_updates(w, updates)


def by_nnx(gradient: Any, unit: Any = 1.0, tx: Any = None) -> Any:
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.ones(3) * unit)

    model = Model()
    optimizer = nnx.Optimizer(model, tx or optax.adam(0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.State({'w': nnx.Param(gradient)}))
    return model.w.get_value()


def torch_weight() -> Any:
    import torch

    return torch.ones(3, requires_grad=True)


def by_torch(gradient: Any, **options: Any) -> Any:
    import torch

    w = torch_weight()
    w.grad = torch.tensor(np.asarray(gradient))
    torch.optim.Adam([w], lr=0.1, **options).step()
    return w.detach().numpy()


# what the cells say


def classes(module: Any, base: type) -> int:
    """Return the number of public classes of a module that derive from a base."""
    found = {c for name, c in vars(module).items() if inspect.isclass(c) and not name.startswith('_')}
    return len({c for c in found if issubclass(c, base) and c is not base})


def counts_of_ours() -> str:
    return f'{classes(ours, ours.Optimizer)}, {classes(ours, ours.LRScheduler)}'


def counts_of_torch() -> str:
    import torch

    schedules = torch.optim.lr_scheduler
    return f'{classes(torch.optim, torch.optim.Optimizer)}, {classes(schedules, schedules.LRScheduler)}'


def counts_of_optax() -> str:
    aliases = [f for f in vars(optax).values() if getattr(f, '__module__', '') == 'optax._src.alias']
    functions = [f for f in vars(optax.schedules).values() if inspect.isfunction(f)]
    return f'{sum(map(inspect.isfunction, aliases))}, {sum("inject" not in f.__name__ for f in functions)}'


def counts_of_braintools() -> str:
    from braintools import optim

    return f'{classes(optim, optim.OptaxOptimizer)}, {classes(optim, optim.LRScheduler)}'


def changes_rate(library: Any) -> bool:
    """Return whether a rate that is set by hand survives the next step of a schedule."""
    schedule = library.StepLR(0.1, step_size=100)
    optimizer = library.SGD(schedule)
    optimizer.register_trainable_weights({'w': weight()})
    optimizer.current_lr = 0.05
    schedule.step()
    return bool(np.isclose(optimizer.current_lr, 0.05))


def added_group_runs_sgd(library: Any) -> bool:
    """Return whether a group that is added to SGD moves by lr times the gradient."""
    first, second = weight(), weight()
    optimizer = library.SGD(lr=0.1)
    optimizer.register_trainable_weights({'a': first})
    optimizer.add_param_group({'b': second}, lr=0.1)
    optimizer.step({'a': jnp.full(3, 5.0), 'b': jnp.full(3, 5.0)})
    return bool(jnp.allclose(second.value, 0.5))


def clips_all_groups(library: Any) -> bool:
    """Return whether clipping bounds the norm over all groups together."""
    first, second = weight(), weight()
    optimizer = library.SGD(lr=1.0, grad_clip_norm=1.0)
    optimizer.register_trainable_weights({'a': first})
    optimizer.add_param_group({'b': second}, lr=1.0)
    optimizer.step({'a': jnp.ones(3), 'b': jnp.ones(3)})
    return bool(jnp.allclose(jnp.linalg.norm(jnp.stack([first.value, second.value]) - 1), 1.0, atol=1e-5))


def saves_schedule(library: Any) -> bool:
    """Return whether the state of an optimizer holds the epoch of its schedule."""
    optimizer = library.SGD(library.StepLR(0.1))
    optimizer.register_trainable_weights({'w': weight()})
    return 'last_epoch' in str(optimizer.state_dict())


def torch_checks() -> dict[str, Probe]:
    def rate() -> bool:
        import torch

        w = torch_weight()
        optimizer = torch.optim.SGD([w], lr=0.1)
        optimizer.param_groups[0]['lr'], w.grad = 0.05, torch.ones(3)
        optimizer.step()
        return bool(np.allclose(w.detach(), 0.95))

    def group() -> bool:
        import torch

        optimizer = torch.optim.SGD([torch_weight()], lr=0.1)
        optimizer.add_param_group({'params': [torch_weight()], 'lr': 0.2, 'momentum': 0.5})
        return bool(optimizer.param_groups[1]['momentum'] == 0.5)

    def state() -> bool:
        import torch

        optimizer = torch.optim.SGD([torch_weight()], lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        return 'last_epoch' in schedule.state_dict() and 'last_epoch' not in str(optimizer.state_dict())

    def tools() -> bool:
        import torch

        has_tools = [hasattr(torch.nn.utils, 'clip_grad_norm_'), hasattr(torch.amp, 'GradScaler')]
        return all(has_tools) and 'grad_clip_norm' not in inspect.signature(torch.optim.Adam).parameters

    def averages() -> bool:
        from torch.optim import swa_utils

        return hasattr(swa_utils, 'AveragedModel')

    def one_algorithm() -> bool:
        import torch

        optimizer = torch.optim.SGD([torch_weight()], lr=0.1)
        optimizer.add_param_group({'params': [torch_weight()], 'algorithm': 'Adam', 'betas': (0.9, 0.999)})
        for group in optimizer.param_groups:
            group['params'][0].grad = torch.full((3,), 5.0)
        optimizer.step()
        return all(np.allclose(group['params'][0].detach(), 0.5) for group in optimizer.param_groups)

    def adds_gradients() -> bool:
        w = torch_weight()
        for _ in range(2):
            w.sum().backward()
        return bool(np.allclose(w.grad, 2.0))

    return {
        'rate': rate,
        'group': group,
        'state': state,
        'tools': tools,
        'averages': averages,
        'one_algorithm': one_algorithm,
        'adds_gradients': adds_gradients,
    }


def own_algorithm() -> bool:
    """Return whether one optimizer updates one weight by Adam and another one by SGD."""
    states = {'a': weight(), 'b': weight()}
    ours.Adam(0.1, groups={'b': ours.SGD(0.1)}).register_trainable_weights(states).update(
        dict.fromkeys('ab', jnp.full(3, 5.0))
    )
    return moves(states['a'].value) and bool(jnp.allclose(states['b'].value, 0.5))


NAN, WRONG = np.full(3, np.nan, np.float32), np.ones((2, 3), np.float32)
FINITE_ONLY = optax.apply_if_finite(optax.adam(0.1), 5)
TORCH = torch_checks()


def keeps_ones(w: Any) -> bool:
    return bool(jnp.allclose(w, 1.0))


def is_nan(w: Any) -> bool:
    return bool(jnp.isnan(jnp.asarray(w)).all())


def moves_in_mv(w: Any) -> bool:
    return bool(u.math.allclose(w, jnp.full(3, 0.9) * u.mV, atol=1e-3 * u.mV))


def braintools() -> Any:
    import braintools

    return braintools.optim


def has_options(*names: str) -> Probe:
    return lambda: set(names) <= inspect.signature(ours.Adam).parameters.keys()


TABLE: dict[str, tuple[Cell, Cell, Cell, Cell, Cell]] = {
    'optimizers, schedules': (
        (counts_of_ours(), lambda: True),  # the cell is the count itself
        ('15, 15', lambda: counts_of_torch() == '15, 15'),
        ('29, 14', lambda: counts_of_optax() == '29, 14'),
        ('25, 17', lambda: counts_of_braintools() == '25, 17'),
        ('those of optax', lambda: keeps_ones(by_nnx(jnp.zeros(3)))),
    ),
    'what an update changes': (
        ('`brainstate` States', lambda: moves(by_ours(jnp.ones(3)))),
        ('tensors', lambda: moves(by_torch(jnp.ones(3)))),
        ('nothing: pure functions', lambda: moves(by_optax(jnp.ones(3)))),
        ('`brainstate` States', lambda: moves(by_braintools(jnp.ones(3)))),
        ('`nnx` Params', lambda: moves(by_nnx(jnp.ones(3)))),
    ),
    'learning rate set by hand': (
        ('scales the schedule', lambda: changes_rate(ours)),
        ("`group['lr'] = ...`", TORCH['rate']),
        ('`inject_hyperparams`', lambda: 'hyperparams' not in str(optax.adam(0.1).init(jnp.ones(3)))),
        ('lost at the next `step`', lambda: not changes_rate(braintools())),
        ('`inject_hyperparams`', lambda: hasattr(optax, 'inject_hyperparams')),
    ),
    'groups with own options': (
        ('by name, every option', has_options('groups')),
        ('every option', TORCH['group']),
        ('`partition`', lambda: hasattr(optax, 'partition')),
        ('always Adam', lambda: added_group_runs_sgd(ours) and not added_group_runs_sgd(braintools())),
        ('`partition`', lambda: hasattr(optax, 'partition')),
    ),
    'group with another algorithm': (
        ("`groups={'delay': SGD(...)}`", own_algorithm),
        ('a second optimizer', TORCH['one_algorithm']),
        ('`partition`', lambda: hasattr(optax, 'partition')),
        ('always Adam', lambda: added_group_runs_sgd(ours) and not added_group_runs_sgd(braintools())),
        ('`partition`', lambda: hasattr(optax, 'partition')),
    ),
    'accumulated gradients': (
        ('argument', has_options('accumulate_steps')),
        ('several `backward`', TORCH['adds_gradients']),
        ('`MultiSteps`', lambda: hasattr(optax, 'MultiSteps')),
        ('by hand', lambda: 'accumul' not in str(inspect.signature(braintools().Adam.__init__))),
        ('`MultiSteps`', lambda: hasattr(optax, 'MultiSteps')),
    ),
    'average of the weights': (
        ('argument', has_options('average')),
        ('`AveragedModel`', TORCH['averages']),
        ('`incremental_update`', lambda: hasattr(optax, 'incremental_update')),
        ('by hand', lambda: 'average' not in str(inspect.signature(braintools().Adam.__init__))),
        ('`incremental_update`', lambda: hasattr(optax, 'incremental_update')),
    ),
    'clipping by global norm': (
        ('argument', lambda: clips_all_groups(ours)),
        ('call before `step`', TORCH['tools']),
        ('in a `chain`', lambda: hasattr(optax, 'clip_by_global_norm')),
        ('argument, each group alone', lambda: not clips_all_groups(braintools())),
        ('in a `chain`', lambda: hasattr(optax, 'clip_by_global_norm')),
    ),
    'option out of range': (
        ('error', lambda: fails(ValueError, lambda: ours.Adam(betas=(2.0, 0.9)))),
        ('error', lambda: fails(ValueError, lambda: by_torch(jnp.ones(3), betas=(2.0, 0.9)))),
        ('accepted', lambda: by_optax(jnp.ones(3), tx=optax.adam(0.1, b1=2.0)).shape == (3,)),
        ('accepted', lambda: by_braintools(jnp.ones(3), betas=(2.0, 0.9)).shape == (3,)),
        ('accepted', lambda: by_nnx(jnp.ones(3), tx=optax.adam(0.1, b1=2.0)).shape == (3,)),
    ),
    'gradient of another shape': (
        ('error', lambda: fails(ValueError, lambda: by_ours(WRONG))),
        ('error', lambda: fails(RuntimeError, lambda: by_torch(WRONG))),
        ('reshapes the weight', lambda: by_optax(WRONG).shape == (2, 3)),
        ('reshapes the weight', lambda: by_braintools(WRONG).shape == (2, 3)),
        ('reshapes the weight', lambda: by_nnx(WRONG).shape == (2, 3)),
    ),
    'NaN in gradients': (
        (
            'ignore, skip, zero or raise',
            lambda: keeps_ones(by_ours(NAN, on_nonfinite='skip')) and is_nan(by_ours(NAN)),
        ),
        ('`GradScaler` skips', lambda: TORCH['tools']() and is_nan(by_torch(NAN))),
        ('`apply_if_finite`', lambda: keeps_ones(by_optax(NAN, tx=FINITE_ONLY)) and is_nan(by_optax(NAN))),
        ('reach the weights', lambda: is_nan(by_braintools(NAN))),
        ('`apply_if_finite`', lambda: keeps_ones(by_nnx(NAN, tx=FINITE_ONLY)) and is_nan(by_nnx(NAN))),
    ),
    'gradient in 1/mV of a weight in mV': (
        ('converted', lambda: moves_in_mv(by_ours(jnp.ones(3) / u.mV, u.mV))),
        ('no units', lambda: fails(Exception, lambda: by_torch(jnp.ones(3) / u.mV))),
        ('error', lambda: fails(Exception, lambda: by_optax(jnp.ones(3) / u.mV, u.mV))),
        ('error', lambda: fails(Exception, lambda: by_braintools(jnp.ones(3) / u.mV, u.mV))),
        ('error', lambda: fails(Exception, lambda: by_nnx(jnp.ones(3) / u.mV, u.mV))),
    ),
    'schedule in the checkpoint': (
        ('yes', lambda: saves_schedule(ours)),
        ('separate', TORCH['state']),
        ('the count', lambda: 'count' in str(optax.adam(lambda t: 0.1).init(jnp.ones(3)))),
        ('no', lambda: not saves_schedule(braintools())),
        ('the count', lambda: 'count' in str(optax.adam(lambda t: 0.1).init(jnp.ones(3)))),
    ),
}


def moves(w: Any) -> bool:
    """Return whether Adam's first step went by the learning rate."""
    return bool(np.allclose(w, 0.9, atol=1e-3))


def table() -> list[str]:
    """Return the lines of the table."""
    lines = [f'| | {" | ".join(PEERS)} |', f'|{"---|" * (len(PEERS) + 1)}']
    return lines + [f'| {row} | {" | ".join(text for text, _ in cells)} |' for row, cells in TABLE.items()]


def false_cells(peer: str) -> list[str]:
    """Return the cells of a column that are not true."""
    column = PEERS.index(peer)
    return [f'{row}: {cells[column][0]}' for row, cells in TABLE.items() if not cells[column][1]()]


def main() -> None:
    print('\n'.join(table()))
    installed = [peer for peer in PEERS if is_installed(peer)]
    wrong = {peer: cells for peer in installed if (cells := false_cells(peer))}
    print(f'\nchecked: {", ".join(installed)}')
    if wrong:
        raise SystemExit(f'not true: {wrong}')


if __name__ == '__main__':
    jax.config.update('jax_enable_x64', False)
    main()
