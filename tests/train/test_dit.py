"""DiT training: batches are pure, known cells are clean and cost nothing, the text learns too, resume is exact."""

import dataclasses
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from worldline.diffusion.timesteps import unshift
from worldline.dit.model import DiTConfig
from worldline.dit.patchify import patchify
from worldline.errors import UserError
from worldline.text import WordConfig
from worldline.train import dit as task
from worldline.train.plan import LoopPlan, OptimPlan, torch_rng
from worldline.train.precompute import ClipsPlan, cache_latents
from worldline.train.vae import export
from worldline.vae.latents import Whitening
from worldline.vae.model import MICRO, VideoVAE

SMALL = DiTConfig(width=32, depth=2, heads=2, text_width=16, rope_axes=(4, 6, 6), learned_positions=(8, 8, 8))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A plan with an untrained VAE on disk, its cached latents and their whitening."""
    folder = tmp_path_factory.mktemp("dit")
    torch.manual_seed(0)
    vae = VideoVAE(MICRO)
    export(MICRO, vae.state_dict(), folder / "run" / "vae")
    plan = task.DiTPlan(
        vae=str(folder / "run"),
        config=SMALL,
        text=WordConfig(words=(), heads=2),
        clips=ClipsPlan(count=12, frames=9, height=32, width=32, slice=12, workers=0),
        latents=str(folder / "latents"),
        batch=4,
        images=(0.2,),
        validate_clips=4,
        dtype="float32",
        optim=OptimPlan(lr=2e-3, warmup=3, ema=0.9),
        loop=LoopPlan(steps=20, checkpoint_every=5, log_every=5, validate_every=10, sample_every=10),
    )
    loaded = task.load_vae(plan.vae)
    latents = cache_latents(plan.clips, loaded, task.vae_hash(loaded), folder / "latents" / "train", None, print)
    return plan, latents, Whitening.fit(latents.mean, latents.std)


def test_batches_are_pure(setting):
    plan, latents, whitening = setting
    kinds = set()
    for step in range(20):
        one, two = (task.make_batch(plan, [latents], whitening, step).data for _ in range(2))
        assert one.prompts == two.prompts
        for name in ("noisy", "target", "timestep", "known", "mask", "coords", "cu_seqlens"):
            assert torch.equal(getattr(one, name), getattr(two, name))
        kinds.add((len(one.prompts), len(one.noisy)))
    assert kinds == {(4, 4 * 3 * 4), (12, 12 * 4)}  # clips of 3 latent frames, and as many single frames


def test_known_cells_are_clean_and_cost_nothing(setting):
    plan, _, _ = setting
    samples = [task.Sample(torch.randn(16, 3, 4, 4), torch.zeros(1, 3, 4, 4), range(3)) for _ in range(2)]
    samples[0].mask[:, :1] = 1
    times = unshift(torch.tensor([0.9, 0.5]), plan.shift)
    batch = task.assemble(plan, samples, times, ["a", "b"], torch_rng(0, 0, "test"))
    known = batch.mask.amin(-1) > 0
    assert known.sum() == 4
    assert torch.equal(batch.noisy[known], batch.known[known])
    assert (batch.timestep[known] == 0).all()
    torch.testing.assert_close(batch.timestep[~known].unique(), torch.tensor([0.5, 0.9]))
    answer = torch.where(known[:, None], 1e6, batch.target)  # wrong only where known

    class Oracle(torch.nn.Module):
        def forward(self, batch, device):
            return answer, None

    assert float(task.flow_loss(Oracle(), batch, CPU)[0]) == 0.0


def test_velocity_leads_from_noise_to_data(setting):
    plan, _, _ = setting
    clean = torch.randn(16, 3, 4, 4)
    times = unshift(torch.tensor([0.7]), plan.shift)
    batch = task.assemble(
        plan, [task.Sample(clean, torch.zeros(1, 3, 4, 4), range(3))], times, [""], torch_rng(0, 0, "test")
    )
    tokens, _ = patchify(clean, SMALL.patch)
    torch.testing.assert_close(batch.noisy - 0.7 * batch.target, tokens, rtol=1e-5, atol=1e-5)


def test_the_layout_is_taught_where_asked(setting):
    plan, latents, whitening = setting
    plan = replace(plan, layout=2.0)
    model = task.build(plan)
    first = task.make_batch(plan, [latents], whitening, 0).data
    assert first.layout.shape == (len(first.noisy), 12 * plan.config.cells)
    assert 0 < first.layout.max() <= 1
    loss, terms = task.flow_loss(model, first, CPU)
    torch.testing.assert_close(loss, terms["flow"] + 2 * terms["layout"])
    loss.backward()
    assert float(model.layout.out.weight.grad.abs().sum()) > 0
    assert task.make_batch(replace(plan, layout=0.0), [latents], whitening, 0).data.layout is None


def test_phases_move_the_timesteps_and_the_scenes(setting):
    plan, latents, whitening = setting
    plan = replace(plan, phases=(0, 10), time_mean=(0.0, 3.0), several=(1.0, 50.0), crossing=(1.0,))
    early, late = (
        [task.make_batch(plan, [latents], whitening, step).data for step in steps]
        for steps in (range(10), range(10, 20))
    )
    noise = [torch.stack([batch.timestep.mean() for batch in batches]).mean() for batches in (early, late)]
    assert noise[1] > noise[0] + 0.1
    drawn = task.draw(task.numpy_rng(0, 0, "test"), latents, 2000, 3.0)
    share = latents.several.mean()
    assert abs(latents.several[drawn].mean() - 3 * share / (1 + 2 * share)) < 0.04
    twice = task.draw(task.numpy_rng(0, 0, "test"), latents, 2000, 1.0, 2.0)
    share = latents.crossing.mean()
    assert abs(latents.crossing[twice].mean() - 2 * share / (1 + share)) < 0.04
    for wrong in ({"phases": (1, 2)}, {"several": ()}, {"time_mean": (0.0, 1.0, 2.0)}, {"shares": (1.0, 2.0)}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            task.plan_check(replace(plan, **wrong))


def test_a_model_without_masks_learns_from_nothing_known(setting):
    plan, *_ = setting
    bare = replace(plan, config=replace(plan.config, masks=False), vae="somewhere")
    with pytest.raises(UserError, match="nothing_known"):
        task.plan_check(bare)
    task.plan_check(replace(bare, nothing_known=(1.0,)))


def test_steps_mix_shapes_within_one_budget_of_tokens(setting, tmp_path):
    plan, latents, whitening = setting
    plan = replace(
        plan, shapes=("48x32x5", "32x32x65/4"), shares=(0.4, 0.3, 0.3), shape_clips=(12,), batch=8, base_tokens=12
    )
    vae = task.load_vae(plan.vae)
    caches = [latents] + [
        cache_latents(clips, vae, "x", tmp_path / str(i), None, print)
        for i, clips in enumerate(task.shapes_of(plan).values())
    ]
    lengths = set()
    for step in range(20):
        batch = task.make_batch(plan, caches, whitening, step).data
        assert len(batch.noisy) <= 8 * 12 == 96
        sizes = batch.cu_seqlens.diff().tolist()
        lengths |= set(sizes)
        changes = sum(a != b for a, b in pairwise(sizes))
        assert changes < len(set(sizes))  # equal sizes lie side by side
        assert len(batch.noisy) > 96 / 2
    assert lengths == {12, 16, 4, 6}  # clips of 3x2x2 and 2x2x3 tokens; 4 or 3 latent frames of 2x2; images
    plain = replace(plan, phases=(0, 30), plain=(0.0, 1.0), images=(0.0,))
    alike, mixed = (
        task.make_batch(plain, caches, whitening, step).data.cu_seqlens.diff().unique() for step in (30, 29)
    )
    assert alike.tolist() == [12]
    assert len(mixed) > 1
    farthest = max(int(task.make_batch(plan, caches, whitening, step).data.coords[:, 0].max()) for step in range(20))
    assert farthest > 4


def test_pushed_worlds_carry_what_drives_them(setting, tmp_path):
    plan, latents, whitening = setting
    plan = replace(plan, shapes=("32x32x65/4+pushes",), shares=(0.5, 0.5), shape_clips=(12,), images=(0.0,))
    with pytest.raises(UserError, match="actions"):
        task.plan_check(plan)
    plan = replace(plan, config=replace(plan.config, actions=task.PUSHES))
    task.plan_check(plan)
    (clips,) = task.shapes_of(plan).values()
    pushed = cache_latents(clips, task.load_vae(plan.vae), "x", tmp_path / "pushed", None, print)
    seen = 0
    for step in range(6):
        batch = task.make_batch(plan, [latents, pushed], whitening, step).data
        lengths = batch.cu_seqlens.diff().tolist()
        if batch.actions is None:
            assert set(lengths) == {12}
            continue
        assert batch.actions.shape == (len(batch.noisy), task.PUSHES + 1)
        for part, cells in zip(batch.actions.split(lengths), batch.mask.split(lengths), strict=True):
            assert part[:, -1].unique().numel() == 1
            if part[0, -1]:
                seen += 1
                frames = cells.amin(-1).view(-1, 4)[:, 0]  # of 2x2 tokens each
                assert frames[0] == 1
                assert (frames.diff() <= 0).all()
                assert (part.view(len(frames), 4, -1) == part.view(len(frames), 4, -1)[:, :1]).all()
            else:
                assert (part == 0).all()
        driving = batch
    assert seen > 3
    model = task.build(plan)
    torch.nn.init.normal_(model.dit.head.weight, std=0.1)  # zero at first, and with it every gradient
    task.flow_loss(model, driving, CPU)[0].backward()
    assert float(model.dit.actions.down.weight.grad.abs().sum()) > 0


def test_a_run_begins_with_the_weights_of_another(setting, tmp_path):
    plan, *_ = setting
    short = replace(plan, loop=replace(plan.loop, steps=1))
    task.train(short, tmp_path / "one", say=lambda line: None)
    start = task.load_parts(tmp_path / "one" / "model")
    model = task.build(replace(plan, seed=5, config=replace(plan.config, actions=task.PUSHES)))
    task.begin(model, start, task.load_vae(plan.vae))
    for name, value in start.dit.state_dict().items():
        assert torch.equal(model.dit.state_dict()[name], value)
    assert torch.equal(next(model.text.parameters()), next(start.text.parameters()))
    with pytest.raises(UserError, match="dit is of another shape"):
        task.begin(task.build(replace(plan, config=replace(SMALL, depth=3))), start, task.load_vae(plan.vae))
    with pytest.raises(UserError, match="another VAE"):
        task.begin(model, start, VideoVAE(MICRO))


def test_shapes_are_read(setting):
    plan, *_ = setting
    shapes = ("48x32x5", "32x32x65/4", "32x32x5@64x48", "32x32x65/4+pushes")
    tall, long, cut, pushed = task.shapes_of(replace(plan, shapes=shapes)).values()
    assert (tall.width, tall.height, tall.frames, tall.groups, tall.crop) == (48, 32, 5, 0, ())
    assert (long.frames, long.groups) == (65, 4)
    assert (cut.width, cut.height, cut.frames, cut.crop) == (64, 48, 5, (32, 32))
    assert [clips.pushed for clips in (tall, long, cut, pushed)] == [False, False, False, True]
    counts = replace(plan, shapes=shapes[:2], shape_clips=(7, 9))
    assert [clips.count for clips in task.shapes_of(counts).values()] == [7, 9]
    with pytest.raises(UserError, match="shape_clips"):
        task.shapes_of(replace(counts, shape_clips=(1, 2, 3)))
    assert len({clips.seed for clips in (tall, long, cut)}) == 3
    for wrong in ("48x32", "48x32x5/", "64x64x5@32x64", "ax32x5"):
        with pytest.raises(UserError, match="shapes"):
            task.shapes_of(replace(plan, shapes=(wrong,)))


def test_a_model_of_excerpts_knows_its_window(setting):
    plan, _, whitening = setting
    assert "window" not in task.parts(plan, task.build(plan), VideoVAE(MICRO), whitening).defaults
    longer = replace(plan, shapes=("32x32x65/4",), shares=(0.5, 0.5))
    assert task.parts(longer, task.build(longer), VideoVAE(MICRO), whitening).defaults["window"] == 4


def test_larger_samples_are_noised_more(setting):
    plan, _, _ = setting
    plan = replace(plan, base_tokens=4)
    samples = [task.Sample(torch.zeros(16, t, 4, 4), torch.zeros(1, t, 4, 4), range(t)) for t in (1, 4)]
    batch = task.assemble(plan, samples, torch.tensor([0.5, 0.5]), ["", ""], torch_rng(0, 0, "test"))
    small, large = (float(x) for x in batch.timestep.unique())
    assert small == pytest.approx(3 / 4)
    assert large == pytest.approx(6 / 7)  # four times the tokens, twice the shift


def test_prompts_are_dropped_at_the_stated_rate(setting):
    plan, latents, _ = setting
    rng = task.numpy_rng(0, 0, "test")
    empty = sum(task.prompt_of(plan, latents.scenes[0], rng) == "" for _ in range(2000))
    assert abs(empty / 2000 - plan.drop_text) < 0.03


def test_the_text_encoder_learns_through_the_velocity(setting):
    plan, latents, whitening = setting
    model = task.build(plan)
    torch.nn.init.normal_(model.dit.head.weight, std=0.1)  # it starts at zero, where no gradient passes
    loss, _ = task.flow_loss(model, task.make_batch(plan, [latents], whitening, 1).data, CPU)
    loss.backward()
    assert float(model.text.word.weight.grad.abs().sum()) > 0


def test_training_learns_resumes_exactly_and_exports(setting, tmp_path):
    plan, _, _ = setting
    shown = []

    def sample(step, parts, folder):
        shown.append((step, next(parts.dit.parameters()).dtype))

    whole = task.train(plan, tmp_path / "whole", callbacks={"sample": sample}, say=lambda line: None)
    assert shown == [(10, torch.float32), (20, torch.float32)]
    short = replace(plan, loop=dataclasses.replace(plan.loop, minutes=1e-9))
    assert not task.train(short, tmp_path / "cut", say=lambda line: None).finished
    resumed = task.train(plan, tmp_path / "cut", resume=True, say=lambda line: None)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert (tmp_path / "whole" / "model" / "model_index.json").exists()


def test_mistakes_are_named(setting):
    plan, _, _ = setting
    with pytest.raises(UserError, match="vae: name the folder"):
        task.plan_check(replace(plan, vae=""))
    with pytest.raises(UserError, match="styles"):
        task.plan_check(replace(plan, styles=(1.0,)))
    with pytest.raises(UserError, match="'scores' is unknown"):
        task.hooks_of(plan.loop, {"scores": lambda *a: None})
