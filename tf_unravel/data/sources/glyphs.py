"""Glyphs: the embedded default dataset, drawn on first use, so that nothing has to be downloaded.

100 classes (64 train, 16 val, 20 test) of 600 RGB images at 32 x 32. A class is a character: Latin, Greek, Cyrillic and
phonetic letters, digits and symbols that stay apart under the distortions below, and as far as possible under quarter
turns and mirroring. Every image draws the character anew:

| what        | how                                                                               |
|-------------|-----------------------------------------------------------------------------------|
| shape       | one of 16 faces (DejaVu Sans, Sans Mono, Serif, and STIX, which matplotlib ships) |
| affine      | rotation, size, aspect, shear, shift                                              |
| colours     | any tint; the glyph brighter than the background, one image in 16 a negative      |
| background  | two shades mixed by soft noise or stripes; a bar behind the glyph                 |
| occlusion   | a bar in front of the glyph                                                       |
| blur, noise | none, once or twice a 3 x 3 binomial filter; additive noise of random strength    |

Which classes are in which split is decided by a fixed shuffle. The pixels are the same wherever Pillow (with its
FreeType) and the font files are the same: each class has its own counter-based stream of random bits (Philox, whose
output NumPy guarantees), every draw is made from those bits by integer or exactly rounded arithmetic, no transcendental
function or order of summation enters, and neither do the number of threads or of images: with fewer images per class
one gets the first ones.

Names: n images of one class, s their side in pixels.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import itertools
import os
import pathlib
import unicodedata

import matplotlib
import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont, features

from tf_unravel.data.class_images import ClassImages, content_fingerprint
from tf_unravel.data.storage import cache
from tf_unravel.machine import num_cores

VERSION = 1  # of the code that draws: raise it whenever a pixel changes
SPLIT_SIZES = {"train": 64, "val": 16, "test": 20}
CHARACTERS = (
    "§2345789GHKLMNPQSTUWXZaeqtvy&@#%$!¶©£¥€ßæħŋΔΞΣΨΩαβζμπωБЖЛФЦШЪЫЮЂЋЉЊѢдщяƕɮʤʘɤϠϡϚϖ№™‡‰÷×±«¤½ÆŒƺƾɸɕʠʝЌҐ"
)
FONTS = tuple(
    f"{family}.ttf"
    for family in (
        *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
        *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
        *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
        *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    )
)
_SEED = 20200713
_CHUNK = 50  # images drawn at once: they stay in the processor's cache


def load(
    split: str,
    root: str | os.PathLike[str] | None = None,
    images_per_class: int = 600,
    image_size: int = 32,
) -> ClassImages:
    """One split of the glyphs; all three are drawn and cached on first use (some seconds at the default size).

    Args:
        split: "train" (64 classes), "val" (16) or "test" (20).
        root: not used; here because every source takes it.
        images_per_class: number of images of every class, default 600. Fewer are the first of these.
        image_size: side of the square images in pixels, default 32.

    Returns:
        The split, its images a read-only memory map sorted by class, its class names those of Unicode.

    Raises:
        ValueError: an unknown split, a number out of range, or a cache folder that cannot be written.

    Example:
        >>> load("test", images_per_class=20).images.shape
        (400, 32, 32, 3)
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split must be one of {', '.join(SPLIT_SIZES)}. Received: {split!r}.")
    if images_per_class < 1:
        raise ValueError(f"images_per_class must be 1 or more. Received: {images_per_class}.")
    if not 16 <= image_size <= 256:
        raise ValueError(f"image_size must lie in 16..256 pixels. Received: {image_size}.")
    key = f"glyphs {VERSION} {images_per_class}x{image_size} {_renderer()}"
    arrays = cache.cached_fill(key, functools.partial(_fill, images_per_class=images_per_class, size=image_size))
    return ClassImages(
        images=arrays[split],
        class_ids=_class_ids(split, images_per_class),
        class_names=_class_names(split),
        name=f"glyphs/{split}",
        fingerprint=arrays[f"{split}_fingerprint"].tobytes().hex(),
    )


