"""docs/tutorials/own_images.ipynb: its cells run in order, and it is kept without outputs."""

import json
import re

import matplotlib

from tests.docs.pages import ROOT, run_python

CELLS = json.loads((ROOT / "docs/tutorials/own_images.ipynb").read_text(encoding="utf-8"))["cells"]


def test_its_cells_run(place, capsys):
    matplotlib.use("Agg")  # its last cell shows a figure
    names: dict[str, object] = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            run_python("".join(cell["source"]), names)
    printed = capsys.readouterr().out
    correct = re.search(r"(\d+) of 100 (?:pictures|images) in folders named after a class", printed)
    assert "svm         5-shot" in printed
    assert correct and int(correct[1]) >= 40  # chance is 20


def test_it_has_no_outputs():
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in CELLS)
