"""The update rules as their papers publish them, in NumPy.

Each function takes the weights, the gradients, the number of the step and a dict for its state, and returns the new
weights. Most take one leaf; those that estimate one step size for several leaves take a dict of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Leaves = dict[str, Any]
Options = dict[str, Any]


def ema(state: Options, name: Any, sample: Any, beta: Any) -> Any:
    state[name] = beta * state.get(name, 0.0) + (1 - beta) * sample
    return state[name]


def lars(
    w: Any, g: Any, t: int, state: Options, lr: Any, momentum: Any, trust_coefficient: Any, eps: Any, weight_decay: Any
) -> Any:
    size = np.linalg.norm(w)
    local = trust_coefficient * size / (np.linalg.norm(g) + weight_decay * size + eps)
    state['v'] = momentum * state.get('v', 0.0) + lr * local * (g + weight_decay * w)
    return w - state['v']


def novograd(
    w: Any, g: Any, t: int, state: Options, lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0.0
) -> Any:
    """NVIDIA's release, and timm's: the average starts at the first squared norm that is not 0."""
    square = np.sum(g**2)
    old = state.get('v', 0.0)
    state['v'] = square if old == 0 else betas[1] * old + (1 - betas[1]) * square
    scaled = g / (np.sqrt(state['v']) + eps) + weight_decay * w
    state['m'] = betas[0] * state.get('m', 0.0) + scaled
    return w - lr * state['m']


def adabelief(w: Any, g: Any, t: int, state: Options, lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-16) -> Any:
    """The algorithm of the paper, with one eps in both places."""
    m = ema(state, 'm', g, betas[0])
    state['s'] = betas[1] * state.get('s', 0.0) + (1 - betas[1]) * (g - m) ** 2 + eps
    return w - lr * m / (1 - betas[0] ** t) / (np.sqrt(state['s'] / (1 - betas[1] ** t)) + eps)


def yogi(
    w: Any,
    g: Any,
    t: int,
    state: Options,
    lr: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-3,
    weight_decay: Any = 0.0,
    initial_accumulator_value: Any = 1e-6,
    eps_before_correction: bool = True,
) -> Any:
    """The authors' release, where eps is added to the root of the uncorrected second moment."""
    assert eps_before_correction
    g = g + weight_decay * w
    v = state.get('v', initial_accumulator_value)
    state['v'] = v - (1 - betas[1]) * np.sign(v - g**2) * g**2
    m = ema(state, 'm', g, betas[0])
    return w - lr * np.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (np.sqrt(state['v']) + eps)


def adafactor_of_transformers(
    w: Any,
    g: Any,
    t: int,
    state: Options,
    lr: Any,
    eps: Any = (1e-30, 1e-3),
    clip_threshold: float = 1.0,
    decay_rate: float = -0.8,
    beta1: float | None = None,
    scale_parameter: bool = True,
    relative_step: bool = True,
    warmup_init: bool = False,
) -> Any:
    """Hugging Face's Adafactor, without weight decay."""

    def rms(x: Any) -> Any:
        return np.sqrt(np.mean(x**2))

    if relative_step:
        lr = min(1e-6 * t if warmup_init else 1e-2, 1 / np.sqrt(t))
    lr = lr * (max(eps[1], rms(w)) if scale_parameter else 1.0)
    beta2, square = 1 - t**decay_rate, g**2 + eps[0]
    if w.ndim > 1:
        row, column = ema(state, 'row', square.mean(-1), beta2), ema(state, 'column', square.mean(-2), beta2)
        u = g / (np.sqrt(row / row.mean(-1, keepdims=True))[..., None] * np.sqrt(column)[..., None, :])
    else:
        u = g / np.sqrt(ema(state, 'v', square, beta2))
    u = lr * u / max(1.0, rms(u) / clip_threshold)
    return w - (u if beta1 is None else ema(state, 'm', u, beta1))


def adan(
    w: Any,
    g: Any,
    t: int,
    state: Options,
    lr: Any,
    betas: Any = (0.98, 0.92, 0.99),
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
) -> Any:
    beta1, beta2, beta3 = (1 - b for b in betas)  # as the paper writes them
    change = g - state.get('g', g)
    state['g'] = g
    m = ema(state, 'm', g, 1 - beta1) / (1 - (1 - beta1) ** t)
    v = ema(state, 'v', change, 1 - beta2) / (1 - (1 - beta2) ** t)
    n = ema(state, 'n', (g + (1 - beta2) * change) ** 2, 1 - beta3) / (1 - (1 - beta3) ** t)
    return (w - lr / (np.sqrt(n) + eps) * (m + (1 - beta2) * v)) / (1 + lr * weight_decay)


