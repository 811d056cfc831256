"""What a file is, its bytes say: every format under every name, in every reader of images; 16 bits; composed names."""

import io
import json
import os
import pathlib
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image

import tf_unravel.data as data
from tf_unravel.data.sources import image_folder
from tf_unravel.data.sources.split_lists import split_list
from tf_unravel.data.storage import decoding, formats
from tf_unravel.data.storage.decoding import Decoding, UnusableImage
from tf_unravel.data.storage.formats import Kind, format_of, kind_of
from tf_unravel.deployment.labelled_images import images_below, read_images, read_labelled

CARD = {"input": {"height": 8, "width": 8, "channels": 3},
        "decoding": {"resize": "bilinear", "crop": False, "background": [255, 255, 255]}}  # of an earlier version
SAVED = {"JPEG": {"quality": 95}, "PNG": {}, "BMP": {}, "DIB": {}, "WEBP": {"lossless": True}, "PPM": {}}
NAMES = ("a", "a.jpg", "a.JPG", "a.jfif", "a.pjpeg", "a.jpe", "a.png", "a.apng", "a.bmp", "a.dib", "a.webp", "a.ppm",
         "a.PGM", "a.gif", "a.tif", "a.heic", "a.txt", "a.jpg.part", "a b.2025-01-01")  # fmt: skip


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_UNRAVEL_CACHE", str(tmp_path / "cache"))


def decode(content: bytes, how: Decoding) -> np.ndarray:
    image, brightest = decoding.decode(content, how)
    decoding.warn_of_dim("decode", [] if brightest is None else [brightest], how, "Decoding(bits={bits})")
    return image


