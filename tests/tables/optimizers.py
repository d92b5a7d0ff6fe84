"""The table of optimizers: of each one its kind, its references, and the options that are crossed.

A row needs one entry in :data:`ROWS`. After a change of what is compared with torch, ``make golden`` records torch's
trajectories again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import optax

import braintools_optim as bo
from tables import optax_references as tx
from tables import papers
from tables.problems import CORRELATED, CURVED, LATE, LEAVES, LOSSES, MATRICES, SCALES, Problem

__all__ = ['CASES', 'COMMON', 'OPTIMIZERS', 'ROWS', 'STANDALONE', 'Case', 'Comparison', 'Row', 'row_of']

Options = dict[str, Any]
Choices = Mapping[str, tuple[Any, ...]]


def is_any(options: Options) -> bool:
    return True


@dataclass(frozen=True)
class Comparison:
    """The options to cross, and the reference whose trajectory each combination must have.

    ``adapt`` turns the options of a case into those of torch; ``valid`` leaves out combinations.
    """

    choices: Choices
    torch: str = ''
    optax: Callable[..., optax.GradientTransformation] | None = None
    paper: Callable[..., Any] | None = None
    problem: Problem = LEAVES
    adapt: Callable[[Options], Options] = dict
    valid: Callable[[Options], bool] = is_any


@dataclass(frozen=True)
class Row:
    """One optimizer.

    ``kind`` says what a step of one weight depends on: on that leaf only, on all leaves of its group, or also on the
    loss. ``required`` builds the constructor's arguments without default. Options in ``fixed`` cannot be assigned.
    """

    optimizer: type[bo.Optimizer]
    kind: Literal['leafwise', 'group', 'loss']
    comparisons: tuple[Comparison, ...] = ()
    required: Callable[[], Options] = dict
    fixed: tuple[str, ...] = ()

    def cases(self) -> Iterator[Case]:
        """All combinations of options, with their reference."""
        for comparison in self.comparisons:
            for values in itertools.product(*comparison.choices.values()):
                options = dict(zip(comparison.choices, values, strict=True))
                if comparison.valid(options):
                    yield Case(self, comparison, tuple(options.items()))


@dataclass(frozen=True, repr=False)
class Case:
    """An optimizer with one combination of options, and its reference."""

    row: Row = field(hash=False)
    comparison: Comparison = field(hash=False)
    options: tuple[tuple[str, Any], ...]

    @property
    def name(self) -> str:
        return '-'.join([self.row.optimizer.__name__, *(f'{k}={v}' for k, v in self.options)]).replace(' ', '')

    def __repr__(self) -> str:
        return self.name

    @property
    def flags(self) -> tuple[tuple[str, Any], ...]:
        """The options that a compiled function depends on; of a momentum, only whether it is above 0."""
        kept = {k: 0.5 * (v > 0) if k == 'momentum' else v for k, v in self.options}
        static = (bool, str, type(None))
        return tuple((k, v) for k, v in kept.items() if k == 'momentum' or isinstance(v, static) or k in self.row.fixed)


def torch(name: str, problem: Problem = LEAVES, adapt: Any = dict, valid: Any = is_any, **choices: Any) -> Comparison:
    return Comparison(choices, torch=name, problem=problem, adapt=adapt, valid=valid)


def reference(build: Any, problem: Problem = LEAVES, valid: Any = is_any, **choices: Any) -> Comparison:
    """Compare with an optax transformation or the formula of a paper."""
    choices = {'lr': (0.01,), **choices}
    kind = 'paper' if build.__module__ == papers.__name__ else 'optax'
    return Comparison(choices, problem=problem, valid=valid, **{kind: build})


def leafwise(optimizer: Any, *comparisons: Comparison, **more: Any) -> Row:
    return Row(optimizer, 'leafwise', comparisons, **more)


def group(optimizer: Any, *comparisons: Comparison, **more: Any) -> Row:
    return Row(optimizer, 'group', comparisons, **more)


def with_loss(optimizer: Any, *comparisons: Comparison, **more: Any) -> Row:
    return Row(optimizer, 'loss', comparisons, **more)


def is_valid_nesterov(options: Options) -> bool:
    return not (options.get('nesterov') and (options['momentum'] == 0 or options['dampening'] != 0))


def adafactor_options(options: Options) -> Options:
    """torch's Adafactor is always relative to the step, and has other names for two options."""
    renamed = {'clip_threshold': 'd', 'decay_rate': 'beta2_decay'}
    options = {renamed.get(name, name): value for name, value in options.items() if name != 'relative_step'}
    if 'beta2_decay' in options:
        options['beta2_decay'] = -abs(options['beta2_decay'])
    return options


