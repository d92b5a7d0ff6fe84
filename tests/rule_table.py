"""The table of rules, their options and what they must equal; the problem they are run on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax

from braintools_optim import Optimizer, rules

STEPS = 200
RECORDED = (1, 2, 20, STEPS)
LEAVES: dict[str, tuple[tuple[int, ...], float]] = {
    'scalar': ((), 1.0),
    'small': ((3,), 1e-6),
    'large': ((2, 3), 1e3),
}
WATCHED = ('ax',)  # slots that belong to the trajectory
INITIAL = {'initial_accumulator_value', 'd0'}  # what counts before there is memory only

Path = dict[str, np.ndarray]
Options = dict[str, Any]
Tx = optax.GradientTransformation


@dataclass(frozen=True)
class Case:
    optimizer: type[Optimizer]
    options: tuple[tuple[str, Any], ...]
    torch: str = ''  # the name of the class in torch.optim
    optax: Callable[..., Tx] | None = None
    paper: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return '-'.join([self.optimizer.__name__, *(f'{k}={v}' for k, v in self.options)]).replace(' ', '')

    @property
    def flags(self) -> tuple[tuple[str, Any], ...]:
        """The options that are part of a compiled function; of a momentum, whether there is one."""
        kept = {k: 0.5 * (v > 0) if k == 'momentum' else v for k, v in self.options}
        return tuple((k, v) for k, v in kept.items() if k == 'momentum' or isinstance(v, (bool, type(None))))


def problem(steps: int = STEPS) -> tuple[Path, Path]:
    """Weights, and gradients for every step: leaves of several shapes and scales, float32 numbers."""
    rng = np.random.default_rng(0)
    signs = {key: rng.choice([-1, 1], size=shape) for key, (shape, _) in LEAVES.items()}
    weights = {key: sign * rng.uniform(2, 3, size=sign.shape) for key, sign in signs.items()}  # none crosses zero
    gradients = {key: scale * rng.normal(size=(steps, *shape)) for key, (shape, scale) in LEAVES.items()}
    weights, gradients = ({k: np.float64(np.float32(v)) for k, v in d.items()} for d in (weights, gradients))
    return weights, gradients


@functools.cache
def compiled(optimizer: type[Optimizer], flags: tuple[tuple[str, Any], ...], dtype: Any) -> Callable[[Options], Path]:
    """A function from numeric options to the trajectory, which is compiled but once."""
    weights, gradients = problem()
    states = {key: brainstate.ParamState(jnp.asarray(w, dtype)) for key, w in weights.items()}
    built = optimizer(**dict(flags)).register_trainable_weights(states)
    memory = built.opt_state
    assert memory is not None
    watched = [slot for slot in WATCHED if slot in memory.value]
    initial: Options = {}

    def update(gradient: dict[str, Any]) -> dict[str, Any]:
        built.update(gradient)
        slots = {f'{slot}.{key}': memory.value[slot][key] for slot in watched for key in states}
        return {key: state.value for key, state in states.items()} | slots

    loop = brainstate.transform.jit(lambda gradients: brainstate.transform.for_loop(update, gradients))

    def trajectory(options: Options) -> Path:
        for key, state in states.items():
            state.value = jnp.asarray(weights[key], dtype)
        fresh = optimizer(**dict(flags) | options).register_trainable_weights(states)
        memory.value, built.step_count.value = fresh.opt_state.value, fresh.step_count.value
        numbers = {name: value for name, value in options.items() if name not in INITIAL and (name, value) not in flags}
        for name in numbers:
            initial.setdefault(name, built.current_lr if name == 'lr' else getattr(built, name))
        for name, value in (initial | numbers).items():
            setattr(built, name, value)
        path = loop({key: jnp.asarray(g, dtype) for key, g in gradients.items()})
        start = weights | {f'{slot}.{key}': w for slot in watched for key, w in weights.items()}
        return {key: np.concatenate([w[None].astype(dtype), path[key]]) for key, w in start.items()}

    return trajectory


def run(case: Case, dtype: Any) -> Path:
    """Our weights after every update, the starting point first; all updates in one compiled loop."""
    return compiled(case.optimizer, case.flags, dtype)(dict(case.options))


def travelled(path: Path) -> Path:
    """How far each tensor has moved after each update, all steps added up."""
    return {key: np.cumsum(np.max(np.abs(np.diff(p, axis=0)), axis=tuple(range(1, p.ndim)))) for key, p in path.items()}


def deviation(path: Path, exact: Path, rounding: float = 0.0) -> dict[str, float]:
    """The worst deviation at any step over the distance travelled so far, for each tensor.

    What ``rounding`` explains, as the relative error of one rounding of the weight at every step, does not count.
    """
    worst = {}
    for key, distance in travelled(exact).items():
        error = np.max(np.abs(np.float64(path[key]) - exact[key]), axis=tuple(range(1, exact[key].ndim)))[1:]
        allowed = rounding * np.arange(1, STEPS + 1) * np.max(np.abs(exact[key]))
        worst[key] = float(np.max(np.maximum(error - allowed, 0) / np.maximum(distance, 1e-300)))
    return worst


# references


def optax_path(case: Case) -> Path:
    """The same from optax, in float64; scalars as vectors of one, and descending a gradient turned round."""
    weights, _ = problem()
    flags = tuple((k, v) for k, v in case.options if k == 'momentum' or isinstance(v, (bool, type(None))))
    path = compiled_optax(case.optax, flags)({k: v for k, v in case.options if (k, v) not in flags})
    return {key: np.concatenate([w[None], np.reshape(path[key], (STEPS, *w.shape))]) for key, w in weights.items()}


@functools.cache
def compiled_optax(build: Callable[..., Tx], flags: tuple[tuple[str, Any], ...]) -> Any:
    """A compiled function from numeric options to the trajectory."""
    weights, gradients = problem()
    options = dict(flags)
    sign = -1 if options.pop('maximize', False) else 1
    start = {key: jnp.atleast_1d(w) for key, w in weights.items()}
    steps = {key: sign * jnp.asarray(g).reshape(STEPS, *start[key].shape) for key, g in gradients.items()}

    def trajectory(numbers: Options) -> Any:
        tx = optax.with_extra_args_support(build(**options, **numbers))

        def update(carry: Any, gradient: Any) -> Any:
            params, state = carry
            changes, state = tx.update(gradient, state, params)
            params = optax.apply_updates(params, changes)
            return (params, state), params

        return jax.lax.scan(update, (start, tx.init(start)), steps)[1]

    return jax.jit(trajectory)


def paper_path(case: Case) -> Path:
    """The same from the formula as it is published, in NumPy."""
    options = dict(case.options)
    weights, gradients = problem()
    sign = -1 if options.pop('maximize', False) else 1
    path = {}
    for key, w in weights.items():
        rows, memory = [w], {}
        for t in range(1, STEPS + 1):
            rows.append(case.paper(rows[-1], sign * gradients[key][t - 1], t, memory, **options))
        path[key] = np.stack(rows)
    return path


def coupled(weight_decay: float, *txs: Tx) -> Tx:
    return optax.chain(optax.add_decayed_weights(weight_decay), *txs)


def decoupled(weight_decay: float, lr: float, *txs: Tx) -> Tx:
    return optax.chain(*txs, optax.add_decayed_weights(weight_decay), optax.scale(-lr))


def optax_adabelief(
    lr: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-16,
    eps_root: Any = 1e-16,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: Any = False,
) -> Tx:
    belief = optax.scale_by_belief(*betas, eps, eps_root)
    if decoupled_weight_decay:
        return decoupled(weight_decay, lr, belief)
    return coupled(weight_decay, belief, optax.scale(-lr))


def optax_yogi(
    lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-3, weight_decay: Any = 0.0, initial_accumulator_value: Any = 1e-6
) -> Tx:
    """Without the start of the mean at ``initial_accumulator_value``, which is not the paper's."""
    tx = optax.scale_by_yogi(*betas, eps, initial_accumulator_value=initial_accumulator_value)

    def init(params: Any) -> Any:
        state = tx.init(params)
        return state._replace(mu=jax.tree.map(jnp.zeros_like, params))

    return coupled(weight_decay, Tx(init, tx.update), optax.scale(-lr))