def adopt(
    w: Any,
    g: Any,
    t: int,
    state: Options,
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
        state['v'] = g**2
        return w - lr * decay
    scaled = g / np.maximum(np.sqrt(state['v']), eps)
    bound = (t - 1) ** 0.25 if use_clipping else np.inf
    m = ema(state, 'm', np.clip(scaled, -bound, bound), betas[0])
    ema(state, 'v', g**2, betas[1])
    return w - lr * (m + decay)


def ademamix(
    w: Any,
    g: Any,
    t: int,
    state: Options,
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
    m1 = ema(state, 'm1', g, betas[0]) / (1 - betas[0] ** t)
    m2 = ema(state, 'm2', g, beta3)
    v = ema(state, 'v', g**2, betas[1]) / (1 - betas[1] ** t)
    return w - lr * ((m1 + alpha * m2) / (np.sqrt(v) + eps) + weight_decay * w)


def madgrad(
    w: Any,
    g: Any,
    t: int,
    state: Options,
    lr: Any,
    momentum: Any = 0.9,
    eps: Any = 1e-6,
    weight_decay: Any = 0.0,
    decoupled_weight_decay: Any = False,
) -> Any:
    start = state.setdefault('x0', w)
    decay = weight_decay * w
    if not decoupled_weight_decay:
        g, decay = g + decay, 0.0
    state['s'] = state.get('s', 0.0) + lr * np.sqrt(t) * g
    state['v'] = state.get('v', 0.0) + lr * np.sqrt(t) * g**2
    z = start - state['s'] / (np.cbrt(state['v']) + eps)
    return momentum * w + (1 - momentum) * z - lr * decay


def schedule_free(
    y: Any,
    g: Any,
    t: int,
    state: Options,
    lr: Any,
    momentum: Any = 0.9,
    weight_decay: Any = 0.0,
    warmup_steps: Any = 0,
    r: Any = 0.0,
    weight_lr_power: Any = 2.0,
) -> Any:
    """The recurrence for x, y and z, whose warm-up optax applies one update late to the steps only."""
    rate = lr * min(1.0, t / max(warmup_steps, 1))
    state['max'] = max(rate, state.get('max', 0.0))
    weight = t**r * state['max'] ** weight_lr_power
    state['sum'] = state.get('sum', 0.0) + weight
    c = weight / state['sum']
    state['z'] = state.get('z', y) - rate * (g + weight_decay * y)
    state['x'] = (1 - c) * state.get('x', y) + c * state['z']
    return (1 - momentum) * state['z'] + momentum * state['x']


def schedule_free_adamw(
    y: Any, g: Any, t: int, state: Options, lr: Any, betas: Any, eps: Any, weight_decay: Any = 0.0, **averaging: Any
) -> Any:
    v = ema(state, 'v', g**2, betas[1]) / (1 - betas[1] ** t)
    direction = g / (np.sqrt(v) + eps) + weight_decay * y
    return schedule_free(y, direction, t, state, lr, betas[0], **averaging)


def sophia(
    w: Any,
    g: Any,
    t: int,
    state: Options,
    lr: float,
    hessian: Any,
    betas: Any = (0.96, 0.99),
    gamma: float = 0.01,
    eps: float = 1e-12,
    weight_decay: float = 0.0,
    clip_threshold: float = 1.0,
    update_period: int = 10,
) -> Any:
    state['m'] = betas[0] * state.get('m', 0.0) + (1 - betas[0]) * g
    if update_period == 1 or t % update_period == 1:
        state['h'] = betas[1] * state.get('h', 0.0) + (1 - betas[1]) * hessian
    w = w - lr * weight_decay * w
    return w - lr * np.clip(state['m'] / np.maximum(gamma * state['h'], eps), -clip_threshold, clip_threshold)


def soap(
    w: Any,
    g: Any,
    t: int,
    state: Any,
    lr: float,
    betas: Any = (0.95, 0.95),
    shampoo_beta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 10000,
) -> Any:
    """The authors' loop: the first step only initializes; later steps project, apply Adam and project back."""
    beta1, beta2 = betas
    beta = beta2 if shampoo_beta is None else shampoo_beta
    sides = [i for i in range(w.ndim) if w.ndim == 2 and w.shape[i] <= max_precondition_dim]

    def turn(m: Any, back: bool = False) -> Any:
        for i in sides:
            q = state['Q', i].T if back else state['Q', i]
            m = q.T @ m if i == 0 else m @ q
        return m

    def update_covariances() -> None:
        for i in sides:
            outer = g @ g.T if i == 0 else g.T @ g
            state['GG', i] = beta * state.get(('GG', i), 0.0) + (1 - beta) * outer

    if t == 1:
        update_covariances()
        for i in sides:
            state['Q', i] = np.linalg.eigh(state['GG', i])[1][:, ::-1]
        return w
    t -= 1
    m = state['m'] = beta1 * state.get('m', 0.0) + (1 - beta1) * g
    v = state['v'] = beta2 * state.get('v', 0.0) + (1 - beta2) * turn(g) ** 2
    step = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    w = w - step * turn(turn(m) / (np.sqrt(v) + eps), back=True)
    w = w - lr * weight_decay * w
    update_covariances()
    if t % precondition_frequency == 0:
        for i in sides:
            q, gg = state['Q', i], state['GG', i]
            order = np.argsort(-np.diag(q.T @ gg @ q))
            state['v'] = np.take(state['v'], order, axis=i)
            state['Q', i] = np.linalg.qr(gg @ q[:, order])[0]
    return w


def flat(leaves: Leaves) -> Any:
    """Concatenate all leaves into one vector."""
    return np.concatenate([np.ravel(x) for x in leaves.values()])


def unflat(vector: Any, like: Leaves) -> Leaves:
    """Split a vector into leaves of the given shapes."""
    pieces = np.split(vector, np.cumsum([np.size(x) for x in like.values()])[:-1])
    return {key: piece.reshape(np.shape(x)) for (key, x), piece in zip(like.items(), pieces, strict=True)}


def prodigy(
    w: Leaves,
    g: Leaves,
    t: int,
    state: Options,
    lr: float,
    d0: float,
    betas: Any = (0.9, 0.999),
    beta3: float | None = None,
    eps: float = 1e-8,
    d_coef: float = 1.0,
    growth_rate: float = np.inf,
    weight_decay: float = 0.0,
    safeguard_warmup: bool = False,
    use_bias_correction: bool = False,
) -> Leaves:
    """The authors' release, which leaves out steps with a learning rate of 0 and does not count them."""
    if lr == 0:
        return w
    like, w, g = w, flat(w), flat(g)
    k = state['k'] = state.get('k', 0) + 1
    start, d, d_max = state.setdefault('start', w), state.get('d', d0), state.get('d_max', d0)
    beta3 = np.sqrt(betas[1]) if beta3 is None else beta3
    lr = lr * (np.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k) if use_bias_correction else 1.0)
    state['r'] = beta3 * state.get('r', 0.0) + (d / d0) * d * lr * (g @ (start - w))
    state['s'] = beta3 * state.get('s', 0.0) + (d / d0) * d * (1 if safeguard_warmup else lr) * g
    state['m'] = betas[0] * state.get('m', 0.0) + (1 - betas[0]) * d * g
    state['v'] = betas[1] * state.get('v', 0.0) + (1 - betas[1]) * (d * g) ** 2
    d_hat = d_coef * state['r'] / np.abs(state['s']).sum()
    state['d_max'] = max(d_max, d_hat)
    state['d'] = min(state['d_max'], (max(d, d_hat) if d == d0 else d) * growth_rate)
    return unflat(w - lr * d * (state['m'] / (np.sqrt(state['v']) + state['d'] * eps) + weight_decay * w), like)


def dadapt(
    w: Leaves,
    g: Leaves,
    t: int,
    state: Options,
    lr: float,
    d0: float,
    betas: Any = (0.9, 0.999),
    eps: float = 1e-8,
    growth_rate: float = np.inf,
    weight_decay: float = 0.0,
    use_bias_correction: bool = False,
) -> Leaves:
    """The authors' release, which leaves out steps with a learning rate of 0 and does not count them."""
    if lr == 0:
        return w
    like, w, g = w, flat(w), flat(g)
    k = state['k'] = state.get('k', 0) + 1
    lr = lr * (np.sqrt(1 - betas[1] ** k) / (1 - betas[0] ** k) if use_bias_correction else 1.0)
    d, s, v, gamma = state.get('d', d0), state.get('s', 0 * g), state.get('v', 0 * g), np.sqrt(betas[1])
    state['r'] = gamma * state.get('r', 0.0) + (1 - gamma) * lr * d * (g @ (s / (np.sqrt(v) + eps)))
    state['s'] = gamma * s + (1 - gamma) * lr * d * g
    state['m'] = betas[0] * state.get('m', 0.0) + (1 - betas[0]) * lr * d * g
    state['v'] = betas[1] * v + (1 - betas[1]) * g**2
    d_hat = state['r'] / ((1 - gamma) * np.abs(state['s']).sum())
    state['d'] = max(d, min(d_hat, d * growth_rate))
    return unflat(w - state['m'] / (np.sqrt(state['v']) + eps) - lr * d * weight_decay * w, like)


def dog(
    w: Leaves,
    g: Leaves,
    t: int,
    state: Options,
    lr: float,
    layerwise: bool,
    reps_rel: float = 1e-6,
    init_eta: float | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Leaves:
    new = {}
    for key in w:
        start, slope = state.setdefault(f'start {key}', w[key]), g[key] + weight_decay * w[key]
        first = reps_rel * (1 + np.linalg.norm(start)) if init_eta is None else 0.0
        state[f'r {key}'] = max(state.get(f'r {key}', first), np.linalg.norm(w[key] - start))
        state[f'G {key}'] = state.get(f'G {key}', eps) + np.sum(slope**2)
        eta = init_eta if init_eta and t == 1 else state[f'r {key}'] / np.sqrt(state[f'G {key}'])
        new[key] = w[key] - lr * eta * slope
    return new
