"""Draws the phantom's pictures: three echocardiographic views with colour Doppler and regurgitant jets."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data.phantom_anatomy import ANATOMY, DIASTOLE, NAMES


def _points(path: str) -> np.ndarray:
    return np.array([pair.split(",") for pair in path.split()], float) / 1000


def _smooth(points: np.ndarray, closed: bool, n: int = 8) -> np.ndarray:
    """Catmull-Rom curve through the points [k,2], n samples per piece."""
    p = np.concatenate([points[-1:], points, points[:2]] if closed else [points[:1], points, points[-1:]])
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2) if closed else np.concatenate([curve.reshape(-1, 2), points[-1:]])


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth noise of zero mean and unit spread whose blobs measure about `cell` pixels, float32 [H,W]."""
    rows, columns = (max(2, round(side / cell)) + 1 for side in shape)
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) * np.float32(1.35)  # interpolation damps it


def _largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask, without thin whiskers, bool [H,W]."""
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    return parts == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else mask > 0


@dataclass
class Machine:
    """Settings of the machine that examined one patient."""

    size: tuple[int, int]  # h, w in pixels
    range_db: float  # dynamic range of the display
    floor_db: float  # electronic noise
    nyquist: int  # cm/s, written beside the colour bar
    flow_gain: float  # a lower Nyquist limit makes the same flow look faster
    grey: np.ndarray  # uint8 [256,1,3], display curve and tint
    colour: np.ndarray  # uint8 [512,3] BGR of a velocity from -1 to 1
    variance_map: bool  # turbulence is shown in green

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Machine:
        level = np.linspace(0, 1, 256) ** rng.uniform(0.75, 1.2)
        tint = np.clip(1 + rng.normal(0, 0.012, 3), 0.95, 1.04)
        bright, speed = rng.uniform(0.75, 1.0), np.linspace(-1, 1, 512)
        red = [(0, 0, 70), (10, 40, 225), (70, 235, 255)]
        blue = [(80, 0, 0), (230, 60, 10), (255, 245, 80)]
        ramp = [
            [np.interp(np.abs(speed), (0, 0.45, 1), channel) for channel in zip(*table, strict=True)]
            for table in (red, blue)
        ]
        return cls(
            size=[(320, 400), (336, 384), (320, 360)][rng.integers(3)],
            range_db=rng.uniform(44, 60),
            floor_db=rng.uniform(-64, -48),
            nyquist=int(rng.integers(45, 70)),
            flow_gain=rng.uniform(0.7, 1.25),
            grey=np.clip(255 * level[:, None] * tint, 0, 255).astype(np.uint8)[:, None],
            colour=(np.where(speed > 0, *ramp).T * bright).astype(np.uint8),
            variance_map=bool(rng.random() < 0.5),
        )


class Sector:
    """The window of one clip: geometry, depth gain, shadows and the colour box."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self.h, self.w = size
        self.depth = rng.uniform(0.9, 0.98) * self.h  # pixels from the probe to the far end
        self.apex = np.array([self.w * (0.5 + rng.uniform(-0.02, 0.02)), 0.01 * self.h])
        self.half_angle = np.deg2rad(rng.uniform(36, 45))
        y, x = np.mgrid[: self.h, : self.w].astype(np.float32)
        self.x, self.y = (x - np.float32(self.apex[0])) / self.depth, (y - np.float32(self.apex[1])) / self.depth
        self.x, self.y = self.x.astype(np.float32), self.y.astype(np.float32)
        self.radius, self.angle = cv2.magnitude(self.x, self.y), np.arctan2(self.x, self.y)
        self.beam = (np.sin(self.angle), np.cos(self.angle))  # unit vector away from the probe, x and y
        self.near = rng.uniform(0.015, 0.05)
        self.visible = (self.radius < 1) & (self.radius > self.near) & (np.abs(self.angle) < self.half_angle)
        self.grid = (2, 340, 144)  # complex parts, samples along a beam, beams
        beams = ((self.angle / self.half_angle + 1) / 2 * (self.grid[2] - 1)).astype(np.float32)
        self.polar = (beams, self.radius * np.float32(self.grid[1] - 1))
        self.gain_db = self._gain(rng)
        self.clutter = rng.uniform(0.08, 0.3) * np.exp(
            -self.radius / rng.uniform(0.03, 0.06)
        )  # reverberation at the probe
        # colour is measured on a coarser grid than tissue
        half = (self.w // 2, self.h // 2)
        self.flow_x, self.flow_y, *self.flow_beam = (cv2.resize(a, half) for a in (self.x, self.y, *self.beam))

    def _gain(self, rng: np.random.Generator) -> np.ndarray:
        """Depth gain, loss towards the sides and shadowed beams, in dB, float32 [H,W]."""
        knots = np.cumsum(rng.normal(0, 2.2, 6)) + rng.uniform(-8, 6)
        gain = np.interp(self.radius, np.linspace(0, 1, 6), knots) - rng.uniform(0, 9) * self.radius**2
        gain -= rng.uniform(3, 10) * (np.abs(self.angle) / self.half_angle) ** 4
        for _ in range(rng.integers(0, 5)):
            centre, width = rng.uniform(-1, 1) * self.half_angle, np.deg2rad(rng.uniform(1.5, 6))
            start = rng.uniform(0.05, 0.5)
            shadow = np.exp(-(((self.angle - centre) / width) ** 2)) / (1 + np.exp((start - self.radius) * 30))
            gain -= rng.uniform(6, 20) * shadow
        return gain.astype(np.float32)

    def speckle(self, field: np.ndarray) -> np.ndarray:
        """Rayleigh envelope of a complex field over the beam grid, scan-converted, float32 [H,W] of mean 1."""
        re, im = (cv2.GaussianBlur(part, (0, 0), sigmaX=0.9, sigmaY=0.8) for part in field)
        envelope = cv2.magnitude(re, im)
        return cv2.remap(envelope / envelope.mean(), *self.polar, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    def _pixels(self, points: np.ndarray) -> np.ndarray:
        return np.round((points * self.depth + self.apex) * 16).astype(np.int32)  # 4 bits of sub-pixels

    def fill(self, canvas: np.ndarray, points: np.ndarray, value: float) -> None:
        cv2.fillPoly(canvas, [self._pixels(points)], value, cv2.LINE_AA, 4)

    def stroke(self, canvas: np.ndarray, points: np.ndarray, value, width: float, closed: bool = False) -> None:
        cv2.polylines(canvas, [self._pixels(points)], closed, value, max(1, round(width * self.depth)), cv2.LINE_AA, 4)

    def aim_colour_box(self, rng: np.random.Generator, centre: np.ndarray) -> None:
        """Lay the colour box, a piece of the sector, around a point."""
        radius, angle = np.hypot(*centre), np.arctan2(*centre)
        up, down, left, right = rng.uniform((0.18, 0.24, 0.28, 0.28), (0.42, 0.42, 0.5, 0.5))
        spread = (0.5 / max(radius, 0.35)) ** 0.5  # as wide near the probe as far away
        limit = self.half_angle - 0.02
        self.box_r = (max(self.near + 0.03, radius - up), min(0.97, radius + down))
        self.box_a = (max(-limit, angle - left * spread), min(limit, angle + right * spread))
        self.in_box = (self.radius > self.box_r[0]) & (self.radius < self.box_r[1])
        self.in_box &= (self.angle > self.box_a[0]) & (self.angle < self.box_a[1])

    def stream(self, start: np.ndarray, end: np.ndarray, width: float, grow: float) -> tuple[np.ndarray, np.ndarray]:
        """Profile 0..1 of a stream that widens by `grow`, and its part towards the probe, on the colour grid."""
        along = end - start
        length = np.hypot(*along)
        (ux, uy), (x0, y0) = (along / length).tolist(), start.tolist()
        x, y = self.flow_x - np.float32(x0), self.flow_y - np.float32(y0)
        s = x * np.float32(ux / length) + y * np.float32(uy / length)
        n = y * np.float32(ux) - x * np.float32(uy)
        half = np.float32(width / 2) * (1 + np.float32(grow) * (np.clip(s, 0, 1) - np.float32(0.5)))
        profile = (
            np.maximum(1 - (n / half) ** 2, 0)
            * np.clip(8 * s + np.float32(0.16), 0, 1)
            * np.clip(np.float32(5.1) - 5 * s, 0, 1)
        )
        cosine = -(self.flow_beam[0] * np.float32(ux) + self.flow_beam[1] * np.float32(uy))
        # vessels bend, so flow across the beam still shows some velocity
        return profile, np.sign(cosine) * (np.float32(0.35) + np.float32(0.65) * np.abs(cosine))


class Clip:
    """One clip of one patient in one view: pose, shape, texture and leaks stay, phase and noise change by frame."""

    def __init__(
        self,
        rng: np.random.Generator,
        view: str,
        machine: Machine,
        scale: float,
        wobble: float,
        quantile: float,
        pose: float = 1.0,
    ):
        """scale and wobble are the body's size and shape; quantile 0..1 picks the valve by the view's shares.

        pose says how far the probe is turned and shifted, 1 at most.
        """
        self.rng, self.machine, self.anatomy = rng, machine, ANATOMY[view]
        self.sector = Sector(rng, machine.size)
        turn, stretch = np.deg2rad(pose * rng.uniform(-20, 20)), 1 + rng.uniform(-0.08, 0.08, 2)
        c, s = np.cos(turn), np.sin(turn)
        self.matrix = np.array([[c, -s], [s, c]]) * stretch * scale * rng.uniform(0.88, 1.08)
        self.shift = pose * rng.uniform((-0.09, -0.06), (0.09, 0.08))
        self.heart, *outlines = (
            points + rng.normal(0, wobble, points.shape)
            for points in map(_points, (self.anatomy.heart, *self.anatomy.chambers.values()))
        )
        self.chambers = dict(zip(self.anatomy.chambers, outlines, strict=True))
        structure = 0.5 * _noise(rng, machine.size, 40) + 0.3 * _noise(rng, machine.size, 12)
        self.texture = np.exp(structure)  # of tissue
        self.still = rng.standard_normal(self.sector.grid, dtype=np.float32)
        jets, shares = self.anatomy.jets, np.cumsum([jet.share for jet in self.anatomy.jets])
        main = jets[min(int(np.searchsorted(shares / shares[-1], quantile, side="right")), len(jets) - 1)]
        self.jets = (main,) if rng.random() > 0.06 else ()
        if view == "A4C" and self.jets and rng.random() < 0.15:
            self.jets = jets  # both atrioventricular valves leak
        self.phase = main.phase  # in which the valve leaks, or would
        # extent, deviation and peak speed (in Nyquist units) of each jet
        self.leaks = {
            j.name: (rng.uniform(0.8, 1.2), np.deg2rad(rng.uniform(-22, 22)), rng.uniform(1.3, 2.4)) for j in self.jets
        }
        start, end = self.place(_points(main.path))
        self.sector.aim_colour_box(rng, 0.7 * start + 0.3 * end + rng.uniform(-0.04, 0.04, 2))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Anatomy [k,2] to this clip's pose."""
        pivot = np.array([0, 0.48])
        return (points - pivot) @ self.matrix.T + pivot + self.shift

    def frame(self, phase: int, strength: float) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
        """A picture, BGR uint8 [H,W,3], and its jets (class, x1 y1 x2 y2 in pixels); strength 0..1 scales the jets."""
        chambers = {}
        for name, points in self.chambers.items():  # ventricles are large in diastole, atria and vessels in systole
            beat = (0.06 if name in ("LV", "RV") else -0.035) * (1 if phase == DIASTOLE else -1)
            centre = points.mean(0)
            chambers[name] = _smooth(self.place(centre + (points - centre) * (1 + beat)), closed=True)
        image = self._tissue(phase, chambers)
        boxes = self._flow(image, phase, strength, chambers)
        self._overlay(image)
        return image, boxes

    def _tissue(self, phase: int, chambers: dict[str, np.ndarray]) -> np.ndarray:
        """B-mode picture: reflectivity x speckle x gain, log-compressed."""
        sector, rng, machine = self.sector, self.rng, self.machine
        tissue = np.full(machine.size, 0.05, np.float32)
        sector.fill(tissue, _smooth(self.place(self.heart), True), 0.12)
        for path in self.anatomy.bright.split(";"):
            sector.stroke(tissue, _smooth(self.place(_points(path)), False), 0.7, 0.012)
        for points in chambers.values():  # walls first, blood after: touching chambers stay open to one another
            sector.stroke(tissue, points, 0.22, 0.018, closed=True)
        tissue *= self.texture
        for points in chambers.values():
            sector.fill(tissue, points, 0.003)
        tissue = cv2.GaussianBlur(tissue, (0, 0), 1.2)
        dx, dy = cv2.Sobel(tissue, cv2.CV_32F, 1, 0), cv2.Sobel(tissue, cv2.CV_32F, 0, 1)
        tissue += 0.45 * np.abs(
            dx * sector.beam[0] + dy * sector.beam[1]
        )  # bright where the beam meets a wall squarely
        leaflets = np.zeros_like(tissue)
        for path in (self.anatomy.systole, self.anatomy.diastole)[phase].split(";"):
            points = _points(path)
            sector.stroke(leaflets, _smooth(self.place(points + rng.normal(0, 0.004, points.shape)), False), 0.5, 0.009)
        tissue = (
            np.maximum(tissue, cv2.GaussianBlur(leaflets, (0, 0), 0.8) * np.minimum(self.texture, 1.2)) + sector.clutter
        )
        fresh = rng.standard_normal(sector.grid, dtype=np.float32)
        echo = tissue * sector.speckle(np.float32(0.8) * self.still + np.float32(0.6) * fresh)
        db = np.log10(echo + np.float32(1e-4)) * np.float32(20) + sector.gain_db
        noise = np.float32(3) * rng.standard_normal(machine.size, dtype=np.float32) + np.float32(machine.floor_db)
        level = (np.maximum(db, noise) / np.float32(machine.range_db) + 1) * sector.visible
        grey = np.clip(level * 255, 0, 255).astype(np.uint8)
        return cv2.LUT(cv2.merge([grey] * 3), machine.grey)

    def _flow(self, image: np.ndarray, phase: int, strength: float, chambers: dict[str, np.ndarray]) -> list:
        """Paint the colour flow into the picture; returns the jets' boxes."""
        sector, rng, machine, size = self.sector, self.rng, self.machine, self.machine.size
        coarse = (size[0] // 2, size[1] // 2)
        masks = {name: np.zeros(size, np.uint8) for name in chambers}
        for name, points in chambers.items():
            sector.fill(masks[name], points, 255)
        velocity = 0.09 * _noise(rng, coarse, 9)  # slow swirl
        for flow in self.anatomy.flows[phase]:
            start, end = self.place(_points(flow.path))
            profile, cosine = sector.stream(start, end, flow.width / 1000 * rng.uniform(1.0, 1.6), 0.3)
            velocity += profile * cosine * np.float32(flow.speed * rng.uniform(0.6, 1.35) * machine.flow_gain)
        velocity += 0.1 * _noise(rng, coarse, 3)
        velocity = cv2.resize(velocity, size[::-1])
        in_blood = np.maximum.reduce(list(masks.values())) > 127
        painted = sector.in_box & in_blood & (np.abs(velocity) > 0.19) & (_noise(rng, size, 9) > -1.1)
        twinkle = sector.in_box & (_noise(rng, size, 5) > 3.2)  # moving tissue that passed the wall filter
        painted |= twinkle
        variance = np.zeros(size, np.float32)
        boxes = []
        for jet in self.jets:
            if jet.phase != phase:
                continue
            extent, turn, peak = self.leaks[jet.name]
            start, end = _points(jet.path)
            c, s = np.cos(turn), np.sin(turn)
            end = start + np.array([[c, -s], [s, c]]) @ (end - start) * extent * strength
            width = jet.width / 1000 * extent * (0.6 + 0.4 * strength) * rng.uniform(0.9, 1.15)
            profile, cosine = sector.stream(*self.place(np.stack([start, end])), width, 0.7)
            ragged = profile + 0.16 * _noise(rng, coarse, 3.5) * (profile > 0)
            jet_velocity = np.sign(cosine) * np.float32(peak) * (np.float32(0.5) + np.float32(0.5) * profile)
            room = cv2.dilate(masks[jet.chamber], np.ones((9, 9), np.uint8)) > 127  # the jet passes the leaflets
            whole = (cv2.resize(ragged, size[::-1]) > 0.22) & room
            mask = _largest_part(whole & sector.in_box)
            # too small to see, or mostly outside the colour box: neither drawn nor labelled
            if mask.sum() < max(0.0007 * mask.size, 0.5 * whole.sum()):
                continue
            turbulence = 0.5 * _noise(rng, size, 3.2) + 0.35 * _noise(rng, size, 8)
            velocity = np.where(mask, cv2.resize(jet_velocity, size[::-1]) + turbulence, velocity)
            variance = np.where(mask, 0.1 + 0.55 * np.abs(turbulence), variance)
            painted |= mask
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes.append((NAMES.index(jet.name), np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], float)))
        wrapped = (velocity[painted] + 1) % 2  # aliasing: beyond the Nyquist limit the colour turns over
        colour = machine.colour[np.minimum(wrapped * 256, 511).astype(np.int32)].astype(np.float32)
        if machine.variance_map:
            colour[:, 1] = np.maximum(colour[:, 1], 230 * np.minimum(variance[painted], 1))
        image[painted] = (0.92 * colour + 0.08 * image[painted]).astype(np.uint8)
        return boxes

    def _overlay(self, image: np.ndarray) -> None:
        """Outline of the colour box, depth marks, colour bar and small text, the same in every view."""
        sector, machine, white = self.sector, self.machine, (190, 190, 190)
        sweep = np.linspace(*sector.box_a, 24)
        near, far = (r * np.stack([np.sin(sweep), np.cos(sweep)], 1) for r in sector.box_r)
        sector.stroke(image, np.concatenate([near, far[::-1]]), white, 0.001, closed=True)
        edge = np.array([np.sin(sector.half_angle), np.cos(sector.half_angle)])
        for depth in (0.2, 0.4, 0.6, 0.8):
            sector.stroke(image, depth * edge + [[0.015, 0], [0.025, 0]], white, 0.001)
        top, left = int(0.03 * sector.h), sector.w - 14
        image[top : top + 48, left : left + 7] = machine.colour[np.linspace(511, 0, 48).astype(int)][:, None]
        for text, x, y in (
            (f"+{machine.nyquist}", left - 22, top + 8),
            (f"-{machine.nyquist}", left - 22, top + 48),
            ("PHANTOM", 4, sector.h - 5),
        ):
            cv2.putText(image, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.28, white, 1, cv2.LINE_AA)
