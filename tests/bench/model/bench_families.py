"""Compares the forward tokens/s of every family with Hugging Face transformers' eager forward of the same weights.

    python3 tests/bench/model/bench_families.py --program build/release/bin/model_bench [--family llama ...] [--rounds
    7]

Needs torch and transformers in this Python; build model_bench against that torch (-DHOOKLINE_TORCH_PYTHON) to compare
the models and not two versions of LibTorch. The models have 12 blocks, 768 wide, with random float32 weights, and run
4 x 256 tokens with the same number of threads on either side; experts: 2 of 8, gated delta: 3 of 4 layers. transformers
runs its loop over experts. Both run up to the last block's residual stream, without logits: transformers' base model
(with its final norm, a thousandth of the work) with attn_implementation="eager" in inference mode, ours with one tap.
For the early exit, ours with the tap at block l of L runs against the same whole forward; ideally that is L / (l + 1)
times as fast.

"at most" is the ratio if a pass were nothing but the matrix products that transformers calls: the share that these take
of its pass, by torch's profiler.

Both sides take turns within each round; the one that waits is stopped, so that its threads don't spin, and malloc keeps
freed memory mapped in both. Figures are medians over the rounds. On a machine with other load, use `--threads 1
--processor-time`, which counts only processor time, and not the time in which a process waits for a processor.
"""

import argparse
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import torch
    import transformers
except ImportError as error:
    sys.exit(f"{error}: this comparison needs torch and transformers in the Python that runs it")

ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "client/python"))
from hookline import _memory  # noqa: E402

