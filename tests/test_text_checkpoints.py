"""Encoders as public checkpoints were taught with them, against transformers called directly on tiny random models.

Each test of a convention also shows that the convention beside it gives something else.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from worldline import text
from worldline.errors import UserError
from worldline.text import CachedText, HFImage, HFText, TextStates
from worldline.text.pretrained import cleaned
from worldline.text.states import joined

transformers = pytest.importorskip("transformers", reason="extra 'text' is not installed")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ("a", "red", "ball", "rolls", "to", "the", "left", "blue", "cube")
PROMPTS = ["a red ball rolls to the left", "", "a blue cube 球", "the ball"]
LENGTHS = [8, 1, 8, 3]  # of PROMPTS in pieces, the end included: 球 is a space and three bytes


def lively(model: Any) -> Any:
    """Every weight drawn anew, gains and biases too: defaults hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * drawn if weight.dim() == 1 else 0.3 * drawn)
    return model.eval()


def t5_like(kind: str, d_model: int = 24) -> Any:
    sizes = {"vocab_size": 300, "d_model": d_model, "d_kv": 8, "d_ff": 32, "num_layers": 3, "num_heads": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    return lively(getattr(transformers, f"{kind}EncoderModel")(config))


def clip_text(eos: int) -> Any:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.CLIPTextConfig(**sizes, num_attention_heads=2, eos_token_id=eos, bos_token_id=30)
    return lively(transformers.CLIPTextModel(config))


def save_umt5_tokenizer(folder: Path) -> Any:
    """As umT5's: the unknown piece at 3, bytes for what it does not know, and a config that calls it T5Tokenizer."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    pieces += [("▁", -2.0)] + [(f"▁{word}", -3.0) for word in WORDS]
    plain = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3, byte_fallback=True))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    plain.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "T5Tokenizer"}))
    return plain


def save_clip_tokenizer(folder: Path) -> None:
    """As CLIP's: begin and end around the words, padded with the end, 77 at most; the end has the highest id."""
    words = {word: i for i, word in enumerate(WORDS)} | {"<unk>": 29, "<begin>": 30, "<end>": 31}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("<begin>", 30), ("<end>", 31)]
    plain.post_processor = tokenizers.processors.TemplateProcessing(single="<begin> $A <end>", special_tokens=ends)
    names = {"pad_token": "<end>", "eos_token": "<end>", "bos_token": "<begin>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=77, **names)
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: umT5 first, CLIP second, CLIP's image tower; and T5 in a folder of its own, `t5`."""
    folder: Path = tmp_path_factory.mktemp("pipeline")
    t5_like("UMT5").save_pretrained(folder / "text_encoder")
    save_umt5_tokenizer(folder / "tokenizer")
    clip_text(eos=31).save_pretrained(folder / "text_encoder_2")
    save_clip_tokenizer(folder / "tokenizer_2")
    t5_like("T5").save_pretrained(folder / "t5")
    save_umt5_tokenizer(folder / "t5")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=28, patch_size=7, hidden_act="gelu")
    lively(transformers.CLIPVisionModel(vision)).save_pretrained(folder / "image_encoder")
    (folder / "image_processor").mkdir()
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 28},
        "crop_size": {"height": 28, "width": 28},
    }
    (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def umt5(pipeline: Path) -> HFText:
    """In double precision: it encodes fewer rows than its references, and rounding must not blur what that changes."""
    return HFText(str(pipeline), 512, torch.float64, padding="zeros", clean=True)


def rows(states: TextStates) -> list[Tensor]:
    return list(states.states.tensor_split(states.cu_seqlens[1:-1]))


def distance(got: Tensor, reference: Tensor) -> float:
    """Relative, over all: single elements may be near zero."""
    return float((got - reference).norm() / reference.norm())


def ids_of(folder: Path, length: int) -> tuple[Tensor, Tensor]:
    """(B, length) ids of PROMPTS and their mask, by the tokenizers library alone."""
    plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain.enable_padding(length=length)
    plain.enable_truncation(length)
    encoded = plain.encode_batch(PROMPTS)
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


def padded(states: TextStates) -> Tensor:
    """States with the rows of zeros in their places: (B, rows, D)."""
    assert states.padding is not None
    parts = zip(states.each(), states.padding.tolist(), strict=True)
    return torch.stack([F.pad(part.states, (0, 0, 0, zeros)) for part, zeros in parts])


@torch.no_grad()
def test_umt5_is_encoded_with_a_mask_and_followed_by_zeros(pipeline: Path, umt5: HFText) -> None:
    """Wan: the authors pad to 512 with a mask, keep the prompt's states, and attend to zeros up to 512."""
    assert type(umt5.model).__name__ == "UMT5EncoderModel"
    got = umt5.encode(PROMPTS)
    assert got.cu_seqlens.diff().tolist() == LENGTHS
    assert got.padding is not None
    assert got.padding.tolist() == [512 - n for n in LENGTHS]
    ids, mask = ids_of(pipeline / "tokenizer", 512)
    model = t5_like("UMT5").double()
    reference = model(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, 512, D)
    assert distance(got.states, reference[mask.bool()]) < 1e-7
    whole = padded(got)
    cleared = reference * mask[..., None]
    assert distance(whole, cleared) < 1e-7
    assert torch.equal(whole == 0, cleared == 0)
    unmasked = model(input_ids=ids).last_hidden_state
    assert distance(got.states, unmasked[mask.bool()]) > 0.01
    assert distance(cleared, reference) > 0.5  # states of padding are not zeros


def test_umt5_empty_prompt_is_one_token(umt5: HFText) -> None:
    for prompt in ("", "  \n"):
        got = umt5.encode([prompt])
        assert got.cu_seqlens.tolist() == [0, 1]
        assert got.padding is not None
        assert got.padding.tolist() == [511]


def test_umt5_prompts_beyond_512_are_cut_with_their_end_kept(umt5: HFText) -> None:
    got = umt5.encode(["ball " * 600, "a ball"])
    assert got.truncated is not None
    assert got.truncated.tolist() == [True, False]
    assert got.padding is not None
    assert got.padding.tolist() == [0, 509]


@torch.no_grad()
def test_umt5_is_that_of_the_diffusers_pipeline(umt5: HFText) -> None:
    """At 512 tokens: its `encode_prompt` alone takes 226."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    pytest.importorskip("ftfy")
    parts = {"vae": None, "transformer": None, "scheduler": diffusers.UniPCMultistepScheduler()}
    pipe = diffusers.WanPipeline(tokenizer=umt5.tokenizer, text_encoder=umt5.model, **parts)
    prompts = [*PROMPTS, "the “red”\n ball &amp;amp; ﬁ"]
    settings = {"do_classifier_free_guidance": False, "device": torch.device("cpu")}
    reference, _ = pipe.encode_prompt(prompts, max_sequence_length=512, **settings)
    got = padded(umt5.encode(prompts))
    assert distance(got, reference) < 1e-7
    shorter, _ = pipe.encode_prompt(prompts, **settings)
    assert shorter.shape[1] != 512


def test_tokenizer_json_is_taken_as_it_stands(pipeline: Path, umt5: HFText) -> None:
    """transformers' own T5Tokenizer knows no bytes and gives 2 for what it does not know: here the beginning."""
    ids, mask = ids_of(pipeline / "tokenizer", 512)
    for prompt, row, real in zip(PROMPTS, ids, mask, strict=True):
        assert umt5.tokenizer(prompt)["input_ids"] == row[real.bool()].tolist()
    assert umt5.tokenizer("球")["input_ids"] == [260, *(4 + byte for byte in "球".encode()), 1]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("  a\t red \n\n ball ", "a red ball"),
        ("a &amp;amp; b &lt;i&gt;", "a & b <i>"),
        ("<i> &amp;amp; b", "<i> & b"),  # beside a tag ftfy leaves entities alone
        ("“quoted” ﬁne", '"quoted" fine'),
        ("Ｆｕｌｌ", "Full"),
        ("schÃ¶n", "schön"),
        ("Red, 球!", "Red, 球!"),
    ],
)
def test_prompts_are_cleaned_as_the_authors_do(prompt: str, expected: str) -> None:
    pytest.importorskip("ftfy")
    assert cleaned(prompt) == expected


