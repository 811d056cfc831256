"""The `tf-unravel` command: arguments in, a table and a JSON file out."""

import argparse
import importlib
import importlib.util
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

_TRAIN = """example:
  tf-unravel train --gin_file=gin/run/demo_feature_clustering.gin --run_dir=runs/demo \\
      --gin_bindings="run.epochs = 2"
Running the same command again resumes it."""
_EVALUATE = """example:
  tf-unravel evaluate --run_dir=runs/demo --heads=prototypes,ridge,svm,linear --shots=1,5 --tasks=2000
  tf-unravel evaluate --trained=cifar_fs_r2d2,cifar_fs_classical --data_root=cifar_fs
  tf-unravel evaluate --model=model --data_root=images --calibration --unknown
An exported model is judged under the head that it carries, on all classes of the folder but those that it was
trained on; its card records the accuracies. Beside the table, and in each run's figures/ and TensorBoard:
accuracy_<split>.png, and confusion_<split>.png, the classes that are mixed up most."""
_MEASURE = """example:
  tf-unravel measure --run_dir=runs/a,runs/b --out=runs/compared
  tf-unravel measure --model=model --data_root=images
Beside the table, and in each run's figures/ and TensorBoard: clustering_<split>.png, lda_<split>.png."""
_EXPORT = """example:
  tf-unravel export --run_dir=runs/demo --head=ridge --out=model
  tf-unravel export --backbone=EfficientNetV2B0 --head=ridge --out=model
  tf-unravel export --backbone=features.keras --normalization=127,128 --head=ridge --out=model
With --support=images, a folder images/<class>/<file>, the model is a plain classifier of those classes. The folder is
written as a whole; a model exported there before is replaced."""
_CLASSIFY = """example:
  tf-unravel classify --model=model --support=support --query=queries --figure
support/<class>/<file> are the labelled images, at least one per class. A model is a program: use only one that you
exported or trust."""
_SERVE = """example:
  tf-unravel export --run_dir=runs/demo --head=ridge --out=models/demo/1
  tf-unravel serve --model=models/demo/1
  curl http://127.0.0.1:8501/v1/models/demo
  tf-unravel serve --backbone=EfficientNetV2B0
Its page, http://127.0.0.1:8501/, takes images of your classes and answers others. It speaks the REST protocol of
TensorFlow Serving, and needs pip install 'tf-unravel[serve]'."""
_PAPER = """example:
  tf-unravel paper list
  tf-unravel paper report --scale smoke --run_dir runs/paper-smoke
  tf-unravel paper table3 --scale desk --run_dir runs/paper --root tiny32=path/to/tiny32 --seeds 0,1
  tf-unravel paper plan --scale paper --run_dir runs/paper --format jsonl
  tf-unravel paper pack --scale cifar_fs --run_dir runs/paper --out runs.tar.xz
  tf-unravel paper unpack runs.tar.xz --run_dir runs/unpacked
Running the same command again resumes it. pack writes what the report is made from, of every
finished run of the plan: configuration, results, versions and measurements, without checkpoints and without paths of
the machine. After unpack these runs are done, and `report --no_training` gives the same report. unpack adds only what
is missing: it refuses a finished run that differs, and keeps a training that is not finished."""
_HEADS = "prototypes, ridge, svm, linear, fine_tune"  # `heads.by_name`, whose import takes seconds
_OWN_HEAD = "own (what the run was trained for)"
_BENCHMARK = """example:
  tf-unravel benchmark --only=evaluation"""


def _names(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    if "" in parts or len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"must be names separated by commas, each once. Received: {text!r}")
    return parts


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError:  # not a number
        raise argparse.ArgumentTypeError(f"must be whole numbers separated by commas. Received: {text!r}") from None


