"""Image files become pixels inside an exported graph, as `data.storage.decoding` makes them by Pillow.

The signatures `<name>_encoded` take JPEG, PNG and BMP files as strings, of images of any sizes, and hand the pixels to
the signature <name>. The orientation in EXIF is applied, transparency is composited on the card's background, 16 bits
become 8 by the card's `bits`, and the card's filter and crop are used. Decoded pixels are Pillow's; resized ones differ
by a grey level, as Pillow rounds after each axis (`docs/guides/export_and_serving.md` has the figures).

Pillow's path reads more: WebP, PPM, BMP that is compressed or has fewer than 8 bits, and orientation in XMP or behind a
PNG's pixels, which is ignored here. Nothing warns of 16-bit images that are nearly black.

A file's header is checked before it is decoded: a few bytes may promise gigabytes. The files of a request are decoded
one after the other, so that a single image is held at its full size: at most 0.3 GiB, 0.6 for a progressive JPEG and
1.1 for a PNG with transparency.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tf_unravel.adaptation.labels import required
from tf_unravel.data.storage.decoding import MOST_SIDE, Decoding
from tf_unravel.deployment.labelled_images import LUMA

ENCODED = {"images": "image_bytes", "support_images": "support_bytes", "query_images": "query_bytes"}
"""What the inputs of pixels are called where they are files."""
MOST_PIXELS = (1 << 30) // 12  # as Pillow: a quarter of a GiB of RGB
_KERNELS = {"box": "box", "bilinear": "triangle", "bicubic": "keyscubic", "lanczos": "lanczos3"}
_MOST_SEGMENTS = 128  # of a header: each is a step of a loop, and a hostile file has millions
_ORIENTATION, _SHORT = 0x0112, 3  # of EXIF: a tag and the type of its value


def encoded_signatures(pixels: Mapping[str, Any], how: Decoding, channels: int) -> dict[str, Any]:
    """Signatures that take image files.

    Args:
        pixels: name -> concrete function that takes uint8 images [B, H, W, C] under names of `ENCODED`.
        how: the card's decoding, with a size.
        channels: C; with anything but 1 and 3 there are no such files, and no signatures.

    Returns:
        <name>_encoded -> concrete function.
    """
    if channels not in (1, 3):
        return {}
    decode = decoder(how, channels)
    return {f"{name}_encoded": _encoded(function, decode) for name, function in pixels.items()}


def _encoded(function: Any, decode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Any:
    """The signature of pixels `function` with files in their place."""
    specs = {spec.name: spec for spec in tf.nest.flatten(function.structured_input_signature)}
    files = {of_files: name for name, of_files in ENCODED.items() if name in specs}
    wanted = {ENCODED.get(name, name): tf.TensorSpec([None], tf.string) if name in ENCODED else spec
              for name, spec in specs.items()}

    def encoded(**inputs: tf.Tensor) -> Any:
        return function(**{files.get(name, name): decode(tf.constant(name), value) if name in files else value
                           for name, value in inputs.items()})

    return tf.function(encoded, autograph=False).get_concrete_function(**wanted)


@functools.cache  # traced once for all signatures, and all models of one kind
def decoder(how: Decoding, channels: int) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """(name of the input, files string [N]) -> uint8 [N, H, W, C], (H, W) by `how.size`."""
    if how.size is None:
        raise ValueError("Files of any size become pixels of one; give a decoding with a size. Received: size=None.")
    shape = (*how.size, channels)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([None], tf.string)], autograph=False)
    def decode(name: tf.Tensor, files: tf.Tensor) -> tf.Tensor:
        files = required(files, (tf.size(files) > 0, "there must be at least one image file.", [name, tf.shape(files)]))

        def one(file: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            place = [name, "file", file[0]]
            image = _resized(_decoded(file[1], how, place), how, shape[:2])
            return tf.ensure_shape(_grey(image) if channels == 1 else image, shape)

        return tf.map_fn(one, (tf.range(tf.size(files)), files), parallel_iterations=1,
                         fn_output_signature=tf.TensorSpec(shape, tf.uint8))

    return decode.get_concrete_function()


def _decoded(data: tf.Tensor, how: Decoding, place: list[Any]) -> tf.Tensor:
    """A file, a scalar string, as uint8 [h, w, 3], upright; `place` says which file it is."""
    raw = tf.io.decode_raw(data + b"\0" * 64, tf.uint8)  # what is read of a header is there
    length = tf.strings.length(data)
    starts = tf.stack([tf.reduce_all(raw[: len(magic)] == tf.constant(list(magic), tf.uint8))
                       for magic in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")])
    message = "image files must be JPEG, PNG or BMP."
    kind = required(tf.argmax(starts), (tf.reduce_any(starts), message, [*place, "of", length, "bytes"]))
    branches = [lambda: _jpeg(data, raw, length, place), lambda: _png(data, raw, length, how, place),
                lambda: _bmp(data, raw, length, place)]
    image, exif = tf.switch_case(tf.cast(kind, tf.int32), branches)
    has_exif = (exif > 0) & (exif < length)
    return tf.cond(has_exif, lambda: _upright(image, _orientation(raw[exif:length])), lambda: image)


def _of_size(value: Any, height: tf.Tensor, width: tf.Tensor, place: list[Any]) -> Any:
    """The value, once an image of that size may be decoded."""
    height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    fits = (height > 0) & (width > 0) & (tf.maximum(height, width) <= MOST_SIDE) & (height * width <= MOST_PIXELS)
    message = f"images must have 1 to {MOST_PIXELS} pixels, at most {MOST_SIDE} on a side."
    height, width = (tf.saturate_cast(size, tf.int32) for size in (height, width))
    return required(value, (fits, message, [*place, "height", height, "width", width]))


def _jpeg(data: tf.Tensor, raw: tf.Tensor, length: tf.Tensor, place: list[Any]) -> tuple[tf.Tensor, tf.Tensor]:
    """An image, uint8 [h, w, 3], and where its EXIF begins, 0 if it has none; so the other formats."""
    height, width, _ = tf.unstack(tf.image.extract_jpeg_shape(data))
    # As Pillow decodes: the kernel's own default trades accuracy for speed.
    image = tf.io.decode_jpeg(_of_size(data, height, width, place), channels=3, dct_method="INTEGER_ACCURATE")

    def step(at: tf.Tensor, exif: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_exif = (_number(raw, at, 2) == 0xFFE1) & (_number(raw, at + 4, 4) == int.from_bytes(b"Exif", "big"))
        fills = _number(raw, at, 2) == 0xFFFF  # before a marker
        return at + tf.where(fills, 1, 2 + _number(raw, at + 2, 2)), tf.where(is_exif, at + 10, exif)

    def goes_on(at: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        marker = _number(raw, at, 2)
        return (exif == 0) & (at < length) & (marker >= 0xFF00) & (marker != 0xFFDA)

    _, exif = _walk(goes_on, step, 2)
    return image, exif


def _png(
    data: tf.Tensor, raw: tf.Tensor, length: tf.Tensor, how: Decoding, place: list[Any]
) -> tuple[tf.Tensor, tf.Tensor]:
    data = _of_size(data, _number(raw, 20, 4, tf.int64), _number(raw, 16, 4, tf.int64), place)
    depth, colours = tf.cast(raw[24], tf.int32), tf.cast(raw[25], tf.int32)

    def kind_at(at: tf.Tensor) -> tf.Tensor:
        return _number(raw, at + 4, 4)

    transparency, exif_chunk, pixels = (int.from_bytes(kind, "big") for kind in (b"tRNS", b"eXIf", b"IDAT"))

    def step(at: tf.Tensor, exif: tf.Tensor, transparent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = tf.cast(tf.minimum(_number(raw, at, 4, tf.int64), tf.cast(length, tf.int64)), tf.int32)
        return (at + 12 + size, tf.where(kind_at(at) == exif_chunk, at + 8, exif),
                transparent | (kind_at(at) == transparency))

    def goes_on(at: tf.Tensor, exif: tf.Tensor, transparent: tf.Tensor) -> tf.Tensor:
        return (at < length) & (kind_at(at) != pixels)

    _, exif, transparent = _walk(goes_on, step, 8, False)
    # Of 16 bits Pillow knows no transparent colour.
    has_alpha = (colours == 4) | (colours == 6) | (transparent & (depth < 16))
    flat = functools.partial(_eight_bits, data, depth, how, place)
    image = tf.cond(has_alpha, lambda: _composited(flat(4), how.background), lambda: flat(3))
    return image, exif


def _eight_bits(data: tf.Tensor, depth: tf.Tensor, how: Decoding, place: list[Any], channels: int) -> tf.Tensor:
    """A PNG as uint8 [h, w, channels], 16-bit samples by `how.bits`."""
    def shallow() -> tf.Tensor:
        return tf.io.decode_png(data, channels=channels)  # of 16 bits the upper ones

    if how.bits in (None, 16):
        return shallow()
    bits = how.bits

    def deep() -> tf.Tensor:
        values = tf.io.decode_png(data, channels=channels, dtype=tf.uint16)
        colours = values[..., :3]
        most = tf.cast(tf.reduce_max(colours), tf.int32)
        message = f"this model takes 16-bit images of {bits} bits, values up to {(1 << bits) - 1}."
        colours = required(colours, (most < 1 << bits, message, [*place, "value", most]))
        shifted = tf.bitwise.right_shift(colours, tf.constant(bits - 8, tf.uint16))
        alpha = tf.bitwise.right_shift(values[..., 3:], tf.constant(8, tf.uint16))
        return tf.cast(tf.concat([shifted, alpha], -1), tf.uint8)

    return tf.cond(depth == 16, deep, shallow)


def _bmp(data: tf.Tensor, raw: tf.Tensor, length: tf.Tensor, place: list[Any]) -> tuple[tf.Tensor, tf.Tensor]:
    words = tf.cast(tf.reshape(raw[10:34], [6, 4]), tf.int64)
    start, header, width, height, depth, compression = tf.unstack(
        tf.linalg.matvec(words, tf.constant([1, 1 << 8, 1 << 16, 1 << 24], tf.int64)))
    height = tf.abs(tf.cast(tf.cast(height, tf.int32), tf.int64))  # negative where the first row is the uppermost
    bits = depth // (1 << 16)
    plain = (header >= 40) & (compression == 0) & ((bits == 8) | (bits == 24) | (bits == 32))
    data = required(data, (plain, "BMP files must be uncompressed, of 8, 24 or 32 bits.",
                           [*place, "bits", tf.cast(bits, tf.int32)]))
    data = _of_size(data, height, width, place)
    needed = start + height * ((bits * width + 31) // 32 * 4)
    data = required(data, (tf.cast(length, tf.int64) >= needed, "a BMP file must be whole.",
                           [*place, "bytes", length, "of", tf.saturate_cast(needed, tf.int32)]))
    image = tf.io.decode_bmp(data)

    def from_palette() -> tf.Tensor:
        entries = tf.reshape(tf.pad(raw[14 + header : 14 + header + 1024], [[0, 1024]])[:1024], [256, 4])
        return tf.gather(entries[:, 2::-1], tf.cast(image[..., 0], tf.int32))

    return tf.cond(bits == 8, from_palette, lambda: image[..., :3]), tf.constant(0)


def _walk(goes_on: Callable, step: Callable, *start: Any) -> list[tf.Tensor]:
    """The segments of a header one after the other: (where, where EXIF begins or 0, ...) when it ends."""
    begin, *more = start
    return tf.while_loop(goes_on, step, [tf.constant(begin), tf.constant(0), *map(tf.constant, more)],
                         parallel_iterations=1, maximum_iterations=_MOST_SEGMENTS)


def _number(raw: tf.Tensor, at: Any, size: int, dtype: tf.DType = tf.int32) -> tf.Tensor:
    """The unsigned big-endian number of some bytes; those behind the end are 0."""
    taken = raw[at : at + size]
    taken = tf.pad(taken, [[0, size - tf.size(taken)]])
    return tf.reduce_sum(tf.cast(taken, dtype) * tf.constant([256**i for i in reversed(range(size))], dtype))


def _orientation(tiff: tf.Tensor) -> tf.Tensor:
    """1 to 8 by the first directory of EXIF, uint8; 1 where it says nothing."""
    little = tiff[0] == ord("I")

    def number(at: Any, size: int) -> tf.Tensor:
        taken = tiff[at : at + size]
        return _number(tf.where(little, taken[::-1], taken), 0, size)

    start = tf.clip_by_value(number(4, 4), 0, tf.size(tiff))
    entries = tiff[start + 2 : start + 2 + 12 * number(start, 2)]
    pairs = tf.cast(tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 6, 2]), tf.int32)
    numbers = tf.linalg.matvec(pairs, tf.where(little, [1, 256], [256, 1]))  # 16 bits each
    tag, kind, value = numbers[:, 0], numbers[:, 1], numbers[:, 4]
    fits = (tag == _ORIENTATION) & (kind == _SHORT) & (value >= 1) & (value <= 8)
    return tf.concat([value[fits], [1]], 0)[0]


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """[h, w, 3] as EXIF's orientation shows it."""
    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations))

    turned = tf.transpose(image, tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2]))
    return tf.raw_ops.Reverse(tensor=turned, dims=tf.stack([among(3, 4, 7, 8), among(2, 3, 6, 7), False]))


