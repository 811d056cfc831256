"""What `export` does: a run in, a SavedModel and its card out."""

import os
from collections.abc import Sequence
from typing import Any

import gin

from tf_unravel import deployment
from tf_unravel.deployment.card import described
from tf_unravel.runs.config import heads_named, may_adapt
from tf_unravel.runs.reading import FinishedRun
from tf_unravel.runs.records import damaged

_DECODING = ("resize", "crop", "background", "bits")


def export_run(
    run_dir: str | os.PathLike,
    head_name: str,
    out: str | os.PathLike,
    checkpoint: str = "best",
    bindings: Sequence[str] = (),
    support: str | os.PathLike | None = None,
) -> str:
    """Exports a run's backbone under a head.

    Args:
        run_dir: the run's folder.
        head_name: of `heads.by_name`, or "own" for the head that the run was trained for.
        out: the model's folder.
        checkpoint: "best", "last" or "initial".
        bindings: gin bindings that change the run's configuration.
        support: folder of labelled pictures, support/<class>/<picture>, to bake in; None for none.

    Returns:
        What was written, for the user.

    Raises:
        ConfigError: no trained run, or an unknown head.
        ValueError: something else at `out`, pictures that cannot be used.
    """
    run = FinishedRun(run_dir, bindings, checkpoint, may_adapt([head_name]))
    head = heads_named([head_name], run.learner, "--head is")[head_name]
    accuracies = _accuracies(run, head)
    card: dict[str, Any] = {"decoding": _decoding(), "trained": _trained(run, bindings), "accuracies": accuracies}
    baked: dict[str, Any] = {}
    if support is not None:
        height, width, channels = run.backbone.input_shape[1:]
        size = {"input": {"height": height, "width": width, "channels": channels}}
        known = deployment.read_labelled(support, {**card, **size})
        baked = {"support": (known.images, known.labels), "class_names": known.class_names}
    measured = _accuracy_lines(run, accuracies)
    path = deployment.export(run.backbone, head, out, card=card, **baked)
    return "\n".join([f"{path}: {described(head)['settings']}; checkpoint: {run.checkpoint}",
                      *_classes_line(baked), *measured])


def _decoding() -> dict[str, Any]:
    """How the run's pictures became pixels: those to classify should become so too."""
    given = gin.get_bindings("load", resolve_references=False)
    chosen: dict[str, Any] = {"resize": "bilinear", "crop": False, "background": (255, 255, 255), "bits": None}
    chosen |= {name: given[name] for name in _DECODING if name in given}
    return {**chosen, "background": list(chosen["background"])}


def _trained(run: FinishedRun, bindings: Sequence[str]) -> dict[str, Any]:
    """How the weights came about, and on what; without the folder of the images."""
    training = run.folder.training_results()
    return {
        "run": run.folder.name,
        "learner": type(run.learner).__name__,
        "backbone": run.backbone.name,
        "dataset": gin.get_bindings("load", resolve_references=False).get("name", "unknown"),
        "fingerprints": run.folder.data_fingerprints(),
        "num_classes": run.folder.data_facts().num_classes,
        "seed": run.plan.seed,
        "epochs": training.get("epochs", run.plan.epochs),
        "total_steps": training.get("total_steps"),
        "checkpoint": run.checkpoint,
        "checkpoint_step": run.step,
        "config": _without_root(run.folder.read_config().splitlines()),
        "bindings": _without_root(bindings),
    }


def _without_root(lines: Sequence[str]) -> list[str]:
    """gin lines without comments and without the folder of the images, whose value may go on in indented lines."""
    kept, wanted = [], True
    for line in lines:
        wanted = wanted if line.startswith(" ") else not line.startswith("load.root")
        if wanted and line and not line.startswith("#"):
            kept.append(line)
    return kept


def _accuracies(run: FinishedRun, head: Any) -> list[dict[str, Any]]:
    """What `evaluate` measured of this checkpoint under this head, as results.json has it, on classes new to it."""
    said = described(head)
    wanted = {"checkpoint_step": run.step, **{key: said[key] for key in ("settings", "batchnorm", "adaptation")}}
    mine = (row for row in run.folder.evaluations() if all(row.get(key) == value for key, value in wanted.items()))
    return [row for row in mine if not str(row.get("split")).endswith("/train")]


def _classes_line(baked: dict[str, Any]) -> list[str]:
    return [f"classes: {', '.join(map(repr, baked['class_names']))}"] if baked else []


def _accuracy_lines(run: FinishedRun, accuracies: Sequence[dict[str, Any]]) -> list[str]:
    """The card's accuracies, or that there are none.

    Raises:
        ConfigError: results.json has rows that are none.
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
