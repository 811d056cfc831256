"""The architecture: packages in layers, and nothing imports from what stands above it."""

import ast
import pathlib

import pytest

import tf_unravel

ROOT = pathlib.Path(tf_unravel.__file__).parent

# From the ground up; docs/architecture.md draws them. Packages of one layer do not import each other.
LAYERS = (
    ("checks", "files", "machine", "text_table", "version"),
    ("data", "regularizers", "backbones"),
    ("adaptation",),
    ("heads",),
    ("learners", "evaluation"),
    ("analysis",),
    ("deployment", "runs"),
    ("commands",),
    ("reproduction",),
    ("cli",),
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def _modules():
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
            for path in ROOT.rglob("*.py") if path.parent != ROOT or path.stem != "__init__"}


def _imported(tree, modules):
    """Modules of this package that a module imports, at its top or within a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tf_unravel":
            base = node.module.removeprefix("tf_unravel").removeprefix(".")
            for alias in node.names:
                full = f"{base}.{alias.name}".removeprefix(".")
                if full in modules or base:
                    yield full if full in modules else base
        elif isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("tf_unravel.") for alias in node.names
                        if alias.name.startswith("tf_unravel."))


MODULES = _modules()
EDGES = {name: set(_imported(ast.parse(path.read_text("utf-8")), MODULES)) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_from_above(name):
    package = name.split(".")[0]
    for other in EDGES[name]:
        theirs = other.split(".")[0]
        assert theirs == package or LEVEL[theirs] < LEVEL[package], f"{name} imports {other}"


def test_no_import_cycle():
    state: dict[str, str] = {}

    def visit(name, path):
        assert state.get(name) != "open", f"import cycle: {' -> '.join([*path, name])}"
        if state.get(name) == "closed":
            return
        state[name] = "open"
        for other in EDGES.get(name, ()):
            visit(other, [*path, name])
        state[name] = "closed"

    for name in MODULES:
        visit(name, [])


def test_the_architecture_page_draws_these_layers():
    page = (ROOT.parent / "docs" / "architecture.md").read_text("utf-8").split("```")[1]
    drawn = [line.split("  ")[0].split(", ") for line in page.strip().splitlines() if not line.startswith("─")]
    assert drawn == [list(layer) for layer in reversed(LAYERS)]
