"""Turns a scene into frames: an analytic ray-caster with soft shadows, filtered floors and adaptive anti-aliasing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from worldline.worlds.physics import Trajectory, camera_at, simulate
from worldline.worlds.scene import COLOURS, FLOOR_COLOURS, FLOORS, SHAPES, SKIES, Scene

SCREEN_ID = 255
_BOX = 4  # code of the screen: a box with its own half-sizes


@dataclass(frozen=True)
class Clip:
    """A rendered scene: `frames` uint8 (T, H, W, 3), `ids` uint8 (T, H, W): 0 background, i + 1 thing i, 255 screen.

    `trajectory` is that of the whole clip, also where only some frames are drawn.
    """

    scene: Scene
    frames: np.ndarray
    ids: np.ndarray
    trajectory: Trajectory


def render(
    scene: Scene,
    frames: int = 17,
    height: int = 64,
    width: int = 64,
    fps: float = 16.0,
    only: Sequence[int] | None = None,
) -> Clip:
    """Render `scene` at any length and size, or `only` the frames of these numbers. The same scene, the same bytes."""
    path = simulate(scene, frames, fps)
    drawn = np.arange(frames) if only is None else np.asarray(only)
    bodies = bodies_of(scene, path)[drawn]
    cameras = np.stack([camera_at(scene.camera, i / max(frames - 1, 1)) for i in drawn])
    out = np.empty((len(drawn), height, width, 3), np.uint8)
    ids = np.empty((len(drawn), height, width), np.uint8)
    _render(bodies, cameras, floor_of(scene), np.array(SKIES[scene.sky]), light_of(scene), out, ids)
    return Clip(scene, out, ids, path)


def floor_of(scene: Scene) -> np.ndarray:
    """(4,): number of the pattern, then r g b."""
    return np.array([FLOORS.index(scene.floor), *FLOOR_COLOURS[scene.floor_colour]])


def light_of(scene: Scene) -> np.ndarray:
    """(3,): unit vector towards the light."""
    light = np.array([0.75 * math.cos(scene.light), 1.25, 0.35 + 0.5 * math.sin(scene.light)])
    return light / np.linalg.norm(light)


def bodies_of(scene: Scene, path: Trajectory) -> np.ndarray:
    """Rows (T, n, 12): shape code, x y z, half-sizes (3), yaw, r g b, id."""
    frames, n = path.yaws.shape
    rows = np.zeros((frames, n + (scene.event == "hide"), 12))
    for i, thing in enumerate(scene.things):
        rows[:, i, 0] = SHAPES.index(thing.shape)
        rows[:, i, 1:4] = path.positions[:, i]
        r = thing.radius
        rows[:, i, 4:7] = {
            "ball": (r, r, r),
            "cube": (0.84 * r, r, 0.84 * r),
            "cylinder": (0.78 * r, r, 0.78 * r),
            "cone": (1.02 * r, r, 1.02 * r),
        }[thing.shape]
        rows[:, i, 7] = path.yaws[:, i]
        rows[:, i, 8:11] = COLOURS[thing.colour]
        rows[:, i, 11] = i + 1
    if scene.event == "hide":
        height = 1.25 * scene.things[0].radius + 0.15
        rows[:, n] = _BOX, 0.0, height, 0.5, 0.66, height, 0.06, 0.0, 0.42, 0.42, 0.44, SCREEN_ID
    return rows


@njit(cache=True)
def _hit_box(ox, oy, oz, dx, dy, dz, hx, hy, hz):
    """Slab test in the box's frame; distance and normal, distance inf where missed."""
    near, far, axis, sign = -1e30, 1e30, 0, 1.0
    for a in range(3):
        o = ox if a == 0 else (oy if a == 1 else oz)
        d = dx if a == 0 else (dy if a == 1 else dz)
        h = hx if a == 0 else (hy if a == 1 else hz)
        if abs(d) < 1e-12:
            if abs(o) > h:
                return np.inf, 0.0, 1.0, 0.0
            continue
        t1, t2 = (-h - o) / d, (h - o) / d
        if t1 > t2:
            t1, t2 = t2, t1
        if t1 > near:
            near, axis, sign = t1, a, (-1.0 if d > 0 else 1.0)
        far = min(far, t2)
    if near > far or near < 1e-6:
        return np.inf, 0.0, 1.0, 0.0
    return near, (sign if axis == 0 else 0.0), (sign if axis == 1 else 0.0), (sign if axis == 2 else 0.0)