def split_characters(split: str) -> str:
    """The characters of a split, by class id: a fixed shuffle of all of them, cut at 64 and 80."""
    shuffled = sorted(CHARACTERS, key=lambda character: hashlib.sha256(f"{_SEED} {character}".encode()).digest())
    end = dict(zip(SPLIT_SIZES, itertools.accumulate(SPLIT_SIZES.values()), strict=True))[split]
    return "".join(sorted(shuffled[end - SPLIT_SIZES[split] : end]))


def _class_names(split: str) -> tuple[str, ...]:
    return tuple(unicodedata.name(character).lower() for character in split_characters(split))


def _class_ids(split: str, images_per_class: int) -> np.ndarray:
    return np.repeat(np.arange(SPLIT_SIZES[split], dtype=np.int32), images_per_class)


def _font_folder() -> pathlib.Path:
    return pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")


def _renderer() -> str:
    """What decides the pixels besides this file: Pillow, its FreeType, the bytes of the fonts."""
    digest = hashlib.sha256()
    for name in FONTS:
        path = _font_folder() / name
        if not path.is_file():
            raise ValueError(f"{path} is missing: glyphs are drawn with matplotlib's fonts; reinstall matplotlib.")
        digest.update(path.read_bytes())
    return f"pillow {PIL.__version__} freetype {features.version('freetype2')} fonts {digest.hexdigest()[:16]}"


def _fill(create: cache.Create, images_per_class: int, size: int, threads: int | None = None) -> None:
    """Draws all splits straight into the cache's files, class by class, and adds their fingerprints."""
    jobs: list[tuple[str, np.ndarray]] = []
    splits = {}
    for split, classes in SPLIT_SIZES.items():
        splits[split] = create(split, (classes * images_per_class, size, size, 3), np.uint8)
        rows = splits[split].reshape(classes, images_per_class, size, size, 3)  # a view
        jobs += zip(split_characters(split), rows, strict=True)
    with concurrent.futures.ThreadPoolExecutor(threads or min(8, num_cores())) as pool:
        for drawn in [pool.submit(draw_class, character, images) for character, images in jobs]:
            drawn.result()  # raises what went wrong in the thread
    for split, images in splits.items():
        digest = content_fingerprint(images, _class_ids(split, images_per_class), _class_names(split))
        create(f"{split}_fingerprint", (32,), np.uint8)[...] = np.frombuffer(bytes.fromhex(digest), np.uint8)


def draw_class(character: str, images: np.ndarray) -> None:
    """Fills `images`, uint8 [n, s, s, 3], with one class; each depends on the character and its position alone."""
    count, size = images.shape[:2]
    masks = _masks(character, size)
    draws = _stream(character, "draws", count * 128).view("<u2").reshape(count, 64)
    grids = _stream(character, "texture", count * 2 * 96).reshape(count, 2, 96)
    noise = _stream(character, "noise", count * 6 * size * size).reshape(count, 2, 3, size * size)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        drawn = _images(masks, _Draws(draws[part]), grids[part], noise[part], size)  # [3, n, s*s]
        images[part] = drawn.reshape(3, -1, size, size).transpose(1, 2, 3, 0)  # [n, s, s, 3]


