"""What is known of public families before a folder of theirs is opened: names of classes and files, and how their
authors generate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from worldline.shapes import Grid

# Wan's numbers and words: Wan-Video/Wan2.1 and Wan2.2, wan/configs and generate.py.
WAN_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，"
    "静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
WAN_NEGATIVE_IMAGE = f"镜头晃动，{WAN_NEGATIVE}"
WAN: dict[str, Any] = {
    "width": 832,
    "height": 480,
    "frames": 81,
    "fps": 16,
    "steps": 50,
    "guidance_scale": 5.0,
    "sampler": "unipc",
    "negative_prompt": WAN_NEGATIVE,
}
# As its repository generates at 256px, 16:9: hpcaitech/Open-Sora, configs/diffusion/inference/256px.py.
OPENSORA_DEFAULTS: dict[str, Any] = {
    "width": 336,
    "height": 192,
    "frames": 129,
    "fps": 24,
    "steps": 50,
    "guidance_scale": 7.5,
    "guidance_scale_image": 3.0,
    "guidance_oscillation": True,
    "prompt_suffix": "{fps} FPS. 4 motion score.",
}
# Those in the diffusers layout, by the class of their pipeline.
FAMILIES: dict[str, dict[str, Any]] = {
    "WanPipeline": WAN,
    "WanImageToVideoPipeline": {**WAN, "steps": 40, "negative_prompt": WAN_NEGATIVE_IMAGE},
}
# flow_shift that diffusers' converter writes for want of a better: the authors' `shift` below stands in its place.
CONVERTERS_SHIFT = 3.0
# What differs where the index holds a field: two experts, and a time for every token.
EXPERTS = {"width": 1280, "height": 720, "steps": 40, "negative_prompt": WAN_NEGATIVE}
VARIANTS: dict[tuple[str, str], dict[str, Any]] = {
    ("WanPipeline", "boundary_ratio"): {**EXPERTS, "guidance_scale": 4.0, "guidance_scale_2": 3.0, "shift": 12.0},
    ("WanImageToVideoPipeline", "boundary_ratio"): {
        **EXPERTS,
        "guidance_scale": 3.5,
        "guidance_scale_2": 3.5,
        "shift": 5.0,
    },
    **{
        (family, "expand_timesteps"): {**WAN, "width": 1280, "height": 704, "frames": 121, "fps": 24}
        for family in FAMILIES
    },
}
# Of Wan from a first to a last frame.
BOTH_ENDS = {"width": 1280, "height": 720, "steps": 50, "negative_prompt": f"镜头切换，{WAN_NEGATIVE_IMAGE}"}
# The classes of a public family's components: others are other models.
WAN_CLASSES = {
    "transformer": "WanTransformer3DModel",
    "transformer_2": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
    "text_encoder": "UMT5EncoderModel",
    "scheduler": "UniPCMultistepScheduler",
}
CLASSES = dict.fromkeys(FAMILIES, WAN_CLASSES)
CONFIG_NAMES = {
    "transformer": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
}
WEIGHT_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
OPENSORA = "Open-Sora 2.0"
# Where its parts lie: stems of weights, and configs. The first two are published without a config and may do without;
# one beside them says what the shapes of tensors do not (see `opensora`).
OPENSORA_PARTS = {
    "transformer": ("Open_Sora_v2", "Open_Sora_v2.json"),
    "vae": ("hunyuan_vae", "hunyuan_vae.json"),
    "text_encoder": ("google/t5-v1_1-xxl/model", "google/t5-v1_1-xxl/config.json"),
    "text_encoder_2": ("openai/clip-vit-large-patch14/model", "openai/clip-vit-large-patch14/config.json"),
}
OPENSORA_TOKENIZERS = {
    "google/t5-v1_1-xxl": ("tokenizer.json", "spiece.model"),
    "openai/clip-vit-large-patch14": ("tokenizer.json", "vocab.json"),
}
OPTIONAL = {"transformer_2": "diffusion_pytorch_model", "image_encoder": "model"}  # and their stems
STEMS = WEIGHT_STEMS | OPTIONAL
NATIVE_CLASS = "WanModel"
NATIVE_EXPERTS = {"transformer": "high_noise_model", "transformer_2": "low_noise_model"}
NATIVE_TOKENIZER = "google/umt5-xxl"


@dataclass(frozen=True)
class Native:
    """What a model of Wan's authors consists of, and what their code (wan/configs, generate.py) says and no file does.

    Attributes:
        pipeline: its class in the diffusers layout; `index`: what a model_index.json would say besides.
        shift: of the times. pictures: that it cannot do without. told: it is told them through CLIP.
        vae: stem of the autoencoder's file; `spatial`: pixels that a side of its cells has.
    """

    shift: float
    pipeline: str = "WanPipeline"
    pictures: int = 0
    told: bool = False
    vae: str = "Wan2.1_VAE"
    spatial: int = Grid.spatial
    index: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stems(self) -> dict[str, str]:
        """Of the weights of each part."""
        stems = {"transformer": STEMS["transformer"], "vae": self.vae, "text_encoder": "models_t5_umt5-xxl-enc-bf16"}
        if "boundary_ratio" in self.index:
            stems["transformer_2"] = STEMS["transformer_2"]
        if self.told:
            stems["image_encoder"] = "models_clip_open-clip-xlm-roberta-large-vit-huge-14"
        return stems


# By the model_type of config.json, and whether there are two experts.
NATIVES = {
    ("t2v", False): Native(5.0),
    ("i2v", False): Native(3.0, "WanImageToVideoPipeline", 1, told=True),  # of 832x480; 5 above
    ("flf2v", False): Native(16.0, "WanImageToVideoPipeline", 2, told=True),
    ("t2v", True): Native(12.0, index={"boundary_ratio": 0.875}),
    ("i2v", True): Native(5.0, "WanImageToVideoPipeline", 1, index={"boundary_ratio": 0.9}),
    ("ti2v", False): Native(5.0, vae="Wan2.2_VAE", spatial=16, index={"expand_timesteps": True}),
}
