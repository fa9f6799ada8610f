"""Images without a download: letters in the typefaces that matplotlib ships, randomly distorted.

A stream that never repeats, so that training and held-out loss are of one distribution, and a
batch is a pure function of its key.
"""

from __future__ import annotations

import functools
from pathlib import Path
from string import ascii_lowercase as LETTERS

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax import Array
from jax.scipy.ndimage import map_coordinates
from matplotlib.ft2font import FT2Font

from umup import draws

SIDE = 12  # pixels of an image
CLASSES = len(LETTERS)
SHARP = 2  # pixels of a master for one of an image
NOISE = 0.15
TYPEFACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmtt10",
    "cmti10",
)


@functools.cache
def masters() -> np.ndarray:
    """Every letter in every typeface, centred, ink 1 on 0: (typefaces, CLASSES, size, size)."""
    size = SHARP * SIDE
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    images = np.zeros((len(TYPEFACES), CLASSES, size, size), np.float32)
    for face, name in zip(images, TYPEFACES):
        font = FT2Font(str(folder / f"{name}.ttf"))
        font.set_size(size * 0.9, 72)
        for image, letter in zip(face, LETTERS):
            font.set_text(letter)
            font.draw_glyphs_to_bitmap()
            ink = np.asarray(font.get_image())[:size, :size] / 255.0
            top, left = ((size - n) // 2 for n in ink.shape)
            image[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return images


@functools.partial(jax.jit, static_argnames="size")
def batch(key: Array, size: int) -> tuple[Array, Array]:
    """Images (size, SIDE, SIDE) of mean about 0 and RMS about ½, and letters (size,).

    Letter and typeface are uniform; each image is turned, sheared, stretched and moved at random,
    and has normal noise of standard deviation ``NOISE`` before it is scaled.
    """
    letter_key, face_key, affine_key, shift_key, noise_key = jax.random.split(key, 5)
    letters = jax.random.randint(letter_key, (size,), 0, CLASSES)
    faces = jax.random.randint(face_key, (size,), 0, len(TYPEFACES))
    warp = SHARP * (jnp.eye(2) + 0.1 * draws.normal(affine_key, (size, 2, 2)))
    shift = SHARP * jax.random.uniform(shift_key, (size, 2), minval=-1.0)
    centre = (SIDE - 1) / 2
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(SIDE) - centre] * 2, indexing="ij"))

    def image(master, warp, shift):
        at = jnp.einsum("ij,jxy->ixy", warp, grid) + (shift + SHARP * centre)[:, None, None]
        return map_coordinates(master, list(at), order=1)

    ink = jax.vmap(image)(jnp.asarray(masters())[faces, letters], warp, shift)
    noisy = ink + NOISE * draws.normal(noise_key, ink.shape)
    return (noisy - 0.07) / 0.54, letters


def stream(key: Array, count: int, size: int) -> tuple[Array, Array]:
    """The first ``count`` batches of a stream: (count, size, SIDE, SIDE) and (count, size)."""
    batches = [batch(jax.random.fold_in(key, at), size) for at in range(count)]
    images, letters = zip(*batches)
    return jnp.stack(images), jnp.stack(letters)
