"""The programs as they are built: a server on the demo model, and every command of the command line against it."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

import numpy
import torch

HOOKLINE, SERVER, FIXTURES = sys.argv[1:4]
DEMO = os.path.join(FIXTURES, "nanochat", "demo")
RESID, MLP = "blocks.2.hook_resid_post", "blocks.3.hook_mlp_out"


class Server:
    """Runs until `stop`. The port is read from the log, so that nothing waits for longer than it takes."""

    def __init__(self, *flags):
        command = [SERVER, "--listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        log = ""
        for line in self.process.stdout:
            log += line
            match = re.search(r"listening on .*\(port (\d+)\)", line)
            if match:
                self.address = "127.0.0.1:" + match[1]
                return
        raise AssertionError(f"the server ended with {self.process.wait()}: {log}")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


def run(*arguments, code=0):
    result = subprocess.run([HOOKLINE, *arguments], capture_output=True, text=True, timeout=120)
    assert result.returncode == code, (arguments, result)
    return result.stdout if code == 0 else result.stderr


def safetensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        values = file.read()
    types = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4"}
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] not in types:
            continue
        begin, end = entry["data_offsets"]
        tensors[name] = numpy.frombuffer(values[begin:end], types[entry["dtype"]]).reshape(entry["shape"])
    return header["__metadata__"], tensors


class EndToEnd(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.recordings = self.path("recordings")
        os.mkdir(self.recordings)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def start(self, *flags):
        server = Server(*flags)
        self.addCleanup(lambda: server.process.poll() is None and server.stop())
        return server

    def text_flags(self):
        return ["--tokens", os.path.join(DEMO, "LICENSE.txt"), "--token-format", "bytes", "--sequence-length", "127",
                "--prepend-token", "256"]

    def test_captures_the_rows_that_the_reference_has(self):
        server = self.start("--model", DEMO)
        _, reference = safetensors(os.path.join(DEMO, "reference.safetensors"))
        _, whole = safetensors_tokens(os.path.join(DEMO, "reference.safetensors"), "tokens_1")
        tokens = self.path("ids.txt")
        with open(tokens, "w") as file:
            file.write(" ".join(str(t) for t in whole))
        out = self.path("rows")
        table = run("--server", server.address, "capture", "--hook-points", f"{RESID},{MLP}", "--tokens", tokens, "--out",
                    out, "--provenance", "-q")
        self.assertIn(RESID, table)
        for name in (RESID, MLP):
            metadata, tensors = safetensors(os.path.join(out, name + ".safetensors"))
            self.assertEqual(metadata["hook_point"], name)
            expected = reference[name + "/1"]
            error = numpy.linalg.norm(tensors[name] - expected) / numpy.linalg.norm(expected)
            self.assertLess(error, 1e-5)
            self.assertEqual(list(tensors["provenance/token_id"]), list(whole))
        self.assertIn("nearest: ", run("capture", "--server", server.address, "--hook-points", "blocks.2.hook_resid_pos",
                                       "--tokens", tokens, code=2))
        self.assertEqual(server.stop(), 0)

    def test_records_reads_verifies_exports_and_imports(self):
        server = self.start("--model", DEMO, "--recordings-dir", self.recordings)
        command = ["persist", "license", "--server", server.address, "--hook-points", f"{RESID},{MLP}",
                   *self.text_flags(), "--max-activations", "5000", "--max-activations-for", MLP + "=3000", "-q"]
        self.assertIn("complete", run(*command))
        self.assertIn("complete", run(*command))
        self.assertIn("license", run("recordings", "--server", server.address))
        self.assertIn("3,000", run("recordings", "license", "--server", server.address))
        self.assertIn("every byte", run("verify", "license", "--server", server.address))

        captured, read = self.path("captured"), self.path("read")
        run("capture", "--server", server.address, "--hook-points", f"{RESID},{MLP}", *self.text_flags(),
            "--max-activations", "5000", "--max-activations-for", MLP + "=3000", "-q", "--out", captured, "--provenance")
        run("read", "license", "--server", server.address, "--out", read, "--provenance", "-q")
        expected = {}
        for name, rows in ((RESID, 5000), (MLP, 3000)):
            _, a = safetensors(os.path.join(captured, name + ".safetensors"))
            _, b = safetensors(os.path.join(read, name + ".safetensors"))
            self.assertEqual(a[name].shape, (rows, 128))
            numpy.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-4)
            numpy.testing.assert_array_equal(a["provenance/token_id"], b["provenance/token_id"])
            expected[name] = b[name]

        run("export", "license", "--server", server.address, "--format", "pt", "--out", self.path("pt"), "-q")
        run("export", "license", "--server", server.address, "--format", "npy", "--out", self.path("npy"), "-q")
        for name in (RESID, MLP):
            tensor = torch.load(self.path("pt/" + name.replace(".", "_") + ".pt"), weights_only=True)
            numpy.testing.assert_array_equal(tensor.numpy(), expected[name])
            numpy.testing.assert_array_equal(numpy.load(self.path(f"npy/{name}.npy")), expected[name])
        with open(self.path("pt/manifest.json")) as file:
            files = json.load(file)["files"]
        self.assertEqual({entry["hook_point"] for entry in files.values()}, {RESID, MLP})
        self.assertIn("removed", run("recordings", "license", "--remove", "--server", server.address))
        self.assertEqual(server.stop(), 0)

        # What torch.save itself writes, under the collector's names, and what export wrote.
        original = self.path("original")
        os.mkdir(original)
        for name in (RESID, MLP):
            torch.save(torch.from_numpy(expected[name].copy()), os.path.join(original, name.replace(".", "_") + ".pt"))
        run("import", original, "--recordings-dir", self.recordings, "--name", "old", "-q")
        run("import", self.path("pt"), "--recordings-dir", self.recordings, "--name", "exported", "-q")
        self.assertIn("exported", run("import", original, "--recordings-dir", self.recordings, "--name", "exported",
                                      "-q", code=1))
        server = self.start("--recordings-dir", self.recordings)
        for recording in ("old", "exported"):
            run("verify", recording, "--server", server.address, "-q")
            out = self.path("from-" + recording)
            run("read", recording, "--server", server.address, "--out", out, "-q")
            for name in (RESID, MLP):
                _, tensors = safetensors(os.path.join(out, name + ".safetensors"))
                numpy.testing.assert_array_equal(tensors[name], expected[name])

    def test_import_refuses_what_is_no_tensor_of_rows(self):
        for number, thing in enumerate([{"a": torch.ones(2, 2)}, torch.ones(3), torch.ones(2, 3).t(),
                                        torch.ones(2, 2, dtype=torch.int64), [torch.ones(2, 2)]]):
            folder = self.path(str(number))
            os.mkdir(folder)
            torch.save(thing, os.path.join(folder, "x.pt"))
            self.assertIn("x.pt", run("import", folder, "--recordings-dir", self.recordings, "--name", "x", code=1))
        folder = self.path("cut")
        os.mkdir(folder)
        torch.save(torch.ones(20, 20), os.path.join(folder, "x.pt"))
        with open(os.path.join(folder, "x.pt"), "rb+") as file:
            file.truncate(700)
        self.assertIn("x.pt", run("import", folder, "--recordings-dir", self.recordings, "--name", "x", code=1))
        self.assertEqual([name for name in os.listdir(self.recordings) if not name.startswith(".")], [])


def safetensors_tokens(path, key):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        begin, end = header[key]["data_offsets"]
        file.seek(8 + length + begin)
        return header, numpy.frombuffer(file.read(end - begin), "<i4")


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
