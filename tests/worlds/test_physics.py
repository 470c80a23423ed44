"""The worlds obey mechanics: parabolas, restitution, momentum; and cameras move as they are named."""

from __future__ import annotations

import numpy as np
import pytest

from worldline.worlds.physics import (
    COLLISION_RESTITUTION,
    DRAG,
    DROP,
    GRAVITY,
    PUSH,
    RESTITUTION,
    RISE,
    WALLS,
    camera_at,
    project,
    simulate,
)
from worldline.worlds.scene import CAMERAS, PUSH_RATE, PUSHES, SPEEDS, Scene, Thing, pushes_of, sample_pushed


def _alone(motion: str, **more: object) -> Scene:
    return Scene((Thing("ball", "red", "small", motion, **more),))  # type: ignore[arg-type]


def test_a_fall_is_a_parabola_until_it_lands() -> None:
    thing = _alone("fall").things[0]
    path = simulate(_alone("fall"), frames=121, fps=240)
    t = np.arange(121) / 240
    landing = np.sqrt(2 * DROP["fall"] / GRAVITY)
    flying = t < landing
    expected = thing.radius + DROP["fall"] - GRAVITY * t**2 / 2
    np.testing.assert_allclose(path.positions[flying, 0, 1], expected[flying], atol=1e-9)
    assert path.contacts[0] == pytest.approx(landing, abs=2e-3)
    assert path.positions[:, 0, 1].min() >= thing.radius - 1e-12
    np.testing.assert_allclose(path.positions[:, 0, [0, 2]], [[0, 0]] * 121)


def test_each_rebound_keeps_the_square_of_the_restitution() -> None:
    y = simulate(_alone("bounce"), frames=601, fps=240).positions[:, 0, 1] - _alone("bounce").things[0].radius
    peaks = [y[i] for i in range(1, len(y) - 1) if y[i] >= y[i - 1] and y[i] > y[i + 1] and y[i] > 0.05]
    heights = np.array([DROP["bounce"], *peaks])
    assert len(heights) >= 4
    np.testing.assert_allclose(heights[1:] / heights[:-1], RESTITUTION["bounce"] ** 2, rtol=0.01)


def test_a_jump_rises_as_high_as_its_speed_allows_and_comes_back() -> None:
    y = simulate(_alone("jump"), frames=289, fps=240).positions[:, 0, 1]
    assert y[0] == y[-1] == pytest.approx(0.46)
    assert y.max() - y[0] == pytest.approx(1.15, abs=1e-3)


@pytest.mark.parametrize(("first", "second"), [("ball", "cube"), ("cone", "cylinder"), ("cube", "cone")])
@pytest.mark.parametrize(("small", "large"), [("small", "large"), ("large", "small")])
def test_collisions_conserve_momentum_and_restitute(first: str, second: str, small: str, large: str) -> None:
    volume = {"ball": 4.19, "cube": 4.10, "cylinder": 3.6, "cone": 2.1}
    scene = Scene(
        (Thing(first, "red", small, "right", "fast", x=-1.6), Thing(second, "blue", large, x=0.1)), event="collide"
    )
    path = simulate(scene, frames=65, fps=64)
    mass = np.array([volume[t.shape] * t.radius**3 for t in scene.things])
    velocity = np.diff(path.positions[:, :, 0], axis=0) * 64
    before, after = velocity[0], velocity[-1]
    assert before @ mass == pytest.approx(after @ mass, rel=1e-9)
    assert after[1] - after[0] == pytest.approx(COLLISION_RESTITUTION * (before[0] - before[1]), rel=1e-9)
    assert (after**2) @ mass < (before**2) @ mass  # restitution below one loses energy
    assert path.contacts[0] == path.contacts[1] < 1.0


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("toward", 2, 1), ("away", 2, -1)]
)
@pytest.mark.parametrize("speed", list(SPEEDS))
def test_travel_covers_its_distance_in_any_clip(motion: str, axis: int, sign: int, speed: str) -> None:
    scene = _alone(motion, speed=speed)
    ends = []
    for frames, fps in ((17, 16.0), (33, 24.0), (5, 8.0)):
        path = simulate(scene, frames, fps).positions[:, 0]
        ends.append(path[-1] - path[0])
        np.testing.assert_allclose(np.diff(path, n=2, axis=0), 0, atol=1e-9)  # constant velocity
    np.testing.assert_allclose(ends, ends[0:1] * 3, atol=1e-9)
    assert sign * ends[0][axis] >= SPEEDS[speed] - 1e-9
    assert np.abs(np.delete(ends[0], axis)).max() == 0


