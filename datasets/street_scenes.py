"""Street scenes drawn on the spot, a stand-in for GTA5 -> Cityscapes when neither data set is at hand.

A pinhole camera looks down a street laid out in metres; everything in it is painted back to front, into the
picture and into the label map at once, so that the two agree. Two looks share this geometry: `game` (saturated,
sunny, hard shadows, wide streets) and `camera` (hazy, noisy, pale, narrower and busier streets, lower eye, the
car's own hood in view). All 19 Cityscapes classes occur, in roughly the order of frequency that real streets have.

    python -m datasets.street_scenes --out data/scenes --layout cityscapes --look camera --count 200 --val 50
    python -m datasets.street_scenes --preview sheet.png

World axes: x to the right, y up, z ahead, in metres, the camera at (0, eye, 0).
Order of the file: looks, painter, things, street, finish (texture, optics, sensor), files, command line.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from datasets.labels import CITYSCAPES_ID_TO_TRAIN_ID, CITYSCAPES_PALETTE, CLASS_NAMES

LOOKS = ("game", "camera")
VERSION = 1  # raise when pictures change: stored sets of an older version are then no longer taken for these

ID = {CLASS_NAMES[train]: number for number, train in CITYSCAPES_ID_TO_TRAIN_ID.items() if 0 <= train < 19}
ID |= {"ego vehicle": 1, "parking": 9}  # never evaluated

Colour = tuple[float, float, float]
Point = tuple[float, float, float]  # x, y, z in metres
Plane = Callable[[float, float], Point]  # (along, height) -> point
NEAR = 1.0  # metres; whatever reaches closer to the camera is cut off here
CIRCLE = [(math.cos(t * math.pi / 6), math.sin(t * math.pi / 6)) for t in range(12)]


# ---------------------------------------------------------------------------------------------- looks
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


GAME = Look(
    eye=(1.6, 2.1),
    focal=(0.85, 1.0),
    horizon=(0.42, 0.50),
    lane=3.6,
    lanes=(1, 2, 2, 3),
    sidewalk=(3.2, 5.5),
    parked=0.35,
    gap=(9, 32),
    people=(5, 10),
    bicycles=(1, 3),
    plots={"building": 4, "yard": 1.6, "park": 1.8, "wall": 0.9, "fence": 1.0, "street": 0.9},
    floors=(2, 8),
    end=(90, 170),
    haze=(420, (196, 214, 236)),
    sun=0.52,
    colours={
        "sky": ((64, 128, 222), (186, 216, 246)),
        "cloud": ((250, 250, 255),),
        "road": ((96, 94, 100), (108, 104, 104), (84, 86, 94)),
        "mark": ((240, 238, 226),),
        "centre": ((236, 184, 40),),
        "sidewalk": ((196, 184, 166), (182, 176, 170), (204, 190, 160)),
        "kerb": ((216, 210, 198),),
        "terrain": ((112, 158, 48), (134, 164, 60), (176, 164, 84)),
        "building": (
            (206, 124, 86),
            (232, 204, 150),
            (176, 82, 62),
            (222, 216, 206),
            (214, 168, 96),
            (150, 168, 190),
            (236, 186, 168),
        ),
        "window": ((52, 84, 120), (70, 110, 150), (40, 58, 84)),
        "roof": ((150, 70, 52), (110, 104, 108)),
        "wall": ((206, 190, 158), (190, 150, 120)),
        "fence": ((120, 84, 54), (60, 62, 70)),
        "vegetation": ((62, 132, 36), (44, 112, 40), (92, 146, 44)),
        "trunk": ((104, 76, 50),),
        "pole": ((96, 98, 104), (60, 60, 64)),
        "car": (
            (214, 34, 34),
            (28, 74, 190),
            (244, 244, 246),
            (24, 24, 28),
            (240, 190, 30),
            (30, 150, 90),
            (180, 184, 192),
            (230, 110, 20),
        ),
        "bus": ((240, 170, 20), (226, 52, 44)),
        "truck": ((236, 236, 240), (60, 120, 200), (190, 60, 40)),
        "train": ((200, 206, 216), (60, 150, 160)),
        "cloth": ((220, 50, 50), (40, 90, 200), (240, 240, 240), (240, 200, 60), (60, 60, 70), (60, 160, 90)),
        "legs": ((44, 60, 110), (60, 56, 54), (150, 130, 100)),
        "skin": ((226, 172, 136), (140, 96, 70)),
    },
)
CAMERA = Look(
    eye=(1.15, 1.35), focal=(1.02, 1.16), horizon=(0.39, 0.46), lane=3.2, lanes=(1, 1, 1, 2), sidewalk=(2.8, 4.6),
    parked=0.5, gap=(12, 40), people=(4, 9), bicycles=(2, 5),
    plots={"building": 4.5, "yard": 1.6, "park": 1.6, "wall": 1.1, "fence": 1.3, "street": 0.8},
    floors=(3, 6), end=(70, 140), haze=(190, (206, 212, 208)), sun=0.2,
    colours={
        "sky": ((206, 218, 224), (232, 236, 232)), "cloud": ((240, 242, 240),),
        "road": ((104, 106, 104), (92, 96, 96), (116, 114, 110)), "mark": ((206, 208, 204),),
        "centre": ((206, 208, 204),), "sidewalk": ((134, 130, 128), (146, 138, 134), (124, 124, 122)),
        "kerb": ((158, 158, 154),), "terrain": ((92, 106, 62), (106, 110, 72), (120, 116, 88)),
        "building": ((150, 142, 130), (176, 168, 152), (126, 112, 104), (168, 154, 126), (140, 146, 148),
                     (190, 186, 178), (138, 104, 92)),
        "window": ((66, 72, 76), (88, 96, 100), (52, 54, 58)), "roof": ((112, 76, 66), (84, 84, 86)),
        "wall": ((128, 120, 110), (112, 106, 102)), "fence": ((86, 84, 78), (60, 70, 64)),
        "vegetation": ((60, 78, 50), (74, 88, 56), (50, 66, 48)), "trunk": ((70, 64, 58),),
        "pole": ((112, 114, 114), (84, 86, 86)),
        "car": ((40, 42, 46), (150, 154, 158), (196, 198, 200), (30, 30, 32), (70, 80, 98), (112, 40, 40),
                (90, 94, 96), (52, 60, 80)),
        "bus": ((196, 160, 60), (150, 50, 46)), "truck": ((186, 188, 190), (80, 100, 130), (140, 70, 56)),
        "train": ((186, 176, 130), (90, 120, 120)),
        "cloth": ((58, 60, 72), (110, 50, 50), (150, 148, 144), (50, 56, 60), (84, 96, 120), (120, 104, 84)),
        "legs": ((50, 56, 74), (44, 44, 46), (88, 80, 72)), "skin": ((190, 152, 130), (120, 90, 74)),
    },
)  # fmt: skip


# -------------------------------------------------------------------------------------------- painter
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
        self.u0 = self.width * rnd.uniform(0.44, 0.56)  # the street need not run dead ahead
        self.v0 = self.height * rnd.uniform(*look.horizon)
        self.road, self.walk = self.pick("road", 6), self.pick("sidewalk", 6)
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

    def disc(self, x: float, y: float, z: float, rx: float, ry: float, rgb: Colour, name: str | None = None,
             shade: float = 1.0) -> None:  # fmt: skip
        """An upright ellipse facing the camera, radii in metres."""
        (u, v), k, s = self.at(x, y, z), self.focal / max(z, NEAR), self.scale
        box = (u - rx * k, v - ry * k, u + rx * k, v + ry * k)
        if box[2] < 0 or box[0] > self.width:
            return
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


# --------------------------------------------------------------------------------------------- things
def draw_building(p: Painter, x0: float, x1: float, z0: float, z1: float, floors: int, pitched: bool) -> None:
    """A house between x0 and x1 (the street is at the edge nearer to 0), windows on both faces that show."""
    rgb, glass, height = p.pick("building", 16), p.pick("window"), 3.2 * floors + 0.8
    shop, trim = p.pick("window"), tuple(c * 0.82 + 30 for c in rgb)
    mixed = tuple((c + g) / 2 for c, g in zip(rgb, glass, strict=True))
    bay, tall, wide = p.rnd.uniform(2.4, 3.6), p.rnd.uniform(1.4, 1.9), p.rnd.uniform(0.42, 0.62)
    has_shop = p.rnd.random() < 0.55
    if pitched:
        middle, roof = (x0 + x1) / 2, p.pick("roof")
        street, ridge = (x0 if x0 > 0 else x1), height + 3.4
        p.upright(0, z0, [(x0, height), (middle, ridge), (x1, height)], rgb, "building", p.shade["front"])
        slope = [(street, height, z0), (street, height, z1), (middle, ridge, z1), (middle, ridge, z0)]
        p.face(slope, roof, "building")
    flank = p.box(x0, x1, 0, height, z0, z1, rgb, "building")
    faces: list[tuple[Plane, float, float, float]] = []
    if flank:
        x = x0 if flank == "left" else x1
        faces.append((lambda a, y: (x, y, a), max(z0, 3.0), z1, p.shade[flank]))
    if z0 > 3:
        faces.append((lambda a, y: (a, y, z0), x0, x1, p.shade["front"]))
    for on, a0, a1, shade in faces:
        first, last = p.at(*on(a0, 0))[0], p.at(*on(a1, 0))[0]
        if max(first, last) < 0 or min(first, last) > p.width:
            continue
        bays = max(1, int((a1 - a0) / bay))
        step = (a1 - a0) / bays
        p.pane(on, a0, a1, height - 0.5, height, trim, None, shade)
        p.pane(on, a0, a1, 0, 0.5, rgb, None, shade * 0.6)
        if has_shop:
            p.pane(on, a0 + 0.4, a1 - 0.4, 2.7, 3.3, shop, None, shade)
        pitch = abs(first - last) / bays  # pixels from one window to the next, on average
        for floor in range(floors):
            y = 3.2 * floor + 1.1
            if pitch < 1.5:  # windows narrower than pixels: a band will do
                p.pane(on, a0, a1, y, y + tall, mixed, None, shade)
                continue
            for i in range(bays):
                b = a0 + (i + 0.5 - wide / 2) * step
                low = 0.4 if floor == 0 and (has_shop or i % 3 == 1) else y  # shop windows and doors
                if pitch > 6:
                    p.pane(on, b - 0.1, b + wide * step + 0.1, low - 0.12, y + tall + 0.12, trim, None, shade)
                p.pane(on, b, b + wide * step, low, y + tall, glass, None, (0.8, 1.0, 1.25)[(i * 7 + floor * 5) % 3])


def draw_tree(p: Painter, x: float, z: float, height: float, spread: float) -> None:
    """Trunk and a crown of overlapping clumps, lit from above and from the sun's side."""
    rgb, trunk = p.pick("vegetation", 12), p.pick("trunk")
    base = height * p.rnd.uniform(0.28, 0.4)
    p.upright(x, z, [(-0.2, 0), (-0.13, base + 1), (0.13, base + 1), (0.2, 0)], trunk, "vegetation")
    middle, half = (base + height) / 2, (height - base) / 2
    p.disc(x, middle, z, spread * 0.8, half * 0.85, rgb, "vegetation", 0.7)
    for i in range(16):
        turn, out = i * 2.4 + p.rnd.random(), math.sqrt((i + 0.5) / 16) * p.rnd.uniform(0.7, 1.0)
        dx, dy = math.cos(turn) * out * spread * 0.8, math.sin(turn) * out * half * 0.8
        light = 0.85 + 0.3 * dy / half + 0.12 * math.copysign(dx / spread, dx * p.sun_x) + p.rnd.uniform(-0.08, 0.08)
        size = spread * p.rnd.uniform(0.26, 0.42)
        p.disc(x + dx, middle + dy, z, size, size * 0.85, rgb, "vegetation", light)


