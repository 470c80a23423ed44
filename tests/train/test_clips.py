"""Clips of one's own: shards resume and hold what raw clips give, runs train on either, the doctor tells it before."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.media.clips import write_foreign
from worldline.cli import main
from worldline.curate.examine import examine as curated
from worldline.curate.plan import CuratePlan
from worldline.curate.shots import Trim
from worldline.data import shards as shards_module
from worldline.data.dataset import open_dataset
from worldline.data.fit import FitPlan, fit, stretched
from worldline.data.loader import Loader
from worldline.data.shards import Shards, walk
from worldline.dit.model import DiTConfig
from worldline.errors import UserError
from worldline.media.write import write_video
from worldline.records import Clip, Example, Media
from worldline.text import MiniLM, WordConfig, pretrained
from worldline.train import clips, dit
from worldline.train.dit_plan import DiTPlan
from worldline.train.doctor import examine, leaks
from worldline.train.doctor_report import report
from worldline.train.flow import Batch, Sample, assemble, flow_loss
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.vae import export, vae_hash
from worldline.train.vae import load as load_vae
from worldline.vae.model import MICRO, VideoVAE
from worldline.worlds.render import render
from worldline.worlds.scene import sample_scene

pytest.importorskip("pyarrow")
SMALL = DiTConfig(width=32, depth=2, heads=2, text_width=16, rope_axes=(4, 6, 6), learned_positions=(8, 8, 8))
SIZES = [(32, 32, 9), (48, 32, 9), (64, 48, 20), (32, 64, 5), (32, 32, 9), (40, 40, 1)]  # width, height, frames


@pytest.fixture(autouse=True)
def _all_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which files are validated on depends on their paths, and these change from run to run."""
    monkeypatch.setattr(clips, "UNSEEN", 1 << 60)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips with captions, one without, one that is no video."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for i, (width, height, frames) in enumerate(SIZES):
        pixels = rng.integers(0, 255, (frames, height // 8, width // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(folder / f"clip{i}.mp4", pixels, 8)
        (folder / f"clip{i}.txt").write_text(f"a red ball and {i} blue cubes")
    write_video(folder / "silent.mp4", 255 - pixels, 8)
    (folder / "broken.mp4").write_bytes(b"\0" * 100)
    return folder


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> DiTPlan:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    export(MICRO, VideoVAE(MICRO).state_dict(), folder / "vae")
    return DiTPlan(
        vae=str(folder),
        fit=FitPlan(pixels=64 * 32, max_frames=9, fps=8.0, min_side=16),
        config=SMALL,
        text=WordConfig(words=(), heads=2),
        batch=3,
        dtype="float32",
        optim=OptimPlan(lr=2e-3, warmup=3, ema=0.9),
        loop=LoopPlan(steps=4, checkpoint_every=2, log_every=2, validate_every=2, sample_every=0),
    )


def opened(dataset: Path) -> list[Example]:
    return open_dataset(dataset, lambda source, reason: None)


@pytest.fixture(scope="module")
def written(dataset: Path, plan: DiTPlan, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("shards") / "out")
    clips.shards_of(opened(dataset), plan, out, 3)
    return out


def test_long_clips_are_cut_and_nothing_is_lost(dataset: Path, plan: DiTPlan) -> None:
    cut = stretched(opened(dataset), plan.fit)
    parts = [e.clip for e in cut if e.clip.source.endswith("clip2.mp4")]
    assert [(c.first_frame, c.end_frame) for c in parts] == [(0, 10), (10, 20)]
    assert len({c.id for c in parts}) == 2


@pytest.mark.parametrize(
    ("size", "frames", "lands", "scaled"),
    [
        ((32, 32), 9, "32x32x9", (32, 32)),
        ((1280, 720), 9, "48x32x9", (57, 32)),
        ((100, 40), 12, "64x16x9", (64, 26)),
        ((40, 40), 1, "32x32x1", (32, 32)),
    ],
)
def test_where_clips_land(size: tuple[int, int], frames: int, lands: str, scaled: tuple[int, int]) -> None:
    media = Media("mp4", "h264", "yuv420p", 8, *size, 8.0, False, frames, frames / 8, 0.0, 0, "", "")
    clip = Clip("x", "x.mp4", "s", 0, frames, 0.0, frames / 8, True, media=media)
    found = fit(clip, FitPlan(pixels=64 * 32, max_frames=9, fps=8.0, min_side=16))
    assert (found.name, found.scaled, found.reason) == (lands, scaled, "")
    assert "no caption" in fit(clip, FitPlan(), captions=0).reason
    assert "too small" in fit(clip, FitPlan(pixels=200, fps=8.0)).reason
    assert "too short" in fit(clip, FitPlan(min_frames=33, fps=8.0)).reason


def test_shards_say_what_became_of_every_clip(dataset: Path, written: str) -> None:
    rows = shards_module.of_parquet((Path(written) / "index.parquet").read_bytes())
    assert len(rows) == 8  # seven files, one of them twice as long as a sample
    assert [row.reason for row in rows if row.shard < 0] == ["no caption: run `worldline caption`"]
    held = Shards(written)
    assert len(held) == 7
    by_key = dict(walk(written))
    for number, row in enumerate(held.rows):
        members = by_key[row.id]
        assert np.array_equal(np.load(io.BytesIO(members["latents.npy"])), held.latents(number))
        assert members["txt"].decode().splitlines() == row.captions
        assert json.loads(members["json"])["source"] == row.source
        assert held.latents(number).shape == (16, row.frames, row.height, row.width)


def test_work_that_stopped_goes_on(
    dataset: Path, plan: DiTPlan, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = shards_module._tar, []

    def tar(packed: object, number: int) -> object:
        if number == 2 and len(made) < 3:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(number)
        return real(packed, number)  # type: ignore[arg-type]

    monkeypatch.setattr(shards_module, "_tar", tar)
    with pytest.raises(KeyboardInterrupt):
        clips.shards_of(opened(dataset), plan, str(tmp_path), 3)
    clips.shards_of(opened(dataset), plan, str(tmp_path), 3)
    assert made == [0, 1, "killed", 2]
    for file in Path(written).iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UserError, match="per_shard 3, not 4"):
        clips.shards_of(opened(dataset), plan, str(tmp_path), 4)


def test_the_same_clips_twice_are_one(dataset: Path, plan: DiTPlan, written: str, tmp_path: Path) -> None:
    twice = [*opened(dataset), *reversed(opened(dataset))]
    clips.shards_of(twice, plan, str(tmp_path), 3)
    assert (tmp_path / "index.parquet").read_bytes() == (Path(written) / "index.parquet").read_bytes()


def test_shards_lie_behind_addresses_as_well(dataset: Path, plan: DiTPlan, written: str) -> None:
    pytest.importorskip("fsspec")
    clips.shards_of(opened(dataset), plan, "memory://data/out", 3)
    far, near = Shards("memory://data/out"), Shards(written)
    assert [row.id for row in far.rows] == [row.id for row in near.rows]
    assert np.array_equal(far.latents(4), near.latents(4))


def test_raw_clips_and_shards_give_the_same_batches(dataset: Path, plan: DiTPlan, written: str) -> None:
    vae = load_vae(plan.vae)
    mark = vae_hash(vae)
    near = Loader(clips.source_of(replace(plan, data=written), vae, mark), 60, 0)
    raw = Loader(clips.source_of(replace(plan, data=str(dataset)), vae, mark), 60, 0)
    for step in (0, 3, 1):
        for one, other in zip(near.batch(step), raw.batch(step), strict=True):
            assert (one.number, one.text) == (other.number, other.text)
            np.testing.assert_allclose(one.latents, other.latents, atol=2e-3)
    with pytest.raises(UserError, match="holds latents of VAE"):
        clips.source_of(replace(plan, data=written), vae, "another")


@pytest.mark.parametrize("kind", ["shards", "raw"])
def test_a_run_learns_from_clips_and_resumes(
    dataset: Path, plan: DiTPlan, written: str, tmp_path: Path, kind: str
) -> None:
    plan = replace(plan, data=written if kind == "shards" else str(dataset))
    whole = dit.train(plan, tmp_path / "whole")
    half = replace(plan, loop=replace(plan.loop, steps=2))
    dit.train(replace(half, optim=replace(plan.optim, schedule="constant")), tmp_path / "half")
    assert whole.finished
    assert (tmp_path / "whole" / "model" / "model_index.json").exists()
    again = dit.train(plan, tmp_path / "whole", resume=True)
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())
    records = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records if "loss" in record)