def _normalization(text: str) -> tuple[list[float], list[float]]:
    """Means, then deviations, as many of each."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or len(values) % 2:
        raise argparse.ArgumentTypeError(f"must be means, then deviations, such as 127,128. Received: {text!r}")
    half = len(values) // 2
    return values[:half], values[half:]


def _sides(numbers: Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) of one number or two."""
    if numbers is None:
        return None
    if len(numbers) > 2:
        raise ValueError(f"--image_size is pixels of a side, or height,width. Received: {numbers}")
    return numbers[0], numbers[-1]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tf-unravel", description="Few-shot learning: train, measure, understand.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=summary, description=summary, epilog=example, formatter_class=raw)

    _add_train(command("train", "train a run, or resume it", _TRAIN))
    _add_evaluate(command("evaluate", "accuracy of runs on few-shot tasks, every head on the same tasks", _EVALUATE))
    _add_measure(command("measure", "how tightly the features of runs cluster, with an LDA projection", _MEASURE))
    _add_export(command("export", "a run as a SavedModel that needs only TensorFlow", _EXPORT))
    _add_classify(command("classify", "images, with an exported model and a few labelled ones", _CLASSIFY))
    _add_serve(command("serve", "an exported model over HTTP, with a page to try it", _SERVE))
    _add_paper(command("paper", "reproduce the paper: train, measure, and judge its claims", _PAPER))
    _add_benchmark(command("benchmark", "speed on this machine, compared with PyTorch if it is installed", _BENCHMARK))
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    train.add_argument("--gin_file", action="append", default=[], help="a gin file (repeatable); later ones win")
    train.add_argument("--gin_bindings", action="append", default=[], help="a gin line (repeatable); wins over files")
    train.add_argument("--run_dir", required=True, help="the run's folder")
    train.add_argument("--data_root", help="the folder of the images; a run that goes on has recorded it")
    train.add_argument("--strategy", default="one", choices=("one", "mirrored", "multi_worker"),
                       help="one device (default), all of this machine's GPUs, or the machines of TF_CONFIG")


def _add_reading(reading: argparse.ArgumentParser) -> None:
    """What evaluate and measure have in common."""
    which = reading.add_mutually_exclusive_group(required=True)
    which.add_argument("--run_dir", action="append", type=_names,
                       help="one run or several, separated by commas (repeatable)")
    which.add_argument("--model", action="append", type=_names,
                       help="in their place, exported models, on their signatures alone")
    which.add_argument("--trained", action="append", type=_names,
                       help="in their place, trained extractors that come with the package, by name: they are copied "
                            "to --out, as run folders")
    reading.add_argument("--data_root", help="the folder of the images; default: the one that each run has recorded")
    reading.add_argument("--dataset", help="with --model: the dataset in --data_root; default image_folder, images in "
                                           "<class>/<file>")
    reading.add_argument("--image_size", type=_numbers,
                         help="with --model, where a SavedModel has no card: pixels of a side, or height,width")
    reading.add_argument("--gin_bindings", action="append", default=[], help="changes the runs' configuration")
    reading.add_argument("--split", default="test", choices=("train", "val", "test"), help="default: test")
    reading.add_argument("--checkpoint", choices=("best", "last", "initial"),
                         help="of a run: the best by validation (default), the last, or the untrained weights")
    reading.add_argument("--seed", type=int, default=0, help="of the tasks or pairs that are drawn; default 0")
    reading.add_argument("--out", help="a folder for the tables and figures; default: the first run's, trained/ for "
                                       "--trained, evaluation/ for --model")


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    _add_reading(evaluate)
    evaluate.add_argument("--heads", type=_names,
                          help=f"separated by commas, among {_HEADS} (adapts the whole network, from a classifier "
                               f"of zeros) and {_OWN_HEAD}; default: prototypes,ridge,svm,linear")
    evaluate.add_argument("--ways", type=int, default=5, help="classes of a task; default 5")
    evaluate.add_argument("--shots", type=_numbers, default=[1, 5],
                          help="labelled images per class, one number or several; default 1,5")
    evaluate.add_argument("--queries", type=int, default=15, help="per class; default 15")
    evaluate.add_argument("--tasks", type=int, default=2000,
                          help="tasks that the accuracy is a mean over; default 2000")
    evaluate.add_argument("--calibration", action="store_true",
                          help="also: expected calibration error, confidence and accuracy, before and after the "
                               "temperature that the support set gives, and reliability_<split>.png")
    evaluate.add_argument("--unknown", type=float, nargs="?", const=0.05, metavar="RATE",
                          help="also: how well images of other classes are told (AUROC), and the false alarms and "
                               "detections of classify --unknown=RATE; default RATE 0.05")


def _add_measure(measure: argparse.ArgumentParser) -> None:
    _add_reading(measure)
    measure.add_argument("--pairs", type=int, default=10000, help="pairs of classes drawn; default 10000")


