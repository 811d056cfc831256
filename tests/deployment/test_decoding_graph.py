"""Files decoded inside a graph are those of Pillow's path, and whatever is no whole image is one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_unravel.backbones import conv4
from tf_unravel.data.storage import decoding
from tf_unravel.data.storage.decoding import Decoding
from tf_unravel.deployment import export, labelled_images
from tf_unravel.deployment.exporting.decoding_graph import decoder
from tf_unravel.deployment.graph_checks import said_by
from tf_unravel.heads import Ridge

PLAIN = Decoding((24, 32), background=(10, 200, 30))
RNG = np.random.default_rng(0)
Y, X = np.mgrid[:60, :80]
PIXELS = np.stack([3 * X, 4 * Y, (X + Y) * 2 % 256], -1).astype(np.uint8)
PIXELS[20:40, 30:50] = RNG.integers(0, 256, (20, 20, 3))
IMAGE = Image.fromarray(PIXELS)
GREY = IMAGE.convert("L")
DEEP = PIXELS.astype(np.uint16) << 8 | RNG.integers(0, 256, PIXELS.shape).astype(np.uint16)
ALPHA = np.clip(np.abs(X - 40) * 6, 0, 255).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def see_through(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(Image.fromarray(ALPHA))
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def sixteen_bits(values: np.ndarray, colours: int) -> bytes:
    """A PNG, which Pillow does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colours, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker of cameras", orientation
    return exif


JPEG, PNG, BMP = (saved(IMAGE, kind) for kind in ("JPEG", "PNG", "BMP"))
BIG_ENDIAN = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0\0\0\0\0"
FILES = {
    "JPEG": JPEG,
    "JPEG, progressive": saved(IMAGE, "JPEG", progressive=True),
    "JPEG, grey": saved(GREY, "JPEG"),
    "JPEG, CMYK": saved(IMAGE.convert("CMYK"), "JPEG"),
    **{f"JPEG, EXIF {i}": saved(IMAGE, "JPEG", exif=turned(i)) for i in range(1, 10)},
    "JPEG, EXIF behind a profile": saved(IMAGE, "JPEG", exif=turned(6), icc_profile=b"x" * 100_000, comment=b"hello"),
    "JPEG, EXIF of the other order": saved(IMAGE, "JPEG", exif=BIG_ENDIAN),
    "JPEG, EXIF cut": saved(IMAGE, "JPEG", exif=BIG_ENDIAN[:-10]),
    "PNG": PNG,
    "PNG, grey": saved(GREY, "PNG"),
    "PNG, 1 bit": saved(IMAGE.convert("1"), "PNG"),
    "PNG, palette": saved(IMAGE.quantize(200), "PNG"),
    "PNG, 4 bits": saved(IMAGE.quantize(9), "PNG"),
    "PNG, a transparent colour of a palette": saved(IMAGE.quantize(200), "PNG", transparency=5),
    "PNG, a palette with alpha": saved(IMAGE.quantize(20), "PNG", transparency=bytes(range(0, 200, 10))),
    "PNG, a transparent grey": saved(GREY, "PNG", transparency=GREY.getpixel((5, 7))),
    "PNG, a transparent colour": saved(IMAGE, "PNG", transparency=IMAGE.getpixel((5, 7))),
    "PNG, RGBA": saved(see_through(IMAGE), "PNG"),
    "PNG, grey with alpha": saved(see_through(GREY), "PNG"),
    "PNG, RGBA, EXIF": saved(see_through(IMAGE), "PNG", exif=turned(6)),
    "PNG, 16 bits": sixteen_bits(DEEP, 2),
    "PNG, 16 bits, grey": sixteen_bits(DEEP[..., 0], 0),
    "PNG, 16 bits, RGBA": sixteen_bits(np.dstack([DEEP, ALPHA * np.uint16(257)]), 6),
    "BMP": BMP,
    "BMP, rows padded": saved(IMAGE.crop((0, 0, 77, 59)), "BMP"),
    "BMP, upside down": BMP[:22] + struct.pack("<i", -60) + BMP[26:],
    "BMP, grey": saved(GREY, "BMP"),
    "BMP, palette": saved(IMAGE.quantize(9), "BMP"),
    "BMP, 32 bits": saved(see_through(IMAGE), "BMP"),
}


def by_graph(files, how=PLAIN, channels=3):
    return decoder(how, channels)(tf.constant("query_bytes"), tf.constant(files)).numpy().astype(int)


def by_pillow(files, how=PLAIN):
    return np.stack([decoding.decode(data, how)[0] for data in files]).astype(int)


def test_every_kind_of_file_is_that_of_pillow_within_one_grey_level():
    differences = np.abs(by_graph([*FILES.values()]) - by_pillow([*FILES.values()]))
    worst = dict(zip(FILES, differences.max((1, 2, 3)).tolist(), strict=True))
    assert max(worst.values()) == 1, worst
    assert differences.mean() < 0.2


def test_images_of_the_models_size_are_those_of_pillow_exactly():
    of_its_size = {name: data for name, data in FILES.items() if Image.open(io.BytesIO(data)).size == (80, 60)
                   and not (name.startswith(("JPEG, EXIF", "PNG, RGBA, EXIF")))}
    how = Decoding((60, 80), background=(10, 200, 30))
    np.testing.assert_array_equal(by_graph([*of_its_size.values()], how), by_pillow(of_its_size.values(), how))


