"""What was said of a folder of images: a table for a terminal, CSV and JSON."""

import csv
import dataclasses
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

UNKNOWN = "unknown"
_LEFT_OUT = 10  # files that the table names
_NAMED = 12  # classes that the table names
_FORMULA = ("=", "+", "-", "@", "\t")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What was said of one image.

    Attributes:
        path: of the file.
        file: the same below the query folder, as text.
        probabilities: class -> probability.
        folder_class: the class that its folder is named after; None where it is named after none.
        labelled: whether the same image is among the labelled ones.
        p_known: the share of known images that look as strange or stranger; None of a model without it.
        unknown: whether it is answered to be of none of the classes.
    """

    path: str
    file: str
    probabilities: Mapping[str, float]
    folder_class: str | None = None
    labelled: bool = False
    p_known: float | None = None
    unknown: bool = False

    @property
    def answer(self) -> str:
        """The likeliest class, or "unknown"."""
        return UNKNOWN if self.unknown else self.class_name

    @property
    def class_name(self) -> str:
        """The likeliest class, the first of equals."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def probability(self) -> float:
        """Its probability."""
        return max(self.probabilities.values())

    @property
    def margin(self) -> float:
        """The likeliest class's probability minus the second's."""
        first, second = sorted(self.probabilities.values(), reverse=True)[:2]
        return first - second


@dataclasses.dataclass(frozen=True)
class Classification:
    """What was said of a folder of images; str() is the table.

    Attributes:
        model: the model's folder.
        head: its settings.
        support: class -> number of labelled images.
        answers: one per image, sorted by file.
        skipped: files that were left out, and why.
        written: the files that hold the same.
        unknown_rate: the rate of false alarms at which images are answered "unknown"; None where none is.
    """

    model: str
    head: str
    support: Mapping[str, int]
    answers: Sequence[Answer]
    skipped: Mapping[str, str]
    written: Sequence[str] = ()
    unknown_rate: float | None = None

    def __str__(self) -> str:
        rows = [("file", "class", "probability", "margin")]
        rows += [(a.file, a.answer, f"{a.probability:.3f}", f"{a.margin:.3f}") for a in self.answers]
        files, classes = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines = [f"{file:<{files}}  {name:<{classes}}  {p:>11}  {margin:>6}" for file, name, p, margin in rows]
        lines.insert(1, "-" * len(lines[0]))
        count = f"{len(self.answers)} image{'' if len(self.answers) == 1 else 's'}"
        lines.append(f"{count}, {self.head}; labelled images: {_counted(self.support)}.")
        if self.unknown_rate is not None:
            lines.append(f"{_unknown(self.answers)} of them are answered unknown, at a false-alarm rate of "
                         f"{100 * self.unknown_rate:g} %; the probability is still that of the likeliest class.")
        labelled = sum(answer.labelled for answer in self.answers)
        if labelled:
            lines.append(f"{labelled} of them are labelled images themselves: their answers say nothing about new "
                         "images.")
        if self.told:
            lines.append(self._right_or_wrong())
        lines += [f"left out {file}: {reason}." for file, reason in itertools.islice(self.skipped.items(), _LEFT_OUT)]
        if len(self.skipped) > _LEFT_OUT:
            lines.append(f"left out {len(self.skipped) - _LEFT_OUT} more, which classification.json names.")
        return "\n".join([*lines, *(f"Written: {path}" for path in self.written)])

    def _right_or_wrong(self) -> str:
        told, right = self.told, sum(answer.answer == answer.folder_class for answer in self.told)
        line = (f"{right} of {len(told)} images in folders named after a class are given that class "
                f"({100 * right / len(told):.1f} %)")
        if self.unknown_rate is not None:
            unknown, others = _unknown(told), [answer for answer in self.answers if answer.folder_class is None]
            line += f", {unknown} are answered unknown, and {len(told) - right - unknown} another class"
            line += f"; of the {len(others)} other images, {_unknown(others)} are answered unknown" if others else ""
        return f"{line}."

    @property
    def told(self) -> list[Answer]:
        """The answers to images in folders that are named after a class."""
        return [answer for answer in self.answers if answer.folder_class is not None]

    def json_values(self) -> dict[str, Any]:
        """The same as JSON values."""
        images = [
            {"file": a.file, "class": a.answer, "p_known": a.p_known, "probability": a.probability, "margin": a.margin,
             "folder_class": a.folder_class, "labelled": a.labelled, "probabilities": dict(a.probabilities)}
            for a in self.answers
        ]
        return {"model": self.model, "head": self.head, "unknown_rate": self.unknown_rate,
                "support": dict(self.support), "pictures": images, "skipped": dict(self.skipped)}

    def csv_text(self) -> str:
        """The table as CSV, UTF-8 without a mark at its beginning: csv and most other readers would take it for a part
        of the first column's name. A file or class that begins like a formula has an apostrophe before it.
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["file", "class", "probability", "margin", "p_known"])
        writer.writerows([_shown(a.file), _shown(a.answer), f"{a.probability:.6f}", f"{a.margin:.6f}",
                          "" if a.p_known is None else f"{a.p_known:.6f}"] for a in self.answers)
        return buffer.getvalue()


def _counted(support: Mapping[str, int]) -> str:
    """The labelled images of each class, or of how many classes."""
    if len(support) <= _NAMED:
        return ", ".join(f"{name} {count}" for name, count in support.items())
    least, most = min(support.values()), max(support.values())
    return f"{len(support)} classes, {least if least == most else f'{least} to {most}'} each"


def _unknown(answers: Sequence[Answer]) -> int:
    return sum(answer.unknown for answer in answers)


def _shown(text: str) -> str:
    """A cell that a spreadsheet shows, where it would compute what looks like a formula.

    The writer does not quote a carriage return, which would end the row.
    """
    text = text.replace("\r", "\N{REPLACEMENT CHARACTER}")
    return f"'{text}" if text.startswith(_FORMULA) else text
