"""Open-Sora 2.0's transformer is our MMDiT by configuration, and packed samples do not see each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from worldline.checkpoints import opensora
from worldline.checkpoints.headers import kind_of
from worldline.checkpoints.keymap import Piece, to_theirs
from worldline.dit.mmdit import Joint, MMDiT, MMDiTConfig
from worldline.dit.patchify import coordinates
from worldline.dit.told import Told
from worldline.errors import UserError

TINY = MMDiTConfig(
    in_channels=4,
    width=40,
    heads=2,
    depth=2,
    single_depth=2,
    text_width=12,
    vector_width=6,
    mlp_ratio=3.0,
    rope_axes=(8, 6, 6),
    known="beside",
)


def model(**changes: object) -> MMDiT:
    torch.manual_seed(0)
    made = MMDiT(dataclasses.replace(TINY, **changes)).eval()  # type: ignore[arg-type]
    for value in made.parameters():
        value.data = torch.randn_like(value) * 0.3
    return made.requires_grad_(False)


def sample(shape: tuple[int, int, int], words: int, seed: int, config: MMDiTConfig = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coords = coordinates(shape, config.patch)
    n = len(coords)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    return {
        "tokens": draw(n, config.token_width),
        "coords": coords,
        "timestep": torch.full((n,), 0.1 + 0.2 * seed),
        "text": draw(words, config.text_width),
        "vector": draw(1, config.vector_width),
        "known": draw(n, config.token_width),
        "mask": (draw(n, config.cells) > 0).float(),
    }


def asked(net: MMDiT, *samples: dict[str, Tensor]) -> list[Tensor]:
    joined = {name: torch.cat([each[name] for each in samples]) for name in samples[0]}
    tokens, words = ([len(each[name]) for each in samples] for name in ("tokens", "text"))
    cu, cu_text = (torch.tensor([0, *lengths]).cumsum(0) for lengths in (tokens, words))
    told = Told(joined.pop("text"), cu_text, vector=joined.pop("vector"))
    out = net(cu_seqlens=cu, text=told, **joined)
    assert torch.equal(net(cu_seqlens=cu, text=net.read(told), **joined), out)
    return list(out.split(tokens))


def test_packed_samples_are_each_their_own() -> None:
    net = model()
    samples = [sample((3, 4, 4), 5, 0), sample((1, 6, 4), 2, 1), sample((2, 4, 8), 5, 2)]
    together = asked(net, *samples)
    for alone, packed in zip((asked(net, each)[0] for each in samples), together, strict=True):
        torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


def test_text_stands_before_the_tokens_of_its_sample() -> None:
    joint = Joint(torch.tensor([0, 2, 3]), torch.tensor([0, 3, 5]))
    text, tokens = torch.tensor([10, 11, 20]), torch.tensor([1, 2, 3, 4, 5])
    assert joint.mixed(text, tokens).tolist() == [10, 11, 1, 2, 3, 20, 4, 5]
    parts = joint.parted(joint.mixed(text, tokens))
    assert [part.tolist() for part in parts] == [text.tolist(), tokens.tolist()]


def test_every_condition_matters() -> None:
    net = model(guidance=True)
    given = {**sample((2, 4, 4), 4, 0), "guidance": torch.tensor([0.5])}
    whole = asked(net, given)[0]
    for name in ("text", "vector", "known", "mask", "guidance", "timestep"):
        assert not torch.allclose(asked(net, {**given, name: given[name] * 0.5})[0], whole, atol=1e-4), name


def test_tensors_go_both_ways_and_say_their_config() -> None:
    net = model()
    theirs = dict(to_theirs(opensora.table(TINY), net.state_dict()))
    assert "Open-Sora 2.0's transformer" in kind_of(theirs).what
    back = Piece("tiny", lambda: MMDiT(TINY), theirs, opensora.table(TINY)).load().state_dict()
    assert back.keys() == net.state_dict().keys()
    assert all(torch.equal(back[name], value) for name, value in net.state_dict().items())
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    assert opensora.config_of_shapes(shapes, {"num_heads": 2, "axes_dim": [8, 6, 6]}) == TINY
    less = {k: v for k, v in theirs.items() if k != "img_in.bias"}
    with pytest.raises(UserError, match=r"missing: img_in\.bias"):
        Piece("tiny", lambda: MMDiT(TINY), less, opensora.table(TINY)).load()


def test_the_published_shapes_are_the_published_model() -> None:
    """11 billion parameters: 19 double and 38 single blocks of 24 heads, without a config beside them."""
    config = MMDiTConfig(known="beside")
    with torch.device("meta"):
        net = MMDiT(config)
    shapes = {name: tuple(value.shape) for name, value in to_theirs(opensora.table(config), net.state_dict())}
    assert opensora.config_of_shapes(shapes) == config
    assert (shapes["cond_in.weight"], shapes["img_in.weight"]) == ((3072, 68), (3072, 64))
    assert shapes["single_blocks.37.v_mlp.weight"] == (3072 + 4 * 3072, 3072)
    assert 11.4e9 < sum(value.numel() for value in net.state_dict().values()) < 12e9
