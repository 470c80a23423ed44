"""Streams: equal to one shot for every chunking, causal state only, memory that does not grow with length."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.vae.chunks import pieces
from worldline.errors import UserError
from worldline.vae.codec import Cut
from worldline.vae.model import MICRO, VideoVAE
from worldline.vae.streaming import decode_stream, encode_stream


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    torch.manual_seed(0)
    vae = VideoVAE(MICRO)
    for head in (vae.encoder.head, vae.decoder.head):
        torch.nn.init.normal_(head.weight, std=0.2)
    return vae.eval()


@pytest.mark.parametrize("frames", [1, 4, 17, 23])
@pytest.mark.parametrize("lengths", [[], [1], [1, 1, 1, 1, 1], [3, 5, 2], [8, 8], [5, 4, 4], [9, 1]])
@torch.no_grad()
def test_encoding_in_chunks_equals_one_shot(vae: VideoVAE, frames: int, lengths: list[int]) -> None:
    x = torch.rand(2, 3, frames, 13, 24) * 2 - 1
    whole = vae.encode(x)
    parts = list(encode_stream(vae, pieces(x, lengths)))
    torch.testing.assert_close(torch.cat([p.mean for p in parts], 2), whole.mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([p.logvar for p in parts], 2), whole.logvar, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@torch.no_grad()
def test_decoding_in_chunks_equals_one_shot(vae: VideoVAE, chunk: int) -> None:
    z = torch.randn(2, 16, 6, 2, 3)
    parts = list(decode_stream(vae, z, Cut(chunk)))
    assert [part.shape[2] for part in parts] == [1, *(4 * n for n in [chunk] * (5 // chunk) + [5 % chunk] if n)]
    torch.testing.assert_close(torch.cat(parts, 2), vae.decode(z), atol=1e-5, rtol=0)
    split = list(decode_stream(vae, iter(z.split([1, 3, 2], dim=2)), Cut(chunk)))
    torch.testing.assert_close(torch.cat(split, 2), vae.decode(z), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 16, 24), (5, 9, 17), (7, 16, 24), (21, 13, 18)])
@torch.no_grad()
def test_cropping_in_a_stream(vae: VideoVAE, size: tuple[int, int, int]) -> None:
    z = torch.randn(1, 16, 6, 2, 3)
    parts = torch.cat(list(decode_stream(vae, z, Cut(2), size)), 2)
    assert parts.shape[2:] == size
    torch.testing.assert_close(parts, vae.decode(z, size), atol=1e-5, rtol=0)


def test_streams_build_no_graph(vae: VideoVAE) -> None:
    z = next(encode_stream(vae, [torch.zeros(1, 3, 1, 8, 8)])).mean
    assert not z.requires_grad
    assert not next(decode_stream(vae, z)).requires_grad
    assert torch.is_grad_enabled()


def test_two_streams_do_not_share_state(vae: VideoVAE) -> None:
    a, b = torch.randn(1, 16, 4, 1, 1), torch.randn(1, 16, 4, 1, 1)
    alone = list(decode_stream(vae, a, Cut(1)))
    first, second = decode_stream(vae, a, Cut(1)), decode_stream(vae, b, Cut(1))
    woven = []
    for _ in range(4):
        woven.append(next(first))
        next(second)
    assert all(torch.equal(x, y) for x, y in zip(alone, woven, strict=True))


def test_a_chunk_holds_at_least_one_latent_frame() -> None:
    with pytest.raises(UserError, match="chunk=0"):
        Cut(0)
    with pytest.raises(UserError, match="tile=-1"):
        Cut(side=-1)


MEASURE = """
import resource, sys, torch
from worldline.vae.model import MICRO, VideoVAE
from worldline.vae.streaming import decode_stream, encode_stream
torch.set_num_threads(1)
vae = VideoVAE(MICRO).eval()
groups = int(sys.argv[1])
latents = (p.mean for p in encode_stream(vae, (torch.rand(1, 3, 4, 64, 64) for _ in range(groups))))
frames = sum(x.shape[2] for x in decode_stream(vae, latents))
print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ten_times_the_length_takes_five_percent_more_memory_at_most() -> None:
    """Streams of 20 and 200 groups, encoded and decoded in a process each; holding the pixels would add 35 MB."""

    def peak(groups: int) -> int:
        run = subprocess.run([sys.executable, "-c", MEASURE, str(groups)], capture_output=True, text=True, check=True)
        frames, kilobytes = map(int, run.stdout.split())
        assert frames >= 4 * groups - 3
        return kilobytes

    assert peak(200) <= 1.05 * peak(20)
