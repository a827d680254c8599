"""Names with control characters and bytes that are not UTF-8 reach no log and no terminal as they are."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import DEMO, MLP, PATIENCE, RESID, ROOT, Server

# The name holds an escape sequence, a line that looks like the log's, the one-character CSI, and a
# right-to-left override.
EVIL = "m\x1b[31m\n2026-01-01 forged\r\x7f\x9b2J\u202e"
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\r]")


def check_shown(data, lines=None):
    """Checks bytes for a terminal: UTF-8 without control characters but the ends of lines, none of which is forged."""
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    assert not HIDDEN.search(text), text
    assert not any(line.startswith("2026-01-01 forged") for line in text.splitlines()), text
    if lines is not None:
        assert text.count("\n") == lines, text
    return text


def write_recording(directory, name, **fields):
    """Writes a recording of one shard by FORMAT.md: three rows of zeros at hook points with the names given."""
    names, rows = fields.pop("names"), 3
    manifest = {
        "format": "hookline-recording", "version": 1, "name": name, "state": "COMPLETE", "error": "", "model": "m",
        "fingerprint": "f" * 32, "request_digest": "0" * 32, "deterministic": False, "dtype": "float32",
        "hook_points": [{"name": n, "width": 4, "max_activations": rows, "rows": rows} for n in names],
        "rows": rows, "shard_rows": rows, "source": {"dataset": {"name": "d", "sequence_length": 1}}, "selection": {},
        "resume": {"token": "", "row": 0, "message_bytes": 1 << 20},
        "create_time": "2026-01-01T00:00:00+00:00", "update_time": "2026-01-01T00:00:00+00:00", **fields,
    }  # fmt: skip
    header = {"__metadata__": {"format": "hookline-recording", "version": "1",
                               "fingerprint": manifest["fingerprint"], "first_row": "0"}}  # fmt: skip
    end = 0
    tensors = [("provenance/sequence", "I64", [rows], 24), ("provenance/token_id", "I64", [rows], 24),
               ("provenance/position", "I32", [rows], 12)] + [(n, "F32", [rows, 4], 48) for n in names]  # fmt: skip
    for tensor, dtype, shape, size in tensors:
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 64)
    shard = len(text).to_bytes(8, "little") + text + b"\0" * end
    file = f"rows-{0:012d}-{rows:012d}.safetensors"
    manifest["shards"] = [{"file": file, "first_row": 0, "rows": rows, "bytes": len(shard), "xxh3": "0" * 32}]
    folder = directory / name
    folder.mkdir()
    (folder / file).write_bytes(shard)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """Starts a server whose directory of recordings is full of such names."""
    directory = tmp_path_factory.mktemp("evil")
    os.mkdir(os.fsencode(str(directory)) + b"/dir\x1b[31m\nforged \xff")
    write_recording(directory, "r", names=[EVIL, EVIL + "2"], model=EVIL, fingerprint=EVIL, error=EVIL,
                    state="FAILED", source={"dataset": {"name": EVIL, "sequence_length": 1}})  # fmt: skip
    write_recording(directory, "broken", names=["p"], dtype=EVIL)
    write_recording(directory, "other", names=["p"])
    os.rename(directory / "other", directory / "another")
    server = Server(recordings=directory)
    yield server
    server.process.terminate()
    log = server.process.stderr.read()
    assert server.process.wait(PATIENCE) == 0
    check_shown(log)


def program(server, *arguments):
    process = subprocess.run([os.environ["HOOKLINE_PROGRAM"], *arguments, "--server", server.address],
                             capture_output=True, timeout=PATIENCE)  # fmt: skip
    check_shown(process.stdout)
    check_shown(process.stderr)
    return process


def test_the_log_and_the_command_line_show_what_the_directory_holds_as_escapes(evil, tmp_path):
    shown = b"m\\x1b[31m\\n2026-01-01 forged\\r\\x7f\\xc2\\x9b2J\\xe2\\x80\\xae"
    assert shown in program(evil, "recordings").stdout
    assert program(evil, "recordings", "r").stdout.count(shown) == 6
    for command in (
        ("verify", "r"),
        ("read", "r", "--out", str(tmp_path / "read")),
        ("export", "r", "--format", "npy", "--out", str(tmp_path / "npy")),
        ("recordings", "broken"),
        ("recordings", "another"),
    ):
        assert program(evil, *command).returncode != 0, command  # the checksum is wrong, or the manifest
    assert b"\x1b" not in program(evil, "read", "r", "--json").stdout


def test_what_a_client_asks_for_comes_back_as_escapes(evil):
    sys.path.insert(0, os.path.join(ROOT, "client", "python"))
    import grpc

    import hookline

    ids = [[1, 2, 3]]
    dataset = hookline.Dataset(EVIL, sequence_length=4)
    with hookline.connect(evil.address) as client:
        for ask in (
            lambda: client.model(EVIL),
            lambda: client.dataset(EVIL),
            lambda: client.estimate([EVIL], ids),
            lambda: client.estimate([RESID, EVIL + "*"], ids),
            lambda: client.estimate([RESID, "{" + EVIL], ids),
            lambda: client.estimate([RESID], ids, model=EVIL),
            lambda: client.estimate([RESID], dataset),
            lambda: client.estimate([RESID], hookline.Feed(EVIL, hookline.Dataset("text", sequence_length=4))),
            lambda: next(iter(client.capture([RESID], ids, record_as=EVIL))),
            lambda: client.estimate([RESID], ids, max_activations_by_hook_point={EVIL: 1}),
            lambda: client.persist(EVIL, [MLP], ids),
            lambda: client.recording(EVIL),
        ):
            with pytest.raises(hookline.HooklineError) as caught:
                ask()
            for text in (str(caught.value), caught.value.message, caught.value.field or ""):
                check_shown(text, lines=0)
            cause = caught.value.__cause__
            if isinstance(cause, grpc.RpcError):
                check_shown(cause.details(), lines=0)


def failed_start(*flags):
    process = subprocess.run([os.environ["HOOKLINE_SERVER_PROGRAM"], "--listen", "127.0.0.1:0", *flags],
                             capture_output=True, timeout=PATIENCE)  # fmt: skip
    assert process.returncode != 0
    return check_shown(process.stderr)


def test_a_start_that_fails_says_so_in_escapes(tmp_path):
    folder = os.fsencode(str(tmp_path)) + b"/f\x1b[31m\n2026-01-01 forged \xff"
    os.mkdir(folder)
    evil = folder + b"/absent\x9b\n2026-01-01 forged"
    for flags in (
        ("--model", evil),
        ("--model", folder),
        ("--dataset", b"x=" + evil + b":uint16", "--model", DEMO),
        ("--dataset", b"x=" + folder + b":uint16", "--model", DEMO),
        ("--recordings-dir", evil),
        ("--device", b"cuda\x1b[31m\n2026-01-01 forged \xff", "--model", DEMO),
        (b"--\x1b[31m\n2026-01-01 forged \xff",),
    ):
        failed_start(*flags)
    for header in (
        b"{'descr': '<u2\x1b[31m\n2026-01-01 forged\xff', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr\x1b[31m\n2026-01-01 forged\xff': '<u2', }",
        b"{'descr\x1b[31m\n2026-01-01 forged\xff' }",
    ):
        (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0\0")
        assert "x.npy" in failed_start("--dataset", f"x={tmp_path}/x.npy", "--model", DEMO)


def test_the_command_line_repeats_arguments_as_escapes(evil, tmp_path):
    for arguments in (
        ("hooks", "--model", EVIL),
        ("capture", "--hook-points", EVIL, "--tokens", EVIL),
        ("capture", "--hook-points", RESID, "--tokens", str(tmp_path / "x\x1b\n2026-01-01 forged")),
        ("recordings", EVIL),
        (EVIL,),
        ("import", str(tmp_path / "x\x1b\n2026-01-01 forged"), "--recordings-dir", "/tmp", "--name", EVIL),
    ):
        process = subprocess.run([os.environ["HOOKLINE_PROGRAM"], *arguments], capture_output=True, timeout=PATIENCE,
                                 env={**os.environ, "HOOKLINE_SERVER": evil.address})  # fmt: skip
        assert process.returncode != 0
        check_shown(process.stdout + process.stderr)