def test_without_ftfy_it_says_so_instead_of_reading_otherwise(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(UserError, match=r"ftfy.*worldline\[text\]"):
        HFText(str(pipeline), 512, padding="zeros", clean=True)
    HFText(str(pipeline), 512, padding="zeros")


@torch.no_grad()
def test_t5_of_open_sora_attends_to_its_padding_and_keeps_it(pipeline: Path) -> None:
    encoder = HFText(str(pipeline / "t5"), 512, padding="encoded")
    got = encoder.encode(PROMPTS)
    assert got.cu_seqlens.tolist() == [0, 512, 1024, 1536, 2048]
    assert got.padding is None
    ids, mask = ids_of(pipeline / "t5", 512)
    model = t5_like("T5")
    reference = model(input_ids=ids, attention_mask=None).last_hidden_state
    assert distance(got.states, reference.flatten(0, 1)) < 1e-6
    masked = model(input_ids=ids, attention_mask=mask).last_hidden_state.flatten(0, 1)
    real = mask.bool().flatten()
    assert distance(got.states[real], masked[real]) > 0.01
    long = encoder.encode(["ball " * 600, "a ball"])
    assert long.truncated is not None
    assert long.truncated.tolist() == [True, False]
    assert long.cu_seqlens.tolist() == [0, 512, 1024]


def test_encoders_are_found_within_whole_models(tmp_path: Path) -> None:
    """T5 with its decoder and CLIP with both towers, as their makers published them, lack nothing."""
    sizes = {"vocab_size": 300, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    t5 = lively(transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)))
    t5.save_pretrained(tmp_path / "t5")
    save_umt5_tokenizer(tmp_path / "t5")
    got = HFText(str(tmp_path / "t5")).encode(["a red ball"])
    with torch.no_grad():
        reference = t5.encoder(input_ids=torch.tensor([[261, 262, 263, 1]])).last_hidden_state[0]
    torch.testing.assert_close(got.states, reference, atol=1e-5, rtol=1e-5)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {**sizes, "vocab_size": 32, "eos_token_id": 31, "bos_token_id": 30}
    config = transformers.CLIPConfig(text_config=words, vision_config={**sizes, "image_size": 28, "patch_size": 7})
    clip = lively(transformers.CLIPModel(config))
    clip.save_pretrained(tmp_path / "clip")
    save_clip_tokenizer(tmp_path / "clip")
    encoder = HFText(str(tmp_path / "clip"))
    assert encoder.width == 16
    pooled = encoder.encode(["a red ball"]).pooled
    with torch.no_grad():
        inner = clip.text_model(input_ids=torch.tensor([[30, 0, 1, 2, 31]])).pooler_output
    assert pooled is not None
    torch.testing.assert_close(pooled, inner, atol=1e-6, rtol=1e-6)
    assert HFImage(str(tmp_path / "clip")).encode(pictures(28, 28)).shape == (2, 17, 16)


