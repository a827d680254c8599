"""Tests identities and roles: every method with every role, and how clients are recognised."""

import json
import os
import re

import grpc
import pytest
from conftest import POINT, ROOT, cli, code_of, entry, refused_start, write_clients

import hookline

ROLES = ("read", "capture", "record", "evaluate", "admin")
TOKENS = {role: f"token-of-{role}" for role in ROLES}
UNARY = ("Check", "Get", "List", "Estimate", "Stop", "Delete")


def documented_roles():
    """Returns the role of each method in README.md's table; None: open."""
    lines = (ROOT / "README.md").read_text().splitlines()
    rows = [re.fullmatch(r"\| `(/[\w./]+)` \| (?:`(\w+)`|open) \|", line) for line in lines]
    return {row.group(1): row.group(2) for row in rows if row}


def call(channel, method, request=b"", token=None):
    metadata = [("authorization", f"Bearer {token}")] if token else []
    name = method.rpartition("/")[2]
    if name in ("CaptureStream", "ServerReflectionInfo"):
        return code_of(lambda: channel.stream_stream(method)(iter([request]), metadata=metadata, timeout=60))
    if name == "Watch":  # this call never ends by itself
        watch = channel.unary_stream(method)(request, metadata=metadata, timeout=60)
        try:
            next(watch)
            return "OK", ""
        except grpc.RpcError as error:
            return error.code().name, error.details()
    if name.startswith(UNARY):
        return code_of(lambda: channel.unary_unary(method)(request, metadata=metadata, timeout=60))
    return code_of(lambda: channel.unary_stream(method)(request, metadata=metadata, timeout=60))


@pytest.fixture
def clients(tmp_path):
    return write_clients(tmp_path / "clients.json", *(entry(role, [role], TOKENS[role]) for role in ROLES))


