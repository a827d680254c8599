"""Tests that several servers on one directory record parts of a dataset, and that one of them merges the parts."""

import json
import threading
import time

import grpc
import pytest
from conftest import LENGTH, POINTS, collect, dataset_request, read_safetensors, rows_on_disk, shards

# A batch has ten sequences, so that the rows of parts of a multiple of ten have the bits of the whole.
BATCHES = ("--max-batch-tokens", str(10 * LENGTH))


@pytest.fixture
def pair(serve, text):
    """Starts two servers that share a directory and hold the same dataset of 600 sequences."""
    return [serve(dataset=text, flags=(*BATCHES, "--recordings-folder", folder)) for folder in ("a", "b")]


def persist(server, name, capture, part=None):
    """Records to the end. Returns the recording."""
    request = server.proto.recording.PersistRequest(name=name, capture=capture)
    if part is not None:
        request.part.index, request.part.count = part
    method = server._method("RecordingService", "Persist", True, server.proto.recording.PersistResponse)
    return list(method(request))[-1].recording


def start_merge(server, name, *parts):
    request = server.proto.recording.MergeRecordingsRequest(name=name, parts=parts)
    method = server._method("RecordingService", "MergeRecordings", True, server.proto.recording.MergeRecordingsResponse)
    return method(request)


def merge(server, name, *parts):
    return list(start_merge(server, name, *parts))


def refused(code, call):
    with pytest.raises(grpc.RpcError) as raised:
        call()
    assert raised.value.code() == code, raised.value
    return raised.value.details()


def read(server, name, **fields):
    """Returns all rows as bytes, their provenance, and the number that was promised."""
    responses = list(server.read(name, provenance=True, **fields))
    rows, provenance, _ = collect(responses, columns=True)
    return rows, provenance, [point.max_activations for point in responses[0].started.hook_points]


def test_a_merged_recording_is_the_one_that_a_single_server_writes(proto, pair):
    a, b = pair
    whole = persist(b, "whole", dataset_request(proto))
    threads = [
        threading.Thread(target=persist, args=(server, "part", dataset_request(proto), (index, 3)))
        for index, server in ((0, b), (1, a))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    persist(a, "last", dataset_request(proto), (2, 3))
    assert [a.get(name).dataset.first_sequence for name in ("part", "last")] == [200, 400]
    progress = merge(a, "merged", "*/part", "last")
    merged = progress[-1].recording
    assert progress[-1].bytes == progress[-1].total_bytes == merged.bytes
    assert [message.shards for message in progress[:-1]] == list(range(1, progress[-1].total_shards + 1))
    assert (merged.state, merged.rows) == (proto.recording.RECORDING_STATE_COMPLETE, whole.rows)
    assert merged.dataset == whole.dataset and merged.selection == whole.selection
    for point, other in zip(merged.hook_points, whole.hook_points):
        assert (point.hook_point, point.width, point.rows) == (other.hook_point, other.width, other.rows)
    # The parts are deleted, and every reader finds the rows of the whole, to the bit.
    for server, name in ((a, "part"), (a, "last"), (b, "part")):
        server.delete(name)
    assert read(a, "merged") == read(b, "whole")
    for fields in (dict(first_row=19_990, row_count=20), dict(first_row=5, shuffle_seed=3)):
        assert read(a, "merged", **fields) == read(b, "whole", **fields)
    assert read(a, "merged", max_activations=123) == read(b, "whole", max_activations=123)
    verified = a.verify("merged")
    assert verified.done and not verified.damaged and verified.bytes == merged.bytes
    folder = a.recordings / "a" / "merged"
    assert rows_on_disk(folder) == rows_on_disk(b.recordings / "b" / "whole")
    # After a restart the result is the same, from the manifest alone.
    a.terminate()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["version"], manifest["state"]) == (2, "COMPLETE")
    assert [shard["file"] for shard in manifest["shards"]] == sorted(shards(folder))
    for shard in manifest["shards"]:
        header = (folder / shard["file"]).read_bytes()[8:200]
        assert f'"first_row":"{shard["header_first_row"]}"'.encode() in header
        tensors = read_safetensors(folder / shard["file"])
        assert len(tensors["provenance/sequence"]) == 8 * shard["rows"]


