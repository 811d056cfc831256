"""Folders of pictures classified: the table and the files, odd folders, damaged pictures, the contact sheet."""

import csv
import io
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from matplotlib.figure import Figure
from PIL import Image

from tests.data.test_hostile_files import png
from tests.deployment.models import network
from tf_unravel import deployment, heads
from tf_unravel.deployment.classifying import classify, contact_sheet
from tf_unravel.deployment.classifying.classification import Answer, Classification


def pictures():
    """[3, 30, 16, 16, 3]: of one colour a class, red, green and blue, with grain: which is which can be told."""
    grain = np.random.default_rng(0).integers(0, 40, (3, 30, 16, 16, 3))
    return (grain + 200 * np.eye(3, dtype=int)[:, None, None, None]).astype(np.uint8)


PICTURES = pictures()


def save(image, path, size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    (picture if size is None else picture.resize(size)).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """model/ (prototypes), photos/ with 1, 2 and 3 pictures a class and of any size, more/ in folders and not."""
    root = tmp_path_factory.mktemp("place")
    deployment.export(network(), heads.Prototypes(), root / "model")
    for label, name in enumerate(("ape", "bee", "cat")):
        for i in range(label + 1):
            save(PICTURES[label, i], root / "photos" / name / f"{i}.png", size=(20 + 9 * i, 31))
        for i in range(3):
            save(PICTURES[label, 20 + i], root / "more" / name / f"{i}.png")
    save(PICTURES[1, 5], root / "more" / "loose" / "deep" / "b.png", size=(64, 48))
    save(PICTURES[2, 5].mean(axis=2).astype(np.uint8), root / "more" / "a.png")
    (root / "more" / "notes.txt").write_text("no picture")
    (root / "more" / ".hidden").mkdir()
    save(PICTURES[0, 0], root / "more" / ".hidden" / "c.png")
    return root


@pytest.fixture(scope="module")
def classified(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep"
    return deployment.classify(place / "model", place / "more", place / "photos", out, figure=True), out


def test_every_picture_is_given_the_class_it_looks_like(classified):
    found, _ = classified
    files = [answer.file for answer in found.answers]
    assert files == ["a.png", *(f"{name}/{i}.png" for name in ("ape", "bee", "cat") for i in range(3)),
                     "loose/deep/b.png"]
    told = [answer for answer in found.answers if answer.folder_class]
    assert len(told) == 9 and all(answer.class_name == answer.folder_class for answer in told)
    assert found.answers[-1].class_name == "bee" and found.answers[-1].folder_class is None
    assert found.support == {"ape": 1, "bee": 2, "cat": 3}


def test_table_csv_and_json_say_the_same(classified):
    found, out = classified
    table = str(found)
    rows = list(csv.DictReader((out / "classification.csv").open(encoding="utf-8")))
    values = json.loads((out / "classification.json").read_text(encoding="utf-8"))
    assert list(rows[0]) == ["file", "class", "probability", "margin", "p_known"] and len(rows) == 11
    for row, picture, answer in zip(rows, values["pictures"], found.answers, strict=True):
        ordered = sorted(picture["probabilities"].values(), reverse=True)
        assert sum(ordered) == pytest.approx(1, abs=1e-6)
        assert float(row["probability"]) == pytest.approx(ordered[0], abs=1e-6) == pytest.approx(picture["probability"])
        assert float(row["margin"]) == pytest.approx(ordered[0] - ordered[1], abs=1e-6)
        assert float(row["p_known"]) == pytest.approx(picture["p_known"], abs=1e-6)
        assert picture["probabilities"][row["class"]] == ordered[0] and row["class"] == picture["class"]
        line = next(line for line in table.splitlines() if line.startswith(answer.file))
        assert line.split() == [answer.file, row["class"], f"{ordered[0]:.3f}", f"{ordered[0] - ordered[1]:.3f}"]
    assert "11 images, prototypes, normalize False; labelled images: ape 1, bee 2, cat 3." in table
    assert "9 of 9 images in folders named after a class are given that class (100.0 %)." in table
    for name in ("classification.csv", "classification.json", "contact_sheet.png", "confusion.png"):
        assert f"Written: {out / name}" in table and (out / name).is_file()


def test_the_csv_computes_nothing():
    """What begins like a formula is text in a spreadsheet, and numbers stay numbers; there is no mark at the start."""
    files = ["=1+1.png", "+1.png", "-1.png", "@a.png", "\ta.png", "a=1.png", "a\rb.png"]
    answers = [Answer(file, file, {"-ape": 0.75, "bee": 0.25}) for file in files]
    text = Classification("model", "ridge", {"-ape": 1, "bee": 1}, answers, {}).csv_text()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["file"] for row in rows] == [*(f"'{file}" for file in files[:5]), "a=1.png", "a\ufffdb.png"]
    assert {(row["class"], row["probability"], row["margin"]) for row in rows} == {("'-ape", "0.750000", "0.500000")}
    assert text.startswith("file,")


def test_wrong_ones_count_against():
    answers = [Answer("x", "ape/1", {"ape": 0.6, "bee": 0.4}, "ape"),
               Answer("y", "bee/1", {"ape": 0.5, "bee": 0.5}, "bee"), Answer("z", "z", {"ape": 0.5, "bee": 0.5})]
    text = str(Classification("model", "ridge", {"ape": 1, "bee": 1}, answers, {"q.png": "the file is empty"}))
    assert "1 of 2 images in folders named after a class are given that class (50.0 %)." in text
    assert text.endswith("left out q.png: the file is empty.")


def test_unknown_ones_are_counted_apart():
    sure = {"ape": 0.6, "bee": 0.4}
    answers = [Answer("x", "ape/1", sure, "ape"), Answer("y", "bee/1", sure, "bee"),
               Answer("z", "bee/2", sure, "bee", unknown=True), Answer("v", "v", sure, unknown=True),
               Answer("w", "w", sure)]
    text = str(Classification("model", "ridge", {f"class {i}": 5 for i in range(40)}, answers, {}, unknown_rate=0.2))
    assert "5 images, ridge; labelled images: 40 classes, 5 each." in text
    assert "2 of them are answered unknown, at a false-alarm rate of 20 %;" in text
    assert ("1 of 3 images in folders named after a class are given that class (33.3 %), 1 are answered unknown, and 1 "
            "another class; of the 2 other images, 1 are answered unknown.") in text


def test_blocks_change_nothing_but_all_pictures_of_a_transductive_model_go_together(place, tmp_path, monkeypatch):
    whole = deployment.classify(place / "model", place / "more", place / "photos", tmp_path)
    monkeypatch.setattr(classify, "_BLOCK", 4)
    calls, original = [], deployment.Model.answer

    def watched(self, query, *support):
        calls.append(len(query))
        return original(self, query, *support)

    monkeypatch.setattr(deployment.Model, "answer", watched)
    parts = deployment.classify(place / "model", place / "more", place / "photos", tmp_path)
    assert calls == [6, 5]  # no fewer than the six labelled pictures that go with each
    for a, b in zip(whole.answers, parts.answers, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
    shutil.copytree(place / "model", tmp_path / "model")
    card = tmp_path / "model" / "tf_unravel.json"
    card.write_text(card.read_text().replace('"transductive": false', '"transductive": true'))
    calls.clear()
    deployment.classify(tmp_path / "model", place / "more", place / "photos", tmp_path)
    assert calls == [11]


def test_one_picture_is_enough_and_the_sheet_of_last_time_is_none(place, tmp_path):
    save(PICTURES[0, 5], tmp_path / "one.png")
    for _ in range(2):
        found = deployment.classify(place / "model", tmp_path, place / "photos", tmp_path, figure=True)
        assert [(answer.file, answer.class_name) for answer in found.answers] == [("one.png", "ape")]
    found = deployment.classify(place / "model", tmp_path / "one.png", place / "photos", tmp_path / "out")
    assert [answer.file for answer in found.answers] == ["one.png"]


def test_a_call_without_a_figure_leaves_no_sheet_of_another_question(place, tmp_path):
    asked = (place / "model", place / "more", place / "photos", tmp_path)
    assert str(tmp_path / "contact_sheet.png") in deployment.classify(*asked, figure=True).written
    assert len(deployment.classify(*asked).written) == 2 and not (tmp_path / "contact_sheet.png").exists()


@pytest.mark.parametrize("name", ["contact_sheet.png", "confusion.png"])
def test_a_picture_that_is_called_as_a_sheet_stays_and_is_classified(place, tmp_path, name):
    save(PICTURES[0, 5], tmp_path / name)
    found = deployment.classify(place / "model", tmp_path, place / "photos", tmp_path)
    assert [answer.file for answer in found.answers] == [name]
    with pytest.raises(ValueError, match=f"over a file that is none; choose another --out. Received: .*{name}"):
        deployment.classify(place / "model", tmp_path, place / "photos", tmp_path, figure=True)
    assert (tmp_path / name).stat().st_size < 2000


def test_pictures_of_an_earlier_call_are_no_queries_and_go(place, tmp_path):
    """Also a contact sheet that an earlier version wrote."""
    shutil.copytree(place / "more", tmp_path / "queries")
    asked = (place / "model", tmp_path / "queries", place / "photos", tmp_path / "queries")
    for figure in (True, True, False):
        found = deployment.classify(*asked, figure=figure)
        assert len(found.answers) == 11 and (len(found.written) == 4) == figure
    assert not {"contact_sheet.png", "confusion.png"} & {path.name for path in (tmp_path / "queries").iterdir()}
    Figure(figsize=(1, 1)).savefig(tmp_path / "queries" / "contact_sheet.png",
                                   metadata={"Software": "tf_unravel contact sheet"})
    assert len(deployment.classify(*asked).answers) == 11
    loose = deployment.classify(place / "model", place / "more" / "loose", place / "photos", tmp_path, figure=True)
    assert not loose.told and not (tmp_path / "confusion.png").exists()


def test_queries_that_are_labelled_or_not_read_are_said(place, tmp_path):
    found = deployment.classify(place / "model", place / "photos", place / "photos", tmp_path / "a")
    assert "6 of them are labelled images themselves" in str(found)
    others = deployment.classify(place / "model", place / "more", place / "photos", tmp_path / "b")
    assert "labelled images themselves" not in str(others)
    shutil.copytree(place / "more", tmp_path / "more")
    (tmp_path / "more" / "ape" / "telephone.HEIC").write_bytes(b"x")
    found = deployment.classify(place / "model", tmp_path / "more", place / "photos", tmp_path / "c")
    assert f"left out {tmp_path}/more/ape/telephone.HEIC: it is not one of JPEG, PNG, BMP, WebP and PPM." in str(found)


def test_queries_are_what_their_bytes_say_and_their_folders_what_they_mean(place, tmp_path, caplog):
    """Without a suffix, of 16 bits, in folders that macOS named; what is none is counted once."""
    for name, label in (("cafe\u0301", 0), ("tea", 1)):  # decomposed
        for i in range(2):
            save(PICTURES[label, i], tmp_path / "photos" / name / f"{i}.png")
    (tmp_path / "more" / "caf\u00e9").mkdir(parents=True)  # composed
    for i in range(10, 13):
        save(PICTURES[0, i], tmp_path / "more" / f"{i}.png")
        (tmp_path / "more" / f"{i}.png").rename(tmp_path / "more" / "caf\u00e9" / f"IMG {i}")
    for i in range(300):  # more than a block
        save((PICTURES[1, i % 20, ..., 0] * 16).astype(np.uint16), tmp_path / "more" / f"deep{i}.png")
    for name in ("notes.txt", "more.csv"):
        (tmp_path / "more" / name).write_text("none")
    found = deployment.classify(place / "model", tmp_path / "more", tmp_path / "photos", tmp_path / "out")
    told = [answer for answer in found.answers if answer.folder_class]
    assert [answer.file for answer in told] == [f"caf\u00e9/IMG {i}" for i in (10, 11, 12)]
    assert all(answer.class_name == "caf\u00e9" == answer.folder_class for answer in told)
    assert len(found.answers) == 303 and not found.skipped and caplog.text.count("WARNING") == 2
    assert "2 files are not images" in caplog.text and "16-bit images come out nearly black (300 of them" in caplog.text


def test_linked_class_folders_are_class_folders(place, tmp_path):
    for name in ("ape", "bee", "cat"):
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / name).symlink_to(place / "photos" / name)
    found = deployment.classify(place / "model", place / "more", tmp_path / "linked", tmp_path / "out")
    assert found.support == {"ape": 1, "bee": 2, "cat": 3} and not found.skipped


def test_names_that_are_the_same_as_text_are_refused(place, tmp_path):
    for name in (b"\xff", b"\xfe"):
        save(PICTURES[0, 0], pathlib.Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"photos", name, b"1.png"))))
    with pytest.raises(ValueError, match="names that differ as text"):
        deployment.classify(place / "model", place / "more", tmp_path / "photos", tmp_path / "out")