@njit(cache=True)
def _hit_round(code, ox, oy, oz, dx, dy, dz, radius, half):
    """Upright cylinder (code 2) or cone (code 3, tip up) around the origin: quadric side plus flat caps."""
    best, nx, ny, nz = np.inf, 0.0, 1.0, 0.0
    if code == 2:
        a, b, c = dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - radius * radius
    else:
        k = radius / (2 * half)  # radius lost per unit of height
        top = half - oy
        a = dx * dx + dz * dz - k * k * dy * dy
        b = ox * dx + oz * dz + k * k * top * dy
        c = ox * ox + oz * oz - k * k * top * top
    disc = b * b - a * c
    if disc >= 0 and abs(a) > 1e-12:
        root = math.sqrt(disc)
        for s in (-1.0, 1.0):
            t = (-b + s * root) / a
            y = oy + t * dy
            if 1e-6 < t < best and -half <= y <= half:
                px, pz = ox + t * dx, oz + t * dz
                slope = 0.0 if code == 2 else radius / (2 * half)
                around = max(math.sqrt(px * px + pz * pz), 1e-9)
                scale = 1.0 / math.sqrt(1.0 + slope * slope)
                best, nx, ny, nz = t, px / around * scale, slope * scale, pz / around * scale
    if abs(dy) > 1e-12:
        for s in (-1.0, 1.0):
            if s > 0 and code == 3:
                continue
            t = (s * half - oy) / dy
            px, pz = ox + t * dx, oz + t * dz
            if 1e-6 < t < best and px * px + pz * pz <= radius * radius:
                best, nx, ny, nz = t, 0.0, s, 0.0
    return best, nx, ny, nz


@njit(cache=True)
def _hit(body, ox, oy, oz, dx, dy, dz):
    """Nearest hit of a ray with one body: distance (inf where missed) and unit normal in world axes."""
    px, py, pz = ox - body[1], oy - body[2], oz - body[3]
    reach = body[4] * body[4] + body[5] * body[5] + body[6] * body[6]
    b = px * dx + py * dy + pz * dz
    c = px * px + py * py + pz * pz
    if b * b - c + reach < 0:
        return np.inf, 0.0, 1.0, 0.0
    code = int(body[0])
    if code == 0:
        disc = b * b - c + body[4] * body[4]
        if disc < 0:
            return np.inf, 0.0, 1.0, 0.0
        t = -b - math.sqrt(disc)
        if t < 1e-6:
            return np.inf, 0.0, 1.0, 0.0
        r = body[4]
        return t, (px + t * dx) / r, (py + t * dy) / r, (pz + t * dz) / r
    if code == 2 or code == 3:
        return _hit_round(code, px, py, pz, dx, dy, dz, body[4], body[5])
    cy, sy = math.cos(body[7]), math.sin(body[7])
    t, nx, ny, nz = _hit_box(
        cy * px - sy * pz,
        py,
        sy * px + cy * pz,
        cy * dx - sy * dz,
        dy,
        sy * dx + cy * dz,
        body[4],
        body[5],
        body[6],
    )
    return t, cy * nx + sy * nz, ny, -sy * nx + cy * nz


@njit(cache=True)
def _wave(value, blur):
    """A square wave of period two, its edges as wide as one pixel's footprint."""
    phase = value - 2.0 * math.floor(value / 2.0)
    edge = min(phase, abs(phase - 1.0), 2.0 - phase)
    side = 1.0 if phase < 1.0 else -1.0
    return side * min(edge / max(blur, 1e-6), 1.0) * max(0.0, 1.0 - blur)


@njit(cache=True)
def _floor_shade(floor, bodies, light, x, z, distance, pixel):
    """Brightness of the floor at (x, z): its pattern times soft shadows and contact occlusion."""
    pattern, shade = int(floor[0]), 1.0
    blur = min(pixel * distance * 1.6, 1.0)
    if pattern == 1:
        shade += 0.11 * _wave(x / 0.8 + 0.37, blur) * _wave(z / 0.8 + 0.21, blur)
    elif pattern == 2:
        shade += 0.11 * _wave(x / 0.55 + 0.29, blur)
    elif pattern == 3:
        for value in (x / 1.0 + 0.41, z / 1.0 + 0.17):
            gap = abs(value - math.floor(value + 0.5))
            shade -= 0.2 * max(0.0, 1.0 - gap / max(0.06, blur * 0.5)) * max(0.0, 1.0 - blur)
    for i in range(bodies.shape[0]):
        body = bodies[i]
        height = body[2] - body[5]
        # The shadow is the body's disc dropped along the light, wider and paler the higher the body floats.
        reach = body[2] / light[1]
        sx, sz = x - body[1] + light[0] * reach, z - body[3] + light[2] * reach
        along = (sx * light[0] + sz * light[2]) / max(math.sqrt(light[0] ** 2 + light[2] ** 2), 1e-9)
        across = math.sqrt(max(sx * sx + sz * sz - along * along, 0.0))
        wide = body[4] * (1.0 + 0.15 * height)
        d = math.sqrt((across / wide) ** 2 + (along / (1.35 * wide)) ** 2)
        shade *= 1.0 - 0.48 / (1.0 + 0.5 * height) / (1.0 + d**6)
        gap = math.sqrt((x - body[1]) ** 2 + (z - body[3]) ** 2) / max(body[4], 0.2)
        shade *= 1.0 - 0.35 * math.exp(-2.5 * height) / (1.0 + gap**6)
    return shade


