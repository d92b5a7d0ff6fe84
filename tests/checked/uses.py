"""Correct uses of the library: type checkers accept every line and reveal the types in the comments."""

from typing import reveal_type

import brainstate
import jax
import jax.numpy as jnp
import optax

import braintools_optim as bo
from braintools_optim.options import Betas, WeightDecay

weights = {'w': brainstate.ParamState(jnp.ones(2))}
grads = {'w': jnp.ones(2)}

# constructors by position and by keyword
optimizer = bo.AdamW(1e-3, (0.9, 0.999), 1e-8, 0.01)
bo.Adam(lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01, amsgrad=True, grad_clip_norm=1.0, grad_clip_over='group')
bo.Adam(groups={'bias': {'weight_decay': 0.0}}, no_decay=bo.usual_exclusions, loss_scale=bo.DynamicLossScale())
bo.Adam(stages=[bo.Stage(lambda leaf: leaf.with_gradient(leaf.gradient / 2), after_direction=False)])

# schedules of the learning rate and of other options
bo.SGD(lr=bo.StepLR(0.1, step_size=3), momentum=0.9, weight_decay=bo.CosineAnnealingLR(0.1))
bo.SGD(0.1, 0.9, weight_decay=lambda count: 0.1 / (1 + count))
reveal_type(optimizer.lr)  # LRScheduler
optimizer.lr.step()
optimizer.lr = 0.1
optimizer.lr = bo.WarmupScheduler(bo.CosineAnnealingLR(0.1), warmup_epochs=5)
optimizer.current_lr = 0.1

# options as attributes
optimizer.weight_decay = 0.1
optimizer.betas = (0.8, 0.99)
reveal_type(optimizer.weight_decay)  # float
reveal_type(optimizer.amsgrad)  # bool

# training
reveal_type(optimizer.register_trainable_weights(weights))  # AdamW
optimizer.update(grads)
optimizer.add_param_group({'v': brainstate.ParamState(jnp.ones(2))}, lr=0.1, weight_decay=0.0)
reveal_type(optimizer.step_count)  # OptimState
averaged = bo.ASGD(0.1, metrics=True).register_trainable_weights({'u': brainstate.ParamState(jnp.ones(2))})
with averaged.eval_weights():
    reveal_type(averaged)  # ASGD
reveal_type(averaged.metrics['grad_norm'])  # Array
reveal_type(averaged.log()['lr/0'])  # float
bo.Adam(metrics='weights', stages=[])
reveal_type(bo.sweep(lambda lr: {'loss': lr**2}, lr=[0.1, 0.2]))  # Sweep
reveal_type(bo.lr_range_test(lambda lr: {'loss': jnp.array([2.0, 1.0])}))  # RangeTest

# optimizers around others
reveal_type(bo.Lookahead(bo.Adam(0.1), sync_period=3, maximize=True))  # Lookahead
reveal_type(bo.SAM(bo.Adam(0.1), rho=0.05))  # SAM
reveal_type(bo.OptaxOptimizer(optax.adam(0.1), weight_decay=0.1))  # OptaxOptimizer


class Signum(bo.Optimizer):
    """An optimizer whose options are class fields."""

    betas: Betas = (0.9, 0.0)
    weight_decay: WeightDecay = 0.0

    def init_slots(self, w: jax.Array, hp: bo.Hyperparameters) -> dict[str, jax.Array]:
        return {'exp_avg': jnp.zeros_like(w)}

    def direction(
        self, g: jax.Array, w: jax.Array, slots: dict[str, jax.Array], hp: bo.Hyperparameters
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        exp_avg = hp.betas[0].average(slots['exp_avg'], g)
        return jnp.sign(exp_avg), {'exp_avg': exp_avg}


reveal_type(Signum(0.1, (0.9, 0.5), weight_decay=0.1, maximize=True))  # Signum
