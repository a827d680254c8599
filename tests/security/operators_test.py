"""Tests that operators see and end captures, that clients meet quotas, and that captures which nobody reads end."""

import json
import queue
import re
import threading
import urllib.request

import grpc
import pytest
from conftest import POINT, cli, entry, write_clients

import hookline
from hookline import _protocol

STREAM = "/hookline.v1.CaptureService/CaptureStream"


class Stream:
    """A CaptureStream that is open until `close`. `messages` are read only when a test asks for them."""

    def __init__(self, address, token=None):
        self._requests = queue.Queue()
        first = _protocol.CaptureStreamRequest()
        first.request.hook_points.append(POINT)
        self._requests.put(first.SerializeToString())
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        metadata = [("authorization", f"Bearer {token}")] if token else []
        self.call = self._channel.stream_stream(STREAM)(iter(self._requests.get, None), metadata=metadata, timeout=120)

    def next(self):
        return _protocol.CaptureResponse.FromString(next(self.call))

    def send(self, ids):
        message = _protocol.CaptureStreamRequest()
        message.tokens.sequences.add().ids.extend(ids)
        self._requests.put(message.SerializeToString())

    def end(self):
        """Reads to the end. Returns the code with which the call ends, and the message."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""

    def close(self):
        self._requests.put(None)
        self.call.cancel()
        self._channel.close()


@pytest.fixture
def streams():
    opened = []

    def open_stream(*arguments):
        opened.append(Stream(*arguments))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.close()


def test_top_shows_captures_and_stop_ends_one(serve, streams, tmp_path):
    clients = write_clients(
        tmp_path / "clients.json",
        entry("alice", ["read", "capture"], "a"),
        entry("bob", ["read", "capture"], "b"),
        entry("root", ["admin"], "r"),
    )
    server = serve("--auth-file", clients)
    stream = streams(server.address, "a")
    capture_id = stream.next().started.capture_id
    assert capture_id > 0

    def top(token):
        code, out, err = cli("top", "--once", "--json", "--server", server.address, HOOKLINE_TOKEN=token)
        assert code == 0, err
        return json.loads(out)

    (capture,) = top("r")["captures"]
    assert capture["id"] == capture_id
    assert capture["client"] == "alice"
    assert capture["hook_points"] == [POINT]
    assert (capture["source"], capture["waits_for"]) == ("stream", "sequences")
    assert capture["slabs"] > 0
    assert len(top("a")["captures"]) == 1, "one's own are shown"
    assert top("b")["captures"] == [], "others' are not"
    code, out, _ = cli("top", "--once", "--server", server.address, HOOKLINE_TOKEN="r")
    assert code == 0 and "alice" in out and "sequences" in out

    code, _, err = cli("stop", capture_id, "--server", server.address, HOOKLINE_TOKEN="b")
    assert (code, "you have no capture" in err) == (1, True), err
    code, out, err = cli("stop", capture_id, "--server", server.address, HOOKLINE_TOKEN="r")
    assert code == 0, err
    code, message = stream.end()
    assert (code, "stopped by root" in message) == ("CANCELLED", True)
    assert top("r")["captures"] == []


def test_a_json_log_holds_an_object_in_each_line(serve, tmp_path):
    clients = tmp_path / "clients.json"
    write_clients(clients, entry("a", ["read"], "a"))
    server = serve("--log-format", "json", "--auth-file", clients)
    clients.write_text('{"clients":[{"name":"\\u001b[31m\\"\\\\","roles":[],"uid":1}]}')
    server.hang_up()
    assert server.wait_for("stays in force") is not None
    for line in server.lines:
        assert set(json.loads(line)) == {"time", "level", "message"}
        assert "\x1b" not in line


def read_metrics(server):
    port = re.search(r"\(port (\d+)\)", server.wait_for("metrics at")).group(1)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        return page.read().decode()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_every_finished_call_is_one_line_of_the_log_and_counted(serve, tmp_path, log_format):
    clients = write_clients(
        tmp_path / "clients.json",
        entry("alice", ["read", "capture"], "a", quotas={"rows": 100}),
    )
    server = serve("--log-format", log_format, "--auth-file", clients, "--metrics-listen", "127.0.0.1:0")
    with hookline.connect(server.address, token="a", receiver="grpc") as client:
        capture = client.capture(POINT, [[1, 2, 3]], output="numpy", max_activations=100)
        assert sum(len(batch[POINT]) for batch in capture) == 3
        with pytest.raises(hookline.ResourceExhaustedError, match="quota `rows`"):
            list(client.capture(POINT, [[1, 2, 3]], output="numpy", max_activations=101))
    with hookline.connect(server.address, token="stranger", receiver="grpc") as client:
        with pytest.raises(hookline.UnauthenticatedError):
            client.models()

    def values(method, code):
        """Returns the values in the log line of the call."""
        if log_format == "text":
            line = server.wait_for(f"{method} code={code} ")
            return dict(word.split("=", 1) for word in line.split(" call ", 1)[1].split())
        line = json.loads(server.wait_for(f'{method}","code":"{code}"'))
        assert (line["level"], line["message"]) == ("info", "call")
        return line

    capture = values(STREAM, "OK")
    assert (capture["client"], capture["peer"]) == ("alice", "127.0.0.1")
    assert int(capture["rows"]) == 3 and int(capture["bytes"]) > 3 * 64
    times = [float(capture[name]) for name in ("queue_seconds", "forward_seconds", "copy_seconds", "wire_seconds")]
    assert all(time >= 0 for time in times)
    assert 0 < float(capture["first_row_seconds"]) <= float(capture["seconds"])
    assert values(STREAM, "RESOURCE_EXHAUSTED")["client"] == "alice"
    assert "client" not in values("/hookline.v1.ModelService/ListModels", "UNAUTHENTICATED")
    metrics = read_metrics(server)
    for line in (
        'hookline_grpc_server_handled_total{grpc_service="hookline.v1.CaptureService",grpc_method="CaptureStream",'
        'grpc_code="RESOURCE_EXHAUSTED"} 1',
        'hookline_grpc_server_handled_total{grpc_service="hookline.v1.ModelService",grpc_method="ListModels",'
        'grpc_code="UNAUTHENTICATED"} 1',
        'hookline_first_row_seconds_count{grpc_service="hookline.v1.CaptureService",grpc_method="CaptureStream"} 1',
        'hookline_quota_refusals_total{quota="rows",client="alice",authenticated="true"} 1',
    ):
        assert line in metrics.splitlines(), metrics


def test_a_log_that_nobody_reads_holds_up_no_call(serve):
    server = serve()
    server.reads_log.clear()
    with hookline.connect(server.address, receiver="grpc") as client:
        for _ in range(1000):  # the pipe holds a few hundred lines
            client.models(timeout=60)
        server.reads_log.set()
        server.wait_for("ListModels code=OK", count=100)
        client.models(timeout=60)
    assert re.search(r" [1-9]\d* lines of the log were left out", server.wait_for("were left out"))


def test_health_has_exit_codes_for_probes(serve):
    server = serve()
    assert cli("health", "--server", server.address)[:2] == (0, "serving\n")
    assert cli("health", "--server", server.address, "--service", "hookline.v1.CaptureService")[0] == 0
    server.kill()
    assert cli("health", "--server", server.address, "--timeout", 5)[0] == 3


def test_a_quota_of_captures_is_named_with_the_use(serve, streams, tmp_path):
    clients = write_clients(tmp_path / "clients.json", entry("a", ["capture"], "a", quotas={"captures": 2}))
    server = serve("--auth-file", clients)
    for _ in range(2):
        assert streams(server.address, "a").next().HasField("started")
    code, message = streams(server.address, "a").end()
    assert code == "RESOURCE_EXHAUSTED" and "a has 2 captures, of at most 2 (quota `captures`)" in message


def test_clients_wait_as_long_as_a_rate_demands(serve, tmp_path, receiver):
    clients = write_clients(
        tmp_path / "clients.json",
        entry("a", ["capture"], "a", quotas={"tokens_per_second": 100, "burst_tokens": 50}),
    )
    server = serve("--auth-file", clients)
    with hookline.connect(server.address, token="a", receiver=receiver) as client:
        for _ in range(2):  # the second is refused, waits as long as the server asks, and succeeds
            capture = client.capture(POINT, [[256] * 60], output="numpy")
            assert sum(len(batch[POINT]) for batch in capture) == 60
        with pytest.raises(hookline.ResourceExhaustedError, match="tokens_per_second") as caught:
            list(client.capture(POINT, [[256] * 60], output="numpy", retry=None))
        assert caught.value.retry_after > 0


def test_the_command_line_waits_as_long_as_a_rate_demands(serve, tmp_path):
    clients = write_clients(
        tmp_path / "clients.json",
        entry("a", ["read", "capture"], "a", quotas={"tokens_per_second": 20, "burst_tokens": 50}),
    )
    server = serve("--auth-file", clients)
    tokens = tmp_path / "tokens.txt"
    # The first capture takes 50 tokens more than there are. The rate gives them back after 2.5 seconds, so the second
    # is too early.
    tokens.write_text(" ".join(["256"] * 100) + "\n")
    for number in range(2):  # the second is refused, waits as long as the server asks, and succeeds
        arguments = ("--hook-points", POINT, "--tokens", tokens, "--out", tmp_path / f"rows{number}", "--quiet")
        code, _, err = cli("capture", "--server", server.address, *arguments, HOOKLINE_TOKEN="a")
        assert code == 0, err
    assert server.wait_for("code=RESOURCE_EXHAUSTED") is not None


def test_a_silent_capture_makes_room_for_a_newcomer(serve, streams):
    server = serve("--max-captures", 2, "--client-captures", 64, "--stall-timeout", "2s")
    silent = [streams(server.address) for _ in range(2)]
    for stream in silent:
        assert stream.next().HasField("started")
    newcomer = streams(server.address)
    ahead = dict(newcomer.call.initial_metadata())
    assert ahead["hookline-captures-ahead"] == "0", "it is told its place in the queue"
    assert newcomer.next().HasField("started")
    ends = queue.Queue()
    for stream in silent:  # the server may end either one, whichever was silent for longer
        threading.Thread(target=lambda stream=stream: ends.put(stream.end()), daemon=True).start()
    code, message = ends.get(timeout=60)
    assert (code, "--stall-timeout" in message) == ("UNAVAILABLE", True)
    assert server.wait_for("captures wait to run") is not None