LR, FLAG, MAXIMIZED = (0.01,), (False, True), (True,)
EPS = (1e-8, 1e-3)
DECAYS = (0.0, 0.1)
DECAY = (0.1,)  # for optimizers whose other comparisons have no decay
BETAS = ((0.9, 0.999), (0.5, 0.9))
ESTIMATE: Choices = {'lr': (0.1,), 'd0': (0.01,)}  # the estimate grows at least tenfold, and does not diverge
CORRECTED: Choices = {
    'lr': (0.2,),
    'd0': (0.01,),
    'use_bias_correction': (True,),
    'weight_decay': DECAY,
    'betas': BETAS,
}
GROWTH: Choices = {'growth_rate': (float('inf'), 1.02), 'eps': EPS, 'weight_decay': DECAYS}
DOG: Choices = {'lr': (1.0, 0.5), 'eps': (1e-8, 1.0), 'weight_decay': DECAY, 'reps_rel': (1e-2, 1e-3)}

ROWS: list[Row] = [
    leafwise(
        bo.SGD,
        torch(
            'SGD',
            SCALES,
            valid=is_valid_nesterov,
            lr=LR,
            momentum=(0.0, 0.9),
            dampening=(0.0, 0.3),
            weight_decay=DECAYS,
            nesterov=FLAG,
            maximize=FLAG,
        ),
    ),
    leafwise(bo.Momentum, torch('SGD', SCALES, adapt=lambda o: {'momentum': 0.9, **o}, lr=LR, weight_decay=DECAYS)),
    leafwise(
        bo.MomentumNesterov,
        torch('SGD', SCALES, lambda o: {'momentum': 0.9, 'nesterov': True, **o}, lr=LR, weight_decay=DECAYS),
    ),
    leafwise(
        bo.Adam,
        torch(
            'Adam',
            SCALES,
            lr=LR,
            eps=EPS,
            weight_decay=DECAYS,
            amsgrad=FLAG,
            decoupled_weight_decay=FLAG,
            maximize=FLAG,
        ),
        torch('Adam', SCALES, lr=LR, betas=((0.0, 0.5), (0.5, 0.99), (0.95, 0.9999))),
    ),
    leafwise(bo.AdamW, torch('AdamW', SCALES, lr=LR, eps=EPS, weight_decay=DECAYS, amsgrad=FLAG, maximize=FLAG)),
    leafwise(
        bo.RAdam,
        torch('RAdam', SCALES, lr=LR, eps=EPS, weight_decay=DECAYS, decoupled_weight_decay=FLAG, maximize=FLAG),
        torch('RAdam', SCALES, lr=LR, betas=((0.9, 0.3), (0.0, 0.9), (0.5, 0.99), (0.9, 0.9999))),
    ),
    leafwise(
        bo.RMSprop,
        torch(
            'RMSprop',
            SCALES,
            lr=LR,
            eps=EPS,
            weight_decay=DECAYS,
            momentum=(0.0, 0.9),
            centered=FLAG,
            maximize=FLAG,
        ),
        torch('RMSprop', SCALES, lr=LR, alpha=(0.0, 0.5, 0.999), momentum=(0.5,)),
    ),
    leafwise(
        bo.Adagrad,
        torch('Adagrad', lr=(0.1,), maximize=MAXIMIZED),
        torch(
            'Adagrad',
            lr=(0.1,),
            lr_decay=(0.0, 0.1),
            weight_decay=DECAY,
            initial_accumulator_value=(0.0, 0.5),
            eps=(1e-10, 1e-3),
        ),
    ),
    leafwise(
        bo.Adadelta,
        torch('Adadelta', lr=(1.0,), maximize=MAXIMIZED),
        torch('Adadelta', lr=(1.0, 0.1), rho=(0.9, 0.0, 0.999, 1.0), eps=(1e-6, 1e-3), weight_decay=DECAY),
    ),
    leafwise(
        bo.Adamax,
        torch('Adamax', lr=LR, maximize=MAXIMIZED),
        torch('Adamax', lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY),
    ),
    leafwise(
        bo.Nadam,
        torch('NAdam', lr=LR, maximize=MAXIMIZED),
        torch(
            'NAdam',
            lr=LR,
            betas=(*BETAS, (0.999, 0.5), (0.0, 0.0)),
            eps=EPS,
            weight_decay=DECAY,
            momentum_decay=(4e-3, 0.5),
            decoupled_weight_decay=FLAG,
        ),
    ),
    leafwise(
        bo.ASGD,
        torch('ASGD', lr=LR, maximize=MAXIMIZED),
        torch(
            'ASGD',
            lr=(0.01, 0.1),
            lambd=(1e-4, 0.1),
            alpha=(0.75, 0.25),
            t0=(1e6, 5.0, 0.0),
            weight_decay=DECAY,
        ),
    ),
    leafwise(
        bo.Rprop,
        torch('Rprop', lr=LR, maximize=MAXIMIZED),
        torch('Rprop', lr=(0.01, 0.5), etas=((0.5, 1.2), (0.1, 3.0)), step_sizes=((1e-6, 50.0), (0.005, 0.1))),
    ),
    leafwise(
        bo.Adafactor,
        torch('Adafactor', adapt=adafactor_options, lr=LR, relative_step=(True,), maximize=MAXIMIZED),
        torch(
            'Adafactor',
            adapt=adafactor_options,
            lr=(0.01, 0.2),
            eps=((1e-30, 1e-3), (1e-4, 1.5)),
            clip_threshold=(1.0, 2.0),
            decay_rate=(0.8, -0.5),
            weight_decay=DECAY,
            relative_step=(True,),
        ),
        reference(
            papers.adafactor_of_transformers,
            lr=LR,
            scale_parameter=(True, False),
            relative_step=(True, False),
            warmup_init=(True, False),
            beta1=(None, 0.9),
            valid=lambda o: o['relative_step'] or not o['warmup_init'],
        ),
        fixed=('beta1',),
    ),
    leafwise(
        bo.Muon,
        torch('Muon', MATRICES, lr=(1e-3,)),
        torch(
            'Muon',
            MATRICES,
            nesterov=(False,),
            momentum=(0.5,),
            adjust_lr_fn=('original',),
            weight_decay=(0.0,),
        ),
        torch('Muon', MATRICES, ns_steps=(3,), ns_coefficients=((2.0, -1.5, 0.5),), lr=(0.1,)),
        torch('Muon', MATRICES, adjust_lr_fn=('match_rms_adamw',), weight_decay=(0.5,), eps=(2.0,), ns_steps=(1,)),
        fixed=('ns_steps', 'ns_coefficients'),
    ),
    leafwise(
        bo.AdaBelief,
        reference(tx.adabelief, maximize=MAXIMIZED),
        reference(
            tx.adabelief,
            eps=(1e-16, 1e-3),
            betas=BETAS,
            eps_root=(1e-16, 1e-6),
            weight_decay=DECAY,
            decoupled_weight_decay=FLAG,
        ),
    ),
    leafwise(
        bo.Yogi,
        reference(tx.yogi, maximize=MAXIMIZED),
        reference(tx.yogi, betas=BETAS, eps=(1e-3, 1e-8), weight_decay=DECAY, initial_accumulator_value=(1e-6, 0.1)),
        reference(
            papers.yogi,
            betas=BETAS,
            eps=(1e-3, 0.1),
            weight_decay=DECAY,
            initial_accumulator_value=(1e-6, 0.1),
            eps_before_correction=(True,),
        ),
    ),
    leafwise(
        bo.Lion,
        reference(tx.lion, maximize=MAXIMIZED),
        reference(tx.lion, betas=((0.9, 0.99), (0.5, 0.6)), weight_decay=DECAY),
    ),
    leafwise(
        bo.Lamb,
        reference(tx.lamb, maximize=MAXIMIZED),
        reference(tx.lamb, betas=BETAS, eps=(1e-6, 0.1), weight_decay=DECAY),
    ),
    leafwise(
        bo.Lars,
        reference(tx.lars, maximize=MAXIMIZED),
        reference(tx.lars, trust_coefficient=(0.001, 0.1), eps=(1e-8, 0.1), nesterov=FLAG),
        reference(papers.lars, momentum=(0.9, 0.0), trust_coefficient=(0.01,), eps=(1e-8, 0.1), weight_decay=DECAY),
    ),
    leafwise(
        bo.SM3,
        reference(tx.sm3, maximize=MAXIMIZED),
        reference(tx.sm3, momentum=(0.9, 0.0), eps=EPS, weight_decay=DECAY),
    ),
    leafwise(
        bo.Novograd,
        reference(tx.novograd, maximize=MAXIMIZED),
        reference(tx.novograd, betas=BETAS, eps=EPS, weight_decay=DECAY),
        reference(papers.novograd, LATE, betas=BETAS, eps=EPS, weight_decay=DECAY),
    ),
    leafwise(
        bo.Fromage,
        reference(tx.fromage, maximize=MAXIMIZED),
        reference(tx.fromage, momentum=(0.0, 0.9)),
    ),
    leafwise(
        bo.Adan,
        reference(papers.adan, maximize=MAXIMIZED),
        reference(papers.adan, betas=((0.98, 0.92, 0.99), (0.5, 0.7, 0.9)), eps=EPS, weight_decay=DECAY),
        reference(tx.adan, betas=((0.98, 0.5, 0.99),), eps=EPS),
    ),
    leafwise(
        bo.SignSGD,
        reference(tx.sign, maximize=MAXIMIZED),
        reference(tx.sign, momentum=(0.0, 0.5), weight_decay=DECAY),
    ),
    leafwise(bo.Signum, reference(tx.signum)),
    leafwise(
        bo.NAdamW,
        reference(tx.nadamw, maximize=MAXIMIZED),
        reference(tx.nadamw, betas=BETAS, eps=EPS, weight_decay=(1e-4, 0.1)),
    ),
    leafwise(
        bo.ADOPT,
        reference(tx.adopt, maximize=MAXIMIZED),
        reference(tx.adopt, use_clipping=FLAG),
        reference(
            papers.adopt,
            betas=((0.9, 0.9999), (0.5, 0.9)),
            eps=(1e-6, 0.1),
            weight_decay=DECAY,
            decoupled_weight_decay=FLAG,
        ),
    ),
    leafwise(
        bo.AdEMAMix,
        reference(tx.ademamix, maximize=MAXIMIZED),
        reference(tx.ademamix, mixing=(2.0,)),
        reference(
            papers.ademamix,
            betas=((0.9, 0.999, 0.9999), (0.5, 0.9, 0.99)),
            eps=EPS,
            weight_decay=DECAY,
            mixing=(5.0, 0.0),
            mixing_warmup=(0, 100),
            beta3_warmup=(0, 150),
        ),
    ),
    leafwise(
        bo.MADGRAD,
        reference(papers.madgrad, maximize=MAXIMIZED),
        reference(
            papers.madgrad,
            momentum=(0.9, 0.0),
            eps=(1e-6, 0.1),
            weight_decay=DECAY,
            decoupled_weight_decay=FLAG,
        ),
    ),
    leafwise(
        bo.ScheduleFreeSGD,
        reference(tx.schedule_free_sgd, maximize=MAXIMIZED),
        reference(tx.schedule_free_sgd, momentum=(0.9, 0.3), weight_decay=DECAY, weight_lr_power=(2.0, 0.0)),
        reference(papers.schedule_free, weight_decay=DECAY, warmup_steps=(0, 50), r=(0.0, 1.5)),
    ),
    leafwise(
        bo.ScheduleFreeAdamW,
        reference(tx.schedule_free_adamw, maximize=MAXIMIZED),
        reference(tx.schedule_free_adamw, betas=((0.9, 0.999), (0.3, 0.0)), eps=EPS, weight_decay=DECAY),
        reference(papers.schedule_free_adamw, betas=BETAS, eps=EPS, weight_decay=DECAY, warmup_steps=(50,), r=(0.5,)),
    ),
    leafwise(
        bo.SOAP,
        reference(papers.soap, CORRELATED),
        reference(papers.soap, CORRELATED, betas=((0.9, 0.8),), precondition_frequency=(1,), eps=(1e-3,)),
        reference(papers.soap, CORRELATED, shampoo_beta=(0.5,), weight_decay=(0.0,), precondition_frequency=(7,)),
        reference(papers.soap, CORRELATED, max_precondition_dim=(3,)),
        fixed=('precondition_frequency', 'max_precondition_dim', 'shampoo_beta'),
    ),
    group(
        bo.Prodigy,
        reference(papers.prodigy, **ESTIMATE, maximize=MAXIMIZED),
        reference(papers.prodigy, **ESTIMATE, **GROWTH),
        reference(papers.prodigy, **ESTIMATE, beta3=(0.5,), d_coef=(0.5, 0.8), use_bias_correction=FLAG),
        reference(tx.prodigy, **CORRECTED, eps=EPS, safeguard_warmup=FLAG, d_coef=(0.5,)),
    ),
    group(
        bo.DAdaptAdamW,
        reference(papers.dadapt, **ESTIMATE, maximize=MAXIMIZED),
        reference(papers.dadapt, **ESTIMATE, **GROWTH),
        reference(tx.dadapt, **CORRECTED, eps=EPS),
    ),
    group(
        bo.DoG,
        reference(tx.dog, **DOG),
        reference(tx.dog, lr=(1.0,), init_eta=(1e-3,)),
        reference(papers.dog, **DOG, layerwise=(True,)),
        reference(papers.dog, lr=(1.0,), layerwise=(True,), init_eta=(1e-3,)),
    ),
    with_loss(
        bo.PolyakSGD,
        reference(tx.polyak_sgd, LOSSES, lr=(1.0, 0.3), max_learning_rate=(1.0, 0.05)),
        reference(tx.polyak_sgd, LOSSES, lr=(1.0,), f_min=(0.7,), eps=(0.5,)),
    ),
    with_loss(
        bo.Sophia,
        reference(papers.sophia, CURVED),
        reference(papers.sophia, CURVED, maximize=MAXIMIZED),
        reference(papers.sophia, CURVED, betas=((0.5, 0.8),), gamma=(1.0,)),
        reference(papers.sophia, CURVED, weight_decay=DECAY, update_period=(3,)),
        reference(papers.sophia, CURVED, eps=(0.1,), clip_threshold=(0.3,)),
        reference(papers.sophia, CURVED, update_period=(1,), clip_threshold=(float('inf'),)),
        fixed=('update_period',),
    ),
    group(bo.OptaxOptimizer, reference(tx.adam, weight_decay=DECAYS)),
    # compared in tests/rules/test_lbfgs.py, test_lookahead.py and test_sam.py
    group(bo.LBFGS),
    group(bo.Lookahead, required=lambda: {'base_optimizer': optax.sgd(0.1)}),
    with_loss(bo.SAM, required=lambda: {'base_optimizer': bo.SGD(0.1)}),
]
CASES = [case for row in ROWS for case in row.cases()]
OPTIMIZERS = [row.optimizer for row in ROWS]
STANDALONE = [row.optimizer for row in ROWS if row.comparisons and row.optimizer is not bo.OptaxOptimizer]
"""Optimizers that wrap no other, and whose update :func:`helpers.update` can call."""
COMMON = [bo.SGD, bo.Momentum, bo.MomentumNesterov, bo.Adam, bo.AdamW, bo.RAdam, bo.RMSprop, bo.OptaxOptimizer]
"""Optimizers on which ``make test`` checks each property of updates; the others are checked by ``make slow``."""


def row_of(optimizer: type[bo.Optimizer]) -> Row:
    """Find the row of an optimizer."""
    (row,) = (row for row in ROWS if row.optimizer is optimizer)
    return row
