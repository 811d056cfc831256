"""What `export` does: a run or a pretrained network in, a SavedModel and its card out."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tf_unravel import backbones, deployment, heads
from tf_unravel.commands.reliability import prior_of
from tf_unravel.commands.reports import TASKS
from tf_unravel.deployment.card import DECODING
from tf_unravel.evaluation import INDUCTIVE
from tf_unravel.heads import Head, Prior, as_head
from tf_unravel.runs.config import ConfigError, heads_named, may_adapt, parse
from tf_unravel.runs.finished_run import FinishedRun
from tf_unravel.runs.records import damaged
from tf_unravel.runs.registry import known_as


def export_run(
    run_dir: str | os.PathLike,
    head_name: str,
    out: str | os.PathLike,
    checkpoint: str = "best",
    bindings: Sequence[str] = (),
    support: str | os.PathLike | None = None,
    data_root: str | os.PathLike | None = None,
) -> str:
    """Exports a run's backbone under a head.

    Args:
        run_dir: the run's folder.
        head_name: of `heads.by_name`, or "own" for the head that the run was trained for.
        out: the model's folder.
        checkpoint: "best", "last" or "initial".
        bindings: gin bindings that change the run's configuration.
        support: folder of labelled images, support/<class>/<file>, to bake in; None for none.
        data_root: the folder of the run's images; those of its training classes calibrate it.

    Returns:
        What was written, for the user.

    Raises:
        ConfigError: no trained run, or an unknown head.
        ValueError: something else at `out`, images that cannot be used.
    """
    run = FinishedRun(run_dir, bindings, checkpoint, may_adapt([head_name]), data_root)
    head = heads_named([head_name], run.learner, "--head is")[head_name]
    accuracies = _accuracies(run, head)
    card: dict[str, Any] = {"decoding": _decoding(run), "trained": _trained(run), "accuracies": accuracies}
    measured = _accuracy_lines(run, accuracies)
    prior = prior_of(run, {head_name: head})[head_name]
    if prior.similarities:
        card["calibration"] = {"prior_from": "one-shot tasks of the training classes"}
    path, classes = _export(run.backbone, head, out, card, support, prior)
    return "\n".join([f"{path}: {head.settings()}; checkpoint: {run.checkpoint}", *classes, *measured])


def export_backbone(
    name: str,
    head_name: str,
    out: str | os.PathLike,
    weights: str | None = "imagenet",
    image_size: int | tuple[int, int] | None = None,
    normalization: backbones.Normalization | None = None,
    bindings: Sequence[str] = (),
    support: str | os.PathLike | None = None,
) -> str:
    """Exports a pretrained network under a head, without any training.

    Args:
        name, weights, image_size, normalization: see `backbones.pretrained`.
        head_name: of `heads.by_name`.
        out: the model's folder.
        bindings: gin bindings of the head, such as "Ridge.l2 = 10.0".
        support: folder of labelled images, support/<class>/<file>, to build in; None for none.

    Returns:
        What was written, for the user.

    Raises:
        ConfigError: an unknown head.
        ValueError: no such network, something else at `out`, images that cannot be used.
    """
    if head_name not in heads.by_name:
        known = ", ".join(heads.by_name)
        raise ConfigError(f"--head must be one of {known} for a pretrained network. Received: {head_name}")
    head = as_head("--head", parse(bindings=bindings).table.factory(known_as(heads.by_name[head_name]))())
    backbone = backbones.pretrained(name, weights, image_size, normalization)
    its_own = name.endswith(".keras") or name.startswith("hub:")
    trained = {"backbone": os.path.basename(name),
               "weights": "its own" if its_own else weights and os.path.basename(weights)}
    path, classes = _export(backbone, head, out, {"decoding": _listed(DECODING), "trained": trained}, support)
    height, width = backbone.input_shape[1:3]
    return "\n".join([f"{path}: {name}, {height}x{width}, {backbone.output_shape[1]} features; {head.settings()}",
                      *classes])


def _export(
    backbone: keras.Model, head: Head, out: str | os.PathLike, card: Mapping[str, Any],
    support: str | os.PathLike | None, prior: Prior | None = None,
) -> tuple[pathlib.Path, list[str]]:
    """Writes the model; its folder, and the line that names the classes built in."""
    if support is None:
        return deployment.export(backbone, head, out, card=card, prior=prior), []
    height, width, channels = backbone.input_shape[1:]
    known = deployment.read_labelled(
        support, {**card, "input": {"height": height, "width": width, "channels": channels}})
    path = deployment.export(backbone, head, out, card=card, support=(known.images, known.labels),
                             class_names=known.class_names, prior=prior)
    return path, [f"classes: {', '.join(map(repr, known.class_names))}"]


def _decoding(run: FinishedRun) -> dict[str, Any]:
    """How the run's images became pixels: those to classify should become so too."""
    return _listed({name: run.configuration.dataset_setting(name, default) for name, default in DECODING.items()})


