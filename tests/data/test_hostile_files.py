"""Archives and pictures from strangers: what climbs, links elsewhere or unpacks to too much, in bounded memory.

The published archives are known by their hashes, which these tests take out of the way: even then nothing is unpacked
to the disk, no name of a member becomes a path, and sizes are known before anything is read.
"""

import hashlib
import io
import json
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tests.data.test_cifar_fs import archive_bytes
from tests.data.test_omniglot import alphabets
from tests.data.test_omniglot import write as write_omniglot
from tf_unravel.data.sources import cifar_fs, omniglot


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tar(tmp_path, monkeypatch, *members: tarfile.TarInfo):
    """An archive that begins with these members and goes on with the good ones."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(b"x" * min(info.size, 512)))
        with tarfile.open(fileobj=io.BytesIO(archive_bytes(["train", "test"]))) as good:
            for info in good.getmembers():
                if info.name not in {member.name for member in members}:
                    archive.addfile(info, good.extractfile(info))
    path = tmp_path / "data" / "cifar-100-python.tar.gz"
    path.parent.mkdir()
    path.write_bytes(file.getvalue())
    monkeypatch.setattr(cifar_fs, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_file_is_refused(tmp_path, monkeypatch, kind):
    (tmp_path / "secret").write_bytes(b"secret")
    path = tar(tmp_path, monkeypatch, link("cifar-100-python/train", kind, str(tmp_path / "secret")))
    with pytest.raises(ValueError, match="tar.gz is damaged or truncated .train is no file of at most") as caught:
        data.load("cifar_fs", split="train", root=path.parent)
    assert "\n" not in str(caught.value)


def test_a_member_of_absurd_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    info = tarfile.TarInfo("cifar-100-python/test")
    info.size = 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    content = archive_bytes(["train"])
    good = zlib.decompress(content, 31)[:-1024].rstrip(b"\0")
    good += b"\0" * (-len(good) % 512)
    path = tmp_path / "cifar-100-python.tar.gz"
    packed = zlib.compressobj(wbits=31)
    path.write_bytes(packed.compress(good + header) + packed.flush())
    monkeypatch.setattr(cifar_fs, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="damaged or truncated"):
        data.load("cifar_fs", split="train", root=tmp_path)


def test_members_that_climb_are_never_written(tmp_path, monkeypatch):
    names = ("../../escaped", str(tmp_path / "escaped"), "cifar-100-python/../up")
    climbing = [tarfile.TarInfo(name) for name in names]
    for info in climbing:
        info.size = 7
    path = tar(tmp_path, monkeypatch, *climbing)
    before = {entry for entry in tmp_path.rglob("*") if "cache" not in entry.parts}
    assert data.load("cifar_fs", split="train", root=path.parent).num_classes == 64
    assert {entry for entry in tmp_path.rglob("*") if "cache" not in entry.parts} == before
    assert not [entry for entry in (tmp_path / "cache").rglob("*") if "escaped" in entry.name or "up" == entry.name]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A black 1-bit PNG, its lines compressed, with more chunks before them."""
    lines = zlib.compressobj(9)
    packed = b"".join(lines.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + lines.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


@pytest.mark.parametrize(("name", "content", "message"), [
    ("A00/character01/bomb.png", bytes(50 << 20), "unpacks to more than"),
    ("A00/character01/wide.png", png(60000, 2), "has 60000x2 pixels"),
    ("A00/../../character01.png", png(105, 105), None),
    ("../../etc/character01.png", png(105, 105), None),
], ids=["a bomb", "a wide one", "one that climbs below", "one that climbs"])  # fmt: skip
def test_an_archive_of_drawings(tmp_path, monkeypatch, name, content, message):
    path = tmp_path / "images_background_small1.zip"
    write_omniglot(path, alphabets(6, 3, "A"), monkeypatch)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{path.stem}/{name}" if not name.startswith("..") else name, content)
    monkeypatch.setitem(omniglot.MD5, path.name, hashlib.md5(path.read_bytes()).hexdigest())
    before = {entry for entry in tmp_path.rglob("*") if "cache" not in entry.parts}

    def load():
        return [data.load("omniglot", split=split, root=tmp_path, scheme="small") for split in ("train", "val", "test")]

    if message is None:
        load()
    else:
        with pytest.raises(ValueError, match=f"small1.zip: .* is damaged .it {message}.*download it again"):
            load()
    assert {entry for entry in tmp_path.rglob("*") if "cache" not in entry.parts} == before


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "JPEG")
    return file.getvalue()


def bmp_header(width: int, height: int) -> bytes:
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(sizes), 0, 0, 54) + sizes


ABSURD = {
    "60000x1000.png": (png(60000, 1000), "60000x1000 pixels, more than 32768 on a side"),
    "60000x20000.png": (png(60000, 20000), "more pixels than the limit"),
    "1x60000.png": (png(1, 60000), "1x60000 pixels, more than 32768"),
    "60000x500.jpg": (jpeg(60000, 500), "60000x500 pixels, more than 32768"),
    "60000x60000.bmp": (bmp_header(60000, 60000), "more pixels than the limit"),
    "text.png": (png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20)))), "is damaged"),
    "profile.png": (png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20)))), ""),
}
BOUNDED = """
import json, resource, sys
from tf_unravel.data.storage import decoding
import numpy as np
from PIL import Image
Image.init()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (192 << 20), used + (192 << 20)))
out = np.zeros((len(sys.argv) - 1, 8, 8, 3), np.uint8)
failures, _ = decoding.decode_files(sys.argv[1:], out, decoding.Decoding((8, 8)))
print(json.dumps({failure.row: failure.reason for failure in failures}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_absurd_pictures_are_refused_in_bounded_memory(tmp_path):
    for name, (content, _) in ABSURD.items():
        (tmp_path / name).write_bytes(content)
    names = list(ABSURD)  # no more than 192 MiB beyond what is there before, for all of them in two threads
    done = subprocess.run([sys.executable, "-c", BOUNDED, *(str(tmp_path / name) for name in names)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    for row, name in enumerate(names):
        assert ABSURD[name][1] in said.get(str(row), ""), (name, said.get(str(row)))


def test_a_folder_with_an_absurd_picture(tmp_path):
    for number in range(3):
        for name in ("ant", "bee", "cow"):
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "ant" / "wide.png").write_bytes(ABSURD["60000x1000.png"][0])
    options = {"root": tmp_path / "photos", "fractions": (1, 1, 1), "image_size": 8}
    splits = [data.load("image_folder", split=s, on_corrupt="skip", **options) for s in ("train", "val", "test")]
    assert sum(len(split.images) for split in splits) == 9
    with pytest.raises(ValueError, match="ant/wide.png cannot be used: it has 60000x1000 pixels"):
        for split in ("train", "val", "test"):
            data.load("image_folder", split=split, **options)
