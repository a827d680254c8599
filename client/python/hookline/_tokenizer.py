"""Runs a model's tokenizer in this process, for `hookline.pack`. The ids are the same as the server's."""

from __future__ import annotations

import json
import pathlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash

_BOS = "<|bos|>"  # nanochat's


class _EncodingUnpickler(pickle.Unpickler):
    """Unpickles a tiktoken.Encoding, and refuses anything else, which could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            import tiktoken

            return tiktoken.Encoding
        raise pickle.UnpicklingError(f"refers to {module}.{name}, which a tokenizer does not need")


def find_tokenizer(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the tokenizer's file: `path` itself, or if `path` is a directory, the file that the server finds
    for it."""
    given = pathlib.Path(path)
    if not given.is_dir():
        if not given.exists():
            raise FileNotFoundError(f"{given}: no such file or directory")
        return given
    places = [given / "tokenizer.json", given / "tokenizer.pkl", given / ".." / ".." / "tokenizer" / "tokenizer.pkl"]
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(f"{given}: no tokenizer; looked for {', '.join(map(str, places))}")


class LocalTokenizer:
    """A tokenizer. `before` and `after` are the special tokens that it adds to a text by default."""

    def __init__(self, path: str | pathlib.Path) -> None:
        self.path = find_tokenizer(path)
        data = self.path.read_bytes()
        self.fingerprint = xxhash.xxh3_128_hexdigest(data)
        self.before: list[int] = []
        self.after: list[int] = []
        self._roles: dict[str, str] = {}
        self._encoding: Any = None
        self._tokenizer: Any = None
        if self.path.suffix == ".pkl":
            with open(self.path, "rb") as file:
                self._encoding = _EncodingUnpickler(file).load()
            self._ids = dict(self._encoding._special_tokens)
            if _BOS in self._ids:
                self._roles["bos"] = _BOS
            self.end_id = self._encoding.n_vocab
        else:
            self._load_json(data)

    def _load_json(self, data: bytes) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self._ids = vocabulary
        self.end_id = max(vocabulary.values()) + 1
        config = self._config("tokenizer_config.json")
        names = self._config("special_tokens_map.json")
        for role in ("bos", "eos", "pad", "unk"):
            for source in (config, names):
                token = source.get(f"{role}_token")
                token = token.get("content") if isinstance(token, dict) else token
                if role not in self._roles and isinstance(token, str) and token in vocabulary:
                    self._roles[role] = token
        plain = self._tokenizer.encode("a", add_special_tokens=False).ids
        whole = self._tokenizer.encode("a").ids
        start = next(i for i in range(len(whole) + 1) if whole[i : i + len(plain)] == plain)
        self.before, self.after = whole[:start], whole[start + len(plain) :]
        self._apply(config.get("add_bos_token"), "bos", self.before, 0)
        self._apply(config.get("add_eos_token"), "eos", self.after, -1)

    def _config(self, name: str) -> dict[str, Any]:
        path = self.path.parent / name
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _apply(self, wanted: Any, role: str, side: list[int], place: int) -> None:
        """Makes the first or last token of `side` the token of a role, or removes it, as `wanted` in a config says."""
        if not isinstance(wanted, bool) or role not in self._roles:
            return
        token = self._ids[self._roles[role]]
        is_there = bool(side) and side[place] == token
        if wanted and not is_there:
            side.insert(0 if place == 0 else len(side), token)
        elif is_there and not wanted:
            del side[place]

    def token_id(self, token: int | str | None) -> int | None:
        """Returns the id for "bos", "eos", "pad", "unk", a spelling or an id. ValueError if it is not a token."""
        if token is None:
            return None
        spelling = self._roles.get(token, token) if isinstance(token, str) else token
        if isinstance(spelling, str) and spelling in self._ids:
            return int(self._ids[spelling])
        if isinstance(spelling, str) and spelling.isdecimal():
            spelling = int(spelling)
        if isinstance(spelling, int) and 0 <= spelling < self.end_id:
            return spelling
        raise ValueError(
            f"{token!r} is not a token of {self.path}; its roles are {', '.join(self._roles) or 'not known'}"
        )

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Returns the ids of each text, without special tokens, as uint32."""
        if self._encoding is not None:
            return [np.array(self._encoding.encode_ordinary(text), np.uint32) for text in texts]
        encode = getattr(self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch)
        return [np.array(one.ids, np.uint32) for one in encode(list(texts), add_special_tokens=False)]

    def spelling(self, role: str) -> str | None:
        return self._roles.get(role)