def test_a_budget_is_that_of_all_parts_together(proto, pair):
    a, b = pair
    budgets = {POINTS[0]: 45_000, POINTS[1]: 44_999}
    request = dataset_request(proto, max_activations_by_hook_point=budgets)
    persist(b, "whole", request)
    for index, server in enumerate((a, b, a)):
        persist(server, f"part{index}", request, (index, 4))
    assert [point.max_activations for point in b.get("part1").hook_points] == [30_000, 29_999]
    behind = refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: persist(b, "part3", request, (3, 4)))
    assert "the parts before have 45000 rows" in behind
    merge(b, "merged", "a/part0", "part1", "a/part2")
    assert read(b, "merged") == read(b, "whole")
    assert [point.max_activations for point in b.get("merged").hook_points] == [45_000, 44_999]
    assert not b.verify("merged").damaged
    # A part that ends too early leaves a gap.
    short = dataset_request(proto, sequences=10, max_activations=999)
    short.dataset.first_sequence = 0
    persist(a, "short", short)
    follows = dataset_request(proto, sequences=10)
    follows.dataset.first_sequence = 10
    persist(a, "follows", follows)
    said = refused(grpc.StatusCode.FAILED_PRECONDITION, lambda: merge(a, "gap", "short", "follows"))
    assert "ends with its budget of 999 rows" in said
    said = refused(grpc.StatusCode.FAILED_PRECONDITION, lambda: merge(a, "gap", "short", "a/part2"))
    assert "recording a/part2" in said
    assert refused(grpc.StatusCode.NOT_FOUND, lambda: a.get("gap"))


def test_what_is_no_part_is_named(proto, serve, text):
    server = serve(dataset=text, flags=("--recordings-folder", "a"))
    request = dataset_request(proto, sequences=3)

    def said(part, capture=request):
        return refused(grpc.StatusCode.INVALID_ARGUMENT, lambda: persist(server, "part", capture, part))

    assert said((3, 3)).startswith("part.index: 3 is not from 0 to 2")
    assert said((-1, 3)).startswith("part.index: -1")
    assert said((0, 0)).startswith("part.count: 0 is not from 1 to 1000")
    assert said((0, 4)).startswith("part.count: 4 is more than the 3 sequences")
    shuffled = dataset_request(proto, sequences=3)
    shuffled.dataset.shuffle_seed = 1
    assert "leave out shuffle_seed" in said((0, 3), shuffled)
    tokens = proto.capture.CaptureRequest(hook_points=POINTS)
    tokens.tokens.sequences.add().ids.extend([1, 2])
    assert said((0, 1), tokens) == "part: only the sequences of a dataset can be divided into parts"
    excluding = dataset_request(proto, sequences=3, max_activations=5)
    excluding.selection.exclude_token_ids.append(40)
    assert "is not known beforehand" in said((1, 3), excluding)
    zero = dataset_request(proto, sequences=3, max_activations=0)
    assert said((1, 3), zero).startswith("max_activations: 0 is not a budget")
    # Sequences that do not divide evenly are distributed over the parts.
    firsts = [persist(server, f"part{i}", dataset_request(proto, sequences=8), (i, 3)).dataset for i in range(3)]
    assert [(part.first_sequence, part.sequence_count) for part in firsts] == [(0, 2), (2, 3), (5, 3)]
    assert merge(server, "merged", "part0", "part1", "part2")[-1].recording.rows == 8 * LENGTH
    missing = refused(grpc.StatusCode.FAILED_PRECONDITION, lambda: merge(server, "other", "part0", "part1"))
    assert "the parts are of sequences 0 to 7" in missing


def test_a_merge_that_is_killed_or_left_is_there_whole_or_not_at_all(proto, serve, text):
    flags = ("--recordings-folder", "a", "--recordings-shard-bytes", "64KiB")  # about a hundred shards
    server = serve(dataset=text, flags=flags)
    for index in range(2):
        persist(server, f"part{index}", dataset_request(proto, sequences=60), (index, 2))
    folder = server.recordings / "a" / "merged"

    def check(on):
        """Waits until `merged` is no longer being made, and checks it."""
        deadline = time.monotonic() + 60
        while True:
            found = {recording.name: recording.state for recording in on.list().recordings}
            if found.get("merged") != proto.recording.RECORDING_STATE_RUNNING:
                break
            assert time.monotonic() < deadline, "it is still being made"
            time.sleep(0.02)
        if "merged" in found:
            assert found["merged"] == proto.recording.RECORDING_STATE_COMPLETE and not on.verify("merged").damaged
            on.delete("merged")
        assert not folder.exists()

    call = start_merge(server, "merged", "part0", "part1")
    assert next(call).total_shards > 80
    call.cancel()
    check(server)
    next(start_merge(server, "merged", "part0", "part1"))
    server.kill()
    again = serve(dataset=text, flags=flags)
    check(again)
    merged = merge(again, "merged", "part0", "part1")
    assert merged[-1].recording.rows == 60 * LENGTH
    found = merge(again, "merged", "part1", "part0")
    assert len(found) == 1 and found[0].recording == merged[-1].recording
