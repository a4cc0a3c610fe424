"""How a street comes to look like one: the two looks, the pinhole camera that paints, the finish of the picture.

World axes: x to the right, y up, z ahead, in metres, the camera at (0, eye, 0). Picture and label map are painted
back to front and at once, so that the two agree.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from ..labels import CITYSCAPES_ID_TO_TRAIN_ID, CLASS_NAMES

ID = {CLASS_NAMES[train]: number for number, train in CITYSCAPES_ID_TO_TRAIN_ID.items() if 0 <= train < 19}
"""Name of a class -> Cityscapes id."""
ID |= {"ego vehicle": 1, "parking": 9}  # never evaluated

Colour = tuple[float, float, float]  # red, green, blue, 0 to 255
Point = tuple[float, float, float]  # x, y, z in metres
Plane = Callable[[float, float], Point]  # (along, height) -> point
NEAR = 1.0  # metres; whatever reaches closer to the camera is cut off here


@dataclass(frozen=True)
class Look:
    """What distinguishes the two domains. Pairs are (lowest, highest) of a uniform draw; lengths in metres."""

    eye: tuple[float, float]
    focal: tuple[float, float]  # in picture widths
    horizon: tuple[float, float]  # in picture heights, from the top
    lane: float  # width of a lane
    lanes: tuple[int, ...]  # lanes per direction, one drawn
    sidewalk: tuple[float, float]
    parked: float  # probability of a row of parked cars, per side
    gap: tuple[float, float]  # between moving vehicles
    people: tuple[int, int]
    bicycles: tuple[int, int]
    plots: dict[str, float]  # what lines the street, with weights
    floors: tuple[int, int]
    end: tuple[float, float]  # where the street ends
    haze: tuple[float, Colour]  # distance over which 63 % of the light is lost, and what replaces it
    sun: float  # darkness of cast shadows
    colours: dict[str, tuple[Colour, ...]]
    camera: bool  # seen by one, not drawn by an engine
    bare: float = 0.0  # probability of a tree to have no leaves
    rough: tuple[float, float] = (1.0, 1.0)  # grain and blotches of surfaces, times those of `ROUGH`


GAME = Look(
    eye=(1.5, 1.9), focal=(0.95, 1.1), horizon=(0.42, 0.50), lane=3.4, lanes=(1, 1, 2, 2), sidewalk=(3.2, 5.5),
    parked=0.35, gap=(9, 32), people=(5, 10), bicycles=(1, 3),
    plots={"building": 4, "yard": 1.6, "park": 1.8, "wall": 0.9, "fence": 1.0, "street": 0.9},
    floors=(2, 8), end=(90, 170), haze=(420, (196, 214, 236)), sun=0.52, camera=False,
    colours={
        "sky": ((64, 128, 222), (186, 216, 246)), "cloud": ((250, 250, 255),),
        "road": ((96, 94, 100), (108, 104, 104), (84, 86, 94)), "mark": ((240, 238, 226),),
        "centre": ((236, 184, 40),), "sidewalk": ((196, 184, 166), (182, 176, 170), (204, 190, 160)),
        "kerb": ((216, 210, 198),), "terrain": ((112, 158, 48), (134, 164, 60), (176, 164, 84)),
        "building": ((206, 124, 86), (232, 204, 150), (176, 82, 62), (222, 216, 206), (214, 168, 96),
                     (150, 168, 190), (236, 186, 168)),
        "window": ((52, 84, 120), (70, 110, 150), (40, 58, 84)), "roof": ((150, 70, 52), (110, 104, 108)),
        "wall": ((206, 190, 158), (190, 150, 120)), "fence": ((120, 84, 54), (60, 62, 70)),
        "vegetation": ((62, 132, 36), (44, 112, 40), (92, 146, 44)), "trunk": ((104, 76, 50),),
        "pole": ((96, 98, 104), (60, 60, 64)),
        "car": ((214, 34, 34), (28, 74, 190), (244, 244, 246), (24, 24, 28), (240, 190, 30), (30, 150, 90),
                (180, 184, 192), (230, 110, 20)),
        "bus": ((240, 170, 20), (226, 52, 44)), "truck": ((240, 240, 244), (250, 140, 40), (40, 150, 150)),
        "train": ((200, 206, 216), (60, 150, 160)),
        "cloth": ((220, 50, 50), (40, 90, 200), (240, 240, 240), (240, 200, 60), (60, 60, 70), (60, 160, 90)),
        "legs": ((44, 60, 110), (60, 56, 54), (150, 130, 100)), "skin": ((226, 172, 136), (140, 96, 70)),
    },
)  # fmt: skip
CAMERA = Look(
    eye=(1.15, 1.35), focal=(1.02, 1.16), horizon=(0.39, 0.46), lane=3.2, lanes=(1, 1, 1, 2), sidewalk=(2.8, 4.6),
    parked=0.5, gap=(12, 40), people=(4, 9), bicycles=(2, 5),
    plots={"building": 4.5, "yard": 1.6, "park": 1.6, "wall": 1.1, "fence": 1.3, "street": 0.8},
    floors=(3, 6), end=(70, 140), haze=(190, (206, 212, 208)), sun=0.2, camera=True,
    colours={
        "sky": ((150, 182, 208), (216, 224, 226)), "cloud": ((240, 242, 240),),
        "road": ((104, 106, 104), (92, 96, 96), (116, 114, 110)), "mark": ((206, 208, 204),),
        "centre": ((206, 208, 204),), "sidewalk": ((134, 130, 128), (146, 138, 134), (124, 124, 122)),
        "kerb": ((158, 158, 154),), "terrain": ((88, 118, 58), (104, 122, 66), (124, 120, 84)),
        "building": ((150, 142, 130), (176, 168, 152), (126, 112, 104), (168, 154, 126), (140, 146, 148),
                     (190, 186, 178), (138, 104, 92)),
        "window": ((66, 72, 76), (88, 96, 100), (52, 54, 58)), "roof": ((112, 76, 66), (84, 84, 86)),
        "wall": ((128, 120, 110), (112, 106, 102)), "fence": ((86, 84, 78), (60, 70, 64)),
        "vegetation": ((56, 90, 46), (72, 100, 52), (50, 80, 46)), "trunk": ((70, 64, 58),),
        "pole": ((112, 114, 114), (84, 86, 86)),
        "car": ((40, 42, 46), (150, 154, 158), (196, 198, 200), (30, 30, 32), (70, 80, 98), (112, 40, 40),
                (90, 94, 96), (52, 60, 80)),
        "bus": ((196, 160, 60), (150, 50, 46)), "truck": ((186, 188, 190), (80, 100, 130), (140, 70, 56)),
        "train": ((186, 176, 130), (90, 120, 120)),
        "cloth": ((58, 60, 72), (110, 50, 50), (150, 148, 144), (50, 56, 60), (84, 96, 120), (120, 104, 84)),
        "legs": ((50, 56, 74), (44, 44, 46), (88, 80, 72)), "skin": ((190, 152, 130), (120, 90, 74)),
    },
)  # fmt: skip


class Painter:
    """Projects the street and paints picture and label map together.

    The picture of a small scene is painted at twice its size and reduced at the end (edges as a lens would
    give them); labels are painted at their own size, without anti-aliasing.
    """

    def __init__(self, size: tuple[int, int], look: Look, rnd: random.Random) -> None:
        self.width, self.height = size
        self.look, self.rnd = look, rnd
        self.scale = 2 if self.width <= 1100 else 1
        self.image = Image.new("RGB", (self.width * self.scale, self.height * self.scale))
        self.label = Image.new("L", size, ID["sky"])
        self.pen, self.label_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.label)
        self.focal = rnd.uniform(*look.focal) * self.width
        self.eye = rnd.uniform(*look.eye)
        # Where a straight street would vanish, in label pixels; it need not run dead ahead.
        self.u0, self.v0 = self.width * rnd.uniform(0.44, 0.56), self.height * rnd.uniform(*look.horizon)
        self.road, self.sidewalk = self.pick("road", 6), self.pick("sidewalk", 6)
        self.livery = self.pick("train")  # both cars of a tram wear the same
        self.curve = rnd.uniform(-0.0010, 0.0010)  # 1 / (2 radius): the street bends by curve * z**2
        self.sun_x, self.sun_z = rnd.choice((-1, 1)) * rnd.uniform(0.4, 1.1), rnd.uniform(-0.5, 0.7)
        dark = 1 - look.sun
        self.shade = {"left": 1.06 if self.sun_x > 0 else dark + 0.12, "top": 1.12,
                      "right": 1.06 if self.sun_x < 0 else dark + 0.12,
                      "front": 1.0 if self.sun_z > 0 else dark + 0.25}  # fmt: skip

    def pick(self, what: str, spread: float = 10) -> Colour:
        """One of the look's colours for `what`, made a little lighter or darker and tinted."""
        change, base = self.rnd.uniform(-spread, spread), self.rnd.choice(self.look.colours[what])
        return tuple(c + change + self.rnd.uniform(-spread, spread) / 3 for c in base)

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Metres -> label pixels (u to the right, v down; the corner of the picture is 0, 0)."""
        z = z if z > NEAR else NEAR
        return self.u0 + self.focal * (x / z + self.curve * z), self.v0 + self.focal * (self.eye - y) / z

    def tone(self, rgb: Colour, z: float, shade: float = 1.0) -> tuple[int, int, int]:
        """The colour as it arrives from distance z through the haze."""
        distance, (h0, h1, h2) = self.look.haze
        clear, (c0, c1, c2) = math.exp(-z / distance), rgb
        veil, keep = 1 - clear, shade * clear
        r, g, b = int(c0 * keep + h0 * veil), int(c1 * keep + h1 * veil), int(c2 * keep + h2 * veil)
        return min(255, max(0, r)), min(255, max(0, g)), min(255, max(0, b))

    def fill(self, points: Sequence[tuple[float, float]], rgb: tuple[int, int, int], name: str | None) -> None:
        """A polygon in label pixels. Without a name it is a detail: the label beneath stays."""
        if name is not None:
            self.label_pen.polygon(points, fill=ID[name])
        scale = self.scale
        self.pen.polygon([(u * scale, v * scale) for u, v in points] if scale > 1 else points, fill=rgb)

    def face(self, points: Sequence[tuple[float, float, float]], rgb: Colour, name: str | None = None,
             shade: float = 1.0) -> None:  # fmt: skip
        """A flat polygon in metres."""
        flat = [self.at(x, y, z) for x, y, z in points]
        low, high = min(flat)[0], max(flat)[0]
        if high < 0 or low > self.width or (name is None and high - low < 0.4):
            return  # out of sight, or a detail too small to be seen
        z = sum([z for _, _, z in points]) / len(points)
        self.fill(flat, self.tone(rgb, z, shade), name)

    def disc(self, x: float, y: float, z: float, rx: float, ry: float, rgb: Colour | None, name: str | None = None,
             shade: float = 1.0) -> None:  # fmt: skip
        """An upright ellipse facing the camera, radii in metres; without a colour in the label map alone."""
        (u, v), k, s = self.at(x, y, z), self.focal / max(z, NEAR), self.scale
        box = (u - rx * k, v - ry * k, u + rx * k, v + ry * k)
        if box[2] < 0 or box[0] > self.width:
            return
        if rgb is not None:
            self.pen.ellipse([b * s for b in box], fill=self.tone(rgb, z, shade))
        if name is not None:
            self.label_pen.ellipse(box, fill=ID[name])

    def upright(self, x: float, z: float, points: Iterable[tuple[float, float]], rgb: Colour,
                name: str | None = None, shade: float = 1.0) -> None:  # fmt: skip
        """A polygon of (offset to the right, height) in a plane that faces the camera."""
        self.face([(x + a, y, z) for a, y in points], rgb, name, shade)

    def plate(self, x: float, z: float, a0: float, a1: float, y0: float, y1: float, rgb: Colour,
              name: str | None = None, shade: float = 1.0) -> None:  # fmt: skip
        """An upright rectangle facing the camera, from x + a0 to x + a1 and height y0 to y1."""
        self.upright(x, z, [(a0, y0), (a0, y1), (a1, y1), (a1, y0)], rgb, name, shade)

    def pane(self, on: Plane, a0: float, a1: float, y0: float, y1: float, rgb: Colour,
             name: str | None = None, shade: float = 1.0) -> None:  # fmt: skip
        """A rectangle in any upright plane."""
        self.face([on(a0, y0), on(a0, y1), on(a1, y1), on(a1, y0)], rgb, name, shade)

    def strip(self, x0: float, x1: float, z0: float, z1: float, rgb: Colour, name: str | None = None) -> None:
        """A piece of ground, following the bend of the street. Its haze is added later, for all ground at once."""
        z0, steps = max(z0, NEAR), max(1, min(12, int((z1 - z0) / 4)))
        along = [z0 * (z1 / z0) ** (i / steps) for i in range(steps + 1)]
        points = [self.at(x0, 0, z) for z in along] + [self.at(x1, 0, z) for z in reversed(along)]
        self.fill(points, tuple(min(255, max(0, int(c))) for c in rgb), name)

    def box(self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, rgb: Colour,
            name: str | None) -> str | None:  # fmt: skip
        """A block with its edges along the axes; returns which of its flanks shows, left, right or none."""
        if y1 < self.eye:
            self.face([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)], rgb, name, self.shade["top"])
        flank = self.flank(x0, x1, z0)
        if flank:
            x = x0 if flank == "left" else x1
            self.face([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)], rgb, name, self.shade[flank])
        if z0 > NEAR:
            self.plate(0, z0, x0, x1, y0, y1, rgb, name, self.shade["front"])
        return flank

    def flank(self, x0: float, x1: float, z: float) -> str | None:
        """Which side of something between x0 and x1 at depth z can be seen from the camera."""
        bend = self.curve * max(z, NEAR) ** 2
        return "left" if x0 + bend > 0 else "right" if x1 + bend < 0 else None

    def haze_ground(self) -> None:
        """The ground fades into the haze row by row, as depth below the horizon is eye * focal / rows."""
        distance, haze = self.look.haze
        below = (np.arange(self.image.height) + 0.5) / self.scale - self.v0
        depth = self.eye * self.focal / np.maximum(below, 1e-3)
        veil = np.where(below > 0, 1 - np.exp(-depth / distance), 0) * 255
        mask = Image.fromarray(veil.astype(np.uint8)[:, None]).resize(self.image.size)
        self.image.paste(tuple(int(c) for c in haze), (0, 0), mask)


# How rough each surface is: relative deviation of (grain of a pixel, blotches of about 1/128 of the width).
ROUGH = {"road": (0.05, 0.03), "sidewalk": (0.05, 0.03), "building": (0.035, 0.03), "wall": (0.08, 0.06),
         "fence": (0.05, 0.03), "vegetation": (0.16, 0.14), "terrain": (0.12, 0.09),
         "parking": (0.06, 0.04)}  # fmt: skip


def noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise of unit deviation, `cells` across the width whatever the resolution. float32 [H, W]."""
    field = rng.standard_normal((cells // 2, cells), dtype=np.float32)
    return np.asarray(Image.fromarray(field).resize(size, Image.Resampling.BICUBIC))


def finish(p: Painter, rng: np.random.Generator) -> np.ndarray:
    """Texture of the surfaces, then what the engine (game) or lens and sensor (camera) add. uint8 [H, W, 3]."""
    size, label = (p.width, p.height), np.asarray(p.label)
    rough = np.zeros((2, 256), np.float32)
    for name, pair in ROUGH.items():
        rough[:, ID[name]] = pair
    blotches, leaves = noise(rng, size, 128), noise(rng, size, 512)
    grain = 0.6 * rng.standard_normal(label.shape, dtype=np.float32) + 0.8 * leaves
    texture = 1 + p.look.rough[0] * rough[0][label] * grain + p.look.rough[1] * rough[1][label] * blotches
    pixels = np.asarray(p.image.reduce(p.scale), np.float32) * texture[..., None]
    pixels = photograph(pixels, p.rnd, rng) if p.look.camera else saturate(pixels, p.rnd)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def saturate(pixels: np.ndarray, rnd: random.Random) -> np.ndarray:
    """The colours and contrast of a game engine. float32 [H, W, 3], 0 to 255, in and out."""
    grey = pixels.mean(axis=2, keepdims=True)
    return (grey + (pixels - grey) * 1.15 - 128) * 1.06 + 126 + rnd.uniform(-8, 8)


def photograph(pixels: np.ndarray, rnd: random.Random, rng: np.random.Generator) -> np.ndarray:
    """Blur and vignette of a lens; exposure, white balance and noise of a sensor. float32 [H, W, 3], 0 to 255."""
    height, width, _ = pixels.shape
    sharp = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pixels = np.asarray(sharp.filter(ImageFilter.GaussianBlur(0.4 + width / 2048)), np.float32)
    v, u = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    pixels *= (1 - 0.22 * (u * u + v * v) / 2)[..., None]
    exposure, white = rnd.uniform(0.8, 0.98), [tint + rnd.uniform(-0.02, 0.02) for tint in (0.97, 1.02, 0.95)]
    pixels = 18 + pixels * np.array([exposure * w for w in white], np.float32)
    return pixels + rng.standard_normal(pixels.shape, dtype=np.float32) * (2.5 + 0.02 * pixels)
