"""Measures how long a checkpoint takes to load, and how much memory: beside reading its files once, and their size.

    python3 tests/bench/model/bench_load.py [--program build/release/bin/model_bench] [--rounds 5]

Makes a Llama checkpoint of random weights of more than 1 GB, two shards and an index, in a temporary folder that it
removes. Each load is a process of its own; loads and reads alternate, all with the files in the page cache. Needs
numpy.

Weights are read into memory of the process, so its resident memory is all its own. What is kept once the model is
loaded is the file's size if it is computed in the type it is stored in; bfloat16 computed in float32 is twice that,
except the embedding, which stays as it is stored.
"""

import argparse
import json
import pathlib
import platform
import statistics
import struct
import subprocess
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
WIDTH, MLP, VOCABULARY = 1280, 3456, 16000
LAYERS = {"F32": 16, "BF16": 34}  # more than 1 GB of either


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


def write_shard(path, tensors, dtype, rng):
    header, offset = {}, 0
    size = {"F32": 4, "BF16": 2}[dtype]
    for name, shape in tensors:
        end = offset + size * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape in tensors:
            values = rng.standard_normal(int(np.prod(shape)), dtype=np.float32) * np.float32(0.02)
            file.write(values if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16))


def make_checkpoint(directory, dtype):
    """The bytes of its shards."""
    directory.mkdir()
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": WIDTH,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS[dtype],
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
    (directory / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(1)
    tensors = list(shapes(LAYERS[dtype]))
    half = len(tensors) // 2
    index = {}
    for number, part in enumerate([tensors[:half], tensors[half:]], 1):
        name = f"model-{number:05}-of-00002.safetensors"
        write_shard(directory / name, part, dtype, rng)
        index.update({tensor: name for tensor, _ in part})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def read_once(directory):
    buffer = bytearray(16 << 20)
    start = time.perf_counter()
    for path in directory.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def load_once(program, directory, dtype):
    run = subprocess.run(
        [program, directory, "--dtype", dtype], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[0])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/model_bench"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for stored, computed in [("F32", "float32"), ("BF16", "bfloat16"), ("BF16", "float32")]:
            directory = pathlib.Path(folder) / stored
            size = (
                sum(path.stat().st_size for path in directory.glob("*.safetensors"))
                if directory.exists()
                else make_checkpoint(directory, stored)
            )
            read_once(directory)
            ratios, loads = [], []
            for _ in range(arguments.rounds):
                read = read_once(directory)
                loads.append(load_once(arguments.program, directory, computed))
                ratios.append(loads[-1]["load_seconds"] / read)
            peak = max(load["peak_resident_bytes"] for load in loads)
            print(
                f"{platform.node()}: {size / 1e9:.2f} GB of {stored} computed in {computed}: loaded in "
                f"{statistics.median(load['load_seconds'] for load in loads):.2f} s; loading / reading "
                f"{statistics.median(ratios):.2f} (wanted: 1.5); peak resident / file {peak / size:.2f}, / kept "
                f"{max(load['peak_resident_bytes'] / load['resident_bytes'] for load in loads):.2f} (wanted: 1.1)",
                flush=True,
            )


if __name__ == "__main__":
    main()