LAYERS, WIDTH, HEADS, MLP, VOCABULARY, CONTEXT = 12, 768, 12, 3072, 8192, 1024
BATCH, POSITIONS = 4, 256
COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=MLP,
    max_position_embeddings=CONTEXT,
)
GROUPED = dict(COMMON, num_key_value_heads=4)
# An expert is half as wide as the MLP, so that two experts do the MLP's work.
EXPERT = MLP // 2
EXPERTS = dict(GROUPED, num_experts_per_tok=2, intermediate_size=EXPERT)
DELTA = dict(
    head_dim=64,
    linear_num_key_heads=6,
    linear_num_value_heads=12,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    full_attention_interval=4,
)
SMALL_IDS = dict(bos_token_id=0, eos_token_id=1, pad_token_id=None)
FAMILIES = {
    "gpt2": dict(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT),
    "gpt_neox": dict(COMMON, rotary_pct=0.25),
    "llama": GROUPED,
    "mistral": dict(GROUPED, sliding_window=128),
    "qwen2": GROUPED,
    "qwen3": dict(GROUPED, head_dim=64),
    "gemma": dict(GROUPED, head_dim=64),
    "gemma2": dict(GROUPED, head_dim=64, sliding_window=128),
    "gemma3_text": dict(GROUPED, head_dim=64, sliding_window=128),
    "olmo2": GROUPED,
    "olmo3": dict(GROUPED, sliding_window=128),
    "qwen3_moe": dict(EXPERTS, head_dim=64, num_experts=8, moe_intermediate_size=EXPERT, norm_topk_prob=True),
    "mixtral": dict(EXPERTS, num_local_experts=8),
    "olmoe": dict(EXPERTS, num_experts=8),
    "qwen3_5_text": dict(GROUPED, **DELTA),
    "qwen3_5_moe_text": dict(
        EXPERTS, **DELTA, num_experts=8, moe_intermediate_size=EXPERT, shared_expert_intermediate_size=EXPERT
    ),
    "gpt_oss": dict(EXPERTS, head_dim=64, num_local_experts=8, sliding_window=128),
    "phi3": GROUPED,
    "phi": COMMON,
    "gpt_neo": dict(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        intermediate_size=MLP,
        max_position_embeddings=CONTEXT,
        attention_types=[[["global", "local"], LAYERS // 2]],
        window_size=128,
    ),
    "gptj": dict(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, rotary_dim=32),
    "opt": dict(COMMON, ffn_dim=MLP),
    "smollm3": GROUPED,
    "granite": GROUPED,
    "gemma4_text": dict(
        GROUPED,
        head_dim=64,
        global_head_dim=128,
        sliding_window=128,
        hidden_size_per_layer_input=64,
        vocab_size_per_layer_input=VOCABULARY,
        num_kv_shared_layers=4,
        use_double_wide_mlp=True,
    ),
    "deepseek_v3": dict(
        COMMON,
        num_key_value_heads=HEADS,
        q_lora_rank=256,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
        moe_intermediate_size=EXPERT,
        first_k_dense_replace=1,
    ),
}
# For experts, transformers' loop must be slower by at least this factor.
WANTED = {family: 1.5 for family in ("qwen3_moe", "mixtral", "olmoe", "qwen3_5_moe_text", "gpt_oss", "deepseek_v3")}
LAST, EARLY = LAYERS - 1, (3, 5)


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise")


class Ours:
    """Runs model_bench in a process that is stopped except while it is asked for a pass."""

    def __init__(self, program, directory, threads, processor_time):
        self.processor_time = processor_time
        self.process = subprocess.Popen(
            [program, directory, "--dtype", "float32", "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        json.loads(self.process.stdout.readline())
        self.forward(LAST)
        self.process.send_signal(signal.SIGSTOP)

    def forward(self, layer):
        before = self.processor_seconds()
        self.process.stdin.write(f"blocks.{layer}.hook_resid_post {BATCH} {POSITIONS}\n")
        self.process.stdin.flush()
        seconds = float(self.process.stdout.readline())
        return self.processor_seconds() - before if self.processor_time else seconds

    def processor_seconds(self):
        """Returns the main thread's processor time so far. Beside the pass it reads a line and prints one."""
        return int(pathlib.Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) * 1e-9

    def round(self):
        """Returns the seconds of the pass to each layer that is measured."""
        self.process.send_signal(signal.SIGCONT)
        seconds = {layer: self.forward(layer) for layer in (LAST, *EARLY)}
        self.process.send_signal(signal.SIGSTOP)
        return seconds

    def close(self):
        self.process.kill()
        self.process.wait()


def products_share(model, ids):
    """Returns the share of transformers' pass that its matrix products take."""
    with torch.inference_mode(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(input_ids=ids, use_cache=False)
    seconds = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    return sum(seconds.get(name, 0) for name in PRODUCTS) / sum(seconds.values())


def compare(family, arguments, directory):
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **FAMILIES[family], **SMALL_IDS)
    whole = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    if family in WANTED:
        whole.set_experts_implementation("eager")
    whole.save_pretrained(directory)
    model = whole.base_model.eval()
    ids = torch.arange(BATCH * POSITIONS).remainder(VOCABULARY).view(BATCH, POSITIONS)

    clock = time.process_time if arguments.processor_time else time.perf_counter

    def eager():
        start = clock()
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
        return clock() - start

    ours = Ours(arguments.program, directory, arguments.threads, arguments.processor_time)
    try:
        eager()
        theirs, own = [], []
        for _ in range(arguments.rounds):
            theirs.append(eager())
            own.append(ours.round())
    finally:
        ours.close()

    def ratio(layer):
        return statistics.median(their / our[layer] for their, our in zip(theirs, own))

    early = "; ".join(
        f"to block {layer} {ratio(layer):.2f} (wanted {0.9 * LAYERS / (layer + 1):.2f})" for layer in EARLY
    )
    print(
        f"{family}: {BATCH * POSITIONS / statistics.median(our[LAST] for our in own):.0f} tokens/s, transformers "
        f"{BATCH * POSITIONS / statistics.median(theirs):.0f}; ratio {ratio(LAST):.2f} "
        f"(wanted {WANTED.get(family, 1):.2f}, at most {1 / products_share(model, ids):.2f}); {early}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=str(ROOT / "build/release/bin/model_bench"))
    parser.add_argument("--family", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--processor-time", action="store_true", help="processor time of one thread, not wall time")
    arguments = parser.parse_args()
    if arguments.processor_time and arguments.threads != 1:
        parser.error("--processor-time counts one thread; it needs --threads 1")
    _memory.keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.node()}, {arguments.threads} threads, torch {torch.__version__}, transformers "
        f"{transformers.__version__}"
    )
    transformers.utils.logging.disable_progress_bar()
    for family in arguments.family:
        with tempfile.TemporaryDirectory() as directory:
            compare(family, arguments, directory)


if __name__ == "__main__":
    main()
