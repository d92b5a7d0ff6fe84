"""The optax transformations that compute what an optimizer computes, with its options under their names here."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Tx = optax.GradientTransformation


def coupled(weight_decay: float, *txs: Tx) -> Tx:
    return optax.chain(optax.add_decayed_weights(weight_decay), *txs)


def decoupled(weight_decay: float, lr: float, *txs: Tx) -> Tx:
    return optax.chain(*txs, optax.add_decayed_weights(weight_decay), optax.scale(-lr))


def adabelief(
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


def yogi(
    lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-3, weight_decay: Any = 0.0, initial_accumulator_value: Any = 1e-6
) -> Tx:
    """optax starts the mean at ``initial_accumulator_value`` too; the paper starts it at zero."""
    tx = optax.scale_by_yogi(*betas, eps, initial_accumulator_value=initial_accumulator_value)

    def init(params: Any) -> Any:
        state = tx.init(params)
        return state._replace(mu=jax.tree.map(jnp.zeros_like, params))

    return coupled(weight_decay, Tx(init, tx.update), optax.scale(-lr))


def sign(lr: Any, momentum: Any = 0.0, weight_decay: Any = 0.0) -> Tx:
    average = [optax.ema(momentum, debias=False)] if momentum else []
    return decoupled(weight_decay, lr, *average, optax.scale_by_sign())


def signum(lr: Any) -> Tx:
    return sign(lr, momentum=0.9)


def lars(lr: Any, momentum: Any = 0.9, trust_coefficient: Any = 0.001, eps: Any = 1e-8, nesterov: Any = False) -> Tx:
    return optax.lars(lr, 0.0, True, trust_coefficient, eps, True, momentum, nesterov)


def fromage(lr: Any, momentum: Any = 0.0) -> Tx:
    """optax bounds the norms from below; the paper does not."""
    return optax.chain(*[optax.trace(momentum)] * (momentum > 0), optax.fromage(lr, min_norm=1e-300))


def sm3(lr: Any, momentum: Any = 0.9, eps: Any = 1e-8, weight_decay: Any = 0.0) -> Tx:
    return coupled(weight_decay, optax.scale_by_sm3(momentum, 1.0, eps), optax.scale(-lr))


def lion(lr: Any, betas: Any = (0.9, 0.99), weight_decay: Any = 0.0) -> Tx:
    return optax.lion(lr, *betas, weight_decay=weight_decay)


def lamb(lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-6, weight_decay: Any = 0.0) -> Tx:
    return optax.lamb(lr, *betas, eps, weight_decay=weight_decay)


def novograd(lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0.0) -> Tx:
    return optax.novograd(lr, *betas, eps, weight_decay=weight_decay)


def nadamw(lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 1e-4) -> Tx:
    return optax.nadamw(lr, *betas, eps, weight_decay=weight_decay)


def adan(lr: Any, betas: Any, eps: Any) -> Tx:
    """optax has the paper's look-ahead factor for ``betas[1] = 0.5`` only."""
    return optax.adan(lr, *betas, eps, 0.0)


def ademamix(lr: Any, betas: Any = (0.9, 0.999, 0.9999), mixing: Any = 5.0) -> Tx:
    return optax.contrib.ademamix(lr, *betas, mixing)


def adopt(lr: Any, betas: Any = (0.9, 0.9999), eps: Any = 1e-6, use_clipping: Any = True) -> Tx:
    return optax.contrib.adopt(lr, *betas, eps, use_clipping=use_clipping)


def schedule_free_sgd(lr: Any, momentum: Any = 0.9, weight_decay: Any = 0.0, weight_lr_power: Any = 2.0) -> Tx:
    return optax.contrib.schedule_free_sgd(lr, None, momentum, weight_decay, weight_lr_power)


def schedule_free_adamw(
    lr: Any, betas: Any = (0.9, 0.999), eps: Any = 1e-8, weight_decay: Any = 0.0, weight_lr_power: Any = 2.0
) -> Tx:
    return optax.contrib.schedule_free_adamw(lr, None, *betas, eps, weight_decay, weight_lr_power)


def prodigy(
    lr: Any,
    d0: Any,
    betas: Any = (0.9, 0.999),
    eps: Any = 1e-8,
    d_coef: Any = 1.0,
    weight_decay: Any = 0.0,
    safeguard_warmup: bool = False,
    use_bias_correction: bool = True,
) -> Any:
    return optax.contrib.prodigy(lr, betas, None, eps, d0, d_coef, weight_decay, safeguard_warmup)


def dadapt(lr: Any, d0: Any, betas: Any, eps: Any, weight_decay: Any = 0.0, use_bias_correction: bool = True) -> Any:
    return optax.contrib.dadapt_adamw(lr, betas, eps, d0, weight_decay)


def dog(
    lr: Any, reps_rel: Any = 1e-6, eps: Any = 1e-8, weight_decay: Any = 0.0, init_eta: Any = None
) -> optax.GradientTransformation:
    first = ('heuristic', reps_rel) if init_eta is None else ('learning_rate', init_eta)
    return optax.contrib.dog(lr, first, eps, weight_decay)


def polyak_sgd(lr: Any, max_learning_rate: Any = 1.0, f_min: Any = 0.0, eps: Any = 0.0) -> Tx:
    return optax.chain(optax.polyak_sgd(max_learning_rate, 1.0, f_min, eps), optax.scale(lr))


def adam(lr: Any, weight_decay: Any = 0.0) -> Tx:
    return coupled(weight_decay, optax.scale_by_adam(), optax.scale(-lr))