@njit(cache=True)
def _sample(u, v, bodies, camera, floor, sky, light, pixel, rgb):
    """Shade the ray through view point (u, v) into `rgb`; returns the id seen."""
    focal = camera[4, 0]
    dx = camera[3, 0] * focal + camera[1, 0] * u + camera[2, 0] * v
    dy = camera[3, 1] * focal + camera[1, 1] * u + camera[2, 1] * v
    dz = camera[3, 2] * focal + camera[1, 2] * u + camera[2, 2] * v
    norm = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx * norm, dy * norm, dz * norm
    ox, oy, oz = camera[0]
    best, nx, ny, nz, seen = np.inf, 0.0, 1.0, 0.0, -1
    for i in range(bodies.shape[0]):
        t, hx, hy, hz = _hit(bodies[i], ox, oy, oz, dx, dy, dz)
        if t < best:
            best, nx, ny, nz, seen = t, hx, hy, hz, i
    if seen >= 0:
        lambert = max(nx * light[0] + ny * light[1] + nz * light[2], 0.0)
        facing = nx * dx + ny * dy + nz * dz
        mx, my, mz = dx - 2 * facing * nx, dy - 2 * facing * ny, dz - 2 * facing * nz
        glint = max(mx * light[0] + my * light[1] + mz * light[2], 0.0) ** 24 * 0.35
        fill = 0.46 + 0.12 * ny + 0.56 * lambert
        for c in range(3):
            rgb[c] += min(bodies[seen, 8 + c] * fill + glint, 1.0)
        return int(bodies[seen, 11])
    if dy < -1e-4:
        t = -oy / dy
        x, z = ox + t * dx, oz + t * dz
        shade = _floor_shade(floor, bodies, light, x, z, t / max(-dy, 0.05) * 0.3, pixel)
        haze = 1.0 - math.exp(-((t / 22.0) ** 2))
        for c in range(3):
            rgb[c] += min(floor[1 + c] * shade, 1.0) * (1 - haze) + sky[c] * haze
        return 0
    for c in range(3):
        rgb[c] += sky[c] * (1.0 - 0.35 * min(max(dy, 0.0), 1.0))
    return 0


@njit(cache=True, nogil=True)
def _render(bodies, cameras, floor, sky, light, out, ids):
    frames, height, width = ids.shape
    half = 0.5 * min(height, width)
    flat = np.empty((height, width, 3))
    rgb = np.empty(3)
    for t in range(frames):
        pixel = 1.0 / (half * cameras[t, 4, 0])
        for y in range(height):
            for x in range(width):
                rgb[:] = 0.0
                u, v = (x + 0.5 - 0.5 * width) / half, (0.5 * height - y - 0.5) / half
                ids[t, y, x] = _sample(u, v, bodies[t], cameras[t], floor, sky, light, pixel, rgb)
                flat[y, x] = rgb
        for y in range(height):
            for x in range(width):
                rgb[:] = flat[y, x]
                if _edge(flat, ids[t], y, x):
                    rgb[:] = 0.0
                    for a in range(3):
                        for b in range(3):
                            u = (x + (a + 0.5) / 3 - 0.5 * width) / half
                            v = (0.5 * height - y - (b + 0.5) / 3) / half
                            _sample(u, v, bodies[t], cameras[t], floor, sky, light, pixel, rgb)
                    rgb /= 9.0
                for c in range(3):
                    out[t, y, x, c] = int(min(max(rgb[c], 0.0), 1.0) * 255.0 + 0.5)


@njit(cache=True)
def _edge(flat, ids, y, x):
    """True where a neighbour shows another thing or another face: only there one sample is not enough."""
    height, width = ids.shape
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        yy, xx = y + dy, x + dx
        if 0 <= yy < height and 0 <= xx < width:
            if ids[yy, xx] != ids[y, x]:
                return True
            if abs(flat[yy, xx, 0] - flat[y, x, 0]) + abs(flat[yy, xx, 1] - flat[y, x, 1]) > 0.12:
                return True
    return False
