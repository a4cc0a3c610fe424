"""Where things stand: one street, from its lanes to its last pedestrian, drawn up in metres and then painted.

Long, since it is one list: the kinds of things that a street has, each with the rule of where it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFilter

from .painter import NEAR, Colour, Painter
from .things import (
    CARS,
    CIRCLE,
    LENGTH,
    WIDTH,
    draw_building,
    draw_cycle,
    draw_fence,
    draw_hedge,
    draw_hood,
    draw_person,
    draw_pole,
    draw_side_street,
    draw_sky,
    draw_tree,
    draw_vehicle,
    draw_wall,
)

SIDES = (-1, 1)  # left, right; times an offset, it points away from the middle of the street


class Thing(NamedTuple):
    """Something to be painted: the depth of its far end, and `draw(painter, *arguments)`."""

    far: float
    draw: Callable
    arguments: tuple


class Street:
    """The layout of one scene: ground at once, then lots beside the street, then what stands or drives in it.

    Things are painted from the far end to the near one. A lot lies further from the street's middle than
    everything in the street and can never hide it, so all lots come first. Long, since all kinds of things draw from
    one random generator and must not stand in one another's way.
    """

    def __init__(self, p: Painter, index: int) -> None:
        self.p, self.rnd, self.look, self.index = p, p.rnd, p.look, index
        self.lots: list[Thing] = []
        self.things: list[Thing] = []  # the first two arguments of each are its x and z
        self.vehicles: list[tuple[str, float, float]] = []  # (body, x, z) of those among the things
        self.shadows: list[tuple[list[tuple[float, float]], float]] = []  # (footprint, height)
        self.crossings: list[float] = []
        # Rare things take turns, so that a few dozen scenes hold each of them.
        self.guest = "train" if index % 12 == 3 else "bus" if index % 8 == 1 else "truck" if index % 6 == 4 else None
        rnd, look = self.rnd, self.look
        lanes = rnd.choice(look.lanes)
        own = rnd.randrange(lanes)  # lanes between the middle of the street and the camera
        self.middle = -(own + 0.5) * look.lane
        self.lanes = [(self.middle + (i + 0.5) * look.lane, i < 0) for i in range(-lanes, lanes)]  # (x, oncoming)
        self.parked = {side: rnd.random() < look.parked for side in SIDES}
        half = lanes * look.lane + 0.3
        self.kerb = {side: self.middle + side * (half + 2.2 * self.parked[side]) for side in SIDES}
        self.edge_line = {side: self.middle + side * half for side in SIDES}
        self.verge = {side: rnd.uniform(1.2, 2.2) if rnd.random() < 0.4 else 0.0 for side in SIDES}
        self.edge = {s: self.kerb[s] + s * (self.verge[s] + rnd.uniform(*look.sidewalk)) for s in SIDES}
        self.end = rnd.uniform(*look.end)
        self.lay_out()

    def lay_out(self) -> None:
        for side in SIDES:
            self.line_side(side)
        self.close_end()
        self.drive()
        for side in SIDES:
            self.park_cars(side)
        for side in SIDES:
            self.furnish(side)
        self.people_and_cycles()

    def paint(self) -> None:
        draw_sky(self.p)
        self.paint_ground()
        self.paint_shadows()
        for lot in sorted(self.lots, key=lambda lot: -lot.far):
            lot.draw(self.p, *lot.arguments)
        for thing in sorted(self.things, key=lambda thing: -thing.far):
            if not self.is_hidden(thing):
                thing.draw(self.p, *thing.arguments)
        if self.look.camera:
            draw_hood(self.p)

    # -- single things, with their shadows
    def lot(self, far: float, draw: Callable, *arguments: object) -> None:
        self.lots.append(Thing(far, draw, arguments))

    def thing(self, far: float, draw: Callable, *arguments: object) -> None:
        self.things.append(Thing(far, draw, arguments))

    def shadow(self, x0: float, x1: float, z0: float, z1: float, height: float) -> None:
        self.shadows.append(([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], height))

    def house(self, side: int, x: float, z0: float, z1: float) -> None:
        floors = self.rnd.randint(*self.look.floors)
        x0, x1 = sorted((x, x + side * 12))
        pitched = self.look.camera and self.rnd.random() < 0.7
        self.lot(z1, draw_building, x0, x1, z0, z1, floors, pitched)
        self.shadow(x0, x1, z0, z1, 3.2 * floors)

    def border(self, kind: str, side: int, x: float, z0: float, z1: float, height: float) -> None:
        """At the back of the sidewalk. Painted after whatever stands behind it on the same plot."""
        if kind == "fence":
            self.lot(z0 + 0.1, draw_fence, x, z0, z1, height)
        elif kind == "wall":
            self.lot(z0 + 0.1, draw_wall, *sorted((x, x + side * 0.4)), z0, z1, height)
        elif kind == "hedge":
            self.lot(z0 + 0.1, draw_hedge, *sorted((x, x + side * 0.9)), z0, z1, height)
        if kind != "none":
            self.shadow(*sorted((x, x + side * 0.3)), z0, z1, height)

    def tree(self, add: Callable, x: float, z: float, height: float) -> None:
        """`add` is the method that takes it, `lot` or `thing`."""
        spread = height * self.rnd.uniform(0.24, 0.34)
        add(z + 0.3, draw_tree, x, z, height, spread)
        for share in (0.45, 0.75):
            r = spread * 0.8
            dx, dz = self.p.sun_x * height * share, self.p.sun_z * height * share
            self.shadows.append(([(x + r * c - dx, z + r * s - dz) for c, s in CIRCLE], 0.0))
        self.shadow(x - 0.15, x + 0.15, z, z + 0.2, height * 0.5)

    def vehicle(self, body: str, x: float, z: float, oncoming: bool) -> None:
        half, far = WIDTH[body] / 2, z + LENGTH[body]
        self.thing(far, draw_vehicle, x, z, body, oncoming)
        self.vehicles.append((body, x, z))
        self.shadow(x - half, x + half, z, far, {"bus": 3, "train": 3.3, "truck": 3.3, "van": 2}.get(body, 1.35))

    def pole(self, x: float, z: float, height: float, kind: str, inward: int) -> None:
        self.thing(z, draw_pole, x, z, height, kind, inward)
        self.shadow(x - 0.07, x + 0.07, z, z + 0.14, height)

    def cycle(self, kind: str, x: float, z: float, ridden: float, turn: float) -> None:
        """`ridden` is the probability of a rider."""
        self.thing(z, draw_cycle, x, z, kind, turn, self.rnd.random() < ridden)
        self.shadow(x - 0.7 * turn, x + 0.7 * turn, z, z + 0.2, 1.3)

    def person(self, x: float, z: float) -> None:
        self.thing(z, draw_person, x, z)
        self.shadow(x - 0.2, x + 0.2, z, z + 0.25, 1.7)

    # -- lots
    def line_side(self, side: int) -> None:
        """Plots along one side: houses, gardens, parks, walls, fences, side streets."""
        rnd, x, z, last = self.rnd, self.edge[side], self.rnd.uniform(-6, 4), ""
        kinds, weights = zip(*self.look.plots.items(), strict=True)
        while z < self.end:
            kind = rnd.choices(kinds, weights)[0]
            if kind == "street" and (last == "street" or z < 6):
                continue
            last, z1 = kind, z + rnd.uniform(9, 18)
            if kind == "building":
                self.house(side, x, z, z1)
            elif kind == "yard":
                self.house(side, x + side * rnd.uniform(3, 6), z, z1)
                self.border(rnd.choice(("fence", "wall", "hedge", "none")), side, x, z, z1, rnd.uniform(0.8, 1.2))
            elif kind == "park":
                self.park(side, x, z, z1)
            elif kind == "street":
                z1 = z + rnd.uniform(7, 10)
                self.side_street(side, x, z, z1)
            else:
                self.enclosure(kind, side, x, z, z1)
            z = z1

    def park(self, side: int, x: float, z0: float, z1: float) -> None:
        rnd = self.rnd
        if rnd.random() < 0.4:
            self.border(rnd.choice(("fence", "hedge")), side, x, z0, z1, rnd.uniform(0.8, 1.2))
        for _ in range(rnd.randint(4, 7)):
            self.tree(self.lot, x + side * rnd.uniform(3, 16), rnd.uniform(z0, z1), rnd.uniform(6, 12))
        self.lot(z1 + 0.2, draw_hedge, *sorted((x + side * 18, x + side * 22)), z0, z1, rnd.uniform(3, 6))

    def enclosure(self, kind: str, side: int, x: float, z0: float, z1: float) -> None:
        """A high wall or fence, with trees and perhaps a house behind it."""
        rnd = self.rnd
        self.border(kind, side, x, z0, z1, rnd.uniform(1.7, 2.8))
        for _ in range(rnd.randint(2, 4)):
            self.tree(self.lot, x + side * rnd.uniform(3, 8), rnd.uniform(z0, z1), rnd.uniform(7, 12))
        if rnd.random() < 0.5:
            self.house(side, x + side * 10, z0, z1)

    def side_street(self, side: int, x: float, z0: float, z1: float) -> None:
        """A gap in the row, closed by a house far back; pedestrians cross in front of it."""
        rnd = self.rnd
        self.crossings.append(z0 - 2.5)
        self.lot(z1 + 0.5, draw_side_street, *sorted((self.kerb[side], x + side * 40)), z0, z1)
        far = sorted((x + side * 40, x + side * 50))
        self.lot(z1 + 0.4, draw_building, *far, z0 - 4, z1 + 4, rnd.randint(2, 5), False)
        if rnd.random() < 0.6:  # a car about to turn in, seen from its side
            car_x = x + side * rnd.uniform(1, 6)
            self.lot(z0 + 3, draw_vehicle, car_x, z0 + 2.4, rnd.choice(CARS), side > 0, True)
            self.shadow(car_x - 2, car_x + 2, z0 + 2.4, z0 + 4.2, 1.4)

    def close_end(self) -> None:
        """What stands across the end of the street: houses, trees, or only a low line of trees far off."""
        rnd, z, bend = self.rnd, self.end, -self.p.curve * self.end**2
        kind, x = rnd.choice(("building", "trees", "mixed", "open")), -110.0 + bend
        while x < 110 + bend:
            wide = rnd.uniform(8, 16)
            if kind == "building" or (kind == "mixed" and rnd.random() < 0.5):
                self.lot(z + 30, draw_building, x, x + wide, z + 12, z + 24, rnd.randint(2, 5), False)
            elif kind == "open":
                self.lot(z + 30, draw_hedge, x, x + wide, z + 12, z + 14, rnd.uniform(2.5, 5))
            else:
                self.lot(z + 30, draw_hedge, x, x + wide, z + 14, z + 16, rnd.uniform(4, 6))
                self.tree(self.lot, x + wide / 2, z + 12, rnd.uniform(9, 14))
            x += wide

    # -- things in the street
    def drive(self) -> None:
        """Moving traffic, lane by lane."""
        rnd, guest = self.rnd, self.guest
        # Rails run in the middle of the street; a bus or truck may drive in any lane.
        host = max(lane for lane in self.lanes if lane[1]) if guest == "train" else rnd.choice(self.lanes)
        for x, oncoming in self.lanes:
            z = rnd.uniform(*self.look.gap) + (6 if abs(x) < 1 else 2)  # more room ahead of the camera
            if guest and (x, oncoming) == host:
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

    def park_cars(self, side: int) -> None:
        rnd, x, z = self.rnd, self.kerb[side] - side * 1.15, self.rnd.uniform(3.5, 8)
        while self.parked[side] and z < 70:
            body = rnd.choice(CARS)
            if rnd.random() < 0.8 and not any(abs(z - crossing) < 6 for crossing in self.crossings):
                self.vehicle(body, x, z, side < 0)
            z += LENGTH[body] + rnd.uniform(0.8, 2.5)

    def furnish(self, side: int) -> None:
        """Trees, poles, lamps, signs and lights along the kerb."""
        rnd, x, inward = self.rnd, self.kerb[side] + side * 0.55, -side
        z, trees = rnd.uniform(6, 12), rnd.random() < 0.7
        while z < 80:
            kind = rnd.choices(("sign", "lamp", "light", "tree" if trees else "none"), (3, 3, 0.6, 6))[0]
            if kind == "tree":
                self.tree(self.thing, x + side * 0.3, z, rnd.uniform(6.5, 10))
            elif kind == "sign":
                self.pole(x, z, rnd.uniform(2.4, 3.0), "sign", inward)
            elif kind == "lamp":
                self.pole(x, z, rnd.uniform(6.5, 8.5), "lamp", inward)
            elif kind == "light":
                self.pole(x, z, 3.8, "light", inward)
            z += rnd.uniform(5, 11)
        for crossing in self.crossings[:2]:
            if crossing > 6:
                height, kind = (5.6, "arm") if rnd.random() < 0.5 else (3.8, "light")
                self.pole(x, crossing + 1.2, height, kind, inward)

    def people_and_cycles(self) -> None:
        """People on the sidewalks and at crossings, cyclists in the street, cycles left at the kerb."""
        rnd = self.rnd
        for _ in range(rnd.randint(*self.look.people)):
            side, z = rnd.choice(SIDES), 7 + 32 * rnd.random() ** 1.5
            self.person(self.on_sidewalk(side), z)
            if rnd.random() < 0.35:
                self.person(self.on_sidewalk(side), z + rnd.uniform(0.2, 0.8))
        for crossing in self.crossings:
            if 7 < crossing < 50 and rnd.random() < 0.6:
                self.person(rnd.uniform(self.kerb[-1], self.kerb[1]), crossing)
        for _ in range(rnd.randint(*self.look.bicycles)):
            x = self.on_sidewalk(rnd.choice(SIDES))
            self.cycle("bicycle", x, rnd.uniform(7, 22), 0.15, rnd.uniform(0.5, 1.0))
        side, z = rnd.choice(SIDES), rnd.uniform(10, 22)
        lane = self.edge_line[side] - side * 0.8
        if self.index % 3 == 0 and rnd.random() < 0.5:
            self.cycle("motorcycle", lane, 0.8 * z, 1.0, rnd.uniform(0.25, 0.6))
        elif self.index % 3 == 0:  # left on the sidewalk
            self.cycle("motorcycle", self.on_sidewalk(side), 0.7 * z, 0.0, rnd.uniform(0.5, 1.0))
        elif self.index % 2:
            self.cycle("bicycle", lane, z, 1.0, rnd.uniform(0.3, 0.9))

    def on_sidewalk(self, side: int) -> float:
        """A random x."""
        kerb, back = self.kerb[side] + side * (self.verge[side] + 0.4), self.edge[side] - side * 0.5
        return self.rnd.uniform(*sorted((kerb, back)))

    # -- painting
    def is_hidden(self, thing: Thing) -> bool:
        """Whether a long vehicle stands between the thing and the camera."""
        x = thing.arguments[0]
        return any(
            LENGTH[body] > 7 and z < thing.far < z + LENGTH[body] and x * long_x > 0 and abs(x) > abs(long_x) + 0.5
            for body, long_x, z in self.vehicles
        )

    def paint_ground(self) -> None:
        p, far = self.p, self.end + 12
        mark, kerb, grass = (p.pick(name, 6) for name in ("mark", "kerb", "terrain"))
        for side in SIDES:
            self.paint_sidewalk(side, far, kerb, grass)
        p.strip(self.kerb[-1], self.kerb[1], NEAR, far + 10, p.road, "road")
        for side in SIDES:
            if self.parked[side]:
                bay, name = tuple(c * 0.88 + 6 for c in p.road), "parking" if self.rnd.random() < 0.2 else None
                p.strip(*sorted((self.kerb[side], self.edge_line[side])), NEAR, far, bay, name)
            p.strip(self.edge_line[side] - 0.07, self.edge_line[side] + 0.07, NEAR, far, mark)
        self.paint_patches()
        self.paint_rails(far)
        self.paint_lane_lines(far, mark)
        self.paint_crossings(mark)
        p.haze_ground()

    def paint_sidewalk(self, side: int, far: float, kerb: Colour, grass: Colour) -> None:
        """With the joints between its slabs, the verge if there is one, and the kerb."""
        p, inner = self.p, self.kerb[side]
        width = sorted((inner, self.edge[side]))
        p.strip(*width, NEAR, far, p.sidewalk, "sidewalk")
        for i in range(16):
            z = 4 + i * 2.0
            p.strip(*width, z, z + 0.07, tuple(c * 0.85 for c in p.sidewalk))
        if self.verge[side]:
            p.strip(*sorted((inner, inner + side * self.verge[side])), NEAR, far, grass, "terrain")
        p.strip(*sorted((inner, inner + side * 0.25)), NEAR, far, kerb, "sidewalk")

    def paint_patches(self) -> None:
        """Repaired spots in the road."""
        p, rnd = self.p, self.rnd
        for _ in range(5):
            x, z, tar = rnd.uniform(self.kerb[-1], self.kerb[1] - 1.5), rnd.uniform(4, 30), rnd.uniform(0.88, 1.05)
            p.strip(x, x + rnd.uniform(0.6, 1.5), z, z + rnd.uniform(1, 6), tuple(c * tar for c in p.road))

    def paint_rails(self, far: float) -> None:
        """Where a tram drives."""
        for x in {x for body, x, _ in self.vehicles if body == "train"}:
            for rail in (-0.72, 0.72):
                self.p.strip(x + rail - 0.09, x + rail + 0.09, NEAR, far, (70, 68, 70))
                self.p.strip(x + rail - 0.03, x + rail + 0.03, NEAR, far, (168, 170, 174))

    def paint_lane_lines(self, far: float, mark: Colour) -> None:
        """Dashed between lanes; the game's middle line is double and of another colour."""
        p, half = self.p, len(self.lanes) // 2
        for i in range(1 - half, half):
            x = self.middle + i * self.look.lane
            if i == 0 and not self.look.camera:
                for off in (-0.2, 0.08):
                    p.strip(x + off, x + off + 0.12, NEAR, far, self.look.colours["centre"][0])
                continue
            start = self.rnd.uniform(2, 8)
            for z in (start + 8 * dash for dash in range(9)):
                p.strip(x - 0.08, x + 0.08, z, z + 3.5, mark)

    def paint_crossings(self, mark: Colour) -> None:
        for crossing in self.crossings:
            x = self.kerb[-1] + 0.3
            while crossing > 5 and x < self.kerb[1] - 0.6:
                self.p.strip(x, x + 0.5, crossing - 1.5, crossing + 1.3, mark)
                x += 1.0

    def paint_shadows(self) -> None:
        """On the ground only. The game's are hard; the camera's sky is overcast, so they are faint and soft."""
        p = self.p
        mask = Image.new("L", p.image.size)
        pen = ImageDraw.Draw(mask)

        def darken(feet: list[tuple[float, float]], nearest: float, dark: int) -> None:
            points = [p.at(x, 0, max(z, nearest)) for x, z in feet]
            pen.polygon([(u * p.scale, v * p.scale) for u, v in points], fill=dark)

        for feet, height in self.shadows:
            if height:
                feet = hull(feet + [(x - p.sun_x * height, z - p.sun_z * height) for x, z in feet])
            darken(feet, 2.0, int(255 * self.look.sun))
        for body, x, z in self.vehicles:  # the dark beneath them, whatever the light
            x0, x1 = x - WIDTH[body] / 2 - 0.1, x + WIDTH[body] / 2 + 0.1
            z0, z1 = z - 0.15, z + LENGTH[body]
            darken([(x0, z0), (x1, z0), (x1, z1), (x0, z1)], NEAR, 170)
        if self.look.camera:
            mask = mask.filter(ImageFilter.GaussianBlur(p.width * p.scale * 0.004))
        mask.paste(0, (0, 0, mask.width, max(0, int(p.v0 * p.scale) + 1)))
        p.image.paste((22, 24, 34), (0, 0), mask)


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Convex hull (Andrew's monotone chain)."""
    points, chain = sorted(points), []
    for sweep in (points, points[::-1]):
        start = len(chain)
        for u, v in sweep:
            while len(chain) > start + 1:
                (u0, v0), (u1, v1) = chain[-2:]
                if (u1 - u0) * (v - v0) > (v1 - v0) * (u - u0):
                    break
                chain.pop()
            chain.append((u, v))
        chain.pop()
    return chain
