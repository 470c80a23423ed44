"""Training the diffusion transformer: it learns, the text too, and resumes exactly."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from worldline.checkpoints.folder import load_parts
from worldline.errors import UserError
from worldline.train.dit import begin, build, parts, train
from worldline.train.dit_plan import PUSHES
from worldline.train.flow import flow_loss
from worldline.train.vae import load as load_vae
from worldline.train.worlds import make_batch
from worldline.vae.model import MICRO, VideoVAE

CPU = torch.device("cpu")


def test_a_run_begins_with_the_weights_of_another(setting, tmp_path):
    plan, *_ = setting
    short = replace(plan, loop=replace(plan.loop, steps=1))
    train(short, tmp_path / "one", say=lambda line: None)
    start = load_parts(tmp_path / "one" / "model")
    model = build(replace(plan, seed=5, config=replace(plan.config, actions=PUSHES)))
    begin(model, start, load_vae(plan.vae))
    for name, value in start.dit.state_dict().items():
        assert torch.equal(model.dit.state_dict()[name], value)
    assert torch.equal(next(model.text.parameters()), next(start.text.parameters()))
    with pytest.raises(UserError, match="dit is of another shape"):
        begin(build(replace(plan, config=replace(plan.config, depth=3))), start, load_vae(plan.vae))
    with pytest.raises(UserError, match="another VAE"):
        begin(model, start, VideoVAE(MICRO))


def test_a_model_of_excerpts_knows_its_window(setting):
    plan, _, whitening = setting
    assert "window" not in parts(plan, build(plan), VideoVAE(MICRO), whitening).defaults
    longer = replace(plan, shapes=("32x32x65/4",), shares=(0.5, 0.5))
    assert parts(longer, build(longer), VideoVAE(MICRO), whitening).defaults["window"] == 4


def test_the_text_encoder_learns_through_the_velocity(setting):
    plan, latents, whitening = setting
    model = build(plan)
    torch.nn.init.normal_(model.dit.head.weight, std=0.1)  # it starts at zero, where no gradient passes
    loss, _ = flow_loss(model, make_batch(plan, [latents], whitening, 1).data, CPU)
    loss.backward()
    assert float(model.text.word.weight.grad.abs().sum()) > 0


def test_training_learns_resumes_exactly_and_exports(setting, tmp_path):
    plan, _, _ = setting
    shown = []

    def sample(step, parts, folder):
        shown.append((step, next(parts.dit.parameters()).dtype))

    whole = train(plan, tmp_path / "whole", callbacks={"sample": sample}, say=lambda line: None)
    assert shown == [(10, torch.float32), (20, torch.float32)]
    short = replace(plan, loop=dataclasses.replace(plan.loop, minutes=1e-9))
    assert not train(short, tmp_path / "cut", say=lambda line: None).finished
    resumed = train(plan, tmp_path / "cut", resume=True, say=lambda line: None)
    assert all(torch.equal(value, resumed.weights[name]) for name, value in whole.weights.items())
    assert (tmp_path / "whole" / "model" / "model_index.json").exists()
