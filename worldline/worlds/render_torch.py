"""The ray-caster of `render` for many clips at once in torch, so that a GPU can draw what a large run trains on.

The same equations in the same order and in double precision: on any device the bytes equal `render`'s, but for
rounding. On a CPU `render` is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldline.worlds.physics import camera_at, simulate
from worldline.worlds.render import bodies_of, floor_of, light_of
from worldline.worlds.scene import SKIES, Scene

NOTHING = -1.0  # shape code of a row that fills up a frame with fewer bodies than others
INF = float("inf")
Vector = tuple[Tensor, Tensor, Tensor]  # x, y, z, each broadcasting to (X, Y)
Hit = tuple[Tensor, Tensor, Tensor, Tensor]  # distance (inf where missed) and normal, each (X, Y)


class _World(NamedTuple):
    """What the rays of one row see: X frames, or X pixels of frames."""

    bodies: Tensor  # (X, n, 12) as `render.bodies_of`
    camera: Tensor  # (X, 5, 3)
    floor: Tensor  # (X, 4)
    sky: Tensor  # (X, 3)
    light: Tensor  # (X, 3)

    def at(self, rows: Tensor) -> _World:
        return _World(*(value[rows] for value in self))


def render_batch(
    scenes: Sequence[Scene],
    frames: int = 17,
    height: int = 64,
    width: int = 64,
    fps: float = 16.0,
    device: str = "cuda",
    only: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw `scenes` on `device`: frames uint8 (B, T, H, W, 3) and ids uint8 (B, T, H, W), as `render.Clip` has them.

    `only`: numbers of the frames that are drawn. Takes about 1 kB of the device's memory per pixel and frame.
    """
    drawn = range(frames) if only is None else only
    world = _stack(scenes, frames, fps, drawn, torch.device(device))
    half = 0.5 * min(height, width)
    y = torch.arange(height, dtype=torch.float64, device=device)
    x = torch.arange(width, dtype=torch.float64, device=device)
    v, u = torch.meshgrid((0.5 * height - y - 0.5) / half, (x + 0.5 - 0.5 * width) / half, indexing="ij")
    rgb, ids = _shade(u.flatten()[None], v.flatten()[None], world, half)  # (F, H*W, 3), (F, H*W)
    edge = _edges(rgb.unflatten(1, (height, width)), ids.unflatten(1, (height, width)))
    rows, pixels = edge.flatten(1).nonzero(as_tuple=True)  # (E,), (E,)
    third = (torch.arange(3, dtype=torch.float64, device=device) + 0.5) / 3 - 0.5
    across, down = torch.meshgrid(third, third, indexing="ij")
    near_u = u.flatten()[pixels][:, None] + across.flatten() / half  # (E, 9)
    near_v = v.flatten()[pixels][:, None] - down.flatten() / half
    rgb[rows, pixels] = _shade(near_u, near_v, world.at(rows), half)[0].mean(1)
    shown = (rgb.clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    shape = (len(scenes), len(drawn), height, width)
    return shown.reshape(*shape, 3), ids.to(torch.uint8).reshape(shape)


def _stack(scenes: Sequence[Scene], frames: int, fps: float, drawn: Sequence[int], device: torch.device) -> _World:
    """The worlds of the drawn frames of all scenes, F = B * T rows."""
    rows = [bodies_of(scene, simulate(scene, frames, fps))[list(drawn)] for scene in scenes]
    bodies = np.zeros((len(scenes), len(drawn), max(row.shape[1] for row in rows), 12))
    bodies[..., 0] = NOTHING
    for i, row in enumerate(rows):
        bodies[i, :, : row.shape[1]] = row
    times = [i / max(frames - 1, 1) for i in drawn]
    cameras = np.stack([[camera_at(scene.camera, time) for time in times] for scene in scenes])
    steady = [np.stack(values) for values in zip(*(_setting(scene) for scene in scenes), strict=True)]
    arrays = [bodies.reshape(-1, *bodies.shape[2:]), cameras.reshape(-1, 5, 3)]
    arrays += [np.repeat(value, len(drawn), axis=0) for value in steady]
    return _World(*(torch.from_numpy(array).to(device, torch.float64) for array in arrays))


def _setting(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return floor_of(scene), np.array(SKIES[scene.sky]), light_of(scene)


def _shade(u: Tensor, v: Tensor, world: _World, half: float) -> tuple[Tensor, Tensor]:
    """Colour (X, Y, 3) and id (X, Y) seen through view points u, v (X or 1, Y)."""
    origin, right, up, forward, focal = (world.camera[:, i, :, None] for i in range(5))  # (X, 3, 1)
    focal = focal[:, :1]
    ray = forward * focal + right * u[:, None] + up * v[:, None]  # (X, 3, Y)
    ray = ray * torch.rsqrt(ray.square().sum(1, keepdim=True))
    o, d = _vector(origin), _vector(ray)  # of (X, 1) and of (X, Y)
    dx, dy, dz = d
    best = torch.full_like(dx, INF)
    normal = [torch.zeros_like(dx), torch.ones_like(dx), torch.zeros_like(dx)]
    seen = torch.full(dx.shape, -1, dtype=torch.long, device=dx.device)
    for i in range(world.bodies.shape[1]):
        distance, *facing = _hit(world.bodies[:, i], o, d)
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        normal = [torch.where(nearer, new, old) for new, old in zip(facing, normal, strict=True)]
        seen = torch.where(nearer, i, seen)
    light = _vector(world.light[..., None])
    ground = _ground(world, light, o, d, 1.0 / (half * focal[:, :, 0]))
    above = world.sky[:, None] * (1.0 - 0.35 * dy.clamp(0, 1))[..., None]
    rgb = torch.where((dy < -1e-4)[..., None], ground, above)
    nx, ny, nz = normal
    lambert = (nx * light[0] + ny * light[1] + nz * light[2]).clamp_min(0)
    turn = 2 * (nx * dx + ny * dy + nz * dz)
    mirror = (dx - turn * nx, dy - turn * ny, dz - turn * nz)
    glint = (mirror[0] * light[0] + mirror[1] * light[1] + mirror[2] * light[2]).clamp_min(0) ** 24 * 0.35
    fill = 0.46 + 0.12 * ny + 0.56 * lambert
    body = world.bodies.gather(1, seen.clamp_min(0)[..., None].expand(-1, -1, 12))  # (X, Y, 12)
    surface = (body[..., 8:11] * fill[..., None] + glint[..., None]).clamp_max(1)
    hit = seen >= 0
    return torch.where(hit[..., None], surface, rgb), torch.where(hit, body[..., 11], 0.0)


def _vector(values: Tensor) -> Vector:
    """(X, 3, Y) as its three coordinates."""
    x, y, z = values.unbind(1)
    return x, y, z


def _ground(world: _World, light: Vector, o: Vector, d: Vector, pixel: Tensor) -> Tensor:
    """Colour (X, Y, 3) of the floor under each ray, fading into the sky; meaningless where a ray goes up."""
    (ox, oy, oz), (dx, dy, dz) = o, d
    down = dy.clamp_max(-1e-4)
    t = -oy / down
    x, z = ox + t * dx, oz + t * dz
    distance = t / (-down).clamp_min(0.05) * 0.3
    shade = _pattern(world.floor[:, :1], x, z, (pixel * distance * 1.6).clamp_max(1))
    flat = (light[0] ** 2 + light[2] ** 2).sqrt().clamp_min(1e-9)
    for i in range(world.bodies.shape[1]):
        body = [value[:, None] for value in world.bodies[:, i].unbind(1)]
        height = body[2] - body[5]
        reach = body[2] / light[1]
        sx, sz = x - body[1] + light[0] * reach, z - body[3] + light[2] * reach
        along = (sx * light[0] + sz * light[2]) / flat
        across = (sx * sx + sz * sz - along * along).clamp_min(0).sqrt()
        wide = (body[4] * (1.0 + 0.15 * height)).clamp_min(1e-9)
        aside = ((across / wide) ** 2 + (along / (1.35 * wide)) ** 2).sqrt()
        shadow = 1.0 - 0.48 / (1.0 + 0.5 * height) / (1.0 + aside**6)
        gap = ((x - body[1]) ** 2 + (z - body[3]) ** 2).sqrt() / body[4].clamp_min(0.2)
        contact = 1.0 - 0.35 * torch.exp(-2.5 * height) / (1.0 + gap**6)
        shade = torch.where(body[0] == NOTHING, shade, shade * shadow * contact)
    haze = (1.0 - torch.exp(-((t / 22.0) ** 2)))[..., None]
    colour = (world.floor[:, None, 1:] * shade[..., None]).clamp_max(1)
    return colour * (1 - haze) + world.sky[:, None] * haze


def _pattern(kind: Tensor, x: Tensor, z: Tensor, blur: Tensor) -> Tensor:
    """Brightness of the floor's pattern, kind (X, 1) as `scene.FLOORS` counts them."""
    checks = 1.0 + 0.11 * _wave(x / 0.8 + 0.37, blur) * _wave(z / 0.8 + 0.21, blur)
    stripes = 1.0 + 0.11 * _wave(x / 0.55 + 0.29, blur)
    tiles = torch.ones_like(x)
    for value in (x / 1.0 + 0.41, z / 1.0 + 0.17):
        gap = (value - torch.floor(value + 0.5)).abs()
        tiles = tiles - 0.2 * (1.0 - gap / (blur * 0.5).clamp_min(0.06)).clamp_min(0) * (1.0 - blur).clamp_min(0)
    shade = torch.ones_like(x)
    for code, pattern in ((1, checks), (2, stripes), (3, tiles)):
        shade = torch.where(kind == code, pattern, shade)
    return shade


def _wave(value: Tensor, blur: Tensor) -> Tensor:
    phase = value - 2.0 * torch.floor(value / 2.0)
    edge = torch.minimum(torch.minimum(phase, (phase - 1.0).abs()), 2.0 - phase)
    side = torch.where(phase < 1.0, 1.0, -1.0)
    return side * (edge / blur.clamp_min(1e-6)).clamp_max(1) * (1.0 - blur).clamp_min(0)


def _hit(body: Tensor, o: Vector, d: Vector) -> Hit:
    """Nearest hit of rays (X, Y) with one body of each row (X, 12); normals in world axes."""
    dx, dy, dz = d
    code, bx, by, bz, rx, ry, rz, yaw = (value[:, None] for value in body[:, :8].unbind(1))  # (X, 1)
    px, py, pz = o[0] - bx, o[1] - by, o[2] - bz
    p = (px, py, pz)
    b = px * dx + py * dy + pz * dz
    c = px * px + py * py + pz * pz
    near = (b * b - c + rx * rx + ry * ry + rz * rz >= 0) & (code != NOTHING)
    ball = _hit_ball(p, d, rx, b, c)
    tall = _hit_round(code == 3, p, d, rx, ry)
    cy, sy = torch.cos(yaw), torch.sin(yaw)
    t, nx, ny, nz = _hit_box(
        (cy * px - sy * pz, py, sy * px + cy * pz), (cy * dx - sy * dz, dy, sy * dx + cy * dz), (rx, ry, rz)
    )
    box = (t, cy * nx + sy * nz, ny, -sy * nx + cy * nz)
    is_ball, is_round = code == 0, (code == 2) | (code == 3)
    chosen = [
        torch.where(is_ball, one, torch.where(is_round, two, three))
        for one, two, three in zip(ball, tall, box, strict=True)
    ]
    return torch.where(near, chosen[0], INF), chosen[1], chosen[2], chosen[3]


def _hit_ball(p: Vector, d: Vector, r: Tensor, b: Tensor, c: Tensor) -> Hit:
    """b and c: p . d and p . p."""
    disc = b * b - c + r * r
    t = -b - disc.clamp_min(0).sqrt()
    t = torch.where((disc >= 0) & (t >= 1e-6), t, INF)
    at = torch.where(t < INF, t, 0.0)
    safe = r.clamp_min(1e-9)
    x, y, z = ((start + at * step) / safe for start, step in zip(p, d, strict=True))
    return t, x, y, z


def _hit_box(o: Vector, d: Vector, h: Vector) -> Hit:
    """Slab test in the box's frame."""
    near = torch.full_like(d[0], -1e30)
    far = torch.full_like(d[0], 1e30)
    normal = [torch.zeros_like(d[0]) for _ in range(3)]
    missed = torch.zeros_like(d[0], dtype=torch.bool)
    for axis in range(3):
        level = d[axis].abs() < 1e-12
        missed |= level & (o[axis].abs() > h[axis])
        step = torch.where(level, 1.0, d[axis])
        one, two = (-h[axis] - o[axis]) / step, (h[axis] - o[axis]) / step
        low, high = torch.minimum(one, two), torch.maximum(one, two)
        entered = ~level & (low > near)
        near = torch.where(entered, low, near)
        far = torch.where(level, far, torch.minimum(far, high))
        sign = torch.where(d[axis] > 0, -1.0, 1.0)
        normal = [
            torch.where(entered, sign if k == axis else torch.zeros_like(sign), old) for k, old in enumerate(normal)
        ]
    t = torch.where(missed | (near > far) | (near < 1e-6), INF, near)
    return t, normal[0], normal[1], normal[2]


def _hit_round(cone: Tensor, o: Vector, d: Vector, radius: Tensor, half: Tensor) -> Hit:
    """Upright cylinder, or cone with its tip up: quadric side plus flat caps. cone (X, 1) says which."""
    (ox, oy, oz), (dx, dy, dz) = o, d
    slope = torch.where(cone, radius / (2 * half).clamp_min(1e-9), 0.0)  # radius lost per unit of height
    top = half - oy
    a = dx * dx + dz * dz - slope * slope * dy * dy
    b = ox * dx + oz * dz + slope * slope * top * dy
    c = ox * ox + oz * oz - torch.where(cone, slope * slope * top * top, radius * radius)
    disc = b * b - a * c
    curved = (disc >= 0) & (a.abs() > 1e-12)
    root = disc.clamp_min(0).sqrt()
    scale = 1.0 / (1.0 + slope * slope).sqrt()
    best = torch.full_like(dx, INF)
    nx, ny, nz = torch.zeros_like(dx), torch.ones_like(dx), torch.zeros_like(dx)
    for sign in (-1.0, 1.0):
        t = (-b + sign * root) / torch.where(curved, a, 1.0)
        y = oy + t * dy
        found = curved & (t > 1e-6) & (t < best) & (y >= -half) & (y <= half)
        px, pz = ox + t * dx, oz + t * dz
        around = (px * px + pz * pz).sqrt().clamp_min(1e-9)
        best = torch.where(found, t, best)
        nx = torch.where(found, px / around * scale, nx)
        ny = torch.where(found, slope * scale, ny)
        nz = torch.where(found, pz / around * scale, nz)
    steep = dy.abs() > 1e-12
    for sign in (-1.0, 1.0):
        t = (sign * half - oy) / torch.where(steep, dy, 1.0)
        px, pz = ox + t * dx, oz + t * dz
        found = steep & (t > 1e-6) & (t < best) & (px * px + pz * pz <= radius * radius)
        if sign > 0:
            found = found & ~cone
        best = torch.where(found, t, best)
        nx, ny, nz = (torch.where(found, value, old) for value, old in ((0.0, nx), (sign, ny), (0.0, nz)))
    return best, nx, ny, nz


def _edges(rgb: Tensor, ids: Tensor) -> Tensor:
    """(F, H, W) true where a neighbour shows another thing or another face: there one ray is not enough."""
    edge = torch.zeros_like(ids, dtype=torch.bool)
    for axis in (1, 2):
        differ = (ids.diff(dim=axis) != 0) | (rgb[..., :2].diff(dim=axis).abs().sum(-1) > 0.12)
        for side in (0, 1):
            edge.narrow(axis, side, differ.shape[axis]).logical_or_(differ)
    return edge
