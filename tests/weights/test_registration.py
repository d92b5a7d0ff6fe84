"""Registration of weights, their names, and what belongs to the graph."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from internals import LR_SCHEDULE_PATH, STATE_PATHS, slots_of, update_counts
from models import nested_model

import braintools_optim as bo


@pytest.mark.parametrize(
    'wrong', [{'a': jnp.ones(2)}, jnp.ones(2), None, 'w', {'a': None}, [0.5]], ids=lambda wrong: type(wrong).__name__
)
def test_registration_refuses_what_is_not_a_state(wrong: Any) -> None:
    opt = bo.Adam()
    with pytest.raises(TypeError, match=r'All params values must be brainstate\.State'):
        opt.register_trainable_weights(wrong)
    assert opt.opt_state is None
    assert len(opt.param_states) == 0


def test_registration_errors_name_the_weight_and_change_nothing() -> None:
    opt, w, v = bo.Adam(), brainstate.ParamState(jnp.ones(2)), brainstate.ParamState(jnp.ones(2))
    with pytest.raises(TypeError, match=r'The weight a\.b\.n is int32'):
        opt.register_trainable_weights({'w': w, 'a': {'b': brainstate.ParamState({'n': jnp.arange(2, dtype='int32')})}})
    with pytest.raises(ValueError, match='must be called before update'):
        opt.update({'w': jnp.ones(2)})
    with pytest.raises(ValueError, match='must be called before'):
        opt.add_param_group({'w': w})
    opt.register_trainable_weights({'w': w})
    for error, match, states, options in [
        (ValueError, 'again is registered already, as w', {'again': w}, {}),
        (TypeError, r"Unknown options of a group: \['beta'\]\. Must be among .*'betas'", {'v': v}, {'beta': 0.5}),
        (ValueError, r'Invalid betas\[0\]=2\.0', {'v': v}, {'betas': (2.0, 0.5)}),
    ]:
        with pytest.raises(error, match=match):
            opt.add_param_group(states, **options)
    assert len(opt.param_groups) == len(opt.param_states) == 1
    opt.update({'w': jnp.ones(2)})


def test_deepcopy_is_refused() -> None:
    import copy

    with pytest.raises(TypeError, match='cannot be copied'):
        copy.deepcopy(bo.SGD(0.1))


transform = brainstate.transform


def test_states_are_found_by_the_graph() -> None:
    opt = bo.Adam(bo.StepLR(0.1)).register_trainable_weights(nested_model())
    found = {'.'.join(path) for path in brainstate.graph.states(opt)}
    schedule = {f'{LR_SCHEDULE_PATH}.{name}' for name in ('last_epoch', 'manual')}
    assert found == STATE_PATHS | schedule
    names = ['layers.0.weight.bias', 'layers.0.weight.weight', 'scale']
    assert {slot: list(leaves) for slot, leaves in slots_of(opt).items()} == {
        'exp_avg': names,
        'exp_avg_sq': names,
    }


def test_weights_added_later_start_with_fresh_state() -> None:
    w, late = brainstate.ParamState(jnp.zeros(1)), brainstate.ParamState(jnp.zeros(1))
    opt = bo.Adam(lr=0.1).register_trainable_weights({'w': w})
    for _ in range(3):
        opt.update({'w': jnp.ones(1)})
    held = float(opt.opt_state.value['exp_avg']['w'][0])
    opt.register_trainable_weights({'w': w, 'late': late})
    assert float(opt.opt_state.value['exp_avg']['w'][0]) == held
    opt.update({'w': jnp.ones(1), 'late': jnp.ones(1)})
    np.testing.assert_allclose(late.value, -0.1, rtol=1e-6)  # bias-corrected as a first step
    assert update_counts(opt) == {'w': 4, 'late': 1}
    assert int(opt.step_count.value) == 4


def test_gradients_of_a_brainstate_module() -> None:
    net = brainstate.nn.Sequential(brainstate.nn.Linear(3, 4), brainstate.nn.Linear(4, 2))
    states = net.states(brainstate.ParamState)
    opt = bo.Adam(0.05).register_trainable_weights(states)

    @transform.jit
    def train() -> Any:
        grads, loss = transform.grad(lambda: jnp.sum(net(jnp.ones(3)) ** 2), states, return_value=True)()
        opt.update(grads)
        return loss

    losses = [float(train()) for _ in range(20)]
    assert losses[-1] < 0.2 * losses[0]
    assert len(opt.param_states) == 2
    assert set(opt.param_states.to_pytree_value()['layers']) == {0, 1}


def test_tied_weights_count_once() -> None:
    w = brainstate.ParamState(jnp.array([3.0, 4.0]))
    opt = bo.SGD(1.0, grad_clip_norm=1.0).register_trainable_weights({'a': w, 'b': w})
    opt.update(transform.grad(lambda: jnp.sum(w.value**2) / 2, {'a': w, 'b': w})())
    np.testing.assert_allclose(w.value, [3 - 3 / (5 + 1e-6), 4 - 4 / (5 + 1e-6)], rtol=1e-12)
    assert len(opt.param_states) == 1


def test_changed_shape_is_refused() -> None:
    w = brainstate.ParamState(jnp.ones(3))
    opt = bo.Adam(0.1).register_trainable_weights({'w': w})
    opt.update({'w': jnp.ones(3)})
    w.value = jnp.ones((2, 3))
    with pytest.raises(ValueError, match=r'w: \[3\] is now \[2, 3\]'):
        opt.update({'w': jnp.ones((2, 3))})
    assert opt.opt_state.value['exp_avg']['w'].shape == (3,)


def test_clone_of_the_graph_is_refused() -> None:
    """A clone would update the weights of another model and share its optimizer state."""
    model = {'w': brainstate.ParamState(jnp.ones(2))}
    optimizer = bo.Adam(0.5).register_trainable_weights(model)
    copy = brainstate.graph.clone(optimizer)
    for use in (
        lambda: copy.update({'w': jnp.ones(2)}),
        lambda: copy.minimize(lambda: model['w'].value.sum()),
        lambda: copy.register_trainable_weights(model),
        lambda: copy.freeze('w'),
    ):
        with pytest.raises(ValueError, match=r'cannot be copied: build another one\. Adam is a copy'):
            use()
    optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(model['w'].value, 0.5)


@pytest.mark.parametrize('options', [{}, {'accumulate_steps': 2}, {'average': bo.EMA()}], ids=str)
def test_registering_no_weights_warns_and_updates_change_nothing(options: dict[str, Any]) -> None:
    """A model of which nothing is trained runs through the same loop."""
    optimizer = bo.Adam(0.1, grad_clip_norm=1.0, metrics=True, on_nonfinite='skip', **options)
    with pytest.warns(UserWarning, match='There are no weights to register'):
        optimizer.register_trainable_weights({})
    optimizer.update({})
    brainstate.transform.for_loop(lambda _: optimizer.update({}), jnp.arange(3))
    assert optimizer.step_count.value == 4 // options.get('accumulate_steps', 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert '(none)' in str(optimizer)
    w = brainstate.ParamState(jnp.ones(2))
    optimizer.register_trainable_weights({'w': w})
    for _ in range(options.get('accumulate_steps', 1)):
        optimizer.update({'w': jnp.ones(2)})
    np.testing.assert_allclose(w.value, 0.9, rtol=1e-6)