def draw_hedge(p: Painter, x0: float, x1: float, height: float, z0: float, z1: float) -> None:
    rgb = p.pick("vegetation", 12)
    p.box(x0, x1, 0, height, z0, z1, rgb, "vegetation")
    for i in range(int((z1 - z0) / 0.8), -1, -1):  # a bushy top
        z, light = max(z0 + i * 0.8, 2.0), p.rnd.uniform(0.85, 1.15)
        p.disc((x0 + x1) / 2, height - 0.1, z, 0.6, 0.32, rgb, "vegetation", light)


def draw_wall(p: Painter, x0: float, x1: float, height: float, z0: float, z1: float) -> None:
    """Stone or brick in courses, with a coping."""
    rgb = p.pick("wall")
    flank = p.box(x0, x1, 0, height, z0, z1, rgb, "wall")
    x, shade, z0 = (x1 if flank == "right" else x0), p.shade[flank or "left"], max(z0, 2.0)
    for course in range(1, int(height / 0.4)):
        p.pane(lambda a, y: (x, y, a), z0, z1, course * 0.4, course * 0.4 + 0.06, rgb, None, shade * 0.7)
    p.pane(lambda a, y: (x, y, a), z0, z1, height - 0.15, height, rgb, None, shade * 1.25)


def draw_fence(p: Painter, x: float, height: float, z0: float, z1: float) -> None:
    """Boards and rails; between them the dark of the gaps (Cityscapes labels a fence as a solid piece)."""
    rgb, z0 = p.pick("fence"), max(z0, 2.0)

    def on(a: float, y: float) -> Point:
        return x, y, a

    p.pane(on, z0, z1, 0, height, rgb, "fence", 0.55)
    for i in range(int((z1 - z0) / 0.5)):
        p.pane(on, z0 + i * 0.5, z0 + i * 0.5 + 0.22, 0, height, rgb, None, 1.25)
    for y in (0.25, height - 0.15):
        p.pane(on, z0, z1, y, y + 0.12, rgb, None, 1.4)


def draw_pole(p: Painter, x: float, z: float, height: float, kind: str, inward: float) -> None:
    """A pole at (x, z) with what it carries: sign, lamp, light (for traffic) or arm (a second light over the road)."""
    rgb, r = p.pick("pole"), 0.1 if height > 4 else 0.06
    p.plate(x, z, -r, r, 0, height, rgb, "pole")
    p.plate(x, z, r * 0.2, r, 0, height, rgb, None, 0.7)
    if kind == "sign":
        draw_sign(p, x, height - 0.1, z - 0.05)
    elif kind == "lamp":
        arm, head = [(0, 0), (0, -0.16), (2, 0.25), (2, 0.4)], [(1.6, 0.2), (2.5, 0.3), (2.5, 0.5)]
        p.upright(x, z, [(inward * a, height + y) for a, y in arm], rgb, "pole")
        p.upright(x, z, [(inward * a, height + y) for a, y in head], rgb, "pole", 1.3)
    else:
        heads = [(x, 3.1)]
        if kind == "arm":
            p.plate(x, z, *ordered(0, inward * 4.2), height - 0.16, height, rgb, "pole")
            heads.append((x + inward * 4.2, height))
        state = p.rnd.randrange(3)
        for cx, cy in heads:
            p.plate(cx, z - 0.1, -0.24, 0.24, cy - 0.6, cy + 0.62, (26, 28, 28), "traffic light")
            for i, lamp in enumerate(((250, 50, 40), (250, 190, 40), (60, 240, 130))):
                p.disc(cx, cy + 0.38 - 0.38 * i, z - 0.12, 0.15, 0.15, lamp, None, 1.0 if i == state else 0.25)


