"""Planned against measured memory: every stage of a video in a process of its own, peak resident bytes of each.

    python -m benchmarks.plan [--own 64x64x17,512x512x17] [--wan 128x128x9,256x256x9] [--max-memory 3GB]

`--own` is the shipped model; `--wan` a random model of Wan 2.1's widths with 4 of its 30 layers, its autoencoder whole,
made with diffusers and transformers. The plan is made before anything is loaded. Linux only: peaks are read and reset
through /proc.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from worldline.checkpoints import layout
from worldline.checkpoints.outline import Outline
from worldline.generate.drawing import Drawing
from worldline.generate.load import load, setting_of
from worldline.generate.plan import plan
from worldline.generate.request import Request, known_defaults, read_bytes, request_of

OWN = "64x64x17,256x256x17,512x512x17,512x512x65,1024x1024x5,1920x1080x5"
WAN = "128x128x9,256x256x9,480x272x5"


def peak() -> int:
    """Most bytes in memory since the last `restart`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def restart() -> None:
    """Forget the peak."""
    Path("/proc/self/clear_refs").write_text("5")


def measured(folder: Path, size: str, most: float | None) -> dict[str, object]:
    """Planned and measured bytes of every stage, in this process."""
    width, height, frames = map(int, size.split("x"))
    grid, model = layout.traits(folder).grid, Outline.of_folder(folder)
    base = Request("", **known_defaults(layout.defaults(folder)), grid=grid)
    request = request_of(base, "a red ball rolls", width=width, height=height, frames=frames, steps=1)
    planned = plan(model, request, setting_of(model, folder, max_memory=most, how="whole", reads=True))
    found = {}
    restart()
    pipeline = load(folder, max_memory=most)
    found["load"] = peak()
    restart()
    with torch.inference_mode():
        pipeline.denoiser.text.encode([request.prompt, ""])
        found["text"] = peak()
        cells = grid.latent(planned.drawn)
        pipeline.codec.cuts[cells.height, cells.width] = planned.cut
        restart()
        (latents,) = pipeline.denoiser.sample([request.prompt], [0], Drawing.of(request))
        found["dit"] = peak()
        restart()
        video = np.concatenate(list(pipeline.codec.decode([latents])))
        found["decode"] = peak()
        del latents
        restart()
        pipeline.codec.encode(video)
        found["encode"] = peak()
    return {"planned": dict(planned.stages), "measured": found, "cut": str(planned.cut)}


def wan(folder: Path) -> None:
    """A random model in the layout of Wan 2.1 1.3B, with 4 layers and a small text encoder."""
    import diffusers
    import tokenizers
    import transformers

    index = {"_class_name": "WanPipeline"}
    modules = {
        "transformer": diffusers.WanTransformer3DModel(
            num_attention_heads=12, ffn_dim=8960, text_dim=256, num_layers=4
        ),
        "vae": diffusers.AutoencoderKLWan(),
        "text_encoder": transformers.UMT5EncoderModel(
            transformers.UMT5Config(vocab_size=256, d_model=256, d_kv=32, d_ff=512, num_layers=2, num_heads=8)
        ),
    }
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(folder / "tokenizer")
    diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    ).save_pretrained(folder / "scheduler")
    (folder / layout.INDEX).write_text(json.dumps(index))


def report(name: str, folder: Path, sizes: str, most: str | None) -> None:
    """One row a size: planned / measured GB of every stage, and the ratio of the largest."""
    for size in filter(None, sizes.split(",")):
        command = [sys.executable, "-m", "benchmarks.plan", "--one", size, "--model", str(folder)]
        command += ["--max-memory", most] if most else []
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        a, b = found["planned"], found["measured"]
        each = " | ".join(f"{a[stage] / 1e9:.2f} / {b[stage] / 1e9:.2f}" for stage in a)
        print(f"| {name} {size} | {each} | {max(a.values()) / max(b.values()):.2f} | {found['cut']} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--own", default=OWN, help="sizes as WIDTHxHEIGHTxFRAMES of the shipped model")
    parser.add_argument("--wan", default=WAN, help="the same of the random one")
    parser.add_argument("--max-memory", default=None)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a child's size
    args = parser.parse_args()
    if args.one:
        most = None if args.max_memory is None else read_bytes("--max-memory", args.max_memory)
        print(json.dumps(measured(args.model, args.one, most)))
        return
    print("| planned / measured, GB | load | text | dit | encode | decode | ratio of peaks | cut |")
    print("|---|---|---|---|---|---|---|---|")
    report("own", layout.SHIPPED, args.own, args.max_memory)
    if args.wan:
        with tempfile.TemporaryDirectory() as folder:
            wan(Path(folder))
            report("wan", Path(folder), args.wan, args.max_memory)


if __name__ == "__main__":
    main()
