"""Keras on another backend than TensorFlow: one line at import, whichever way the backend was chosen."""

import json
import os
import subprocess
import sys

import pytest

LINE = "ImportError: tf_unravel runs on TensorFlow: set KERAS_BACKEND=tensorflow in the environment before"


def imported(**environment: str) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if not name.startswith("KERAS")} | environment
    return subprocess.run([sys.executable, "-c", "import tf_unravel"], capture_output=True, text=True, env=env)


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy", "openvino"])
def test_another_backend_is_refused_when_the_package_is_imported(backend):
    done = imported(KERAS_BACKEND=backend)
    assert done.returncode and done.stderr.splitlines()[-1].startswith(LINE)
    assert done.stderr.endswith(f"Received: the Keras backend '{backend}'.\n")


def test_a_backend_from_the_configuration_file_counts_unless_the_environment_says_otherwise(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    assert "Received: the Keras backend 'jax'." in imported(KERAS_HOME=str(tmp_path)).stderr
    assert imported(KERAS_HOME=str(tmp_path), KERAS_BACKEND="tensorflow").returncode == 0


@pytest.mark.parametrize("text", ["{", "[]", '{"floatx": "float32"}'])
def test_a_file_that_names_no_backend_is_tensorflow(tmp_path, text):
    (tmp_path / "keras.json").write_text(text)
    assert imported(KERAS_HOME=str(tmp_path)).returncode == 0
