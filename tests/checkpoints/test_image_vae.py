"""Stable Diffusion's autoencoder against diffusers' AutoencoderKL on tiny random weights, both ways of naming."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldline.checkpoints.image_vae import OLD, load_image_vae
from worldline.errors import UserError

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A tiny AutoencoderKL and the folder that it saved."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    model = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()
    for parameter in model.parameters():  # biases and gains of their own, so that a mix-up shows
        parameter.data += 0.1 * torch.randn(parameter.shape)
    folder = tmp_path_factory.mktemp("sd") / "vae"
    model.save_pretrained(folder)
    return model, folder


@torch.no_grad()
def test_a_frame_is_coded_as_diffusers_does(theirs) -> None:
    model, folder = theirs
    vae = load_image_vae(folder.parent)
    x = torch.rand(2, 3, 3, 32, 40) * 2 - 1
    frames = x.transpose(1, 2).flatten(0, 1)
    expected = model.encode(frames).latent_dist
    mine = vae.encode(x)
    torch.testing.assert_close(mine.mean.transpose(1, 2).flatten(0, 1), expected.mean, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(mine.logvar.transpose(1, 2).flatten(0, 1), expected.logvar, atol=2e-5, rtol=1e-4)
    z = torch.randn(2, 4, 3, 8, 10)
    decoded = model.decode(z.transpose(1, 2).flatten(0, 1)).sample
    torch.testing.assert_close(vae.decode(z).transpose(1, 2).flatten(0, 1), decoded, atol=2e-5, rtol=1e-4)


def test_the_first_names_of_attention_are_read_too(theirs, tmp_path) -> None:
    _, folder = theirs
    weights = load_file(folder / FILE)
    for new, before in OLD:
        for name in [name for name in weights if f"attentions.0.{new}." in name]:
            value = weights.pop(name)
            shape = (*value.shape, 1, 1) if value.ndim == 2 else value.shape
            weights[name.replace(new, before)] = value.reshape(shape)
    save_file(weights, tmp_path / FILE)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    old, new = load_image_vae(tmp_path).state_dict(), load_image_vae(folder).state_dict()
    assert all(torch.equal(value, old[name]) for name, value in new.items() if not name.startswith("decoder.time."))


def test_what_does_not_fit_is_named(theirs, tmp_path) -> None:
    _, folder = theirs
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / FILE)
    save_file({name: value for name, value in weights.items() if "quant_conv.bias" not in name}, tmp_path / FILE)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"quant_conv\.bias"):
        load_image_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "use_quant_conv": False}))
    with pytest.raises(UserError, match="use_quant_conv=False is not supported"):
        load_image_vae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(UserError, match="VQModel"):
        load_image_vae(tmp_path)