def optax_sign(lr: Any, momentum: Any = 0.0, weight_decay: Any = 0.0) -> Tx:
    average = [optax.ema(momentum, debias=False)] if momentum else []
    return decoupled(weight_decay, lr, *average, optax.scale_by_sign())


def optax_lars(
    lr: Any, momentum: Any = 0.9, trust_coefficient: Any = 0.001, eps: Any = 1e-8, nesterov: Any = False
) -> Tx:
    return optax.lars(lr, 0.0, True, trust_coefficient, eps, True, momentum, nesterov)


def optax_fromage(lr: Any, momentum: Any = 0.0) -> Tx:
    """Without its lower bound on norms."""
    return optax.chain(*[optax.trace(momentum)] * (momentum > 0), optax.fromage(lr, min_norm=1e-300))


def optax_sm3(lr: Any, momentum: Any = 0.9, eps: Any = 1e-8, weight_decay: Any = 0.0) -> Tx:
    return coupled(weight_decay, optax.scale_by_sm3(momentum, 1.0, eps), optax.scale(-lr))


def optax_lion(lr: Any, betas: Any = (0.9, 0.99), weight_decay: Any = 0.0) -> Tx:
    return optax.lion(lr, *betas, weight_decay=weight_decay)


def optax_lamb(lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-6, weight_decay: Any = 0.0) -> Tx:
    return optax.lamb(lr, *betas, eps, weight_decay=weight_decay)


