"""Models of transformers by path, with tiny random weights made here: they are opened, shown frames, and answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from worldline.caption.captioner import Ways, captioner_of
from worldline.caption.rewrite import writer_of
from worldline.errors import UserError

transformers = pytest.importorskip("transformers")
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER", "a", "red", "ball", "video", "frames", "say", "."]
CHAT = (
    "{% for m in messages %}USER {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)


def tokenizer() -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, chat_template=CHAT,
    )  # fmt: skip


def small_text() -> object:
    return transformers.LlamaConfig(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0, max_position_embeddings=1024,
    )  # fmt: skip


def test_a_vision_language_model_captions_by_path(tmp_path: Path) -> None:
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=small_text(), image_token_id=WORDS.index("<image>")
    )
    transformers.set_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    transformers.LlavaProcessor(
        pictures, tokenizer(), patch_size=8, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=CHAT,
    ).save_pretrained(tmp_path)  # fmt: skip
    captioner = captioner_of(str(tmp_path), Ways(frames=2, prompt="say video"))
    clip = np.random.default_rng(0).integers(0, 255, (5, 20, 30, 3), np.uint8)
    said = captioner.describe([clip, clip], "full")
    assert said[0] == said[1]
    assert set(said[0].text.split()) <= set(WORDS)
    assert captioner.model == tmp_path.name
    assert "LlavaForConditionalGeneration" in captioner.version
    assert captioner.prompt("short") == "say video"


def test_a_language_model_rewrites_by_path(tmp_path: Path) -> None:
    transformers.set_seed(0)
    transformers.LlamaForCausalLM(small_text()).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)  # type: ignore[attr-defined]
    write, by = writer_of(str(tmp_path))
    assert write is not None
    assert by == tmp_path.name
    assert set(write("a red ball").split()) <= set(WORDS)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither an address .* nor a folder"):
        captioner_of(str(tmp_path))
    with pytest.raises(UserError, match=r"no config\.json"):
        writer_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(UserError, match="transformers cannot open it"):
        captioner_of(str(tmp_path))
