"""What goes wrong around a run: full disks, read-only folders, damaged files, a clock that goes back, two processes."""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from tests.faults import bound_by_permissions, largest_file, open_on_full_disk, tmpfs
from tests.runs.test_training import bindings, train, weights
from tf_unravel import cli, files, runs
from tf_unravel.commands import reports
from tf_unravel.data.storage import decoding
from tf_unravel.evaluation import accuracy
from tf_unravel.files import NotWritten
from tf_unravel.runs import logs
from tf_unravel.runs.logs import Logs

GIN_FILES = ("data/image_folder.gin", "backbone/conv4.gin", "learner/feature_clustering.gin")


def training(photographs, run_dir, *more: str) -> list[str]:
    """The arguments that do what `train` does."""
    lines = bindings(photographs, *more)
    return ["train", f"--run_dir={run_dir}", *(f"--gin_file={name}" for name in GIN_FILES),
            *(f"--gin_bindings={line}" for line in lines)]


def evaluating(run_dir, *more: str) -> list[str]:
    return ["evaluate", f"--run_dir={run_dir}", "--heads=ridge", "--tasks=10", "--queries=5", *more]


def refused(arguments: list[str], capsys) -> str:
    """The line with which a command ends with status 1."""
    capsys.readouterr()
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"tf-unravel {arguments[0]}: ")
    return error


def same_weights(one, other) -> None:
    expected, got = weights(one), weights(other)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, got[name])


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("faults") / "whole"
    train(photographs, run_dir)
    return run_dir


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


# Full disks


MORE_FILES = [pytest.param(file, marks=pytest.mark.long) for file in ("best", "results", "config.gin", "environment")]


@pytest.mark.parametrize("file", ["step-00000024", "metrics", *MORE_FILES])
def test_a_disk_that_fills_while_training(photographs, tmp_path, finished, monkeypatch, capsys, file):
    run_dir = tmp_path / "run"
    full = open_on_full_disk(file, room=300)
    with monkeypatch.context() as patch:
        for module in (files, logs):
            patch.setattr(module, "open", full, raising=False)
        error = refused(training(photographs, run_dir), capsys)
    assert file in error and "cannot be written (No space left on device)" in error
    assert not list(run_dir.rglob("*.tmp"))
    if file == "step-00000024":  # the one before is what can be read now
        assert runs.FinishedRun(run_dir, checkpoint="last").step == 12
    assert cli.main(training(photographs, run_dir)) == 0  # after room was made
    same_weights(finished, run_dir)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/1-shot" in line] == [12, 24]


def test_events_that_find_no_room(tmp_path):
    """TensorFlow writes them itself; its error is another one, and speaks of graph nodes."""
    folder = runs.RunFolder(tmp_path)
    said = r"events.out.tfevents\S* cannot be written \(File too large\)|metrics.jsonl cannot be written"
    with largest_file(20000), pytest.raises(NotWritten, match=said) as caught, Logs(folder, 0) as log:
        for step in range(5000):
            log.text("x", "y" * 1000)
            if step % 10 == 0:
                log.scalars(step, {"train/loss": 1.0})
    assert "\n" not in str(caught.value) and "{{" not in str(caught.value)


@pytest.mark.parametrize(("command", "file"), [("evaluate", "results"), ("evaluate", "evaluation"),
                                               ("evaluate", "accuracy_test"),
                                               ("measure", "measurement"), ("measure", "clustering_test"),
                                               ("measure", "lda_test")])
def test_a_disk_that_is_full_when_results_are_written(copy, monkeypatch, capsys, command, file):
    before = (copy / "results.json").read_bytes()
    arguments = evaluating(copy) if command == "evaluate" else ["measure", f"--run_dir={copy}", "--pairs=50"]
    with monkeypatch.context() as patch:
        patch.setattr(files, "open", open_on_full_disk(f".{file}", room=50), raising=False)
        error = refused(arguments, capsys)
    assert f"{file}." in error and "cannot be written (No space left on device): make room" in error
    if file == "results":
        assert (copy / "results.json").read_bytes() == before
    assert not list(copy.rglob("*.tmp"))
    assert cli.main(arguments) == 0
    assert set(json.loads((copy / "results.json").read_text())) > {"training"}


@pytest.mark.long
def test_a_small_disk_that_grows(photographs, tmp_path, finished):
    """No simulation: a tmpfs too small for two checkpoints, for the results, then for the cache; then it grows."""
    disk, environment = tmp_path / "disk", dict(os.environ)

    def run(arguments: list[str], **more: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-m", "tf_unravel.cli", *arguments], capture_output=True, text=True,
                              env={**environment, **more})
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]

    with tmpfs(disk, 60) as resize:
        arguments = training(photographs, disk / "run")
        status, error = run(arguments)
        assert status == 1 and "No space left on device" in error and str(disk / "run") in error
        resize(10000)
        assert run(arguments)[0] == 0
        same_weights(finished, disk / "run")
        filler = disk / "filler"
        with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)
        status, error = run(evaluating(disk / "run"))
        assert status == 1 and "No space left on device" in error
        filler.unlink()
        assert run(evaluating(disk / "run"))[0] == 0
    with tmpfs(disk, 60) as resize:
        arguments, cache = training(photographs, tmp_path / "other"), {"TF_UNRAVEL_CACHE": str(disk / "cache")}
        status, error = run(arguments, **cache)
        assert status == 1 and f"the cache folder {disk / 'cache'} cannot be written (No space left" in error
        assert not [path for path in (disk / "cache").iterdir() if path.is_dir() and "image_files" in path.name]
        resize(10000)
        assert run(arguments, **cache)[0] == 0
        same_weights(finished, tmp_path / "other")


