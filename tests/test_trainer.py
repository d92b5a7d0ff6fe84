"""``braintools.trainer`` with optimizers of this library."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintools_optim as bo

braintools = pytest.importorskip('braintools')
import braintools.trainer as bt  # noqa: E402

pytestmark = pytest.mark.usefixtures('float32')
bo.register_with_braintools()
RATE, EPOCHS, BATCH = 0.05, 4, 8
X = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
Y = (X @ np.array([[1.0], [-2.0], [0.5]], np.float32)).astype(np.float32)


class Regression(bt.LightningModule):
    def __init__(self, optimizer: bo.Optimizer, steps_schedule: bool = True):
        super().__init__()
        brainstate.random.seed(0)
        self.linear = brainstate.nn.Linear(3, 1)
        self.optimizer, self.steps_schedule = optimizer, steps_schedule

    def update(self, x: Any) -> Any:
        return self.linear(x)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        loss = jnp.mean((self(x) - y) ** 2)
        self.log('mse', loss, prog_bar=True)
        return {'loss': loss}

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        x, y = batch
        return {'val_loss': jnp.mean((self(x) - y) ** 2)}

    def configure_optimizers(self) -> Any:
        return (self.optimizer, self.optimizer.lr) if self.steps_schedule else self.optimizer


def loader() -> Any:
    return bt.DataLoader(bt.ArrayDataset(X, Y), batch_size=BATCH, shuffle=False)


def new_optimizer() -> bo.Optimizer:
    return bo.Adam(lr=bo.ExponentialLR(RATE, gamma=0.5), grad_clip_norm=1.0)


def trainer(folder: Path, epochs: int = EPOCHS, **options: Any) -> Any:
    given = {'enable_progress_bar': False, 'enable_checkpointing': False, 'logger': False, **options}
    return bt.Trainer(max_epochs=epochs, default_root_dir=str(folder), **given)


def weights_of(model: Regression) -> dict[str, Any]:
    return jax.tree.map(np.array, model.linear.weight.value)


def by_optax(epochs: int) -> dict[str, Any]:
    weights: Any = jax.tree.map(jnp.asarray, weights_of(Regression(new_optimizer())))
    clip = optax.stateless(lambda g, _: jax.tree.map(lambda x: x * jnp.minimum(1, 1 / (optax.tree.norm(g) + 1e-6)), g))
    batches = len(X) // BATCH
    tx = optax.chain(clip, optax.adam(lambda count: RATE * 0.5 ** (count // batches)))
    state = tx.init(weights)
    loss = lambda w, x, y: jnp.mean((x @ w['weight'] + w['bias'] - y) ** 2)  # noqa: E731
    for t in range(epochs * batches):
        batch = slice(t % batches * BATCH, (t % batches + 1) * BATCH)
        updates, state = tx.update(jax.grad(loss)(weights, X[batch], Y[batch]), state, weights)
        weights = optax.apply_updates(weights, updates)
    return weights


def assert_close(model: Regression, exact: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), weights_of(model), exact)


def test_callbacks_loggers_and_progress_bar_see_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Regression(new_optimizer())
    monitors = [bt.LearningRateMonitor('epoch'), bt.LearningRateMonitor('step')]
    checkpoints = bt.ModelCheckpoint(str(tmp_path), 'model-{epoch}', monitor='val_loss', save_top_k=2)
    logger = bt.CSVLogger(str(tmp_path), version='v')
    fit = trainer(tmp_path, callbacks=[*monitors, checkpoints], logger=logger, enable_progress_bar=True)
    fit.fit(model, loader(), loader())
    assert_close(model, by_optax(EPOCHS))
    rates = RATE * 0.5 ** np.arange(EPOCHS)
    for monitor, exact in zip(monitors, [rates, np.repeat(rates, len(X) // BATCH)], strict=True):
        np.testing.assert_allclose([row['lr-opt0'] for row in monitor.lr_history], exact, rtol=1e-6)
    (file,) = tmp_path.rglob('metrics.csv')
    rows = list(csv.DictReader(file.read_text().splitlines()))
    logged = [float(row['lr-opt0']) for row in rows if row.get('lr-opt0')]
    np.testing.assert_allclose(logged, np.repeat(rates, len(X) // BATCH), rtol=1e-6)
    assert sorted(path.name for path in tmp_path.glob('model-*.ckpt')) == ['model-2.ckpt', 'model-3.ckpt']
    assert 'Epoch 3' in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['ModelCheckpoint', 'CheckpointManager'])
def test_training_resumes_from_a_checkpoint(kind: str, tmp_path: Path) -> None:
    """The moments, the update count and the position of the schedule are restored, not only the weights."""

    def new_model() -> Regression:
        by_count = lambda count: RATE * 0.5 ** (count // (len(X) // BATCH))  # noqa: E731
        return Regression(bo.Adam(by_count, grad_clip_norm=1.0), steps_schedule=False)

    first, half = new_model(), EPOCHS // 2
    fit = trainer(tmp_path, half, callbacks=[bt.ModelCheckpoint(str(tmp_path), 'model-{epoch}')])
    fit.fit(first, loader(), loader())
    if kind == 'ModelCheckpoint':
        path = str(tmp_path / f'model-{half - 1}.ckpt')
    else:
        path = bt.CheckpointManager(str(tmp_path)).save(first, fit.optimizers[0], epoch=half - 1, step=8)
    resumed = new_model()
    trainer(tmp_path, half).fit(resumed, loader(), ckpt_path=path)
    assert_close(resumed, by_optax(EPOCHS))


def test_trainer_accumulates_as_the_optimizer_does(tmp_path: Path) -> None:
    by_trainer = Regression(bo.Adam(bo.ExponentialLR(RATE, gamma=0.5)))
    by_optimizer = Regression(bo.Adam(bo.ExponentialLR(RATE, gamma=0.5), accumulate_steps=2))
    trainer(tmp_path, accumulate_grad_batches=2).fit(by_trainer, loader())
    trainer(tmp_path).fit(by_optimizer, loader())
    for model in (by_trainer, by_optimizer):
        assert model.optimizer.step_count.value == EPOCHS * len(X) // BATCH // 2
    assert_close(by_trainer, weights_of(by_optimizer))


def test_trainer_clips_as_the_optimizer_does(tmp_path: Path) -> None:
    model = Regression(bo.Adam(bo.ExponentialLR(RATE, gamma=0.5)))
    trainer(tmp_path, gradient_clip_val=1.0, gradient_clip_algorithm='norm').fit(model, loader())
    assert_close(model, by_optax(EPOCHS))


def test_frozen_model_trains_nothing(tmp_path: Path) -> None:
    model = Regression(new_optimizer())
    model.freeze()
    before = weights_of(model)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        trainer(tmp_path).fit(model, loader())
    assert [str(w.message).partition(':')[0] for w in warned] == [
        'All parameters are frozen; the optimizer will have nothing to update.',  # braintools' own
        'There are no weights to register',
    ]
    jax.tree.map(np.testing.assert_array_equal, weights_of(model), before)