def draw_sign(p: Painter, x: float, y: float, z: float) -> None:
    """Prohibition, order, warning or direction."""
    kind, r = p.rnd.choice(("prohibition", "order", "warning", "direction")), p.rnd.uniform(0.36, 0.46)
    if kind == "prohibition":
        p.disc(x, y, z, r, r, (206, 30, 36), "traffic sign")
        p.disc(x, y, z, r * 0.68, r * 0.68, (236, 236, 232))
    elif kind == "order":
        p.disc(x, y, z, r, r, (24, 84, 190), "traffic sign")
        p.plate(x, z, -0.06, 0.06, y - r * 0.55, y + r * 0.3, (236, 238, 240))
        p.upright(x, z, [(-0.16, y + r * 0.2), (0, y + r * 0.7), (0.16, y + r * 0.2)], (236, 238, 240))
    elif kind == "warning":
        for grow, rgb, name in ((1.1, (206, 30, 36), "traffic sign"), (0.66, (238, 236, 226), None)):
            p.upright(x, z, [(a * r * grow, y + b * r * grow) for a, b in ((-1, -0.75), (0, 1), (1, -0.75))], rgb, name)
    else:
        p.plate(x, z, -r * 1.6, r * 1.6, y - r, y + r, (236, 196, 30), "traffic sign")
        p.plate(x, z, -r * 1.2, r * 1.1, y, y + r * 0.4, (30, 30, 34))


def draw_person(p: Painter, x: float, z: float, name: str = "person", lift: float = 0.0) -> None:
    """Legs, torso, arms and head; `lift` > 0 seats the figure that high above the ground, on a cycle."""
    cloth, legs, skin = p.pick("cloth"), p.pick("legs"), p.pick("skin", 6)
    size, stride = p.rnd.uniform(0.92, 1.08), p.rnd.uniform(0.05, 0.26)
    hip = lift or 0.86 * size
    top = hip + 0.62 * size
    for side in (-1, 1):
        if lift:
            leg = [(0.02, hip + 0.1), (0.2, hip), (0.16, 0.3), (0.04, 0.3)]
        else:
            leg = [(0.01, hip), (0.19, hip), (stride + 0.09, 0), (stride - 0.09, 0)]
        p.upright(x, z, [(side * a, y) for a, y in leg], legs, name, 0.9 - 0.1 * side)
    torso = [(0.19, hip - 0.06), (0.25, top - 0.06), (0.12, top + 0.04)]
    p.upright(x, z, torso + [(-a, y) for a, y in reversed(torso)], cloth, name)
    for side in (-1, 1):
        hand = p.rnd.uniform(0.24, 0.36)
        arm = [(0.2, top - 0.04), (0.28, top - 0.06), (hand + 0.05, hip + 0.02), (hand - 0.05, hip)]
        p.upright(x, z, [(side * a, y) for a, y in arm], cloth, name, 0.8)
    p.disc(x, top + 0.17 * size, z, 0.115, 0.15, skin, name)
    hair = (170, 60, 50) if lift and p.rnd.random() < 0.5 else (54, 42, 36)  # some riders wear a helmet
    p.disc(x, top + 0.23 * size, z, 0.12, 0.1, hair, name)


def draw_cycle(p: Painter, x: float, z: float, kind: str, turn: float, ridden: bool) -> None:
    """Bicycle or motorcycle, `turn` 1 seen from the side, near 0 from behind. The wheels count as full discs."""
    motor = kind == "motorcycle"
    r, base, wide, hub = (0.33, 0.72, 0.1, 0.55) if motor else (0.36, 0.56, 0.04, 0.8)
    rgb, dark, rim = p.pick("car"), (26, 26, 28), (110, 112, 114)
    t = max(turn, 0.25)

    def part(points: Iterable[tuple[float, float]], colour: Colour) -> None:
        p.upright(x, z, [(a * t, y) for a, y in points], colour, kind)

    for side in (-1, 1):
        rx = max(r * turn, wide)
        p.disc(x + side * base * turn, r, z, rx, r, dark, kind)
        p.disc(x + side * base * turn, r, z, rx * hub, r * hub, rim)
    if motor:
        part([(-0.75, 0.75), (-0.7, 0.9), (-0.1, 0.85), (0.2, 1.02), (0.55, 1.0), (0.6, 0.75), (0.3, 0.35),
              (-0.35, 0.35)], rgb)  # fmt: skip
        part([(-0.7, 0.86), (-0.65, 0.95), (0.0, 0.9), (0.0, 0.8)], dark)  # seat
        p.plate(x, z, -0.3, 0.3, 1.05, 1.12, dark, kind)  # handlebar
        p.disc(x + 0.45 * t, 0.95, z, 0.13, 0.13, (250, 240, 200), kind)
    else:
        tubes = [(-0.56, 0.36, -0.1, 0.9), (-0.1, 0.9, 0.4, 0.92), (0.4, 0.92, 0, 0.36), (0, 0.36, -0.2, 0.95),
                 (0.4, 1.05, 0.56, 0.36), (-0.56, 0.36, 0, 0.36)]  # fmt: skip
        for a0, y0, a1, y1 in tubes:
            part([(a0, y0), (a0, y0 + 0.07), (a1, y1 + 0.07), (a1, y1)], rgb)
        for a, b, y in ((-0.33, -0.05, 0.98), (0.2, 0.5, 1.05)):  # saddle, handlebar
            part([(a, y), (a, y + 0.07), (b, y + 0.07), (b, y)], dark)
    if ridden:
        draw_person(p, x - 0.1 * t, z, "rider", 0.82 if motor else 0.92)


# Side views of vehicles, (metres from the rear, height), open at the bottom; which segments are glass; side windows.
BODIES: dict[str, tuple[list[tuple[float, float]], tuple[int, ...], list[tuple[float, float]]]] = {
    "hatch": ([(0, 0.32), (0, 0.85), (0.12, 0.98), (0.45, 1.44), (2.3, 1.5), (3.2, 0.98), (4.1, 0.8), (4.1, 0.32)],
              (2, 4), [(0.5, 0.98), (0.68, 1.36), (2.25, 1.42), (2.95, 0.98)]),
    "sedan": ([(0, 0.32), (0, 0.92), (0.8, 1.0), (1.45, 1.42), (2.8, 1.46), (3.6, 0.98), (4.6, 0.82), (4.6, 0.32)],
              (2, 4), [(1.1, 1.0), (1.5, 1.36), (2.75, 1.39), (3.35, 0.98)]),
    "suv": ([(0, 0.4), (0, 1.0), (0.08, 1.12), (0.3, 1.7), (2.8, 1.76), (3.5, 1.12), (4.5, 1.0), (4.5, 0.4)],
            (2, 4), [(0.35, 1.12), (0.45, 1.62), (2.75, 1.68), (3.25, 1.12)]),
    "van": ([(0, 0.36), (0, 1.1), (0.05, 1.2), (0.15, 2.0), (3.4, 2.05), (4.1, 1.2), (4.8, 1.0), (4.8, 0.36)],
            (2, 4), [(2.6, 1.2), (2.6, 1.85), (3.35, 1.9), (3.85, 1.2)]),
    "bus": ([(0, 0.4), (0, 1.3), (0.05, 2.6), (0.1, 3.1), (11, 3.1), (11.05, 2.6), (11.1, 1.2), (11.1, 0.4)],
            (1, 5), []),
    "train": ([(0, 0.3), (0, 1.2), (0.5, 2.7), (0.9, 3.4), (12.1, 3.4), (12.5, 2.7), (13, 1.2), (13, 0.3)],
              (1, 5), []),
    "cargo": ([(0, 0.95), (0, 3.5), (6.0, 3.5), (6.0, 0.95)], (), []),
    "cab": ([(0, 0.5), (0, 2.7), (1.4, 2.75), (1.75, 1.7), (1.9, 0.5)],
            (2,), [(0.5, 1.6), (0.5, 2.4), (1.3, 2.4), (1.6, 1.6)]),
}  # fmt: skip
LENGTH = {name: body[0][-1][0] for name, body in BODIES.items()} | {"truck": 8.1}
WIDTH = dict.fromkeys(BODIES, 1.8) | {"bus": 2.55, "train": 2.65, "cargo": 2.5, "cab": 2.4, "truck": 2.5, "van": 1.95}
CARS = ("hatch", "sedan", "suv", "van", "hatch", "sedan")