@pytest.fixture
def server(serve, clients, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    flags = ("--auth-file", clients, "--recordings-dir", recordings, "--recordings-free-bytes", 0)
    started = serve(*flags, listen=("127.0.0.1:0", f"unix:{tmp_path}/socket"))
    started.unix = f"unix:{tmp_path}/socket"
    return started


def test_the_readme_names_every_method_of_the_protocol():
    documented = documented_roles()
    for path in (ROOT / "proto/hookline/v1").glob("*.proto"):
        for service, body in re.findall(r"^service (\w+) \{(.*?)^\}", path.read_text(), re.MULTILINE | re.DOTALL):
            for method in re.findall(r"^  rpc (\w+)\(", body, re.MULTILINE):
                assert f"/hookline.v1.{service}/{method}" in documented
    table = (ROOT / "server/service/auth/roles.cc").read_text()
    enforced = dict(re.findall(r'\{"(/[\w./]+)", (?:Role::k(\w+)|std::nullopt)\}', table))
    assert {method: role.lower() or None for method, role in enforced.items()} == documented


def test_every_method_wants_the_role_that_the_readme_names(server):
    measured = []
    with grpc.insecure_channel(server.address) as channel:
        for method, role in documented_roles().items():
            code, message = call(channel, method)
            outcomes = [code]
            if role is None:
                assert code == "OK", (method, message)
            else:
                assert code == "UNAUTHENTICATED", (method, message)
                assert "Bearer TOKEN" in message
                # The requests of strangers are not even parsed.
                assert call(channel, method, b"\xff")[0] == "UNAUTHENTICATED", method
            for held in ROLES:
                code, message = call(channel, method, token=TOKENS[held])
                outcomes.append(code)
                if role is None or held in (role, "admin"):
                    assert code not in ("PERMISSION_DENIED", "UNAUTHENTICATED"), (method, held, message)
                else:
                    assert code == "PERMISSION_DENIED", (method, held, code, message)
                    assert f"`{role}`" in message
            measured.append((method, role or "open", outcomes))
    if out := os.environ.get("HOOKLINE_ROLES_TABLE"):
        with open(out, "w") as file:
            for method, role, outcomes in measured:
                file.write(f"| {method} | {role} | {' | '.join(outcomes)} |\n")


def test_what_is_missing_is_said_and_not_what_exists(server):
    with grpc.insecure_channel(server.address) as channel:
        get = "/hookline.v1.RecordingService/GetRecording"
        missing, there = b"\n\x04none", b"\n\x03run"
        assert call(channel, get, missing) == call(channel, get, there)
        assert call(channel, get, missing, TOKENS["capture"]) == call(channel, get, there, TOKENS["capture"])
        code, message = call(channel, get, token="wrong")
        assert (code, message) == ("UNAUTHENTICATED", "authorization: this token is not valid")
        for token in (None, TOKENS["read"]):
            assert call(channel, "/no.such.Service/Method", token=token)[0] == "UNIMPLEMENTED"


def test_clients_send_their_token(server, receiver, monkeypatch, tmp_path):
    with hookline.connect(server.address, token=TOKENS["capture"], receiver=receiver) as client:
        assert sum(len(b[POINT]) for b in client.capture(POINT, [[1, 2, 3]], output="numpy")) == 3
        with pytest.raises(hookline.PermissionDeniedError, match="`read`"):
            client.models()
    with hookline.connect(server.address, receiver=receiver) as client:
        with pytest.raises(hookline.UnauthenticatedError, match="Bearer"):
            list(client.capture(POINT, [[1, 2, 3]], output="numpy"))
    monkeypatch.setenv("HOOKLINE_TOKEN", TOKENS["read"])
    with hookline.connect(server.address, receiver=receiver) as client:
        assert client.models()[0].name == "demo"
    file = tmp_path / "token"
    file.write_text(TOKENS["read"] + "\n")
    code, out, err = cli("models", "--server", server.address, "--token-file", file, HOOKLINE_TOKEN="")
    assert (code, "demo" in out) == (0, True), err
    code, _, err = cli("models", "--server", server.address, HOOKLINE_TOKEN="wrong")
    assert (code, "not valid" in err) == (1, True), err
    assert cli("health", "--server", server.address, HOOKLINE_TOKEN="")[:2] == (0, "serving\n")


def test_tokens_never_reach_the_log(server):
    with grpc.insecure_channel(server.address) as channel:
        call(channel, "/hookline.v1.ModelService/ListModels", token="very-secret")
        call(channel, "/hookline.v1.ModelService/ListModels", token=TOKENS["read"])
    log = "".join(server.lines)
    assert "very-secret" not in log and TOKENS["read"] not in log


def test_a_user_at_a_unix_socket_is_known_by_the_kernel(serve, tmp_path):
    uid = os.getuid()
    clients = write_clients(
        tmp_path / "clients.json", entry("local", ["read"], uid=uid), entry("other", ["read"], uid=uid + 1)
    )
    server = serve("--auth-file", clients, listen=("127.0.0.1:0", f"unix:{tmp_path}/socket"))
    with grpc.insecure_channel(f"unix:{tmp_path}/socket") as channel:
        assert call(channel, "/hookline.v1.ModelService/ListModels")[0] == "OK"
        assert call(channel, "/hookline.v1.CaptureService/Capture")[0] == "PERMISSION_DENIED"
    # Over TCP a client needs a token.
    with grpc.insecure_channel(server.address) as channel:
        assert call(channel, "/hookline.v1.ModelService/ListModels")[0] == "UNAUTHENTICATED"


def test_a_certificates_name_is_an_identity(serve, authority, tmp_path):
    certificate, key = authority.certificate("roles")
    clients = write_clients(
        tmp_path / "clients.json",
        entry("ci", ["read"], san="spiffe://lab/ci"),
        entry("trainer", ["capture"], san="trainer.lab"),
    )
    server = serve("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.ca, "--auth-file", clients)
    for name, san, works, fails in (
        ("ci", "URI:spiffe://lab/ci", "ListModels", "Capture"),
        ("trainer", "DNS:trainer.lab", "Capture", "ListModels"),
    ):
        own, own_key = map(str, authority.certificate(name, san=san))
        credentials = hookline.Tls(str(authority.ca), own, own_key).credentials()
        with grpc.secure_channel(server.address, credentials) as channel:
            services = {"ListModels": "ModelService", "Capture": "CaptureService"}
            code, _ = call(channel, f"/hookline.v1.{services[works]}/{works}")
            assert code not in ("UNAUTHENTICATED", "PERMISSION_DENIED")
            assert call(channel, f"/hookline.v1.{services[fails]}/{fails}")[0] == "PERMISSION_DENIED"
    own, own_key = map(str, authority.certificate("nobody", san="URI:spiffe://lab/nobody"))
    with grpc.secure_channel(server.address, hookline.Tls(str(authority.ca), own, own_key).credentials()) as channel:
        assert call(channel, "/hookline.v1.ModelService/ListModels")[0] == "UNAUTHENTICATED"


def test_hanging_up_reads_the_file_again_and_a_broken_one_changes_nothing(server, clients):
    with grpc.insecure_channel(server.address) as channel:
        models = "/hookline.v1.ModelService/ListModels"
        assert call(channel, models, token="new")[0] == "UNAUTHENTICATED"
        write_clients(clients, entry("new", ["read"], "new"))
        server.hang_up()
        assert server.wait_for("the auth file was read again: 1 clients") is not None
        assert call(channel, models, token="new")[0] == "OK"
        assert call(channel, models, token=TOKENS["read"])[0] == "UNAUTHENTICATED"
        clients.write_text('{"clients":[{"name":"broken","roles":["emperor"],"uid":1}]}')
        server.hang_up()
        line = server.wait_for("the previous one stays in force")
        assert "emperor" in line and "clients[0] (broken)" in line
        assert call(channel, models, token="new")[0] == "OK"


def test_recordings_belong_to_the_client_that_made_them(serve, tmp_path):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    clients = write_clients(
        tmp_path / "clients.json",
        entry("alice", ["read", "capture", "record"], "a", quotas={"recordings": 1}),
        entry("bob", ["read", "capture", "record"], "b"),
        entry("carol", ["capture"], "c"),
        entry("dave", ["read", "record"], "d", quotas={"recording_bytes": 1000}),
        entry("root", ["admin"], "r"),
    )
    server = serve("--auth-file", clients, "--recordings-dir", recordings, "--recordings-free-bytes", 0)
    alice, bob, carol, dave, root = (
        hookline.connect(server.address, token=token, receiver="grpc") for token in "abcdr"
    )
    assert alice.persist("run", POINT, [[1, 2, 3]]).wait().rows == 3
    assert [recording.name for recording in bob.recordings()] == ["run"], "reading is for everybody with `read`"
    for change in (bob.delete_recording, bob.stop_recording):
        with pytest.raises(hookline.PermissionDeniedError, match="admin"):
            change("run")
    with pytest.raises(hookline.PermissionDeniedError):
        bob.persist("run", POINT, [[1, 2, 3]]).wait()
    with pytest.raises(hookline.PermissionDeniedError, match="`record`"):
        list(carol.capture(POINT, [[1, 2, 3]], record_as="other", output="numpy"))
    with pytest.raises(hookline.ResourceExhaustedError, match="quota `recordings`"):
        alice.persist("run2", POINT, [[1, 2, 3]]).wait()
    assert dave.persist("daves", POINT, [[1, 2, 3]]).wait().rows == 3
    with pytest.raises(hookline.ResourceExhaustedError, match="bytes, of at most 1000 .quota `recording_bytes`"):
        dave.persist("daves2", POINT, [[1, 2, 3]]).wait()
    assert alice.delete_recording("run") > 0
    assert bob.persist("bobs", POINT, [[1, 2, 3]]).wait().rows == 3
    assert root.delete_recording("bobs") > 0


def test_without_an_auth_file_no_other_machine_may_connect_unless_told(serve, tmp_path):
    code, log = refused_start(listen="0.0.0.0:0")
    assert (code, "--insecure" in log, "--auth-file" in log) == (2, True, True), log
    assert "parameters as" not in log, "the models are loaded after what can be refused without them"
    server = serve("--insecure", listen=("0.0.0.0:0",))
    assert server.wait_for("without authentication") is not None
    clients = write_clients(tmp_path / "clients.json", entry("a", ["read"], "t"))
    server = serve("--auth-file", clients, listen=("0.0.0.0:0",))
    assert server.wait_for("tokens are refused there") is not None
    # The loopback interface is as private as before, whatever address the listener has.
    with grpc.insecure_channel(server.address) as channel:
        assert call(channel, "/hookline.v1.ModelService/ListModels", token="t")[0] == "OK"


def test_a_wrong_auth_file_is_refused_at_start_by_name(tmp_path):
    path = tmp_path / "clients.json"
    for text, said in (
        ("", "it is not JSON"),
        ("[]", "the file: must be an object"),
        ('{"clients":[{"name":"a","roles":["read"]}]}', "clients[0] (a): has no credential"),
        ('{"clients":[{"name":"a","roles":["king"],"uid":1}]}', "'\"king\"', which is not one of read, capture"),
        ('{"clients":[{"name":"a b","roles":["read"],"uid":1}]}', "name is 'a b'"),
        ('{"clients":[{"name":"a","roles":["read"],"uid":1,"tokn":1}]}', "unknown field 'tokn'"),
        ('{"clients":[{"name":"a","roles":["read"],"token_sha256":"12"}]}', "token_sha256 has 2 characters"),
        (
            '{"clients":[{"name":"a","roles":[],"uid":1},{"name":"b","roles":[],"uid":1}]}',
            "b has the uid of an earlier client",
        ),
        ('{"clients":[{"name":"a","name":"b","roles":[],"uid":1}]}', "twice"),
        ('{"clients":[{"name":"a","roles":[],"uid":1,"quotas":{"captures":-1}}]}', "captures is '-1'"),
        ('{"clients":[{"name":"a","roles":[],"uid":1,"weight":0}]}', "weight is '0'"),
    ):
        path.write_text(text)
        code, log = refused_start("--auth-file", path)
        assert (code, said in log, str(path) in log) == (2, True, True), (text, log)


def test_hookline_token_makes_a_token_and_its_entry(serve, tmp_path):
    code, out, err = cli("token", "--name", "alice")
    assert code == 0, err
    token, line = out.splitlines()
    client = json.loads(line)
    assert client["name"] == "alice" and re.fullmatch("[0-9a-f]{64}", client["token_sha256"])
    server = serve("--auth-file", write_clients(tmp_path / "clients.json", client))
    with hookline.connect(server.address, token=token, receiver="grpc") as connected:
        assert connected.models()[0].name == "demo"
    file = tmp_path / "alice.token"
    code, out, err = cli("token", "--name", "alice", "--out", file)
    assert code == 0 and json.loads(out)["name"] == "alice", err
    assert file.stat().st_mode & 0o777 == 0o600
    assert cli("token", "--out", file)[0] == 2, "it never overwrites a token"
    assert cli("token", "--name", 'a"b')[0] == 2
