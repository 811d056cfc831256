"""The README's Python runs as printed, and prints the accuracy that stands below it."""

import re

import pytest

from tests.docs.pages import ROOT, blocks, run_python

README = (ROOT / "README.md").read_text(encoding="utf-8")
ACCURACY = re.compile(r"^(\d+\.\d+) % \+- .*BatchNorm", re.MULTILINE)


def test_it_fits_the_package_index():
    assert len(README.encode()) <= 8192


def test_the_ten_lines_print_their_accuracy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ((language, text),) = blocks("README.md")
    assert language == "python" and len(text.splitlines()) == 10
    run_python(text, {})
    printed, promised = (ACCURACY.findall(source) for source in (capsys.readouterr().out, README))
    assert len(promised) == 2
    # Another processor or version of TensorFlow rounds differently, and a training carries it on.
    assert [float(value) for value in printed] == pytest.approx([float(value) for value in promised], abs=3)
