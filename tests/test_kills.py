"""SIGKILL at random moments of `train`, `evaluate`, `export` and `paper`, and the same command again until it ends.

A life is a process that runs the command line. It is forked from a server that has imported TensorFlow (as `paper` does
for its own children), so that it does not spend most of its time on starting; the undisturbed runs that all is compared
with are started afresh. Half of the kills come at any moment of a life, half within the first moments after a temporary
file has appeared in a folder that it writes to. A round is a command from its beginning, killed some times, then let
through; there are as many as it takes for the wanted number of kills.
"""

import collections
import dataclasses
import glob
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.runs.test_faults import evaluating, training
from tests.runs.test_training import weights
from tf_unravel import cli, deployment, runs
from tf_unravel.reproduction.jobs import processes
from tf_unravel.runs.checkpoints import Checkpoints

pytestmark = pytest.mark.long
MOST_KILLS_OF_A_ROUND = 5  # then the command is let through, and begins anew
OFTEN = ("run.epochs = 10", "run.checkpoint_minutes = 0", "Validation.every_epochs = 3",
         "Validation.head = @Prototypes()")  # a checkpoint after every step
SCALE = """
Scale.name = 'tiny'
Scale.about = 'two runs of a few steps'
Scale.datasets = {'glyphs': 'mini-ImageNet'}
Scale.networks = {'r2d2': 'conv4-4', 'resnet12': 'none', 'conv4': 'none'}
Scale.runs = {
    'classical@r2d2': ('run/demo_classical.gin', 'conv4.filters = 4'),
    'feature_clustering@r2d2': ('run/demo_feature_clustering.gin', 'conv4.filters = 4'),
}
Scale.bindings = ("load.name = 'glyphs'", "load.images_per_class = 20", "run.epochs = 2",
                  "run.checkpoint_minutes = 0", "Validation.every_epochs = 0")
Scale.tasks = 50
"""


