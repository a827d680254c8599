"""Measures the time and memory that loading a checkpoint takes, against reading its files and the weights it keeps.

    python3 tests/bench/model/bench_load.py [--program build/release/bin/model_bench] [--rounds 5] [--form mxfp4 ...]

Makes checkpoints of random weights of many hundred MB in a temporary folder that it removes: a Llama in two
safetensors shards, and in pytorch_model.bin as torch.save writes it today and before 1.6; a Qwen 3 MoE with fused
experts; a gpt-oss with experts in MXFP4. Each load is a process of its own; loads and reads alternate, all with the
files in the page cache. Needs numpy, and torch for the .bin files.

"Kept" means the bytes of the weights as the server counts them before it loads: in the type in which they are computed,
the embedding as it is stored. The peak is VmHWM minus what the process had before, so it includes what LibTorch's code
and one token's forward pass take.
"""

import argparse
import json
import mmap
import pathlib
import platform
import shutil
import statistics
import struct
import subprocess
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
WIDTH, MLP, VOCABULARY = 1280, 3456, 16000
LAYERS = {"F32": 16, "BF16": 34}  # more than 1 GB of either
EXPERT_WIDTH, EXPERTS, EXPERT_LAYERS = 1024, 8, 8


def shapes(layers):
    yield "model.embed_tokens.weight", (VOCABULARY, WIDTH)
    for i in range(layers):
        layer = f"model.layers.{i}."
        for name in "qkvo":
            yield f"{layer}self_attn.{name}_proj.weight", (WIDTH, WIDTH)
        yield layer + "mlp.gate_proj.weight", (MLP, WIDTH)
        yield layer + "mlp.up_proj.weight", (MLP, WIDTH)
        yield layer + "mlp.down_proj.weight", (WIDTH, MLP)
        yield layer + "input_layernorm.weight", (WIDTH,)
        yield layer + "post_attention_layernorm.weight", (WIDTH,)
    yield "model.norm.weight", (WIDTH,)
    yield "lm_head.weight", (VOCABULARY, WIDTH)


def expert_shapes():
    yield "model.embed_tokens.weight", (VOCABULARY, EXPERT_WIDTH)
    for i in range(EXPERT_LAYERS):
        layer = f"model.layers.{i}."
        for name in "qkvo":
            yield f"{layer}self_attn.{name}_proj.weight", (EXPERT_WIDTH, EXPERT_WIDTH)
        yield layer + "input_layernorm.weight", (EXPERT_WIDTH,)
        yield layer + "post_attention_layernorm.weight", (EXPERT_WIDTH,)
    yield "model.norm.weight", (EXPERT_WIDTH,)
    yield "lm_head.weight", (VOCABULARY, EXPERT_WIDTH)


def qwen3_moe_shapes():
    yield from expert_shapes()
    for i in range(EXPERT_LAYERS):
        layer = f"model.layers.{i}."
        for name in "qk":
            yield f"{layer}self_attn.{name}_norm.weight", (64,)
        yield layer + "mlp.gate.weight", (EXPERTS, EXPERT_WIDTH)
        yield layer + "mlp.experts.gate_up_proj", (EXPERTS, 2 * EXPERT_WIDTH, EXPERT_WIDTH)
        yield layer + "mlp.experts.down_proj", (EXPERTS, EXPERT_WIDTH, EXPERT_WIDTH)


def gpt_oss_shapes():
    """Yields the shapes. Tensors of three and four axes whose names end with blocks and scales have bytes."""
    yield from expert_shapes()
    groups = EXPERT_WIDTH // 32
    for i in range(EXPERT_LAYERS):
        layer = f"model.layers.{i}."
        for name in "qkvo":
            yield f"{layer}self_attn.{name}_proj.bias", (EXPERT_WIDTH,)
        yield layer + "self_attn.sinks", (EXPERT_WIDTH // 64,)
        yield layer + "mlp.router.weight", (EXPERTS, EXPERT_WIDTH)
        yield layer + "mlp.router.bias", (EXPERTS,)
        for name, rows in ("gate_up_proj", 2 * EXPERT_WIDTH), ("down_proj", EXPERT_WIDTH):
            yield f"{layer}mlp.experts.{name}_bias", (EXPERTS, rows)
            yield f"{layer}mlp.experts.{name}_blocks", (EXPERTS, rows, groups, 16)
            yield f"{layer}mlp.experts.{name}_scales", (EXPERTS, rows, groups)


def write_shard(path, tensors, dtype, rng):
    header, offset = {}, 0
    size = {"F32": 4, "BF16": 2, "U8": 1}
    for name, shape in tensors:
        own = "U8" if name.endswith(("_blocks", "_scales")) else dtype
        end = offset + size[own] * int(np.prod(shape))
        header[name] = {"dtype": own, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors:
            if header[name]["dtype"] == "U8":
                low, high = (0, 256) if name.endswith("_blocks") else (115, 125)
                file.write(rng.integers(low, high, int(np.prod(shape)), dtype=np.uint8))
                continue
            values = random_values(shape, rng)
            file.write(values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16))


def random_values(shape, rng):
    return rng.standard_normal(int(np.prod(shape)), dtype=np.float32) * np.float32(0.02)


def write_config(directory, config):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))


