"""Pages that `make docs` generates from other sources: README, CONTRIBUTING, CHANGELOG, the help of the commands."""

import contextlib
import io
import os
import pathlib
import re
from typing import Any

from markdown import Extension, Markdown
from properdocs.structure.files import File, Files

_ROOT = pathlib.Path(__file__).parents[1]
# A file beside docs/ -> its page.
_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_COMMENT = re.compile(r"^<!--.*?-->\n", flags=re.MULTILINE | re.DOTALL)
_UNLINKED = re.compile(r"\[([^\]]+)\]\(LICENSE\)")


class LiteralAngles(Extension):
    """Markdown without raw HTML: root/<split>/<class> and <c_i, m> are text, in pages and docstrings."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Removes the processors that would parse them as tags."""
        md.preprocessors.deregister("html_block")
        md.inlinePatterns.deregister("html")


def on_config(config: Any) -> Any:
    """Lists every page of docs/ and docs/guides/ under Guides, so that a new one needs no entry anywhere else."""
    config.markdown_extensions.append(LiteralAngles())
    docs = pathlib.Path(config.docs_dir)
    pages = [str(path.relative_to(docs)) for folder in (docs, docs / "guides") for path in sorted(folder.glob("*.md"))]
    sections = []
    for section in config.nav:
        if "Guides" in section:
            section = {"Guides": pages}
        if section != {"Guides": []}:
            sections.append(section)
    config.nav = sections
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that have no file in docs/."""
    for source, page in _PAGES.items():
        text = (_ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_moved(text)))
    files.append(File.generated(config, "reference/command_line.md", content=_command_line()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Removes comments, which would be text too; they tell the tests which blocks to skip, and why."""
    return _COMMENT.sub("", markdown)


def _moved(text: str) -> str:
    """Markdown written beside docs/ with its links as they must read inside docs/."""
    text = _UNLINKED.sub(r"\1", text.replace("](docs/", "]("))
    for source, page in _PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    return text


def _command_line() -> str:
    help_of_all = _help()
    commands = re.findall(r"^    (\w+) {2,}\S", help_of_all, flags=re.MULTILINE)
    parts = ["# Command line", "What `tf-unravel --help` and the `--help` of each command print."]
    parts += [f"```text\n{help_of_all}```"]
    parts += [f"## {command}\n\n```text\n{_help(command)}```" for command in commands]
    return "\n\n".join(parts) + "\n"


def _help(*command: str) -> str:
    """What --help prints; the command line module imports only the standard library for it."""
    from tf_unravel import cli

    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return printed.getvalue()
