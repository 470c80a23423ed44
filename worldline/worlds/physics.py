"""How world things move: gravity, restitution, momentum, exact between contacts; and the camera's path."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from worldline.worlds.scene import DEPTH_GAIN, PUSH_RATE, SPEEDS, Scene, pushes_of

GRAVITY = 14.0  # world units / s^2: a thing of half a unit falls in a clip of one second
RESTITUTION = {"bounce": 0.82, "fall": 0.12, "jump": 0.05}
COLLISION_RESTITUTION = 0.9
DROP = {"fall": 1.75, "bounce": 1.45}  # height of the lowest point at the start
RISE = 1.5  # distance covered in one clip
JUMP_SPEED = math.sqrt(2 * GRAVITY * 1.15)  # reaches 1.15 units
SPIN = 2.6  # turn in one clip, radians
SUBSTEPS_PER_SECOND = 960
PUSH = 9.0  # world units / s^2
DRAG = 3.0  # 1 / s: a thing pushed for long moves at PUSH / DRAG
WALLS = np.array([[-1.25, 1.25], [-1.1, 0.6]])  # x and z that the centre of a pushed thing keeps to
WALL_RESTITUTION = 0.6

_VOLUME = {"ball": 4.19, "cube": 4.10, "cylinder": 3.6, "cone": 2.1}  # of radius one: mass is volume


@dataclass(frozen=True)
class Trajectory:
    """Motion: `positions` (T, n, 3) of centres, `yaws` (T, n) in radians, `contacts` (n,) first hits in s or inf."""

    positions: np.ndarray
    yaws: np.ndarray
    contacts: np.ndarray


def simulate(scene: Scene, frames: int, fps: float) -> Trajectory:
    """Integrate `scene` for `frames` at `fps`. Travel is scaled to the clip's length, gravity is not."""
    duration = max((frames - 1) / fps, 1e-6)
    things = scene.things
    n = len(things)
    position, velocity = np.zeros((n, 3)), np.zeros((n, 3))
    falls, bounce, turn, leap = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    radius = np.array([thing.radius for thing in things])
    mass = np.array([_VOLUME[thing.shape] * thing.radius**3 for thing in things])
    for i, thing in enumerate(things):
        position[i] = thing.x, radius[i], thing.z
        span = SPEEDS[thing.speed] / duration
        if scene.event == "hide":
            span = 3.0 / duration
        match thing.motion:
            case "left" | "right":
                velocity[i, 0] = span if thing.motion == "right" else -span
            case "toward" | "away":
                velocity[i, 2] = DEPTH_GAIN * (span if thing.motion == "toward" else -span)
            case "fall" | "bounce":
                position[i, 1] += DROP[thing.motion]
                falls[i], bounce[i] = 1.0, RESTITUTION[thing.motion]
            case "jump":
                falls[i], bounce[i], leap[i] = 1.0, RESTITUTION["jump"], JUMP_SPEED
            case "rise":
                velocity[i, 1] = RISE / duration
            case "spin":
                turn[i] = SPIN / duration
    collide = scene.event == "collide"
    yaw = np.array([thing.yaw for thing in things])
    if scene.pushes:
        pushes = pushes_of(scene.pushes.ljust(math.ceil(duration * PUSH_RATE) + 1, "n"))
        path = _pushed(position[0], pushes.astype(np.float64), WALLS, frames, fps)
        return Trajectory(path[:, None], np.full((frames, 1), things[0].yaw), np.full(1, np.inf))
    out, contacts = _integrate(position, velocity, radius, mass, falls, bounce, leap, collide, frames, fps)
    times = np.arange(frames)[:, None] / fps
    return Trajectory(out, yaw[None] + turn[None] * times, contacts)


