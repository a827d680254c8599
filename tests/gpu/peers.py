"""The tools that people use today to get rows, for tests/gpu/check.

Each maker in PEERS takes a GPT-2 checkpoint's folder, its configuration, token ids as sequences x positions, a device
and a dtype. It returns a function that brings the rows of the middle layer to the host and returns the number of tokens
that it ran.
"""

from __future__ import annotations

import os
import pathlib
import weakref

import torch

BATCH = 8  # sequences; with 1024 positions they have as many tokens as one of the server's batches
VLLM_MEMORY = 0.3  # share of the device's memory, for weights and a cache of a few batches; the server keeps the rest


def hooked_transformers(folder: pathlib.Path, config: dict, ids: torch.Tensor, device: str, dtype: torch.dtype):
    """Runs the model by transformers, with a hook after its middle layer."""
    from transformers import GPT2Model

    model = GPT2Model.from_pretrained(folder, dtype=dtype).to(device).eval()
    rows = []

    def keep(_, __, out) -> None:
        rows.append((out[0] if isinstance(out, tuple) else out).cpu())

    model.h[config["n_layer"] // 2].register_forward_hook(keep)

    def run() -> int:
        with torch.inference_mode():
            for batch in ids.split(BATCH):
                model(batch.to(device), use_cache=False)
        rows.clear()
        return ids.numel()

    return run


def lens_model(config: dict, device: str, dtype: torch.dtype):
    """Returns a TransformerLens model of this shape, with random weights of its own."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    width, heads = config["n_embd"], config["n_head"]
    with torch.device(device):
        return HookedTransformer(
            HookedTransformerConfig(
                n_layers=config["n_layer"],
                d_model=width,
                n_ctx=config["n_positions"],
                d_head=width // heads,
                n_heads=heads,
                d_vocab=config["vocab_size"],
                act_fn="gelu_new",
                device=device,
                dtype=dtype,
            )
        )


def hooked_transformer_lens(folder: pathlib.Path, config: dict, ids: torch.Tensor, device: str, dtype: torch.dtype):
    """Runs the model by TransformerLens, which computes no further than the layer."""
    model = lens_model(config, device, dtype)
    layer = config["n_layer"] // 2
    name = f"blocks.{layer}.hook_resid_post"

    def run() -> int:
        with torch.inference_mode():
            for batch in ids.split(BATCH):
                cache = model.run_with_cache(
                    batch.to(device), names_filter=name, stop_at_layer=layer + 1, return_type=None
                )[1]
                cache[name].cpu()
        return ids.numel()

    return run


def sae_lens_store(folder: pathlib.Path, config: dict, ids: torch.Tensor, device: str, dtype: torch.dtype):
    """Runs SAELens's store of activations, which also mixes the rows."""
    import datasets
    from sae_lens.training.activations_store import ActivationsStore

    model = lens_model(config, device, dtype)
    sequences, positions = ids.shape

    def run() -> int:
        store = ActivationsStore(
            model=model,
            dataset=datasets.Dataset.from_dict({"input_ids": ids.tolist()}),
            streaming=False,
            hook_name=f"blocks.{config['n_layer'] // 2}.hook_resid_post",
            hook_head_index=None,
            context_size=positions,
            d_in=config["n_embd"],
            n_batches_in_buffer=2,
            total_training_tokens=ids.numel(),
            store_batch_size_prompts=BATCH,
            train_batch_size_tokens=positions,
            prepend_bos=False,
            normalize_activations="none",
            device=torch.device(device),
            dtype=str(dtype).removeprefix("torch."),
        )
        for _ in range(sequences):
            next(store)
        return ids.numel()

    return run


def hooked_vllm(folder: pathlib.Path, config: dict, ids: torch.Tensor, device: str, dtype: torch.dtype):
    """Runs the model by vLLM with a hook after its middle layer; vLLM runs all layers, then samples.

    vLLM's own `extract_hidden_states` does not support GPT-2. A hook runs only without CUDA graphs, in this process.
    Each sequence is one position shorter, since vLLM needs room for the token that it samples.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams, TokensPrompt

    sequences, positions = ids.shape
    llm = LLM(
        str(folder),
        dtype=str(dtype).removeprefix("torch."),
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_model_len=positions,
        max_num_batched_tokens=BATCH * (positions - 1),
        max_num_seqs=4 * BATCH,  # more than a batch, since vLLM schedules the next one meanwhile
        gpu_memory_utilization=VLLM_MEMORY,
    )
    rows = []

    def keep(_, __, out: torch.Tensor) -> None:
        rows.append(out.to("cpu", non_blocking=True))

    def hook(model: torch.nn.Module) -> None:
        model.transformer.h[config["n_layer"] // 2].register_forward_hook(keep)

    llm.apply_model(hook)
    prompts = [TokensPrompt(prompt_token_ids=sequence) for sequence in ids[:, :-1].tolist()]
    sampling = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)

    def run() -> int:
        llm.generate(prompts, sampling, use_tqdm=False)
        if device != "cpu":
            torch.cuda.synchronize(device)
        came, wanted = sum(len(part) for part in rows), sequences * (positions - 1)
        rows.clear()
        if came != wanted:
            raise RuntimeError(f"{came} rows came of {sequences} sequences x {positions - 1} positions")
        return wanted

    weakref.finalize(run, llm.llm_engine.engine_core.shutdown)
    return run


# The maker of each peer's function, and how many sequences it goes through, since all are slower than a capture.
# SAELens's store first fills a buffer of 16.
PEERS = {
    "transformers with a hook": (hooked_transformers, 64),
    "TransformerLens": (hooked_transformer_lens, 64),
    "SAELens": (sae_lens_store, 128),
    "vLLM with a hook": (hooked_vllm, 64),
}
