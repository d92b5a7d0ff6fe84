"""Train a recurrent spiking network on handwritten digits, with a scheduled learning rate and clipped gradients.

The 1797 images of scikit-learn's digits (8x8 pixels, nothing to download) become trains of random
spikes, a brighter pixel firing more often. They drive leaky integrate-and-fire neurons that are
connected to each other; a leaky readout adds up the evidence for each digit. RAdam or Adam from
``braintools_optim`` trains it through surrogate gradients: the learning rate rises along a line and
falls along a cosine, and the gradients of all weights together are clipped by their norm.

    pip install 'braintools_optim[examples]'
    python examples/train_spiking_digits.py
    python examples/train_spiking_digits.py --no-clip --lr 0.01 --output without_clipping.png

It prints the accuracy on the third of the images held out, and draws the training to a file.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import brainpy
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from braintools_optim import Adam, CosineAnnealingLR, Optimizer, RAdam, WarmupScheduler
from braintools_optim.clipping import global_norm

MAX_RATE = 400 * u.Hz  # of the spikes of a white pixel
OPTIMIZERS: dict[str, type[Optimizer]] = {'radam': RAdam, 'adam': Adam}

History = dict[str, list[float]]


class SpikingNetwork(brainstate.nn.Module):
    """Pixels to recurrent LIF neurons, by way of synaptic currents, to a leaky readout."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int):
        super().__init__()
        # 0.15 nA through 100 Mohm lift a neuron by 15 mV, from rest to its threshold.
        strength = braintools.init.KaimingNormal(unit=u.nA)
        self.feedforward = brainstate.nn.Linear(n_in, n_hidden, strength, braintools.init.ZeroInit(unit=u.nA))
        self.recurrent = brainstate.nn.Linear(n_hidden, n_hidden, strength, b_init=None)
        self.synapse = brainpy.state.Expon(n_hidden, tau=5 * u.ms, g_initializer=braintools.init.Constant(0 * u.nA))
        self.neurons = brainpy.state.LIF(
            n_hidden,
            R=100 * u.Mohm,
            tau=20 * u.ms,
            V_rest=-65 * u.mV,
            V_reset=-65 * u.mV,
            V_th=-50 * u.mV,
            V_initializer=braintools.init.Constant(-65 * u.mV),
            spk_fun=braintools.surrogate.ReluGrad(),
        )
        self.readout = brainpy.state.LeakyRateReadout(n_hidden, n_out, tau=20 * u.ms)

    def update(self, spikes: jax.Array) -> jax.Array:
        current = self.synapse(self.feedforward(spikes) + self.recurrent(self.neurons.get_spike()))
        return self.readout(self.neurons(current))


def load_images(seed: int) -> list[np.ndarray]:
    """Images of brightness 0 to 1 and their digits: two thirds to train with, one to test."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=1 / 3, stratify=labels, random_state=seed)
    return [split[0].astype(np.float32), split[2], split[1].astype(np.float32), split[3]]


def minibatches(size: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The indices of whole batches in random order; the rest sits this epoch out."""
    yield from rng.permutation(size)[: size - size % batch_size].reshape(-1, batch_size)


def make_forward(network: SpikingNetwork, n_steps: int) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """A function from images and labels to the loss and the accuracy of the network."""

    def forward(images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        probability = images * (MAX_RATE * brainstate.environ.get_dt())
        spikes = brainstate.random.bernoulli(probability, (n_steps, *images.shape)).astype(images.dtype)
        brainstate.nn.init_all_states(network, batch_size=images.shape[0])
        logits = brainstate.transform.for_loop(network, spikes).mean(axis=0)
        loss = braintools.metric.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, jnp.mean(logits.argmax(axis=-1) == labels)

    return forward


def main():
    import time, sys
    brainstate.environ.set(dt=1 * u.ms)
    seed=int(sys.argv[1]); lr=float(sys.argv[2]); H=int(sys.argv[3]); T=int(sys.argv[4]); B=int(sys.argv[5]); E=int(sys.argv[6]); clip=float(sys.argv[7]) if sys.argv[7]!='no' else None
    brainstate.random.seed(seed)
    rng=np.random.default_rng(seed)
    xtr,ytr,xte,yte=load_images(seed)
    net=SpikingNetwork(64,H,10)
    forward=make_forward(net,T)
    weights=net.states(brainstate.ParamState)
    print({k: (jax.tree.map(lambda x:x.shape, v.value)) for k,v in weights.items()})
    total=E*(len(xtr)//B)
    warm=total//10
    opt=RAdam(lr=WarmupScheduler(CosineAnnealingLR(lr,T_max=total-warm),warmup_epochs=warm, warmup_start_lr=lr/warm),grad_clip_norm=clip)
    opt.register_trainable_weights(weights)
    g=brainstate.transform.grad(forward,weights,has_aux=True,return_value=True)
    @brainstate.transform.jit
    def step(x,y):
        grads,loss,acc=g(x,y)
        norm=global_norm(jax.tree.leaves(grads))
        lr=opt.current_lr
        opt.update(grads)
        opt.lr.step()
        return loss,acc,lr,norm
    ev=brainstate.transform.jit(forward)
    # rates
    t=time.time()
    brainstate.nn.init_all_states(net,batch_size=100)
    sp=brainstate.random.bernoulli(xtr[:100]*0.4,(T,100,64)).astype(np.float32)
    rates=brainstate.transform.for_loop(lambda s: (net(s), net.neurons.get_spike())[1], sp)
    print('rate per ms', float(rates.mean()), time.time()-t)
    for e in range(E):
        t=time.time(); r=[]
        for i in minibatches(len(xtr),B,rng):
            r.append([float(v) for v in step(xtr[i],ytr[i])])
        r=np.array(r); t1=time.time()
        te=ev(xte,yte)
        print(e, r.mean(0), 'max',r[:,3].max(),'test',[float(v) for v in te], round(t1-t,2), round(time.time()-t1,2), flush=True)
    brainstate.nn.init_all_states(net,batch_size=100)
    rates=brainstate.transform.for_loop(lambda s: (net(s), net.neurons.get_spike())[1], sp)
    print('rate per ms', float(rates.mean()))
main()
