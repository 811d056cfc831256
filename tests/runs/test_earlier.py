"""Run folders and exported models that an earlier version wrote are read as before.

`earlier/<commit>.tar.xz` was written by that commit: three runs on 20 glyphs a class, with conv4 of 4 filters and a few
steps (`train`, then `evaluate --heads=ridge,own --shots=1 --queries=5 --tasks=20`), and one of them exported.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from tf_unravel import cli, data, deployment, runs

ARCHIVES = sorted((pathlib.Path(__file__).parent / "earlier").glob("*.tar.xz"))
SIZES = [f"--gin_bindings={line}" for line in (
    "load.images_per_class=20", "load.name='glyphs'", "run.epochs=1", "conv4.filters=4", "Validation.num_tasks=10",
    "Validation.queries=5",
)]
EPISODES = [f"--gin_bindings={line}" for line in (
    "Episodes.batches_per_epoch=3", "Episodes.tasks=2", "Episodes.queries=3", "Episodes.flip=False",
    "MAML.inner_steps=1", "MAML.evaluation_steps=2",
)]
INNER = [f"--gin_bindings={line}" for line in (
    "InnerBatches.batches_per_epoch=3", "InnerBatches.tasks=2", "inner_steps=2", "Reptile.evaluation_steps=3",
)]
COMMANDS = {
    "feature_clustering": ["demo_feature_clustering", *SIZES],
    "maml": ["tiny32_maml", *SIZES, *EPISODES],
    "reptile": ["tiny32_weight_clustering", *SIZES, *INNER],
}


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def earlier(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_accuracy_is_the_one_recorded_then(earlier, tmp_path):
    run_dirs = [earlier / name for name in COMMANDS]
    recorded = {(name, row["head"]): row["mean"] for name, run_dir in zip(COMMANDS, run_dirs, strict=True)
                for row in runs.RunFolder(run_dir).evaluations()}
    assert len(recorded) == 6
    arguments = ["evaluate", f"--run_dir={','.join(map(str, run_dirs))}", "--heads=ridge,own", "--shots=1",
                 "--queries=5", "--tasks=20", f"--out={tmp_path}"]
    assert cli.main(arguments) == 0
    for row in json.loads((tmp_path / "evaluation.json").read_text()):
        # 500 queries; another processor may round one or two of them to the other side
        assert row["mean"] == pytest.approx(recorded[row["run"], row["head"]], abs=0.005), (row["run"], row["head"])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_goes_on_with_the_run(earlier, name, capsys):
    file, *bindings = COMMANDS[name]
    assert cli.main(["train", f"--gin_file=gin/run/{file}.gin", f"--run_dir={earlier / name}", *bindings]) == 0
    assert "best validation accuracy" in capsys.readouterr().out


def test_an_exported_model_answers(earlier):
    model = deployment.Model(earlier / "model")
    split = data.load("glyphs", "test", images_per_class=20)
    first = [np.flatnonzero(split.class_ids == c)[:6] for c in range(2)]
    support = np.concatenate([split.images[rows[:5]] for rows in first])
    query = np.stack([split.images[rows[5]] for rows in first])
    probabilities = model.classify(query, support, np.repeat([0, 1], 5).astype(np.int32))
    np.testing.assert_allclose(probabilities.sum(axis=1), [1, 1], rtol=1e-5)