def test_rows_that_were_promised_are_given_whatever_the_tokenizer_says(tmp_path: Path) -> None:
    t5_like("T5").save_pretrained(tmp_path)
    save_umt5_tokenizer(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 16}))
    assert len(HFText(str(tmp_path), 64, padding="encoded").encode(["a ball"]).states) == 64
    assert HFText(str(tmp_path), 64).max_tokens == 16


@torch.no_grad()
@pytest.mark.parametrize("eos", [31, 2], ids=["config names the end", "config of 2021 names another"])
def test_clip_is_pooled_at_its_end_token(tmp_path: Path, eos: int) -> None:
    """Open-Sora pads to 77 without a mask; CLIP looks back only, so nothing after the end reaches it."""
    model = clip_text(eos)
    model.save_pretrained(tmp_path)
    save_clip_tokenizer(tmp_path)
    encoder = HFText(str(tmp_path), 77)
    prompts = [*PROMPTS, "ball " * 90]
    got = encoder.encode(prompts)
    assert got.pooled is not None
    assert got.pooled.shape == (5, 16)
    padded = encoder.tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    reference = model(input_ids=padded["input_ids"], attention_mask=None).pooler_output
    torch.testing.assert_close(got.pooled, reference, atol=1e-6, rtol=1e-6)
    ends = torch.stack([states[-1] for states in rows(got)])
    torch.testing.assert_close(got.pooled, ends, atol=1e-6, rtol=1e-6)
    assert got.cu_seqlens.diff().tolist() == [9, 2, 6, 4, 77]


