r"""Captions: texts as the tokens that a network attends to.

An encoder is any callable from a list of texts to tokens (B, L, E) and their mask (B, L), True where there is a token.
:class:`Words` and :class:`Bytes` need no training, know every word and are the same on every machine: each word, or
byte, has a vector of standard normals that is a hash of it, to which the sines and cosines of its position are added
(Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5). A text without words has no tokens, which is the
null of a network.
"""

from __future__ import annotations

__all__ = ["Bytes", "Encoder", "Transformers", "Words"]

import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..shapes import as_tensor, check_count


class Encoder(Protocol):
    """A callable from texts to tokens; `repr` of it tells two encoders apart, for what is stored."""

    def __call__(self, texts: Sequence[str], /) -> tuple[Tensor, Tensor]:
        """The tokens, with shape (B, L, E), and their mask, bool (B, L), of B texts; L is the same for every B."""


@dataclass(frozen=True)
class Words:
    """The words of a text, without regard to case, each as a vector.

    Args:
        length: L, the largest number of words.
        size: E, the length of a vector.

    Raises:
        ValueError: if a number is not positive; for a text with more words.
    """

    length: int = 16
    size: int = 32

    def __post_init__(self) -> None:
        check_count("Words", "length", self.length)
        check_count("Words", "size", self.size)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return _hashed(texts, lambda text: re.findall(r"\w+", text.lower()), self.length, self.size, "words")


@dataclass(frozen=True)
class Bytes:
    """The bytes of a text in UTF-8, each as a vector.

    Args:
        length: L, the largest number of bytes.
        size: E, the length of a vector.

    Raises:
        ValueError: if a number is not positive; for a text with more bytes.
    """

    length: int = 64
    size: int = 32

    def __post_init__(self) -> None:
        check_count("Bytes", "length", self.length)
        check_count("Bytes", "size", self.size)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return _hashed(texts, lambda text: list(map(str, text.encode())), self.length, self.size, "bytes")


@dataclass(frozen=True)
class Transformers:
    """The last hidden states of a text model of Hugging Face's `transformers`, from a local directory.

    It needs the extra `text`. Nothing is downloaded, and no code of the directory is run.

    Args:
        path: the directory, as `save_pretrained` writes it, with the weights in safetensors.
        length: L, to which texts are padded; longer ones are refused.

    Raises:
        ValueError: if there is no such directory, or for a text with more tokens.
    """

    path: str
    length: int = 77

    def __post_init__(self) -> None:
        check_count("Transformers", "length", self.length)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokenizer, model = self._load()
        padding: dict[str, Any] = {"padding": "max_length", "max_length": self.length, "return_tensors": "pt"}
        inputs = tokenizer(list(texts), truncation=False, **padding)
        if inputs["input_ids"].shape[1] > self.length:
            raise ValueError(f"expected texts of at most {self.length} tokens, got {inputs['input_ids'].shape[1]}")
        with torch.no_grad():
            states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        return states.float(), inputs["attention_mask"].bool()

    def _load(self) -> tuple[Any, Any]:
        if not Path(self.path).is_dir():
            raise ValueError(f"{self.path} is no directory of a text model, as save_pretrained writes it")
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ValueError(f"text models need transformers: pip install 'score-sde[text]' ({error})") from error
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model = transformers.AutoModel.from_pretrained(self.path, use_safetensors=True, **local)
        return transformers.AutoTokenizer.from_pretrained(self.path, **local), getattr(
            model, "text_model", model
        ).eval()


def _hashed(
    texts: Sequence[str], cut: Callable[[str], list[str]], length: int, size: int, unit: str
) -> tuple[Tensor, Tensor]:
    parts = [cut(text) for text in texts]
    for text, part in zip(texts, parts):
        if len(part) > length:
            raise ValueError(f"expected a text of at most {length} {unit}, got {len(part)}: {text[:60]!r}")
    tokens = torch.zeros(len(texts), length, size, device="cpu")
    mask = torch.zeros(len(texts), length, dtype=torch.bool, device="cpu")
    words = sorted({word for part in parts for word in part})
    if words:
        hashes = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big", signed=True) for word in words]
        index = as_tensor(hashes, torch.int64)
        vectors = dict(zip(words, Noise(0).normal(Stream.TEXT, index, torch.zeros_like(index), (size,))))
        place = torch.arange(length, device="cpu")[:, None] * 1e2 ** (-torch.arange(0, size, 2, device="cpu") / size)
        waves = torch.stack([place.sin(), place.cos()], 2).flatten(1)[:, :size]
        for row, part in enumerate(parts):
            for column, word in enumerate(part):
                tokens[row, column] = vectors[word] + waves[column]
            mask[row, : len(part)] = True
    return tokens, mask
