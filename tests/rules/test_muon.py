"""Muon: its choice of weights, and the AdamW for the others."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
from golden.record import FILE, torch_precision
from helpers import registered
from tables.optimizers import CASES, Case

import braintools_optim as bo

WEIGHTS = {
    'layers.0.weight': np.ones((2, 2)),
    'layers.0.bias': np.ones(2),
    'layer_norm.scale': np.ones((2, 2)),
    'multihead.query': np.ones((2, 2)),
    'embedding.weight': np.ones((2, 2)),
    'token_embed': np.ones((2, 2)),
    'lm_head.weight': np.ones((2, 2)),
    'readout': np.ones((2, 2)),
    'out.w': np.ones((2, 2)),
    'outer.w': np.ones((2, 2)),
    'kernel': np.ones((2, 2, 2)),
    'spectrum': np.ones((2, 2), complex),
    'tau': np.ones(()),
}
HIDDEN = ['layers.0.weight', 'multihead.query', 'outer.w']


def slopes_of(states: dict[str, Any], t: int) -> dict[str, Any]:
    rng = np.random.default_rng(t)
    return {key: jnp.asarray(rng.normal(size=s.value.shape), s.value.dtype) for key, s in states.items()}


def test_muon_updates_hidden_matrices_and_adamw_the_rest() -> None:
    """Each part equals an optimizer of its weights only; the printed groups name the algorithm."""
    options = {'momentum': 0.8, 'weight_decay': 0.3}
    adamw = {'betas': (0.8, 0.9), 'eps': 1e-3, 'weight_decay': 0.2}
    both = bo.Muon(bo.StepLR(0.1, 1, 0.5), **options, adamw_lr=0.02, **{f'adamw_{k}': v for k, v in adamw.items()})
    alone = [bo.Muon(bo.StepLR(0.1, 1, 0.5), **options), bo.AdamW(bo.StepLR(0.02, 1, 0.5), **adamw)]
    mixed = registered(both, **WEIGHTS)
    apart = [
        registered(optimizer, **{key: w for key, w in WEIGHTS.items() if (key in HIDDEN) == (i == 0)})
        for i, optimizer in enumerate(alone)
    ]
    shown = [repr(group) for group in both.param_groups]
    for algorithm, text, states in zip(('Muon', 'AdamW'), shown, apart, strict=True):
        assert text.startswith(f'ParamGroup({algorithm}: ')
        assert all((f' {key},' in text or f' {key};' in text) == (key in states) for key in WEIGHTS)
    saved = None
    for t in range(3):
        slopes = slopes_of(mixed, t)
        both.update(slopes)
        for optimizer, states in zip(alone, apart, strict=True):
            optimizer.update({key: slopes[key] for key in states})
            optimizer.lr.step()
            for key, state in states.items():
                np.testing.assert_allclose(mixed[key].value, state.value, rtol=1e-14, err_msg=key)
        both.lr.step()
        saved = saved or (both.state_dict(), {key: np.array(s.value) for key, s in mixed.items()})
    resumed = bo.Muon(bo.StepLR(0.1, 1, 0.5), **options, adamw_lr=0.02, **{f'adamw_{k}': v for k, v in adamw.items()})
    again = registered(resumed, **saved[1])
    resumed.load_state_dict(saved[0])
    for t in (1, 2):
        resumed.update(slopes_of(again, t))
        resumed.lr.step()
    for key, state in mixed.items():
        np.testing.assert_array_equal(state.value, again[key].value)


def test_weights_for_muon_can_be_chosen() -> None:
    states = {key: brainstate.ParamState(jnp.asarray(w)) for key, w in WEIGHTS.items()}
    first, later = {'readout': states['readout'], 'tau': states['tau']}, states['outer.w']
    optimizer = bo.Muon(muon=lambda name, w: w.ndim == 2).register_trainable_weights(first)
    optimizer.add_param_group({'outer.w': later}, algorithm='adamw', weight_decay=0.5)
    optimizer.add_param_group({'lm_head': states['lm_head.weight']}, momentum=0.1)
    groups = [(g.algorithm, list(g['params']), g['weight_decay'], g.get('momentum')) for g in optimizer.param_groups]
    assert groups == [
        ('Muon', ['readout'], 0.1, 0.95),
        ('AdamW', ['tau'], 0.01, None),
        ('AdamW', ['outer.w'], 0.5, None),
        ('Muon', ['lm_head'], 0.1, 0.1),
    ]
    always = bo.Muon(muon=lambda name, w: True)
    for wrong in ('kernel', 'spectrum', 'layers.0.bias'):
        with pytest.raises(ValueError, match=f'real matrices only.*{wrong}'):
            optimizer.add_param_group({wrong: states[wrong]}, algorithm='muon')
        with pytest.raises(ValueError, match=f'real matrices only.*{wrong}'):
            always.register_trainable_weights({wrong: states[wrong]})
        assert (len(optimizer.param_groups), len(always.param_groups)) == (4, 0)
    for wrong in ('adamw', 'AdamW', 1):
        with pytest.raises(KeyError, match='algorithm'):
            optimizer.param_groups[0]['algorithm'] = wrong
    with pytest.raises(ValueError, match="Invalid algorithm='Adam'"):
        optimizer.add_param_group({'spectrum': states['spectrum']}, algorithm='Adam')
    for fixed in ('ns_steps', 'adamw_betas', 'adamw_eps'):
        with pytest.raises(ValueError, match=f'{fixed} of Muon is fixed'):
            setattr(optimizer, fixed, 3)
    optax_muon = bo.to_optax(bo.Muon())
    with pytest.raises(ValueError, match=r'real matrices only, not weights of the shape \[2\]'):
        optax_muon.update(jnp.ones(2), optax_muon.init(jnp.ones(2)), jnp.ones(2))


def test_muon_in_groups_of_options() -> None:
    names = {
        key: brainstate.ParamState(jnp.asarray(WEIGHTS[key])) for key in ('layers.0.weight', 'layers.0.bias', 'tau')
    }
    optimizer = bo.Muon(0.1, adamw_lr=0.2, groups={'layers.*': {'momentum': 0.5}, 'tau': {'lr': 0.3}}, muon='weight')
    optimizer.register_trainable_weights(names)
    optimizer.freeze('layers.0.bias')
    shown = [(g.algorithm, list(g['params']), float(g['lr']), g.get('momentum')) for g in optimizer.param_groups]
    assert [row for row in shown if row[1]] == [
        ('Muon', ['layers.0.weight'], 0.1, 0.5),
        ('AdamW', ['layers.0.bias'], 0.2, None),
        ('AdamW', ['tau'], 0.3, None),
    ]
    before = {key: np.array(s.value) for key, s in names.items()}
    optimizer.update({key: jnp.ones_like(s.value) for key, s in names.items() if key != 'layers.0.bias'})
    assert [bool((s.value != before[key]).any()) for key, s in names.items()] == [True, False, True]


@pytest.mark.parametrize('options', [{}, {'adjust_lr_fn': 'match_rms_adamw', 'nesterov': False}])
def test_flattened_kernels_equal_torchs_matrices(options: dict[str, Any]) -> None:
    """The kernel of a convolution, outputs last, is updated as the matrix with outputs first that torch is given."""
    torch = pytest.importorskip('torch')
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 2, 4, 5))
    optimizer = bo.Muon(0.02, flatten=True, adamw_lr=3e-4, **options)
    w = registered(optimizer, kernel=kernel, bias=np.ones(5))
    assert [(g.algorithm, list(g['params'])) for g in optimizer.param_groups] == [
        ('Muon', ['kernel']),
        ('AdamW', ['bias']),
    ]
    matrix = torch.nn.Parameter(torch.tensor(np.moveaxis(kernel, -1, 0).reshape(5, -1)))
    theirs = torch.optim.Muon([matrix], lr=0.02, **options)
    with torch_precision('float64', bfloat16=False):
        for _ in range(5):
            slope = rng.normal(size=kernel.shape)
            optimizer.update({'kernel': jnp.asarray(slope), 'bias': jnp.ones(5)})
            matrix.grad = torch.tensor(np.moveaxis(slope, -1, 0).reshape(5, -1))
            theirs.step()
    ours = np.moveaxis(np.asarray(w['kernel'].value), -1, 0).reshape(5, -1)
    np.testing.assert_allclose(ours, matrix.detach().numpy(), rtol=1e-12)
    assert jnp.ndim(registered(bo.Muon(), kernel=kernel)['kernel'].value) == 4
    assert bo.Muon().register_trainable_weights(w).param_groups[0].algorithm == 'AdamW'


def test_muon_warns_if_adamw_would_get_its_learning_rate() -> None:
    weights = {key: brainstate.ParamState(jnp.asarray(WEIGHTS[key])) for key in ('layers.0.weight', 'tau')}
    with pytest.warns(UserWarning, match=r'AdamW updates tau with the lr=0\.02 of Muon.*3e-4') as caught:
        bo.Muon(lr=0.02).register_trainable_weights(weights)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for options in ({'adamw_lr': 0.02}, {'adjust_lr_fn': 'match_rms_adamw'}, {'groups': {'tau': {'lr': 0.02}}}):
            bo.Muon(lr=0.02, **options).register_trainable_weights(weights)
        bo.Muon(lr=1e-3).register_trainable_weights(weights)
        bo.Muon(lr=0.02).register_trainable_weights({'layers.0.weight': weights['layers.0.weight']})


@pytest.mark.parametrize('case', [case for case in CASES if case.row.optimizer is bo.Muon], ids=str)
def test_muon_is_more_exact_than_torchs_bfloat16(case: Case) -> None:
    """torch iterates in bfloat16; the record without that cast is at least ten times as exact."""
    records = np.load(FILE)
    exact = records[case.name][-len(case.comparison.problem.data.weights) :]
    assert records[f'{case.name}/bfloat16'].max() > 10 * exact.max()
