"""Gin files as text: where they are, how they are read, and what is said of one that cannot be."""

import codecs
import contextlib
import difflib
import functools
import inspect
import io
import logging
import os
import pathlib
import re
import tokenize
from collections.abc import Iterator, Sequence

import gin


class ConfigError(ValueError):
    """A configuration that cannot be used; its message is one line for the user."""


def one_line(error: Exception) -> str:
    """An error's message on one line, without what gin adds about the call it happened in."""
    return " ".join(str(error).split("In call to configurable")[0].split())


def either(names: Sequence[str]) -> str:
    """Names as a sentence lists them: a, b or c."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# The longer marks first: that of UTF-16 begins one of UTF-32.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
          (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"))  # fmt: skip


def read_text(path: str | os.PathLike[str]) -> str:
    r"""A text file in UTF-8, or in what its byte-order mark says, without the mark and with \n at the end of a line.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no text.
    """
    content = pathlib.Path(path).read_bytes()
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return io.StringIO(content.decode(encoding), newline=None).read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error


class _NamedText(io.StringIO):
    """Text that knows its file, which gin names in messages."""

    name: str


def open_text(path: str) -> io.StringIO:
    """What gin opens files with."""
    file = _NamedText(read_text(path))
    file.name = path
    return file


def gin_folder() -> pathlib.Path:
    """Where the gin files that come with the package are: beside it in a checkout, inside it when installed."""
    package = pathlib.Path(__file__).resolve().parents[1]
    installed = package / "gin_files"
    return installed if installed.is_dir() else package.parent / "gin"


@functools.cache
def search_gin_folder() -> None:
    """Lets `include` find the package's gin files."""
    gin.add_config_file_search_path(str(gin_folder()))


@contextlib.contextmanager
def quiet_search() -> Iterator[None]:
    """gin logs an error for every place an include is not found in, before it finds it in the next."""

    def wanted(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Path not found")

    logging.getLogger().addFilter(wanted)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(wanted)


def find(name: str) -> str:
    """The file a user means by --gin_file: a path, or one that comes with the package (with or without `gin/`).

    Raises:
        ConfigError: there is none.
    """
    bundled = gin_folder() / pathlib.Path(name).as_posix().removeprefix("gin/")
    for candidate in (pathlib.Path(name), bundled, bundled.with_suffix(".gin")):
        if candidate.is_file():
            return str(candidate)
    known = {path.stem: f"gin/{path.relative_to(gin_folder())}" for path in gin_folder().glob("*/*.gin")}
    near = difflib.get_close_matches(bundled.stem, known, n=3)
    advice = f"do you mean {either([known[stem] for stem in near])}?" if near else f"see the folder {gin_folder()}"
    raise ConfigError(f"--gin_file {name}: no such file; {advice}")


# What gin raises over a text that it cannot read, one that nests too deep or stops in the middle of a value included.
UNREADABLE = (
    ValueError, SyntaxError, TypeError, AttributeError, LookupError, ImportError, RecursionError, MemoryError,
    tokenize.TokenError,
)  # fmt: skip

# What a run passes to what it calls, or makes itself; a gin file has no say in it.
_PASSED_ON = ("self", "backbone", "num_labels", "input_shape", "split", "steps_per_epoch", "total_epochs", "heads")


def problem(error: Exception) -> str:
    """What gin says of a line that it cannot read, and what to do about it."""
    line = one_line(error)
    if unknown := re.match(r"(Configurable '(\S+)' doesn't have a parameter named '\S+')\.? ?(.*)", line):
        said, name, place = unknown.groups()
        return f"{said} (its parameters are {', '.join(_parameters(name))}); {place[:1].lower()}{place[1:]}"
    if not isinstance(error, SyntaxError):
        return line
    line = re.sub(r"malformed node or string.*?Failed to parse token ('[^']*')", r"\1 is no value", line)
    values = "a number, True, None, a list, @name, %macro, or text, which needs quotes, such as load.name = 'glyphs'"
    return f"{line} (a value is {values})"


def _parameters(name: str) -> list[str]:
    """What a gin file may set of a thing."""
    thing = gin.get_configurable(name)
    function = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]  # of the class at hand
    parameters = inspect.signature(function).parameters
    return [parameter for parameter in parameters if parameter not in _PASSED_ON]
