#!/usr/bin/env python3
"""Checks that delphi and SAEDashboard read what `Client.top_activations` and `hookline examples` write.

    tests/bench/evaluation/check_examples.py --server-program build/release/bin/hookline-server \\
        --program build/release/bin/hookline

Needs eai-delphi 0.1.3 and sae-dashboard 0.8 with what they import. delphi's `LatentDataset` must load every latent,
with the windows and activations of its examples; SAEDashboard's `SaeVisData.load_json` must load them too, and its
`save_feature_centric_vis` must draw them. The command line and the Python client must write the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "client" / "python"), str(ROOT / "tests" / "bench" / "evaluation")]

from check_run_evals import Server  # noqa: E402
from delphi.config import ConstructorConfig, SamplerConfig  # noqa: E402
from delphi.latents.loader import LatentDataset  # noqa: E402
from sae_dashboard.components_config import ActsHistogramConfig, Column, SequencesConfig  # noqa: E402
from sae_dashboard.data_writing_fns import save_feature_centric_vis  # noqa: E402
from sae_dashboard.layout import SaeVisLayoutConfig  # noqa: E402
from sae_dashboard.sae_vis_data import SaeVisConfig, SaeVisData  # noqa: E402
from sae_dashboard.utils_fns import FeatureStatistics  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

import hookline  # noqa: E402

FIXTURES = ROOT / "tests" / "fixtures"
DATASET = hookline.Dataset("text", sequence_length=64, sequence_count=100)
LATENTS, TOP, CONTEXT = range(10, 21), 8, 32


class Tokenizer:
    """The part of a tokenizer that the packages use: a token is its number."""

    def batch_decode(self, ids, **_):
        return [f"{int(one)} " for one in np.ravel(ids)]

    def decode(self, ids, **_):
        return " ".join(str(int(one)) for one in np.ravel(ids))

    convert_ids_to_tokens = batch_decode


def check_delphi(found: hookline.TopActivations, folder: Path) -> None:
    dataset = LatentDataset(
        raw_dir=folder,
        modules=["sae"],
        sampler_cfg=SamplerConfig(n_examples_train=3, n_examples_test=2, n_quantiles=2, train_type="top"),
        constructor_cfg=ConstructorConfig(min_examples=1, example_ctx_len=CONTEXT, n_non_activating=2),
        tokenizer=Tokenizer(),
        latents={"sae": torch.tensor([one for one in found.latents if found.latents[one].firings])},
    )
    seen = 0
    for record in dataset:
        one = found.latents[record.latent.latent_index]
        strongest = one.examples[0]
        example = record.examples[0]
        np.testing.assert_array_equal(example.tokens.numpy(), strongest.token_ids)
        np.testing.assert_allclose(example.activations.numpy(), np.maximum(strongest.activations, 0), rtol=1e-6)
        seen += 1
    assert seen == sum(one.firings > 0 for one in found.latents.values()), seen
    print(f"delphi: {seen} latents, {dataset.tokens.shape[0]} windows of {dataset.tokens.shape[1]} tokens")


def check_sae_dashboard(found: hookline.TopActivations, path: Path, values: np.ndarray, drawn: Path) -> None:
    layout = SaeVisLayoutConfig(
        [Column(ActsHistogramConfig()), Column(SequencesConfig(top_acts_group_size=TOP, n_quantiles=0))]
    )
    config = SaeVisConfig(hook_point=found.dictionary.hook_point, features=list(LATENTS), feature_centric_layout=layout)
    model = SimpleNamespace(tokenizer=SimpleNamespace(vocab={str(i): i for i in range(300)}))
    data = SaeVisData.load_json(path, config, model=model, encoder=None)
    assert list(map(int, data.feature_data_dict)) == list(LATENTS)
    for latent, feature in data.feature_data_dict.items():
        one = found.latents[int(latent)]
        sequences = feature.sequence_data.seq_group_data[0].seq_data
        assert [sequence.token_ids for sequence in sequences] == [e.token_ids.tolist() for e in one.examples]
        assert sum(feature.acts_histogram_data.bar_heights) == one.firings
    own = FeatureStatistics.create(torch.from_numpy(values.reshape(-1, values.shape[-1])[:, list(LATENTS)].T.copy()))
    np.testing.assert_allclose(data.feature_stats.max, own.max, rtol=1e-4)
    np.testing.assert_allclose(data.feature_stats.frac_nonzero, own.frac_nonzero, rtol=1e-5)
    assert data.feature_stats.quantiles == own.quantiles
    for got, expected in zip(data.feature_stats.quantile_data, own.quantile_data):
        assert abs(len(got) - len(expected)) <= 1, (len(got), len(expected))
        shared = min(len(got), len(expected))
        if shared:
            np.testing.assert_allclose(got[-shared:], expected[-shared:], rtol=1e-3, atol=1e-4)
    save_feature_centric_vis(data, drawn)
    print(f"SAEDashboard: {len(data.feature_data_dict)} latents, a page of {drawn.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server-program", required=True)
    parser.add_argument("--program", required=True)
    arguments = parser.parse_args()
    dictionary = FIXTURES / "evaluation" / "dictionaries" / "gpt2_jumprelu"
    tokens = FIXTURES / "nanochat" / "demo" / "tokens.npy"
    options = ["--dictionary", f"sae={dictionary}", "--dataset", f"text={tokens}"]
    with (
        tempfile.TemporaryDirectory() as name,
        Server(arguments.server_program, FIXTURES / "families" / "gpt2", options) as client,
    ):
        folder = Path(name)
        found = client.top_activations("sae", DATASET, LATENTS, top=TOP, context=CONTEXT)
        point = f"{found.dictionary.hook_point}.sae.hook_sae_acts_post"
        values = np.concatenate([batch[point] for batch in client.capture(point, DATASET, output="numpy")])
        found.save_delphi(folder / "python")
        found.save_sae_dashboard(folder / "python.json")
        subprocess.run(
            [arguments.program, "examples", "sae", "--server", client.address, "--dataset", "text", "--quiet"]
            + ["--sequence-length", "64", "--sequence-count", "100", "--latents", "10-20", "--top", str(TOP)]
            + ["--context", str(CONTEXT), "--delphi", str(folder / "cli"), "--sae-dashboard", str(folder / "cli.json")],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for writer in ("python", "cli"):
            check_delphi(found, folder / writer)
            check_sae_dashboard(found, folder / f"{writer}.json", values, folder / f"{writer}.html")
        ours, theirs = (load_file(folder / writer / "sae" / "10_20.safetensors") for writer in ("python", "cli"))
        for tensor in ours:
            np.testing.assert_allclose(ours[tensor], theirs[tensor], rtol=1e-5)
    print("the command line and the Python client write the same")


if __name__ == "__main__":
    main()
