"""The table of schedules and their references: torch's schedule or a formula in Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from braintools_optim import schedulers as s

EPOCHS = 101
STEPS = 60  # of an optimizer in training
Build = Callable[[], Any]
TorchBuild = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Case:
    """A schedule and its reference: ``torch`` builds torch's for an optimizer with the base rates ``base``.

    From epoch ``holds_from`` on, the rate stays constant.
    """

    name: str
    build: Build
    torch: TorchBuild | None = None
    base: tuple[float, ...] = (0.1,)
    holds_from: int = EPOCHS - 1
    formula: Callable[[int], float] | None = None


def half(epoch: int) -> Any:
    return 0.5 ** (epoch // 20)


def shrink(epoch: int) -> Any:
    return 1 - 1 / (epoch + 2)


def damp(x: Any) -> Any:
    return 1 / (1 + 0.1 * x)


def cosine(epoch: float, length: float, high: float, low: float = 0.0) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * min(epoch / length, 1))) / 2


def stable_decay(epoch: int, fall: Callable[[float], float]) -> float:
    if epoch < 10:
        return 0.01 + 0.09 * epoch / 10
    return 0.02 + 0.08 * fall(min(max(epoch - 30, 0) / 20, 1))


def sequential(t: Any, o: Any, parts: list[Any], milestones: list[int]) -> Any:
    return t.SequentialLR(o, parts, milestones)


def torch_swalr(*args: Any) -> Any:
    from torch.optim.swa_utils import SWALR

    return SWALR(*args)


CASES = [
    Case('ConstantLR', lambda: s.ConstantLR(0.1, 0.25, 7), lambda t, o: t.ConstantLR(o, 0.25, 7)),
    Case('ConstantLR-always', lambda: s.ConstantLR(0.1, 1.0, 0), lambda t, o: t.ConstantLR(o, 1.0, 0)),
    Case('StepLR', lambda: s.StepLR(0.1, 7, 0.3), lambda t, o: t.StepLR(o, 7, 0.3)),
    Case('MultiStepLR', lambda: s.MultiStepLR(0.1, [3, 20, 21], 0.3), lambda t, o: t.MultiStepLR(o, [3, 20, 21], 0.3)),
    Case('MultiStepLR-none', lambda: s.MultiStepLR(0.1, []), lambda t, o: t.MultiStepLR(o, [])),
    Case('MultiStepLR-0', lambda: s.MultiStepLR(0.1, [0, 9]), lambda t, o: t.MultiStepLR(o, [0, 9])),
    Case('ExponentialLR', lambda: s.ExponentialLR(0.1, 0.9), lambda t, o: t.ExponentialLR(o, 0.9)),
    Case('LinearLR', lambda: s.LinearLR(0.1, 0.2, 0.9, 13), lambda t, o: t.LinearLR(o, 0.2, 0.9, 13)),
    Case('LinearLR-down', lambda: s.LinearLR(0.1, 1.0, 0.0, 49), lambda t, o: t.LinearLR(o, 1.0, 0.0, 49)),
    Case('PolynomialLR-1', lambda: s.PolynomialLR(0.1, 49), lambda t, o: t.PolynomialLR(o, 49)),
    Case('PolynomialLR-2', lambda: s.PolynomialLR(0.1, 50, 2.0), lambda t, o: t.PolynomialLR(o, 50, 2.0)),
    Case('PolynomialLR-0.5', lambda: s.PolynomialLR(0.1, 49, 0.5), lambda t, o: t.PolynomialLR(o, 49, 0.5)),
    Case('PolynomialLR-0', lambda: s.PolynomialLR(0.1, 9, 0.0), lambda t, o: t.PolynomialLR(o, 9, 0.0)),
    Case('LambdaLR', lambda: s.LambdaLR(0.1, half), lambda t, o: t.LambdaLR(o, half)),
    Case(
        'LambdaLR-groups',
        lambda: s.LambdaLR(0.1, [half, shrink]),
        lambda t, o: t.LambdaLR(o, [half, shrink]),
        base=(0.1, 0.1),
    ),
    Case('MultiplicativeLR', lambda: s.MultiplicativeLR(0.1, shrink), lambda t, o: t.MultiplicativeLR(o, shrink)),
    Case(
        'MultiplicativeLR-groups',
        lambda: s.MultiplicativeLR([0.1, 0.2], [lambda epoch: 0.95, shrink]),
        lambda t, o: t.MultiplicativeLR(o, [lambda epoch: 0.95, shrink]),
        base=(0.1, 0.2),
    ),
    Case(
        'SWALR',
        lambda: s.SWALR([0.1, 0.3], 0.02, 15),
        lambda t, o: torch_swalr(o, 0.02, 15),
        base=(0.1, 0.3),
        holds_from=15,
    ),
    Case(
        'SWALR-linear',
        lambda: s.SWALR(0.1, 0.5, 7, 'linear'),
        lambda t, o: torch_swalr(o, 0.5, 7, 'linear'),
        holds_from=7,
    ),
    Case('SWALR-0', lambda: s.SWALR(0.1, 0.5, 0), lambda t, o: torch_swalr(o, 0.5, 0), holds_from=0),
    Case(
        'CosineAnnealingLR',
        lambda: s.CosineAnnealingLR(0.1, 40, 0.01),
        lambda t, o: t.CosineAnnealingLR(o, 40, 0.01),
        holds_from=40,
    ),
    Case(
        'CosineAnnealingLR-periodic',
        lambda: s.CosineAnnealingLR([0.1, 0.3], 17, periodic=True),
        lambda t, o: t.CosineAnnealingLR(o, 17),
        base=(0.1, 0.3),
    ),
    *(
        Case(
            f'CosineAnnealingWarmRestarts-{length}-{mult}',
            lambda length=length, mult=mult: s.CosineAnnealingWarmRestarts(0.1, length, mult, 0.01),
            lambda t, o, length=length, mult=mult: t.CosineAnnealingWarmRestarts(o, length, mult, 0.01),
        )
        for length in (1, 7)
        for mult in (1, 2, 3)
    ),
    Case(
        'CosineAnnealingWarmRestarts-decay',
        lambda: s.CosineAnnealingWarmRestarts(0.1, 5, eta_min=0.01, decay=0.5),
        formula=lambda e: cosine(e % 5, 5, 0.01 + 0.09 * 0.5 ** (e // 5), 0.01),
    ),
    Case('CyclicLR', lambda: s.CyclicLR(0.1, 0.5, 8), lambda t, o: t.CyclicLR(o, 0.1, 0.5, 8, cycle_momentum=False)),
    Case(
        'CyclicLR-down',
        lambda: s.CyclicLR(0.1, 0.5, 8, 3, cycle_momentum=True, base_momentum=0.7),
        lambda t, o: t.CyclicLR(o, 0.1, 0.5, 8, 3, base_momentum=0.7),
    ),
    Case(
        'CyclicLR-triangular2',
        lambda: s.CyclicLR(0.1, 0.5, 4, 6, 'triangular2', cycle_momentum=True),
        lambda t, o: t.CyclicLR(o, 0.1, 0.5, 4, 6, 'triangular2'),
    ),
    Case(
        'CyclicLR-exp_range',
        lambda: s.CyclicLR(0.1, 0.5, 8, 9, 'exp_range', 0.95, cycle_momentum=True),
        lambda t, o: t.CyclicLR(o, 0.1, 0.5, 8, 9, 'exp_range', 0.95),
    ),
    *(
        Case(
            f'CyclicLR-scale-{mode}',
            lambda mode=mode: s.CyclicLR(0.1, 0.5, 8, scale_fn=damp, scale_mode=mode, cycle_momentum=True),
            lambda t, o, mode=mode: t.CyclicLR(o, 0.1, 0.5, 8, scale_fn=damp, scale_mode=mode),
        )
        for mode in ('cycle', 'iterations')
    ),
    Case(
        'CyclicLR-groups',
        lambda: s.CyclicLR([0.1, 0.1], [0.5, 0.3], 8, cycle_momentum=True, base_momentum=[0.6, 0.7]),
        lambda t, o: t.CyclicLR(o, [0.1, 0.1], [0.5, 0.3], 8, base_momentum=[0.6, 0.7]),
        base=(0.1, 0.1),
    ),
    *(
        Case(
            f'OneCycleLR-{form}-{pct}{"-three" * three}',
            lambda form=form, three=three, pct=pct: s.OneCycleLR(
                0.5, 40, None, None, pct, form, 20.0, 100.0, three_phase=three, cycle_momentum=True
            ),
            lambda t, o, form=form, three=three, pct=pct: t.OneCycleLR(
                o, 0.5, 40, None, None, pct, form, div_factor=20.0, final_div_factor=100.0, three_phase=three
            ),
            holds_from=39,
        )
        for form in ('cos', 'linear')
        for three in (False, True)
        for pct in (0.01, 0.025, 0.3, 0.47)
        if (pct, three) not in ((0.025, False), (0.025, True))
    ),
    Case(
        'OneCycleLR-groups',
        lambda: s.OneCycleLR([0.5, 0.3], epochs=8, steps_per_epoch=5, cycle_momentum=True, base_momentum=[0.6, 0.7]),
        lambda t, o: t.OneCycleLR(o, [0.5, 0.3], epochs=8, steps_per_epoch=5, base_momentum=[0.6, 0.7]),
        base=(0.1, 0.1),
        holds_from=39,
    ),
    Case(
        'SequentialLR',
        lambda: s.SequentialLR([s.ConstantLR(0.1, 1.0, 0), s.ExponentialLR(0.1, 0.5)], [3]),
        lambda t, o: sequential(t, o, [t.ConstantLR(o, 1.0, 0), t.ExponentialLR(o, 0.5)], [3]),
    ),
    Case(
        'SequentialLR-3',
        lambda: s.SequentialLR(
            [s.LinearLR([0.1, 0.3], 0.25, 1.0, 6), s.StepLR(0.1, 5, 0.5), s.CosineAnnealingLR([0.1, 0.3], 60)], [8, 37]
        ),
        lambda t, o: sequential(
            t, o, [t.LinearLR(o, 0.25, 1.0, 6), t.StepLR(o, 5, 0.5), t.CosineAnnealingLR(o, 60)], [8, 37]
        ),
        base=(0.1, 0.3),
        holds_from=97,
    ),
    Case(
        'SequentialLR-own-rates',
        lambda: s.SequentialLR([s.LinearLR(0.1, 0.5, 1.0, 4), s.StepLR(0.4, 5, 0.5)], [10]),
        formula=lambda e: 0.1 * (0.5 + 0.5 * min(e / 4, 1)) if e < 10 else 0.4 * 0.5 ** ((e - 10) // 5),
    ),
    Case(
        'SequentialLR-nested',
        lambda: s.SequentialLR(
            [
                s.WarmupScheduler(0.1, 5),
                s.SequentialLR([s.ExponentialLR(0.1, 0.9), s.PolynomialLR(0.1, 9, 0.5)], [10]),
            ],
            [5],
        ),
        formula=lambda e: 0.1 * (e / 5 if e < 5 else 0.9 ** (e - 5) if e < 15 else max(1 - (e - 15) / 9, 0) ** 0.5),
    ),
    Case(
        'ChainedScheduler',
        lambda: s.ChainedScheduler([s.ConstantLR(0.1, 0.1, 4), s.ExponentialLR(0.1, 0.9)]),
        lambda t, o: t.ChainedScheduler([t.ConstantLR(o, 0.1, 4), t.ExponentialLR(o, 0.9)]),
    ),
    Case(
        'ChainedScheduler-3',
        lambda: s.ChainedScheduler(
            [s.LinearLR([0.1, 0.3], 0.2, 1.0, 6), s.MultiStepLR(1.0, [5, 9]), s.PolynomialLR(0.1, 50, 2.0)]
        ),
        lambda t, o: t.ChainedScheduler(
            [t.LinearLR(o, 0.2, 1.0, 6), t.MultiStepLR(o, [5, 9]), t.PolynomialLR(o, 50, 2.0)]
        ),
        base=(0.1, 0.3),
    ),
    Case(
        'ChainedScheduler-nested',
        lambda: s.ChainedScheduler(
            [s.StepLR(0.1, 7, 0.5), s.SequentialLR([s.ConstantLR(0.2, 0.5, 9), s.ExponentialLR(0.2, 0.9)], [4])]
        ),
        formula=lambda e: 0.1 * 0.5 ** (e // 7) * (0.5 if e < 4 else 0.9 ** (e - 4)),
    ),
    Case('WarmupScheduler', lambda: s.WarmupScheduler(0.1, 6, 0.02), formula=lambda e: 0.02 + 0.08 * min(e / 6, 1)),
    Case('WarmupScheduler-0', lambda: s.WarmupScheduler(0.1, 0, 0.02), formula=lambda e: 0.1),
    Case(
        'WarmupScheduler-around',
        lambda: s.WarmupScheduler(s.CosineAnnealingLR(0.1, 20), 5),
        formula=lambda e: 0.1 * e / 5 if e < 5 else cosine(e - 5, 20, 0.1),
    ),
    Case(
        'WarmupCosineSchedule',
        lambda: s.WarmupCosineSchedule(0.1, 10, 50, 0.01, 0.02),
        formula=lambda e: 0.01 + 0.09 * e / 10 if e < 10 else cosine(e - 10, 40, 0.1, 0.02),
    ),
    Case('WarmupCosineSchedule-0', lambda: s.WarmupCosineSchedule(0.1, 0, 50), formula=lambda e: cosine(e, 50, 0.1)),
    Case(
        'WarmupStableDecay-linear',
        lambda: s.WarmupStableDecay(0.1, 10, 20, 20, 0.01, 0.02),
        formula=lambda e: stable_decay(e, lambda u: 1 - u),
    ),
    Case(
        'WarmupStableDecay-cosine',
        lambda: s.WarmupStableDecay(0.1, 10, 20, 20, 0.01, 0.02, decay='cosine'),
        formula=lambda e: stable_decay(e, lambda u: cosine(u, 1, 1)),
    ),
    Case(
        'WarmupStableDecay-sqrt',
        lambda: s.WarmupStableDecay(0.1, 10, 20, 20, 0.01, 0.02, decay='sqrt'),
        formula=lambda e: stable_decay(e, lambda u: 1 - math.sqrt(u)),
    ),
    Case(
        'InverseSquareRootLR',
        lambda: s.InverseSquareRootLR(0.1, 16, 0.01),
        formula=lambda e: 0.01 + 0.09 * e / 16 if e < 16 else 0.1 * math.sqrt(16 / e),
    ),
    Case('InverseSquareRootLR-0', lambda: s.InverseSquareRootLR(0.1, 0), formula=lambda e: 0.1 / math.sqrt(max(e, 1))),
    Case('ExponentialDecayLR', lambda: s.ExponentialDecayLR(0.1, 7, 0.9), formula=lambda e: 0.1 * 0.9 ** (e / 7)),
    Case(
        'ExponentialDecayLR-staircase',
        lambda: s.ExponentialDecayLR(0.1, 7, 0.9, 5, True, 0.06),
        formula=lambda e: max(0.1 * 0.9 ** (max(e - 5, 0) // 7), 0.06),
    ),
    Case(
        'ExponentialDecayLR-growth',
        lambda: s.ExponentialDecayLR(0.1, 7, 1.1, end_value=0.3),
        formula=lambda e: min(0.1 * 1.1 ** (e / 7), 0.3),
    ),
    Case(
        'PerUpdate',
        lambda: s.PerUpdate(s.ExponentialLR(0.1, 0.5), 10),
        formula=lambda e: 0.1 * 0.5 ** (e / 10),
    ),
    Case(
        'PiecewiseConstantSchedule',
        lambda: s.PiecewiseConstantSchedule([0.1, 0.2], [5, 30], [0.3, 0.0, 0.7]),
        formula=lambda e: 0.3 if e < 5 else 0.0 if e < 30 else 0.7,
        base=(0.1, 0.2),
    ),
]


def is_distinct(i: int, case: Case) -> bool:
    made_of_others = ('Sequential', 'Chained', 'WarmupScheduler', 'PolynomialLR-0.5', 'WarmupStableDecay-sqrt')
    return case.name.startswith(made_of_others) or type(case.build()) not in {type(c.build()) for c in CASES[:i]}


# One of each class and all that contain others, without cycled momentum so that plain SGD can apply them.
DISTINCT = [
    replace(case, build=lambda: s.OneCycleLR(0.5, 40, None, None, 0.01, 'cos', 20.0, 100.0))
    if case.name.startswith('OneCycleLR')
    else case
    for i, case in enumerate(CASES)
    if is_distinct(i, case)
]


def expected(case: Case, records: Any) -> np.ndarray:
    """Return the rate of each group at each epoch."""
    if case.formula is not None:
        return np.array([[case.formula(epoch) for epoch in range(EPOCHS)]] * len(case.base))
    return np.array(records[f'{case.name}/rates'])


@dataclass(frozen=True)
class Plateau:
    """Options of ReduceLROnPlateau, and whether all metrics are positive."""

    options: tuple[tuple[str, Any], ...]
    positive: bool = False

    @property
    def name(self) -> str:
        return ','.join(f'{k}={v}' for k, v in self.options).replace(' ', '')

    def metrics(self) -> np.ndarray:
        """Return 100 noisy sequences that fall or rise and level off, with a few NaN and repeated values."""
        rng = np.random.default_rng(0)
        trend = np.exp(-np.arange(STEPS) * rng.uniform(0, 0.2, (100, 1))) * rng.choice([-1, 1], (100, 1))
        metrics = (trend + rng.normal(size=(100, STEPS)) * rng.choice([0.0, 0.01, 0.3], (100, 1))).astype(np.float32)
        metrics[:50] = np.round(metrics[:50], 2)
        metrics[rng.random((100, STEPS)) < 0.02] = np.nan
        return (np.abs(metrics) if self.positive else metrics).astype(np.float64)


PLATEAUS = [
    *(
        Plateau((('mode', mode), ('factor', 0.5), ('patience', patience), *more), positive='rel' in more[0])
        for mode in ('min', 'max')
        for patience in (0, 3)
        for more in (
            (('threshold_mode', 'rel'), ('threshold', 0.1)),
            (('threshold_mode', 'abs'), ('threshold', 0.05), ('cooldown', 2)),
            (('threshold_mode', 'rel'), ('cooldown', 5), ('min_lr', 0.03)),
            (('threshold_mode', 'abs'), ('eps', 0.02), ('min_lr', 0.004)),
        )
    ),
    Plateau((('factor', 0.1), ('patience', 0), ('threshold_mode', 'abs'))),
    Plateau((('factor', 0.0), ('patience', 2), ('threshold_mode', 'abs'), ('min_lr', 0.01))),
]