# Folders that cannot be written


@pytest.mark.parametrize("command", ["train", "evaluate", "measure"])
def test_a_read_only_run_folder_is_one_line(photographs, copy, capsys, command):
    arguments = {"train": training(photographs, copy), "evaluate": evaluating(copy),
                 "measure": ["measure", f"--run_dir={copy}"]}[command]
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    for path in (copy, *(path for path in copy.rglob("*") if path.is_dir())):
        path.chmod(0o555)
    (copy / ".lock").chmod(0o444)
    with bound_by_permissions():
        error = refused(arguments, capsys)
    assert f"--run_dir {copy} cannot be written: Permission denied" in error
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_folder_for_tables_that_cannot_be_made_is_refused_first(copy, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(reports.evaluation, "evaluate_heads", None)  # nothing is computed
    error = refused(evaluating(copy, f"--out={tmp_path / 'file' / 'tables'}"), capsys)
    assert f"--out {tmp_path / 'file' / 'tables'} cannot be written: Not a directory" in error


# Damaged files


@pytest.mark.parametrize("file", ["config.gin", "environment.json", "results.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[]", b"{"])
def test_a_damaged_file_of_a_run_is_one_line(copy, capsys, file, content):
    (copy / file).write_bytes(content)
    assert any(word in refused(evaluating(copy), capsys) for word in (file, "does not say", "never trained",
                                                                      "cannot be read"))


@pytest.mark.parametrize(("file", "content", "commands"), [
    ("results.json", {"evaluation": None}, "evaluate measure export"),
    ("results.json", {"evaluation": {"mean": 1}}, "evaluate export"),
    ("results.json", {"evaluation": [1]}, "evaluate export"),
    ("results.json", {"measurement": {"r_fc": 1}}, "measure"),
    ("results.json", {"training": []}, "export"),
    ("environment.json", {"random_split": {"train": 5}}, "evaluate measure"),
    ("environment.json", {"random_split": []}, "evaluate"),
    ("environment.json", {"data": None}, "train evaluate export"),
    ("environment.json", {"model": {}}, "evaluate export"),
    ("environment.json", {"model": None}, "evaluate"),
    ("environment.json", {"starts": None}, "train"),
])  # fmt: skip
def test_json_of_another_kind_is_one_line(photographs, copy, tmp_path, capsys, monkeypatch, file, content, commands):
    found = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**found, **content}))
    monkeypatch.setattr(reports.evaluation, "extract_features", None)  # nothing is computed before
    export = ["export", f"--run_dir={copy}", "--head=ridge", f"--out={tmp_path / 'model'}"]
    for command in commands.split():
        arguments = {"train": training(photographs, copy), "evaluate": evaluating(copy), "export": export,
                     "measure": ["measure", f"--run_dir={copy}"]}[command]
        assert f"{file} is damaged (" in refused(arguments, capsys)
    assert not (tmp_path / "model").exists()


def test_a_measured_row_that_is_none_is_not_exported(copy, tmp_path, capsys):
    assert cli.main(evaluating(copy)) == 0
    found = json.loads((copy / "results.json").read_text())
    found["evaluation"][0]["mean"] = "much"
    (copy / "results.json").write_text(json.dumps(found))
    export = ["export", f"--run_dir={copy}", f"--head={found['evaluation'][0]['head']}", f"--out={tmp_path / 'model'}"]
    assert "results.json is damaged (" in refused(export, capsys) and not (tmp_path / "model").exists()


def test_a_damaged_log_costs_its_damaged_lines_alone(photographs, copy):
    lines = (copy / "metrics.jsonl").read_bytes().splitlines()
    damaged = [lines[0], b"\xff\xfe", b"5", b"[]", b'{"step": "x"}', b'{"stop": 1}', lines[1][:20], *lines[1:]]
    (copy / "metrics.jsonl").write_bytes(b"\n".join(damaged))
    train(photographs, copy)
    assert (copy / "metrics.jsonl").read_bytes().splitlines() == lines


