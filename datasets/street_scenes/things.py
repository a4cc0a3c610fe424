"""The things a street is made of, each a function that draws one with the painter `p`.

Long, since it is a list: a function a thing, and none needs another.

Lengths in metres. x0 < x1 are the sides, z0 < z1 the near and the far end, x and z alone the middle and the depth.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from PIL import Image

from .painter import NEAR, Colour, Painter, Plane, Point

CIRCLE = [(math.cos(t * math.pi / 6), math.sin(t * math.pi / 6)) for t in range(12)]


def lengthwise(x: float) -> Plane:
    """The upright plane that runs down the street at x."""
    return lambda z, y: (x, y, z)


def crosswise(z: float) -> Plane:
    """The upright plane that faces the camera at depth z."""
    return lambda x, y: (x, y, z)


def draw_sky(p: Painter) -> None:
    """Sky, clouds, and below the horizon nothing but ground, whatever lies on it later."""
    top, low = p.look.colours["sky"]
    width, horizon = p.image.width, max(1, int(p.v0 * p.scale) + 2)
    ramp = np.linspace(0, 1, 64)[:, None, None] ** 0.8
    rows = np.array(top) * (1 - ramp) + np.array(low) * ramp
    p.image.paste(Image.fromarray(rows.astype(np.uint8)).resize((width, horizon), Image.Resampling.BILINEAR))
    for _ in range(p.rnd.randint(2, 5)):
        u, v = p.rnd.random() * width, p.rnd.random() ** 1.5 * horizon * 0.8
        for i in range(6):
            r = width * p.rnd.uniform(0.02, 0.05)
            du = (i - 2.5) * width * 0.03
            box = (u + du - r * 1.4, v - r * 0.5, u + du + r * 1.4, v + r * 0.5)
            p.pen.ellipse(box, fill=p.look.colours["cloud"][0])
    corners = [(0, p.v0), (p.width, p.v0), (p.width, p.height), (0, p.height)]
    p.fill(corners, p.tone(p.pick("terrain"), 0), "terrain")


def draw_hood(p: Painter) -> None:
    """The recording car's own hood, at the bottom edge, as in Cityscapes (id 1, not evaluated)."""
    w, h = p.width, p.height
    arc = [(w * (0.5 + 0.62 * math.cos(t)), h * (1.03 - 0.085 * math.sin(t))) for t in np.linspace(math.pi, 0, 25)]
    p.fill(arc, (38, 42, 44), "ego vehicle")
    p.fill([(u, v + h * 0.025) for u, v in arc], (60, 66, 70), "ego vehicle")


def draw_side_street(p: Painter, x0: float, x1: float, z0: float, z1: float) -> None:
    """The mouth of a street to the side, with its own sidewalks."""
    p.strip(x0, x1, z0, z1, p.tone(p.sidewalk, z0), "sidewalk")
    p.strip(x0, x1, z0 + 1.5, z1 - 1.5, p.tone(p.road, z0), "road")


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
        faces.append((lengthwise(x0 if flank == "left" else x1), max(z0, 3.0), z1, p.shade[flank]))
    if z0 > 3:
        faces.append((crosswise(z0), x0, x1, p.shade["front"]))
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
    """Trunk and a crown of overlapping clumps, lit from above and from the sun's side; or, in the same place, bare
    branches, which are labelled as the crown would be."""
    rgb, trunk = p.pick("vegetation", 12), p.pick("trunk")
    base = height * p.rnd.uniform(0.28, 0.4)
    own = random.Random(repr((x, z, height)))  # so that everything else is drawn as beside a tree in leaf
    bare = own.random() < p.look.bare
    rgb = None if bare else rgb
    p.upright(x, z, [(-0.2, 0), (-0.13, base + 1), (0.13, base + 1), (0.2, 0)], trunk, "vegetation")
    middle, half = (base + height) / 2, (height - base) / 2
    p.disc(x, middle, z, spread * 0.8, half * 0.85, rgb, "vegetation", 0.7)
    for i in range(16):
        turn, out = i * 2.4 + p.rnd.random(), math.sqrt((i + 0.5) / 16) * p.rnd.uniform(0.7, 1.0)
        dx, dy = math.cos(turn) * out * spread * 0.8, math.sin(turn) * out * half * 0.8
        light = 0.85 + 0.3 * dy / half + 0.12 * math.copysign(dx / spread, dx * p.sun_x) + p.rnd.uniform(-0.08, 0.08)
        size = spread * p.rnd.uniform(0.26, 0.42)
        p.disc(x + dx, middle + dy, z, size, size * 0.85, rgb, "vegetation", light)
    if bare:
        for i in range(9):
            draw_branch(p, own, (x, base * 0.9), z, (i - 4) * 0.3, 0.55 * (height - base), 0.11, trunk,
                        (x, middle, spread, half))  # fmt: skip


