#!/usr/bin/env python3
"""Compares `Client.loss_recovered` with SAELens's own `run_evals`, number by number.

    tests/bench/evaluation/check_run_evals.py --server-program build/release/bin/hookline-server

Needs sae-lens 6.54, transformer-lens 3 and transformers 5. For each fixture in the shape of GPT-2 and Llama, and each
architecture that SAELens trains, SAELens makes an autoencoder, saves it for inference and loads it again. Then
`run_evals` runs it in TransformerLens's model of the fixture, over SAELens's own store, and `loss_recovered` runs it
with the server's model, both with and without tokens that are left out. If the server can read the file
(`--dictionary`), its own reconstruction must give the same losses. All numbers must agree to 1e-4 (relative, where they
are above 1).
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import torch

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures"
sys.path[:0] = [str(ROOT / "client" / "python"), str(FIXTURES / "evaluation")]

from make_references import hooked  # noqa: E402
from sae_lens import SAE  # noqa: E402
from sae_lens.evals import EvalConfig, run_evals  # noqa: E402
from sae_lens.registry import get_sae_class, get_sae_training_class  # noqa: E402
from sae_lens.training.activation_scaler import ActivationScaler  # noqa: E402
from sae_lens.training.activations_store import ActivationsStore  # noqa: E402

import hookline  # noqa: E402
from hookline import Intervention  # noqa: E402

LATENTS, CONTEXT, BATCHES, PROMPTS = 96, 24, 3, 4
IGNORED = [3, 4, 5]
TOLERANCE = 1e-4
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard, layer_norm": ("standard", {"normalize_activations": "layer_norm"}),
    "standard, constant_norm_rescale": ("standard", {"normalize_activations": "constant_norm_rescale"}),
    "gated": ("gated", {}),
    "jumprelu": ("jumprelu", {"apply_b_dec_to_input": False}),
    "topk": ("topk", {"k": 5}),
    "topk, rescaled": ("topk", {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "batchtopk": ("batchtopk", {"k": 5}),
    "matryoshka_batchtopk": ("matryoshka_batchtopk", {"k": 5, "matryoshka_widths": [16, 48, LATENTS]}),
}
HOOK_POINTS = ("blocks.1.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z")


def make(kind: str, fixture: str, hook_point: str, rows: torch.Tensor, head: int | None, folder: Path) -> SAE[Any]:
    """Returns an autoencoder with weights that reconstruct something, saved for inference and loaded."""
    architecture, options = KINDS[kind]
    trained = architecture in ("batchtopk", "matryoshka_batchtopk")
    sae_class, config_class = (get_sae_training_class if trained else get_sae_class)(architecture)
    config = config_class(d_in=rows.shape[1], d_sae=LATENTS, **options)
    config.metadata.hook_name, config.metadata.model_name = hook_point, fixture
    config.metadata.hook_head_index = head
    sae = sae_class(config)
    random = torch.Generator().manual_seed(len(kind))
    spread = float((rows - rows.mean(0)).norm(dim=1).mean())
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=random) / rows.shape[1] ** 0.5)
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(rows.mean(0))
        for bias in ("b_enc", "b_gate", "b_mag", "r_mag"):
            if getattr(sae, bias, None) is not None:
                getattr(sae, bias).copy_(torch.randn(LATENTS, generator=random) * 0.05)
        for threshold in ("threshold", "topk_threshold"):  # for one latent, and for a whole batch
            if hasattr(sae, threshold):
                getattr(sae, threshold).fill_(0.1 * spread)
    (sae.save_inference_model if trained else sae.save_model)(str(folder))
    return SAE.load_from_disk(folder)


def store_of(model: Any, ids: torch.Tensor, hook_point: str, width: int) -> ActivationsStore:
    return ActivationsStore(
        model=model,
        dataset=datasets.Dataset.from_dict({"tokens": ids.tolist()}),
        streaming=False,
        hook_name=hook_point,
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=width,
        n_batches_in_buffer=4,
        total_training_tokens=10**6,
        store_batch_size_prompts=PROMPTS,
        train_batch_size_tokens=64,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
    )


def numbers_of_run_evals(sae: SAE[Any], model: Any, store: ActivationsStore, ignored: list[int]) -> dict[str, float]:
    config = EvalConfig(
        batch_size_prompts=PROMPTS,
        n_eval_reconstruction_batches=BATCHES,
        compute_kl=True,
        compute_ce_loss=True,
        n_eval_sparsity_variance_batches=BATCHES,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
    )
    metrics, _ = run_evals(sae, store, model, ActivationScaler(), config, exclude_special_tokens=ignored or False)
    return {name: value for group in metrics.values() for name, value in group.items()}


def worst(expected: dict[str, float], found: dict[str, float]) -> tuple[float, str]:
    return max((abs(found[name] - expected[name]) / max(1, abs(expected[name])), name) for name in found)


def found_here(
    client: hookline.Client, sae: SAE[Any], hook_point: str, ids: Any, ignored: list[int]
) -> dict[str, float]:
    told = client.loss_recovered(sae, hook_point, ids, ignore_token_ids=ignored)
    names = (
        *("ce_loss_with_sae", "ce_loss_without_sae", "ce_loss_with_ablation", "ce_loss_score"),
        *("kl_div_with_sae", "kl_div_with_ablation", "kl_div_score", "l0", "l1", "explained_variance", "mse", "cossim"),
    )
    return {name: getattr(told, name) for name in names}


def found_there(client: hookline.Client, hook_point: str, ids: Any) -> dict[str, float]:
    """Returns the measures that the server's own dictionary gives."""
    told = client.score(ids, {"sae": [Intervention.dictionary(hook_point, "sae")]}, kl=True).wait().variants["sae"]
    (replaced,) = told.replaced
    return {
        "ce_loss_with_sae": told.mean_loss,
        "kl_div_with_sae": told.mean_kl,
        "l0": replaced.l0,
        "explained_variance": replaced.explained_variance,
    }


