"""Work in a process of its own, so that what fails, runs out of memory or sets threads does it alone.

A server process imports TensorFlow once and forks: a child starts in a fraction of a second (where the system cannot
fork, it is a fresh process).
"""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tf_unravel.runs import config

if TYPE_CHECKING:  # Windows has no fork server
    from multiprocessing.context import ForkServerContext, SpawnContext

# Standard error belongs to the whole process: two threads that turn it away at once would not turn it back.
_one_at_a_time = threading.Lock()


class ChildFailed(ChildProcessError):
    """The work failed; the message is one line."""


def in_child(function: Callable[..., None], *arguments: Any, log: pathlib.Path) -> None:
    """Calls function(*arguments) in a process of its own and waits for it.

    Args:
        function: importable by its name.
        arguments: what pickle can carry.
        log: file that gets what the process writes.

    Raises:
        ChildFailed: it raised, or was killed.
        KeyboardInterrupt: after the child has ended, which is interrupted too.
    """
    context = _context()
    log.parent.mkdir(parents=True, exist_ok=True)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(function, arguments, str(log), sender))
    with _one_at_a_time, _errors_to(log):  # the server keeps the standard error that it is started with
        process.start()
    sender.close()
    try:
        message = _answer(receiver)
    except KeyboardInterrupt:
        process.join()
        raise
    process.join()
    if message is None:
        message = f"it ended with status {process.exitcode}; see {log}"
    if message:
        raise ChildFailed(message)


def _context() -> "ForkServerContext | SpawnContext":
    """Where there is a fork server, TensorFlow is imported once for all children."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tf_unravel.reproduction.jobs.jobs"])
    return context


def _answer(receiver: multiprocessing.connection.Connection) -> str | None:
    """What the child says: "" for success, a message, or None where it died without a word."""
    with contextlib.suppress(EOFError):
        return receiver.recv()
    return None


def _child(function: Callable[..., None], arguments: tuple[Any, ...], log: str, sender: Any) -> None:
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_reader, args=(sender.fileno(),), daemon=True).start()
    try:
        function(*arguments)
        sender.send("")
    except Exception as error:
        expected = isinstance(error, (ValueError, OSError, ArithmeticError))
        line = config.one_line(error)
        sender.send(line if expected else f"{type(error).__name__}: {line} (see {log})")
        with contextlib.suppress(OSError):  # the disk may be full
            print(error if expected else traceback.format_exc(), file=sys.stderr, flush=True)


def _end_with_reader(pipe: int) -> None:
    """Ends this process when nobody is left to read from the pipe.

    The process that waits may be killed; a child that outlives it would hold the run's folder, and the same command,
    started again, would be refused. What it leaves half done is what a killed process leaves.
    """
    if hasattr(select, "poll"):  # not on Windows
        closed = select.poll()
        closed.register(pipe, 0)  # errors alone
        closed.poll()
        os._exit(1)


@contextlib.contextmanager
def _errors_to(log: pathlib.Path) -> Iterator[None]:
    sys.stderr.flush()
    before = os.dup(2)
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
