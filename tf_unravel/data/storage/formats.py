"""What a file is: its first bytes say so, its suffix only where it is the suffix of a format that is read.

A file with such a suffix counts as an image unopened: if its bytes are something else it is damaged, and must not go
unnoticed. Any other file is opened for its first bytes, so that images without a suffix, or with a wrong one, are read,
and images of formats that are not read can be named.
"""

from __future__ import annotations

import enum
import os
import re
import stat

READ = "JPEG, PNG, BMP, WebP and PPM"
"""The formats that are read, for messages; of an animation (APNG, WebP) the first frame is."""
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".png", ".apng", ".bmp", ".dib", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
OTHER_IMAGES = (  # that people have, and that are not read
    ".heic", ".heif", ".avif", ".gif", ".tif", ".tiff", ".jp2", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg",
    ".ico", ".psd", ".exr", ".hdr", ".pfm", ".pam", ".qoi", ".tga",
)  # fmt: skip
_SYSTEM = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")  # what file managers leave
_HEAD = 256  # bytes of a file that are looked at
_IMAGES = ("JPEG", "PNG", "BMP", "WebP", "PPM")
_MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL ", b"\xff\x0a"),
    "ICO": (b"\0\0\x01\0",),
    "Photoshop": (b"8BPS",),
    "QOI": (b"qoif",),
    "OpenEXR": (b"\x76\x2f\x31\x01",),
    "Radiance HDR": (b"#?RADIANCE",),
    "DDS": (b"DDS ",),
    "raw camera": (b"FUJIFILMCCD-RAW", b"IIRO", b"IIU\0"),
    "PAM": (b"P7\n",),
    "PFM": (b"Pf\n", b"PF\n"),
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "raw camera",
}
_PPM = re.compile(rb"P[1-6](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+\s")
_SVG = re.compile(rb"\s*(?:<\?xml|<!--|<!DOCTYPE svg|<svg)")
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)


class Kind(enum.Enum):
    """What a file is to a reader of images."""

    IMAGE = "an image to read"
    OTHER_IMAGE = "an image of a format that is not read"
    OTHER = "no image"
    HIDDEN = "hidden, or left by a file manager"


def kind_of(path: str | os.PathLike[str]) -> Kind:
    """What a file is, by its name and, where the suffix is none of `EXTENSIONS`, by its first bytes."""
    name = os.path.basename(path).lower()
    if is_hidden(name):
        return Kind.HIDDEN
    if name.endswith(EXTENSIONS):
        return Kind.IMAGE
    found = format_of(_head(path))
    if found in _IMAGES:
        return Kind.IMAGE
    return Kind.OTHER_IMAGE if found or name.endswith(OTHER_IMAGES) else Kind.OTHER


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or was left by a file manager: `._x.jpg` and Thumbs.db are no images."""
    return name.startswith(".") or name.lower() in _SYSTEM


def format_of(head: bytes) -> str:
    """The image format that a file's first 256 bytes are of, "" for none; those of `READ` are spelled as there.

    Example:
        >>> format_of(b"GIF89a...")
        'GIF'
    """
    for name, beginnings in _MAGIC.items():
        if head.startswith(beginnings):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "")
    if (head[:2] == b"BM" and _number(head[14:18]) in _BMP_HEADERS) or _is_dib(head):
        return "BMP"
    if _PPM.match(head):
        return "PPM"
    return "SVG" if _SVG.match(head) and b"<svg" in head else ""


def _is_dib(head: bytes) -> bool:
    """Whether a file is a bitmap without the file header of a BMP."""
    return _number(head[:4]) in _BMP_HEADERS[1:] and _number(head[12:14]) == 1 and _number(head[14:16]) in (
        1, 4, 8, 16, 24, 32)  # fmt: skip


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _head(path: str | os.PathLike[str]) -> bytes:
    """A file's first bytes; none of what cannot be read, or is no file, such as a pipe, which would be waited for."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb", buffering=0) as file:
            return file.read(_HEAD)
    except OSError:
        return b""