def _listed(decoding: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return {**decoding, "background": list(decoding["background"])}


def _trained(run: FinishedRun) -> dict[str, Any]:
    """How the weights came about, and on what; without the folder of the images."""
    training = run.folder.training_results()
    trained_with = parse(text=run.folder.read_config()).statements()
    changed = [each for each in run.configuration.statements() if each not in trained_with]
    return {
        "run": run.folder.name,
        "learner": type(run.learner).__name__,
        "backbone": run.backbone.name,
        "dataset": run.configuration.dataset_setting("name", "unknown"),
        "fingerprints": run.folder.data_fingerprints(),
        "num_classes": run.folder.data_facts().num_classes,
        "random_split": run.folder.random_split(),
        "seed": run.plan.seed,
        "epochs": training.get("epochs", run.plan.epochs),
        "total_steps": training.get("total_steps"),
        "checkpoint": run.checkpoint,
        "checkpoint_step": run.step,
        "config": _lines(trained_with),
        "bindings": _lines(changed),
    }


def _lines(statements: Sequence[str]) -> list[str]:
    return [line for statement in statements for line in statement.splitlines()]


def _accuracies(run: FinishedRun, head: Head) -> list[dict[str, Any]]:
    """What `evaluate` measured of this checkpoint under this head, as results.json has it, on classes new to it."""
    batchnorm, adaptation = head.said_of(run.backbone)
    # Rows of heads on features said INDUCTIVE of networks without BatchNorm too, up to 0.1.
    protocols = {batchnorm} if adaptation else {batchnorm, INDUCTIVE}
    wanted = {"checkpoint_step": run.step, "settings": head.settings(), "adaptation": adaptation}
    mine = (row for row in run.folder.evaluations()
            if row.get("batchnorm") in protocols and all(row.get(key) == value for key, value in wanted.items()))
    # A head that was evaluated by its name and as "own" too has two rows of the same tasks.
    by_tasks = {str([row.get(key) for key in TASKS if key != "head"]): row for row in mine}
    return [row for row in by_tasks.values() if not str(row.get("split")).endswith("/train")]


def _accuracy_lines(run: FinishedRun, accuracies: Sequence[dict[str, Any]]) -> list[str]:
    """The card's accuracies, or that there are none.

    Raises:
        ConfigError: results.json has rows that are not accuracies.
    """
    if not accuracies:
        return ["accuracy: none was measured under this head at this checkpoint; tf-unravel evaluate does it, and a "
                "new export takes it up"]
    several = len({row.get("fingerprint") for row in accuracies}) > 1
    try:
        return [_accuracy_line(row, several) for row in accuracies]
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(run.folder.results, error) from error


def _accuracy_line(row: dict[str, Any], several: bool) -> str:
    """One accuracy; `several` where not all are of the same images."""
    images = f", images {row['fingerprint'][:8]}" if several else ""
    return (
        f"accuracy: {row['ways']}-way {row['shots']}-shot {100 * row['mean']:.2f} ± {100 * row['standard_error']:.2f} "
        f"% (95 %: ± {100 * row['ci95']:.2f}; {row['num_tasks']} tasks of {row['split']}{images}, {row['queries']} "
        f"queries per class, seed {row['seed']}; BatchNorm {row['batchnorm']})"
    )