def _live(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """A life: the command line in a process of its own."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    status = cli.main(arguments)
    sys.stdout.flush()
    os._exit(status)


@dataclasses.dataclass
class Killer:
    """Runs a command, killed again and again, until it ends.

    Args:
        name: of the command.
        signs: glob patterns, below the folder of the test, of what is there while something is written.
        arguments: of the command line.
        folder: of the test.
        environment: set for every life.
        files: that a life writes, or the first of them.
        seed: of the moments.
    """

    name: str
    signs: tuple[str, ...]
    arguments: list[str]
    folder: pathlib.Path
    environment: dict[str, str]
    files: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        self.rng, self.length = random.Random(self.seed), 0.0
        self.kills: collections.Counter[str] = collections.Counter()
        self.lives, self.seconds = 0, 0.0

    def round(self, most: int, check: Callable[[], None]) -> None:
        """Kills at most so many lives of the command, and calls `check` after each; the last one ends by itself."""
        began = time.monotonic()
        for _ in range(most):
            if not self._killed():
                break
            check()
        else:
            life = self._start()
            life.join()
            assert life.exitcode == 0, self._log.read_text()[-2000:]
        self.seconds += time.monotonic() - began

    def measure(self) -> None:
        """Takes the time of a whole life."""
        began = time.monotonic()
        life = self._start()
        life.join()
        assert life.exitcode == 0, self._log.read_text()[-2000:]
        self.length = time.monotonic() - began

    @property
    def _log(self) -> pathlib.Path:
        return self.folder / f"{self.name}.log"

    def _start(self):
        self.lives += 1
        life = processes._context().Process(target=_live, args=(self.arguments, self.environment, str(self._log)))
        life.start()
        return life

    def _killed(self) -> bool:
        """Whether a life was killed before it ended."""
        seen = self._temporary()  # what earlier lives left
        life = self._start()
        when = self.rng.choice(("at any moment", "while writing"))
        if when == "at any moment":
            life.join(self.rng.uniform(0.0, self.length))
        else:
            wanted = len(seen) + self.rng.randint(1, self.files)  # of the files that are written, which one
            while len(seen) < wanted and life.exitcode is None:
                time.sleep(0.0002)
                seen |= self._temporary()
            life.join(self.rng.choice((0.0, 0.001, 0.01, 0.3)) * self.rng.random())
        life.kill()
        life.join()
        if life.exitcode == -9:
            self.kills[when] += 1
            return True
        assert life.exitcode == 0, self._log.read_text()[-2000:]
        return False

    def _temporary(self) -> set[str]:
        return {path for sign in self.signs for path in glob.iglob(str(self.folder / sign), recursive=True)}

    def said(self) -> str:
        """The figures."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kills.items()))
        return f"{self.name}: {self.kills.total()} kills ({kinds}), {self.lives} starts, {self.seconds:.0f} s"


def undisturbed(arguments: list[str], **environment: str) -> None:
    """The command in a fresh interpreter, to its end."""
    command = [sys.executable, "-m", "tf_unravel.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr


def check_whole(folder: pathlib.Path) -> None:
    """Every file that has its own name is whole. (Events and the last line of metrics.jsonl are appended to.)"""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.endswith(".tmp") or any(p.name.endswith(".tmp") for p in path.parents):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            Checkpoints._read(path)
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix in (".gin", ".md", ".html", ".csv"):
            assert path.read_text().endswith(("\n", ">"))
        elif path.suffix == ".jsonl":
            lines = path.read_text().splitlines(keepends=True)
            assert all(json.loads(line) for line in lines if line.endswith("\n"))


def tell(capsys, killer: Killer) -> None:
    with capsys.disabled():
        print(f"\n{killer.said()}", flush=True)


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """The folder of a training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("kills")
    undisturbed(training(photographs, folder / "run", *OFTEN), TF_UNRAVEL_CACHE=str(folder / "cache"))
    return folder / "run"


def test_train(photographs, trained, tmp_path, capsys):
    run_dir = tmp_path / "killed" / "run"
    signs = ("killed/run/.*.tmp", "killed/run/checkpoints/.*.tmp", "cache/.*")
    environment = {"TF_UNRAVEL_CACHE": str(tmp_path / "cache")}
    killer = Killer("train", signs, training(photographs, run_dir, *OFTEN), tmp_path, environment, files=12)
    killer.measure()
    while killer.kills.total() < 16:
        for folder in (run_dir.parent, tmp_path / "cache"):  # decoded pictures are made anew too
            shutil.rmtree(folder, ignore_errors=True)
        killer.round(MOST_KILLS_OF_A_ROUND, lambda: check_whole(run_dir))
        check_whole(run_dir)
        expected, got = weights(trained), weights(run_dir)
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(value, got[name])
        assert validations(run_dir) == validations(trained)
        assert not list(run_dir.rglob("*.tmp"))
    tell(capsys, killer)


def validations(run_dir: pathlib.Path) -> tuple:
    """What training found out, without the time that it took."""
    results = runs.RunFolder(run_dir).training_results()
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "val/1-shot" in line]
    return results["validations"], results["best"], results["best_step"], results["step"], lines


def test_evaluate(trained, tmp_path, capsys):
    whole, killed = (shutil.copytree(trained, tmp_path / name / "run") for name in ("whole", "killed"))
    killer = Killer("evaluate", ("killed/run/.*.tmp",), evaluating(killed, "--heads=ridge,fine_tune"), tmp_path, {})
    undisturbed(evaluating(whole, "--heads=ridge,fine_tune"))
    killer.measure()
    files = ("results.json", "evaluation.json")
    before = (trained / "results.json").read_bytes()
    while killer.kills.total() < 14:
        (killed / "results.json").write_bytes(before)
        (killed / "evaluation.json").unlink()
        killer.round(MOST_KILLS_OF_A_ROUND, lambda: check_whole(killed))
        assert [(killed / name).read_bytes() for name in files] == [(whole / name).read_bytes() for name in files]
    tell(capsys, killer)


def test_export(trained, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    asked = images[:4], images[4:], np.array([0, 0, 1, 1, 2], np.int32)
    target = tmp_path / "killed" / "model"
    exporting = ["export", f"--run_dir={trained}"]
    arguments = [*exporting, "--head=ridge", f"--out={target}"]
    killer = Killer("export", ("killed/.model.*.tmp",), arguments, tmp_path, {}, files=1)
    expected = {}
    for head in ("prototypes", "ridge"):
        undisturbed([*exporting, f"--head={head}", f"--out={tmp_path / head}"])
        expected[head] = deployment.Model(tmp_path / head).classify(*asked)
    killer.measure()

    def check() -> None:
        """The old model or the new one: one that answers as it should, under its name or put aside, whole."""
        found = [target, *target.parent.glob(".model.*.old")]
        model = deployment.Model(next(path for path in found if path.exists()))
        np.testing.assert_array_equal(model.classify(*asked), expected[model.card["head"]["name"]])

    while killer.kills.total() < 14:
        shutil.rmtree(target.parent)
        shutil.copytree(tmp_path / "prototypes", target)
        killer.round(MOST_KILLS_OF_A_ROUND, check)
        assert os.listdir(target.parent) == ["model"]
        np.testing.assert_array_equal(deployment.Model(target).classify(*asked), expected["ridge"])
    tell(capsys, killer)


def test_paper(tmp_path, capsys):
    (tmp_path / "tiny.gin").write_text(SCALE)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def arguments(folder):
        return ["paper", "report", "--only=table3", f"--scale={tmp_path / 'tiny.gin'}", f"--run_dir={folder}"]

    signs = ("killed/glyphs/*/seed-0/**/.*.tmp", "killed/report/.*.tmp")
    killer = Killer("paper", signs, arguments(killed), tmp_path, {"TF_UNRAVEL_CACHE": str(tmp_path / "cache")})
    undisturbed(arguments(whole), TF_UNRAVEL_CACHE=str(tmp_path / "cache"))
    killer.measure()
    assert numbers(killed) == numbers(whole) and len(numbers(whole)[0]) == 4
    while killer.kills.total() < 12:
        shutil.rmtree(killed)
        killer.round(MOST_KILLS_OF_A_ROUND, lambda: check_whole(killed))
        check_whole(killed)
        assert numbers(killed) == numbers(whole)
    tell(capsys, killer)


def numbers(folder: pathlib.Path) -> tuple[dict, list[str]]:
    """(the measured values of every file, the numbers of the table) of a report."""
    measured = {str(path.relative_to(folder)): json.loads(path.read_text())["values"]
                for path in sorted(folder.glob("glyphs/*/seed-0/paper/*.json"))}
    table = (folder / "report" / "report.md").read_text().split("\n## Runs")[0]
    return measured, re.findall(r"^\|.*\|$", table, re.MULTILINE)