# Two processes


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(photographs, copy, capsys):
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True)"
    other = subprocess.Popen([sys.executable, "-c", f"{hold}; time.sleep(600)", str(copy / ".lock")],
                             stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        assert f"--run_dir {copy}: another process is training in it" in refused(training(photographs, copy), capsys)
        assert cli.main(evaluating(copy)) == 0  # reading is no training
    finally:
        other.kill()
        other.communicate()
    assert cli.main(training(photographs, copy)) == 0


def test_results_of_processes_that_end_together_are_all_kept(copy):
    def put(name: str) -> None:
        for i in range(30):
            runs.RunFolder(copy).update_results(f"{name}{i}", [i])

    threads = [threading.Thread(target=put, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = json.loads((copy / "results.json").read_text())
    assert set(found) == {"training", *(f"{name}{i}" for name in "abc" for i in range(30))}


def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(photographs, copy):
    (copy / "checkpoints" / ".step-00000036.npz.1.tmp").write_bytes(b"half")
    (copy / ".results.json.1.tmp").write_bytes(b"half")
    (copy / ".evaluation.json.1.tmp").write_bytes(b"of a process that evaluates right now")
    train(photographs, copy)
    assert [path.name for path in copy.rglob("*.tmp")] == [".evaluation.json.1.tmp"]


@pytest.mark.long
def test_evaluating_a_folder_that_is_being_trained(photographs, tmp_path):
    """It saves after every step, as fast as it can; every evaluation reads one whole checkpoint."""
    run_dir = tmp_path / "run"
    arguments = training(photographs, run_dir, "run.epochs = 2000", "run.checkpoint_minutes = 0",
                         "Validation.num_tasks = 4", "Validation.projection_every = 0")
    trainer = subprocess.Popen([sys.executable, "-m", "tf_unravel.cli", *arguments], stderr=subprocess.PIPE,
                               text=True)
    try:
        while not (run_dir / "checkpoints" / "best.npz").exists():
            assert trainer.poll() is None
            time.sleep(0.1)
        steps = []
        for i in range(30):
            kind = ("last", "best")[i % 2]
            assert cli.main(evaluating(run_dir, f"--checkpoint={kind}")) == 0
            steps.append(json.loads((run_dir / "results.json").read_text())["evaluation"][-1]["checkpoint_step"])
        assert trainer.poll() is None and len(set(steps)) > 10
    finally:
        trainer.send_signal(signal.SIGTERM)
        trainer.communicate()
    assert {"training", "evaluation"} == set(json.loads((run_dir / "results.json").read_text()))


# Images that change


@pytest.mark.parametrize("moment", ["while they are read", "after they were read"])
def test_images_that_change_under_an_evaluation(photographs, finished, tmp_path, monkeypatch, capsys, moment):
    """While they are read: one line, and nothing of the mixture is kept. After that the cache has them all."""
    pictures, run_dir = shutil.copytree(photographs, tmp_path / "pictures"), shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))
    arguments = evaluating(run_dir, f"--gin_bindings=load.root = '{pictures}'")
    files_of = sorted((pictures / "test").rglob("*.png"))
    module, name = {"while they are read": (decoding, "decode_files"),
                    "after they were read": (accuracy, "extract_features")}[moment]
    original = getattr(module, name)

    def change(*given):
        for path in files_of[:30]:
            shutil.copy(files_of[-1], path)
        if moment == "after they were read":
            files_of[40].unlink()
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, change)
        if moment == "while they are read":
            error = refused(arguments, capsys)
            assert f"files in {pictures / 'test'} were changed while they were read; run the same command" in error
            assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and "image_files" in path.name]
            assert "evaluation" not in json.loads((run_dir / "results.json").read_text())
            return
        assert cli.main(arguments) == 0
    under_change = json.loads((run_dir / "evaluation.json").read_text())
    assert cli.main(evaluating(run_dir)) == 0  # of the images as they were
    assert json.loads((run_dir / "evaluation.json").read_text()) == under_change
    assert cli.main(arguments) == 0  # of those that are there now: another fingerprint, which the numbers carry
    now = json.loads((run_dir / "evaluation.json").read_text())
    assert now[0]["fingerprint"] != under_change[0]["fingerprint"]


# The clock


def test_a_clock_that_goes_back_between_two_starts(photographs, tmp_path, finished, monkeypatch):
    """All that the first start left is then from the future; steps decide what is newest, not times."""
    pictures, run_dir = shutil.copytree(photographs, tmp_path / "pictures"), tmp_path / "run"
    original = runs.training._Loop._log

    def stop(self, values, bar):
        original(self, values, bar)
        if self.progress.step == 17:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(runs.training._Loop, "_log", stop)
        assert train(pictures, run_dir).progress.step == 17
    tomorrow = time.time() + 86400
    for i, path in enumerate([*sorted(pictures.rglob("*")), *sorted(run_dir.rglob("*"), reverse=True)]):
        os.utime(path, (tomorrow + i, tomorrow + i))  # and the oldest checkpoint has the latest time

    class Yesterday(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(tomorrow - 2 * 86400, tz)

    monkeypatch.setattr(runs.folder.datetime, "datetime", Yesterday)
    monkeypatch.setattr(time, "time", lambda: tomorrow - 2 * 86400)
    assert train(pictures, run_dir).progress.step == 24
    same_weights(finished, run_dir)
    starts = json.loads((run_dir / "environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 17] and starts[0]["time"] > starts[1]["time"]
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