def test_packed_gradients_are_those_of_each_sample_alone(dataset: Path, plan: DiTPlan, written: str) -> None:
    """The loss is a mean over cells, so packed = the mean of the single ones weighted by their cells."""
    torch.manual_seed(0)
    model = dit.build(plan).double()
    for linear in (model.dit.head, model.dit.modulation, model.dit.final):
        torch.nn.init.normal_(linear.weight, std=0.1)
    model.eval()
    drawn = Loader(Shards(written), 120, 0).batch(0)
    latents = sorted((torch.from_numpy(d.latents.astype(np.float64)) for d in drawn), key=lambda x: x.shape)
    samples = [Sample(x, torch.zeros(1, *x.shape[1:], dtype=x.dtype), range(x.shape[1])) for x in latents]
    assert len({s.clean.shape for s in samples}) > 1
    prompts = [f"a red ball {'rolls ' * i}" for i in range(len(samples))]
    times = torch.linspace(0.2, 0.8, len(samples), dtype=torch.float64)
    packed = assemble(plan, samples, times, prompts, torch.Generator().manual_seed(1))
    packed = dataclasses.replace(packed, **{n: getattr(packed, n).double() for n in ("noisy", "target", "timestep")})

    def gradients(batch: Batch) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss, _ = flow_loss(model, batch, torch.device("cpu"))
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = gradients(packed)
    bounds = packed.cu_seqlens.tolist()
    total: dict[str, torch.Tensor] = {}
    for i, (a, b) in enumerate(itertools.pairwise(bounds)):
        alone = dataclasses.replace(
            packed, prompts=[prompts[i]], cu_seqlens=torch.tensor([0, b - a]),
            **{n: getattr(packed, n)[a:b] for n in ("noisy", "target", "coords", "timestep", "known", "mask")},
        )  # fmt: skip
        for name, value in gradients(alone).items():
            total[name] = total.get(name, torch.zeros_like(value)) + value * (b - a) / bounds[-1]
    assert max(float(value.abs().max()) for value in total.values()) > 1e-3
    for name, value in together.items():
        torch.testing.assert_close(value, total[name], atol=1e-5, rtol=1e-5)


