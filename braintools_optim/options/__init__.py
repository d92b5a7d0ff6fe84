"""Options: their kinds and ranges, class fields that declare them, and the form in which a step reads them."""

from braintools_optim.options.fields import option
from braintools_optim.options.hyperparameters import Decay, Hyperparameters
from braintools_optim.options.kinds import (
    Argument,
    Betas,
    Choice,
    Count,
    DecayRate,
    Flag,
    Fraction,
    Kind,
    LearningRate,
    MomentumFactor,
    NonNegative,
    Number,
    Numbers,
    Period,
    Positive,
    PositiveFinite,
    Range,
    WeightDecay,
)

__all__ = [
    'Argument',
    'Betas',
    'Choice',
    'Count',
    'Decay',
    'DecayRate',
    'Flag',
    'Fraction',
    'Hyperparameters',
    'Kind',
    'LearningRate',
    'MomentumFactor',
    'NonNegative',
    'Number',
    'Numbers',
    'Period',
    'Positive',
    'PositiveFinite',
    'Range',
    'WeightDecay',
    'option',
]
