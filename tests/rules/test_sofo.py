"""SOFO and SOFOScan."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintools_optim as bo

KEY = jax.random.key(0)


class Affine(brainstate.nn.Module):
    """An affine map with weights in two States."""

    def __init__(self, start: Any):
        super().__init__()
        self.w, self.b = brainstate.ParamState(jnp.asarray(start)), brainstate.ParamState(jnp.zeros(start.shape[1]))

    def __call__(self, x: Any) -> Any:
        return x @ self.w.value + self.b.value


def squared_error(predictions: Any, targets: Any) -> Any:
    return jnp.mean(jnp.sum((predictions - targets) ** 2, axis=-1)) / 2


def cross_entropy(predictions: Any, labels: Any) -> Any:
    return -jnp.mean(jax.nn.log_softmax(predictions)[jnp.arange(len(labels)), labels])


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def problem(loss: str) -> tuple[Affine, Any, Any, Any]:
    rng = np.random.default_rng(0)
    model = Affine(rng.normal(size=(3, 2)))
    x = jnp.asarray(rng.normal(size=(20, 3)))
    if loss == 'ce':
        return model, cross_entropy, x, jnp.asarray(rng.integers(0, 2, 20))
    return model, squared_error, x, jnp.asarray(rng.normal(size=(20, 2)))


@pytest.mark.parametrize('loss', ['mse', 'ce'])
def test_direction_is_the_damped_gauss_newton_direction(loss: str) -> None:
    """With as many tangents as weights the subspace is the whole space."""
    model, loss_fn, x, y = problem(loss)
    weights = model.states(brainstate.ParamState)
    optimizer = bo.SOFO(model, loss_fn, loss=loss, tangent_size=8, damping=1e-9, key=KEY)
    optimizer.register_trainable_weights(weights)
    direction, predictions = optimizer._compute_direction(x, y)
    assert direction.keys() == weights.keys()
    np.testing.assert_allclose(predictions, model(x))

    def loss_of(values: Any) -> Any:
        return loss_fn(x @ values[('w',)] + values[('b',)], y)

    values = {path: state.value for path, state in weights.items()}
    gradient = flat(jax.grad(loss_of)(values))
    hessian = np.block(hessian_blocks(loss_of, values))
    np.testing.assert_allclose(hessian @ flat(direction), gradient, rtol=1e-4, atol=1e-5)


def hessian_blocks(loss_of: Any, values: Any) -> list[list[np.ndarray]]:
    hessian = jax.hessian(loss_of)(values)
    order = sorted(values)
    return [[np.reshape(hessian[a][b], (values[a].size, values[b].size)) for b in order] for a in order]


@pytest.mark.parametrize('loss', ['mse', 'ce'])
@pytest.mark.parametrize('jitted', [False, True])
def test_loss_falls(loss: str, jitted: bool) -> None:
    model, loss_fn, x, y = problem(loss)
    optimizer = bo.SOFO(model, loss_fn, bo.StepLR(0.2, 10), loss, tangent_size=5, momentum=0.5, nesterov=True, key=KEY)
    optimizer.register_trainable_weights(model.states(brainstate.ParamState))
    step = brainstate.transform.jit(optimizer.step) if jitted else optimizer.update
    before = float(loss_fn(model(x), y))
    losses = [float(step(x, y)) for _ in range(15)]
    assert losses[0] == pytest.approx(before)  # the loss before the update
    assert losses[-1] < 0.9 * losses[0]
    assert int(optimizer.step_count.value) == 15


def one_step(**options: Any) -> np.ndarray:
    model, loss_fn, x, y = problem('mse')
    start = flat([model.w.value, model.b.value])
    optimizer = bo.SOFO(model, loss_fn, lr=0.1, tangent_size=4, **{'key': KEY} | options)
    optimizer.register_trainable_weights(model.states(brainstate.ParamState))
    optimizer.step(x, y)
    return flat([model.w.value, model.b.value]) - start


def test_direction_is_clipped_and_decayed() -> None:
    plain = one_step()
    assert np.linalg.norm(one_step(grad_clip_norm=0.01)) == pytest.approx(0.001, rel=1e-5)
    assert np.abs(one_step(grad_clip_value=0.01)).max() == pytest.approx(0.001)
    model = problem('mse')[0]
    start = flat([model.w.value, model.b.value])
    np.testing.assert_allclose(one_step(weight_decay=0.5), plain - 0.1 * 0.5 * start, rtol=1e-12)


def test_tangents_depend_on_the_key_and_the_update_count() -> None:
    np.testing.assert_array_equal(one_step(), one_step())
    assert not np.allclose(one_step(), one_step(key=jax.random.key(1)))
    brainstate.random.seed(0)
    assert not np.allclose(one_step(key=None), one_step(key=None))
    model, loss_fn, x, y = problem('mse')
    optimizer = bo.SOFO(model, loss_fn, 0.0, tangent_size=4, key=KEY)
    optimizer.register_trainable_weights(model.states(brainstate.ParamState))
    first = flat(optimizer._compute_direction(x, y)[0])
    optimizer.step(x, y)
    assert not np.allclose(first, flat(optimizer._compute_direction(x, y)[0]))


def test_degenerate_curvature_gives_a_finite_step() -> None:
    model = Affine(np.zeros((3, 2)))
    optimizer = bo.SOFO(model, squared_error, damping=0.0, tangent_size=4, key=KEY)
    optimizer.register_trainable_weights({'w': model.w})
    optimizer.step(jnp.zeros((5, 3)), jnp.ones((5, 2)))
    assert np.isfinite(model.w.value).all()


class Cell(brainstate.nn.Module):
    """A linear recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.recurrent, self.readout = (brainstate.ParamState(jnp.asarray(rng.normal(size=(2, 2)) / 2)) for _ in '12')

    def __call__(self, state: Any, x: Any) -> Any:
        state = state @ self.recurrent.value + x
        return state, state @ self.readout.value


