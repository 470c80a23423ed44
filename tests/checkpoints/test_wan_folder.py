"""A Wan folder in diffusers' layout generates what diffusers generates: latents and pixels, guided and with a negative
prompt; and what is wrong with a folder is told before anything is computed."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from worldline.checkpoints import layout
from worldline.checkpoints.folder import load_parts, save_pretrained
from worldline.cli import main
from worldline.errors import UserError
from worldline.generate.pipeline import Drawing, Pipeline

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("ftfy")

WORDS = ["a", "red", "ball", "rolls", "blue", "cube", "blurry", "bad"]
PROMPT, NEGATIVE = "a red ball rolls", "blurry bad"


def tokenizer(folder: Path) -> None:
    """Words and the end, as umT5's tokenizer.json ends every prompt."""
    tokenizers = pytest.importorskip("tokenizers")
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny Wan 2.1 pipeline, every parameter random."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("wan") / "tiny"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dit = diffusers.WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=20, text_dim=16, freq_dim=16, ffn_dim=64, num_layers=2
        )
        vae = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1)
    text = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )
    for module in (dit, vae, text):
        for name, value in module.named_parameters():
            value.data = torch.randn_like(value) * (0.2 if value.dim() > 1 else 0.3)
            if name.endswith(("norm_q.weight", "norm_k.weight", "gamma")) or "layer_norm" in name:
                value.data += 1
    for name, module in (("transformer", dit), ("vae", vae), ("text_encoder", text)):
        module.save_pretrained(place / name)
    tokenizer(place / "tokenizer")
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    scheduler.save_pretrained(place / "scheduler")
    index = {"_class_name": "WanPipeline", "_diffusers_version": diffusers.__version__}
    index |= {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]}
    index |= {"text_encoder": ["transformers", "UMT5EncoderModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}
    index |= {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}
    (place / "model_index.json").write_text(json.dumps(index))
    return place


def read(kind: Any, place: Path) -> Any:
    """A diffusers model from its folder; `from_pretrained` would need accelerate for this one."""
    model = kind.from_config(json.loads((place / "config.json").read_text()))
    model.load_state_dict(load_file(place / "diffusion_pytorch_model.safetensors"))
    return model.eval()


def theirs(folder: Path, monkeypatch: pytest.MonkeyPatch, **call: Any) -> np.ndarray:
    """diffusers' own pipeline on the folder; its sigmas are those of Wan's authors."""
    from worldline.diffusion.timesteps import wan_schedule

    fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.WanPipeline(
            tokenizer=fast,
            text_encoder=transformers.UMT5EncoderModel.from_pretrained(folder / "text_encoder"),
            vae=read(diffusers.AutoencoderKLWan, folder / "vae"),
            scheduler=diffusers.UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
            transformer=read(diffusers.WanTransformer3DModel, folder / "transformer"),
        )
        pipe.set_progress_bar_config(disable=True)
        set_timesteps = type(pipe.scheduler).set_timesteps

        def authors(self: Any, steps: int, device: Any = None, **more: Any) -> None:
            set_timesteps(self, steps, device=device, **more)
            self.sigmas, self.timesteps = wan_schedule(steps, 3.0)

        monkeypatch.setattr(type(pipe.scheduler), "set_timesteps", authors)
        out = pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(3),
            max_sequence_length=512,
            **call,
        )
    frames: np.ndarray = out.frames[0] if call.get("output_type") != "latent" else out.frames
    return frames


@pytest.mark.parametrize("size", [(9, 32, 48), (5, 48, 32), (1, 32, 32)])
def test_the_pipeline_is_wans(size: tuple[int, int, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, height, width = size
    pipeline = Pipeline(load_parts(folder), dtype=torch.float32)
    request = pipeline.request(
        PROMPT, negative_prompt=NEGATIVE, frames=frames, height=height, width=width, steps=4, seed=3
    )
    assert (request.sampler, request.guidance_scale) == ("unipc", 5.0)
    call = {"num_frames": frames, "height": height, "width": width, "num_inference_steps": 4}
    expected = theirs(folder, monkeypatch, output_type="latent", **call)
    latents = pipeline.sample([PROMPT], [3], Drawing.of(request))[0]
    assert float((latents - expected[0]).norm() / expected[0].norm()) < 1e-4
    pixels = pipeline.run(request).frames
    shown = theirs(folder, monkeypatch, output_type="np", **call)
    assert np.abs(pixels / 255 - shown).max() < 1.5 / 255


def test_the_command_line_and_info_know_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    words = ["generate", PROMPT, "--model", str(folder), "--size", "32x32", "--frames", "5", "--steps", "1"]
    assert main([*words, "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sampler"] == "unipc"
    assert out.exists()
    assert main(["info", str(folder)]) == 0
    assert "832" in capsys.readouterr().out
    assert main(["generate", PROMPT, "--model", str(folder), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 81
    with pytest.raises(UserError, match="our own models"):
        save_pretrained(load_parts(folder), tmp_path / "copy")


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_weights_that_do_not_fit_are_one_line(part: str, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (file,) = layout.weight_files(broken, part)
    weights = load_file(file)
    name = sorted(weights)[0]
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(UserError, match=f"missing: {name}"):
        load_parts(broken)
    save_file({**weights, name: torch.zeros(2, 3)}, file)
    with pytest.raises(UserError, match=f"mis-shaped: {name}"):
        load_parts(broken)
    save_file(weights, file)
    config = json.loads((broken / part / "config.json").read_text())
    (broken / part / "config.json").write_text(json.dumps({**config, "wormholes": 3}))
    with pytest.raises(UserError, match="wormholes"):
        load_parts(broken)
