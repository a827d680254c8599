"""Runs a server for an hour under everything that clients do, good and bad, and measures whether its usage grows.

    python3 tests/bench/soak.py [--minutes 60] [--bin build/release/bin]

Clients (soak_clients.py) capture, stream, join feeds, record, read back and score; each compares every row and every
loss with references that were taken at the start. Others open captures and read nothing, send garbage, and hold
connections open. Every few seconds one of the good ones is killed with SIGKILL; the certificate is replaced, and the
file of clients rewritten, now and then with a broken one. At minute 5 and at the end all clients leave, and resident
memory, descriptors and threads of the idle server are compared: they may grow by at most 2 %. Figures under load are
printed each minute. A wrong row, a client that fails, or a server that ends is an error at once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

import numpy as np
import soak_clients

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "tests/fixtures/nanochat/demo"
# The first figures at rest are taken in this minute, by which the server has met every kind of load, and then again at
# this interval.
FIRST_REST_MINUTE, REST_EVERY_MINUTES = 5, 20
# Freed memory beyond a bound goes back to the system within twenty seconds, and idle connections are closed after ten.
REST_SECONDS = 40
MOST_GROWTH = 1.02
# gRPC 1.51 adds a thread to a pool if all threads in it are busy, which can happen at any time on a busy machine,
# and keeps it. Its threads have these names and are counted apart: a few more are not a leak, but one for each call
# would be.
GRPC_THREADS = (
    "default-executo",
    "event_engine",
    "grpc_global_tim",
    "nexting_thread",
    "resolver-execut",
    "timer_manager",
)
MOST_MORE_GRPC_THREADS = 4
KILL_EVERY, RELOAD_EVERY = 4.0, 15.0  # seconds
SAMPLE_SECONDS = 0.5


def processes_ended(pidfds, seconds):
    """Waits at most `seconds` until one of the processes ends. Returns the descriptors of those that have ended."""
    return select.select(pidfds, [], [], seconds)[0]


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Certificates:
    """A certificate authority, and the server's certificates, which replace each other."""

    def __init__(self, folder):
        self._folder, self._made = folder, 0
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        self._new_key = new_key
        openssl(
            "req", "-x509", *new_key, "-days", 2, "-subj", "/CN=soak", "-keyout", folder / "ca.key", "-out", self.ca
        )
        (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self.replace()

    def replace(self):
        folder = self._folder
        self._made += 1
        openssl(
            "req", "-new", *self._new_key, "-subj", "/CN=server", "-keyout", folder / "new.key", "-out", folder / "csr"
        )
        signing = ("-CA", self.ca, "-CAkey", folder / "ca.key", "-set_serial", self._made)
        openssl(
            "x509",
            "-req",
            "-in",
            folder / "csr",
            *signing,
            "-days",
            2,
            "-extfile",
            folder / "names",
            "-out",
            folder / "new.pem",
        )
        os.replace(folder / "new.key", self.key)
        os.replace(folder / "new.pem", self.cert)


def write_clients(path, spare_token):
    """Writes the file of clients. No client process uses `spare`, whose token is replaced again and again."""
    everything = ["read", "capture", "record", "evaluate"]
    names = [(name, everything) for name in soak_clients.CLIENTS] + [("spare", ["read"])]
    clients = []
    for name, roles in names:
        token = spare_token if name == "spare" else soak_clients.token_of(name)
        clients.append({"name": name, "token_sha256": hashlib.sha256(token.encode()).hexdigest(), "roles": roles})
    # This client meets its quotas all the time.
    clients[soak_clients.CLIENTS.index("limited")]["quotas"] = {
        "captures": 2,
        "tokens_per_second": 200,
        "recordings": 1,
    }
    path.with_suffix(".new").write_text(json.dumps({"clients": clients}))
    os.replace(path.with_suffix(".new"), path)


class Server:
    """The server, its files, and its usage as the kernel reports it."""

    def __init__(self, bin_folder, folder):
        self.folder = folder
        self.certificates = Certificates(folder)
        self.clients = folder / "clients.json"
        write_clients(self.clients, "spare-0")
        np.save(folder / "pool.npy", soak_clients.make_pool())
        (folder / "recordings").mkdir()
        self.log = (folder / "server.log").open("wb")
        command = [
            bin_folder / "hookline-server", "--model", DEMO, "--device", "cpu", "--threads", "1",
            "--dataset", f"pool={folder / 'pool.npy'}", "--recordings-dir", folder / "recordings",
            "--recordings-free-bytes", "0", "--recordings-shard-bytes", "1MiB",
            "--listen", "127.0.0.1:0", "--port-file", folder / "port", "--metrics-listen", "127.0.0.1:0",
            "--tls-cert", self.certificates.cert, "--tls-key", self.certificates.key, "--auth-file", self.clients,
            "--slab-bytes", "256KiB", "--slab-count", "256", "--stall-timeout", "5s", "--feed-stall-timeout", "2s",
            "--connection-idle", "10s", "--keepalive", "15s", "--log-format", "json",
        ]  # fmt: skip
        self.process = subprocess.Popen(list(map(str, command)), stderr=self.log)
        self.pidfd = os.pidfd_open(self.process.pid)
        while not (folder / "port").exists():
            if self.process.poll() is not None:
                sys.exit(f"the server ended at its start:\n{(folder / 'server.log').read_text()}")
            processes_ended([self.pidfd], 0.05)
        self.address = f"127.0.0.1:{(folder / 'port').read_text().strip()}"
        self._reloads = 0
        port = re.search(r"metrics at .*\(port (\d+)\)", (folder / "server.log").read_text()).group(1)
        self.metrics_address = f"127.0.0.1:{port}"

    def run_for(self, seconds):
        """Lets the server run for some time. Exits if it ends meanwhile."""
        if processes_ended([self.pidfd], seconds):
            log = (self.folder / "server.log").read_text()
            sys.exit(f"the server ended with {self.process.wait()}:\n{log[-4000:]}")

    def reload(self):
        """Replaces certificates and the file of clients, which is broken every third time."""
        self._reloads += 1
        self.certificates.replace()
        if self._reloads % 3 == 0:
            self.clients.write_text('{"clients":[{"name":"\\u001b[31mbroken"')
        else:
            write_clients(self.clients, f"spare-{self._reloads}")
        self.process.send_signal(signal.SIGHUP)

    def metrics(self):
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=60) as page:
            return page.read().decode()

    def captures(self):
        """Returns the number of captures that run or wait, and of scorings."""
        numbers = re.findall(
            r'^hookline_(?:captures\{state="\w+"|queue_depth\{[^}]*queue="scores")\} (\d+)', self.metrics(), re.M
        )
        return sum(map(int, numbers))

    def usage(self):
        """Returns resident bytes, descriptors, the server's own threads, and the threads of gRPC's pools."""
        proc = pathlib.Path(f"/proc/{self.process.pid}")
        resident = 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", (proc / "status").read_text()).group(1))
        pooled = own = 0
        for task in (proc / "task").iterdir():
            try:
                is_pooled = (task / "comm").read_text().startswith(GRPC_THREADS)
            except OSError:  # the process has ended
                continue
            pooled, own = pooled + is_pooled, own + (not is_pooled)
        return np.array([resident, len(os.listdir(proc / "fd")), own, pooled], dtype=float)