def _add_export(export: argparse.ArgumentParser) -> None:
    what = export.add_mutually_exclusive_group(required=True)
    what.add_argument("--run_dir", help="the run's folder")
    what.add_argument("--backbone", help="in its place, " + _A_BACKBONE)
    _add_pretrained(export)
    export.add_argument("--head", required=True, help=f"one of {_HEADS}, or {_OWN_HEAD}")
    export.add_argument("--out", required=True, help="the model's folder")
    export.add_argument("--checkpoint", choices=("best", "last", "initial"),
                        help="of a run: the best by validation (default), the last, or the untrained weights")
    export.add_argument("--data_root", help="the folder of the run's images, as in evaluate; those of its "
                                            "training classes calibrate the model")
    export.add_argument("--gin_bindings", action="append", default=[],
                        help="changes the run's configuration, such as Ridge.l2 = 10.0 (repeatable)")
    export.add_argument("--support", help="a folder of labelled images, <class>/<file>, to build in")


_OF_A_BACKBONE = ("weights", "image_size", "normalization")
_A_BACKBONE = "a pretrained network: a name of keras.applications, such as EfficientNetV2B0, or a .keras file"


def _add_pretrained(command: argparse.ArgumentParser) -> None:
    """The options of --backbone."""
    command.add_argument("--weights",
                         help="of a network by name: imagenet (default; Keras downloads them), a file, or none")
    command.add_argument("--image_size", type=_numbers,
                         help="of --backbone: pixels of a side, or height,width; default 224, of a .keras file its own")
    command.add_argument("--normalization", type=_normalization,
                         help="of a .keras file: the mean and the deviation, in units of 0..255, that its network "
                              "expects pixels to be normalized by, such as 127,128, or one of each per channel, such "
                              "as 124,116,104,58,57,57; default: it takes pixels 0..255")


def _add_classify(classify: argparse.ArgumentParser) -> None:
    classify.add_argument("--model", required=True, help="an exported model's folder")
    classify.add_argument("--support", help="a folder of labelled images, <class>/<file>; none for a model with "
                                            "its classes built in")
    classify.add_argument("--query", required=True, help="a folder of images, searched recursively, or one image")
    classify.add_argument("--unknown", type=float, metavar="RATE",
                          help="answer \"unknown\" for images of none of the classes, at this rate of false alarms, "
                               "such as 0.05")
    classify.add_argument("--out", default="classification", help="a folder for classification.csv and .json; default "
                                                                  "classification")
    classify.add_argument("--figure", action="store_true",
                          help="draw contact_sheet.png, the images beside their nearest labelled ones, and "
                               "confusion.png, which classes are taken for which, of folders named after classes")
    classify.add_argument("--on_corrupt", default="error", choices=("error", "skip"),
                          help="stop at an image that cannot be read (default), or skip it")


def _add_serve(serve: argparse.ArgumentParser) -> None:
    what = serve.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="an exported model's folder")
    what.add_argument("--backbone", help="in its place, for a look at the page, " + _A_BACKBONE)
    serve.add_argument("--head", help=f"of --backbone: one of {_HEADS}; default ridge")
    _add_pretrained(serve)
    serve.add_argument("--host", default="127.0.0.1", help="to listen at; default 127.0.0.1, this machine alone")
    serve.add_argument("--allow_host", action="append", default=[], metavar="NAME",
                       help="a name that requests may be addressed to (repeatable), such as a proxy's; besides "
                            "localhost, --host and this machine's name")
    serve.add_argument("--port", type=int, default=8501, help="port to listen at, 0 for a free one; default 8501")
    serve.add_argument("--max_mib", type=int, default=16, help="largest body of a request, MiB; default 16")


def _add_paper(paper: argparse.ArgumentParser) -> None:
    paper.add_argument("what", nargs="+", metavar="what",
                       help="list; plan; run (what is left, no report); report; pack (the finished runs as one "
                            "archive, --out); unpack FILE; extractors (those of the scale that come with the "
                            "package, --out); or tables and figures by name, such as table3 figure1")
    paper.add_argument("--scale", default="cifar_fs",
                       help="cifar_fs (default), paper, desk, smoke, or a gin file of your own")
    paper.add_argument("--seeds", type=_numbers, help="of the trainings; default: the scale's own")
    paper.add_argument("--run_dir", default="runs/paper", help="where the runs are; default runs/paper")
    paper.add_argument("--root", action="append", default=[], metavar="DATASET=FOLDER",
                       help="where a dataset's images are (repeatable)")
    paper.add_argument("--gin_bindings", action="append", default=[], help="changes every run (repeatable)")
    paper.add_argument("--out", help="a folder for the report; default: report/ in --run_dir. Of `pack`: the archive")
    paper.add_argument("--processes", type=int, default=1, help="jobs that are done side by side; default 1")
    paper.add_argument("--job", help="of `run`: this job of the plan alone")
    paper.add_argument("--only", type=_names, default=[],
                       help="of `plan`, `run`, `report`, `pack`: these exhibits alone")
    paper.add_argument("--format", default="text", choices=("text", "jsonl"), help="of `plan`; default text")
    paper.add_argument("--no_training", action="store_true", help="of `report`: write what is there, run nothing")