def optax_novograd(lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0.0) -> Tx:
    return optax.novograd(lr, *betas, eps, weight_decay=weight_decay)


def optax_nadamw(lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 1e-4) -> Tx:
    return optax.nadamw(lr, *betas, eps, weight_decay=weight_decay)


def optax_adan(lr: Any, betas: Any, eps: Any) -> Tx:
    """Which has the paper's look-ahead factor for ``betas[1] = 0.5`` alone."""
    return optax.adan(lr, *betas, eps, 0.0)


def optax_ademamix(lr: Any, betas: Any = (0.9, 0.999, 0.9999), mixing: Any = 5.0) -> Tx:
    return optax.contrib.ademamix(lr, *betas, mixing)


def optax_adopt(lr: Any, betas: Any = (0.9, 0.9999), eps: Any = 1e-6, use_clipping: Any = True) -> Tx:
    return optax.contrib.adopt(lr, *betas, eps, use_clipping=use_clipping)


def optax_schedule_free_sgd(lr: Any, momentum: Any = 0.9, weight_decay: Any = 0.0, weight_lr_power: Any = 2.0) -> Tx:
    return optax.contrib.schedule_free_sgd(lr, None, momentum, weight_decay, weight_lr_power)


def optax_schedule_free_adamw(
    lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0.0, weight_lr_power: Any = 2.0
) -> Tx:
    return optax.contrib.schedule_free_adamw(lr, None, *betas, eps, weight_decay, weight_lr_power)


def ema(memory: Options, name: Any, sample: Any, beta: Any) -> Any:
    memory[name] = beta * memory.get(name, 0.0) + (1 - beta) * sample
    return memory[name]


def paper_lars(
    w: Any, g: Any, t: int, memory: Options, lr: Any, momentum: Any, trust_coefficient: Any, eps: Any, weight_decay: Any
) -> Any:
    size = np.linalg.norm(w)
    local = trust_coefficient * size / (np.linalg.norm(g) + weight_decay * size + eps)
    memory['v'] = momentum * memory.get('v', 0.0) + lr * local * (g + weight_decay * w)
    return w - memory['v']


