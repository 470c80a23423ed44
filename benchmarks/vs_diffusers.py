"""A public model beside diffusers: same weights, inputs, type and threads; each in a process of its own, in turns.

    python -m benchmarks.vs_diffusers [--rows dit-256,dit-1024,...] [--dtype bfloat16] [--theirs float32] [--json FILE]

The model is Wan 2.1's with random weights. A step of the transformer is one with guidance, of prompts of 20 words and
one that are padded to 512 rows; what our blocks read of them is computed before, as it is once for all steps.
Differences are relative to diffusers' output. Peak memory is that of a side's process in its first run, which is not
timed, and beside it what the run took of it (the rest is the imports and the weights). Needs the extra `dev`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldline.checkpoints import wan, wan_vae
from worldline.checkpoints.folder import Parts, SchedulerConfig
from worldline.checkpoints.keymap import to_theirs
from worldline.dit.model import DiT
from worldline.dit.patchify import patchify
from worldline.dit.told import Told
from worldline.generate.cuts import standard_cut
from worldline.generate.drawing import Drawing
from worldline.generate.pipeline import Pipeline
from worldline.nn.memory import keep_freed_memory
from worldline.shapes import VideoShape
from worldline.text import TextEncoder, TextStates
from worldline.vae.causal import WAN_2_1, CausalVAE
from worldline.vae.streaming import decode_stream, encode_stream

Run = Callable[[], Tensor]
WORDS, ROWS, GUIDANCE = (20, 1), 512, 5.0
MODELS = {  # width is 128 per head in the published one, 64 in the small one
    "small": {"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2816, "num_layers": 12, "text_dim": 1024},
    "1.3b": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30, "text_dim": 4096},
}
GRIDS = {"dit-256": (4, 16, 16), "dit-1024": (4, 32, 32), "dit-4096": (16, 32, 32), "dit-16384": (16, 64, 64),
         "dit-832x480x81": (21, 60, 104)}  # fmt: skip
CLIPS = {"encode-17": 17, "decode-17": 17, "decode-65": 65, "end-to-end": 17}
DEFAULT = ("dit-256", "dit-1024", "dit-4096", "encode-17", "decode-17", "decode-65", "end-to-end")


@dataclass(frozen=True)
class Setting:
    """What both sides share."""

    model: str = "small"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    side: int = 128  # pixels of the clips' sides
    steps: int = 4  # end to end


def lively(module: nn.Module) -> nn.Module:
    """Random weights that keep activations alive: matrices by their fan in, gains about one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            inputs = max(1, parameter[0].numel())
            parameter.copy_(drawn * inputs**-0.5 if parameter.dim() > 1 else 1 + 0.02 * drawn)
    return module.eval().requires_grad_(False)