def llama_config(layers):
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": layers,
        "num_attention_heads": WIDTH // 64,
        "num_key_value_heads": WIDTH // 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
    }


def make_llama(directory, dtype):
    """Writes a checkpoint in two shards with an index."""
    write_config(directory, llama_config(LAYERS[dtype]))
    rng = np.random.default_rng(1)
    tensors = list(shapes(LAYERS[dtype]))
    half = len(tensors) // 2
    index = {}
    for number, part in enumerate([tensors[:half], tensors[half:]], 1):
        name = f"model-{number:05}-of-00002.safetensors"
        write_shard(directory / name, part, dtype, rng)
        index.update({tensor: name for tensor, _ in part})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def make_bin(directory, zipped):
    """Writes float32 as torch.save writes it now, or as it did before version 1.6."""
    import torch

    write_config(directory, llama_config(LAYERS["F32"] // 2))
    rng = np.random.default_rng(1)
    tensors = {
        name: torch.from_numpy(random_values(shape, rng)).view(shape) for name, shape in shapes(LAYERS["F32"] // 2)
    }
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def expert_config(**more):
    return {
        "hidden_size": EXPERT_WIDTH,
        "intermediate_size": EXPERT_WIDTH,
        "num_hidden_layers": EXPERT_LAYERS,
        "num_attention_heads": EXPERT_WIDTH // 64,
        "num_key_value_heads": EXPERT_WIDTH // 64,
        "head_dim": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "num_experts_per_tok": 2,
        **more,
    }


def make_qwen3_moe(directory):
    more = {"model_type": "qwen3_moe", "num_experts": EXPERTS, "moe_intermediate_size": EXPERT_WIDTH}
    write_config(directory, expert_config(**more))
    write_shard(directory / "model.safetensors", list(qwen3_moe_shapes()), "BF16", np.random.default_rng(1))


def make_mxfp4(directory):
    more = {
        "model_type": "gpt_oss",
        "num_local_experts": EXPERTS,
        "quantization_config": {"quant_method": "mxfp4"},
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024},
    }
    write_config(directory, expert_config(**more))
    write_shard(directory / "model.safetensors", list(gpt_oss_shapes()), "BF16", np.random.default_rng(1))


# The function that writes each form, and the types in which the form is computed.
FORMS = {
    "float32": (lambda directory: make_llama(directory, "F32"), ["float32"]),
    "bfloat16": (lambda directory: make_llama(directory, "BF16"), ["bfloat16", "float32"]),
    "bin": (lambda directory: make_bin(directory, True), ["float32", "bfloat16"]),
    "legacy-bin": (lambda directory: make_bin(directory, False), ["float32", "bfloat16"]),
    "fused-experts": (make_qwen3_moe, ["bfloat16", "float32"]),
    "mxfp4": (make_mxfp4, ["bfloat16", "float32"]),
}


def weight_files(directory):
    return [path for path in directory.iterdir() if path.suffix in (".safetensors", ".bin")]


def read_once(directory):
    buffer = bytearray(16 << 20)
    start = time.perf_counter()
    for path in weight_files(directory):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def copy_once(directory):
    """Returns the seconds to read the files into new memory of their size, as a load must: the kernel
    clears it first."""
    files = weight_files(directory)
    start = time.perf_counter()
    with mmap.mmap(-1, sum(path.stat().st_size for path in files)) as memory, memoryview(memory) as view:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        begin = 0
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(view[begin : begin + (16 << 20)]):
                    begin += got
        return time.perf_counter() - start


def load_once(program, directory, dtype):
    run = subprocess.run(
        [program, directory, "--dtype", dtype], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[0])


def measure(form, directory, dtype, arguments):
    size = sum(path.stat().st_size for path in weight_files(directory))
    read_once(directory)
    over_reading, over_copying, loads = [], [], []
    for _ in range(arguments.rounds):
        read, copied = read_once(directory), copy_once(directory)
        loads.append(load_once(arguments.program, directory, dtype))
        over_reading.append(loads[-1]["load_seconds"] / read)
        over_copying.append(loads[-1]["load_seconds"] / copied)
    peak = max(load["peak_resident_bytes"] for load in loads)
    kept = loads[0]["weight_bytes"]
    print(
        f"{platform.node()}: {size / 1e9:.2f} GB of {form} computed in {dtype}, {kept / 1e9:.2f} GB kept: loaded in "
        f"{statistics.median(load['load_seconds'] for load in loads):.2f} s; loading / reading "
        f"{statistics.median(over_reading):.2f}, / reading into new memory {statistics.median(over_copying):.2f}; "
        f"peak resident / kept {peak / kept:.3f} (wanted 1.1)",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/model_bench"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--form", nargs="*", choices=list(FORMS), default=list(FORMS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for form in arguments.form:
            make, dtypes = FORMS[form]
            directory = pathlib.Path(folder) / form
            make(directory)
            for dtype in dtypes:
                measure(form, directory, dtype, arguments)
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