def test_the_doctor_says_where_clips_land(dataset: Path, plan: DiTPlan, tmp_path: Path) -> None:
    broken: list[tuple[str, str]] = []
    examples = open_dataset(dataset, lambda source, reason: broken.append((source, reason)))
    found = examine(examples, plan, broken, ranks=2)
    data = json.loads(json.dumps(found.as_dict()))
    assert (data["clips"], data["kept"], data["repeated"]) == (9, 7, 0)
    assert data["reasons"] == {"no caption": 1, "unreadable file": 1}
    assert data["buckets"]["32x32x9"] == 2
    assert sum(data["buckets"].values()) == 7
    assert data["captions"]["captions"] == 7
    assert data["step"]["activation_bytes"] > 0
    report(found, tmp_path / "report.html", "test")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "no caption" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_leaks_into_the_test_set_are_found_and_other_worlds_are_none(tmp_path: Path) -> None:
    """500 pairs of worlds, and three of the training set again: at half the size, brighter, through another codec."""
    pytest.importorskip("cv2")
    worlds = [render(sample_scene(np.random.default_rng(seed)), 9, 64, 64).frames for seed in range(45)]
    again = [worlds[0][:, ::2, ::2], np.clip(worlds[1] * 1.2, 0, 250).astype(np.uint8), worlds[2]]
    films = [*worlds, *again, worlds[3]]
    bare = CuratePlan(refuse=(), shots=None, trim=Trim(0.0), stages=())
    codecs = {47: ("webm", "libvpx-vp9")}
    found = []
    for i, film in enumerate(films):
        suffix, codec = codecs.get(i, ("mp4", "libx264"))
        path = write_foreign(tmp_path / f"{i}.{suffix}", film, codec)
        ((clip, _),) = curated(path, str(path), bare)
        found.append(Example(clip))
    train, tests = found[:20], found[20:]
    said = [(Path(x.clip.source).stem, Path(x.test.source).stem, x.how) for x in leaks(train, tests)]
    assert said == [
        ("0", "45", "shows the same"),
        ("1", "46", "shows the same"),
        ("2", "47", "shows the same"),
        ("3", "48", "the same file"),
    ]


def _random_minilm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MiniLM of one layer, 24 channels and single letters, in place of the package."""
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    width, layer = 24, "encoder.layer.0."
    shapes = {f"embeddings.{kind}_embeddings.weight": (128, width) for kind in ("word", "position", "token_type")}
    square = [f"{layer}attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
    wide = {f"{layer}intermediate.dense": (48, width), f"{layer}output.dense": (width, 48)}
    for name, shape in {**dict.fromkeys(square, (width, width)), **wide}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("embeddings", f"{layer}attention.output", f"{layer}output"):
        shapes |= {f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)}
    torch.manual_seed(5)
    save_file({name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}, folder / "model.safetensors")
    monkeypatch.setattr(pretrained, "_minilm_folder", lambda: folder)
    for name, value in (("width", width), ("layers", 1), ("heads", 2)):
        monkeypatch.setattr(MiniLM, name, value)


def test_shards_hold_the_states_that_a_frozen_encoder_makes_on_the_fly(
    dataset: Path, plan: dit.DiTPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To half precision; and training does not make them again."""
    _random_minilm(tmp_path / "minilm", monkeypatch)
    frozen = replace(plan, encoder="minilm")
    clips.shards_of(opened(dataset), frozen, str(tmp_path / "shards"), 3)
    model, fresh = dit.build(frozen), MiniLM()
    monkeypatch.setattr(model.text.encoder, "encode", lambda prompts: pytest.fail(f"made again: {prompts}"))
    learning = replace(frozen, data=str(tmp_path / "shards"), batch=100, drop_text=0.0)
    feed = dit.feed_of(learning, load_vae(plan.vae), torch.device("cpu"), tmp_path / "run", print)
    batch = feed.pack(0, 0).data
    assert len(set(batch.prompts)) == 6  # a caption for each file; a long one is two samples
    model(batch, torch.device("cpu"))
    for prompt in batch.prompts:
        states = model.text.encode([prompt]).states
        assert len(states) > 10
        assert torch.equal(states, fresh.encode([prompt]).states.half().float())


def test_a_dataset_that_would_hardly_be_learned_fails(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["doctor", str(dataset), "--json", "--set", "fit.min_frames=9", "--set", "fit.min_side=16"]
    assert main([*few, "--min-kept", "0.9"]) == 1
    said = capsys.readouterr()
    assert "less than --min-kept 0.9" in said.err
    assert json.loads(said.out)["kept_share"] < 0.9
    assert main([*few, "--min-kept", "0.1"]) == 0