def _stream(character: str, purpose: str, length: int) -> np.ndarray:
    """`length` random bytes, always the same for a character and a purpose; fewer are the first of more."""
    key = hashlib.sha256(f"{_SEED} {purpose} {character}".encode()).digest()[:16]
    words = np.random.Philox(key=np.frombuffer(key, "<u8").astype(np.uint64)).random_raw((length + 7) // 8)
    return words.astype("<u8", copy=False).view(np.uint8)[:length]


class _Draws:
    """Hands out the columns of uint16 [n, 64], one for each quantity that is drawn for every image."""

    def __init__(self, bits: np.ndarray):
        self._columns = iter(bits.T)

    def integers(self, low: int, high: int) -> np.ndarray:
        """int32 [n], uniform in low..high-1."""
        return low + ((next(self._columns).astype(np.int32) * (high - low)) >> 16)

    def reals(self, low: float, high: float) -> np.ndarray:
        """float64 [n], uniform in [low, high)."""
        return low + next(self._columns).astype(np.float64) * ((high - low) / 65536)


def _masks(character: str, size: int) -> list[Image.Image]:
    """The character in every font, its longer side `size` pixels, in the middle of a square twice that wide."""
    masks = []
    for name in FONTS:
        font = ImageFont.truetype(_font_folder() / name, 3 * size, layout_engine=ImageFont.Layout.BASIC)
        sheet = Image.new("L", (9 * size, 9 * size))
        ImageDraw.Draw(sheet).text((3 * size, 3 * size), character, fill=255, font=font)
        sheet = sheet.crop(sheet.getbbox())
        width, height = (max(1, round(side * size / max(sheet.size))) for side in sheet.size)
        mask = Image.new("L", (2 * size, 2 * size))
        shrunk = sheet.resize((width, height), Image.Resampling.BILINEAR)
        mask.paste(shrunk, (size - width // 2, size - height // 2))
        masks.append(mask)
    return masks


def _images(masks: list[Image.Image], draws: _Draws, grids: np.ndarray, noise: np.ndarray, size: int) -> np.ndarray:
    """Composes n images from back to front. Returns int16 [3, n, s*s], 0..255."""
    glyph = _placed(masks, draws, size)
    texture = _texture(draws, grids[:, 0], size)
    shading = _texture(draws, grids[:, 1], size)
    ground, spread = draws.integers(15, 90), draws.integers(0, 30)
    level = ground + draws.integers(80, 150)  # of the glyph: it stands out from the background
    scene = _mix(_colour(draws, ground - spread), _colour(draws, ground + spread), texture)
    scene = _mix(scene, _colour(draws, draws.integers(0, 256)), _bar(draws, size, 0.06))
    ink = _mix(_colour(draws, level - spread // 2), _colour(draws, level + spread // 2), shading)
    scene = _mix(scene, ink, glyph)
    scene = _mix(scene, _colour(draws, draws.integers(0, 256)), _bar(draws, size, 0.09))
    scene = _blurred(scene, draws.integers(0, 3), size).astype(np.int16)
    strength = (draws.integers(0, 40) * draws.integers(0, 256) >> 8).astype(np.int16)
    for layer in range(2):  # the sum of two uniform draws: a triangular distribution
        scene += (noise[:, layer].transpose(1, 0, 2).astype(np.int16) - 128) * strength[:, None] >> 7
    np.clip(scene, 0, 255, out=scene)
    negative = draws.integers(0, 16) == 0
    scene[:, negative] = 255 - scene[:, negative]
    return scene


def _placed(masks: list[Image.Image], draws: _Draws, size: int) -> np.ndarray:
    """The glyph of every image under its font and affine map: weights 0..256, uint16 [n, s*s]."""
    fonts = draws.integers(0, len(masks)).tolist()
    half = draws.reals(-0.16, 0.16)  # tan(angle / 2): up to 18 degrees, without a cosine
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    extent, aspect, shear = draws.reals(0.6, 0.9), draws.reals(0.85, 1.18), draws.reals(-0.2, 0.2)
    room = (1 - extent) / 2 * size
    centre_x, centre_y = size / 2 + room * draws.reals(-1, 1), size / 2 + room * draws.reals(-1, 1)
    # Pillow asks where in the mask each pixel of the image lies: (x, y) -> (a x + b y + c, d x + e y + f).
    across, down = aspect / extent, 1 / (aspect * extent)
    a, b = across * (cosine + shear * sine), across * (shear * cosine - sine)
    d, e = down * sine, down * cosine
    c, f = size - a * centre_x - b * centre_y, size - d * centre_x - e * centre_y
    placed = np.empty((len(fonts), size * size), np.uint16)
    for i, coefficients in enumerate(zip(*(v.tolist() for v in (a, b, c, d, e, f)), strict=True)):
        image = masks[fonts[i]].transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        placed[i] = np.frombuffer(image.tobytes(), np.uint8)
    return placed + (placed >> 7)


def _texture(draws: _Draws, grid: np.ndarray, size: int) -> np.ndarray:
    """Soft noise of one of two grains, or stripes: weights 0..256, uint16 [n, s*s]."""
    kind = draws.integers(0, 3)
    texture = np.where(kind[:, None] == 0, _smooth(grid, 4, size), _smooth(grid, 8, size))  # [n, s*s]
    x, y = _coordinates(size)
    slope_x, slope_y, phase = draws.integers(-64, 65), draws.integers(-64, 65), draws.integers(0, 512)
    wave = ((slope_x[:, None] * x + slope_y[:, None] * y >> 5) + phase[:, None]) & 511
    return np.where(kind[:, None] == 2, np.abs(wave - 256), texture).astype(np.uint16)


def _smooth(grid: np.ndarray, cells: int, size: int) -> np.ndarray:
    """Bytes [n, (cells + 1)^2 or more] as the corners of cells x cells squares, bilinear between: int32 [n, s*s]."""
    corners = grid[:, : (cells + 1) ** 2].reshape(-1, cells + 1, cells + 1).astype(np.int32)  # [n, k+1, k+1]
    position = np.arange(size) * cells * 16 // size
    first, weight = position >> 4, position & 15
    rows = corners[:, first] * (16 - weight)[:, None] + corners[:, first + 1] * weight[:, None]  # [n, s, k+1]
    both = rows[:, :, first] * (16 - weight) + rows[:, :, first + 1] * weight  # [n, s, s]
    return (both >> 8).reshape(len(grid), -1)


def _coordinates(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the middle of every pixel from the middle of the image, in 1/1024 of its side: int32 [s*s] each."""
    steps = (2 * np.arange(size, dtype=np.int32) + 1 - size) * 512 // size
    return np.tile(steps, size), np.repeat(steps, size)


def _bar(draws: _Draws, size: int, width: float) -> np.ndarray:
    """A straight bar of up to `width` of the side, about two in three images: weights 0..256, uint16 [n, s*s]."""
    x, y = _coordinates(size)
    half = draws.reals(-1, 1)
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    swapped = draws.integers(0, 2) == 1
    cosine, sine = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    cosine, sine = np.floor(256 * cosine).astype(np.int32), np.floor(256 * sine).astype(np.int32)
    offset = draws.integers(-450, 451)
    half_width = np.floor(draws.reals(-0.5, 1.0) * (width * 512)).astype(np.int32)
    distance = np.abs((cosine[:, None] * x + sine[:, None] * y >> 8) - offset[:, None])  # [n, s*s], 1/1024 of the side
    inside = (half_width[:, None] - distance) * size // 4 + 128  # 256 a pixel: the edge is one pixel wide
    return np.clip(inside, 0, 256).astype(np.uint16)


def _colour(draws: _Draws, level: np.ndarray) -> np.ndarray:
    """Any tint of a luminance `level` [n] (but for clipping): uint16 [3, n, 1], 0..255."""
    tint = np.stack([draws.integers(-64, 65) for _ in range(3)])  # [3, n]
    tint -= (19595 * tint[0] + 38470 * tint[1] + 7471 * tint[2]) >> 16
    return np.clip(level + tint, 0, 255).astype(np.uint16)[:, :, None]


def _mix(back: np.ndarray, front: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """back + (front - back) * weight / 256, rounded; [3, n, 1 or s*s] twice and [n, s*s] -> uint16 [3, n, s*s]."""
    return (back * (256 - weight) + front * weight + 128) >> 8


def _blurred(scene: np.ndarray, times: np.ndarray, size: int) -> np.ndarray:
    """The binomial filter (1 2 1) x (1 2 1) / 16, `times` [n] times: uint16 [3, n, s*s]."""
    for turn in range(int(times.max(initial=0))):
        chosen = times > turn
        planes = scene[:, chosen].reshape(3, -1, size, size)  # [3, m, s, s]
        padded = np.pad(planes, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
        rows = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
        both = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
        scene[:, chosen] = ((both + 8) >> 4).reshape(3, -1, size * size)
    return scene
