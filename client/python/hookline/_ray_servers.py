"""Runs servers as actors of a Ray cluster: one for each GPU, watched, restarted when they end, and drained."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from hookline._connect import connect
from hookline.errors import HooklineError, UnavailableError

# The time between two checks of a server, and the longest that it can take to answer. After three missed answers it is
# killed.
_WATCH_SECONDS = 2.0
_ANSWER_SECONDS = 10.0
_MISSES = 3
# The time between two starts of a server that ends at once.
_RESTART_SECONDS = 1.0
# After this many ends in a row without an answer, a server counts as one that cannot start.
_FAILED_STARTS = 3
# The last bytes of a server's output that errors quote.
_LOG_BYTES = 4096
# The time beyond its --drain-timeout after which a server is killed.
_DRAIN_GRACE_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1


def serve(
    model: str,
    *,
    replicas: int = 1,
    num_gpus: float = 1,
    num_cpus: float = 1,
    arguments: Sequence[str] = (),
    program: str = "hookline-server",
    environment: Mapping[str, str] | None = None,
    strategy: str = "PACK",
    start_seconds: float = 1800,
    drain_seconds: float = 60,
) -> Servers:
    """Starts one server for each replica, as an actor in a placement group, and waits until all of them answer.

    model: what `hookline-server --model` takes; every node must see the path.
    num_gpus, num_cpus: of each server. Ray shows a server only its own GPU; num_gpus=0 runs it on CPUs, with
        num_cpus threads.
    arguments: further flags of hookline-server, such as `--dataset`. Servers listen on their node's address, on any
        free port. On any but a loopback address they need `--auth-file`, which keeps out other users of the network, or
        `--insecure`, which lets them in.
    program: hookline-server, as it is found on each node.
    environment: variables to add to the servers' environment.
    strategy: of the placement group: "PACK", "SPREAD", "STRICT_PACK" or "STRICT_SPREAD".
    start_seconds: how long to wait for the placement group and the answers; then TimeoutError. RuntimeError if a server
        ends whenever it is started. Both quote the server's last output.
    drain_seconds: how long `Servers.drain` gives running captures.

    A server that ends or stops answering is restarted on the same port. Ray restarts an actor that dies, perhaps on
    another node: `Servers.endpoints` says where the servers are.
    """
    if replicas < 1:
        raise ValueError(f"replicas: {replicas} is below 1")
    bundle = {"CPU": num_cpus, **({"GPU": num_gpus} if num_gpus else {})}
    group = placement_group([dict(bundle) for _ in range(replicas)], strategy=strategy)
    if not group.wait(start_seconds):
        remove_placement_group(group)
        raise TimeoutError(f"the cluster had no room for {replicas} times {bundle} within {start_seconds} s")
    flags = ["--model", model, "--drain-timeout", f"{drain_seconds:g}s"]
    if not num_gpus:
        flags += ["--device", "cpu", "--threads", str(max(1, int(num_cpus)))]
    actor = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=-1, max_task_retries=-1, max_concurrency=4)(
        _Server
    )
    actors = [
        actor.options(
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        ).remote(program, [*flags, *arguments], dict(environment or {}), drain_seconds)
        for index in range(replicas)
    ]
    servers = Servers(group, actors, drain_seconds)
    try:
        servers.wait(start_seconds)
    except BaseException:
        servers.drain()
        raise
    return servers


class Servers:
    """The servers that `serve` started. Can be sent to tasks and actors. Also a context manager, which drains them."""

    def __init__(self, group: PlacementGroup, actors: Sequence[Any], drain_seconds: float) -> None:
        self._group = group
        self._actors = list(actors)
        self._drain_seconds = drain_seconds

    @property
    def endpoints(self) -> list[str]:
        """The addresses of the servers that answer now."""
        return [state["address"] for state in self.health() if state["answers"]]

    def health(self) -> list[dict[str, Any]]:
        """Returns the state of each server: its `address`, whether it `answers`, how often it was restarted in all
        (`restarts`) and since it last answered (`failed_starts`), its `node`, and its last output (`words`)."""
        states = []
        for actor in self._actors:
            try:
                states.append(ray.get(actor.state.remote(), timeout=_ANSWER_SECONDS))
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                words = f"the actor does not answer: {type(error).__name__}"
                states.append(dict(address="", answers=False, restarts=0, failed_starts=0, node="", words=words))
        return states

    def write_endpoints(self, path: str) -> None:
        """Writes the addresses to a file for `hookline.connect(endpoints=...)`. The file is replaced atomically."""
        addresses = self.endpoints
        descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".endpoints-")
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{address}\n" for address in addresses)
        os.replace(temporary, path)

    def wait(self, timeout: float) -> None:
        """Waits until all servers answer. RuntimeError if a server ends whenever it is started, TimeoutError if one
        does not answer; both quote its last output."""
        end = time.monotonic() + timeout
        while True:
            away = [state for state in self.health() if not state["answers"]]
            if not away:
                return
            ends = next((state for state in away if state["failed_starts"] >= _FAILED_STARTS), None)
            if ends is not None:
                raise RuntimeError(f"a server ends whenever it is started; its last output is: {ends['words']}")
            if time.monotonic() > end:
                raise TimeoutError(
                    f"{len(away)} servers did not answer within {timeout} s; one's last output is: {away[0]['words']}"
                )
            time.sleep(_WATCH_SECONDS / 4)

    def drain(self) -> None:
        """Ends the servers and releases their resources. Running captures have `drain_seconds` to
        finish. Idempotent."""
        actors, self._actors = self._actors, []
        if actors:
            drained = [actor.drain.remote() for actor in actors]
            ray.wait(drained, num_returns=len(drained), timeout=self._drain_seconds + 2 * _DRAIN_GRACE_SECONDS)
            for actor in actors:
                ray.kill(actor)
            remove_placement_group(self._group)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.drain()


class _Server:
    """The actor of one server. The server's process lives as long as the thread that watches it."""

    def __init__(self, program: str, flags: Sequence[str], environment: dict[str, str], drain_seconds: float) -> None:
        self._program = shutil.which(program) or program
        self._flags = list(flags)
        self._environment = {**os.environ, **environment}
        self._drain_seconds = drain_seconds
        self._host = ray.util.get_node_ip_address()
        self._folder = tempfile.mkdtemp(prefix="hookline-ray-")
        self._port_file = os.path.join(self._folder, "port")
        self._port = 0  # 0: any free port; restarts keep the first one
        self._answers = False
        self._restarts = 0
        self._failed_starts = 0  # in a row
        self._drains = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hookline-watch", daemon=True)
        self._thread.start()

    def state(self) -> dict[str, Any]:
        return dict(
            address=f"{self._host}:{self._port}" if self._port else "",
            answers=self._answers and not self._drains.is_set(),
            restarts=self._restarts,
            failed_starts=self._failed_starts,
            node=ray.get_runtime_context().get_node_id(),
            words=self._words(),
        )

    def drain(self) -> None:
        self._drains.set()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def process_id(self) -> int:
        """The process id, for tests that kill the server."""
        return self._process.pid

    def _watch(self) -> None:
        while not self._drains.is_set():
            self._start()
            self._stay_with_it()
            self._answers = False
            if not self._drains.is_set():
                self._restarts += 1
                self._failed_starts += 1
                self._drains.wait(_RESTART_SECONDS)

    def _start(self) -> None:
        log_file, port_file = os.path.join(self._folder, "log"), self._port_file
        if os.path.exists(port_file):
            os.remove(port_file)
        listen = f"{self._host}:{self._port}"
        if os.path.exists(log_file):
            os.replace(log_file, log_file + ".before")
        with open(log_file, "wb") as log:
            try:
                self._process = subprocess.Popen(
                    [self._program, *self._flags, "--listen", listen, "--port-file", port_file],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                log.write(f"{self._program} cannot be run: {error}".encode())
                return
        while self._process.poll() is None and not self._drains.wait(0.1):
            if os.path.exists(port_file):
                with open(port_file) as file:
                    self._port = int(file.read())
                return

    def _stay_with_it(self) -> None:
        """Returns when the process has ended."""
        process = getattr(self, "_process", None)
        misses = 0
        while process is not None and process.poll() is None:
            if self._drains.is_set():
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(self._drain_seconds + _DRAIN_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                return
            self._answers = self._is_there()
            misses = 0 if self._answers else misses + 1
            self._failed_starts = 0 if self._answers else self._failed_starts
            if misses >= _MISSES and os.path.exists(self._port_file):  # a server that still loads its model has no port
                process.kill()
                process.wait()
                return
            self._drains.wait(_WATCH_SECONDS)

    def _is_there(self) -> bool:
        try:
            with connect(f"{self._host}:{self._port}", shared_memory=False) as client:
                client.models(timeout=_ANSWER_SECONDS)
            return True
        except UnavailableError:
            return False
        except HooklineError as error:
            return error.code != "DEADLINE_EXCEEDED"  # any other error, such as UNAUTHENTICATED, is an answer

    def _words(self) -> str:
        """Returns the last output of the server, and of its predecessor, which may say why that one ended."""
        said = []
        for name in ("log.before", "log"):
            try:
                with open(os.path.join(self._folder, name), "rb") as log:
                    log.seek(max(0, os.path.getsize(log.name) - _LOG_BYTES))
                    said.append(log.read().decode(errors="replace").strip())
            except OSError:  # there is no such file
                pass
        return "\n".join(said)


def _end_with_parent() -> None:
    """Makes the new process, which calls it, end with the thread that started it, for example if Ray kills
    the worker."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
