"""Tiny pipelines of the Wan family in diffusers' layout, every parameter random, and diffusers' own answer on them."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from worldline.diffusion.timesteps import wan_schedule

WORDS = ["a", "red", "ball", "rolls", "blue", "cube", "blurry", "bad"]
PROMPT, NEGATIVE = "a red ball rolls", "blurry bad"
CLIP_SIDE = 32  # pixels: pictures of this size are read by everyone alike

KINDS: dict[str, dict[str, Any]] = {
    "text": {},
    "image": {"clip": True},
    "both ends": {"clip": True, "ends": True, "shift": 16.0},
    "text, experts": {"boundary": 0.875},
    "image, experts": {"boundary": 0.9, "beside": True},
    "text and image": {"tokens": True, "shift": 5.0},
}


def lively(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn anew: defaults hide mistakes."""
    for name, value in module.named_parameters():
        value.data = torch.randn_like(value) * (0.2 if value.dim() > 1 else 0.3)
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm_added_k.weight", "gamma")) or "layer_norm" in name:
            value.data += 1
    return module


def save_tokenizer(folder: Path) -> None:
    """Words and the end, as umT5's tokenizer.json ends every prompt."""
    import tokenizers
    import transformers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{word: i + 3 for i, word in enumerate(WORDS)}}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(folder)


def transformer(channels: int, beside: bool, clip: bool, ends: bool) -> torch.nn.Module:
    import diffusers

    more: dict[str, Any] = {"image_dim": 12, "added_kv_proj_dim": 40} if clip else {}
    if ends:
        more["pos_embed_seq_len"] = 2 * 5
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=20,
        in_channels=2 * channels + 4 if beside else channels,
        out_channels=channels,
        text_dim=16,
        freq_dim=16,
        ffn_dim=64,
        num_layers=2,
        **more,
    )


def autoencoder(tokens: bool) -> torch.nn.Module:
    import diffusers

    sizes: dict[str, Any] = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
    if tokens:  # Wan 2.2: 4 x 16 x 16
        sizes["dim_mult"] = [1, 2, 4, 4]
        sizes |= {"z_dim": 48, "decoder_base_dim": 8, "is_residual": True, "patch_size": 2, "scale_factor_spatial": 16}
        sizes |= {"in_channels": 12, "out_channels": 12}
        sizes |= {"latents_mean": [0.1 * i - 2 for i in range(48)], "latents_std": [0.5 + 0.03 * i for i in range(48)]}
    return diffusers.AutoencoderKLWan(**sizes)


def make(
    place: Path,
    shift: float = 3.0,
    boundary: float | None = None,
    beside: bool = False,
    clip: bool = False,
    ends: bool = False,
    tokens: bool = False,
) -> Path:
    """A whole folder. `beside`: an image model; `clip`: one that is told its picture too; `tokens`: Wan 2.2's 5B."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    beside = beside or clip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = {"transformer": transformer(48 if tokens else 16, beside, clip, ends), "vae": autoencoder(tokens)}
        if boundary:
            parts["transformer_2"] = transformer(16, beside, clip, ends)
    text = transformers.UMT5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    parts["text_encoder"] = transformers.UMT5EncoderModel(text)
    if clip:
        sizes = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
        vision = transformers.CLIPVisionConfig(**sizes, image_size=CLIP_SIDE, patch_size=16, hidden_act="gelu")
        parts["image_encoder"] = transformers.CLIPVisionModel(vision)
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": CLIP_SIDE}, crop_size={"height": CLIP_SIDE, "width": CLIP_SIDE}
        )
        processor.save_pretrained(place / "image_processor")
    for name, module in parts.items():
        lively(module).save_pretrained(place / name)
    save_tokenizer(place / "tokenizer")
    diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000
    ).save_pretrained(place / "scheduler")
    index: dict[str, Any] = {name: ["transformers" if "encoder" in name else "diffusers", type(module).__name__]
                             for name, module in parts.items()}  # fmt: skip
    index |= {"tokenizer": ["transformers", "T5TokenizerFast"], "scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    index["_class_name"] = "WanImageToVideoPipeline" if beside else "WanPipeline"
    index |= {"transformer_2": index.get("transformer_2", [None, None]), "boundary_ratio": boundary}
    (place / "model_index.json").write_text(json.dumps({**index, "expand_timesteps": tokens}))
    return place


def read(kind: Any, place: Path) -> Any:
    """A diffusers model from its folder; `from_pretrained` would need accelerate for this one."""
    model = kind.from_config(json.loads((place / "config.json").read_text()))
    model.load_state_dict(load_file(place / "diffusion_pytorch_model.safetensors"))
    return model.eval()


def theirs(folder: Path, images: tuple[np.ndarray, ...] = (), spacing: str = "authors", **call: Any) -> Tensor:
    """diffusers' own pipeline on the folder: latents (C, T', H', W'), or frames (T, H, W, 3) for output_type="np".

    `spacing`: its sigmas are its own or those of Wan's authors. `images`: the first, or first and last frame.
    """
    import diffusers
    import transformers
    from PIL import Image

    index = json.loads((folder / "model_index.json").read_text())
    parts: dict[str, Any] = {"expand_timesteps": index["expand_timesteps"], "boundary_ratio": index["boundary_ratio"]}
    for name in ("transformer", "transformer_2"):
        if (folder / name).exists():
            parts[name] = read(diffusers.WanTransformer3DModel, folder / name)
    if (folder / "image_encoder").exists():
        parts["image_encoder"] = transformers.CLIPVisionModel.from_pretrained(folder / "image_encoder")
        parts["image_processor"] = transformers.CLIPImageProcessor.from_pretrained(folder / "image_processor")
    shown = dict(zip(("image", "last_image"), map(Image.fromarray, images), strict=False))
    with warnings.catch_warnings(), _sigmas(spacing):
        warnings.simplefilter("ignore")
        pipe = (diffusers.WanImageToVideoPipeline if images else diffusers.WanPipeline)(
            tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
            text_encoder=transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
            vae=read(diffusers.AutoencoderKLWan, folder / "vae"),
            scheduler=diffusers.UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
            **parts,
        )
        pipe.set_progress_bar_config(disable=True)
        settings = {"output_type": "latent", "guidance_scale": 5.0, "max_sequence_length": 512, **shown, **call}
        generator = torch.Generator().manual_seed(3)
        out: Tensor = pipe(prompt=PROMPT, negative_prompt=NEGATIVE, generator=generator, **settings).frames[0]
    return out


@contextlib.contextmanager
def _sigmas(spacing: str) -> Iterator[None]:
    import diffusers

    own = diffusers.UniPCMultistepScheduler.set_timesteps

    def authors(self: Any, steps: int, device: Any = None, **more: Any) -> None:
        own(self, steps, device=device, **more)
        self.sigmas, self.timesteps = wan_schedule(steps, self.config.flow_shift)

    with pytest.MonkeyPatch.context() as patch:
        if spacing == "authors":
            patch.setattr(diffusers.UniPCMultistepScheduler, "set_timesteps", authors)
        yield
