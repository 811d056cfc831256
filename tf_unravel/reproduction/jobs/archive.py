"""An archive of finished runs: one small file from which the report is written again, and the plan goes on.

It holds, of every finished run of a plan, what `runs.portable` gives (config.gin, environment.json, the section
`training` of results.json), its measurements, the size of its penalty's gradient, and the tables of times. It holds no
checkpoints, logs or paths of the machine. The same runs give the same bytes.

An unpacked run is done: it is not trained again. It has no checkpoint, so that a measurement which the archive lacks
needs the training again, in a folder without that run.
"""

import functools
import json
import lzma
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import BinaryIO

from tf_unravel.files import write_atomically, write_bytes, write_folder
from tf_unravel.reproduction.exhibits import penalty
from tf_unravel.reproduction.jobs.jobs import Job, RunJob
from tf_unravel.reproduction.jobs.timing import Timing
from tf_unravel.reproduction.jobs.workspace import Workspace
from tf_unravel.runs import ConfigError, RunFolder, parse
from tf_unravel.runs.portable import portable

_OF_A_RUN = ("config.gin", "environment.json", "results.json", "paper/*.json")
_OF_TIMES = "*/timing@*.json"
_NAMED = 5  # jobs that a message names


def pack(plan: Sequence[Job], workspace: Workspace, out: pathlib.Path) -> str:
    """Writes the archive of a plan's finished runs and tables of times.

    Args:
        plan: the jobs; what is not finished is left out, and so is the run of another configuration.
        workspace: where the runs are.
        out: the archive, `<name>.tar.xz`; one that is there is replaced.

    Returns:
        What was packed, for the user.

    Raises:
        ConfigError: nothing is finished, a run's file is damaged, or the name ends otherwise.
    """
    if not out.name.endswith(".tar.xz"):
        raise ConfigError(f"--out is the archive, with a name that ends in .tar.xz. Received: {str(out)!r}")
    files: dict[str, bytes] = {}
    packed = []
    for job in plan:
        found = _files_of_run(job, workspace) if isinstance(job, RunJob) else _file_of_times(job.timing, workspace)
        files |= found
        packed += [job] if found else []
    if not packed:
        raise ConfigError(f"--run_dir {workspace.folder} has no finished run of the plan; run it first "
                          f"(tf-unravel paper run --scale={workspace.scale.name} --run_dir={workspace.folder})")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, lambda file: _write(file, files))
    left = [str(job) for job in plan if job not in packed]
    lines = [f"{out}: {len(packed)} of {len(plan)} jobs, {out.stat().st_size / 1024:.0f} KiB"]
    if left:
        some = ", ".join(left[:_NAMED]) + (", ..." if len(left) > _NAMED else "")
        lines.append(f"left out {len(left)} that are not finished, or of another configuration: {some}")
    return "\n".join(lines)


def _files_of_run(job: RunJob, workspace: Workspace) -> dict[str, bytes]:
    folder = RunFolder(workspace.run_dir(job.run))
    if not folder.finished():
        return {}
    try:
        folder.check_config(parse(*workspace.configuration(job.run)))
    except ConfigError:
        return {}
    return {f"{job.run}/{name}": content for name, content in _files_in(folder.path).items()}


def _files_in(run_dir: pathlib.Path) -> dict[str, bytes]:
    """What an archive has of a finished run, by its place in the run's folder."""
    files = portable(run_dir)
    files |= {f"paper/{path.name}": path.read_bytes() for path in (run_dir / "paper").glob("*.json")}
    ratio = penalty.gradient_ratio(run_dir)
    if ratio is not None:
        files[penalty.PACKED] = (json.dumps({"gradient_ratio": ratio}) + "\n").encode("utf-8")
    return files


def _file_of_times(timing: Timing, workspace: Workspace) -> dict[str, bytes]:
    path = timing.path(workspace)
    return {path.relative_to(workspace.folder).as_posix(): path.read_bytes()} if timing.read(workspace) else {}


