"""Wan's transformer is ours by configuration: equal to an implementation that we did not write, and pitfalls tell."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checkpoints.wan_folders import native_names
from worldline.checkpoints import keymap, wan
from worldline.checkpoints.headers import kind_of
from worldline.checkpoints.keymap import Piece, to_theirs
from worldline.dit.model import DiT
from worldline.dit.patchify import coordinates, patchify, unpatchify
from worldline.dit.told import Told
from worldline.errors import UserError

SHAPES = ((1, 4, 6), (3, 4, 4), (5, 6, 2), (2, 10, 8))  # latents (T, H, W)
TINY = dict(
    num_attention_heads=2,
    attention_head_dim=20,  # splits unevenly: 8, 6, 6
    in_channels=4,
    out_channels=4,
    text_dim=12,
    freq_dim=16,
    ffn_dim=70,
    num_layers=2,
)
IMAGE = dict(in_channels=4 + 4 + 4, image_dim=10, added_kv_proj_dim=40)
BOTH_ENDS = {**IMAGE, "pos_embed_seq_len": 6}
KINDS = {"text": {}, "image": IMAGE, "both ends": BOTH_ENDS, "image, no CLIP": {"in_channels": 12}}
TEXT, PAD = 7, 16  # words, and rows that the encoder pads them to


def theirs(**more: Any) -> Any:
    """A diffusers model whose every parameter is random, gains, biases and tables too."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = diffusers.WanTransformer3DModel(**{**TINY, **more}).eval()
    for name, value in model.named_parameters():
        value.data = torch.randn_like(value) * (0.3 if value.dim() > 1 else 0.5)
        if "norm" in name and name.endswith("weight"):
            value.data += 1
    return model


def ours(model: Any) -> DiT:
    config = wan.config_of({k: v for k, v in model.config.items() if not k.startswith("_")})
    return Piece("tiny", lambda: DiT(config), model.state_dict(), wan.table(config)).load()