class Clients:
    """The client processes. They are forked from this one, which imports what they need and opens no connection."""

    def __init__(self, server, counts):
        self._server, self._counts = server, counts
        self._random = random.Random(11)
        self._running = {}  # by process id: the index of the role, and a descriptor of the process
        self.killed = 0

    def _start(self, index):
        server = self._server
        place = soak_clients.Place(
            server.address, str(server.certificates.ca), server.metrics_address, str(server.folder)
        )
        role = soak_clients.ROLES[index]
        pid = os.fork()
        if pid == 0:
            code = 1
            self._leave.listen()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                soak_clients.run(
                    role, place, self._counts, self._leave, seed=self._random.randrange(1 << 30) + os.getpid()
                )
                code = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        self._running[pid] = (index, os.pidfd_open(pid))

    def start(self):
        self._leave = soak_clients.Leave()
        for index in range(len(soak_clients.ROLES)):
            self._start(index)

    def pidfds(self):
        return [pidfd for _, pidfd in self._running.values()]

    def check(self, ended):
        """Exits if a client is among the processes that have ended by themselves."""
        for pid, (index, pidfd) in list(self._running.items()):
            if pidfd in ended:
                del self._running[pid]
                name = soak_clients.ROLES[index].__name__
                sys.exit(f"client {name} ended by itself ({os.waitpid(pid, 0)[1]}); its output is above")

    def kill_one(self):
        """Kills one of the good clients with SIGKILL and starts another in its place."""
        good = [pid for pid, (index, _) in self._running.items() if soak_clients.ROLES[index] in soak_clients.GOOD]
        pid = self._random.choice(good)
        index, pidfd = self._running.pop(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pidfd)
        self.killed += 1
        self._start(index)

    def end(self):
        """Tells all clients to leave, and kills those that have not left after half a minute."""
        if not self._running:
            return
        self._leave.tell()
        end = time.monotonic() + 30
        for pid, (_, pidfd) in self._running.items():
            if not processes_ended([pidfd], max(0.0, end - time.monotonic())):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(pidfd)
        self._running = {}
        self._leave.close()


