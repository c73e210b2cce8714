"""Small grey pictures for a page: a drawn phantom, the same with noise, as PNG inside the page.

No picture of a patient is ever shown: the phantom is an ellipse drawing in the spirit of Shepp and Logan (1974).
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float64]

# centre x, centre y, half axes, angle in degrees, grey value added
_ELLIPSES = (
    (0.0, 0.0, 0.72, 0.95, 0.0, 0.85),
    (0.0, -0.02, 0.66, 0.88, 0.0, -0.60),
    (0.24, 0.0, 0.13, 0.34, -18.0, 0.30),
    (-0.24, 0.0, 0.17, 0.42, 18.0, 0.22),
    (0.0, 0.40, 0.22, 0.24, 0.0, 0.18),
    (0.06, -0.62, 0.06, 0.04, 0.0, 0.40),
    (-0.09, -0.60, 0.05, 0.05, 0.0, 0.40),
    (0.30, 0.45, 0.05, 0.05, 0.0, 0.50),
)


def phantom(size: int = 96) -> Image:
    """Return the drawn phantom, shape (size, size), values in [0, 1]."""
    axis = np.linspace(-1.0, 1.0, size)
    x, y = np.meshgrid(axis, axis)
    picture = np.zeros((size, size))
    for cx, cy, a, b, angle, grey in _ELLIPSES:
        turn = np.deg2rad(angle)
        along = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        across = -(x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
        picture += grey * ((along / a) ** 2 + (across / b) ** 2 <= 1.0)
    return np.clip(picture, 0.0, 1.0)


def degraded(picture: Image, decibel: float) -> Image:
    """Return the picture with white noise of a peak signal-to-noise ratio of `decibel`; always the same noise.

    Contrast is stretched back to the visible range, as somebody would who looks for a face in it.
    """
    noisy = picture + np.random.default_rng(7).normal(scale=10 ** (-decibel / 20), size=picture.shape)
    low, high = np.quantile(noisy, [0.01, 0.99])
    return np.asarray(np.clip((noisy - low) / max(high - low, 1e-9), 0.0, 1.0))


def png(picture: Image) -> bytes:
    """Return an 8-bit grey PNG of values in [0, 1]."""
    pixels = np.round(255 * np.clip(picture, 0.0, 1.0)).astype(np.uint8)
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), dtype=np.uint8), pixels], axis=1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    header = struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def data_url(picture: Image) -> str:
    """Return the picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
