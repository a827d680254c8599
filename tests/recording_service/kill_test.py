"""Kills the server with SIGKILL at random moments, in HOOKLINE_KILL_ROUNDS rounds (5)."""

import json
import os
import random
import time

import grpc
from conftest import dataset_request, shards

ROUNDS = int(os.environ.get("HOOKLINE_KILL_ROUNDS", "5"))
SEED = int(os.environ.get("HOOKLINE_KILL_SEED", str(random.randrange(1 << 30))))


def test_after_kill_9_at_any_moment_the_recording_is_whole_and_continues_to_the_same_bytes(serve, proto, text):
    print("HOOKLINE_KILL_SEED", SEED)
    moments = random.Random(SEED)
    request = dataset_request(proto)
    server = serve(dataset=text)
    begin = time.monotonic()
    list(server.persist("undisturbed", request))
    duration = time.monotonic() - begin
    wanted = shards(server.recordings / "undisturbed")
    names = set()
    for round_number in range(ROUNDS):
        next(server.persist("a", request))  # the recording has begun, and goes on by itself
        # This sleep is the random moment; it waits for nothing. A recording sees several kills.
        time.sleep(moments.uniform(0, duration / 3))
        server.kill()
        server = serve(dataset=text)
        try:
            found = server.get("a")
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.NOT_FOUND
            assert not (server.recordings / "a").exists()
            continue
        assert found.state in (proto.recording.RECORDING_STATE_INTERRUPTED, proto.recording.RECORDING_STATE_COMPLETE)
        verified = server.verify("a")
        assert verified.done and not verified.damaged, (round_number, verified)
        on_disk = shards(server.recordings / "a")
        assert set(on_disk) == {shard.file for shard in found.shards}
        assert {path.name for path in (server.recordings / "a").iterdir()} == set(on_disk) | {"manifest.json"}
        assert all(wanted[name] == data for name, data in on_disk.items() if name in wanted)
        names.add(len(on_disk))
        print("round", round_number, "state", found.state, "shards", len(on_disk), flush=True)
        if found.state == proto.recording.RECORDING_STATE_COMPLETE:
            assert on_disk == wanted
            server.delete("a")
    list(server.persist("a", request))
    assert shards(server.recordings / "a") == wanted
    manifests = [json.loads((server.recordings / name / "manifest.json").read_text()) for name in ("a", "undisturbed")]
    for manifest in manifests:
        for member in ("name", "create_time", "update_time"):
            del manifest[member]
    assert manifests[0] == manifests[1]
    print("rounds", ROUNDS, "shards found after kills", sorted(names))
