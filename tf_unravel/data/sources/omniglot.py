"""Omniglot: handwritten characters of 50 alphabets, 20 drawings of each character by 20 people.

Read from the official archives, `images_background.zip` (964 characters, 30 alphabets) and `images_evaluation.zip` (659
characters, 20 alphabets), from the folders that they unpack to, `images_background/<Alphabet>/character<NN>/*.png` and
`images_evaluation/`, or from the small archives, `images_background_small1.zip` and `images_background_small2.zip` (136
and 156 characters of 5 alphabets each, 50 characters in both). Archives are checked by their published MD5, folders by
a digest of every drawing. Images are greyscale, one channel.

Schemes, that is which character goes to which split:

- "vinyals": the fixed 1028/172/423 characters of Vinyals et al. 2016 (splits/omniglot_vinyals_*.txt). It cuts through
  alphabets: Gurmukhi has characters in train and in test.
- "background": as the dataset was made; test is the evaluation archive, train the background archive without
  `val_alphabets` of its alphabets, which are val.
- "small": the small archives that are there; whole alphabets are split at random: train 0.64, val 0.16, test 0.2.

Reference: Lake, Salakhutdinov and Tenenbaum 2015, https://github.com/brendenlake/omniglot.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from tf_unravel.data.class_images import ClassImages, content_fingerprint
from tf_unravel.data.sources.image_folder import split_classes
from tf_unravel.data.sources.split_lists import split_list
from tf_unravel.data.storage import cache, digests
from tf_unravel.data.storage.decoding import FILTERS, Decoding

MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    "images_background_small1.zip": "e704a628b5459e08445c13499850abc4",
    "images_background_small2.zip": "b75a71a51d3b13f821f212756fe481fd",
}
_OFFICIAL = ("images_background.zip", "images_evaluation.zip")
_SMALL = ("images_background_small1.zip", "images_background_small2.zip")
_ARCHIVES = {"vinyals": _OFFICIAL, "background": _OFFICIAL, "small": _SMALL}
# Of the names and bytes of the drawings in the folders that the official archives unpack to (`digests.digest_of_files`)
FOLDER_SHA256 = {
    "images_background": "07356096b8076fcf915341f8715e94822249e2a4d5b999fd2d0f6cf9ebffebd5",
    "images_evaluation": "f5165eb5f20d18e13c6515650b69a42a2c0507506969d410ba5e4a1c572bd542",
}
_TURNS = ("", "/rotated090", "/rotated180", "/rotated270")
_VERSION = 1
_MOST_BYTES = 1 << 18  # of a drawing, unpacked; the published ones have some 300
_MOST_SIDE = 1024  # pixels; the published ones have 105


def load(
    split: str,
    root: str | os.PathLike[str] | None = None,
    scheme: str | None = None,
    rotations: bool = False,
    image_size: int = 28,
    resize: str = "lanczos",
    inverted: bool = True,
    val_alphabets: int = 5,
    seed: int = 0,
) -> ClassImages:
    """One split of Omniglot.

    Args:
        split: "train", "val" or "test".
        root: the folder with the zip files, which are not unpacked, or with `images_background/` and
            `images_evaluation/`. Where both are, the zip files are read.
        scheme: "vinyals", "background" or "small", see the module; None takes "vinyals" where both official sets are,
            else "small".
        rotations: add every character turned by 90, 180 and 270 degrees (anticlockwise) as classes of their own, named
            "Greek/character01/rotated090".
        image_size: pixels of the square that the 105x105 drawings are resized to.
        resize: filter, see `image_folder.load`; "lanczos" is MAML's.
        inverted: True gives ink 255 on 0, as MAML and Vinyals have it; False the files' black ink on white.
        val_alphabets: for "background": how many of the 30 background alphabets are val; 0 leaves train all 964
            characters, and no val.
        seed: for "background" and "small": which alphabets go where.

    Returns:
        Images uint8 [N, image_size, image_size, 1] as a memory map; class names are "<alphabet>/character<NN>".

    Raises:
        ValueError: archives or folders that are missing or not the published ones, or a split without alphabets.

    Example:
        >>> split = load("train", "data/omniglot", rotations=True)  # doctest: +SKIP
    """
    if root is None:
        expected = f"{' and '.join(_OFFICIAL)}, zipped or unpacked, or {' or '.join(_SMALL)}"
        raise ValueError(f"omniglot needs root (--data_root): the folder with {expected}.")
    root = pathlib.Path(root).expanduser()
    Decoding((image_size, image_size), resize)  # checks both
    scheme, sources = _scheme(root, scheme)
    drawings = _drawings(sources)
    characters = _characters(split, scheme, drawings, val_alphabets, seed)
    names = tuple(f"{name}{turn}" for name in characters for turn in (_TURNS if rotations else _TURNS[:1]))
    files = [file for source in sources for file in _files_of(source)]
    chosen = digests.digest_of_text(repr(names))
    wanted = {name: drawings[name] for name in characters}
    arrays = digests.cached_of_files(
        f"omniglot/{split}", root, files,
        lambda digest: f"omniglot/{_VERSION} {digest} {chosen} {image_size} {resize} {inverted}",
        lambda create: _fill(create, wanted, names, image_size, resize, inverted),
    )  # fmt: skip
    return ClassImages.of_arrays(arrays, names, f"omniglot/{split}")


def _scheme(root: pathlib.Path, scheme: str | None) -> tuple[str, list[pathlib.Path]]:
    """(scheme, its archives or folders in root), checked."""
    there = {name: source for name in MD5 if (source := _source(root / name)) is not None}
    if scheme is None:
        scheme = "vinyals" if all(name in there for name in _OFFICIAL) else "small"
        if not any(name in there for name in _ARCHIVES[scheme]):
            raise ValueError(
                f"omniglot: {root} holds no archive; put there {' and '.join(_OFFICIAL)} (or what they unpack to), or "
                f"{' or '.join(_SMALL)}, from https://github.com/brendenlake/omniglot/tree/master/python."
            )
    if scheme not in _ARCHIVES:
        raise ValueError(f"omniglot: scheme must be one of {', '.join(_ARCHIVES)}. Received: {scheme!r}.")
    missing = [name for name in _ARCHIVES[scheme] if name not in there]
    if missing and (scheme != "small" or len(missing) == len(_SMALL)):
        found = f" Found: {', '.join(there)}, for which there is scheme='small'." if there else ""
        raise ValueError(f"omniglot: scheme {scheme!r} needs {missing[0]}, which is not in {root}.{found}")
    sources = [there[name] for name in _ARCHIVES[scheme] if name in there]
    for source in sources:
        _check(source)
    return scheme, sources


def _source(archive: pathlib.Path) -> pathlib.Path | None:
    """The archive, or the folder that it unpacks to where only that is there."""
    folder = archive.with_suffix("")
    if archive.is_file():
        return archive
    return folder if folder.name in FOLDER_SHA256 and folder.is_dir() else None


def _files_of(source: pathlib.Path) -> list[str]:
    """The archive, or the drawings of the folder, sorted; relative to the folder that it is in."""
    if not source.is_dir():
        return [source.name]
    return sorted(path.relative_to(source.parent).as_posix() for path in source.glob("*/*/*.png"))


def _check(source: pathlib.Path) -> None:
    if not source.is_dir():
        digests.check_hash(source, "md5", MD5[source.name])
        return
    files, published = _files_of(source), FOLDER_SHA256[source.name]
    digest = digests.digest_of_files(source.parent, files)
    if digest != published:
        raise ValueError(
            f"omniglot: {source} is not what {source.name}.zip unpacks to: drawings are missing, added or changed; "
            f"unpack it again. Received: {len(files):,} drawings, SHA-256 {digest[:12]} instead of {published[:12]}."
        )


Drawings = Mapping[str, tuple[pathlib.Path, list[str]]]


def _drawings(sources: Sequence[pathlib.Path]) -> Drawings:
    """{"Greek/character01": (archive or folder, its drawings, sorted)}; a character in two archives counts once."""
    found: dict[str, tuple[pathlib.Path, list[str]]] = {}
    for source in sources:
        here: dict[str, list[str]] = {}
        for member in _members(source):
            parts = member.split("/")  # images_background/Greek/character01/0394_01.png
            if len(parts) == 4:
                here.setdefault(f"{parts[1]}/{parts[2]}", []).append(member)
        for name, names in here.items():
            found.setdefault(name, (source, names))
    return dict(sorted(found.items()))


def _members(source: pathlib.Path) -> list[str]:
    """The drawings in an archive or a folder, sorted."""
    if source.is_dir():
        return _files_of(source)
    try:
        with zipfile.ZipFile(source) as archive:
            return sorted(name for name in archive.namelist() if name.endswith(".png"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source} is damaged ({error}); download it again.") from error


def _characters(split: str, scheme: str, drawings: Drawings, val_alphabets: int, seed: int) -> list[str]:
    """The characters of a split, sorted."""
    if scheme == "vinyals":
        wanted = split_list("omniglot_vinyals", split)
        missing = [name for name in wanted if name not in drawings]
        if missing:
            raise ValueError(f"omniglot: {missing[0]} is in no archive ({len(missing)} missing); download both again.")
        return list(wanted)
    if scheme == "background" and split == "test":
        return [name for name, (path, _) in drawings.items() if path.stem == "images_evaluation"]
    pool = [name for name, (path, _) in drawings.items() if path.stem != "images_evaluation"]
    alphabets = sorted({_alphabet(name) for name in pool})
    parts: Sequence[float] = (0.64, 0.16, 0.2)
    if scheme == "background":
        if not 0 <= val_alphabets < len(alphabets):
            raise ValueError(f"omniglot: val_alphabets must be 0..{len(alphabets) - 1}. Received: {val_alphabets}.")
        parts = (len(alphabets) - val_alphabets, val_alphabets, 0)
    chosen = set(split_classes(alphabets, split, seed, parts, f"omniglot, scheme {scheme!r}, alphabets"))
    return [name for name in pool if _alphabet(name) in chosen]


def _alphabet(character: str) -> str:
    return character.split("/")[0]


def _fill(
    create: cache.Create, drawings: Drawings, names: Sequence[str], size: int, resize: str, inverted: bool
) -> None:
    turns = len(names) // len(drawings)
    counts = np.repeat([len(members) for _, members in drawings.values()], turns)
    images = create("images", (int(counts.sum()), size, size, 1), np.uint8)
    row = 0
    sources = {path for path, _ in drawings.values() if not path.is_dir()}
    with contextlib.ExitStack() as stack:
        archives = {path: stack.enter_context(zipfile.ZipFile(path)) for path in sources}
        for path, members in drawings.values():
            # [20, s, s]
            drawn = np.stack([_read(path, archives.get(path), member, size, resize) for member in members])
            drawn = 255 - drawn if inverted else drawn
            for turn in range(turns):
                images[row : row + len(drawn), ..., 0] = np.rot90(drawn, turn, axes=(1, 2))
                row += len(drawn)
    class_ids = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    cache.store(create, class_ids=class_ids, fingerprint=content_fingerprint(images, class_ids, tuple(names)))


def _read(path: pathlib.Path, archive: zipfile.ZipFile | None, member: str, size: int, resize: str) -> np.ndarray:
    """One drawing of an archive or folder, uint8 [size, size], ink 0 on 255; refuses what is too large for one."""
    file = path.parent / member
    try:
        length = file.stat().st_size if archive is None else archive.getinfo(member).file_size
        if length > _MOST_BYTES:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES >> 10} KiB")
        content = file.read_bytes() if archive is None else archive.read(member)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if max(image.size) > _MOST_SIDE:
                raise ValueError(f"it has {image.width}x{image.height} pixels")
            grey = image.convert("L")
    except (OSError, ValueError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error, struct.error,
            Image.DecompressionBombError) as error:  # fmt: skip
        raise ValueError(f"{path}: {member} is damaged ({error}); download it again.") from error
    return np.asarray(grey if grey.size == (size, size) else grey.resize((size, size), FILTERS[resize]))
