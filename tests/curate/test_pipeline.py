"""Files to a manifest: nothing is lost, killed runs go on, engines agree, and no file takes the others with it."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.curate.films import cut_file, scene, write_film
from worldline.cli import main
from worldline.curate import pool
from worldline.curate.pipeline import curate
from worldline.curate.plan import CuratePlan
from worldline.curate.sources import expand
from worldline.errors import UserError
from worldline.records import read_manifest

pytest.importorskip("scenedetect")


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three films of two shots each, a copy, a damaged film, an empty one, and a file that is no film."""
    folder = tmp_path_factory.mktemp("footage")
    for i in range(3):
        write_film(folder / f"{i}.mp4", np.concatenate([scene(2 * i), scene(2 * i + 1, frames=30)]))
    (folder / "copy.mp4").write_bytes((folder / "1.mp4").read_bytes())
    cut_file(write_film(folder / "cut.mkv", scene(9)))
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "notes.md").write_text("about these films")
    return folder


def test_every_frame_lies_in_one_row(footage: Path, tmp_path: Path) -> None:
    sources, ignored = expand([str(footage)])
    assert [Path(name).name for name in ignored] == ["notes.md"]
    summary = curate(sources, tmp_path, workers=2)
    rows = read_manifest(tmp_path)
    assert len(rows) == len(summary.clips)
    assert {Path(row.source).name for row in rows} == {Path(source.name).name for source in sources}
    for source in sources:
        own = sorted((row for row in rows if row.source == source.name), key=lambda row: row.first_frame)
        assert own[0].first_frame == 0
        assert all(a.end_frame == b.first_frame and a.end == b.start for a, b in itertools.pairwise(own))
        media = own[-1].media
        assert own[-1].end_frame == (media.frames if media else 0)
    assert all(row.kept == (not row.reason) == all(d.kept for d in row.decisions) for row in rows)
    reasons = {Path(row.source).name: row.reason for row in rows if row.reason.startswith("probe")}
    assert reasons["cut.mkv"].startswith("probe: truncated")
    assert reasons["empty.mp4"].startswith("probe: empty")
    copies = [row for row in rows if row.duplicate_of]
    assert {row.id for row in copies} == {row.duplicate_of for row in copies}  # the same bytes have the same names
    assert len(summary.kept) == 6


def test_a_run_does_only_what_is_missing(footage: Path, tmp_path: Path) -> None:
    sources, _ = expand([str(footage)])
    first = curate(sources, tmp_path)
    parts = sorted((tmp_path / ".parts").iterdir())
    parts[0].unlink()
    again = curate(sources, tmp_path)
    assert again.done_before == len(sources) - 1
    assert again.sha256 == first.sha256
    other = curate(sources, tmp_path, CuratePlan(stages=()))
    assert other.done_before == 0


def test_workers_that_are_killed_change_nothing(footage: Path, tmp_path: Path) -> None:
    sources, _ = expand([str(footage)])
    expected = curate(sources, tmp_path / "calm").sha256
    command = [sys.executable, "-m", "worldline.cli", "curate", str(footage), "--json", "--workers", "2"]
    run = subprocess.Popen([*command, "--out", str(tmp_path / "stormy")], stdout=subprocess.PIPE)
    rng, killed = np.random.default_rng(0), 0
    while run.poll() is None:
        time.sleep(0.05)
        workers = _workers(run.pid)
        if workers and killed < 8 and rng.random() < 0.3:
            os.kill(int(rng.choice(workers)), signal.SIGKILL)
            killed += 1
    assert run.stdout is not None
    answer = json.loads(run.stdout.read())
    run.stdout.close()
    assert run.returncode == 0
    # A file whose process dies thrice is quarantined as crashed and done anew only if its part is removed.
    crashed = [part for part in (tmp_path / "stormy" / ".parts").iterdir() if "crashed" in part.read_text()]
    for part in crashed:
        part.unlink()
    assert (curate(sources, tmp_path / "stormy").sha256 if crashed else answer["sha256"]) == expected


def _workers(pid: int) -> list[int]:
    """Processes of single files: children of the fork server."""
    try:
        servers = psutil.Process(pid).children()
        return [worker.pid for server in servers for worker in server.children()]
    except psutil.NoSuchProcess:
        return []


def _swell(_: str) -> int:
    return len(bytearray(1 << 31))


def _spin(_: str) -> None:
    while True:
        pass


def _die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _answer(word: str) -> str:
    return word


@pytest.mark.parametrize(
    ("work", "fault"), [(_swell, "out of memory"), (_spin, "out of time"), (_die, "crashed"), (_answer, "")]
)
def test_what_a_file_may_use_is_bounded(work: Any, fault: str) -> None:
    caps = pool.Caps(memory=1 << 30, seconds=0.0, seconds_per_megabyte=0.0)
    outcomes = list(pool.run(work, [pool.Task("film", ("film",), 0)], 1, caps))
    assert [(outcome.key, outcome.fault) for outcome in outcomes] == [("film", fault)]


def test_addresses_lists_and_globs_name_files(footage: Path, tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/films/a.mp4", (footage / "0.mp4").read_bytes())
    try:
        listed = tmp_path / "films.txt"
        listed.write_text(f"# some\n{footage / '1.mp4'}\nmemory://films/a.mp4\n")
        sources, _ = expand([str(listed), str(footage / "[02].mp4")])
        assert [Path(source.name).name for source in sources] == ["0.mp4", "1.mp4", "2.mp4", "a.mp4"]
        assert [Path(s.name).name for s in expand(["memory://films"])[0]] == ["a.mp4"]
    finally:
        memory.rm("/films", recursive=True)
    for word in ("nowhere.mp4", "nowhere/*.mp4"):
        with pytest.raises(UserError, match="nowhere"):
            expand([word])


def test_transcoded_clips_hold_the_frames_of_their_rows(tmp_path: Path) -> None:
    from worldline.media.read import read_video

    film = np.concatenate([scene(20), scene(21)])
    write_film(tmp_path / "film.mp4", film)
    summary = curate(expand([str(tmp_path / "film.mp4")])[0], tmp_path / "out", to_h264=True)
    for clip in summary.kept:
        frames = read_video(tmp_path / "out" / clip.path).frames
        want = film[clip.first_frame : clip.end_frame]
        assert frames.shape == want.shape
        assert np.abs(frames.astype(float) - want).mean() < 6


def test_the_command_says_what_was_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    film = write_film(tmp_path / "film.mp4", scene(1))
    out = ["--out", str(tmp_path / "out")]
    for flags, said in (
        (["--set", "sharpnes.least=1"], "sharpness"),
        (["--set", "refuse=nosuch"], "nosuch"),
        (["--without", "motoin"], "motion"),
        (["--min-seconds", "5", "--max-seconds", "2"], "--min-seconds"),
        (["--workers", "0"], "--workers"),
        (["--recipe", "tiny"], "footage"),
    ):
        assert main(["curate", str(film), *out, *flags]) == 2
        assert said in capsys.readouterr().err
    assert main(["curate", str(film), *out, "--dry-run"]) == 0
    assert "1 files" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
