"""How far a network's weights travel while it is fine-tuned on a task (Figure 3 of the paper).

    distance of task t = d(theta_t, theta_0),   d(theta, theta_0)^2 = sum_f |theta_f - theta_0f|^2 / |theta_0f|^2

over the filters f, with theta_0 the weights before fine-tuning and theta_t those after it: the filter-normalised
distance of `regularizers.filter_normalized_distance`, of the same weights that weight clustering pulls together
(`learners.Reptile`): every kernel of the backbone and that of the classifier. Biases and BatchNorm's weights are no
filters; a filter that starts at zero has no norm to be measured in and is left out, as are all of a classifier that
starts at zero (a FineTune of its own, without a learner's classifier).

What differs from the paper: nothing that its text says. It does not say whether the classifier counts; here it does,
as in the penalty. Tasks, their support sets and the order of batches are those of `evaluation.evaluate` with the same
seed and queries, so that a distance belongs to an accuracy. The distance depends on the number of steps and on the
rate: compare networks under one head's settings.

Degenerate case: no step, no distance.

| symbol    | name     | shape           |
|-----------|----------|-----------------|
| theta_0   | start    | list of tensors |
| theta_t   | weights  | list of tensors |
| d         | distance | [T]             |
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from tf_unravel.adaptation.fine_tune import FineTune
from tf_unravel.adaptation.inner_loop import Start
from tf_unravel.adaptation.network import Network, Weights
from tf_unravel.analysis.plot_style import COLOURS, HATCHES, LINES, new_figure, plain
from tf_unravel.data.class_images import ClassImages
from tf_unravel.data.sampling.tasks import TaskSampler
from tf_unravel.evaluation import IMAGE_TASKS_PER_BLOCK, task_blocks
from tf_unravel.regularizers import filter_normalized_distance


def distance_travelled(
    backbone: keras.Model,
    head: FineTune,
    split: ClassImages,
    ways: int = 5,
    shots: int = 1,
    num_tasks: int = 1000,
    seed: int = 0,
    queries: int = 15,
) -> np.ndarray:
    """Returns how far the weights travel while `head` fine-tunes the backbone on each task's support set.

    Args:
        backbone: Keras model, images -> [B, D]; it is not changed.
        head: how it is fine-tuned; a learner's own is `learner.own_head()`.
        split: images of classes that the backbone was not trained on.
        ways: classes per task.
        shots: support images per class.
        num_tasks: at least 1.
        seed: the same seed gives the same tasks for every backbone and head, and those of `evaluate`.
        queries: query images per class: they are not looked at, but set aside, as `evaluate` does.

    Returns:
        float64 [num_tasks], in the order of the tasks.

    Raises:
        ValueError: a head that does not adapt the backbone, features in place of a backbone, tasks that the split
            cannot give, weights that are no longer finite.

    Example:
        >>> distances = distance_travelled(learner.backbone, learner.own_head(), test, shots=5)

    Reference: Goldblum et al., "Unraveling Meta-Learning", ICML 2020, section 5.1 and Figure 3.
    """
    if not callable(backbone) or not isinstance(head, FineTune):
        raise ValueError(
            "Weights travel where a FineTune head adapts a model. "
            f"Received: backbone of type {type(backbone).__name__}, head of type {type(head).__name__}."
        )
    if num_tasks < 1:
        raise ValueError(f"There must be a task at least. Received: num_tasks={num_tasks}.")
    sampler = TaskSampler(split, ways, shots, queries, seed)
    travelled = []
    blocks = task_blocks(lambda support, _: split.images[support], sampler, num_tasks, IMAGE_TASKS_PER_BLOCK)
    for first_task, support in blocks:
        labels = tf.tile(sampler.labels[0][None], (len(support), 1))  # [T, S]
        travelled.append(head.adapt_each(backbone, ways, (support, labels), _travelled, first_task).numpy())
    distances = np.concatenate(travelled)[:num_tasks].astype(np.float64)
    if not np.isfinite(distances).all():
        task = int(np.argmin(np.isfinite(distances)))
        raise ValueError(f"Fine-tuning diverged; lower its rate. Received: distance {distances[task]} at task {task}.")
    return distances


def _travelled(network: Network, start: Start, weights: Weights, *task: tf.Tensor) -> tf.Tensor:
    """The distance from the start's weights to the adapted ones, float32 scalar; NaN where weights are not finite."""
    finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(weight)) for weight in weights])
    distance = tf.cast(filter_normalized_distance(weights, start.weights), tf.float32)
    return tf.where(finite, distance, math.nan)  # the distance's root takes a NaN for 0