def draw_branch(p: Painter, own: random.Random, start: tuple[float, float], z: float, lean: float, length: float,
                radius: float, rgb: Colour, crown: tuple[float, float, float, float]) -> None:  # fmt: skip
    """A branch in the plane at z, leaning by `lean` (radians, to the right), and smaller ones at its end, none of which
    leaves the crown (middle x and y, half width and height)."""
    lean += own.uniform(-0.2, 0.2)
    x, y = start[0] + length * math.sin(lean), start[1] + length * math.cos(lean)
    if ((x - crown[0]) / crown[2]) ** 2 + ((y - crown[1]) / crown[3]) ** 2 < 1:
        ends = [tuple(c * p.scale for c in p.at(*point, z)) for point in (start, (x, y))]
        width = max(1, round(2 * radius * p.focal * p.scale / max(z, NEAR)))
        p.pen.line(ends, fill=p.tone(rgb, z, own.uniform(0.7, 1.1)), width=width)
    else:
        x, y = start
    if radius > 0.01:
        for turn in (-0.45, 0.0, 0.45):
            draw_branch(p, own, (x, y), z, lean + turn, length * 0.6, radius * 0.55, rgb, crown)


def draw_hedge(p: Painter, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
    """A clipped block with a bushy top."""
    rgb = p.pick("vegetation", 12)
    p.box(x0, x1, 0, height, z0, z1, rgb, "vegetation")
    for i in range(int((z1 - z0) / 0.8), -1, -1):
        z, light = max(z0 + i * 0.8, 2.0), p.rnd.uniform(0.85, 1.15)
        p.disc((x0 + x1) / 2, height - 0.1, z, 0.6, 0.32, rgb, "vegetation", light)


def draw_wall(p: Painter, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
    """Stone or brick in courses, with a coping."""
    rgb = p.pick("wall")
    flank = p.box(x0, x1, 0, height, z0, z1, rgb, "wall")
    on, shade, z0 = lengthwise(x1 if flank == "right" else x0), p.shade[flank or "left"], max(z0, 2.0)
    for course in range(1, int(height / 0.4)):
        p.pane(on, z0, z1, course * 0.4, course * 0.4 + 0.06, rgb, None, shade * 0.7)
    p.pane(on, z0, z1, height - 0.15, height, rgb, None, shade * 1.25)


def draw_fence(p: Painter, x: float, z0: float, z1: float, height: float) -> None:
    """Boards and rails; between them the dark of the gaps (Cityscapes labels a fence as a solid piece)."""
    rgb, on, z0 = p.pick("fence"), lengthwise(x), max(z0, 2.0)
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
            p.plate(x, z, *sorted((0, inward * 4.2)), height - 0.16, height, rgb, "pole")
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
DARK = (26, 26, 30)  # tyres, bumpers, whatever lies in the shadow beneath


def draw_vehicle(p: Painter, x: float, z: float, body: str, oncoming: bool, across: bool = False,
                 name: str = "car") -> None:  # fmt: skip
    """A vehicle whose nearest end (or side, when it drives across) is at depth z, its middle at x."""
    if body == "truck":  # cab and cargo, the nearer one painted last
        parts = [("cargo", 2.1), ("cab", 0.0)] if oncoming else [("cab", 6.2), ("cargo", 0.0)]
        for kind, offset in parts:
            draw_vehicle(p, x, z + offset, kind, oncoming, name="truck")
        return
    profile, glass, side_window = BODIES[body]
    length, width = LENGTH[body], WIDTH[body]
    name = body if body in ("bus", "train") else name
    rgb = p.livery if body == "train" else p.pick("car" if body == "cab" else name)
    window = tuple(c * 0.75 for c in p.pick("window"))
    if oncoming:
        profile = [(length - a, y) for a, y in reversed(profile)]
        glass = tuple(len(profile) - 2 - i for i in glass)
        side_window = [(length - a, y) for a, y in side_window]

    def put(a: float, y: float, b: float) -> Point:
        """a along the vehicle from its near end, y up, b across it -> world."""
        return (x - length / 2 + a, y, z + b) if across else (x - width / 2 + b, y, z + a)

    p.pane(lambda b, y: put(0.1, y, b), 0.1, width - 0.1, 0.08, 0.5, DARK, name)  # the dark underneath
    for b in (0.08, width - 0.34):  # tyres under the near end
        p.pane(lambda b, y: put(0.3, y, b), b, b + 0.26, 0, 0.5, DARK, name)
    panels = []  # hood, windows, roof and ends, the farthest first
    for i, ((a0, y0), (a1, y1)) in enumerate(pairwise(profile)):
        quad = [put(a0, y0, 0), put(a1, y1, 0), put(a1, y1, width), put(a0, y0, width)]
        flat = abs(a1 - a0) / (abs(a1 - a0) + abs(y1 - y0))
        panels.append((-sum(q[2] for q in quad), i, quad, p.shade["top"] * flat + p.shade["front"] * (1 - flat)))
    for _, i, quad, shade in sorted(panels):
        p.face(quad, window if i in glass else rgb, name, shade)
    if not across:
        draw_vehicle_end(p, lambda b, y: put(0, y, b), width, profile[0][1], oncoming, body == "cargo")
    side = "left" if across else p.flank(x - width / 2, x + width / 2, z)
    if side:
        b, shade = (0.0 if side == "left" else width), p.shade["front" if across else side]
        p.face([put(a, y, b) for a, y in profile], rgb, name, shade)
        draw_vehicle_side(p, lambda a, y: put(a, y, b), body, side_window, rgb, window, name, shade)


def draw_vehicle_end(p: Painter, on: Plane, width: float, low: float, oncoming: bool, cargo: bool) -> None:
    """Bumper from height `low` on, lamps and licence plate."""
    lamp, y = ((252, 248, 220) if oncoming else (214, 30, 30)), (0.9 if width > 2 else 0.68)
    p.pane(on, 0, width, low, 0.46 if width < 2 else 0.6, DARK)
    for b in (0.08, width - 0.4):
        p.pane(on, b, b + 0.32, y, y + 0.18, lamp)
    p.pane(on, width / 2 - 0.26, width / 2 + 0.26, 0.5, 0.62, (226, 224, 210))
    if cargo and not oncoming:
        p.pane(on, width / 2 - 0.03, width / 2 + 0.03, 1.0, 3.4, DARK)  # between the doors


def draw_vehicle_side(p: Painter, on: Plane, body: str, side_window: list[tuple[float, float]], rgb: Colour,
                      window: Colour, name: str, shade: float) -> None:  # fmt: skip
    """Windows, stripe or lettering, and wheels."""
    length = LENGTH[body]
    if side_window:
        p.face([on(a, y) for a, y in side_window], window)
        if body != "cab":  # the pillar between the doors
            middle = sum(a for a, _ in side_window) / 4
            p.pane(on, middle - 0.05, middle + 0.05, side_window[0][1], side_window[1][1] + 0.03, rgb, None, shade)
    if body in ("bus", "train"):
        bay, y0, y1, stripe = (1.4, 1.45, 2.55, (240, 240, 236)) if body == "bus" else (1.9, 1.4, 2.6, (40, 60, 110))
        for i in range(int((length - 1) / bay)):
            p.pane(on, 0.6 + i * bay, 0.4 + (i + 1) * bay, y0, y1, window)
        p.pane(on, 0, length, 0.7, 1.0, stripe, None, shade)
    if body == "cargo":
        p.pane(on, 0, length, 0.5, 0.95, DARK, name)
        p.pane(on, 1, 5, 1.8, 2.6, tuple(255 - c for c in rgb), None, shade)  # lettering
    if body != "train":
        r = 0.33 if WIDTH[body] < 2 else 0.5
        for a in (length / 2,) if body == "cab" else (length * 0.19, length * 0.81):
            p.face([on(a + r * c, r + r * s) for c, s in CIRCLE], DARK, name)
            p.face([on(a + r * c * 0.55, r + r * s * 0.55) for c, s in CIRCLE], (150, 152, 156))
