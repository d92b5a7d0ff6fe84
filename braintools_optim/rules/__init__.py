"""The optimizers, one file for each family of algorithms."""

from braintools_optim.rules.adafactor import Adafactor
from braintools_optim.rules.adam import Adam, AdamW, RAdam
from braintools_optim.rules.adaptive import SM3, Adadelta, Adagrad
from braintools_optim.rules.averaged import ASGD, MADGRAD
from braintools_optim.rules.layerwise import Fromage, Lamb, Lars, Novograd
from braintools_optim.rules.matrix import SOAP, Muon
from braintools_optim.rules.moments import ADOPT, AdaBelief, Adamax, AdEMAMix, Yogi
from braintools_optim.rules.nesterov import Adan, NAdam, Nadam, NAdamW
from braintools_optim.rules.parameter_free import DAdaptAdamW, DoG, PolyakSGD, Prodigy
from braintools_optim.rules.rmsprop import RMSprop
from braintools_optim.rules.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from braintools_optim.rules.second_order import Sophia
from braintools_optim.rules.sgd import SGD, Momentum, MomentumNesterov
from braintools_optim.rules.sharpness import SAM
from braintools_optim.rules.sign import Lion, Rprop, SignSGD, Signum
from braintools_optim.rules.whole_tree import LBFGS, Lookahead

__all__ = [
    'ADOPT',
    'ASGD',
    'LBFGS',
    'MADGRAD',
    'SAM',
    'SGD',
    'SM3',
    'SOAP',
    'AdEMAMix',
    'AdaBelief',
    'Adadelta',
    'Adafactor',
    'Adagrad',
    'Adam',
    'AdamW',
    'Adamax',
    'Adan',
    'DAdaptAdamW',
    'DoG',
    'Fromage',
    'Lamb',
    'Lars',
    'Lion',
    'Lookahead',
    'Momentum',
    'MomentumNesterov',
    'Muon',
    'NAdam',
    'NAdamW',
    'Nadam',
    'Novograd',
    'PolyakSGD',
    'Prodigy',
    'RAdam',
    'RMSprop',
    'Rprop',
    'ScheduleFreeAdamW',
    'ScheduleFreeSGD',
    'SignSGD',
    'Signum',
    'Sophia',
    'Yogi',
]
