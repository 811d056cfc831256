"""docs/how_do_i.md: its blocks run as printed, in order; trainings are cut to one epoch of small networks."""

import json

import numpy as np
from PIL import Image

from tests.deployment.models import served
from tests.docs.pages import EPOCH, FEW, blocks, draw, run_python, run_shell

SMALL = (EPOCH, "conv4.filters = 8")


def test_every_answer_works(place, capsys):
    for number, colour in enumerate(np.random.default_rng(1).integers(30, 226, (15, 3))):
        draw(place / "images" / f"class {number:02}", colour, range(4))
    for name, colour in {"blue": (30, 30, 200), "red": (200, 30, 30)}.items():
        draw(place / "support" / name, np.array(colour), range(2))
    draw(place / "queries", np.array((200, 40, 40)), range(7, 8))
    (place / "queries" / "a 7.png").rename(place / "new.png")
    Image.open(place / "new.png").resize((640, 480)).save(place / "photo.jpg")

    names: dict[str, object] = {}
    printed = []
    for language, text in blocks("docs/how_do_i.md"):
        if language == "python":
            run_python(text, names)
        elif "curl" in text:
            with served("classifier") as address:
                run_shell(text.replace("http://127.0.0.1:8501/v1/models/classifier", address))
        else:
            run_shell(text, *SMALL, *((FEW, "Validation.num_tasks = 50") if "demo_" in text else ()))
        printed.append(capsys.readouterr().out)
    (_, layouts, arrays, split, one, unknown, sure, _, deployed, many, sent, svm, compared, tuned, _, _, plan) = printed
    assert "miniImageNet_category_split" in layouts and "[600 600]" in arrays
    assert [line.count("class ") for line in split.splitlines()] == [9, 3, 3]
    assert "of them are answered unknown" in unknown and "ECE after, %" in sure
    assert "red" in one and "b'blue' b'red'" in deployed
    assert "labelled images: blue 2, red 2" in many
    (answer,) = json.loads(sent)["predictions"]
    assert answer["class_names"][int(np.argmax(answer["probabilities"]))] == "red"
    assert "running statistics" in svm and "points (95 %, 200 tasks)" in compared and "transductive" in tuned
    assert "r2d2" in plan