def test_pictures_that_are_in_no_class_folder_are_named(place, tmp_path, caplog):
    shutil.copytree(place / "photos", tmp_path / "photos")
    for name in ("loose.jpg", "bee/deeper/b.png"):
        save(PICTURES[0, 0], tmp_path / "photos" / name)
    found = deployment.classify(place / "model", place / "more", tmp_path / "photos", tmp_path / "out")
    assert sorted(found.skipped) == [f"{tmp_path}/photos/bee/deeper/b.png", f"{tmp_path}/photos/loose.jpg"]
    assert found.support == {"ape": 1, "bee": 2, "cat": 3}
    assert f"left out {tmp_path}/photos/loose.jpg: it is not {tmp_path}/photos/<class>/<file>." in str(found)
    assert f"left out 2 images that are not {tmp_path}/photos/<class>/<file>." in caplog.text
    for number in range(12):
        save(PICTURES[0, 0], tmp_path / "photos" / f"loose{number}.jpg")
    text = str(deployment.classify(place / "model", place / "more", tmp_path / "photos", tmp_path / "out"))
    assert text.count("left out ") == 11 and "left out 4 more, which classification.json names." in text


@pytest.mark.parametrize(("where", "what", "reason"), [
    ("photos/bee", b"\xff\xd8\xff\xe0 torn", ".*"),
    ("more/loose", b"\xff\xd8\xff\xe0 torn", ".*"),
    ("photos/bee", png(60000, 1000), "it has 60000x1000 pixels, more than 32768 on a side"),
    ("more/loose", png(60000, 1000), "it has 60000x1000 pixels, more than 32768 on a side"),
], ids=["a damaged labelled one", "a damaged one", "an absurd labelled one", "an absurd one"])  # fmt: skip
def test_a_picture_that_cannot_be_used_is_named_or_left_out(place, tmp_path, where, what, reason, caplog):
    for name in ("photos", "more"):
        shutil.copytree(place / name, tmp_path / name)
    (tmp_path / where / "torn.jpg").write_bytes(what)
    arguments = (place / "model", tmp_path / "more", tmp_path / "photos", tmp_path / "out")
    with pytest.raises(ValueError, match=f"{where}/torn.jpg cannot be used: {reason}.*--on_corrupt=skip"):
        deployment.classify(*arguments)
    assert not (tmp_path / "out").exists()
    found = deployment.classify(*arguments, on_corrupt="skip", figure=True)
    assert len(found.answers) == 11 and list(found.skipped) == [str(tmp_path / where / "torn.jpg")]
    assert "torn.jpg" in caplog.text and f"left out {tmp_path / where / 'torn.jpg'}: " in str(found)