def draw_vehicle(p: Painter, body: str, x: float, z: float, oncoming: bool, across: bool = False,
                 name: str = "car") -> None:  # fmt: skip
    """A vehicle whose nearest end (or side, when it drives across) is at depth z, its middle at x."""
    if body == "truck":  # cab and cargo, the nearer one painted last
        parts = [("cargo", 2.1), ("cab", 0.0)] if oncoming else [("cab", 6.2), ("cargo", 0.0)]
        for kind, offset in parts:
            draw_vehicle(p, kind, x, z + offset, oncoming, name="truck")
        return
    profile, glass, side_window = BODIES[body]
    length, width = LENGTH[body], WIDTH[body]
    name = body if body in ("bus", "train") else name
    rgb = p.livery if body == "train" else p.pick("car" if body == "cab" else name)
    if oncoming:
        profile = [(length - a, y) for a, y in reversed(profile)]
        glass = tuple(len(profile) - 2 - i for i in glass)
        side_window = [(length - a, y) for a, y in side_window]

    def put(a: float, y: float, b: float) -> Point:
        """a along the vehicle from its near end, y up, b across it -> world."""
        return (x - length / 2 + a, y, z + b) if across else (x - width / 2 + b, y, z + a)

    def end(b: float, y: float) -> Point:
        return put(0, y, b)

    dark, window = (26, 26, 30), tuple(c * 0.75 for c in p.pick("window"))
    p.pane(lambda b, y: put(0.1, y, b), 0.1, width - 0.1, 0.08, 0.5, dark, name)  # the dark underneath
    for b in (0.08, width - 0.34):  # tyres under the near end
        p.pane(lambda b, y: put(0.3, y, b), b, b + 0.26, 0, 0.5, dark, name)
    panels = []
    for i, ((a0, y0), (a1, y1)) in enumerate(pairwise(profile)):
        quad = [put(a0, y0, 0), put(a1, y1, 0), put(a1, y1, width), put(a0, y0, width)]
        flat = abs(a1 - a0) / (abs(a1 - a0) + abs(y1 - y0))
        panels.append((-sum(q[2] for q in quad), i, quad, p.shade["top"] * flat + p.shade["front"] * (1 - flat)))
    for _, i, quad, shade in sorted(panels):
        p.face(quad, window if i in glass else rgb, name, shade)
    if not across:
        lamp, y = ((252, 248, 220) if oncoming else (214, 30, 30)), (0.9 if width > 2 else 0.68)
        p.pane(end, 0, width, profile[0][1], 0.46 if width < 2 else 0.6, dark)  # bumper
        for b in (0.08, width - 0.4):
            p.pane(end, b, b + 0.32, y, y + 0.18, lamp)
        p.pane(end, width / 2 - 0.26, width / 2 + 0.26, 0.5, 0.62, (226, 224, 210))  # licence plate
        if body == "cargo" and not oncoming:
            p.pane(end, width / 2 - 0.03, width / 2 + 0.03, 1.0, 3.4, dark)  # between the doors
    side = "left" if across else p.flank(x - width / 2, x + width / 2, z)
    if side is None:
        return
    b, shade = (0.0 if side == "left" else width), p.shade["front" if across else side]

    def flank(a: float, y: float) -> Point:
        return put(a, y, b)

    p.face([flank(a, y) for a, y in profile], rgb, name, shade)
    if side_window:
        p.face([flank(a, y) for a, y in side_window], window)
        if body != "cab":  # the pillar between the doors
            middle = sum(a for a, _ in side_window) / 4
            p.pane(flank, middle - 0.05, middle + 0.05, side_window[0][1], side_window[1][1] + 0.03, rgb, None, shade)
    if body in ("bus", "train"):
        bay, y0, y1, stripe = (1.4, 1.45, 2.55, (240, 240, 236)) if body == "bus" else (1.9, 1.4, 2.6, (40, 60, 110))
        for i in range(int((length - 1) / bay)):
            p.pane(flank, 0.6 + i * bay, 0.4 + (i + 1) * bay, y0, y1, window)
        p.pane(flank, 0, length, 0.7, 1.0, stripe, None, shade)
    if body == "cargo":
        p.pane(flank, 0, length, 0.5, 0.95, dark, name)
        p.pane(flank, 1, 5, 1.8, 2.6, tuple(255 - c for c in rgb), None, shade)  # lettering
    if body != "train":
        r = 0.33 if width < 2 else 0.5
        for a in (length / 2,) if body == "cab" else (length * 0.19, length * 0.81):
            p.face([flank(a + r * c, r + r * s) for c, s in CIRCLE], dark, name)
            p.face([flank(a + r * c * 0.55, r + r * s * 0.55) for c, s in CIRCLE], (150, 152, 156))


