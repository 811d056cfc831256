"""Two machines, played by two processes on this one: the same weights as one machine, and going on after a kill."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.runs import test_every_learner
from tests.runs.test_training import bindings, weights

pytestmark = pytest.mark.long


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def command(photographs, run_dir, strategy, learner="feature_clustering"):
    files = ("data/image_folder.gin", "backbone/conv4.gin", f"learner/{learner}.gin")
    lines = bindings(photographs, "run.epochs = 4")
    if learner != "feature_clustering":
        lines = [f"load.root = '{photographs}'", *test_every_learner.BINDINGS]
    return [sys.executable, "-m", "tf_unravel.cli", "train", f"--run_dir={run_dir}", f"--strategy={strategy}",
            *(f"--gin_file={name}" for name in files), *(f"--gin_bindings={line}" for line in lines)]


def start_workers(photographs, run_dir, learner="feature_clustering"):
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = []
    for index in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {**os.environ, "TF_CONFIG": json.dumps(cluster), "CUDA_VISIBLE_DEVICES": "-1"}
        workers.append(subprocess.Popen(command(photographs, run_dir, "multi_worker", learner), env=environment,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    return workers


def finish(workers):
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)[-3000:]
    return outputs


def close(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-3, atol=1e-4)


def trained_alone(photographs, run_dir, learner="feature_clustering"):
    subprocess.run(command(photographs, run_dir, "one", learner), check=True, capture_output=True, timeout=300)
    return run_dir


@pytest.fixture(scope="module")
def alone(photographs, tmp_path_factory):
    return trained_alone(photographs, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("learner", ["feature_clustering", *test_every_learner.EACH_KIND])
def test_two_workers_train_what_one_trains(photographs, tmp_path, learner):
    finish(start_workers(photographs, tmp_path / "run", learner))
    close(weights(trained_alone(photographs, tmp_path / "alone", learner)), weights(tmp_path / "run"))
    assert (tmp_path / "run" / "results.json").exists()
    assert not (tmp_path / "run" / "worker-1" / "checkpoints").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_and_a_restart_of_the_job_go_on(photographs, tmp_path, alone, victim):
    run_dir = tmp_path / "run"
    workers = start_workers(photographs, run_dir)
    deadline = time.monotonic() + 200
    while not list((run_dir / "checkpoints").glob("step-*.npz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers[victim].send_signal(signal.SIGKILL)
    for worker in workers:  # the other one notices, or is told by whoever runs the job
        try:
            worker.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.communicate()
    finish(start_workers(photographs, run_dir))
    steps = [start["step"] for start in json.loads((run_dir / "environment.json").read_text())["starts"]]
    assert len(steps) == 2 and steps[1] > 0
    close(weights(alone), weights(run_dir))


def test_without_a_cluster_it_says_what_is_missing(photographs, tmp_path):
    done = subprocess.run(command(photographs, tmp_path / "run", "multi_worker"), capture_output=True, text=True,
                          timeout=120, env={key: value for key, value in os.environ.items() if key != "TF_CONFIG"})
    assert done.returncode == 1
    assert re.search(r"TF_CONFIG.*Received: None", done.stderr)
