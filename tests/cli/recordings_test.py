"""Tests recordings on the command line: persist, recordings, verify, read, export, import."""

import json
import os
import pty
import re
import signal
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from conftest import DEMO, MLP, PATIENCE, RESID, Server, read_safetensors, run, start

ROWS = {RESID: 5000, MLP: 3000}


def done(server, *arguments):
    """Returns the standard output of a command that succeeds."""
    code, output, errors = run(server, *arguments)
    assert code == 0, errors
    return output


def refused(server, *arguments):
    """Returns the exit code of a command that fails, and the one line that it prints."""
    code, output, errors = run(server, *arguments)
    assert code != 0 and output == "" and errors.startswith("hookline: ") and errors.count("\n") == 1, (output, errors)
    return code, errors


def request_flags():
    return [
        "--hook-points", f"{RESID},{MLP}", "--dataset", "text", "--sequence-length", "100", "--max-activations", "5000",
        "--max-activations-for", f"{MLP}=3000", "--deterministic",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Returns a directory with the recording `text`, and the rows of a capture of the same request."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "recordings").mkdir()
    server = Server(recordings=folder / "recordings")
    try:
        assert "text: complete, 5,000 rows" in done(server, "persist", "text", *request_flags(), "--quiet")
        done(server, "capture", *request_flags(), "--quiet", "--provenance", "--out", str(folder / "captured"))
    finally:
        server.stop()
    captured = {name: read_safetensors(folder / "captured" / f"{name}.safetensors")[1] for name in ROWS}
    return folder / "recordings", captured


@pytest.fixture(scope="module")
def reader(recorded):
    """Starts a server that has the recordings and no model."""
    server = Server(recordings=recorded[0], model=False)
    yield server
    server.kill()


def test_persist_again_says_what_is_there(recorded, tmp_path):
    (tmp_path / "recordings").mkdir()
    server = Server(recordings=tmp_path / "recordings")
    try:
        code, output, errors = run(server, "persist", "again", *request_flags())
        assert code == 0 and "recording again begins" in errors and "100% 5,000/5,000 rows" in errors
        code, output, errors = run(server, "persist", "again", *request_flags())
        assert code == 0 and "is already complete" in errors and "again: complete" in output
        assert (
            "give another name" in refused(server, "persist", "again", *request_flags(), "--skip-first", "1", "-q")[1]
        )
        assert "is not a name of a recording" in refused(server, "persist", "../x", *request_flags(), "-q")[1]
    finally:
        server.kill()


def test_the_end_at_the_servers_cap_is_said(tmp_path):
    (tmp_path / "recordings").mkdir()
    server = Server(recordings=tmp_path / "recordings", arguments=["--max-rows", "500"])
    ended = f"{RESID} ended at the server's cap of 500 rows (--max-rows), not "
    grant = f"hookline: the server grants 500 rows of {RESID}, its cap\n"
    flags = ["--hook-points", RESID, "--dataset", "text", "--sequence-length", "100", "--skip-first", "1", "--quiet"]
    more = ["--max-activations", "600"]
    fewer = ["--max-activations", "400"]
    try:
        for command, budget, said in (
            (["persist", "all"], [], f"hookline: {ended}at the end of its source\n"),
            (["persist", "more"], more, f"hookline: {ended}at the 600 rows requested\n"),
            (["stats"], [], f"hookline: {ended}at the end of its source\n"),
            (["stats"], more, grant),
            (["capture"], more, grant),
            (["persist", "fewer"], fewer, ""),
            (["stats"], fewer, ""),
        ):
            code, _, errors = run(server, *command, *flags, *budget)
            errors = "".join(line for line in errors.splitlines(True) if "recording" not in line)
            assert (code, errors) == (0, said), command
    finally:
        server.kill()


def test_persist_draws_a_bar_on_a_terminal_and_an_interrupt_leaves_the_server_at_work(tmp_path):
    (tmp_path / "recordings").mkdir()
    server = Server(recordings=tmp_path / "recordings")
    try:
        flags = ["--hook-points", "*", "--dataset", "text", "--sequence-length", "100"]
        terminal, other_end = pty.openpty()
        process = start(server, "persist", "long", *flags, stderr=other_end)
        os.close(other_end)
        shown = b""
        while not re.search(rb"\r +[0-9]+% \[=*>? *\] [0-9,]+/[0-9,]+ rows", shown):
            shown += os.read(terminal, 4096)
        process.send_signal(signal.SIGINT)
        with open(terminal, "rb", buffering=0, closefd=True) as rest:
            try:
                while piece := rest.read(4096):
                    shown += piece
            except OSError:  # a terminal ends in this way when its other end is closed
                pass
        assert process.wait(PATIENCE) == 130
        process.communicate()
        assert b"the server continues to record long" in shown
        assert "long: running" in done(server, "recordings", "long")
        assert "long: stopped" in done(server, "recordings", "long", "--stop")
        assert re.search(r"long +stopped", done(server, "recordings"))
        assert "long was removed" in done(server, "recordings", "long", "--remove")
        assert "no recording is called long" in refused(server, "recordings", "long")[1]
    finally:
        server.kill()


def test_without_a_model_a_server_lists_shows_verifies_and_reads(recorded, reader, tmp_path):
    assert re.search(r"text +complete +5,000", done(reader, "recordings"))
    shown = done(reader, "recordings", "text")
    assert re.search(rf"{MLP} +3,000 +3,000 +128", shown)
    assert "every byte matches its checksum" in done(reader, "verify", "text", "--quiet")
    done(reader, "read", "text", "--provenance", "--out", str(tmp_path / "read"), "--quiet")
    for name, rows in ROWS.items():
        tensors = read_safetensors(tmp_path / "read" / f"{name}.safetensors")[1]
        assert tensors[name].shape == (rows, 128)
        for key, values in recorded[1][name].items():
            np.testing.assert_array_equal(tensors[key], values)
    came = json.loads(
        done(
            reader, "read", "text", "--hook-points", RESID, "--first-row", "100", "--row-count", "50", "--shuffle-seed",
            "1", "--json", "--out", str(tmp_path / "part"), "-q",
        )
    )  # fmt: skip
    assert [(p["hook_point"], p["rows"]) for p in came["hook_points"]] == [(RESID, 50)]
    part = read_safetensors(came["hook_points"][0]["path"])[1][RESID]
    expected = recorded[1][RESID][RESID][100:150]
    assert not np.array_equal(part, expected)
    np.testing.assert_array_equal(np.sort(part, axis=0), np.sort(expected, axis=0))


def test_verify_names_a_damaged_shard(recorded, tmp_path):
    done(None, "import", *make_collected(tmp_path / "pt", {RESID: torch.ones(20, 8)}), *into(tmp_path / "recordings"))
    (shard,) = (tmp_path / "recordings" / "old").glob("*.safetensors")
    contents = bytearray(shard.read_bytes())
    contents[-1] ^= 1
    shard.write_bytes(contents)
    server = Server(recordings=tmp_path / "recordings", model=False)
    try:
        code, output, errors = run(server, "verify", "old", "--quiet")
        assert code == 1 and shard.name in output and "1 of 1 shard" in errors
    finally:
        server.kill()


@pytest.mark.parametrize("format", ["pt", "npy", "safetensors"])
def test_export_writes_a_file_for_each_hook_point_and_a_manifest_of_their_names(recorded, reader, tmp_path, format):
    done(reader, "export", "text", "--format", format, "--out", str(tmp_path / "out"), "--quiet")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["recording"] == "text" and manifest["dtype"] == "float32"
    assert sorted(os.listdir(tmp_path / "out")) == sorted([*manifest["files"], "manifest.json"])
    assert {entry["hook_point"]: entry["rows"] for entry in manifest["files"].values()} == ROWS
    for file, entry in manifest["files"].items():
        path, name = tmp_path / "out" / file, entry["hook_point"]
        if format == "pt":
            assert file == name.replace(".", "_") + ".pt"  # as the original collector names it
            values = torch.load(path, weights_only=True).numpy()
        elif format == "npy":
            values = np.load(path)
        else:
            values = read_safetensors(path)[1][name]
        np.testing.assert_array_equal(values, recorded[1][name][name])
    assert (
        "manifest.json exists"
        in refused(
            reader,
            "export",
            "text",
            "--hook-points",
            "blocks.2*",
            "--format",
            format,
            "--out",
            str(tmp_path / "out"),
            "-q",
        )[1]
    )
    done(reader, "export", "text", "--format", format, "--out", str(tmp_path / "out"), "--overwrite", "--quiet")


def test_the_collectors_loader_reads_an_export_and_import_brings_it_back(recorded, reader, tmp_path):
    done(reader, "export", "text", "--format", "pt", "--out", str(tmp_path / "pt"), "--quiet")
    # ActivationCollector.load_activations makes every underscore a dot, so the exact names stand in the manifest.
    loaded = {path.stem.replace("_", "."): torch.load(path) for path in (tmp_path / "pt").glob("*.pt")}
    files = json.loads((tmp_path / "pt" / "manifest.json").read_text())["files"]
    exact = {file[: -len(".pt")].replace("_", "."): entry["hook_point"] for file, entry in files.items()}
    assert {exact[name]: len(rows) for name, rows in loaded.items()} == ROWS
    # torch writes the file anew without the name inside it; the manifest still has the name.
    odd = tmp_path / "pt" / "blocks_3_hook_mlp_out.pt"
    torch.save(torch.load(odd), tmp_path / "pt" / "x.pt")
    odd.unlink()
    manifest = (tmp_path / "pt" / "manifest.json").read_text().replace(odd.name, "x.pt")
    (tmp_path / "pt" / "manifest.json").write_text(manifest)
    done(None, "import", str(tmp_path / "pt"), *into(tmp_path / "recordings"))
    assert_recording(tmp_path, {name: recorded[1][name][name] for name in ROWS})


def make_collected(folder, tensors):
    """Writes a directory as the original collector's save_activations does; returns the arguments of
    `import` for it."""
    folder.mkdir(exist_ok=True)
    for name, tensor in tensors.items():
        torch.save(tensor, folder / (name.replace(".", "_") + ".pt"))
    return [str(folder)]


def into(recordings, name="old"):
    recordings.mkdir(exist_ok=True)
    return ["--recordings-dir", str(recordings), "--name", name, "--quiet"]


def assert_recording(tmp_path, rows):
    """Asserts that the imported recording `old` holds these rows, in shards that are whole."""
    server = Server(recordings=tmp_path / "recordings", model=False)
    try:
        assert "every byte" in done(server, "verify", "old", "--quiet")
        done(server, "read", "old", "--out", str(tmp_path / "back"), "--quiet")
    finally:
        server.kill()
    assert sorted(os.listdir(tmp_path / "back")) == sorted(f"{name}.safetensors" for name in rows)
    for name, values in rows.items():
        np.testing.assert_array_equal(read_safetensors(tmp_path / "back" / f"{name}.safetensors")[1][name], values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_import_reads_what_the_original_collector_saved(tmp_path, dtype):
    tensors = {
        "blocks.0.hook_resid_post": torch.randn(9000, 16).to(dtype),
        "blocks.11.attn.hook_z": torch.randn(5000, 24).to(dtype),
        "blocks.2.hook_mlp_out": torch.randn(50, 300).to(dtype),
    }
    done(None, "import", *make_collected(tmp_path / "pt", tensors), *into(tmp_path / "recordings"))
    assert_recording(tmp_path, {name: tensor.numpy() for name, tensor in tensors.items()})
    (tmp_path / "pt2").mkdir()
    again = refused(None, "import", *make_collected(tmp_path / "pt2", tensors), *into(tmp_path / "recordings"))
    assert "recording old exists" in again[1]


@pytest.mark.parametrize(
    "thing, message",
    [
        ({"a": torch.ones(2, 2)}, "x.pt"),
        (torch.empty(0), "(rows, width)"),  # which the collector saves if no row came
        (torch.ones(2, 3).t(), "contiguous"),
        (torch.ones(2, 2, dtype=torch.int64), "LongStorage; float32, bfloat16 and float16 are accepted"),
        ([torch.ones(2, 2)], "x.pt"),
    ],
)
def test_import_names_what_is_no_tensor_of_rows_and_leaves_nothing(tmp_path, thing, message):
    code, errors = refused(
        None, "import", *make_collected(tmp_path / "pt", {"x": thing}), *into(tmp_path / "recordings")
    )
    assert "x.pt" in errors and message in errors
    assert list((tmp_path / "recordings").iterdir()) == []


def test_import_refuses_tensors_with_flags_that_change_their_values(tmp_path):
    arguments = make_collected(tmp_path / "pt", {"x": torch.ones(2, 2)})
    path = tmp_path / "pt" / "x.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # A newer torch passes {"neg": True} as the seventh argument of _rebuild_tensor_v2, behind the OrderedDict of hooks.
    pickle = next(name for name in members if name.endswith("/data.pkl"))
    before, hooks, after = members[pickle].rpartition(b")Rq\tt")
    assert hooks
    members[pickle] = before + b")Rq\t}X\x03\x00\x00\x00neg\x88st" + after
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    code, errors = refused(None, "import", *arguments, *into(tmp_path / "recordings"))
    assert "x.pt" in errors and "flags that change its values (conj, neg)" in errors
    assert list((tmp_path / "recordings").iterdir()) == []


def test_import_survives_files_cut_anywhere_and_bytes_that_are_not_theirs(tmp_path):
    arguments = make_collected(tmp_path / "pt", {"x": torch.ones(20, 20)})
    path = tmp_path / "pt" / "x.pt"
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    for length in [0, 1, 21, 22, *random.integers(0, len(whole), 20)]:
        path.write_bytes(whole[:length])
        assert "x.pt" in refused(None, "import", *arguments, *into(tmp_path / "recordings"))[1]
    for round_number in range(40):
        changed = bytearray(whole)
        for place in random.integers(0, len(whole), 8):
            changed[place] = random.integers(0, 256)
        path.write_bytes(changed)
        code, _, errors = run(None, "import", *arguments, *into(tmp_path / "recordings", f"r{round_number}"))
        assert code == 0 or code in (1, 2) and "x.pt" in errors, errors


def test_an_interrupted_export_and_a_full_disk_leave_no_file(recorded, reader, tmp_path):
    process = start(reader, "export", "text", "--format", "pt", "--out", str(tmp_path / "out"))
    process.send_signal(signal.SIGINT)  # before the program has started, while it runs, or after its end
    process.communicate(timeout=PATIENCE)
    left = os.listdir(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert left == [] or "manifest.json" in left and len(left) == 3

    # Files are limited to 1000 KiB, which stands for a full disk.
    limited = ["bash", "-c", 'ulimit -f 1000; trap \'\' XFSZ; exec "$0" "$@"', os.environ["HOOKLINE_PROGRAM"]]
    export = ["export", "text", "--format", "pt", "--quiet", "--out", str(tmp_path / "full")]
    process = subprocess.run([*limited, *export, "--server", reader.address], capture_output=True, text=True)
    assert process.returncode == 1 and "blocks_2_hook_resid_post.pt" in process.stderr, process.stderr
    assert os.listdir(tmp_path / "full") == []


def test_a_capture_that_is_killed_leaves_nothing_that_looks_like_a_file_of_rows(tmp_path):
    server = Server()
    try:
        everything = ["--hook-points", "*", "--dataset", "text", "--sequence-length", "256"]
        process = start(server, "capture", *everything, "--out", str(tmp_path / "out"))
        assert "rows" in process.stderr.readline()  # some rows have arrived
        process.kill()
        process.communicate()
    finally:
        server.kill()
    # Hidden files remain if the file system does not support nameless ones.
    assert [name for name in os.listdir(tmp_path / "out") if not name.startswith(".")] == []


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["read", "nope"], 1, "no recording is called nope"),
        (["export", "text", "--format", "zip", "--out", "x"], 2, "zip not in {pt,npy,safetensors}"),
        (["read", "text", "--hook-points", "blocks.9.hook_resid_post", "-q"], 2, "nearest: "),
        (["read", "text", "--first-row", "5001", "-q"], 2, "5001 is not from 0 to 5000"),
        (["read", "text", "--max-activations-for", "x", "-q"], 2, "`x` is not NAME=ROWS"),
        (["recordings", "--stop"], 2, "--stop requires name"),
        (
            ["persist", "a", "--hook-points", RESID, "--tokens", os.path.join(DEMO, "tokens.npy"), "-q"],
            1,
            "this server has none",
        ),
        (
            ["capture", "--hook-points", RESID, "--dataset", "text", "--sequence-length", "9", "-q"],
            1,
            "this server has none",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(reader, arguments, code, message):
    got, errors = refused(reader, *arguments)
    assert got == code and message in errors


def test_servers_that_share_a_directory_make_one_recording(recorded, tmp_path):
    (tmp_path / "recordings").mkdir()
    servers = [Server(recordings=tmp_path / "recordings", arguments=("--recordings-folder", name)) for name in "ab"]
    try:
        flags = [flag for flag in request_flags() if flag != "--deterministic"]
        for index, server in enumerate(servers):
            persist = ["persist", "part", *flags, "--sequence-count", "52", "--part", f"{index}/2", "--quiet"]
            code, _, errors = run(server, *persist)
            assert code == 0 and "cap" not in errors, errors
        code, output, errors = run(servers[0], "merge", "whole", "*/part")
        assert code == 0 and output.startswith("whole: complete, 5,000 rows of float32"), errors
        assert "100% 6/6 shards" in errors
        assert done(servers[0], "merge", "whole", "part", "b/part", "--quiet") == output
        assert "every byte matches its checksum" in done(servers[0], "verify", "whole", "--quiet")
        done(servers[0], "read", "whole", "--provenance", "--quiet", "--out", str(tmp_path / "read"))
        for name, rows in ROWS.items():
            tensors = read_safetensors(tmp_path / "read" / f"{name}.safetensors")[1]
            for key, values in recorded[1][name].items():
                compare = np.testing.assert_allclose if key == name else np.testing.assert_array_equal
                compare(tensors[key], values, **({"rtol": 1e-4, "atol": 1e-5} if key == name else {}))
            assert len(tensors[name]) == rows
        code, errors = refused(servers[0], "merge", "other", "part", "-q")
        assert code == 1 and "the parts are of sequences 0 to 51" in errors
        assert "parts[0]: no recording is called 'c/part'\n" in refused(servers[0], "merge", "other", "c/part", "-q")[1]
        assert (
            "exists, and is not a merge of these parts"
            in refused(servers[0], "merge", "part", "part", "b/part", "-q")[1]
        )
        for part in ("1", "a/2", "1/2/3"):
            assert "is not INDEX/COUNT" in refused(servers[0], "persist", "x", *flags, "--part", part, "-q")[1]
        assert "part.index: 2" in refused(servers[0], "persist", "x", *flags, "--part", "2/2", "-q")[1]
        assert "INDEX/COUNT" in done(None, "persist", "--help")
        assert "hookline merge run1 '*/run1-part'" in done(None, "merge", "--help")
    finally:
        for server in servers:
            server.kill()


def test_a_directory_is_shared_only_by_servers_with_folders(tmp_path):
    (tmp_path / "recordings").mkdir()
    server = Server(recordings=tmp_path / "recordings", model=False, arguments=("--recordings-folder", "a"))
    try:
        program = [os.environ["HOOKLINE_SERVER_PROGRAM"], "--listen", "127.0.0.1:0"]
        directory = ["--recordings-dir", str(tmp_path / "recordings")]
        for flags, what in (
            (directory, "in use by another process"),
            ([*directory, "--recordings-folder", "a"], "in use by another process"),
            ([*directory, "--recordings-folder", "../b"], "--recordings-folder: name: "),
            (["--recordings-folder", "b"], "--recordings-folder: is a folder in --recordings-dir"),
        ):
            ended = subprocess.run([*program, *flags], capture_output=True, text=True, timeout=PATIENCE)
            assert ended.returncode != 0 and what in ended.stderr, ended.stderr
    finally:
        server.kill()