def test_a_class_or_a_folder_with_nothing_left_is_refused(place, tmp_path):
    (tmp_path / "photos" / "ape").mkdir(parents=True)
    (tmp_path / "photos" / "ape" / "torn.jpg").write_bytes(b"torn")
    save(PICTURES[1, 0], tmp_path / "photos" / "bee" / "1.png")
    with pytest.raises(ValueError, match=f"Every class needs an image .*none in {tmp_path}/photos/ape"):
        deployment.classify(place / "model", place / "more", tmp_path / "photos", tmp_path / "o", on_corrupt="skip")
    with pytest.raises(ValueError, match="None of the 1 images to classify can be read"):
        deployment.classify(place / "model", tmp_path / "photos" / "ape", place / "photos", tmp_path / "o",
                            on_corrupt="skip")


@pytest.mark.parametrize(("changed", "message"), [
    ({"support": None}, "needs labelled images: give --support"),
    ({"support": "photos/ape"}, "two or more classes: .*Received: .*ape, with none"),
    ({"support": "absent"}, "Received: .*absent, which is no folder"),
    ({"query": "absent"}, "no images to classify. Received: .*absent, no such file or folder"),
    ({"query": "model"}, "no images to classify. Received: .*no file of JPEG, PNG, BMP, WebP and PPM"),
    ({"model": "photos"}, "holds no exported model"),
    ({"model": "run"}, "run is a run, not an exported model; make one of it with tf-unravel export --run_dir=.*run"),
    ({"on_corrupt": "ignore"}, "on_corrupt is 'error' or 'skip'. Received: 'ignore'"),
])  # fmt: skip
def test_bad_arguments_are_one_line(place, tmp_path, changed, message):
    arguments = {"model": "model", "query": "more", "support": "photos", **changed}
    (place / "run").mkdir(exist_ok=True)
    (place / "run" / "config.gin").write_text("run.epochs = 1")
    named = {key: place / value if value and key != "on_corrupt" else value for key, value in arguments.items()}
    with pytest.raises(ValueError, match=message) as refused:
        deployment.classify(**named, out=tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_model_with_its_classes_built_in_needs_no_labelled_pictures(place, tmp_path):
    backbone, known = network(), deployment.read_labelled(place / "photos", deployment.Model(place / "model").card)
    assert known.class_names == ("ape", "bee", "cat") and known.labels.tolist() == [0, 1, 1, 2, 2, 2]
    baked = {"support": known[:2], "class_names": known.class_names}
    deployment.export(backbone, heads.Prototypes(), tmp_path / "plain", **baked)
    free = deployment.classify(place / "model", place / "more", place / "photos", tmp_path / "a")
    plain = deployment.classify(tmp_path / "plain", place / "more", out=tmp_path / "b")
    assert plain.support == free.support
    for a, b in zip(free.answers, plain.answers, strict=True):
        assert a.file == b.file and a.probabilities == pytest.approx(b.probabilities, abs=1e-5)
    with pytest.raises(ValueError, match="classes built in .ape, bee, cat.; leave --support out"):
        deployment.classify(tmp_path / "plain", place / "more", place / "photos")
    with pytest.raises(ValueError, match="leave --figure out"):
        deployment.classify(tmp_path / "plain", place / "more", figure=True)


def test_the_sheet_shows_the_nearest_first(place, tmp_path, monkeypatch):
    """The neighbours held against distances computed here; with more pictures than a sheet holds, the least certain."""
    drawn = []
    monkeypatch.setattr(classify, "_ON_A_SHEET", 3)
    monkeypatch.setattr(classify, "contact_sheet", lambda *a: drawn.append(a) or contact_sheet.contact_sheet(*a))
    found = deployment.classify(place / "model", place / "more", place / "photos", tmp_path, figure=True)
    rows, names, title = drawn[0]
    assert "the 3 least certain of 11" in title and names == ("ape", "bee", "cat")
    least = sorted(found.answers, key=lambda answer: answer.margin)[:3]
    assert [row.folder_class for row in rows] == [answer.folder_class for answer in least]
    assert [row.file for row in rows] == [answer.file for answer in least]
    model = deployment.Model(place / "model")
    known = deployment.read_labelled(place / "photos", model.card)
    points, asked = model.features(known.images), model.features(np.stack([row.image for row in rows]))
    for row, point in zip(rows, asked, strict=True):
        distances = np.sqrt(((points - point) ** 2).sum(axis=1))
        assert [near.distance for near in row.neighbours] == pytest.approx(np.sort(distances)[:5].tolist(), rel=1e-5)
        expected = [names[known.labels[i]] for i in np.argsort(distances)[:5]]
        assert [near.class_name for near in row.neighbours] == expected


def test_a_sheet_of_many_pictures_grows_sideways():
    image = np.zeros((8, 8, 1), np.uint8)
    near = [contact_sheet.Neighbour(image, "cat$", 0.5)]
    sizes = []
    for count in (2, 16, 40):
        rows = [contact_sheet.Query(image, "a_very_long_name_of_a_file.png", "cat$", 0.9, near)] * count
        figure = contact_sheet.contact_sheet(rows, ["cat$"], "title")
        assert len(figure.axes[0].images) == 2 * count
        said = [text.get_text() for text in figure.axes[0].texts]
        assert said[0] == "title" and "colour of a frame is a class" in " ".join(said)
        assert not [text for text in said if text.startswith("folder: ")]
        sizes.append(figure.get_size_inches())
    assert sizes[0][0] == sizes[1][0] and sizes[2][0] == pytest.approx(3 * sizes[1][0])
    assert sizes[2][1] == pytest.approx(sizes[1][1], rel=0.05)  # but for the lines at the top
    wrong = [row._replace(folder_class=name) for row in rows[:2] for name in ("cat$", "dog")]
    figure = contact_sheet.contact_sheet(wrong, ["cat$", "dog"])
    assert [text.get_text() for text in figure.axes[0].texts].count("folder: dog") == 2
    with pytest.raises(ValueError, match="nothing to draw"):
        contact_sheet.contact_sheet([], ["cat"])


@pytest.mark.parametrize(("old", "new", "message"), [
    ('"height": 16', '"height": 1000000', "of no format that this version reads"),
    ('"height": 16', '"height": "16"', "of no format that this version reads"),
    ('"format": 1', '"format": 2', "of no format that this version reads"),
    ('"crop": false', '"crop": 1', "of no format that this version reads"),
    ('"resize": "bilinear"', '"resize": "best"', "is damaged .ValueError: resize must be one of"),
    ('"class_names": null', '"class_names": ["a", "a"], "x": 1', "of no format that this version reads"),
    ('"class_names": null', '"class_names": ["a", "b"], "x": 1', "is damaged .TypeError"),
    ('"input"', '"output"', "is damaged .KeyError: 'input'"),
    ("{", "[", "is damaged"),
])  # fmt: skip
def test_a_card_from_anywhere_is_checked(place, tmp_path, old, new, message):
    shutil.copytree(place / "model", tmp_path / "model")
    path = tmp_path / "model" / "tf_unravel.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        deployment.Model(tmp_path / "model")


def test_a_damaged_model_is_one_line(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"\x08\x01 torn")
    with pytest.raises(ValueError, match="cannot be loaded; export the model again. Received: "):
        deployment.Model(tmp_path / "model")


@pytest.fixture(scope="module")
def crowd(place):
    """many/ with 7 pictures of each class, and strange/ with noise and stripes beside two that are known."""
    for label, name in enumerate(("ape", "bee", "cat")):
        for i in range(7):
            save(PICTURES[label, i], place / "many" / name / f"{i}.png")
    for i in range(2):
        save(PICTURES[i, 28], place / "strange" / f"known {i}.png")
    save(np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8), place / "strange" / "noise.png")
    save(np.tile(np.uint8([[[0]], [[255]]]), (8, 16, 3)), place / "strange" / "stripes.png")
    return place


