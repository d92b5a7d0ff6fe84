"""The picture of a training run: the spikes of one image, and the curves of the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = '#3b6fb6', '#e08a1e', '#3a9a6a', '#c8473f', '#8a8a8a'


class Activity(NamedTuple):
    """What happens in the network while it sees one image; time is the first axis."""

    image: np.ndarray
    digit: int
    input_spikes: np.ndarray
    hidden_spikes: np.ndarray
    potentials: np.ndarray  # in mV
    threshold: float
    evidence: np.ndarray


class ShardedRun(NamedTuple):
    """The metrics of a training on several devices, and how many bytes of optimizer state each device held."""

    name: str
    history: Mapping[str, Sequence[float]]
    bytes_by_device: Sequence[int]


def draw(history: Mapping[str, Sequence[float]], activity: Activity, clip: float | None, path: Path) -> None:
    """Draw the spikes of one image above the curves of the training, and save the figure."""
    figure, curves = below_activity(activity)
    n_epochs = len(history['test accuracy'])
    draw_epochs(curves[0], history['loss'], n_epochs, BLUE, 'Loss')
    draw_accuracy(curves[1], history)
    draw_rate(curves[2], history)
    draw_epochs(curves[3], history['norm'], n_epochs, RED, 'Norm of the gradients')
    draw_clip(curves[3], clip)
    for panel in curves:
        panel.set(xlabel='epoch', xlim=(0, n_epochs))
    save(figure, path)


def draw_sharded(runs: Sequence[ShardedRun], activity: Activity, clip: float | None, path: Path) -> None:
    """Draw the spikes of one image above the curves of all runs and their bytes on each device, and save the figure."""
    figure, (loss, correct, norm, memory) = below_activity(activity)
    n_epochs = len(runs[0].history['test accuracy'])
    for run, color, style in zip(runs, (BLUE, ORANGE), ('-', '--'), strict=True):
        test, line = 100 * np.array(run.history['test accuracy']), {'label': run.name, 'linestyle': style}
        draw_epochs(loss, run.history['loss'], n_epochs, color, 'Loss', **line)
        draw_epochs(norm, run.history['norm'], n_epochs, color, 'Norm of the gradients', **line)
        label = f'{run.name}: {test[-1]:.1f}%'
        correct.plot(np.arange(1, n_epochs + 1), test, color=color, linestyle=style, label=label)
    correct.set(title='Correct on test images (%)')
    draw_clip(norm, clip)
    draw_memory(memory, runs)
    for panel, place in ((loss, 'upper right'), (correct, 'lower right'), (norm, 'upper right')):
        panel.set(xlabel='epoch', xlim=(0, n_epochs))
        panel.legend(frameon=False, fontsize=9, loc=place)
    save(figure, path)


def below_activity(activity: Activity) -> tuple[Figure, np.ndarray]:
    """Draw the spikes of one image in the upper half of a figure; return the figure and the four panels below."""
    figure = Figure(figsize=(13, 6.4), layout='constrained')
    top, bottom = figure.subplots(2, 4)
    draw_input(top[0], activity)
    draw_hidden(top[1], activity)
    draw_potential(top[2], activity)
    draw_evidence(top[3], activity)
    for panel in top:
        panel.set(xlabel='time (ms)', xlim=(0, len(activity.evidence)))
    for panel in bottom:
        panel.grid(alpha=0.2)
    return figure, bottom


def save(figure: Figure, path: Path) -> None:
    """Give all panels the same style, and save the figure."""
    for panel in figure.axes:
        panel.spines[['top', 'right']].set_visible(False)
        panel.title.set(fontweight='bold', fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f'saved the picture to {path.resolve()}')


def draw_raster(panel: Axes, spikes: np.ndarray, color: str) -> None:
    """Draw a dot for each spike, with the neurons from top to bottom."""
    time, neuron = np.nonzero(spikes)
    panel.plot(time, neuron, '|', color=color, markersize=150 / max(spikes.shape[1], 30), markeredgewidth=1.1)
    panel.set(ylim=(spikes.shape[1], -1))


def draw_input(panel: Axes, activity: Activity) -> None:
    """Draw the input spikes, and the image that they encode."""
    draw_raster(panel, activity.input_spikes, GREY)
    n_pixels = activity.input_spikes.shape[1]
    panel.set(
        title='Input spikes', ylabel='pixel', ylim=(n_pixels, -0.5 * n_pixels), yticks=[0, n_pixels // 2, n_pixels]
    )
    inset = panel.inset_axes((0.36, 0.7, 0.28, 0.28))
    inset.imshow(activity.image, cmap='gray_r')
    inset.set(xticks=[], yticks=[])


def draw_hidden(panel: Axes, activity: Activity) -> None:
    """Draw the spikes of the recurrent neurons that fire at all, the most active ones at the top."""
    counts = activity.hidden_spikes.sum(axis=0)
    order = np.argsort(-counts, kind='stable')[: (counts > 0).sum()]
    draw_raster(panel, activity.hidden_spikes[:, order], BLUE)
    panel.set(title='Spikes of the recurrent neurons', ylabel=f'the {len(order)} of {len(counts)} neurons that fire')


def draw_potential(panel: Axes, activity: Activity) -> None:
    """Draw the membrane potential of a neuron that fires a few spikes."""
    counts = activity.hidden_spikes.sum(axis=0)
    neuron = int(np.argmin(np.abs(counts - 4)))
    potential, fired = activity.potentials[:, neuron], np.flatnonzero(activity.hidden_spikes[:, neuron])
    panel.plot(potential, color=BLUE, linewidth=1.2)
    panel.plot(fired, potential[fired], 'o', color=ORANGE, markersize=5, label='spike')
    panel.axhline(activity.threshold, color='black', linestyle='--', linewidth=1, label='threshold')
    panel.set(title=f'Membrane potential of neuron {neuron}', ylabel='mV')
    panel.legend(frameon=False, fontsize=9, loc='best')


def draw_evidence(panel: Axes, activity: Activity) -> None:
    """Draw the readout over time, and highlight the digit."""
    for digit, values in enumerate(activity.evidence.T):
        is_shown = digit == activity.digit
        color, width = (GREEN, 2) if is_shown else (GREY, 0.7)
        panel.plot(values, color=color, linewidth=width, label=f'digit {digit}' if is_shown else None)
    panel.set(title='Evidence for each digit', ylabel='readout')
    panel.legend(frameon=False, fontsize=9, loc='upper left')


def draw_epochs(
    panel: Axes, values: Sequence[float], n_epochs: int, color: str, title: str, **line: str | None
) -> None:
    """Draw the mean over each epoch, and the range of all but the largest and smallest tenth of updates."""
    by_epoch = np.reshape(values, (n_epochs, -1))
    middle = np.arange(n_epochs) + 0.5
    low, high = np.quantile(by_epoch, (0.1, 0.9), axis=1)
    panel.fill_between(middle, low, high, color=color, alpha=0.2, linewidth=0)
    panel.semilogy(middle, by_epoch.mean(axis=1), color=color, **line)
    panel.set(title=title)


def draw_accuracy(panel: Axes, history: Mapping[str, Sequence[float]]) -> None:
    """Draw the accuracy in training and on the held-out images."""
    test = 100 * np.array(history['test accuracy'])
    epochs = np.arange(1, len(test) + 1)
    training = 100 * np.reshape(history['accuracy'], (len(test), -1)).mean(axis=1)
    panel.plot(epochs - 0.5, training, color=BLUE, label='training')
    panel.plot(epochs, test, color=ORANGE, label=f'test: {test[-1]:.1f}% at the end')
    panel.set(title='Correct (%)')
    panel.legend(frameon=False, fontsize=9, loc='lower right')


def draw_rate(panel: Axes, history: Mapping[str, Sequence[float]]) -> None:
    """Draw the learning rate of each update."""
    epochs = np.linspace(0, len(history['test accuracy']), len(history['lr']), endpoint=False)
    panel.plot(epochs, history['lr'], color=GREEN)
    panel.set(title='Learning rate')


def draw_clip(panel: Axes, clip: float | None) -> None:
    """Draw the norm to which gradients are clipped."""
    if clip is not None:
        panel.axhline(clip, color='black', linestyle='--', linewidth=1, label=f'clipped to {clip:g}')
        panel.legend(frameon=False, fontsize=9)


def draw_memory(panel: Axes, runs: Sequence[ShardedRun]) -> None:
    """Draw a bar for the optimizer state that each device holds in each run."""
    n_devices = len(runs[0].bytes_by_device)
    width = 0.8 / len(runs)
    for i, (run, color) in enumerate(zip(runs, (BLUE, ORANGE), strict=True)):
        middle = np.arange(n_devices) + (i - (len(runs) - 1) / 2) * width
        label = f'{run.name}: {max(run.bytes_by_device) / 1024:.0f} KiB'
        panel.bar(middle, np.array(run.bytes_by_device) / 1024, width, color=color, label=label)
    panel.set(title='State per device (KiB)', xlabel='device', xticks=range(n_devices)[:: n_devices // 16 + 1])
    panel.set_ylim(0, 1.35 * max(max(run.bytes_by_device) for run in runs) / 1024)  # leave room for the legend
    panel.legend(frameon=False, fontsize=9)
