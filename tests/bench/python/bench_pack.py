#!/usr/bin/env python3
"""Measures the tokens per second of `hookline.pack` as a share of those of `tokenizers` alone with as many processes.

    tests/bench/python/bench_pack.py --processes 2

"Alone" means processes that each encode lists of documents and throw the ids away. They get the same lists as
`hookline.pack` gives to its own processes, and neither side reads files: documents come from memory. Each round starts
both anew, one after the other. The figures are the medians of the rounds' ratios: of tokens per second, and of tokens
per second of processor time, which a busy machine changes less. Needs `pip install hookline[pack]`.
"""

import argparse
import collections
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent.parent
sys.path.insert(0, str(ROOT / "client" / "python"))

import tokenizers  # noqa: E402

from hookline import pack  # noqa: E402

_tokenizer = None


def start(path):
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = tokenizers.Tokenizer.from_file(path)


def encode(texts):
    return sum(len(one.ids) for one in _tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def encode_alone(path, texts, processes):
    """Returns the number of tokens."""
    tasks = pack._tasks(iter(texts))
    if processes == 1:
        start(path)
        return sum(encode(task) for _, task in tasks)
    with multiprocessing.get_context("spawn").Pool(processes, start, (path,)) as pool:
        waiting, total = collections.deque(), 0
        for _, task in tasks:
            waiting.append(pool.apply_async(encode, (task,)))
            if len(waiting) >= 3 * processes:
                total += waiting.popleft().get()
        total += sum(one.get() for one in waiting)
    pool.join()  # so that the processes' time is counted
    return total


def busy():
    """Returns the processor seconds of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def documents(megabytes):
    """Returns texts of 2 to 8 KB of English."""
    lines = (ROOT / "tests" / "fixtures" / "nanochat" / "demo" / "LICENSE.txt").read_text().splitlines(keepends=True)
    made, size = [], 0
    while size < megabytes * 1e6:
        length = 40 + 120 * (len(made) * 7919 % 100) // 100
        first = len(made) * 31 % len(lines)
        text = f"{len(made)} " + "".join((lines * 2)[first : first + length])
        made.append(text)
        size += len(text)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--tokenizer", default=str(ROOT / "tests/fixtures/tokenizers/gpt2/tokenizer.json"))
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--megabytes", type=float, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    texts = documents(arguments.megabytes)
    print(f"{platform.node()}, {os.cpu_count()} cores, tokenizers {tokenizers.__version__}, {len(texts)} documents")
    ratios, busy_ratios = [], []
    for number in range(arguments.rounds):
        begin, begin_busy = time.perf_counter(), busy()
        tokens = encode_alone(arguments.tokenizer, texts, arguments.processes)
        alone, alone_busy = time.perf_counter() - begin, busy() - begin_busy
        with tempfile.TemporaryDirectory() as folder:
            begin, begin_busy = time.perf_counter(), busy()
            out = pathlib.Path(folder) / "out.npy"
            packed = pack.pack(
                texts, arguments.tokenizer, out, packing="saelens", context_size=128, processes=arguments.processes
            )
            seconds, seconds_busy = time.perf_counter() - begin, busy() - begin_busy
        assert tokens - 128 <= packed["tokens"] <= tokens, (tokens, packed["tokens"])
        ratios.append(alone / seconds)
        busy_ratios.append(alone_busy / seconds_busy)
        print(f"round {number}: alone {tokens / alone:.3g} tokens/s, packed {tokens / seconds:.3g}: {ratios[-1]:.3f}")
    print(
        f"{arguments.processes} processes: {statistics.median(ratios):.3f} of tokenizers alone, "
        f"by the processors' time {statistics.median(busy_ratios):.3f}"
    )


if __name__ == "__main__":
    main()
