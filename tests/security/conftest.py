"""Gives each test its own server, a certificate authority, and clients with tokens."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import grpc
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "client" / "python"))

DEMO = ROOT / "tests" / "fixtures" / "nanochat" / "demo"
SERVER = os.environ.get("HOOKLINE_SERVER_PROGRAM", str(ROOT / "build/release/bin/hookline-server"))
HOOKLINE = os.environ.get("HOOKLINE_PROGRAM", str(ROOT / "build/release/bin/hookline"))
LIBRARY = os.environ.pop("HOOKLINE_CLIENT_LIBRARY", str(ROOT / "build/release/lib/libhookline_client.so"))
os.environ["HOOKLINE_CLIENT_LIBRARY"] = ""  # a test that needs the library asks for it
POINT = "blocks.0.hook_resid_post"
PATIENCE = 120  # seconds, far longer than anything here takes


@pytest.fixture(params=["grpc", "native"])
def receiver(request, monkeypatch):
    """Runs a test with either receiver of rows."""
    if request.param == "native":
        monkeypatch.setenv("HOOKLINE_CLIENT_LIBRARY", LIBRARY)
    return request.param


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = folder / "ca.pem"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
            "-subj", "/CN=test authority", "-keyout", folder / "ca.key", "-out", self.ca,
        )  # fmt: skip

    def certificate(self, name, san="DNS:localhost,IP:127.0.0.1", days=30):
        """Returns the paths of a new certificate and its key. Negative `days`: it has expired."""
        folder = self.folder
        key, request, certificate = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={san}\n")
        openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", folder / "ca.key", "-CAcreateserial",
            "-days", days, "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        return certificate, key


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Server:
    """A server process. `port` is that of its first address."""

    def __init__(self, *flags, listen=("127.0.0.1:0",), environment=None):
        command = [SERVER, "--model", str(DEMO), "--device", "cpu", "--threads", "1", "--slab-count", "64"]
        for address in listen:
            command += ["--listen", address]
        self.process = subprocess.Popen(
            [*command, *map(str, flags)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.lines = []
        self.reads_log = threading.Event()  # while this is cleared, the log's pipe fills
        self.reads_log.set()
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()
        line = self.wait_for("listening on " + listen[0])
        if line is None:
            raise RuntimeError("the server ended at its start:\n" + "".join(self.lines))
        self.port = int(re.search(r"\(port (\d+)\)", line).group(1))
        self.address = f"127.0.0.1:{self.port}"

    def _read(self):
        for line in self.process.stderr:
            self.reads_log.wait()
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self.lines.append("")
            self._changed.notify_all()

    def wait_for(self, text, count=1):
        """Returns the `count`-th line of the log that holds `text`; None if the server ended without it."""
        with self._changed:
            found = []

            def is_done():
                found[:] = [line for line in self.lines if text in line]
                return len(found) >= count or (self.lines and self.lines[-1] == "")

            assert self._changed.wait_for(is_done, PATIENCE), "".join(self.lines)
            return found[count - 1] if len(found) >= count else None

    def hang_up(self):
        self.process.send_signal(signal.SIGHUP)

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve():
    servers = []

    def start(*flags, **options):
        servers.append(Server(*flags, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


def refused_start(*flags, listen="127.0.0.1:0"):
    """Returns the exit code and the log of a server that does not start."""
    done = subprocess.run(
        [SERVER, "--model", str(DEMO), "--device", "cpu", "--threads", "1", "--listen", listen, *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stderr


def entry(name, roles, token=None, **more):
    """Returns a client's entry in an auth file."""
    client = {"name": name, "roles": roles, **more}
    if token is not None:
        client["token_sha256"] = hashlib.sha256(token.encode()).hexdigest()
    return client


def write_clients(path, *clients):
    path.write_text(json.dumps({"clients": list(clients)}))
    return path


def cli(*arguments, **environment):
    """Runs `hookline` with these arguments. Returns the exit code, standard output and standard error."""
    done = subprocess.run(
        [HOOKLINE, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def code_of(call):
    """Returns the name of the status with which a raw gRPC call ends, and its message. `call` makes the call."""
    try:
        answer = call()
        if isinstance(answer, Iterator):
            for _ in answer:
                pass
    except grpc.RpcError as error:
        return error.code().name, error.details()
    return "OK", ""
