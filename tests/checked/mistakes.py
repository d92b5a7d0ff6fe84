"""Mistakes: type checkers and the library itself refuse every line below the class."""

import braintools_optim as bo
from braintools_optim.options import Betas

optimizer = bo.Adam()


class Signum(bo.Optimizer):
    """An optimizer whose options are class fields."""

    betas: Betas = (0.9, 0.0)


# mistakes
bo.Adam(weigth_decay=0.1)
bo.Adam(betas=0.9)
bo.Adam(amsgrad='yes')
bo.Adam(grad_clip_over='foo')
bo.Adam(on_nonfinite='drop')
bo.Adam(1e-3, (0.9, 0.999), 1e-8, 0.0, True, 'too many')
bo.AdamW(1e-3, (0.9, 0.999), 1e-8, 0.01, True)
bo.Lamb(amsgrad=True)
bo.AdaBelief(beta1=0.5)
bo.Momentum(nesterov=True)
bo.SAM(rho=0.1)
bo.Lookahead(bo.Adam(), weigth_decay=0.1)
bo.StepLR(stepsize=3)
bo.Schedule()
Signum(beta=0.9)
optimizer.betas = 0.9
optimizer.lr = 'fast'
optimizer.lr.stepp()
optimizer.update()
optimizer.weigth_decay = 0.1
optimizer.register_trainable_weight({})