def test_images_of_no_class_are_unknown(crowd, tmp_path):
    found = deployment.classify(crowd / "model", crowd / "strange", crowd / "many", tmp_path, figure=True, unknown=0.05)
    given = {answer.file: answer.answer for answer in found.answers}
    assert given == {"known 0.png": "ape", "known 1.png": "bee", "noise.png": "unknown", "stripes.png": "unknown"}
    assert "2 of them are answered unknown" in str(found)
    values = json.loads((tmp_path / "classification.json").read_text())
    assert values["unknown_rate"] == 0.05
    assert [row["class"] for row in values["pictures"]] == list(given.values())
    assert all((row["p_known"] <= 0.05) == (row["class"] == "unknown") for row in values["pictures"])
    assert [row["class"] for row in csv.DictReader((tmp_path / "classification.csv").open())] == list(given.values())
    never = deployment.classify(crowd / "model", crowd / "strange", crowd / "many", tmp_path)
    assert not any(answer.unknown for answer in never.answers)


def test_unknown_needs_enough_labelled_images_or_a_prior(crowd, tmp_path):
    def ask(rate, model="model", support="photos"):
        deployment.classify(crowd / model, crowd / "strange", crowd / support, tmp_path, unknown=rate)

    with pytest.raises(ValueError, match="--unknown=0.05 needs at least 19 labelled images in classes of two or more, "
                                         "or a model exported from a run. Received: 5."):
        ask(0.05)
    ask(1 / 6)  # five count: the only one of a class has nothing to be compared with
    with pytest.raises(ValueError, match="lies between 0 and 1, such as 0.05. Received: 1.5"):
        ask(1.5)
    prior = heads.Prior(similarities=tuple(np.linspace(-1, 1, 100)))
    deployment.export(network(), heads.Prototypes(), crowd / "met", prior=prior)
    ask(0.05, "met")
    assert deployment.Model(crowd / "met").prior == prior
    shutil.copytree(crowd / "many", crowd / "named")
    (crowd / "named" / "ape").rename(crowd / "named" / "unknown")
    with pytest.raises(ValueError, match="A class is called 'unknown'.* Received: classes bee, cat, unknown"):
        ask(0.05, support="named")


