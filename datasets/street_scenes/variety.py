"""Appearance at random: what `--variety` changes in a look. Where things stand and what they are stays, and so does
every label; colours, surfaces, light, leaves and the camera's exposure are drawn anew for each scene.

Domain randomisation where the renderer is at hand (Tobin et al., IROS 2017). The ranges are our own.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .painter import Colour, Look


@dataclass(frozen=True)
class Light:
    """A sky and how bright the street is below it. Pairs are (lowest, highest) of a uniform draw."""

    top: tuple[Colour, Colour]  # of the sky, overhead
    low: tuple[Colour, Colour]  # and at the horizon
    sun: tuple[float, float]  # darkness of shadows
    street: tuple[float, float]  # times the colours of all things
    haze: tuple[float, float]  # metres


LIGHTS = (
    Light(((40, 90, 170), (120, 160, 230)), ((150, 180, 205), (225, 235, 250)), (0.2, 0.6), (0.7, 1.1), (200, 500)),
    Light(((170, 175, 180), (245, 247, 250)), ((200, 204, 208), (252, 252, 252)), (0.0, 0.12), (0.4, 1.0), (120, 400)),
    Light(((90, 120, 160), (190, 205, 225)), ((215, 195, 160), (255, 245, 225)), (0.5, 0.75), (0.4, 0.9), (120, 400)),
    Light(((70, 80, 100), (150, 158, 170)), ((120, 125, 135), (215, 215, 215)), (0.0, 0.1), (0.15, 0.45), (200, 600)),
)
"""Clear, overcast, low sun, dusk."""


def varied(look: Look, rnd: random.Random) -> Look:
    """The same streets in an appearance of their own."""
    light = rnd.choice(LIGHTS)
    top, low = between(*light.top, rnd), between(*light.low, rnd)
    cloud = tuple(min(255, round(c + change)) for change in (rnd.uniform(-25, 40),) for c in low)
    street = rnd.uniform(*light.street)
    colours = {name: tuple(recoloured(rgb, street, rnd) for rgb in rgbs) for name, rgbs in look.colours.items()}
    return dataclasses.replace(
        look,
        haze=(rnd.uniform(*light.haze), low),
        sun=rnd.uniform(*light.sun),
        colours=colours | {"sky": (top, low), "cloud": (cloud,)},
        bare=rnd.choice((0.0, 0.5, 1.0)),
        rough=(2 ** rnd.uniform(-1.5, 1.0), 2 ** rnd.uniform(-1.5, 1.0)),
    )


def between(first: Colour, second: Colour, rnd: random.Random) -> Colour:
    share = rnd.random()
    return tuple((1 - share) * a + share * b for a, b in zip(first, second, strict=True))


def recoloured(rgb: Colour, light: float, rnd: random.Random) -> Colour:
    """Lighter or darker, between grey and its own hue, with a tint."""
    grey, hue, light = sum(rgb) / 3, rnd.random(), light * rnd.uniform(0.6, 1.25)
    return tuple(light * (grey + hue * (c - grey) + rnd.uniform(-15, 15)) for c in rgb)


def exposed(pixels: np.ndarray, rnd: random.Random) -> np.ndarray:
    """Saturation, contrast, exposure, white balance, focus and noise of some camera. uint8 [H, W, 3] in and out."""
    grey, keep = pixels.mean(axis=2, keepdims=True), rnd.uniform(0.3, 1.0)
    exposure = rnd.uniform(0.8, 1.2)
    white = np.array([exposure * rnd.uniform(0.95, 1.05) for _ in range(3)], np.float32)
    pixels = np.clip((grey + keep * (pixels - grey) - 128) * rnd.uniform(0.8, 1.25) + 128, 0, 255) * white
    sharp = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    soft = sharp.filter(ImageFilter.GaussianBlur(rnd.uniform(0.0, pixels.shape[1] / 400)))
    noise = np.random.default_rng(rnd.getrandbits(64)).standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.asarray(soft, np.float32) + rnd.uniform(0, 6) * noise, 0, 255).astype(np.uint8)