def pixels(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(image: np.ndarray, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, **options)
    return file.getvalue()


def write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def classes(root: pathlib.Path, names=("ant", "bee", "cat")) -> pathlib.Path:
    """<class>/<0 and 1>.png in each of train, val and test."""
    for c, name in enumerate(names):
        for i in range(2):
            write(root / name / f"{i}.png", encoded(pixels(10 * c + i)))
    return root


@pytest.mark.parametrize("format", SAVED)
def test_every_format_is_read_under_every_name(tmp_path, format):
    """By training's reader and by that of labelled images and queries alike, with the pixels of Pillow."""
    content = encoded(pixels(99), format, **SAVED[format])
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    root = classes(tmp_path / "images")
    for name in NAMES:
        write(root / "bee" / name, content)
    found = data.load("image_folder", root=root, fractions=(3, 0, 0), on_duplicates="ignore")
    assert found.images_per_class.tolist() == [2, 2 + len(NAMES), 2]
    given = image_folder.list_files("", root, ["ant", "bee", "cat"])
    rows = [row for row, path in enumerate(given.paths) if pathlib.Path(path).name in NAMES]
    np.testing.assert_array_equal(found.images[rows], np.broadcast_to(expected, (len(NAMES), 8, 8, 3)))
    known = read_labelled(root, CARD)
    np.testing.assert_array_equal(known.images, found.images)
    queries = images_below(root / "bee")
    assert len(queries.images) == 2 + len(NAMES) and not queries.skipped
    np.testing.assert_array_equal(read_images(queries.images, CARD)[0], found.images[found.class_ids == 1])


OTHERS = {
    "GIF": encoded(pixels(0), "GIF"),
    "TIFF": encoded(pixels(0), "TIFF"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1",
    "AVIF": b"\0\0\0\x18ftypavif\0\0\0\0mif1",
    "JPEG 2000": encoded(pixels(0), "JPEG2000"),
    "SVG": b"<?xml version='1.0'?>\n<svg width='1'/>",
    "ICO": encoded(pixels(0, 16), "ICO"),
    "PFM": b"Pf\n2 2\n-1.0\n" + bytes(16),
}


@pytest.mark.parametrize("format", OTHERS)
def test_other_formats_are_named_once_with_their_number(tmp_path, caplog, format):
    root = classes(tmp_path / "images")
    for name in ("a", "b.xyz", "c"):
        write(root / "bee" / name, OTHERS[format])
    assert format_of(OTHERS[format][:256]) == format
    assert data.load("image_folder", root=root, fractions=(3, 0, 0)).images_per_class.tolist() == [2, 2, 2]
    assert caplog.text.count("WARNING") == 1
    assert "image_folder/train: passed over 3 images" in caplog.text and "the first: bee/a." in caplog.text
    assert [pathlib.Path(path).name for path in read_labelled(root, CARD).skipped] == ["a", "b.xyz", "c"]
    assert len(images_below(root).skipped) == 3
    write(root / "bee" / "d.jpg", OTHERS[format])  # called what is read: not to go unnoticed
    with pytest.raises(ValueError, match="bee/d.jpg cannot be used: it (is a|starts with '<'|holds floating)"):
        data.load("image_folder", root=root, fractions=(3, 0, 0))
    with pytest.raises(ValueError, match="bee/d.jpg cannot be used"):
        read_labelled(root, CARD)


def test_files_that_are_no_images_are_counted_and_hidden_ones_are_not(tmp_path, caplog):
    root = classes(tmp_path / "images")
    for name in ("notes.txt", "labels.csv", "empty", "BMW models", "P5 trains 3 4 ", "list.json"):
        write(root / "bee" / name, b"" if name == "empty" else name.encode())
    for name in (".DS_Store", "._0.jpg", "Thumbs.db", "desktop.ini", ".hidden/x.jpg"):
        write(root / "bee" / name, b"\0\x05\x16\x07")
    write(root / "__MACOSX" / "._x.jpg", b"\0\x05\x16\x07")
    os.mkfifo(root / "bee" / "pipe")
    for read in (lambda: data.load("image_folder", root=root, fractions=(3, 0, 0)), lambda: read_labelled(root, CARD)):
        caplog.clear()
        read()
        assert caplog.text.count("WARNING") == 1 and "7 files " in caplog.text and "are not images" in caplog.text
    assert images_below(root / "bee").images == [str(root / "bee" / f"{i}.png") for i in range(2)]


@pytest.mark.parametrize("suffix", [*formats.EXTENSIONS, ""])
@pytest.mark.parametrize("on_corrupt", ["error", "skip"])
def test_a_damaged_image_is_one_under_every_suffix(tmp_path, suffix, on_corrupt):
    root = classes(tmp_path / "images")
    write(root / "bee" / f"torn{suffix}", encoded(pixels(0, 64), "JPEG")[:700])
    if on_corrupt == "skip":
        assert len(data.load("image_folder", root=root, fractions=(3, 0, 0), on_corrupt="skip")) == 6
        assert len(read_labelled(root, CARD, "skip").images) == 6
    else:
        message = f"bee/torn{suffix} cannot be used: it is damaged"
        with pytest.raises(ValueError, match=message):
            data.load("image_folder", root=root, fractions=(3, 0, 0))
        with pytest.raises(ValueError, match=message):
            read_labelled(root, CARD)


def test_datasets_in_folders_take_the_same_files(tmp_path, caplog):
    for split, names in ((split, split_list("cifar_fs", split)) for split in data.SPLITS):
        for name in names:
            write(tmp_path / "cifar" / "data" / name / "0", encoded(pixels(zlib.crc32(name.encode()), 32), "JPEG"))
            write(tmp_path / "cifar" / "data" / name / "1.png", encoded(pixels(zlib.crc32(name.encode()) + 1, 32)))
        classes(tmp_path / "mini" / split, [f"{split}{i}" for i in range(2)])
        write(tmp_path / "mini" / split / f"{split}0" / "2.jfif", encoded(pixels(zlib.crc32(split.encode())), "JPEG"))
    write(tmp_path / "cifar" / "data" / "beaver" / "2.gif", OTHERS["GIF"])
    write(tmp_path / "mini" / "val" / "val0" / "2.gif", OTHERS["GIF"])
    assert data.load("cifar_fs", "val", tmp_path / "cifar").images_per_class.tolist() == [2] * 16
    mini = data.load("mini_imagenet", "val", tmp_path / "mini", image_size=8, on_duplicates="ignore")
    assert mini.images_per_class.tolist() == [3, 2]
    assert caplog.text.count("passed over 1 images") == 2


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **SAVED[format])
    np.testing.assert_array_equal(decode(file.getvalue(), Decoding()), pixels(0))


def test_raw_bitmaps_are_told_from_text():
    assert kind_of(__file__) is Kind.OTHER
    assert format_of(encoded(pixels(0), "DIB")[:256]) == "BMP" == format_of(encoded(pixels(0), "BMP")[:256])
    assert format_of(b"BMW 320i, 1982, " * 4) == "" == format_of(b"P6 is a road " * 4) == format_of(b"(\0\0\0" * 9)
    assert format_of(b"P5\n# a comment\n3 4\n255\n") == "PPM"


# 16 bits


def deep_png(values: np.ndarray, exif: bytes = b"") -> bytes:
    """16-bit PNG of values [H, W] or [H, W, C] with 2, 3 or 4 channels, written here: Pillow writes grey alone."""
    height, width, *channels = values.shape
    kind = {0: 0, 2: 4, 3: 2, 4: 6}[channels[0] if channels else 0]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + (chunk(b"eXIf", exif) if exif else b"")
    return begin + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_pgm(values: np.ndarray, most: int = 65535) -> bytes:
    return b"P5\n%d %d\n%d\n" % (values.shape[1], values.shape[0], most) + values.astype(">u2").tobytes()


def sensor(bits: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A gradient over all that `bits` can hold, uint16 [8, 8] or [8, 8, channels]."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (8, 8, channels)).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    return values[..., 0] if channels == 1 else values


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["grey PNG", "RGB PNG", "RGBA PNG", "PGM"])
def test_bits_scale_16_bit_images_and_none_warns_of_dark_ones(caplog, bits, kind):
    channels = {"RGB PNG": 3, "RGBA PNG": 4}.get(kind, 1)
    values = sensor(bits, channels)
    if channels == 4:
        values[..., 3] = 65535
    content = deep_pgm(values) if kind == "PGM" else deep_png(values)
    expected = np.empty((8, 8, 3), np.uint8)
    expected[...] = (values if channels > 1 else values[..., None])[..., :3] // 2 ** (bits - 8)
    np.testing.assert_array_equal(decode(content, Decoding(bits=bits)), expected)
    assert not caplog.text
    high = np.broadcast_to((values if channels > 1 else values[..., None])[..., :3] // 256, (8, 8, 3))
    np.testing.assert_array_equal(decode(content, Decoding()), high)  # as ever
    assert ("nearly black" in caplog.text and f"hold {bits} bits, set" in caplog.text) == (bits < 16)
    if bits > 8:
        with pytest.raises(UnusableImage, match=f"values up to {(1 << bits) - 1}, more than bits=8 can hold .255."):
            decode(content, Decoding(bits=8))


def test_a_maximum_in_the_file_is_taken_and_floats_are_refused(caplog):
    values = sensor(12)
    for how in (Decoding(), Decoding(bits=12), Decoding(bits=10)):
        decoded = decode(deep_pgm(values, 4095), how)
        assert decoded.max() == 255 and decoded.min() == 0
    assert not caplog.text
    with pytest.raises(UnusableImage, match="holds floating-point values"):
        decode(OTHERS["PFM"], Decoding())
    with pytest.raises(UnusableImage, match="bits=12 is for grey, RGB and RGBA PNG"):
        decode(deep_png(sensor(12, 2)), Decoding(bits=12))


@pytest.mark.parametrize("bits", [0, 7, 17, 12.0, "12", True])
def test_bits_that_cannot_be(bits):
    with pytest.raises(ValueError, match="bits must be None or a whole number from 8 to 16. Received: "):
        Decoding(bits=bits)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [12, 16])
def test_16_bit_images_are_turned_upright(channels, bits):
    values = sensor(bits, channels)[:4]  # [4, 8]
    if channels == 4:
        values[..., 3] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right
    decoded = decode(deep_png(values, exif.tobytes()[6:]), Decoding(bits=bits))
    upright = np.rot90(values, -1) >> (bits - 8)
    np.testing.assert_array_equal(decoded[..., 0], upright if channels == 1 else upright[..., 0])


def test_16_bit_images_of_8_bit_colours_stay_as_they_were():
    """Orientation, transparency and the high byte: what was read right before."""
    values = sensor(16, 4)
    shown = decode(deep_png(values), Decoding(background=(9, 8, 7)))
    flat = Image.fromarray((values >> 8).astype(np.uint8))
    canvas = Image.new("RGBA", (8, 8), (9, 8, 7, 255))
    np.testing.assert_array_equal(shown, np.asarray(Image.alpha_composite(canvas, flat).convert("RGB")))


@pytest.mark.parametrize("processes", [False, True])
def test_a_dark_class_is_warned_of_once_and_bits_mend_it(tmp_path, caplog, monkeypatch, processes):
    if processes:
        monkeypatch.setattr(decoding, "_PROCESSES_FROM", 1)
        monkeypatch.setattr(decoding, "num_cores", lambda: 2)
    root = classes(tmp_path / "images")
    for i in range(3):
        write(root / "bee" / f"deep{i}.png", deep_png(sensor(12, seed=i)))
        write(root / "cat" / f"deep{i}.png", deep_png(sensor(16, seed=i) // (99 if i else 1)))  # a bright one
    for _ in range(2):  # decoded, then from the cache
        caplog.clear()
        dark = data.load("image_folder", root=root, fractions=(3, 0, 0))
        assert caplog.text.count("WARNING") == 1
        assert "image_folder/train: 16-bit images come out nearly black (3 of them, with no value above 4095 of" in (
            caplog.text)
        assert "hold 12 bits, set load.bits = 12; if they are this dark, load.bits = 16." in caplog.text
    caplog.clear()
    meant = data.load("image_folder", root=root, fractions=(3, 0, 0), bits=16)
    np.testing.assert_array_equal(meant.images, dark.images)
    for path in (root / "cat").glob("deep*"):
        path.unlink()
    mended = data.load("image_folder", root=root, fractions=(3, 0, 0), bits=12)
    assert not caplog.text
    expected = [sensor(12, seed=i) >> 4 for i in range(3)]
    np.testing.assert_array_equal(mended.images[mended.class_ids == 1][2:, ..., 0], expected)
    assert mended.fingerprint != dark.fingerprint
    card = {**CARD, "decoding": {**CARD["decoding"], "bits": 12}}
    np.testing.assert_array_equal(read_labelled(root, card).images, mended.images)
    assert not caplog.text
    read_labelled(root, CARD)
    assert caplog.text.count("WARNING") == 1 and "export the model with load.bits = 12" in caplog.text


# Names


COMPOSED = ["Ångström", "café", "naïve", "plain", "zoë", "über", "한국", "ascii", "b", "c"]


@pytest.mark.parametrize("layout", ["random", "folders"])
def test_composed_and_decomposed_names_give_the_same_splits(tmp_path, layout):
    splits = {}
    for form in ("NFC", "NFD"):
        for c, name in enumerate(COMPOSED):
            for i, file in enumerate(("é.png", "f.png", "e.png")):
                where = tmp_path / form / ("" if layout == "random" else data.SPLITS[c % 3])
                write(where / unicodedata.normalize(form, name) / unicodedata.normalize(form, file),
                      encoded(pixels(10 * c + i)))
        splits[form] = [data.load("image_folder", split, tmp_path / form) for split in data.SPLITS]
    for a, b in zip(*splits.values(), strict=True):
        assert a.class_names == b.class_names and a.fingerprint == b.fingerprint and a.random_split == b.random_split
        assert all(unicodedata.is_normalized("NFC", name) for name in a.class_names)
        np.testing.assert_array_equal(a.images, b.images)


def test_one_name_composed_in_two_ways_is_one_class(tmp_path):
    names = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    root = classes(tmp_path / "images", [*names, "tea", "water"])
    for read in (lambda: data.load("image_folder", root=root), lambda: read_labelled(root, CARD)):
        with pytest.raises(ValueError, match=r"two folders for one class: .*'cafe\\u0301'.*; move") as caught:
            read()
        assert "'caf\\xe9'" in str(caught.value) and "\n" not in str(caught.value)
    for split, name in zip(data.SPLITS, [*names, "tea"], strict=True):
        classes(tmp_path / "splits" / split, [name])
    with pytest.raises(ValueError, match="class 'café' is in both"):
        data.load("image_folder", root=tmp_path / "splits")
    made = data.ClassImages(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), ("cafe\u0301", "tea"))
    assert made.class_names == ("café", "tea") and made.name == "images"
    with pytest.raises(ValueError, match="class names must differ"):
        data.ClassImages(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), tuple(names))


def test_labelled_folders_of_macos_are_the_classes_of_linux(tmp_path):
    root = classes(tmp_path / "photos", [unicodedata.normalize("NFD", name) for name in ("café", "tea")])
    assert read_labelled(root, CARD).class_names == ("café", "tea")


def test_long_names_and_names_that_differ_in_case(tmp_path):
    root = classes(tmp_path / "images", ["Cat", "cat", "x" * 255])
    write(root / "Cat" / ("y" * 251 + ".jpg"), encoded(pixels(50), "JPEG"))
    found = data.load("image_folder", root=root, fractions=(3, 0, 0), on_duplicates="ignore")
    assert found.class_names == ("Cat", "cat", "x" * 255) and found.images_per_class.tolist() == [3, 2, 2]


def test_a_card_keeps_the_bits(tmp_path):
    from tf_unravel.deployment.labelled_images import decoding_of

    assert decoding_of(CARD).bits is None
    card = json.loads(json.dumps({**CARD, "decoding": {**CARD["decoding"], "bits": 10}}))
    assert decoding_of(card).bits == 10
