"""Finds the code blocks of a page and runs them as a reader would."""

import pathlib
import re
import shlex
import subprocess

import numpy as np
from PIL import Image

from tf_unravel import cli

ROOT = pathlib.Path(__file__).parents[2]
EPOCH, FEW = "run.epochs = 1", "load.images_per_class = 20"  # bindings that make a training short
_BLOCK = re.compile(r"(<!-- test: [^>]*-->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of a page's Python and shell blocks; those below `<!-- test: why -->` are skipped."""
    found = _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    return [(language, text) for skipped, language, text in found if language in ("bash", "python") and not skipped]


def run_shell(text: str, *shorter: str) -> None:
    """Runs `tf-unravel ...` lines in this process, which has imported TensorFlow already, and other blocks in bash.

    `shorter` are gin bindings added to every training.
    """
    if "tf-unravel" not in text:
        print(subprocess.run(["bash", "-eu", "-c", text], check=True, stdout=subprocess.PIPE, text=True).stdout)
        return
    changes = [f"--gin_bindings={line}" for line in shorter]
    for line in text.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line.removeprefix("PYTHONPATH=. "))
        assert program == "tf-unravel", line
        assert cli.main([*arguments, *(changes if arguments[0] == "train" else ())]) == 0, line


def run_python(text: str, names: dict[str, object]) -> None:
    """Runs a block in the namespace `names`; one that begins with `# name.py` is saved under that name instead."""
    if saved := re.match(r"# (\w+\.py)\n", text):
        pathlib.Path(saved[1]).write_text(text, encoding="utf-8")
    else:
        exec(compile(text, "a block of the page", "exec"), names)


def draw(folder: pathlib.Path, colour: np.ndarray, numbers: range) -> None:
    """Images of one colour with noise, each from its number."""
    folder.mkdir(parents=True)
    for number in numbers:
        grain = np.random.default_rng(number).normal(0, 20, (24, 24, 3))
        Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8)).save(folder / f"a {number}.png")