@pytest.mark.parametrize(("how", "most", "mean"), [
    (Decoding((40, 24), crop=True, background=(10, 200, 30)), 1, 0.2),
    (Decoding((40, 24), "bicubic"), 8, 0.2),
    (Decoding((40, 24), "lanczos", crop=True), 20, 0.25),
    (Decoding((24, 32), "nearest"), 0, 0),
    (Decoding((24, 32), "box"), 1, 0.4),
], ids=str)  # fmt: skip
def test_every_filter_is_that_of_pillow(how, most, mean):
    files = [FILES[name] for name in ("JPEG", "PNG, RGBA", "BMP", "JPEG, EXIF 6")]
    differences = np.abs(by_graph(files, how) - by_pillow(files, how))
    assert differences.max() <= most and differences.mean() <= mean


def test_sixteen_bit_files_of_a_camera_and_grey_models(tmp_path):
    """`bits` of the card, 1 channel: the images are those that `classify` reads from the same files."""
    how = Decoding((60, 80), bits=12)
    files = [sixteen_bits(DEEP >> 4, 2), sixteen_bits(DEEP[..., 0] >> 4, 0), PNG,
             sixteen_bits(np.dstack([DEEP >> 4, ALPHA * np.uint16(257)]), 6)]
    paths = [str(tmp_path / str(number)) for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        with open(path, "wb") as file:
            file.write(data)
    card = {"input": {"height": 60, "width": 80, "channels": 1},
            "decoding": {"resize": "bilinear", "crop": False, "background": (255, 255, 255), "bits": 12}}
    differences = np.abs(by_graph(files, how, 1) - labelled_images.read_images(paths, card)[0])
    assert differences.max() <= 1 and differences.mean() < 1e-3  # a sum of three products that ends in .5
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        by_graph([PNG, sixteen_bits(DEEP, 2)], how, 1)
    assert "of 12 bits, values up to 4095. Received: [query_bytes] [file] [1] [value] [65" in said_by(caught.value)


NOT_WHOLE = "an image file is damaged. Received: "
REFUSED = {
    "empty": (b"", "must be JPEG, PNG or BMP. Received: [query_bytes] [file] [1] [of] [0] [bytes]"),
    "a web page": (b"<html>", "must be JPEG, PNG or BMP."),
    "WebP": (saved(IMAGE, "WEBP"), "must be JPEG, PNG or BMP."),
    "BMP of 1 bit": (saved(IMAGE.convert("1"), "BMP"), "BMP files must be uncompressed, of 8, 24 or 32 bits."),
    "BMP, cut": (BMP[:500], "a BMP file must be whole. Received: [query_bytes] [file] [1] [bytes] [500] [of] [14454]"),
    "BMP, header cut": (BMP[:20], "BMP files must be uncompressed"),
    "JPEG, cut": (JPEG[:900], NOT_WHOLE),
    "JPEG, header cut": (JPEG[:100], NOT_WHOLE),
    "JPEG, three bytes": (JPEG[:3], NOT_WHOLE),
    "PNG, cut": (PNG[:500], NOT_WHOLE),
    "PNG, header cut": (PNG[:20], "images must have 1 to 89478485 pixels"),
    "PNG, another checksum": (PNG[:60] + b"\0\0" + PNG[62:], NOT_WHOLE),
    "PNG of gigabytes": (PNG[:16] + struct.pack(">II", 30000, 30000) + PNG[24:],
                         "32768 on a side. Received: [query_bytes] [file] [1] [height] [30000] [width] [30000]"),
    "PNG of 2**63 pixels": (PNG[:16] + struct.pack(">II", 2**32 - 1, 2**31) + PNG[24:], "images must have 1 to"),
    "BMP of gigabytes": (BMP[:18] + struct.pack("<ii", 30000, -(2**31)) + BMP[26:], "images must have 1 to"),
    "JPEG of gigabytes": (JPEG.replace(struct.pack(">HH", 60, 80), struct.pack(">HH", 30000, 30000)),
                          "images must have 1 to"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_is_one_line(name):
    data, message = REFUSED[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        by_graph([PNG, data])
    line = said_by(caught.value)
    assert message in line and "\n" not in line and len(line) < 200, line


def test_headers_of_very_many_segments_end():
    """Each is a step of a loop: it stops long before a million."""
    many = JPEG[:2] + b"\xff\xe2\0\2" * 1_000_000 + JPEG[2:]
    chunks = PNG[:33] + chunk(b"teXt", b"") * 1_000_000 + PNG[33:]
    assert np.abs(by_graph([many, chunks]) - by_pillow([JPEG, PNG])).max() == 1


def test_damaged_files_are_decoded_or_refused():
    """Bytes changed at random: nothing but InvalidArgumentError comes back."""
    rng, refused = np.random.default_rng(0), 0
    kinds = [FILES[name] for name in ("JPEG, EXIF 6", "PNG, RGBA, EXIF", "PNG, palette", "BMP, palette")]
    for number in range(200):
        data = bytearray(kinds[number % len(kinds)])
        for place in rng.integers(0, 200 if number % 3 else len(data), rng.integers(1, 5)):
            data[place] = rng.integers(256)
        try:
            by_graph([bytes(data)])
        except tf.errors.InvalidArgumentError as error:
            refused += 1
            assert "Graph execution error" not in said_by(error)
    assert 50 < refused < 200


def test_a_model_of_other_channels_takes_pixels_alone(tmp_path):
    model = tf.saved_model.load(str(export(conv4((16, 16, 2), filters=2), Ridge(), tmp_path / "model")))
    assert set(model.signatures) == {"features", "classify", "serving_default"}