@njit(cache=True)
def _integrate(position, velocity, radius, mass, falls, bounce, leap, collide, frames, fps):
    n = position.shape[0]
    out = np.empty((frames, n, 3))
    contacts = np.full(n, np.inf)
    substeps = max(1, round(SUBSTEPS_PER_SECOND / fps))
    dt = 1.0 / (fps * substeps)
    for i in range(n):
        velocity[i, 1] += leap[i]
    for frame in range(frames):
        out[frame] = position
        for step in range(substeps):
            for i in range(n):
                # Constant acceleration: x + v dt + a dt^2 / 2 is exact, so apexes hold their height.
                a = -GRAVITY * falls[i]
                for axis in range(3):
                    position[i, axis] += velocity[i, axis] * dt
                position[i, 1] += 0.5 * a * dt * dt
                velocity[i, 1] += a * dt
                if falls[i] > 0 and position[i, 1] < radius[i]:
                    if contacts[i] == np.inf:
                        contacts[i] = (frame * substeps + step) * dt
                    # Undo the sinking and the speed it gained, so that contact does not add energy.
                    depth = radius[i] - position[i, 1]
                    speed = math.sqrt(max(velocity[i, 1] ** 2 - 2 * GRAVITY * depth, 0.0))
                    position[i, 1] = radius[i]
                    velocity[i, 1] = bounce[i] * speed
                    if velocity[i, 1] < 0.35:
                        velocity[i, 1] = 0.0
                        falls[i] = 0.0
            if collide:
                for i in range(n):
                    for j in range(i + 1, n):
                        dx = position[j, 0] - position[i, 0]
                        dz = position[j, 2] - position[i, 2]
                        near = math.sqrt(dx * dx + dz * dz)
                        if near < 0.92 * (radius[i] + radius[j]) and near > 1e-9:
                            ux, uz = dx / near, dz / near
                            closing = (velocity[i, 0] - velocity[j, 0]) * ux + (velocity[i, 2] - velocity[j, 2]) * uz
                            if closing > 0:
                                impulse = (
                                    (1 + COLLISION_RESTITUTION) * closing * mass[i] * mass[j] / (mass[i] + mass[j])
                                )
                                velocity[i, 0] -= impulse * ux / mass[i]
                                velocity[i, 2] -= impulse * uz / mass[i]
                                velocity[j, 0] += impulse * ux / mass[j]
                                velocity[j, 2] += impulse * uz / mass[j]
                                contacts[i] = min(contacts[i], (frame * substeps + step) * dt)
                                contacts[j] = min(contacts[j], (frame * substeps + step) * dt)
    return out, contacts


@njit(cache=True)
def _pushed(start, pushes, walls, frames, fps):
    """(frames, 3): a body under pushes (P, 2) along x and z and a drag in proportion to its speed, between walls."""
    position, velocity = start.copy(), np.zeros(3)
    out = np.empty((frames, 3))
    substeps = max(1, round(SUBSTEPS_PER_SECOND / fps))
    dt = 1.0 / (fps * substeps)
    for frame in range(frames):
        out[frame] = position
        for step in range(substeps):
            push = pushes[int((frame * substeps + step) * dt * PUSH_RATE + 1e-9)]
            for side in range(2):
                axis = 2 * side
                velocity[axis] += (PUSH * push[side] - DRAG * velocity[axis]) * dt
                position[axis] += velocity[axis] * dt
                for end in range(2):
                    beyond = position[axis] - walls[side, end]
                    if (beyond > 0) == (end == 1) and beyond != 0:
                        position[axis] = walls[side, end] - WALL_RESTITUTION * beyond
                        velocity[axis] *= -WALL_RESTITUTION
    return out


EYE = (0.0, 2.0, 6.8)
TARGET = (0.0, 0.95, 0.0)
FOCAL = 3.0  # of a view of half-size one: about 37 degrees


def camera_at(camera: str, share: float) -> np.ndarray:
    """Camera at `share` in [0, 1] of the clip: rows eye, right, up, forward, and (focal, 0, 0); (5, 3) float64."""
    eye, target, focal = np.array(EYE), np.array(TARGET), FOCAL
    swing = 2 * share - 1
    verb, _, side = camera.partition(" ")
    sign = 1.0 if side in ("right", "in") else -1.0
    if verb == "orbit":
        eye = _turn(eye, sign * swing * math.radians(24))
    elif verb == "zoom":
        focal *= math.exp(sign * swing * 0.22)
    forward = target - eye
    forward /= np.linalg.norm(forward)
    if verb == "pan":
        forward = _turn(forward, -sign * swing * math.radians(6.5))
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right)
    return np.stack([eye, right, np.cross(right, forward), forward, np.array([focal, 0.0, 0.0])])


def _turn(vector: np.ndarray, angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    x, y, z = vector
    return np.array([c * x + s * z, y, -s * x + c * z])


def project(camera: np.ndarray, points: np.ndarray, radii: list[float]) -> list[tuple[float, float, float]]:
    """Points (n, 3) to view coordinates (u right, v up, radius), one being half the shorter side of the picture."""
    eye, right, up, forward, (focal, _, _) = camera
    spots = []
    for point, radius in zip(points, radii, strict=True):
        offset = point - eye
        scale = focal / max(float(offset @ forward), 1e-6)
        spots.append((float(offset @ right) * scale, float(offset @ up) * scale, radius * scale))
    return spots