def _add_benchmark(benchmark: argparse.ArgumentParser) -> None:
    benchmark.add_argument("--only", type=_names, default=[], help="parts to run; default: all")
    benchmark.add_argument("--out", default="benchmark.json", help="where the figures go; default benchmark.json")
    benchmark.add_argument("--data_root", help="for the part decoding: a folder of images, in <class>/<file>, in place "
                                               "of images that it makes")
    benchmark.add_argument("--model", help="for the part decoding: an exported model, in place of conv4, untrained")


def _train(arguments: argparse.Namespace) -> int:
    from tf_unravel import runs

    recorded = runs.RunFolder(arguments.run_dir).data_root()
    configuration = runs.parse(arguments.gin_file, arguments.gin_bindings, root=arguments.data_root, recorded=recorded)
    plan = runs.plan(configuration)
    plan.use_threads()
    devices = runs.Devices(arguments.strategy)
    outcome = runs.train(plan, runs.RunFolder(arguments.run_dir, devices.worker), configuration, devices)
    print(outcome)
    return 128 + outcome.stopped_by if outcome.stopped_by else 0


def _reading(arguments: argparse.Namespace) -> Any:
    from tf_unravel import commands, runs

    out = arguments.out
    if arguments.trained:
        out = out or "trained"
        run_dirs = runs.copies(_flat(arguments.trained), pathlib.Path(out))
    else:
        run_dirs = _flat(arguments.run_dir)
    return commands.Reading(
        run_dirs, arguments.split, arguments.checkpoint or "best", arguments.gin_bindings, out, arguments.data_root
    )


def _question(arguments: argparse.Namespace) -> Any:
    """What is asked of exported models; options that are for runs alone are refused."""
    from tf_unravel import commands

    refused = {"--gin_bindings": arguments.gin_bindings, "--checkpoint": arguments.checkpoint,
               "--heads": getattr(arguments, "heads", None)}
    for option, value in refused.items():
        if value:
            raise ValueError(f"{option} is for runs; an exported model carries its weights and its head. "
                             f"Received: --model and {option}={value}")
    return commands.Question(
        _flat(arguments.model), arguments.data_root, arguments.dataset or "image_folder", arguments.split,
        _sides(arguments.image_size), arguments.out or "evaluation",
    )


def _check_of_runs(arguments: argparse.Namespace) -> None:
    """Refuses options that are for exported models alone."""
    for option, value in (("--dataset", arguments.dataset), ("--image_size", arguments.image_size)):
        if value is not None:
            raise ValueError(f"{option} is for exported models; a run's is in its configuration. Received: {value}")


def _flat(groups: Sequence[Sequence[str]]) -> list[str]:
    return [name for group in groups for name in group]


def _evaluate(arguments: argparse.Namespace) -> int:
    from tf_unravel import commands

    tasks = commands.Tasks(arguments.ways, arguments.shots, arguments.queries, arguments.tasks, arguments.seed)
    asked = commands.Asked(arguments.calibration, arguments.unknown)
    if arguments.model:
        print(commands.evaluate_models(_question(arguments), tasks, asked))
        return 0
    _check_of_runs(arguments)
    heads = arguments.heads or ["prototypes", "ridge", "svm", "linear"]
    print(commands.evaluate_runs(_reading(arguments), heads, tasks, asked))
    return 0


def _measure(arguments: argparse.Namespace) -> int:
    from tf_unravel import commands

    if arguments.model:
        print(commands.measure_models(_question(arguments), arguments.pairs, arguments.seed))
        return 0
    _check_of_runs(arguments)
    print(commands.measure_runs(_reading(arguments), arguments.pairs, arguments.seed))
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from tf_unravel import commands

    if arguments.backbone:
        _refuse(arguments, ("checkpoint", "data_root"), "--run_dir", "--backbone")
        print(commands.export_backbone(
            arguments.backbone, arguments.head, arguments.out, *_how_pretrained(arguments), arguments.gin_bindings,
            arguments.support,
        ))
    else:
        _refuse(arguments, _OF_A_BACKBONE, "--backbone", "--run_dir")
        chosen = (arguments.checkpoint or "best", arguments.gin_bindings, arguments.support, arguments.data_root)
        print(commands.export_run(arguments.run_dir, arguments.head, arguments.out, *chosen))
    return 0


