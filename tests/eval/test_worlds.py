"""The report counts what the verifier says, no more: rates, intervals, groups, floor and ceilings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from worldline.errors import UserError
from worldline.eval.report import Rate, Report, Verdict
from worldline.eval.worlds import FLOOR, MODEL, Case, evaluate, renders, sample_cases
from worldline.media.write import write_video
from worldline.worlds.captions import caption
from worldline.worlds.scene import Scene, Thing, is_heldout


class Labelled:
    """A verifier for clips whose grey level is the number of the scene they show."""

    def __init__(self, cases: list[Case]):
        self.scenes = [case.scene for case in cases]

    def read(self, frames: np.ndarray, fps: float) -> int:
        assert fps == 16
        return round(float(frames.mean()))

    def judge(self, reading: int, scene: Scene) -> dict[str, bool]:
        shown = self.scenes[reading]
        return {
            "count": shown.count == scene.count,
            "colour": [t.colour for t in shown.things] == [t.colour for t in scene.things],
            "shape": [t.shape for t in shown.things] == [t.shape for t in scene.things],
            "size": [t.size for t in shown.things] == [t.size for t in scene.things],
        }


def clip_of(index: int) -> np.ndarray:
    return np.full((3, 16, 16, 3), index, np.uint8)


def test_wilson_interval_against_published_values() -> None:
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for right, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                                    (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]:  # fmt: skip
        assert Rate(right, total).interval == pytest.approx((low, high), abs=1e-4)
    assert Rate(20, 20).interval[1] == 1
    assert Rate(0, 0).interval == (0, 1)


def test_wilson_interval_covers_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    draws = rng.binomial(60, 0.9, 4000)
    inside = [low <= 0.9 <= high for low, high in (Rate(int(k), 60).interval for k in draws)]
    assert 0.93 < np.mean(inside) < 0.97


def test_cases_are_repeatable_and_half_held_out() -> None:
    cases = sample_cases(20, seed=3)
    assert cases == sample_cases(20, seed=3)
    assert cases[:10] == sample_cases(10, seed=3)
    assert cases != sample_cases(20, seed=4)
    assert [case.seen for case in cases] == [True, False] * 10
    assert all(case.seen != is_heldout(case.scene) for case in cases)
    with pytest.raises(UserError, match="use 2 or more"):
        sample_cases(1, seed=0)


def test_right_videos_are_right_and_the_floor_is_not() -> None:
    cases = sample_cases(60, seed=0)
    report = evaluate([clip_of(i) for i in range(60)], cases, Labelled(cases))
    everything = report.rates(MODEL)["everything"]
    assert everything["all"] == Rate(60, 60)
    assert report.rates(FLOOR)["everything"]["all"].share < 0.1
    assert report.failures == []
    assert report.failures_sheet() is None


def test_known_mistakes_are_counted_in_their_groups() -> None:
    cases = sample_cases(40, seed=1)
    shown = list(range(40))
    shown[0], shown[1] = 2, 3  # one seen and one unseen video show another scene
    verifier = Labelled(cases)
    report = evaluate([clip_of(i) for i in shown], cases, verifier, others={"ceiling": map(clip_of, range(40))})
    rates = report.rates(MODEL)
    expected = [all(ok for a, ok in verifier.judge(shown[i], cases[i].scene).items() if cases[i].asks_for(a))
                for i in range(40)]  # fmt: skip
    assert rates["everything"]["all"].right == sum(expected) <= 39
    assert rates["seen compositions"]["all"] == Rate(sum(expected[::2]), 20)
    assert rates["unseen compositions"]["all"] == Rate(sum(expected[1::2]), 20)
    by_objects = [rates[g]["all"] for g in rates if g.endswith(("object", "objects"))]
    assert sum(r.total for r in by_objects) == 40
    assert sum(r.right for r in by_objects) == sum(expected)
    assert report.rates("ceiling")["everything"]["all"] == Rate(40, 40)
    assert len(report.failures) == 40 - sum(expected)
    assert report.failures_sheet() is not None


def test_only_what_the_prompt_says_is_asked() -> None:
    ball = Thing("ball", "red", "small", motion="right", speed="fast")
    scene = Scene((ball,))
    rng = np.random.default_rng(0)
    assert Case(caption(scene, rng, "dense"), scene).asks_for("size")
    assert not Case("a red ball rolls to the right", scene).asks_for("size")
    assert not Case("a red ball rolls to the right", scene).asks_for("speed")
    assert Case(caption(scene, rng, "short"), scene).asks_for("speed")
    two = Scene((ball, Thing("cube", "blue", "large")))
    assert not Case("a small red ball rolls right past a blue cube", two).asks_for("size")
    assert Case("a small red ball rolls right past a huge blue cube", two).asks_for("size")
    assert Case("anything", scene).asks_for("colour")


def test_files_are_read_at_their_own_rate(tmp_path: Path) -> None:
    cases = sample_cases(4, seed=0)
    for i in range(4):
        write_video(tmp_path / f"{i}.mp4", clip_of(i), 16)
    report = evaluate([tmp_path / f"{i}.mp4" for i in range(4)], cases, Labelled(cases), fps=99)
    assert report.rates(MODEL)["everything"]["count"] == Rate(4, 4)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_one_video_per_prompt(count: int) -> None:
    cases = sample_cases(4, seed=0)
    with pytest.raises(UserError, match="give one for each"):
        evaluate([clip_of(0)] * count, cases, Labelled(cases))


def report() -> Report:
    verdicts = [Verdict("a", i % 2 == 0, 1 + i % 3, {"colour": i > 2, "camera": True}) for i in range(12)]
    return Report({MODEL: verdicts, FLOOR: verdicts[:3]})


def test_table_says_the_figures() -> None:
    lines = report().table().splitlines()
    assert lines[0].split() == ["n", "colour", "camera", "all"]
    assert lines[1].startswith("model")
    assert "75.0 [47-91]" in lines[1]
    assert "0.0 [0-56]" in next(line for line in lines if line.startswith("floor"))


def test_json_holds_every_verdict_and_is_strict() -> None:
    data = json.loads(report().to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    rate = data["rates"][MODEL]["everything"]["all"]
    assert (rate["right"], rate["total"]) == (9, 12)
    assert len(data["verdicts"][MODEL]) == 12
    assert not math.isnan(rate["share"])


def test_report_is_saved_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = [path.name for path in report().save(tmp_path / "deep" / "er")]
    assert names == ["report.txt", "report.json", "report.png"]
    assert (tmp_path / "deep/er/report.png").read_bytes().startswith(b"\x89PNG")


def test_renders_are_the_truth_of_their_cases() -> None:
    cases = sample_cases(2, seed=0)
    clips = list(renders(cases, frames=5, height=16, width=24))
    assert [clip.shape for clip in clips] == [(5, 16, 24, 3)] * 2
    assert not np.array_equal(clips[0], clips[1])