def test_scan_equals_an_unrolled_network() -> None:
    rng = np.random.default_rng(2)
    inputs, targets = (jnp.asarray(rng.normal(size=(4, 3, 2))) for _ in range(2))
    start = jnp.zeros((3, 2))

    def unrolled(cell: Cell) -> Any:
        def network(sequence: Any) -> Any:
            state, outputs = start, []
            for x in sequence:
                state, output = cell(state, x)
                outputs.append(output)
            return jnp.concatenate(outputs)

        return network

    cells = Cell(), Cell()
    options = {'lr': 0.05, 'tangent_size': 6, 'key': KEY}
    scanned = bo.SOFOScan(cells[0], squared_error, **options)
    plain = bo.SOFO(unrolled(cells[1]), squared_error, **options)
    for optimizer, cell in zip((scanned, plain), cells, strict=True):
        optimizer.register_trainable_weights(cell.states(brainstate.ParamState))
    for _ in range(5):
        loss = scanned.step(start, (inputs, targets))
        np.testing.assert_allclose(loss, plain.step(inputs, targets.reshape(-1, 2)), rtol=1e-10)
        np.testing.assert_allclose(cells[0].recurrent.value, cells[1].recurrent.value, rtol=1e-8)
    assert scanned.update(start, (inputs, targets)) < squared_error(unrolled(Cell())(inputs), targets.reshape(-1, 2))


def test_groups_and_saved_states() -> None:
    model, loss_fn, x, y = problem('mse')
    built = [bo.SOFO(model, loss_fn, 0.1, tangent_size=4, momentum=0.9, key=KEY) for _ in range(2)]
    for optimizer in built:
        optimizer.register_trainable_weights({'w': model.w})
        optimizer.add_param_group({'b': model.b}, lr=0.0)
    before = model.b.value
    built[0].step(x, y)
    assert (model.b.value == before).all()
    state = built[0].state_dict()
    built[1].load_state_dict(state)
    assert not any('model' in path for path in brainstate.graph.states(built[0]))
    assert int(built[1].step_count.value) == 1


def test_wrong_calls_are_refused() -> None:
    model, loss_fn, x, y = problem('mse')
    optimizer = bo.SOFO(model, loss_fn, loss='bad', key=KEY)
    with pytest.raises(ValueError, match='register_trainable_weights must be called before step'):
        optimizer.step(x, y)
    optimizer.register_trainable_weights(model.states(brainstate.ParamState))
    with pytest.raises(ValueError, match=r"Invalid loss='bad'. Must be one of 'mse', 'ce'."):
        optimizer.step(x, y)
    with pytest.raises(TypeError, match='call step instead of minimize'):
        optimizer.minimize(lambda: 0.0)
    with pytest.raises(TypeError, match='Invalid base_optimizer'):
        bo.SAM(optimizer)
    with pytest.raises(ValueError, match='Invalid loss_scale'):
        bo.SOFO(model, loss_fn, loss_scale=2.0)
    with pytest.raises(ValueError, match='damping of SOFO is fixed'):
        optimizer.damping = 0.1