def test_cache_keeps_padding_and_pooled(pipeline: Path, umt5: HFText) -> None:
    clip = HFText(str(pipeline), 77, subfolder="text_encoder_2")
    for encoder in (umt5, clip):
        cached = CachedText(encoder)
        cached.encode(PROMPTS[:2])
        got, plain = cached.encode(PROMPTS[::-1]), encoder.encode(PROMPTS[::-1])
        for one, other in zip(got, plain, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        again = joined(plain.each())
        assert all(one is other or torch.equal(one, other) for one, other in zip(again, plain, strict=True))


def test_parts_of_a_pipeline_are_found_by_name(pipeline: Path) -> None:
    assert type(HFText(str(pipeline)).model).__name__ == "UMT5EncoderModel"
    second = HFText(str(pipeline), subfolder="text_encoder_2")
    assert type(second.model).__name__ == "CLIPTextModel"
    assert second.max_tokens == 77
    with pytest.raises(UserError, match="text encoder"):
        HFText(str(pipeline), subfolder="text_encoder_3")


def test_config_round_trip(pipeline: Path, umt5: HFText) -> None:
    config = json.loads(json.dumps(text.encoder_config(CachedText(umt5))))
    again = text.from_config(config)
    assert text.encoder_config(again) == config
    assert distance(padded(again.encode(PROMPTS)), padded(umt5.encode(PROMPTS))) < 1e-5
    old = {"_class_name": "HFText", "path": str(pipeline), "max_tokens": 6}
    assert text.from_config(old).encode(PROMPTS).padding is None
    with pytest.raises(UserError, match="padding='ones'"):
        text.from_config({**old, "padding": "ones"})


def test_pickles_and_missing_weights_are_refused(tmp_path: Path) -> None:
    """transformers alone would read the first, and draw at random what is missing."""
    from safetensors.torch import load_file, save_file

    t5_like("UMT5").save_pretrained(tmp_path)
    save_umt5_tokenizer(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    gone = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    save_file(
        {name: w for name, w in weights.items() if name != gone}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=rf"1 weights are missing, such as {gone}"):
        HFText(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        HFText(str(tmp_path))


def pictures(height: int, width: int) -> Tensor:
    """(2, 3, H, W) in [-1, 1], exact in 8 bits."""
    drawn = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0))
    return drawn / 127.5 - 1


@torch.no_grad()
def test_image_states_are_those_before_the_last_layer(pipeline: Path) -> None:
    pixels = pictures(28, 28)
    mean, std = (torch.tensor(v)[:, None, None] for v in text.image.CLIP_STATISTICS)
    model = transformers.CLIPVisionModel.from_pretrained(pipeline / "image_encoder")
    states = model(pixel_values=((pixels + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states
    got = HFImage(str(pipeline)).encode(pixels)
    assert got.shape == (2, 17, 16)
    torch.testing.assert_close(got, states[-2], atol=1e-5, rtol=1e-6)
    assert (states[-1] - got).abs().max() > 0.1
    theirs = HFImage(str(pipeline), resize="diffusers").encode(pixels)
    torch.testing.assert_close(got, theirs, atol=1e-5, rtol=1e-6)


@torch.no_grad()
def test_images_of_another_size_are_stretched_or_cut(pipeline: Path) -> None:
    """The authors' resizing is torch's; diffusers' is that of the pipeline's processor, on 8-bit images."""
    from PIL import Image

    pixels = pictures(40, 64)
    authors, theirs = (HFImage(str(pipeline), resize=resize) for resize in ("authors", "diffusers"))
    square = F.interpolate(pixels, size=(28, 28), mode="bicubic", align_corners=False)
    torch.testing.assert_close(authors.encode(pixels), authors.encode(square))
    images = [Image.fromarray(((p + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()) for p in pixels]
    processor = transformers.AutoImageProcessor.from_pretrained(pipeline / "image_processor")
    ready = processor(images=images, return_tensors="pt")
    reference = theirs.model(**ready, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(theirs.encode(pixels), reference, atol=1e-6, rtol=1e-6)
    assert (authors.encode(pixels) - reference).abs().max() > 0.1


def test_image_encoder_is_refused_in_one_line(pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resize='lanczos'"):
        HFImage(str(pipeline), resize="lanczos")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="image encoder"):
        HFImage(str(tmp_path))
