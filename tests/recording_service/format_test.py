"""Checks recordings against server/recording/FORMAT.md, with foreign libraries."""

import base64
import json
import re
import site
import struct

import numpy as np
import pytest
import xxhash
from conftest import LENGTH, POINTS, ROOT, collect, dataset_request

DTYPES = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}
PROVENANCE = {"provenance/sequence": "I64", "provenance/token_id": "I64", "provenance/position": "I32"}
BYTES = {"I64": 8, "I32": 4, "F32": 4, "BF16": 2, "F16": 2}


def xxh3(data):
    return xxhash.xxh3_128(data, seed=0)


def compact(json_object):
    return json.dumps(json_object, separators=(",", ":"), ensure_ascii=False).encode()


def expected_header(manifest, first, end):
    """Returns the header that FORMAT.md gives for a shard of rows FIRST to END, with its length before it."""
    header = {
        "__metadata__": {
            "format": "hookline-recording", "version": "1", "fingerprint": manifest["fingerprint"],
            "first_row": str(first),
        }
    }  # fmt: skip
    offset = 0

    def add(name, dtype, shape):
        nonlocal offset
        length = int(np.prod(shape)) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + length]}
        offset += length

    for name, dtype in PROVENANCE.items():
        add(name, dtype, [end - first])
    for point in manifest["hook_points"]:
        rows = min(end, point["max_activations"]) - first
        if rows > 0:
            add(point["name"], DTYPES[manifest["dtype"]][0], [rows, point["width"]])
    text = compact(header)
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text, header, offset


def check_manifest(directory):
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("hookline-recording", 1)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", manifest["name"]) and manifest["name"] == directory.name
    assert manifest["state"] in ("RUNNING", "COMPLETE", "STOPPED", "INTERRUPTED", "FAILED")
    assert (manifest["error"] != "") == (manifest["state"] == "FAILED")
    for member in ("model", "fingerprint", "request_digest"):
        assert isinstance(manifest[member], str) and manifest[member]
    assert isinstance(manifest["deterministic"], bool) and isinstance(manifest["selection"], dict)
    assert list(manifest["source"]) in (["dataset"], ["tokens"])
    for point in manifest["hook_points"]:
        assert point["rows"] == min(manifest["rows"], point["max_activations"])
    resume = manifest["resume"]
    assert 0 <= resume["row"] <= manifest["rows"] and base64.b64decode(resume["token"], validate=True)
    for member in ("create_time", "update_time"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", manifest[member])
    return manifest


def check_recording(directory):
    """Checks a directory against every sentence of FORMAT.md that applies. Returns the manifest, and all
    rows by tensor."""
    manifest = check_manifest(directory)
    shards = manifest["shards"]
    assert {path.name for path in directory.iterdir()} == {"manifest.json", *(shard["file"] for shard in shards)}
    assert [shard["file"] for shard in shards] == sorted(shard["file"] for shard in shards)
    tensors, at = {}, 0
    for shard in shards:
        first, end = map(int, re.fullmatch(r"rows-(\d{12})-(\d{12})\.safetensors", shard["file"]).groups())
        assert first == at == shard["first_row"] and end - first == shard["rows"] > 0
        assert first % manifest["shard_rows"] == 0
        assert end - first == manifest["shard_rows"] or shard is shards[-1]
        data = (directory / shard["file"]).read_bytes()
        header_bytes, header, length = expected_header(manifest, first, end)
        assert data[: len(header_bytes)] == header_bytes
        assert len(data) == shard["bytes"] == len(header_bytes) + length and len(header_bytes) % 64 == 0
        whole = xxh3(header_bytes).digest()
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, stop = (len(header_bytes) + offset for offset in entry["data_offsets"])
            whole += xxh3(data[begin:stop]).digest()
            tensors[name] = tensors.get(name, b"") + data[begin:stop]
        assert xxh3(whole).hexdigest() == shard["xxh3"]
        at = end
    assert manifest["rows"] == at
    return manifest, tensors


def column(tensors, name, dtype):
    return np.frombuffer(tensors[f"provenance/{name}"], dtype)


def test_a_recording_is_what_the_document_says(serve, proto, text):
    server = serve(dataset=text)
    for dtype, (_, value_bytes) in DTYPES.items():
        request = dataset_request(proto, sequences=150, dtype=getattr(proto.types, f"DTYPE_{dtype.upper()}"))
        request.selection.skip_first = 3
        request.max_activations = 9000
        request.max_activations_by_hook_point[POINTS[1]] = 5000
        list(server.persist(dtype, request))
        manifest, tensors = check_recording(server.recordings / dtype)
        assert (manifest["state"], manifest["dtype"]) == ("COMPLETE", dtype) and len(manifest["shards"]) > 1
        assert manifest["selection"] == {"skip_first": 3}
        source = manifest["source"]["dataset"]
        assert (source["name"], source["sequence_length"], source["sequence_count"]) == ("text", LENGTH, 150)
        assert [(p["name"], p["rows"]) for p in manifest["hook_points"]] == [(POINTS[0], 9000), (POINTS[1], 5000)]
        for point in manifest["hook_points"]:
            assert len(tensors[point["name"]]) == point["rows"] * point["width"] * value_bytes
        # The expected token of each row comes from the dataset itself.
        row = np.arange(9000)
        sequence, position = row // (LENGTH - 3), row % (LENGTH - 3) + 3
        np.testing.assert_array_equal(column(tensors, "sequence", "<i8"), sequence)
        np.testing.assert_array_equal(column(tensors, "position", "<i4"), position)
        np.testing.assert_array_equal(column(tensors, "token_id", "<i8"), np.load(text)[sequence * LENGTH + position])
        # Row k of every tensor is row k of the capture.
        live, _ = collect(server.capture(request))
        assert {name: tensors[name] for name in POINTS} == live


def test_a_recording_that_was_stopped_is_what_the_document_says(serve, proto, text):
    server = serve(dataset=text)
    request = dataset_request(proto)
    for message in server.persist("a", request):
        if message.rows > 0:
            break
    server.stop("a")
    manifest, tensors = check_recording(server.recordings / "a")
    assert manifest["state"] in ("STOPPED", "COMPLETE") and manifest["rows"] > 0
    rows = np.arange(manifest["rows"])
    np.testing.assert_array_equal(column(tensors, "sequence", "<i8"), rows // LENGTH)
    np.testing.assert_array_equal(column(tensors, "position", "<i4"), rows % LENGTH)
    list(server.persist("a", request))
    assert check_recording(server.recordings / "a")[0]["state"] == "COMPLETE"


@pytest.fixture(scope="session")
def safetensors():
    """Imports the public library, which deploy/install-dependencies puts into .venv."""
    for folder in sorted((ROOT / ".venv/lib").glob("python3.*/site-packages")):
        site.addsitedir(str(folder))
    import safetensors.numpy

    return safetensors.numpy


def test_the_public_safetensors_library_reads_a_shard_alone(serve, proto, text, tmp_path, safetensors):
    server = serve(dataset=text)
    list(server.persist("a", dataset_request(proto, sequences=150)))
    _, tensors = check_recording(server.recordings / "a")
    parts = []
    for path in sorted((server.recordings / "a").glob("*.safetensors")):
        alone = tmp_path / "alone.safetensors"
        alone.write_bytes(path.read_bytes())
        parts.append(safetensors.load_file(alone))
        assert set(parts[-1]) == {*PROVENANCE, *POINTS}
        assert len({len(tensor) for tensor in parts[-1].values()}) == 1
    for name, contents in tensors.items():
        assert np.concatenate([part[name] for part in parts]).tobytes() == contents
