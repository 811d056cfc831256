"""Work in processes of their own: what it says, fails with, and leaves alone."""

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tf_unravel.reproduction.jobs import processes
from tf_unravel.reproduction.jobs.processes import ChildFailed, in_child


def write(path: str, text: str) -> None:
    print("said on the way")
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{text} {os.getpid()}")


def refuse(message: str) -> None:
    raise ValueError(message)


def stumble() -> None:
    raise KeyError("surprise")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_work_is_done_in_another_process(tmp_path):
    in_child(write, str(tmp_path / "done"), "yes", log=tmp_path / "logs" / "log")
    text, process = (tmp_path / "done").read_text().split()
    assert text == "yes" and int(process) != os.getpid()
    assert "said on the way" in (tmp_path / "logs" / "log").read_text()


def test_standard_error_is_turned_away_by_one_thread_at_a_time(tmp_path, monkeypatch):
    inside, most = [], []

    @contextlib.contextmanager
    def slow(log):
        inside.append(log)
        most.append(len(inside))
        time.sleep(0.05)
        yield
        inside.remove(log)

    monkeypatch.setattr(processes, "_errors_to", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: in_child(write, str(tmp_path / str(i)), "yes", log=tmp_path / f"log{i}"), range(4)))
    assert most == [1, 1, 1, 1]


def test_bad_input_comes_back_as_its_line(tmp_path):
    with pytest.raises(ChildFailed, match=r"^ways too many$"):
        in_child(refuse, "ways\n  too many", log=tmp_path / "log")


def test_a_fault_names_itself_and_the_log(tmp_path):
    with pytest.raises(ChildFailed, match=r"KeyError: 'surprise' \(see .*log\)"):
        in_child(stumble, log=tmp_path / "log")
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_killed_process_is_a_failure(tmp_path):
    with pytest.raises(ChildFailed, match=r"ended with status -9; see .*log"):
        in_child(die, log=tmp_path / "log")


def test_a_child_ends_with_the_process_that_waits_for_it(tmp_path):
    """Else it would go on holding the run's folder, and the same command would be refused."""
    context = processes._context()
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=processes._child, args=(time.sleep, (600,), str(tmp_path / "log"), sender))
    child.start()
    try:
        sender.close()
        child.join(0.5)
        assert child.exitcode is None
        receiver.close()  # as the system does for a process that is killed
        child.join(30)
        assert child.exitcode == 1
    finally:
        child.kill()