class Server:
    def __init__(self, program: Path, model: Path, arguments: list[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [str(program), "--model", str(model), "--listen", self.address, *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def __enter__(self) -> hookline.Client:
        host, port = self.address.split(":")
        while self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex((host, int(port))) == 0:
                    return hookline.connect(self.address)
            time.sleep(0.1)
        sys.exit(f"hookline-server ended with {self.process.returncode}")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def cases() -> Iterator[tuple[str, str, str, int | None]]:
    for fixture in ("gpt2", "llama_gqa"):
        for kind in KINDS:
            yield fixture, kind, HOOK_POINTS[0], None
        for hook_point in HOOK_POINTS[1:]:
            yield fixture, "standard", hook_point, None
        yield fixture, "jumprelu", HOOK_POINTS[2], 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--server-program", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    failures = 0
    models: dict[str, Any] = {}
    for fixture, kind, hook_point, head in cases():
        model = models.setdefault(fixture, hooked(fixture)) if fixture not in models else models[fixture]
        ids = torch.randint(
            0, model.cfg.d_vocab, (PROMPTS * BATCHES, CONTEXT), generator=torch.Generator().manual_seed(1)
        )
        with tempfile.TemporaryDirectory() as folder:
            _, cache = model.run_with_cache(ids, names_filter=[hook_point])
            rows = cache[hook_point].flatten(0, 1) if head is None else cache[hook_point][:, :, head].flatten(0, 1)
            sae = make(kind, fixture, hook_point, rows.flatten(1), head, Path(folder))
            store = store_of(model, ids, hook_point, rows[0].numel())
            options = ["--dictionary", f"sae={folder}"]
            with Server(arguments.server_program, FIXTURES / "families" / fixture, options) as client:
                for ignored in ([], IGNORED):
                    expected = numbers_of_run_evals(sae, model, store, ignored)
                    ways = {"loss_recovered": found_here(client, sae, hook_point, ids, ignored)}
                    if not ignored:
                        ways["the server's dictionary"] = found_there(client, hook_point, ids)
                    for way, found in ways.items():
                        difference, name = worst(expected, found)
                        failures += difference > TOLERANCE
                        what = f"{fixture}, {kind}, {hook_point}{'' if head is None else f', head {head}'}"
                        print(
                            f"{what:62} {'ignored tokens' if ignored else '':14} {way:24} {difference:.1e} ({name})",
                            flush=True,
                        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