def at_rest(server, clients):
    """Makes all clients leave. Returns the server's usage afterwards."""
    clients.end()
    end = time.monotonic() + 120
    while server.captures() > 0:
        if time.monotonic() > end:
            sys.exit(f"captures are left two minutes after all clients have gone:\n{server.metrics()}")
        server.run_for(1)
    server.run_for(REST_SECONDS)
    samples = []
    for _ in range(10):
        samples.append(server.usage())
        server.run_for(1)
    return np.mean(samples, axis=0)


def show(usage):
    return (
        f"{usage[0] / 2**20:.1f} MiB resident, {usage[1]:.0f} descriptors, {usage[2]:.0f} threads and "
        f"{usage[3]:.0f} of gRPC's"
    )


def soak(arguments, folder):
    server = Server(arguments.bin, folder)
    clients = None
    try:
        counts = soak_clients.Counts()
        soak_clients.in_child(soak_clients.take_references, server.address, str(server.certificates.ca), str(folder))
        clients = Clients(server, counts)
        clients.start()
        begin = last_kill = last_reload = time.monotonic()
        loads, first = [], None
        minute = 0
        while minute < arguments.minutes:
            clients.check(processes_ended(clients.pidfds(), SAMPLE_SECONDS))
            server.run_for(0)
            now = time.monotonic()
            if now - last_kill > KILL_EVERY:
                clients.kill_one()
                last_kill = now
            if now - last_reload > RELOAD_EVERY:
                server.reload()
                last_reload = now
            loads.append(server.usage())
            if now - begin < 60 * (minute + 1):
                continue
            minute += 1
            print(
                f"minute {minute}: {show(np.mean(loads, axis=0))} under load; {counts.text()}; {clients.killed} killed",
                flush=True,
            )
            loads = []
            since_first = minute - min(FIRST_REST_MINUTE, arguments.minutes)
            if since_first >= 0 and since_first % REST_EVERY_MINUTES == 0:
                usage = at_rest(server, clients)
                first = usage if first is None else first
                print(f"minute {minute}: {show(usage)} at rest", flush=True)
                clients.start()
                begin += time.monotonic() - now  # time at rest does not count as minutes
        last = at_rest(server, clients)
        print(f"minute {minute}: {show(last)} at rest; {counts.text()}; {clients.killed} killed")
        ratios = last / first
        print(
            f"at the end / at minute {min(FIRST_REST_MINUTE, minute)}: resident {ratios[0]:.4f}, "
            f"descriptors {ratios[1]:.4f}, threads {ratios[2]:.4f} (wanted: at most {MOST_GROWTH}); "
            f"{last[3] - first[3]:.0f} more threads of gRPC's"
        )
        check_log(folder / "server.log")
        if (ratios[:3] > MOST_GROWTH).any() or last[3] - first[3] > MOST_MORE_GRPC_THREADS:
            sys.exit("soak: FAILED")
        print("soak: ok")
    finally:
        if clients is not None:
            clients.end()
        server.process.terminate()
        server.process.wait()


def check_log(path):
    """Checks that each line is an object without a character that a terminal obeys, and that there was
    no internal error."""
    calls = 0
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        assert line.isprintable(), line
        calls += entry["message"] == "call"
        assert entry.get("code") not in ("INTERNAL", "UNKNOWN", "DATA_LOSS"), line
    print(f"the log: {calls} calls, each on a line of JSON, none INTERNAL, UNKNOWN or DATA_LOSS")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin", help="the programs' folder")
    arguments = parser.parse_args()
    if arguments.minutes < 1:
        parser.error("--minutes: at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("soak: ended by SIGTERM"))  # clients and server end too
    with tempfile.TemporaryDirectory(prefix="hookline-soak-") as folder:
        soak(arguments, pathlib.Path(folder))


if __name__ == "__main__":
    main()
