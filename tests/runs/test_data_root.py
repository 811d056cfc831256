"""Where the images lie: an argument and a record, not a part of the configuration; the old binding goes on working."""

import json
import logging
import shutil

import pytest

from tests.runs.test_open_runs import FILES, MEANS, begun, draw
from tf_unravel import cli, data, runs
from tf_unravel.runs import config

MORE = ("Episodes.ways = 2", "Episodes.shots = 1", "Episodes.queries = 1", "run.epochs = 1", "conv4.filters = 2",
        "load.image_size = 16", "Validation.every_epochs = 0")  # fmt: skip
LEARNER = [*FILES, "learner/r2d2.gin"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    return [draw(place / str(which), MEANS[which]) for which in (0, 1)]


@pytest.fixture
def run_dir(images, tmp_path):
    return begun(tmp_path / "run", runs.parse(LEARNER, MORE, root=images[0]))


def mean(run: runs.FinishedRun) -> float:
    return float(run.split("test").images.mean())


def opened(run_dir, *bindings: str, data_root=None) -> runs.FinishedRun:
    return runs.FinishedRun(run_dir, bindings, "initial", data_root=data_root)


def as_before(run_dir, root) -> None:
    """Makes a folder look as runs did that had the root in their configuration."""
    environment = json.loads((run_dir / "environment.json").read_text())
    del environment["data_root"]
    (run_dir / "environment.json").write_text(json.dumps(environment))
    text = (run_dir / "config.gin").read_text()
    line = f"load.root = \\\n    {str(root)!r}\n" if len(str(root)) > 60 else f"load.root = {str(root)!r}\n"
    assert "load.name = 'image_folder'\n" in text
    text = text.replace("load.name = 'image_folder'\n", f"load.name = 'image_folder'\n{line}")
    (run_dir / "config.gin").write_text(text)


def warned(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "load.root" in record.getMessage()]


def test_a_new_run_records_the_root_beside_its_configuration(images, run_dir, caplog):
    assert "root" not in (run_dir / "config.gin").read_text()
    assert json.loads((run_dir / "environment.json").read_text())["data_root"] == str(images[0])
    assert mean(opened(run_dir)) == MEANS[0]
    assert not warned(caplog)


@pytest.mark.parametrize("old", [False, True])
def test_what_is_said_now_wins_over_the_record(images, run_dir, old):
    if old:
        as_before(run_dir, images[0])
    assert mean(opened(run_dir)) == MEANS[0]
    assert mean(opened(run_dir, data_root=images[1])) == MEANS[1]
    assert mean(opened(run_dir, f"load.root = '{images[1]}'")) == MEANS[1]
    assert mean(opened(run_dir, f"load.root = '{images[0]}'", data_root=images[1])) == MEANS[1]


def test_images_that_are_not_where_they_were(images, tmp_path):
    moved = shutil.copytree(images[0], tmp_path / "before")
    run_dir = begun(tmp_path / "run", runs.parse(LEARNER, MORE, root=moved))
    moved.rename(tmp_path / "after")
    with pytest.raises(config.ConfigError, match=r"its images were in .*before, which is not .* by --data_root"):
        opened(run_dir).split("test")
    assert mean(opened(run_dir, data_root=tmp_path / "after")) == MEANS[0]
    with pytest.raises(ValueError, match="no folder .*elsewhere"):
        opened(run_dir, data_root=tmp_path / "elsewhere").split("test")


SPELLINGS = ["load.root = '{}'", "load.root='{}'", "tf_unravel.data.load.root = '{}'", "load.root = \\\n    '{}'",
             "load:\n    root = '{}'", "where = '{}'\nload.root = %where",
             "run.dataset = @far/load\nfar/load.root = '{}'",
             "inner = '{}'\nwhere = %inner\nload.root = %where"]  # fmt: skip


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_old_binding_works_in_every_spelling_and_says_what_to_write(images, tmp_path, caplog, spelling, as_file):
    line = spelling.format(images[1])
    (tmp_path / "mine.gin").write_text(line)
    given = ([*LEARNER, str(tmp_path / "mine.gin")], MORE) if as_file else (LEARNER, [*MORE, line])
    configuration = runs.parse(*given)
    assert (configuration.root, configuration.root_given) == (str(images[1]), True)
    assert str(images[1]) not in configuration.text
    assert runs.plan(configuration).dataset(split="test").images.mean() == MEANS[1]
    assert str(images[1]) not in configuration.operative()
    (said,) = warned(caplog)
    assert f"--data_root={images[1]}" in said and caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("given", ["photos", "~/photos", "./photos"])
@pytest.mark.parametrize("way", ["argument", "binding", "macro"])
def test_a_root_is_absolute_wherever_the_command_was_started(tmp_path, monkeypatch, given, way):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = {"binding": [f"load.root = '{given}'"], "macro": [f"where = '{given}'", "load.root = %where"]}.get(way, [])
    configuration = runs.parse(LEARNER, lines, root=given if way == "argument" else None)
    assert configuration.root == str(tmp_path / "photos")


def test_no_root_at_all(images):
    configuration = runs.parse(LEARNER, [*MORE, "load.root = None"])
    assert (configuration.root, configuration.root_given) == (None, False)
    with pytest.raises(ValueError, match="image_folder needs root"):
        runs.plan(configuration).dataset(split="train")


@pytest.mark.parametrize("value", ["3", "['a']", "@Ridge()"])
def test_a_root_that_is_no_text_is_one_line(value):
    with pytest.raises(config.ConfigError, match="load.root, better --data_root, is a folder's name") as caught:
        runs.parse(LEARNER, [f"load.root = {value}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["load.root = %nowhere", "run.dataset = %nothing"])
def test_a_macro_that_is_not_there_is_one_line(line):
    with pytest.raises(config.ConfigError, match="No bindings specified for 'no(where|thing)/gin.macro'") as caught:
        runs.parse(LEARNER, [line])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("way", ["argument", "binding"])
def test_an_empty_root_is_not_the_folder_that_the_command_was_started_in(way):
    given = {"root": ""} if way == "argument" else {"bindings": ["load.root = ''"]}
    with pytest.raises(config.ConfigError, match="--data_root is the folder of the images. Received: ''"):
        runs.parse(LEARNER, **given)


def test_data_that_lie_in_no_folder_refuse_one(tmp_path):
    with pytest.raises(config.ConfigError, match=f"embedded glyphs. Received: {tmp_path}"):
        runs.parse(["gin/run/demo_classical.gin"], root=tmp_path)
    lines = ["run.dataset = @ClassPairs"]  # what takes no root
    with pytest.raises(config.ConfigError, match="run.dataset is @ClassPairs, which takes no root"):
        runs.plan(runs.parse(["gin/run/demo_classical.gin"], lines, root=tmp_path))


def test_the_images_of_two_runs_on_the_command_line(images, tmp_path, capsys, caplog):
    """--data_root of evaluate, measure and export; the old binding is answered once, whatever the number of runs."""
    folders = [begun(tmp_path / f"run{which}", runs.parse(LEARNER, MORE, root=images[which])) for which in (0, 1)]
    both = f"--run_dir={folders[0]},{folders[1]}"
    reading = [both, "--checkpoint=initial", f"--out={tmp_path / 'out'}"]
    tasks = ["evaluate", *reading, "--heads=ridge", "--ways=2", "--shots=1", "--queries=1", "--tasks=2"]

    def fingerprints(*more: str) -> list[str]:
        assert cli.main([*tasks, *more]) == 0, capsys.readouterr().err
        return [row["fingerprint"] for row in json.loads((tmp_path / "out" / "evaluation.json").read_text())]

    own = [data.load("image_folder", "test", root, image_size=16).fingerprint for root in images]
    assert own[0] != own[1]
    assert fingerprints() == own and not warned(caplog)
    assert fingerprints(f"--data_root={images[1]}") == [own[1], own[1]] and not warned(caplog)
    assert fingerprints(f"--gin_bindings=load.root = '{images[1]}'") == [own[1], own[1]]
    assert len(warned(caplog)) == 1
    assert cli.main(["measure", *reading, "--pairs=4", f"--data_root={images[1]}"]) == 0
    rows = json.loads((tmp_path / "out" / "measurement.json").read_text())
    assert [row["fingerprint"] for row in rows] == [own[1], own[1]]
    assert fingerprints() == own  # what was said for one reading is not recorded


def test_a_training_goes_on_with_either_way_to_say_it(images, tmp_path, capsys, monkeypatch):
    """Each start says it another way, or not at all; the record follows the images."""
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    files = [f"--gin_file={name}" for name in (*FILES, "learner/classical.gin")]
    arguments = ["train", *files, f"--run_dir={run_dir}", *(f"--gin_bindings={line}" for line in MORE)]
    old = "--gin_bindings=load.root = '{}'"
    shutil.copytree(images[0], moved)
    began = []
    monkeypatch.setattr(runs.training._Loop, "run", lambda self: began.append(self.splits["train"].fingerprint) or None)
    starts = [("--data_root={}", images[0]), (old, images[0]), ("", images[0]), (old, moved), ("", moved),
              ("--data_root={}", images[0])]  # fmt: skip
    for spelling, root in starts:
        assert cli.main([*arguments, *filter(None, [spelling.format(root)])]) == 0, capsys.readouterr().err
        assert runs.RunFolder(run_dir).data_root() == str(root)
        assert "root" not in (run_dir / "config.gin").read_text() + (run_dir / "operative_config.gin").read_text()
    as_before(run_dir, images[0])
    assert cli.main(arguments) == 0 and runs.RunFolder(run_dir).data_root() == str(images[0])
    assert len(set(began)) == 1 and len(began) == 7
    assert cli.main([*arguments, f"--data_root={images[1]}"]) == 1
    assert "images of the train split have changed" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["argument", "binding"])
def test_the_own_folder_given_once_more_is_no_other_data(images, tmp_path, way):
    """Classes that split otherwise are refused there; not in another folder with other names of classes."""
    own, other = tmp_path / "own", tmp_path / "other"
    for number in range(9):
        shutil.copytree(images[0] / "train" / "train0", own / f"class{number}")
        shutil.copytree(images[0] / "train" / "train0", other / f"other{number}")
    lines = [*MORE, "load.fractions = (0.4, 0.2, 0.4)"]
    run_dir = begun(tmp_path / "run", runs.parse(LEARNER, lines, root=own))

    def split(root):
        given = {"data_root": root} if way == "argument" else {}
        return opened(run_dir, *([] if given else [f"load.root = '{root}'"]), **given).split("test")

    assert split(own).num_classes >= 3
    for folder in list(own.iterdir()):
        folder.rename(own / f"new {folder.name}")
    (tmp_path / "link").symlink_to(own)
    for root in (own, tmp_path / "link"):
        with pytest.raises(config.ConfigError, match="would come to the test split"):
            split(root)
    assert split(other).num_classes >= 3
