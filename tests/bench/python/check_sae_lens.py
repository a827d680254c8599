#!/usr/bin/env python3
"""Compares hookline.sae_lens.data_provider with SAELens's own ActivationsStore, row by row.

    hookline-server --model tests/fixtures/nanochat/demo --listen 127.0.0.1:7471 &
    tests/bench/python/check_sae_lens.py --server 127.0.0.1:7471      # needs sae-lens 6.54

SAELens's store runs on a model whose activations are the server's, so both see the same model. Rows of `hook_embed` do
not depend on the batch that computes them and must be equal in every bit; rows of a residual stream must be equal
within rounding.

With `--transformers` the store runs on transformers' own model instead, wrapped by SAELens, and all rows must be equal
within rounding:

    hookline-server --model tests/fixtures/families/gpt2 --listen 127.0.0.1:7471 &
    tests/bench/python/check_sae_lens.py --transformers tests/fixtures/families/gpt2 --hook-points transformer.h.1
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import get_special_token_ids
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[3] / "client" / "python"))

import hookline  # noqa: E402

BOS = 256  # the demo model's
CONTEXT = 24
SEQUENCES = 150
BATCHES = 70  # which take several epochs
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no mixing": {"mix": 0.0},
    "all mixing": {"mix": 1.0},
    "a quarter": {"mix": 0.25},
    "special tokens": {"exclude": list(range(0, 256, 3))},
    "the tokenizer's special tokens": {"exclude": True},
    "slice": {"slice": (1, None)},
    "slice from the end": {"slice": (2, -3, 4)},
    "slice and special tokens": {"slice": (1, -1), "exclude": [3, 5, 7, 11], "mix": 0.7},
    "expected_average_only_in": {"normalize": "expected_average_only_in"},
    "constant_norm_rescale": {"normalize": "constant_norm_rescale"},
    "layer_norm": {"normalize": "layer_norm"},
    "odd prompts": {"prompts": 7},
}


class Tokenizer:
    """The part of a transformers tokenizer that SAELens asks for its special tokens."""

    bos_token_id = BOS
    eos_token_id = pad_token_id = sep_token_id = None


class ServersModel:
    """The part of a HookedTransformer that the store uses."""

    tokenizer = None

    def __init__(self, client: hookline.Client) -> None:
        self._client = client
        self.W_E = torch.empty(0)

    def run_with_cache(self, tokens: torch.Tensor, names_filter: list[str], **_: Any) -> tuple[None, Any]:
        rows = torch.cat([b[names_filter[0]] for b in self._client.capture(names_filter[0], tokens)])
        return None, {names_filter[0]: rows.reshape(*tokens.shape, -1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server", default="localhost:7471", help="host:port (default: %(default)s)")
    parser.add_argument("--hook-points", default="hook_embed,blocks.1.hook_resid_post", help="(default: %(default)s)")
    parser.add_argument("--transformers", type=Path, help="folder of the server's model, which the store then runs")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    client = hookline.connect(arguments.server)
    vocabulary = client.model().info.vocabulary_size
    ids = np.random.default_rng(0).integers(0, min(BOS, vocabulary), (SEQUENCES, CONTEXT))
    model: Any = ServersModel(client)
    cases = dict(CASES)
    if arguments.transformers is None:
        ids[:, 0] = ids[::3, 9] = BOS
    else:
        loaded = AutoModelForCausalLM.from_pretrained(arguments.transformers, dtype=torch.float32).eval()
        model = HookedProxyLM(loaded, None)  # type: ignore[arg-type]
        del cases["the tokenizer's special tokens"]  # this tokenizer has none
    dataset = datasets.Dataset.from_dict({"tokens": ids.tolist()})
    failures = 0
    for hook_point, (name, case) in itertools.product(arguments.hook_points.split(","), cases.items()):
        exclude, cut = case.get("exclude"), case.get("slice", (None,))
        kept = len(range(CONTEXT)[slice(*cut)])
        width = next(iter(client.capture(hook_point, ids[:1])))[hook_point].shape[1]
        store = ActivationsStore(
            model=model,
            dataset=dataset,
            streaming=False,
            hook_name=hook_point,
            hook_head_index=None,
            context_size=CONTEXT,
            d_in=width,
            n_batches_in_buffer=20,
            total_training_tokens=10**6,
            store_batch_size_prompts=case.get("prompts", 16),
            train_batch_size_tokens=64,
            prepend_bos=False,
            normalize_activations=case.get("normalize", "none"),
            device=torch.device("cpu"),
            dtype="float32",
            seqpos_slice=cut,
            # SAELens makes the store's value from LanguageModelSAERunnerConfig's in this way.
            exclude_special_tokens=None
            if exclude is None
            else torch.tensor(get_special_token_ids(Tokenizer()) if exclude is True else exclude),  # type: ignore[arg-type]
            activations_mixing_fraction=case.get("mix", 0.5),
        )
        torch.manual_seed(11)
        expected = [next(store) for _ in range(BATCHES)]
        provider = hookline.sae_lens.data_provider(
            client,
            hook_point,
            ids,
            batch_size=64,
            shuffle_buffer=20 * kept,
            mix_fraction=case.get("mix", 0.5),
            store_batch_size_prompts=case.get("prompts", 16),
            context_size=CONTEXT,
            seqpos_slice=cut,
            exclude_special_tokens=exclude,
            seed=11,
        )
        got = [next(provider) for _ in range(BATCHES)]
        if hook_point == "hook_embed":
            equal = sum(torch.equal(a, b) for a, b in zip(expected, got))
        else:
            equal = sum(torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(expected, got))
        failures += equal != BATCHES
        print(f"{hook_point:28} {name:28} {equal} of {BATCHES} batches equal", flush=True)
        provider.close()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