def test_a_model_from_before_calibration_classifies_as_it_did_and_has_no_unknown(crowd, tmp_path):
    model = deployment.Model(crowd / "model")

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "images")])
    def features(images):
        return {"features": tf.reduce_mean(tf.cast(images, tf.float32), axis=[1, 2])}

    wanted = model.signatures["classify"].structured_input_signature[1]
    names = ("support_images", "support_labels", "query_images")

    @tf.function(input_signature=[tf.TensorSpec(wanted[name].shape, wanted[name].dtype, name) for name in names])
    def classify(support_images, support_labels, query_images):
        return {"probabilities": tf.fill([tf.shape(query_images)[0], tf.reduce_max(support_labels) + 1], 1 / 3)}

    tf.saved_model.save(tf.Module(), str(tmp_path / "old"), {"features": features, "classify": classify})
    card = {key: value for key, value in model.card.items() if key != "calibration"}
    (tmp_path / "old" / "tf_unravel.json").write_text(json.dumps(card))
    found = deployment.classify(tmp_path / "old", crowd / "strange", crowd / "many", tmp_path / "out")
    assert [answer.p_known for answer in found.answers] == [None] * 4
    assert deployment.Model(tmp_path / "old").prior == heads.Prior()
    with pytest.raises(ValueError, match="exported before there was --unknown; export it again. Received: .*old"):
        deployment.classify(tmp_path / "old", crowd / "strange", crowd / "many", tmp_path / "out", unknown=0.5)
