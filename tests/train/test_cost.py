"""What a run would take: counted on models that are built, against torch's own counter and tensors that exist."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldline.cli import main
from worldline.cli.models import in_folders
from worldline.data.fit import FitPlan
from worldline.dit.model import DiT, DiTConfig
from worldline.dit.told import Told
from worldline.errors import UserError
from worldline.nn.hollow import bare
from worldline.recipes import base, small, tiny, xl, xxl
from worldline.train import cost
from worldline.train.dit import TEXT_TOKENS, build
from worldline.train.dit_plan import DiTPlan
from worldline.train.ema import EMA
from worldline.train.optim import Optimizer
from worldline.train.plan import LoopPlan, OptimPlan
from worldline.train.vae import VAEPlan
from worldline.vae.model import MICRO

SMALL = DiTConfig(width=64, depth=3, heads=2, text_width=64, rope_axes=(8, 12, 12), learned_positions=(0, 0, 0))
ONE = cost.Machine()


@pytest.mark.parametrize("recipe", [tiny, small])
def test_parameters_are_those_of_the_built_model(recipe) -> None:
    stage = cost.estimate([recipe.dit()], ONE).stages[0]
    with bare():
        model = build(recipe.dit())
    assert stage.parameters["transformer"] == sum(p.numel() for p in model.dit.parameters())
    assert stage.parameters["text"] == sum(p.numel() for p in model.text.parameters())


@pytest.mark.parametrize(("recipe", "billions"), [(base, 0.31), (xl, 1.37), (xxl, 10.9)])
def test_stages_follow_from_each_other(recipe, billions: float) -> None:
    stages = cost.estimate(recipe.dit(), cost.Machine(gpus=64)).stages
    assert [stage.name for stage in stages] == ["images", "short", "sharp", "long"]
    tokens = [stage.tokens for stage in stages]
    assert tokens == sorted(tokens)
    assert stages[0].sample.frames == 1
    assert tokens[-1] == 32_760  # 81 frames of 480x832: what Wan paints
    for plan in recipe.dit():
        with bare():
            count = sum(p.numel() for p in DiT(replace(plan.config, text_width=384)).parameters())
        assert count / 1e9 == pytest.approx(billions, rel=0.01)
        assert plan.fit.min_frames == 1  # pictures and clips together
        assert plan.nothing_known[0] < 1  # masks among them


def test_a_stage_begins_with_the_weights_of_the_one_before() -> None:
    chain = list(in_folders(base.dit()[:3], "base", None))
    assert [str(out) for _, out in chain] == ["runs/base/images", "runs/base/short", "runs/base/sharp"]
    assert [plan.start for plan, _ in chain] == ["", "runs/base/images/model", "runs/base/short/model"]
    alone = DiTPlan(name="alone")
    assert [(plan, str(out)) for plan, out in in_folders([alone], "x", None)] == [(alone, "runs/alone")]


def test_operations_are_those_that_torch_counts() -> None:
    """Of a forward pass; what is left out (times, modulation) acts once per sample."""
    plan = DiTPlan(config=SMALL, batch=2, loop=LoopPlan(steps=5))
    stage = cost.estimate([plan], ONE).stages[0]
    assert stage.tokens == 80
    model, samples = DiT(SMALL), 2
    cu, words = torch.arange(samples + 1) * 80, torch.arange(samples + 1) * TEXT_TOKENS
    told = Told(torch.randn(samples * TEXT_TOKENS, SMALL.text_width), words)
    tokens, coords = torch.randn(samples * 80, SMALL.token_width), torch.zeros(samples * 80, 3, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, coords, cu, torch.full((samples * 80,), 0.5), told).sum().backward()
    assert stage.flops / 5 == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("optim", [OptimPlan(), OptimPlan("muon", ema_widths=(0.05, 0.1))])
def test_memory_beside_activations_is_what_the_optimizer_holds(optim: OptimPlan) -> None:
    plan = DiTPlan(config=SMALL, dtype="bfloat16", optim=optim)
    model = build(plan)
    masters = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = Optimizer(model, masters, optim)
    ema = EMA(optimizer, optim.ema, optim.ema_widths)
    memory = cost.estimate([plan], ONE).stages[0].memory
    lesson = sum(p.numel() for p in model.layout.parameters())  # a head that is only trained with a lesson
    fp32 = 4 * (sum(p.numel() for p in model.parameters()) - lesson)
    assert memory.optimizer == sum(4 * value.numel() for value in optimizer.moments().values()) - 8 * lesson
    assert (memory.optimizer == 2 * fp32) == (optim.kind == "adamw")
    averages = [sum(4 * value.numel() for value in average.values()) - 4 * lesson for average in ema.averages.values()]
    assert memory.ema == sum(averages) == fp32 * len(averages)
    assert memory.weights == memory.gradients == fp32 + fp32 // 2


def test_activations_are_those_of_the_whole_pass() -> None:
    """Four small passes foretell a deeper and longer one, to the byte but for tables that do not grow."""
    found, checkpointed = cost.dit_activations(SMALL, 4096, "bfloat16")
    _, peak = cost._traced(SMALL, 4096, "bfloat16")
    assert found == pytest.approx(peak, rel=0.01)
    assert checkpointed < 0.6 * found


def test_weights_spread_over_ranks_and_samples_over_those_that_share_them() -> None:
    plan = DiTPlan(config=SMALL, data="shards", fit=FitPlan(pixels=256 * 256, max_frames=17), batch=64)
    one, many = (cost.estimate([plan], cost.Machine(gpus=n)) for n in (1, 8))
    assert many.stages[0].memory.optimizer == one.stages[0].memory.optimizer // 8
    assert many.seconds(many.stages[0]) == pytest.approx(one.seconds(one.stages[0]) / 8)
    tokens = one.stages[0].tokens
    assert one.stages[0].micro * one.stages[0].passes >= 64 * tokens
    assert many.stages[0].micro * many.stages[0].passes >= 8 * tokens
    split = cost.estimate([plan], cost.Machine(gpus=8, context=8)).stages[0]
    assert split.micro * split.passes * 8 >= 64 * tokens
    crowded = cost.estimate([replace(plan, batch=4)], cost.Machine(gpus=8)).stages[0]
    assert any("idle" in note for note in crowded.notes)


def test_an_autoencoder_is_counted_as_well() -> None:
    plan = VAEPlan(config=MICRO, batch=4, loop=LoopPlan(steps=10))
    stage = cost.estimate([plan], ONE).stages[0]
    assert stage.flops == 3 * 4 * 10 * cost.vae_flops(plan)
    assert stage.memory.activations > 4 * 3 * 17 * 64 * 64 * 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gpus": 0}, "--gpus 0"),
        ({"mfu": 40}, "--mfu 40"),
        ({"gpus": 8, "shard": 3}, "--shard 3 does not divide --gpus 8; 2 does"),
        ({"gpus": 8, "context": 16}, "--context 16 does not divide --gpus 8; 8 does"),
    ],
)
def test_a_machine_that_cannot_be_is_named(values: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        cost.Machine(**values)  # type: ignore[arg-type]


def test_the_command_prices_a_recipe_without_a_gpu(capsys) -> None:
    words = ["train", "dit", "--recipe", "base", "--dry-run", "--gpus", "64", "--mfu", "0.5", "--price", "2.5"]
    assert main([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["stages"]) == len(data["plans"]) == 4
    total = data["total"]
    assert total["seconds"] == pytest.approx(total["flops"] / (64 * 989e12 * 0.5))
    assert total["price"] == pytest.approx(2.5 * total["gpu_hours"])
    assert main([*words, "--stage", "long"]) == 0
    assert "32,760 tokens" in capsys.readouterr().out
    assert main([*words, "--stage", "film"]) == 2
    assert "images, short, sharp, long" in capsys.readouterr().err