def paper_adan(
    w: Any,
    g: Any,
    t: int,
    memory: Options,
    lr: Any,
    betas: Any = (0.98, 0.92, 0.99),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> Any:
    beta1, beta2, beta3 = (1 - b for b in betas)  # as the paper writes them
    change = g - memory.get('g', g)
    memory['g'] = g
    m = ema(memory, 'm', g, 1 - beta1) / (1 - (1 - beta1) ** t)
    v = ema(memory, 'v', change, 1 - beta2) / (1 - (1 - beta2) ** t)
    n = ema(memory, 'n', (g + (1 - beta2) * change) ** 2, 1 - beta3) / (1 - (1 - beta3) ** t)
    return (w - lr / (np.sqrt(n) + eps) * (m + (1 - beta2) * v)) / (1 + lr * weight_decay)


def paper_adopt(
    w: Any,
    g: Any,
    t: int,
    memory: Options,
    lr: Any,
    betas: Any,
    eps: Any,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: Any = False,
    use_clipping: Any = True,
) -> Any:
    decay = weight_decay * w
    if not decoupled_weight_decay:
        g, decay = g + decay, 0.0
    if t == 1:
        memory['v'] = g**2
        return w - lr * decay
    scaled = g / np.maximum(np.sqrt(memory['v']), eps)
    bound = (t - 1) ** 0.25 if use_clipping else np.inf
    m = ema(memory, 'm', np.clip(scaled, -bound, bound), betas[0])
    ema(memory, 'v', g**2, betas[1])
    return w - lr * (m + decay)


def paper_ademamix(
    w: Any,
    g: Any,
    t: int,
    memory: Options,
    lr: Any,
    betas: Any,
    eps: Any,
    weight_decay: Any,
    mixing: Any,
    mixing_warmup: Any = 0,
    beta3_warmup: Any = 0,
) -> Any:
    alpha, beta3 = mixing, betas[2]
    if t < mixing_warmup:
        alpha = t * mixing / mixing_warmup
    if t < beta3_warmup:
        start, end = np.log(betas[0]), np.log(betas[2])
        beta3 = np.exp(start * end / ((1 - t / beta3_warmup) * end + t / beta3_warmup * start))
    m1 = ema(memory, 'm1', g, betas[0]) / (1 - betas[0] ** t)
    m2 = ema(memory, 'm2', g, beta3)
    v = ema(memory, 'v', g**2, betas[1]) / (1 - betas[1] ** t)
    return w - lr * ((m1 + alpha * m2) / (np.sqrt(v) + eps) + weight_decay * w)


def paper_madgrad(
    w: Any,
    g: Any,
    t: int,
    memory: Options,
    lr: Any,
    momentum: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: Any = False,
) -> Any:
    start = memory.setdefault('x0', w)
    decay = weight_decay * w
    if not decoupled_weight_decay:
        g, decay = g + decay, 0.0
    memory['s'] = memory.get('s', 0.0) + lr * np.sqrt(t) * g
    memory['v'] = memory.get('v', 0.0) + lr * np.sqrt(t) * g**2
    z = start - memory['s'] / (np.cbrt(memory['v']) + eps)
    return momentum * w + (1 - momentum) * z - lr * decay


def paper_schedule_free(
    y: Any,
    g: Any,
    t: int,
    memory: Options,
    lr: Any,
    momentum: Any = 0.9,
    weight_decay: Any = 0.0,
    warmup_steps: Any = 0,
    r: Any = 0.0,
    weight_lr_power: Any = 2.0,
) -> Any:
    """With a warm-up, which optax applies one update late to the steps but not to the average."""
    rate = lr * min(1.0, t / max(warmup_steps, 1))
    memory['max'] = max(rate, memory.get('max', 0.0))
    weight = t**r * memory['max'] ** weight_lr_power
    memory['sum'] = memory.get('sum', 0.0) + weight
    c = weight / memory['sum']
    memory['z'] = memory.get('z', y) - rate * (g + weight_decay * y)
    memory['x'] = (1 - c) * memory.get('x', y) + c * memory['z']
    return (1 - momentum) * memory['z'] + momentum * memory['x']


def paper_schedule_free_adamw(
    y: Any, g: Any, t: int, memory: Options, lr: Any, betas: Any, eps: Any, weight_decay: Any = 0.0, **averaging: Any
) -> Any:
    v = ema(memory, 'v', g**2, betas[1]) / (1 - betas[1] ** t)
    direction = g / (np.sqrt(v) + eps) + weight_decay * y
    return paper_schedule_free(y, direction, t, memory, lr, betas[0], **averaging)


# the cases


EPS = (1e-8, 1e-3)
DECAY = (0.1,)  # cases without weight decay are those of the defaults
FLAG = (False, True)
BETAS = ((0.9, 0.999), (0.5, 0.9))
TORCH = {
    rules.Adagrad: {
        'lr': (0.1,),
        'lr_decay': (0.0, 0.1),
        'weight_decay': DECAY,
        'initial_accumulator_value': (0.0, 0.5),
        'eps': (1e-10, 1e-3),
    },
    rules.Adadelta: {'lr': (1.0, 0.1), 'rho': (0.9, 0.0, 0.999, 1.0), 'eps': (1e-6, 1e-3), 'weight_decay': DECAY},
    rules.Adamax: {'lr': (0.01,), 'betas': BETAS, 'eps': EPS, 'weight_decay': DECAY},
    rules.Nadam: {
        'lr': (0.01,),
        'betas': (*BETAS, (0.999, 0.5), (0.0, 0.0)),
        'eps': EPS,
        'weight_decay': DECAY,
        'momentum_decay': (4e-3, 0.5),
        'decoupled_weight_decay': FLAG,
    },
    rules.ASGD: {
        'lr': (0.01, 0.1),
        'lambd': (1e-4, 0.1),
        'alpha': (0.75, 0.25),
        't0': (1e6, 5.0, 0.0),
        'weight_decay': DECAY,
    },
    rules.Rprop: {
        'lr': (0.01, 0.5),
        'etas': ((0.5, 1.2), (0.1, 3.0)),
        'step_sizes': ((1e-6, 50.0), (0.005, 0.1)),
    },
    rules.Adafactor: {
        'lr': (0.01, 0.2),
        'eps': ((1e-30, 1e-3), (1e-4, 1.5)),
        'clip_threshold': (1.0, 2.0),
        'decay_rate': (0.8, -0.5),
        'weight_decay': DECAY,
        'relative_step': (True,),
    },
}
OPTAX = {
    optax_adabelief: {
        'eps': (1e-16, 1e-3),
        'betas': BETAS,
        'eps_root': (1e-16, 1e-6),
        'weight_decay': DECAY,
        'decoupled_weight_decay': FLAG,
    },
    optax_yogi: {'betas': BETAS, 'eps': (1e-3, 1e-8), 'weight_decay': DECAY, 'initial_accumulator_value': (1e-6, 0.1)},
    optax_lion: {'betas': ((0.9, 0.99), (0.5, 0.6)), 'weight_decay': DECAY},
    optax_lamb: {'betas': BETAS, 'eps': (1e-6, 0.1), 'weight_decay': DECAY},
    optax_lars: {'trust_coefficient': (0.001, 0.1), 'eps': (1e-8, 0.1), 'nesterov': FLAG},
    optax_sm3: {'momentum': (0.9, 0.0), 'eps': EPS, 'weight_decay': DECAY},
    optax_novograd: {'betas': BETAS, 'eps': EPS, 'weight_decay': DECAY},
    optax_fromage: {'momentum': (0.0, 0.9)},
    optax_adan: {'betas': ((0.98, 0.5, 0.99),), 'eps': EPS},
    optax_sign: {'momentum': (0.0, 0.5), 'weight_decay': DECAY},
    optax_nadamw: {'betas': BETAS, 'eps': EPS, 'weight_decay': (1e-4, 0.1)},
    optax_adopt: {'use_clipping': FLAG},
    optax_ademamix: {'mixing': (2.0,)},
    optax_schedule_free_sgd: {'momentum': (0.9, 0.3), 'weight_decay': DECAY, 'weight_lr_power': (2.0, 0.0)},
    optax_schedule_free_adamw: {'betas': ((0.9, 0.999), (0.3, 0.0)), 'eps': EPS, 'weight_decay': DECAY},
}
PAPERS = {
    paper_lars: {'momentum': (0.9, 0.0), 'trust_coefficient': (0.01,), 'eps': (1e-8, 0.1), 'weight_decay': DECAY},
    paper_adan: {'betas': ((0.98, 0.92, 0.99), (0.5, 0.7, 0.9)), 'eps': EPS, 'weight_decay': DECAY},
    paper_adopt: {
        'betas': ((0.9, 0.9999), (0.5, 0.9)),
        'eps': (1e-6, 0.1),
        'weight_decay': DECAY,
        'decoupled_weight_decay': FLAG,
    },
    paper_ademamix: {
        'betas': ((0.9, 0.999, 0.9999), (0.5, 0.9, 0.99)),
        'eps': EPS,
        'weight_decay': DECAY,
        'mixing': (5.0, 0.0),
        'mixing_warmup': (0, 100),
        'beta3_warmup': (0, 150),
    },
    paper_madgrad: {
        'momentum': (0.9, 0.0),
        'eps': (1e-6, 0.1),
        'weight_decay': DECAY,
        'decoupled_weight_decay': FLAG,
    },
    paper_schedule_free: {'weight_decay': DECAY, 'warmup_steps': (0, 50), 'r': (0.0, 1.5)},
    paper_schedule_free_adamw: {'betas': BETAS, 'eps': EPS, 'weight_decay': DECAY, 'warmup_steps': (50,), 'r': (0.5,)},
}
REFERENCES = {
    rules.AdaBelief: (optax_adabelief,),
    rules.Yogi: (optax_yogi,),
    rules.Lion: (optax_lion,),
    rules.Lamb: (optax_lamb,),
    rules.Lars: (optax_lars, paper_lars),
    rules.SM3: (optax_sm3,),
    rules.Novograd: (optax_novograd,),
    rules.Fromage: (optax_fromage,),
    rules.Adan: (paper_adan, optax_adan),
    rules.SignSGD: (optax_sign,),
    rules.NAdamW: (optax_nadamw,),
    rules.ADOPT: (optax_adopt, paper_adopt),
    rules.AdEMAMix: (optax_ademamix, paper_ademamix),
    rules.MADGRAD: (paper_madgrad,),
    rules.ScheduleFreeSGD: (optax_schedule_free_sgd, paper_schedule_free),
    rules.ScheduleFreeAdamW: (optax_schedule_free_adamw, paper_schedule_free_adamw),
}


def combinations(optimizer: type[Optimizer], choices: dict[str, Any], **reference: Any) -> Iterator[Case]:
    """Every combination of the choices."""
    for values in itertools.product(*choices.values()):
        yield Case(optimizer, tuple(zip(choices, values, strict=True)), **reference)


def all_cases() -> Iterator[Case]:
    for optimizer, choices in TORCH.items():
        torch = {rules.Nadam: 'NAdam'}.get(optimizer, optimizer.__name__)
        plain = {name: values[:1] for name, values in choices.items() if name in ('lr', 'relative_step')}
        yield from combinations(optimizer, {**plain, 'maximize': (True,)}, torch=torch)
        yield from combinations(optimizer, choices, torch=torch)
    for optimizer, references in REFERENCES.items():
        for i, build in enumerate(references):
            kind = 'optax' if build in OPTAX else 'paper'
            choices = {'lr': (0.01,), **(OPTAX | PAPERS)[build]}
            if i == 0:
                yield from combinations(optimizer, {'lr': (0.01,), 'maximize': (True,)}, **{kind: build})
            yield from combinations(optimizer, choices, **{kind: build})
    yield Case(rules.Signum, (('lr', 0.01),), optax=functools.partial(optax_sign, momentum=0.9))


CASES = list(all_cases())