def inputs(model: Any, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Random inputs in their layout: latents (1, C, T, H, W), padded text, a picture's states."""
    torch.manual_seed(sum(shape))
    text = torch.randn(1, TEXT, model.config.text_dim)
    found = {
        "hidden_states": torch.randn(1, model.config.in_channels, *shape),
        "encoder_hidden_states": torch.nn.functional.pad(text, (0, 0, 0, PAD - TEXT)),
        "timestep": torch.tensor([437]),
    }
    if model.config.image_dim:
        rows = (model.config.pos_embed_seq_len or 10) // 2
        images = torch.randn(2 if model.config.pos_embed_seq_len else 1, rows, model.config.image_dim)
        found["encoder_hidden_states_image"] = images
    return found


def answer(dit: DiT, given: dict[str, Tensor], per_token: Tensor | None = None, rows: int = PAD) -> Tensor:
    """Ours on the same inputs, told of `rows` - TEXT rows of padding: (1, C, T, H, W)."""
    latents, config = given["hidden_states"][0], dit.config
    c, m = config.in_channels, config.mask_values
    tokens, coords = patchify(latents[:c], config.patch)
    known = patchify(latents[c + m :], config.patch)[0] if config.masks else None
    mask = patchify(latents[c : c + m], config.patch)[0] if config.masks else None
    text = given["encoder_hidden_states"][0, :TEXT]
    image = given.get("encoder_hidden_states_image")
    image = None if image is None else image.flatten(0, 1)
    cu_image = None if image is None else torch.tensor([0, len(image)])
    told = Told(text, torch.tensor([0, TEXT]), torch.tensor([rows - TEXT]), None, image, cu_image)
    time = torch.full((len(tokens),), 0.437) if per_token is None else per_token
    out = dit(tokens, coords, torch.tensor([0, len(tokens)]), time, dit.read(told), known=known, mask=mask)
    return unpatchify(out, (c, *latents.shape[1:]), config.patch)[None]


def error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@torch.no_grad()
def reference(model: Any, given: dict[str, Tensor]) -> Tensor:
    image = given.get("encoder_hidden_states_image")
    if image is not None and len(image) == 1:
        pass
    out: Tensor = model(**given, return_dict=False)[0]
    return out


@pytest.fixture(autouse=True)
def _long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processor takes the last 512 rows of a picture's and a text's states for the text; here the text has 16."""
    module = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    call = module.WanAttnProcessor.__call__

    def shorter(self: Any, attn: Any, hidden: Tensor, states: Tensor | None = None, *rest: Any, **more: Any) -> Tensor:
        if attn.add_k_proj is not None and states is not None:
            picture, text = states[:, : states.shape[1] - PAD], states[:, -PAD:]
            # Zero rows of text change what is attended to: repeated rows weigh as one of log(count).
            states = torch.cat([picture, text.repeat_interleave(512 // PAD, dim=1)], dim=1)
        out: Tensor = call(self, attn, hidden, states, *rest, **more)
        return out

    monkeypatch.setattr(module.WanAttnProcessor, "__call__", shorter)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_the_transformer_is_wans(kind: str, shape: tuple[int, int, int]) -> None:
    model = theirs(**KINDS[kind])
    given = inputs(model, shape)
    assert error(answer(ours(model), given), reference(model, given)) < 1e-5


@torch.no_grad()
def test_every_token_may_have_its_own_time() -> None:
    """Wan 2.2 TI2V: the picture's tokens have time 0."""
    model = theirs()
    given = inputs(model, (3, 4, 4))
    times = torch.full((12,), 437)
    times[:4] = 0
    expected = reference(model, {**given, "timestep": times[None]})
    assert error(answer(ours(model), given, times / 1000), expected) < 1e-5


@torch.no_grad()
def test_tensors_go_both_ways() -> None:
    for kind in KINDS.values():
        model = theirs(**kind)
        dit = ours(model)
        back = dict(to_theirs(wan.table(dit.config), dit.state_dict()))
        assert back.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(back[name], value), name
        again = {name: value for name, value in model.config.items() if name in wan.FIELDS}
        assert {k: tuple(v) if isinstance(v, list) else v for k, v in wan.config_to(dit.config).items()} == {
            **again, "patch_size": tuple(again["patch_size"])}  # fmt: skip


def test_the_authors_names_and_shapes_say_the_same() -> None:
    for kind in (KINDS["text"], KINDS["both ends"]):
        model = theirs(**kind)
        native = native_names(model.state_dict())
        assert "authors' names" in kind_of(native).what
        assert "blocks.0.self_attn.norm_q.weight" in native
        renamed = keymap.renaming(wan.NATIVE)
        named = {renamed(name): value for name, value in native.items()}
        assert named.keys() == model.state_dict().keys()
        found = wan.config_of_shapes({name: value.shape for name, value in named.items()}, {"num_heads": 2})
        assert wan.config_of(found) == wan.config_of({k: v for k, v in model.config.items() if k in wan.FIELDS})


def test_a_foreign_config_is_one_line() -> None:
    for wrong, named in (({"window": 3}, "window"), ({"eps": 1e-5}, "eps"), ({"in_channels": 23}, "in_channels=23")):
        with pytest.raises(UserError, match=named):
            wan.config_of({**TINY, **wrong})
    model = theirs()
    weights = model.state_dict()
    del weights["proj_out.bias"]
    weights["extra"] = torch.zeros(1)
    weights["blocks.0.attn1.norm_added_q.weight"] = torch.zeros(1)
    weights["proj_out.weight"] = torch.zeros(3, 3)
    told = r"missing: proj_out\.bias; unexpected: extra; mis-shaped: proj_out\.weight \(3, 3\) for \(16, 40\);"
    config = wan.config_of(TINY)
    with pytest.raises(UserError, match=told):
        Piece("tiny", lambda: DiT(config), weights, wan.table(config), wan.UNUSED).load()


# ---- every pitfall shows -----------------------------------------------------------------------


def broken(name: str, dit: DiT, given: dict[str, Tensor]) -> Tensor:
    """Our answer with one of the known mistakes of implementers put in."""
    import dataclasses

    def rebuilt(**changes: Any) -> DiT:
        other = DiT(dataclasses.replace(dit.config, **changes)).eval()
        other.load_state_dict(dit.state_dict())
        return other

    match name:
        case "exact GELU in the MLP":
            return answer(rebuilt(mlp_gelu="none"), given)
        case "time in the head's order of axes":
            return answer(rebuilt(rope_axes=(6, 6, 8)), given)
        case "norm without the mean":
            return answer(rebuilt(norm="rms"), given)
        case "padding left out":
            return answer(dit, given, rows=TEXT)
        case "queries normalised per head":
            from worldline.nn import rope

            whole = rope._rotated_across
            rope._rotated_across = lambda qkv, gain, table, eps: _per_head(whole, qkv, gain, table, eps)
            try:
                return answer(dit, given)
            finally:
                rope._rotated_across = whole
        case "time not in whole steps":
            return answer(dit, given, torch.full((len(patchify(given["hidden_states"][0], (1, 2, 2))[0]),), 0.4379))
    raise AssertionError(name)


def _per_head(whole: Any, qkv: Tensor, gain: Tensor, table: Any, eps: float) -> Any:
    heads = qkv.shape[1] // 3
    each = [whole(qkv[:, i::heads], gain[:, i : i + 1], table, eps) for i in range(heads)]
    return tuple(torch.cat(parts, dim=1) for parts in zip(*each, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "exact GELU in the MLP",
        "time in the head's order of axes",
        "norm without the mean",
        "padding left out",
        "queries normalised per head",
        "time not in whole steps",
    ],
)
@torch.no_grad()
def test_pitfalls_would_be_noticed(name: str) -> None:
    model = theirs()
    given = inputs(model, (3, 4, 4))
    assert error(broken(name, ours(model), given), reference(model, given)) > 1e-5


def test_coordinates_are_those_of_patches() -> None:
    assert len(coordinates((1, 4, 4), (1, 2, 2))) == 4