def _composited(image: tf.Tensor, background: tuple[int, ...]) -> tf.Tensor:
    """uint8 [h, w, 4] on a background; row by row, as it takes several times the memory of an image."""
    def row(pixels: tf.Tensor) -> tf.Tensor:
        values = tf.cast(pixels, tf.float32)
        alpha = values[:, 3:] / 255
        mixed = values[:, :3] * alpha + tf.constant(background, tf.float32) * (1 - alpha)
        return tf.cast(tf.round(mixed), tf.uint8)  # of 255ths: no ties, and Pillow's integers round likewise

    return tf.map_fn(row, image, parallel_iterations=1, fn_output_signature=tf.TensorSpec([None, 3], tf.uint8))


def _resized(image: tf.Tensor, how: Decoding, size: tuple[int, ...]) -> tf.Tensor:
    """uint8 [h, w, 3] as uint8 [H, W, 3]; the same pixels where the size is the same."""
    sizes, wanted = tf.cast(tf.shape(image)[:2], tf.float64), tf.constant(size, tf.float64)
    part = tf.minimum(sizes, sizes[::-1] * wanted / wanted[::-1]) if how.crop else sizes  # the largest, centred
    begin, scale = (sizes - part) / 2, wanted / part
    if how.resize == "nearest":
        rows, columns = (_nearest(begin[axis], part[axis], size[axis]) for axis in (0, 1))
        return tf.gather(tf.gather(image, rows), columns, axis=1)
    # Pillow's box has its right edge and not its left: a thousandth of a pixel decides it here.
    moved = begin + 1e-3 if how.resize == "box" else begin
    scale, moved = (tf.cast(value, tf.float32) for value in (scale, -moved * scale))
    pixels = tf.raw_ops.ScaleAndTranslate(images=image[None], size=tf.constant(size), scale=scale,
                                          translation=moved, kernel_type=_KERNELS[how.resize], antialias=True)[0]
    return tf.cast(tf.clip_by_value(tf.floor(pixels + 0.5), 0, 255), tf.uint8)


def _nearest(begin: tf.Tensor, part: tf.Tensor, size: int) -> tf.Tensor:
    """The pixels, int32 [size], that are nearest to those of another size; a tie is the later one's."""
    places = begin + (2 * tf.range(size, dtype=tf.float64) + 1) * part / (2 * size)
    return tf.cast(places + 1e-9, tf.int32)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3] as uint8 [H, W, 1]."""
    luma = tf.reduce_sum(tf.cast(image, tf.float64) * tf.constant(LUMA, tf.float64), -1, keepdims=True)
    return tf.cast(tf.round(luma), tf.uint8)
