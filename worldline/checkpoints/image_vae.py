"""Stable Diffusion's image autoencoder (diffusers' AutoencoderKL) as our `ImageVAE`; its layers in time begin empty."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldline.checkpoints import layout
from worldline.checkpoints.headers import conversion
from worldline.checkpoints.keymap import Entry, Piece, renaming, same
from worldline.checkpoints.weights import Weights
from worldline.errors import UserError
from worldline.nn.hollow import bare
from worldline.vae.image import ImageVAE, ImageVAEConfig

CLASS = "AutoencoderKL"
TIME = "decoder.time."  # our layers that an image autoencoder has not
NAMES = (
    (r"^encoder\.posterior\.", "quant_conv."),
    (r"^decoder\.latent\.", "post_quant_conv."),
    (r"\.stem\.", ".conv_in."),
    (r"\.head\.", ".conv_out."),
    (r"^(encoder|decoder)\.norm\.", r"\1.conv_norm_out."),
    (r"\.middle\.before\.", ".mid_block.resnets.0."),
    (r"\.middle\.after\.", ".mid_block.resnets.1."),
    (r"\.middle\.attention\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.middle\.attention\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.middle\.attention\.out\.", ".mid_block.attentions.0.to_out.0."),
    (r"^encoder\.levels\.(\d+)\.resize\.", r"encoder.down_blocks.\1.downsamplers.0.conv."),
    (r"^decoder\.levels\.(\d+)\.resize\.", r"decoder.up_blocks.\1.upsamplers.0.conv."),
    (r"^encoder\.levels\.(\d+)\.blocks\.", r"encoder.down_blocks.\1.resnets."),
    (r"^decoder\.levels\.(\d+)\.blocks\.", r"decoder.up_blocks.\1.resnets."),
    (r"\.match\.", ".conv_shortcut."),
)
OLD = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))  # names before 2023


def load_image_vae(path: str | Path) -> ImageVAE:
    """A folder of diffusers, or one that holds one as `vae/`, in fp32 and eval mode; its layers in time do nothing yet.

    Raises UserError for a folder that is none, a config that is not supported, and weights that do not fit.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"image: {folder} is a file; give the folder with its config.json, {conversion(folder)}")
    if (folder / "vae").is_dir():
        folder = folder / "vae"
    config = config_from_diffusers(layout.read_json(folder / "config.json"))
    return from_weights(config, Weights(layout.files_of(folder, "diffusion_pytorch_model")))


def from_weights(config: ImageVAEConfig, weights: Mapping[str, Tensor]) -> ImageVAE:
    """An autoencoder with foreign `weights`; raises one UserError that lists all that does not fit."""
    fresh = ImageVAE(config)
    added = {name: value for name, value in fresh.state_dict().items() if name.startswith(TIME)}
    old = any(".query." in name for name in weights)
    # Checkpoints of the first kind hold the attention's matrices as 1x1 convolutions.
    found = {name: v.flatten(1) if ".attentions." in name and v.ndim == 4 else v for name, v in weights.items()}
    # The layers in time are no part of what is read: they stand among it under our own names.
    entries = [*table(config, old), *(same(name, name) for name in added)]
    return Piece("image", partial(ImageVAE, config), {**found, **added}, entries).load(torch.float32)


def table(config: ImageVAEConfig, old: bool = False) -> list[Entry]:
    """Every weight of the image model, ours and theirs; `old` are the names of attention before 2023."""
    with bare():
        own = ImageVAE(config).state_dict()
    renamed = renaming(NAMES)
    entries = []
    for name in own:
        if name.startswith(TIME):
            continue
        theirs = renamed(name)
        for new, before in OLD if old else ():
            theirs = theirs.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        entries.append(same(name, theirs))
    return entries


def config_from_diffusers(values: Mapping[str, Any]) -> ImageVAEConfig:
    """From the config.json of AutoencoderKL, whose absent fields have that class's defaults."""
    name = values.get("_class_name", CLASS)
    if name != CLASS:
        raise UserError(f"image: its config.json is of class {name}, not {CLASS}")
    needed = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "mid_block_add_attention": True,
              "use_quant_conv": True, "use_post_quant_conv": True}  # fmt: skip
    for field, value in needed.items():
        if values.get(field, value) != value:
            raise UserError(f"image: {field}={values[field]} is not supported, only {value}")
    return ImageVAEConfig(
        latent_channels=values.get("latent_channels", 4),
        widths=values.get("block_out_channels", (64,)),
        blocks=values.get("layers_per_block", 1),
        groups=values.get("norm_num_groups", 32),
    )