def test_only_what_should_moves() -> None:
    still = simulate(_alone("still"), 17, 16)
    assert np.ptp(still.positions, 0).max() == 0
    assert np.ptp(still.yaws) == 0
    spin = simulate(_alone("spin"), 17, 16)
    assert np.ptp(spin.positions, 0).max() == 0
    assert np.ptp(spin.yaws) == pytest.approx(2.6)
    rise = simulate(_alone("rise"), 17, 16).positions[:, 0, 1]
    assert rise[-1] - rise[0] == pytest.approx(RISE)


def test_frames_of_a_coarse_clip_are_frames_of_a_fine_one() -> None:
    """Time steps do not depend on the frame rate, so neither does the path."""
    coarse = simulate(_alone("bounce"), 17, 16).positions
    fine = simulate(_alone("bounce"), 65, 64).positions
    np.testing.assert_allclose(coarse, fine[::4], atol=1e-9)


def test_cameras_are_orthonormal_and_home_in_mid_clip() -> None:
    for name in CAMERAS:
        for share in (0.0, 0.3, 1.0):
            axes = camera_at(name, share)[1:4]
            np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(camera_at(name, 0.5), camera_at("static", 0.5), atol=1e-12)


def test_a_still_point_moves_in_view_as_the_camera_is_named() -> None:
    point = np.array([[0.3, 0.4, 0.2]])

    def ends(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        return tuple(project(camera_at(name, share), point, [0.5])[0] for share in (0.0, 1.0))  # type: ignore[return-value]

    first, last = ends("pan right")
    assert last[0] < first[0] - 0.5  # the camera looks to the right, so things slip to the left
    first, last = ends("pan left")
    assert last[0] > first[0] + 0.5
    first, last = ends("zoom in")
    assert last[2] / first[2] == pytest.approx(np.exp(0.44))
    first, last = ends("zoom out")
    assert last[2] / first[2] == pytest.approx(np.exp(-0.44))
    eyes = [camera_at("orbit right", share)[0] for share in (0.0, 1.0)]
    assert eyes[1][0] > eyes[0][0] + 1


def _driven(pushes: str, fps: float = 16, seconds: float = 1.0, **where: float) -> np.ndarray:
    scene = Scene((Thing("ball", "red", "small", "pushed", **where),), pushes=pushes)  # type: ignore[arg-type]
    return simulate(scene, round(fps * seconds) + 1, fps).positions[:, 0]


@pytest.mark.parametrize("name", PUSHES)
def test_a_push_drives_along_its_direction(name: str) -> None:
    path = _driven(name[0] * 2, seconds=0.125, x=0.1, z=-0.2)
    moved = path[-1] - path[0]
    assert moved[1] == 0
    (direction,) = pushes_of(name[0])
    t = 2 / PUSH_RATE
    way = PUSH / DRAG * (t - (1 - np.exp(-DRAG * t)) / DRAG)  # x'' = PUSH - DRAG x'
    np.testing.assert_allclose(moved[[0, 2]], direction * way, atol=2e-3)


def test_drag_stops_what_is_no_longer_pushed() -> None:
    path = _driven("rr", seconds=3.0, x=-1.0)
    assert np.abs(np.diff(path[-5:], axis=0)).max() < 1e-3
    assert path[-1, 0] > -1.0
    np.testing.assert_array_equal(path, _driven("rrnnnnnn", seconds=3.0, x=-1.0))


def test_walls_hold_and_throw_back() -> None:
    path = _driven("r" * 8 + "n" * 24, seconds=2.0, x=0.9)
    assert path[:, 0].max() <= WALLS[0, 1] + 1e-9
    assert path[-1, 0] < path[:, 0].max() - 0.05  # it came back from the wall
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = sample_pushed(rng, "any", seconds=6.0)
        assert len(scene.pushes) == 6 * PUSH_RATE
        places = simulate(scene, 97, 16).positions[:, 0][:, [0, 2]]
        assert (places >= WALLS[:, 0] - 1e-9).all()
        assert (places <= WALLS[:, 1] + 1e-9).all()


def test_pushes_do_not_depend_on_the_rate_of_frames() -> None:
    pushes = sample_pushed(np.random.default_rng(1), seconds=2.0).pushes
    np.testing.assert_allclose(_driven(pushes, 16, 2.0), _driven(pushes, 32, 2.0)[::2], atol=1e-9)
