"""Tiny pipelines of the Wan family in diffusers' layout, every parameter random, and diffusers' own answer on them."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldline.checkpoints import wan_vae
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

    more: dict[str, Any] = {"image_dim": 32, "added_kv_proj_dim": 40} if clip else {}
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
        sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 16}
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


def native_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names for diffusers' tensors: the inverse of `wan.NATIVE`, written out."""
    out = {}
    for name, value in weights.items():
        for new, old in (
            ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
            ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
            ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
            ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
            ("time_projection.1.", "condition_embedder.time_proj."),
            ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
            ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
            ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
            ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
            ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
            ("head.head.", "proj_out."),
            (".norm3.", ".norm2."),
            (".self_attn.", ".attn1."),
            (".cross_attn.", ".attn2."),
            (".o.", ".to_out.0."),
            (".k_img.", ".add_k_proj."),
            (".v_img.", ".add_v_proj."),
            (".norm_k_img.", ".norm_added_k."),
            (".q.", ".to_q."),
            (".k.", ".to_k."),
            (".v.", ".to_v."),
            (".ffn.0.", ".ffn.net.0.proj."),
            (".ffn.2.", ".ffn.net.2."),
            (".modulation", ".scale_shift_table"),
        ):
            if "image_embedder" not in name or "img_emb" in new:
                name = name.replace(old, new)
        out["head.modulation" if name == "scale_shift_table" else name] = value
    return out


MODEL_TYPES = {"image": "i2v", "both ends": "flf2v", "image, experts": "i2v", "text and image": "ti2v"}


def as_published(kind: str, folder: Path, place: Path) -> Path:
    """The numbers of a folder as Wan's authors lay them out, their pickles made into safetensors."""
    place.mkdir(parents=True)
    for part, low in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model")):
        if not (folder / part).is_dir():
            continue
        here = place / low if "experts" in kind else place
        here.mkdir(exist_ok=True)
        dit = native_names(load_file(folder / part / "diffusion_pytorch_model.safetensors"))
        half = len(dit) // 2
        for i, names in enumerate((sorted(dit)[:half], sorted(dit)[half:])):
            file = here / f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
            save_file({name: dit[name] for name in names}, file)
        about = json.loads((folder / part / "config.json").read_text())
        values = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 40, "eps": 1e-06, "ffn_dim": 64}
        values |= {"freq_dim": 16, "in_dim": about["in_channels"], "model_type": MODEL_TYPES.get(kind, "t2v")}
        values |= {"num_heads": 2, "num_layers": 2, "out_dim": about["out_channels"], "text_len": 512}
        (here / "config.json").write_text(json.dumps(values))
    vae = wan_vae.load_wan_vae(folder / "vae")[0]
    file = "Wan2.2_VAE.safetensors" if kind == "text and image" else "Wan2.1_VAE.safetensors"
    save_file(wan_vae.to_weights(vae, "native"), place / file)
    text = load_file(folder / "text_encoder" / "model.safetensors")
    text = {native_text_name(name): value for name, value in text.items()}
    save_file(text, place / "models_t5_umt5-xxl-enc-bf16.safetensors")
    if (folder / "image_encoder").is_dir():
        clip = native_clip(load_file(folder / "image_encoder" / "model.safetensors"))
        save_file(clip, place / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors")
    shutil.copytree(folder / "tokenizer", place / "google" / "umt5-xxl")
    return place


def native_text_name(name: str) -> str:
    """As wan/modules/t5.py names umT5's tensors, written out."""
    for new, old in (
        ("token_embedding.", "shared."),
        ("norm.", "encoder.final_layer_norm."),
        ("blocks.", "encoder.block."),
        (".pos_embedding.embedding.", ".layer.0.SelfAttention.relative_attention_bias."),
        (".attn.", ".layer.0.SelfAttention."),
        (".norm1.", ".layer.0.layer_norm."),
        (".norm2.", ".layer.1.layer_norm."),
        (".ffn.gate.0.", ".layer.1.DenseReluDense.wi_0."),
        (".ffn.fc1.", ".layer.1.DenseReluDense.wi_1."),
        (".ffn.fc2.", ".layer.1.DenseReluDense.wo."),
    ):
        name = name.replace(old, new)
    return name


def native_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As wan/modules/clip.py names and shapes the tensors of a whole CLIP, its text tower a stub."""
    out = {
        "log_scale": torch.zeros(()),
        "textual.token_embedding.weight": torch.ones(3, 2),
        "visual.head": torch.ones(2, 2),
    }
    out["visual.cls_embedding"] = weights["embeddings.class_embedding"][None, None]
    out["visual.pos_embedding"] = weights["embeddings.position_embedding.weight"][None]
    out["visual.patch_embedding.weight"] = weights["embeddings.patch_embedding.weight"]
    for leaf in ("weight", "bias"):
        out[f"visual.pre_norm.{leaf}"] = weights[f"pre_layrnorm.{leaf}"]
        out[f"visual.post_norm.{leaf}"] = weights[f"post_layernorm.{leaf}"]
        for i in range(3):
            ours, theirs = f"visual.transformer.{i}", f"encoder.layers.{i}"
            for new, old in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("attn.proj", "self_attn.out_proj"),
                             ("mlp.0", "mlp.fc1"), ("mlp.2", "mlp.fc2")):  # fmt: skip
                out[f"{ours}.{new}.{leaf}"] = weights[f"{theirs}.{old}.{leaf}"]
            parts = [weights[f"{theirs}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            out[f"{ours}.attn.to_qkv.{leaf}"] = torch.cat(parts)
    return {name: value.contiguous() for name, value in out.items()}


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