def drawn(shape: Sequence[int], at: Setting, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(at.device, at.dtype)


def states(at: Setting) -> list[Tensor]:
    """States of the prompt and of the negative one, (words, text_dim) each."""
    width = MODELS[at.model]["text_dim"]
    return [drawn((words, width), at, seed) for seed, words in enumerate(WORDS)]


def our_dit(at: Setting) -> DiT:
    dit = lively(DiT(wan.config_of(MODELS[at.model])))
    assert isinstance(dit, DiT)
    return dit


def our_vae() -> CausalVAE:
    vae = lively(CausalVAE(WAN_2_1))
    assert isinstance(vae, CausalVAE)
    return vae


class Given(TextEncoder):
    """States that are there already: what writes them is the same for both sides."""

    def __init__(self, at: Setting) -> None:
        self.width = MODELS[at.model]["text_dim"]
        self.states = dict(zip(("good", "bad"), states(at), strict=True))

    def encode(self, prompts: Sequence[str]) -> TextStates:
        given = [self.states[prompt] for prompt in prompts]
        lengths = torch.tensor([len(rows) for rows in given])
        cu = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        return TextStates(torch.cat(given), cu, padding=ROWS - lengths)


def ours(row: str, at: Setting) -> Run:
    """One row of ours, ready to run."""
    if row in GRIDS:
        dit = our_dit(at).to(at.device, at.dtype)
        tokens, coords = patchify(drawn((16, *GRIDS[row]), at), dit.config.patch)
        n, text = len(tokens), states(at)
        lengths = torch.tensor([ROWS - words for words in WORDS], device=at.device)
        cu_text = torch.tensor([0, WORDS[0], sum(WORDS)], device=at.device)
        reading = dit.read(Told(torch.cat(text), cu_text, lengths))
        cu = torch.tensor([0, n, 2 * n], device=at.device)
        when = torch.full((2 * n,), 0.437, device=at.device)
        return lambda: dit(tokens.repeat(2, 1), coords.repeat(2, 1).to(at.device), cu, when, reading)
    if row == "end-to-end":
        parts = Parts(
            our_vae(),
            our_dit(at),
            Given(at),
            wan_vae.published_whitening(16),
            SchedulerConfig(shift=3.0, spacing="diffusers"),
        )
        mine = Path()  # as if they had been read for this pipeline alone: it makes no copies of them
        pipeline = Pipeline(parts, device=at.device, dtype=at.dtype, source=mine)
        shape, told = VideoShape(CLIPS[row], at.side, at.side), {"negative_prompt": "bad", "sampler": "unipc"}
        drawing = Drawing(shape, steps=at.steps, guidance_scale=GUIDANCE, **told)
        return lambda: torch.from_numpy(pipeline.draw(["good"], [1], drawing)[0])
    vae = our_vae().to(at.device, at.dtype)
    cut = standard_cut(at.side // 8, at.side // 8)  # as the pipeline cuts where memory is plenty
    if row.startswith("encode"):
        pixels = clip(row, at)
        return lambda: torch.cat([part.mean for part in encode_stream(vae, pixels.split(4 * cut.frames, dim=2))], dim=2)
    latents = latents_of(row, at)
    return lambda: torch.cat(list(decode_stream(vae, latents, cut)), dim=2).clamp(-1, 1)


def theirs(row: str, at: Setting) -> Run:
    """The same of diffusers."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # it warns of types that both sides are given alike
    if row in GRIDS or row == "end-to-end":
        source = our_dit(at)
        dit = diffusers.WanTransformer3DModel(**MODELS[at.model]).eval().requires_grad_(False)
        dit.load_state_dict(dict(to_theirs(wan.table(source.config), source.state_dict())))
        dit = dit.to(at.device, at.dtype)
        del source
        text = [torch.nn.functional.pad(rows, (0, 0, 0, ROWS - len(rows)))[None] for rows in states(at)]
    if row in GRIDS:
        latents, when = drawn((1, 16, *GRIDS[row]), at), torch.tensor([437], device=at.device)
        return lambda: torch.cat(
            [patchify(dit(latents, when, rows, return_dict=False)[0][0], (1, 2, 2))[0] for rows in text]
        )
    vae = diffusers.AutoencoderKLWan().eval().requires_grad_(False)
    vae.load_state_dict(wan_vae.to_weights(our_vae()))
    vae = vae.to(at.device, at.dtype)
    if row.startswith("encode"):
        pixels = clip(row, at)
        return lambda: vae.encode(pixels).latent_dist.mode()  # type: ignore[no-any-return]
    if row.startswith("decode"):
        latents = latents_of(row, at)
        return lambda: vae.decode(latents, return_dict=False)[0]  # type: ignore[no-any-return]
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=dit)
    pipe.set_progress_bar_config(disable=True)
    frames = (CLIPS[row] - 1) // 4 + 1
    noise = torch.randn(16, frames, at.side // 8, at.side // 8, generator=torch.Generator().manual_seed(1))

    def made() -> Tensor:
        out = pipe(
            prompt_embeds=text[0], negative_prompt_embeds=text[1], guidance_scale=GUIDANCE, latents=noise[None],
            height=at.side, width=at.side, num_frames=CLIPS[row], num_inference_steps=at.steps, output_type="np",
        )  # fmt: skip
        return torch.from_numpy(out.frames[0]).mul(255).round().to(torch.uint8)

    return made


def clip(row: str, at: Setting) -> Tensor:
    return drawn((1, 3, CLIPS[row], at.side, at.side), at).clamp(-1, 1)


def latents_of(row: str, at: Setting) -> Tensor:
    return drawn((1, 16, (CLIPS[row] - 1) // 4 + 1, at.side // 8, at.side // 8), at)


def finished(run: Run, device: str) -> float:
    """Seconds of one run."""
    began = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


class Side:
    """One side in a process of its own, as its users run it, that runs a row whenever it is asked to."""

    def __init__(self, name: str, row: str, output: Path) -> None:
        words = [*sys.argv[1:], "--rows", row, "--child", name, "--output", str(output)]
        command = [sys.executable, "-m", "benchmarks.vs_diffusers", *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.memory: dict[str, float] = self._answer()  # of the first run, which is not timed
        self.name, self.output = name, output

    def seconds(self) -> float:
        """Of one more run."""
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(self.process.wait() or 1)  # it has said why
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


@torch.inference_mode()
def serve(row: str, name: str, at: Setting, output: Path) -> None:
    """A `Side`'s process: writes what the first run gives, says what it took, then runs for every line that comes."""
    if name == "ours":
        keep_freed_memory()  # as `worldline.load` does
    run = {"ours": ours, "theirs": theirs}[name](row, at)
    if at.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        out = run()
        most = torch.cuda.max_memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of loading is not the row's
        before = resident("VmRSS")
        out = run()
        most = resident("VmHWM")
    np.save(output, out.float().cpu().numpy())
    del out
    print(json.dumps({"peak_mb": most, "added_mb": most - before}), flush=True)
    for _ in sys.stdin:
        print(finished(run, at.device), flush=True)


def resident(field: str) -> float:
    """MB that the kernel counts for this process; VmHWM is the most so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measured(row: str, pairs: int) -> dict[str, Any]:
    """Time and memory of one row: both sides in turns."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(name, row, Path(folder) / f"{name}.npy") for name in ("theirs", "ours")]
        a, b = (np.load(side.output) for side in sides)
        times = [[side.seconds() for side in sides] for _ in range(pairs)]
        for side in sides:
            side.close()
    ratios = sorted(t / o for t, o in times)
    memory = {f"{side.name}_{key}": value for side in sides for key, value in side.memory.items()}
    return memory | {
        "difference": float(np.linalg.norm(a - b) / np.linalg.norm(a)),
        "theirs_s": statistics.median(t for t, _ in times),
        "ours_s": statistics.median(o for _, o in times),
        "ratio": statistics.median(ratios),
        "spread": [ratios[0], ratios[-1]],
        "pairs": pairs,
    }


def line(row: str, found: dict[str, Any]) -> str:
    """One row for people."""
    low, high = found["spread"]
    return (
        f"{row:15} {found['theirs_s']:9.3f} {found['ours_s']:9.3f}  {found['ratio']:5.2f} [{low:.2f}-{high:.2f}] "
        f"{found['theirs_peak_mb']:8.0f} {found['ours_peak_mb']:8.0f}   {found['theirs_added_mb']:7.0f} "
        f"{found['ours_added_mb']:7.0f}   {found['difference']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(DEFAULT), help=f"of {', '.join((*GRIDS, *CLIPS))}")
    parser.add_argument("--model", default="small", choices=MODELS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--theirs", default=None, choices=("float32", "bfloat16"), help="their type; ours unless given")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--side", type=int, default=128, help="pixels of the clips' sides")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)  # the side that this process is
    parser.add_argument("--output", type=Path, default=None, help=argparse.SUPPRESS)  # where it writes what it gives
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    mine = Setting(args.model, getattr(torch, args.dtype), args.device, args.side)
    other = replace(mine, dtype=getattr(torch, args.theirs or args.dtype))
    rows = args.rows.split(",")
    unknown = [row for row in rows if row not in (*GRIDS, *CLIPS)]
    if unknown:
        parser.error(f"--rows {unknown[0]}: one of {', '.join((*GRIDS, *CLIPS))}")
    if args.child:
        return serve(rows[0], args.child, mine if args.child == "ours" else other, args.output)
    print(f"{args.model}, {args.dtype}, theirs {args.theirs or args.dtype}, {args.threads} threads, {args.device}")
    print(f"{'':15} {'theirs s':>9} {'ours s':>9}  ratio [range]     peak MB: theirs, ours   added MB        differ")
    everything = {}
    for row in rows:
        everything[row] = measured(row, args.pairs)
        print(line(row, everything[row]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