def draw_distances(distances: Mapping[int, Mapping[str, np.ndarray]], bins: int = 40) -> Figure:
    """Draws histograms of the distances, a panel for each number of shots, one network over the other.

    All of a panel share their bins, which hold the middle 99 % of every network's tasks at least; what lies beyond
    counts into the outermost bin. Medians are marked by lines and named in the legend.

    Args:
        distances: shots -> name of a network -> distances [n] of `distance_travelled`.
        bins: in each panel.

    Returns:
        matplotlib Figure, bound to no window: save it with `figure.savefig(...)`.

    Raises:
        ValueError: nothing to draw, or distances that are not finite.

    Example:
        >>> draw_distances({1: {"Reptile": a, "Weight clustering": b}, 5: {"Reptile": c, "Weight clustering": d}})
    """
    if not distances or not all(distances.values()):
        raise ValueError("There is nothing to draw. Received: no distances.")
    figure = new_figure(4.4 * len(distances) + 0.3, 3.6)
    panels = figure.subplots(1, len(distances), squeeze=False)[0]
    for panel, (shots, networks) in zip(panels, distances.items(), strict=True):
        values = {name: np.asarray(travelled, np.float64) for name, travelled in networks.items()}
        for name, travelled in values.items():
            if travelled.ndim != 1 or not len(travelled) or not np.isfinite(travelled).all():
                raise ValueError(f"Distances are finite numbers [n]. Received: {name} at {shots} shots, {travelled}.")
        low = min(np.quantile(travelled, 0.005) for travelled in values.values())
        high = max(np.quantile(travelled, 0.995) for travelled in values.values())
        margin = 0.02 * (high - low) or 0.01 * high or 1.0
        edges = np.linspace(max(low - margin, 0.0), high + margin, bins + 1)
        for number, (name, travelled) in enumerate(values.items()):
            colour, median = COLOURS[number % len(COLOURS)], np.median(travelled)
            style = {"bins": edges, "weights": np.full(len(travelled), 1 / len(travelled))}
            clipped = np.clip(travelled, edges[0], edges[-1])
            panel.hist(clipped, **style, histtype="stepfilled", facecolor=colour, alpha=0.3, edgecolor="none")
            panel.hist(clipped, **style, histtype="stepfilled", facecolor="none", edgecolor=colour, linewidth=1.3,
                       hatch=HATCHES[number % len(HATCHES)], label=f"{plain(name)} (median {_short(median)})")
        panel.set(title=f"{shots}-shot tasks", xlabel="filter-normalised distance travelled", xlim=edges[[0, -1]])
        top = panel.get_ylim()[1]
        for number, travelled in enumerate(values.values()):
            panel.vlines(float(np.median(travelled)), 0, top, color=COLOURS[number % len(COLOURS)], linewidth=2.2,
                         linestyle=LINES[number % len(LINES)])
        panel.set_ylim(0, top * (1.06 + 0.11 * len(values)))  # room for the legend
        panel.legend(loc="upper center", frameon=False, fontsize="small", ncols=1)
        panel.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        panel.tick_params(labelsize="small")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("tasks")
    return figure


def _short(number: float) -> str:
    """Three digits."""
    digits = 2 - math.floor(math.log10(number)) if number > 0 else 0
    return f"{number:.{max(digits, 0)}f}"