# --------------------------------------------------------------------------------------------- street
class Street:
    """The layout of one scene: ground at once, then lots beside the street, then what stands or drives in it.

    Things are painted from the far end to the near one. A lot lies further from the street's middle than
    everything in the street and can never hide it, so all lots come first.
    """

    def __init__(self, p: Painter, index: int) -> None:
        self.p, self.rnd, self.look = p, p.rnd, p.look
        self.lots: list[tuple] = []  # (far end, paint function, its arguments)
        self.things: list[tuple] = []
        self.shadows: list[tuple[list[tuple[float, float]], float]] = []  # (footprint, height)
        self.long: list[tuple[float, float, float]] = []  # (x, z0, z1) of what hides whatever is beyond it
        # Rare things take turns, so that a few dozen scenes hold each of them.
        turn = index % 24
        self.guest = "train" if turn % 12 == 3 else "bus" if turn % 8 == 1 else "truck" if turn % 6 == 4 else None
        self.index = index
        rnd, look = self.rnd, self.look
        lanes = rnd.choice(look.lanes)
        own = rnd.randrange(lanes)  # lanes between the middle of the street and the camera
        self.middle = -(own + 0.5) * look.lane
        self.lanes = [(self.middle + (i + 0.5) * look.lane, i < 0) for i in range(-lanes, lanes)]
        self.parked = {side: rnd.random() < look.parked for side in (-1, 1)}
        half = lanes * look.lane + 0.3
        self.kerb = {side: self.middle + side * (half + 2.2 * self.parked[side]) for side in (-1, 1)}
        self.edge_line = {side: self.middle + side * half for side in (-1, 1)}
        self.verge = {side: rnd.uniform(1.2, 2.2) if rnd.random() < 0.4 else 0.0 for side in (-1, 1)}
        self.edge = {s: self.kerb[s] + s * (self.verge[s] + rnd.uniform(*look.sidewalk)) for s in (-1, 1)}
        self.end = rnd.uniform(*look.end)
        self.crossings: list[float] = []

    def add(self, z1: float, paint: Callable, *args: object) -> None:
        self.things.append((z1, paint, args))

    def shadow(self, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
        self.shadows.append(([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], height))

    def lay_out(self) -> None:
        for side in (-1, 1):
            self.line_side(side)
        self.close_end()
        self.drive()
        for side in (-1, 1):
            self.furnish(side)
        self.populate()

    def line_side(self, side: int) -> None:
        """Plots along one side: houses, gardens, parks, walls, fences, side streets."""
        rnd, z, last = self.rnd, self.rnd.uniform(-6, 4), ""
        kinds, weights = zip(*self.look.plots.items(), strict=True)
        while z < self.end:
            kind = rnd.choices(kinds, weights)[0]
            if kind == last == "street" or (kind == "street" and z < 6):
                continue
            last, z1 = kind, z + rnd.uniform(9, 18)
            x = self.edge[side]
            if kind == "building":
                self.house(side, x, z, z1)
            elif kind == "yard":
                set_back = x + side * rnd.uniform(3, 6)
                self.house(side, set_back, z, z1)
                border = rnd.choice(("fence", "wall", "hedge", "none"))
                self.border(border, side, x, z, z1, rnd.uniform(0.8, 1.2))
            elif kind == "park":
                if rnd.random() < 0.4:
                    self.border(rnd.choice(("fence", "hedge")), side, x, z, z1, rnd.uniform(0.8, 1.2))
                for _ in range(rnd.randint(4, 7)):
                    far, tree_z = rnd.uniform(3, 16), rnd.uniform(z, z1)
                    self.tree(self.lots, x + side * far, tree_z, rnd.uniform(6, 12))
                back = ordered(x + side * 18, x + side * 22)
                self.lots.append((z1 + 0.2, draw_hedge, (*back, rnd.uniform(3, 6), z, z1)))
            elif kind in ("wall", "fence"):
                self.border(kind, side, x, z, z1, rnd.uniform(1.7, 2.8))
                for _ in range(rnd.randint(2, 4)):
                    self.tree(self.lots, x + side * rnd.uniform(3, 8), rnd.uniform(z, z1), rnd.uniform(7, 12))
                if rnd.random() < 0.5:
                    self.house(side, x + side * 10, z, z1)
            else:
                z1 = z + rnd.uniform(7, 10)
                self.side_street(side, x, z, z1)
            z = z1

    def house(self, side: int, x: float, z0: float, z1: float) -> None:
        floors = self.rnd.randint(*self.look.floors)
        x0, x1 = ordered(x, x + side * 12)
        pitched = self.look is CAMERA and self.rnd.random() < 0.7
        self.lots.append((z1, draw_building, (x0, x1, z0, z1, floors, pitched)))
        self.shadow(x0, x1, z0, z1, 3.2 * floors)

    def border(self, kind: str, side: int, x: float, z0: float, z1: float, height: float) -> None:
        """At the back of the sidewalk. Painted after whatever stands behind it on the same plot."""
        if kind == "fence":
            self.lots.append((z0 + 0.1, draw_fence, (x, height, z0, z1)))
        elif kind == "wall":
            self.lots.append((z0 + 0.1, draw_wall, (*ordered(x, x + side * 0.4), height, z0, z1)))
        elif kind == "hedge":
            self.lots.append((z0 + 0.1, draw_hedge, (*ordered(x, x + side * 0.9), height, z0, z1)))
        if kind != "none":
            self.shadow(*ordered(x, x + side * 0.3), z0, z1, height)

    def tree(self, into: list, x: float, z: float, height: float) -> None:
        spread = height * self.rnd.uniform(0.24, 0.34)
        into.append((z + 0.3, draw_tree, (x, z, height, spread)))
        for share in (0.45, 0.75):
            r = spread * 0.8
            dx, dz = self.p.sun_x * height * share, self.p.sun_z * height * share
            self.shadows.append(([(x + r * c - dx, z + r * s - dz) for c, s in CIRCLE], 0.0))
        self.shadow(x - 0.15, x + 0.15, z, z + 0.2, height * 0.5)

    def side_street(self, side: int, x: float, z0: float, z1: float) -> None:
        self.crossings.append(z0 - 2.5)
        self.lots.append((z1 + 0.5, paint_side_street, (self.kerb[side], x + side * 40, z0, z1)))
        far = ordered(x + side * 40, x + side * 50)
        self.lots.append((z1 + 0.4, draw_building, (*far, z0 - 4, z1 + 4, self.rnd.randint(2, 5), False)))
        if self.rnd.random() < 0.6:  # a car about to turn in, seen from its side
            car_x = x + side * self.rnd.uniform(1, 6)
            self.lots.append((z0 + 3, draw_vehicle, (self.rnd.choice(CARS), car_x, z0 + 2.4, side > 0, True)))
            self.shadow(car_x - 2, car_x + 2, z0 + 2.4, z0 + 4.2, 1.4)

    def close_end(self) -> None:
        """What stands across the end of the street: houses, trees, or only a low line of trees far off."""
        rnd, z, bend = self.rnd, self.end, -self.p.curve * self.end**2
        kind, x = rnd.choice(("building", "trees", "mixed", "open")), -110.0 + bend
        while x < 110 + bend:
            wide = rnd.uniform(8, 16)
            if kind == "building" or (kind == "mixed" and rnd.random() < 0.5):
                self.lots.append((z + 30, draw_building, (x, x + wide, z + 12, z + 24, rnd.randint(2, 5), False)))
            elif kind == "open":
                self.lots.append((z + 30, draw_hedge, (x, x + wide, rnd.uniform(2.5, 5), z + 12, z + 14)))
            else:
                self.lots.append((z + 30, draw_hedge, (x, x + wide, rnd.uniform(4, 6), z + 14, z + 16)))
                self.tree(self.lots, x + wide / 2, z + 12, rnd.uniform(9, 14))
            x += wide

    def vehicle(self, body: str, x: float, z: float, oncoming: bool, across: bool = False) -> None:
        length, width = LENGTH[body], WIDTH[body]
        dx, dz = (length, width) if across else (width, length)
        self.add(z + dz, draw_vehicle, body, x, z, oncoming, across)
        self.shadow(x - dx / 2, x + dx / 2, z, z + dz, {"bus": 3, "train": 3.3, "truck": 3.3, "van": 2}.get(body, 1.35))
        if length > 7:
            self.long.append((x, z, z + dz))

    def drive(self) -> None:
        """Moving traffic lane by lane, then rows of parked cars."""
        rnd, guest = self.rnd, self.guest
        # Rails run in the middle of the street; a bus or truck may drive in any lane.
        host = max(lane for lane in self.lanes if lane[1]) if guest == "train" else rnd.choice(self.lanes)
        for x, oncoming in self.lanes:
            ahead = abs(x) < 1
            z = rnd.uniform(*self.look.gap) + (6 if ahead else 2)
            if (x, oncoming) == host and guest:
                z = rnd.uniform(13, 24)
                for body in (guest,) * (2 if guest == "train" else 1):
                    self.vehicle(body, x, z, oncoming)
                    z += LENGTH[body] + 0.4
                z += 6
            while z < min(self.end, 85):
                wobble, kind = rnd.uniform(-0.2, 0.2), rnd.random()
                if kind < 0.08:
                    self.cycle("motorcycle", x + wobble, z, 1.0, rnd.uniform(0.25, 0.5))
                    z += 2
                elif kind < 0.10:
                    body = rnd.choice(("bus", "truck"))
                    self.vehicle(body, x + wobble, z + 12, oncoming)
                    z += LENGTH[body] + 12
                else:
                    body = rnd.choice(CARS)
                    self.vehicle(body, x + wobble, z, oncoming)
                    z += LENGTH[body]
                z += rnd.uniform(*self.look.gap)
        for side in (-1, 1):
            z = rnd.uniform(3.5, 8)
            while self.parked[side] and z < 70:
                body, x = rnd.choice(CARS), self.kerb[side] - side * 1.15
                if rnd.random() < 0.8 and not any(abs(z - c) < 6 for c in self.crossings):
                    self.vehicle(body, x, z, side < 0)
                z += LENGTH[body] + rnd.uniform(0.8, 2.5)

    def furnish(self, side: int) -> None:
        """Trees, poles, lamps, signs and lights along the kerb."""
        rnd, x, inward = self.rnd, self.kerb[side] + side * 0.55, -side
        z, trees = rnd.uniform(6, 12), rnd.random() < 0.7
        while z < 80:
            kind = rnd.choices(("sign", "lamp", "light", "tree" if trees else "none"), (3, 3, 0.6, 6))[0]
            if kind == "tree":
                self.tree(self.things, x + side * 0.3, z, rnd.uniform(6.5, 10))
            elif kind == "sign":
                self.pole(x, z, rnd.uniform(2.4, 3.0), "sign", inward)
            elif kind == "lamp":
                self.pole(x, z, rnd.uniform(6.5, 8.5), "lamp", inward)
            elif kind == "light":
                self.pole(x, z, 3.8, "light", inward)
            z += rnd.uniform(5, 11)
        for crossing in self.crossings[:2]:
            if crossing > 6:
                arm = rnd.random() < 0.5
                self.pole(x, crossing + 1.2, 5.6 if arm else 3.8, "arm" if arm else "light", inward)

    def pole(self, x: float, z: float, height: float, kind: str, inward: int) -> None:
        self.add(z, draw_pole, x, z, height, kind, inward)
        self.shadow(x - 0.07, x + 0.07, z, z + 0.14, height)

    def cycle(self, kind: str, x: float, z: float, ridden: float, turn: float) -> None:
        self.add(z, draw_cycle, x, z, kind, turn, self.rnd.random() < ridden)
        self.shadow(x - 0.7 * turn, x + 0.7 * turn, z, z + 0.2, 1.3)

    def populate(self) -> None:
        """People on the sidewalks and at crossings, cyclists in the street, cycles left at the kerb."""
        rnd = self.rnd

        def walk(side: int) -> float:
            inner, outer = sorted((self.kerb[side] + side * (self.verge[side] + 0.4), self.edge[side] - side * 0.5))
            return rnd.uniform(inner, outer)

        for _ in range(rnd.randint(*self.look.people)):
            side, z = rnd.choice((-1, 1)), 7 + 32 * rnd.random() ** 1.5
            self.person(walk(side), z)
            if rnd.random() < 0.35:
                self.person(walk(side), z + rnd.uniform(0.2, 0.8))
        for crossing in self.crossings:
            if 7 < crossing < 50 and rnd.random() < 0.6:
                self.person(rnd.uniform(self.kerb[-1], self.kerb[1]), crossing)
        for _ in range(rnd.randint(*self.look.bicycles)):
            side = rnd.choice((-1, 1))
            self.cycle("bicycle", walk(side), rnd.uniform(7, 22), 0.15, rnd.uniform(0.5, 1.0))
        side, z = rnd.choice((-1, 1)), rnd.uniform(10, 22)
        lane = self.edge_line[side] - side * 0.8
        if self.index % 3 == 0 and rnd.random() < 0.5:
            self.cycle("motorcycle", lane, 0.8 * z, 1.0, rnd.uniform(0.25, 0.6))
        elif self.index % 3 == 0:  # left on the sidewalk
            self.cycle("motorcycle", walk(side), 0.7 * z, 0.0, rnd.uniform(0.5, 1.0))
        elif self.index % 2:
            self.cycle("bicycle", lane, z, 1.0, rnd.uniform(0.3, 0.9))

    def person(self, x: float, z: float) -> None:
        self.add(z, draw_person, x, z)
        self.shadow(x - 0.2, x + 0.2, z, z + 0.25, 1.7)

    # -- painting
    def paint(self) -> None:
        self.paint_sky()
        self.paint_ground()
        self.paint_shadows()
        for _, paint, args in sorted(self.lots, key=lambda lot: -lot[0]):
            paint(self.p, *args)
        for z1, paint, args in sorted(self.things, key=lambda thing: -thing[0]):
            x = args[1] if paint is draw_vehicle else args[0]
            hidden = any(z0 < z1 < end and x * lx > 0 and abs(x) > abs(lx) + 0.5 for lx, z0, end in self.long)
            if not hidden:
                paint(self.p, *args)
        if self.look is CAMERA:
            self.paint_hood()

    def paint_sky(self) -> None:
        p, top, low = self.p, *self.look.colours["sky"]
        width = p.image.width
        ramp = np.linspace(0, 1, 64)[:, None, None] ** 0.8
        rows = np.array(top) * (1 - ramp) + np.array(low) * ramp
        horizon = max(1, int(p.v0 * p.scale) + 2)
        p.image.paste(Image.fromarray(rows.astype(np.uint8)).resize((width, horizon), Image.Resampling.BILINEAR))
        for _ in range(self.rnd.randint(2, 5)):
            u, v = self.rnd.random() * width, self.rnd.random() ** 1.5 * horizon * 0.8
            cloud = self.look.colours["cloud"][0]
            for i in range(6):
                r = width * self.rnd.uniform(0.02, 0.05)
                du = (i - 2.5) * width * 0.03
                p.pen.ellipse((u + du - r * 1.4, v - r * 0.5, u + du + r * 1.4, v + r * 0.5), fill=cloud)
        # Everything below the horizon is ground, whatever lies on it.
        corners = [(0, p.v0), (p.width, p.v0), (p.width, p.height), (0, p.height)]
        p.fill(corners, p.tone(p.pick("terrain"), 0), "terrain")

    def paint_ground(self) -> None:
        p, rnd, far = self.p, self.rnd, self.end + 12
        mark, kerb, grass = (p.pick(n, 6) for n in ("mark", "kerb", "terrain"))
        road, walk = p.road, p.walk
        for side in (-1, 1):
            p.strip(*ordered(self.kerb[side], self.edge[side]), NEAR, far, walk, "sidewalk")
            for i in range(16):  # joints between the slabs
                z = 4 + i * 2.0
                p.strip(*ordered(self.kerb[side], self.edge[side]), z, z + 0.07, tuple(c * 0.85 for c in walk))
            if self.verge[side]:
                back = self.kerb[side] + side * self.verge[side]
                p.strip(*ordered(self.kerb[side], back), NEAR, far, grass, "terrain")
            p.strip(*ordered(self.kerb[side], self.kerb[side] + side * 0.25), NEAR, far, kerb, "sidewalk")
        p.strip(self.kerb[-1], self.kerb[1], NEAR, far + 10, road, "road")
        for side in (-1, 1):
            if self.parked[side]:
                bay, name = tuple(c * 0.88 + 6 for c in road), "parking" if rnd.random() < 0.2 else None
                p.strip(*ordered(self.kerb[side], self.edge_line[side]), NEAR, far, bay, name)
            p.strip(self.edge_line[side] - 0.07, self.edge_line[side] + 0.07, NEAR, far, mark)
        for _ in range(5):  # repaired patches
            x, z, tar = rnd.uniform(self.kerb[-1], self.kerb[1] - 1.5), rnd.uniform(4, 30), rnd.uniform(0.88, 1.05)
            p.strip(x, x + rnd.uniform(0.6, 1.5), z, z + rnd.uniform(1, 6), tuple(c * tar for c in road))
        if self.guest == "train":
            x = next(a[1] for _, paint, a in self.things if paint is draw_vehicle and a[0] == "train")
            for rail in (-0.72, 0.72):
                p.strip(x + rail - 0.09, x + rail + 0.09, NEAR, far, (70, 68, 70))
                p.strip(x + rail - 0.03, x + rail + 0.03, NEAR, far, (168, 170, 174))
        for i in range(-len(self.lanes) // 2 + 1, len(self.lanes) // 2):
            x = self.middle + i * self.look.lane
            if i == 0 and self.look is GAME:
                for off in (-0.2, 0.08):
                    p.strip(x + off, x + off + 0.12, NEAR, far, self.look.colours["centre"][0])
                continue
            start = rnd.uniform(2, 8)
            for z in (start + 8 * dash for dash in range(9)):
                p.strip(x - 0.08, x + 0.08, z, z + 3.5, mark)
        for crossing in self.crossings:
            if crossing > 5:
                x = self.kerb[-1] + 0.3
                while x < self.kerb[1] - 0.6:
                    p.strip(x, x + 0.5, crossing - 1.5, crossing + 1.3, mark)
                    x += 1.0
        self.haze_ground()

    def haze_ground(self) -> None:
        """The ground fades into the haze row by row, as depth below the horizon is eye * focal / rows."""
        p, (distance, haze) = self.p, self.look.haze
        below = (np.arange(p.image.height) + 0.5) / p.scale - p.v0
        depth = p.eye * p.focal / np.maximum(below, 1e-3)
        veil = np.where(below > 0, 1 - np.exp(-depth / distance), 0) * 255
        mask = Image.fromarray(veil.astype(np.uint8)[:, None]).resize(p.image.size)
        p.image.paste(tuple(int(c) for c in haze), (0, 0), mask)

    def paint_shadows(self) -> None:
        """On the ground only. The game's are hard; the camera's sky is overcast, so they are faint and soft."""
        p, soft = self.p, self.look is CAMERA
        mask = Image.new("L", p.image.size)
        pen = ImageDraw.Draw(mask)
        for feet, height in self.shadows:
            if height:
                feet = hull(feet + [(x - p.sun_x * height, z - p.sun_z * height) for x, z in feet])
            points = [p.at(x, 0, max(z, 2.0)) for x, z in feet]
            pen.polygon([(u * p.scale, v * p.scale) for u, v in points], fill=int(255 * self.look.sun))
        for _, paint, args in self.things:  # the dark beneath vehicles, whatever the light
            if paint is draw_vehicle:
                body, x, z, _, across = args
                dx, dz = (LENGTH[body], 1.8) if across else (WIDTH[body], LENGTH[body])
                x0, x1, z0, z1 = x - dx / 2 - 0.1, x + dx / 2 + 0.1, z - 0.15, z + dz
                under = [p.at(a, 0, b) for a, b in ((x0, z0), (x1, z0), (x1, z1), (x0, z1))]
                pen.polygon([(u * p.scale, v * p.scale) for u, v in under], fill=170)
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(p.width * p.scale * 0.004))
        mask.paste(0, (0, 0, mask.width, max(0, int(p.v0 * p.scale) + 1)))
        p.image.paste((22, 24, 34), (0, 0), mask)

    def paint_hood(self) -> None:
        """The recording car's own hood, at the bottom edge, as in Cityscapes (id 1, not evaluated)."""
        p, w, h = self.p, self.p.width, self.p.height
        arc = [(w * (0.5 + 0.62 * math.cos(t)), h * (1.03 - 0.085 * math.sin(t))) for t in np.linspace(math.pi, 0, 25)]
        p.fill(arc, (38, 42, 44), "ego vehicle")
        p.fill([(u, v + h * 0.025) for u, v in arc], (60, 66, 70), "ego vehicle")


def ordered(a: float, b: float) -> tuple[float, float]:
    return (a, b) if a < b else (b, a)


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Convex hull (Andrew's monotone chain)."""
    points, chain = sorted(points), []
    for sweep in (points, points[::-1]):
        start = len(chain)
        for q in sweep:
            while len(chain) > start + 1 and (chain[-1][0] - chain[-2][0]) * (q[1] - chain[-2][1]) <= (
                chain[-1][1] - chain[-2][1]
            ) * (q[0] - chain[-2][0]):
                chain.pop()
            chain.append(q)
        chain.pop()
    return chain


def paint_side_street(p: Painter, x0: float, x1: float, z0: float, z1: float) -> None:
    """The mouth of a street to the side, with its own sidewalks."""
    x0, x1 = ordered(x0, x1)
    p.strip(x0, x1, z0, z1, p.tone(p.walk, z0), "sidewalk")
    p.strip(x0, x1, z0 + 1.5, z1 - 1.5, p.tone(p.road, z0), "road")


# --------------------------------------------------------------------------------------------- finish
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
    size, label, camera = (p.width, p.height), np.asarray(p.label), p.look is CAMERA
    image = p.image.reduce(p.scale) if p.scale > 1 else p.image
    table = np.zeros((2, 256), np.float32)
    for name, pair in ROUGH.items():
        table[:, ID[name]] = pair
    blotches, leaves = noise(rng, size, 128), noise(rng, size, 512)
    grain = 0.6 * rng.standard_normal(label.shape, dtype=np.float32) + 0.8 * leaves
    texture = 1 + table[0][label] * grain + table[1][label] * blotches
    pixels = np.asarray(image, np.float32) * texture[..., None]
    if not camera:
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = (grey + (pixels - grey) * 1.15 - 128) * 1.06 + 126 + p.rnd.uniform(-8, 8)
        return np.clip(pixels, 0, 255).astype(np.uint8)
    blurred = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(0.3 + p.width / 2048)
    )
    pixels = np.asarray(blurred, np.float32)
    v, u = np.mgrid[-1 : 1 : p.height * 1j, -1 : 1 : p.width * 1j].astype(np.float32)
    pixels *= (1 - 0.22 * (u * u + v * v) / 2)[..., None]
    exposure, white = p.rnd.uniform(0.74, 0.94), [tint + p.rnd.uniform(-0.02, 0.02) for tint in (0.97, 1.02, 0.95)]
    pixels = 18 + pixels * np.array([exposure * w for w in white], np.float32)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * (1.5 + 0.012 * pixels)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def draw_scene(seed: int, index: int, look: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """One street scene, a function of the arguments alone (the same in every process, order and number of workers).

    seed, index: not negative. look: one of LOOKS. size: (width, height) in pixels, from 64x32 to 8192x8192; the
    same scene at any resolution. Returns picture uint8 [H, W, 3], RGB, and label uint8 [H, W], Cityscapes ids.
    """
    _check(size, look)
    rng = np.random.default_rng((seed, index, LOOKS.index(look)))
    painter = Painter(tuple(size), GAME if look == "game" else CAMERA, random.Random(int(rng.integers(2**62))))
    street = Street(painter, index)
    street.lay_out()
    street.paint()
    return finish(painter, rng), np.array(painter.label)


def _check(size: tuple[int, int], look: str) -> None:
    """Raises ValueError for a size or look that cannot be drawn."""
    width, height = size
    if not all(isinstance(side, (int, np.integer)) for side in (width, height)):
        raise ValueError(f"a size is two whole numbers, width and height, not {size!r}")
    if not (64 <= width <= 8192 and 32 <= height <= 8192 and 0.5 <= width / height <= 5):
        raise ValueError(f"cannot draw a street at {width}x{height}: from 64x32 up to 8192x8192, at most 5:1 or 1:2")
    if look not in LOOKS:
        raise ValueError(f"unknown look {look!r}: one of {', '.join(LOOKS)}")


# ---------------------------------------------------------------------------------------------- files
# Split -> first scene (the splits of a set never share one) and the name of its only city.
SPLITS = {"train": (0, "drawnstadt"), "val": (1_000_000, "testdorf"), "test": (2_000_000, "fernburg")}


@dataclass(frozen=True)
class Job:
    """One scene to be written: which one, and where picture and label go."""

    seed: int
    index: int
    look: str
    size: tuple[int, int]
    image: Path
    label: Path

    @property
    def done(self) -> bool:
        return _is_whole(self.image) and _is_whole(self.label)


def _is_whole(path: Path) -> bool:
    """Whether the file ends as a PNG ends."""
    try:
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            return file.read() == b"IEND\xaeB`\x82"
    except OSError:
        return False


def _save(image: Image.Image, path: Path) -> None:
    """Under a name of this process first, so that a killed run leaves no half file under the final name."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(part, format="PNG", compress_level=4)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _write(job: Job) -> None:
    image, label = draw_scene(job.seed, job.index, job.look, job.size)
    indexed = Image.frombytes("P", job.size, label.tobytes())
    if "labelIds" in job.label.name:
        indexed = Image.fromarray(label)  # Cityscapes labels are grey, GTA5's have a palette
    else:
        indexed.putpalette(CITYSCAPES_PALETTE.tobytes())
    _save(Image.fromarray(image), job.image)
    _save(indexed, job.label)


def _write_all(jobs: Sequence[Job], workers: int, what: str) -> None:
    """Writes the scenes, in `workers` processes if more than one; what is written does not depend on how many."""
    for folder in {path.parent for job in jobs for path in (job.image, job.label)}:
        folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(jobs), desc=f"drawing {what}", unit="scene", disable=len(jobs) < 8)
    with bar:
        if workers <= 1 or len(jobs) < 2:
            for job in jobs:
                _write(job)
                bar.update()
            return
        # Not forked: the caller may hold threads and a GPU, which do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
            for _ in pool.map(_write, jobs, chunksize=4):
                bar.update()


def _gta5_jobs(root: Path, count: int, size: tuple[int, int], seed: int, look: str) -> list[Job]:
    _check_counts(size, look, seed, count)
    names = [f"{i + 1:05d}.png" for i in range(count)]
    return [Job(seed, i, look, tuple(size), root / "images" / n, root / "labels" / n) for i, n in enumerate(names)]


def _cityscapes_jobs(root: Path, counts: dict[str, int], size: tuple[int, int], seed: int, look: str) -> list[Job]:
    jobs = []
    for split, count in counts.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: one of {', '.join(SPLITS)}")
        _check_counts(size, look, seed, count)
        city = SPLITS[split][1]
        for i in range(count):
            stem = f"{city}_{i:06d}_000019"
            jobs.append(
                Job(seed, SPLITS[split][0] + i, look, tuple(size),
                    root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
                    root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png")
            )  # fmt: skip
    return jobs


def _check_counts(size: tuple[int, int], look: str, seed: int, count: int) -> None:
    _check(size, look)
    if not 0 <= count <= 1_000_000 or seed < 0:
        raise ValueError(f"count must be 0 to 1,000,000 and seed not negative, not {count} and {seed}")


def write_gta5(root: Path, count: int, size: tuple[int, int], seed: int = 0, look: str = "game",
               workers: int = 1) -> None:  # fmt: skip
    """Writes scenes 0 to count - 1 as GTA5 lies on disk: images/00001.png and labels/00001.png (mode P).

    Files of the same name are replaced, others left alone. Raises ValueError for a size, look, count or seed
    that cannot be.
    """
    _write_all(_gta5_jobs(Path(root), count, size, seed, look), workers, f"{look} scenes")


def write_cityscapes(root: Path, counts: dict[str, int], size: tuple[int, int], seed: int = 0, look: str = "camera",
                     workers: int = 1) -> None:  # fmt: skip
    """Writes scenes in the official Cityscapes layout (leftImg8bit, gtFine ..._labelIds.png); counts per split.

    Splits (train, val, test) never share a scene. Files of the same name are replaced, as in write_gta5.
    """
    _write_all(_cityscapes_jobs(Path(root), counts, size, seed, look), workers, f"{look} scenes")


def ensure(root: Path, size: tuple[int, int] = (256, 128), source: int = 240, target: int = 200, val: int = 60,
           seed: int = 0, workers: int = 1) -> tuple[Path, Path]:  # fmt: skip
    """Makes sure that a source (game) and a target (camera, train and val) set lie under root; returns their roots.

    Each set of settings has a folder of its own below root, so nothing is ever overwritten. The stamp
    street_scenes.json is written last; a set that was interrupted or has lost files is completed.
    Raises ValueError for impossible settings, FileExistsError if foreign files lie among the scenes.
    """
    settings = {"size": list(size), "source": source, "target": target, "val": val, "seed": seed, "version": VERSION}
    folder = Path(root) / f"{size[0]}x{size[1]}-s{source}-t{target}-v{val}-seed{seed}-v{VERSION}"
    roots = folder / "gta5", folder / "cityscapes"
    jobs = _gta5_jobs(roots[0], source, size, seed, "game")
    jobs += _cityscapes_jobs(roots[1], {"train": target, "val": val}, size, seed, "camera")
    expected = {path for job in jobs for path in (job.image, job.label)}
    for path in folder.rglob("*.png"):
        if path not in expected and not path.name.startswith("."):
            raise FileExistsError(f"{path} is not one of the drawn scenes; move it elsewhere or name another folder")
    _write_all([job for job in jobs if not job.done], workers, "street scenes")
    stamp = folder / "street_scenes.json"
    if not stamp.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = stamp.with_name(f".{stamp.name}.{os.getpid()}.part")
        part.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        os.replace(part, stamp)
    return roots


# --------------------------------------------------------------------------------------- command line
def preview(path: Path, seed: int = 0, size: tuple[int, int] = (512, 256), count: int = 6) -> None:
    """Saves a contact sheet: a row per scene, picture and coloured label of the game, then of the camera."""
    rows = []
    for index in range(count):
        pairs = [draw_scene(seed, index, look, size) for look in LOOKS]
        rows.append(np.hstack([part for image, label in pairs for part in (image, CITYSCAPES_PALETTE[label])]))
    Image.fromarray(np.vstack(rows)).save(path)


def parse_size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a size is WIDTHxHEIGHT, such as 2048x1024, not {text!r}") from None
    return width, height


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.street_scenes",
        description="Draws street scenes with labels of all 19 Cityscapes classes, laid out as GTA5 or Cityscapes.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write; must be new or empty")
    parser.add_argument("--layout", choices=("gta5", "cityscapes"), default="cityscapes", help="default: %(default)s")
    parser.add_argument("--look", choices=LOOKS, help="default: game for the layout gta5, else camera")
    parser.add_argument("--size", type=parse_size, default=(256, 128), metavar="WxH", help="pixels (default: 256x128)")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="scenes, or those of train (default: 200)")
    parser.add_argument("--val", type=int, default=0, metavar="N", help="scenes of val, in cityscapes (default: 0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed, other scenes (default: 0)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes; changes no pixel (default: 1)")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="only save a contact sheet of both looks")
    args = parser.parse_args(arguments)
    try:
        if args.preview:
            preview(args.preview, args.seed)
            return 0
        if args.out is None:
            raise ValueError("name a folder with --out, or a picture with --preview")
        if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
            raise ValueError(f"{args.out} is not an empty folder; name a new one")
        if args.layout == "gta5":
            if args.val:
                raise ValueError("--val belongs to the layout cityscapes; GTA5 has no splits")
            write_gta5(args.out, args.count, args.size, args.seed, args.look or "game", args.workers)
        else:
            counts = {"train": args.count} | ({"val": args.val} if args.val else {})
            write_cityscapes(args.out, counts, args.size, args.seed, args.look or "camera", args.workers)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