def _write(file: BinaryIO, files: Mapping[str, bytes]) -> None:
    """Writes a .tar.xz whose bytes depend on the files alone."""
    with tarfile.open(fileobj=file, mode="w:xz", preset=9) as archive:
        for name in sorted(files):
            member = tarfile.TarInfo(name)  # owner 0 without a name, mode 644, of 1970
            member.size = len(files[name])
            archive.addfile(member, BytesIO(files[name]))


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> str:
    """Puts an archive's runs into a folder, beside those that are there; nothing that is there is changed.

    - A run that the folder does not have is written, whole or not at all.
    - A run whose training there is not finished stays as it is.
    - A finished run that is there stays, and is given the measurements that only the archive has.

    Args:
        archive: the file.
        folder: of the runs, as --run_dir.

    Returns:
        What came of each run, for the user.

    Raises:
        ConfigError: the file is no such archive, or a finished run or table of times that is there has other content;
            then nothing is written.
    """
    runs, times = _sorted(_read(archive, folder), archive)
    missing: dict[pathlib.Path, bytes] = {}
    new, training, there = [], [], []
    for name, files in runs.items():
        run_dir = folder / name
        if not run_dir.exists():
            new.append(name)
        elif not RunFolder(run_dir).finished():
            training.append(name)
        else:
            there.append(name)
            missing |= _missing({run_dir / place: content for place, content in files.items()},
                                {run_dir / place: content for place, content in _files_in(run_dir).items()})
    written = {folder / name: content for name, content in times.items()}
    missing |= _missing(written, {path: path.read_bytes() for path in written if path.exists()})
    for name in new:
        write_folder(folder / name, functools.partial(_write_files, runs[name]))
    for path, content in missing.items():
        write_bytes(path, content)
    return "\n".join([f"{folder}: runs unpacked: {len(new)}; already there: {len(there)}",
                      *(f"{name}: its training there is not finished, and was kept" for name in training)])


def _missing(theirs: Mapping[pathlib.Path, bytes], mine: Mapping[pathlib.Path, bytes]) -> dict[pathlib.Path, bytes]:
    """Those of their files that are not among mine.

    Raises:
        ConfigError: one that both have differs.
    """
    for path in theirs:
        if mine.get(path, theirs[path]) != theirs[path]:
            advice = "unpack into another --run_dir, or move it away"
            raise ConfigError(f"{path} has other content in the archive; {advice}")
    return {path: content for path, content in theirs.items() if path not in mine}


def _write_files(files: Mapping[str, bytes], folder: pathlib.Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _read(archive: pathlib.Path, folder: pathlib.Path) -> dict[str, bytes]:
    """The files of an archive."""
    files = {}
    try:
        with tarfile.open(archive, "r:xz") as opened:
            for member in opened:
                member = tarfile.data_filter(member, str(folder))  # refuses what would land elsewhere
                content = opened.extractfile(member) if member.isreg() else None
                if content is None:
                    raise ValueError(f"its member {member.name!r} is no file")
                files[member.name] = content.read()
    except (OSError, tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ConfigError(f"{archive} is no archive of tf-unravel paper pack, or is damaged: {reason}") from error
    return files


def _sorted(
    files: Mapping[str, bytes], archive: pathlib.Path
) -> tuple[dict[str, dict[str, bytes]], dict[str, bytes]]:
    """(run -> its files, name of a table of times -> the table)."""
    runs: dict[str, dict[str, bytes]] = {}
    times = {}
    for name, content in files.items():
        path = pathlib.PurePosixPath(name)
        run, place = "/".join(path.parts[:3]), pathlib.PurePosixPath(*path.parts[3:])
        if ".." in path.parts or not (_fits(path, _OF_TIMES) or any(_fits(place, wanted) for wanted in _OF_A_RUN)):
            raise ConfigError(f"{archive} is no archive of tf-unravel paper pack. Received: a member {name!r}")
        if _fits(path, _OF_TIMES):
            times[name] = content
        else:
            runs.setdefault(run, {})[str(place)] = content
    return runs, times


def _fits(place: pathlib.PurePosixPath, wanted: str) -> bool:
    return len(place.parts) == wanted.count("/") + 1 and place.match(wanted)
