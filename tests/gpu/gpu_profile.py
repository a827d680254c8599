"""Sums up what tests/gpu/trace wrote about a server's passes."""

from __future__ import annotations


def summarize(lines: list[list[str]], batches: int, blocks: int) -> dict:
    kernels = sorted((int(line[1]), int(line[2]), line[3]) for line in lines if line[0] == "kernel")
    busy, gaps, until = 0, [], kernels[0][0]
    by_name: dict[str, int] = {}
    for begin, end, name in kernels:
        if begin > until:
            gaps.append(begin - until)
        busy += max(0, end - max(begin, until))
        until = max(until, end)
        by_name[name] = by_name.get(name, 0) + end - begin
    out = [(int(line[2]) - int(line[1]), int(line[4])) for line in lines if line[0] == "copy" and line[3] == "2"]
    waits = [int(line[2]) - int(line[1]) for line in lines if line[0] == "wait"]
    span = until - kernels[0][0]
    return {
        "kernels in a pass": len(kernels) / batches,
        "kernels in a block, about": len(kernels) / batches / blocks,
        "milliseconds of a pass": span / batches / 1e6,
        "part of it in kernels": busy / span,
        "longest gap, milliseconds": max(gaps, default=0) / 1e6,
        "copies to the device in a pass": sum(line[0] == "copy" and line[3] == "1" for line in lines) / batches,
        "copies to the host in a pass": len(out) / batches,
        "GB/s of copies to the host": sum(size for _, size in out) / max(1, sum(time for time, _ in out)),
        "waits of the host in a pass": len(waits) / batches,
        "kernels by time": {
            name[:120]: round(time / span, 4) for name, time in sorted(by_name.items(), key=lambda one: -one[1])[:12]
        },
    }