def _refuse(arguments: argparse.Namespace, options: Sequence[str], theirs: str, given: str) -> None:
    """Raises ValueError for an option of `theirs` where `given` was chosen in its place."""
    for option in options:
        if (value := getattr(arguments, option)) is not None:
            raise ValueError(f"--{option} belongs to {theirs}. Received: {given} and --{option}={value}")


def _classify(arguments: argparse.Namespace) -> int:
    from tf_unravel import deployment

    how = (arguments.support, arguments.out, arguments.figure, arguments.on_corrupt, arguments.unknown)
    print(deployment.classify(arguments.model, arguments.query, *how))
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError("serving needs pip install 'tf-unravel[serve]', in a clone pip install --editable '.[serve]'. "
                         f"Received: no {', '.join(missing)}")
    from tf_unravel.deployment.serving import server

    def ready(addresses: Sequence[str]) -> None:
        what, (here, *network) = arguments.model or arguments.backbone, addresses
        pages = ", from other devices ".join(f"{each.partition('/v1/')[0]}/" for each in (here, *network))
        print(f"Serving {what} at {here}\nThe page: {pages}", flush=True)

    if arguments.model:
        _refuse(arguments, ("head", *_OF_A_BACKBONE), "--backbone", "--model")
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or _pretrained(arguments, pathlib.Path(folder))
        server.serve(model, arguments.host, arguments.port, arguments.max_mib, ready, arguments.allow_host)
    return 0


def _pretrained(arguments: argparse.Namespace, folder: pathlib.Path) -> pathlib.Path:
    """A pretrained network, exported into a folder to be served from there."""
    from tf_unravel import commands

    model = folder / pathlib.Path(arguments.backbone).stem
    commands.export_backbone(
        arguments.backbone, arguments.head or "ridge", model, *_how_pretrained(arguments))
    return model


def _how_pretrained(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """(weights, image size, normalization) of --backbone."""
    weights = None if arguments.weights == "none" else arguments.weights or "imagenet"
    return weights, _sides(arguments.image_size), arguments.normalization


def _paper(arguments: argparse.Namespace) -> int:
    from tf_unravel.reproduction import command

    return command.main(arguments)


def _benchmark(arguments: argparse.Namespace) -> int:
    from tf_unravel.reproduction import benchmark

    print(benchmark.run(arguments.only, arguments.out, data_root=arguments.data_root, model=arguments.model))
    return 0


_COMMANDS = {"train": _train, "evaluate": _evaluate, "measure": _measure, "export": _export, "classify": _classify,
             "serve": _serve, "paper": _paper, "benchmark": _benchmark}


def _import_tensorflow() -> None:
    """Imports TensorFlow without the lines that its C++ side writes before any log level counts.

    Later ones are kept to what is fatal: a missing GPU is reported as an error several times over, and what matters
    raises in Python.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as banner:
        os.dup2(banner.fileno(), 2)
        try:
            # Many runs are many graphs: it warns of functions that are traced again and again.
            importlib.import_module("tensorflow").get_logger().setLevel(logging.ERROR)
            importlib.import_module("tensorboard")
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


class _Once(logging.Filter):
    """Lets each line through once: of several runs, or of many jobs, one says what all would say."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._said
        self._said.add(message)
        return new


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the arguments after the program's name; None for the process's own.

    Returns:
        The exit status: 0, 1 for bad input, 2 for bad arguments, 3 for a training that diverged,
        128 + the number of the signal that stopped it.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    once, of_configurations = _Once(), logging.getLogger("tf_unravel.runs.config")
    of_configurations.addFilter(once)
    try:
        _import_tensorflow()
        return _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print(f"tf-unravel {arguments.command}: interrupted; the same command starts it again", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        # gin appends the call that an error went through; the message before it says all.
        message = str(error).split("In call to configurable")[0]
        print(f"tf-unravel {arguments.command}: {' '.join(message.split())}", file=sys.stderr)
        return 1
    except ArithmeticError as error:
        print(f"tf-unravel {arguments.command}: {error}", file=sys.stderr)
        return 3
    finally:
        of_configurations.removeFilter(once)


if __name__ == "__main__":
    sys.exit(main())
