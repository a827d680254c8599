"""Tests the client against the server itself, on the trained demo model. HOOKLINE_SERVER_PROGRAM names the program."""

import asyncio
import glob
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from server_process import DEMO, POST, RESID, ROOT, Server

import hookline

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "bench", "python"))

import local_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("receiver")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(arguments=["--recordings-dir", str(tmp_path_factory.mktemp("recordings"))])
    yield started
    started.kill()


@pytest.fixture(scope="module")
def tokens():
    return np.load(os.path.join(DEMO, "tokens.npy")).astype(np.int64)


def read_safetensors(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    kinds = {"F32": np.float32, "I32": np.int32}
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], kinds[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def rows_of(capture):
    batches = list(capture)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_rows_are_the_models_at_every_hook_point(client):
    reference = read_safetensors(os.path.join(DEMO, "reference.safetensors"))
    names = sorted({key.rpartition("/")[0] for key in reference if key.endswith("/1")} - {"logits"})
    sequences = [reference[f"tokens_{i}"] for i in range(3)]
    rows = rows_of(client.capture(names, [ids.tolist() for ids in sequences], batch_rows=7))
    ends = np.cumsum([len(ids) for ids in sequences])
    assert len(names) > 20
    for name in names:
        parts = np.split(rows[name].numpy(), ends[:-1])
        parts[2] = parts[2][reference["positions_2"]]
        for i, part in enumerate(parts):
            expected = reference[f"{name}/{i}"]
            assert np.linalg.norm(part - expected) <= 1e-5 * np.linalg.norm(expected), (name, i)


def test_wildcards_budgets_and_the_summary(client, tokens):
    ids = tokens[: 100 * 100].reshape(100, 100)
    with client.capture("blocks.*.hook_resid_post", ids, max_activations=1234, batch_rows=256) as capture:
        batches = list(capture)
    names = [point.name for point in client.model().hook_points if point.name.endswith("hook_resid_post")]
    assert list(batches[0]) == names
    assert [batch.rows for batch in batches] == [256] * 4 + [210]
    assert capture.summary.stop_reason == "budget"
    for name in names:
        rows = torch.cat([batch[name] for batch in batches])
        told = capture.summary.hook_points[name]
        assert told.rows == 1234
        assert told.mean_row_norm == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-4)
        assert told.rms == pytest.approx(rows.square().mean().sqrt().item(), rel=1e-4)


def test_a_last_short_batch_ends_the_source(client, tokens):
    capture = client.capture(RESID, (tokens[i * 50 : i * 50 + 50] for i in range(9)), batch_rows=100)
    assert [batch.rows for batch in capture] == [100] * 4 + [50]
    assert capture.summary.stop_reason == "source_ended"
    assert capture.summary.tokens == 450


def test_dtypes_are_roundings_of_the_same_rows(client, tokens):
    ids = tokens[:512].reshape(4, 128)
    options = dict(deterministic=True)
    exact = rows_of(client.capture(RESID, ids, **options))[RESID]
    brain = rows_of(client.capture(RESID, ids, dtype=torch.bfloat16, **options))[RESID]
    half = rows_of(client.capture(RESID, ids, dtype="float16", **options))[RESID]
    assert torch.equal(brain, exact.to(torch.bfloat16))
    assert torch.equal(half, exact.to(torch.float16))


def test_provenance_and_selection(client, tokens):
    ids = tokens[:512].reshape(4, 128)
    selection = hookline.Selection(skip_first=1, position_stride=3, exclude_token_ids=[32, 10])
    batches = list(client.capture(RESID, ids, provenance=True, selection=selection, batch_rows=50))
    where = [(s, p) for s in range(4) for p in range(1, 128, 3) if ids[s, p] not in (32, 10)]
    assert [(s, p) for b in batches for s, p in zip(b.sequence.tolist(), b.position.tolist())] == where
    assert [t for b in batches for t in b.token_id.tolist()] == [ids[place] for place in where]
    everything = rows_of(client.capture(RESID, ids))[RESID].reshape(4, 128, -1)
    chosen = torch.cat([b[RESID] for b in batches])
    torch.testing.assert_close(chosen, torch.stack([everything[place] for place in where]), rtol=1e-4, atol=1e-4)


def test_shuffled_rows_are_the_same_rows(client, tokens):
    ids = tokens[:2048].reshape(16, 128)
    batches = list(
        client.capture(
            [RESID, POST], ids, provenance=True, shuffle_buffer=500, seed=5, batch_rows=128, deterministic=True
        )
    )
    places = torch.cat([b.sequence * 128 + b.position for b in batches])
    assert sorted(places.tolist()) == list(range(2048)) != places.tolist()
    in_order = rows_of(client.capture([RESID, POST], ids, deterministic=True))
    for name in (RESID, POST):
        assert torch.equal(torch.cat([b[name] for b in batches]), in_order[name][places])


def test_the_collector_brings_the_rows_of_a_capture_under_the_names_asked_for(client, tokens, tmp_path):
    ids = torch.from_numpy(tokens[:2048].reshape(16, 128))
    names = ["blocks.0.hook_attn", "blocks.2.hook_mlp", RESID]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, ids), batch_size=3)
    collected = hookline.collect_activations_from_dataloader(
        client.model(), loader, names, max_activations=1500, save_path=tmp_path, verbose=False
    )
    captured = rows_of(client.capture(names, ids, max_activations=1500))
    for name in names:
        assert collected[name].shape == captured[name].shape == (1500, captured[name].shape[1])
        torch.testing.assert_close(collected[name], captured[name], rtol=1e-4, atol=1e-4)
    loaded = hookline.ActivationCollector.load_activations(tmp_path)
    assert sorted(loaded) == sorted(names)
    assert all(torch.equal(loaded[name], collected[name]) for name in names)


def hooks_on_a_local_model(folder, names, batches):
    """Returns the rows of a collector with forward hooks on the modules of a PyTorch model, in nanochat's layout."""
    weights = torch.load(glob.glob(os.path.join(folder, "*.pt"))[0], map_location="cpu", weights_only=True)
    with open(glob.glob(os.path.join(folder, "*.json"))[0]) as file:
        config = json.load(file)["model_config"]
    model = local_model.Model(config["n_layer"], config["n_embd"], config["n_head"], config["vocab_size"])
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    rows = {name: [] for name in names}
    for name in names:
        block = model.transformer.h[int(name.split(".")[1])]
        module = block.attn if name.endswith("attn") else block.mlp if name.endswith("mlp") else block
        module.register_forward_hook(
            lambda module, inputs, output, name=name: rows[name].append(output.reshape(-1, output.shape[-1]))
        )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return {name: torch.cat(parts) for name, parts in rows.items()}


def test_the_collector_brings_the_rows_of_hooks_on_a_local_model(receiver):
    folder = os.path.join(ROOT, "tests", "fixtures", "nanochat", "A-mha")
    names = ["blocks.0.hook_attn", "blocks.1.hook_resid_post", "blocks.2.hook_mlp", "blocks.3.hook_resid_post"]
    batches = torch.randint(257, (5, 3, 40), generator=torch.Generator().manual_seed(1))
    server = Server(model=folder)
    try:
        with hookline.connect(server.address) as connected:
            found = hookline.collect_activations_from_dataloader(connected.model(), batches, names, 500, verbose=False)
    finally:
        server.kill()
    for name, rows in hooks_on_a_local_model(folder, names, batches).items():
        assert (found[name] - rows[:500]).norm() <= 1e-5 * rows.norm(), name


def test_collectors_take_wildcards(client, tokens):
    with hookline.ActivationCollector(client.model(), ["blocks.{0,1}.hook_mlp_out"]) as collector:
        client_model = collector.model
        client_model(torch.from_numpy(tokens[None, :100]))
    assert collector.counts == {"blocks.0.hook_mlp_out": 100, "blocks.1.hook_mlp_out": 100}


def test_a_dataset_on_the_server_is_read_there(client, tokens):
    (info,) = client.datasets()
    assert (info.name, info.tokens, info.row_length) == ("text", len(tokens), 0)
    source = hookline.Dataset("text", 128, first_sequence=2, sequence_count=8)
    batches = list(client.capture(RESID, source, provenance=True, batch_rows=300))
    sent = tokens[2 * 128 : 10 * 128].reshape(8, 128)
    assert torch.cat([batch.token_id for batch in batches]).tolist() == sent.reshape(-1).tolist()
    rows = torch.cat([batch[RESID] for batch in batches])
    torch.testing.assert_close(rows, rows_of(client.capture(RESID, sent))[RESID], rtol=1e-4, atol=1e-4)
    dataset = hookline.torch.ActivationDataset(client.address, RESID, source)
    torch.testing.assert_close(torch.cat([batch[RESID] for batch in dataset]), rows, rtol=1e-4, atol=1e-4)


def test_a_recording_gives_back_the_rows_of_its_capture(client, tokens, receiver):
    ids = tokens[:1024].reshape(8, 128)
    name = f"by-{receiver}"
    captured = rows_of(client.capture([RESID, POST], ids, dtype="bfloat16", record_as=name))
    info = client.recording(name)
    assert (info.rows, info.dtype, [point.name for point in info.hook_points]) == (1024, "bfloat16", [RESID, POST])
    assert name in [found.name for found in client.recordings()]
    read = rows_of(client.capture([RESID, POST], hookline.Recording(name), batch_rows=100))
    part = rows_of(client.capture(POST, hookline.Recording(name, first_row=1000)))
    for hook_point in (RESID, POST):
        assert torch.equal(read[hook_point], captured[hook_point])
    assert torch.equal(part[POST], captured[POST][1000:])


def test_the_server_writes_a_recording_by_itself(client, receiver):
    name, source = f"persisted-{receiver}", hookline.Dataset("text", 128, sequence_count=6)
    progress = list(client.persist(name, "blocks.1.*_post", source, max_activations=700, dtype="bfloat16"))
    assert progress[0].disposition == "started" and progress[-1].rows == 700
    info = progress[-1].recording
    assert (info.state, info.rows, info.dtype) == ("complete", 700, "bfloat16")
    read = rows_of(client.capture(RESID, hookline.Recording(name)))
    torch.testing.assert_close(read, rows_of(client.capture(RESID, source, max_activations=700, dtype="bfloat16")))

    again = client.persist(name, "blocks.1.*_post", source, max_activations=700, dtype="bfloat16")
    assert again.wait() == info and next(again, None) is None
    with pytest.raises(hookline.HooklineError, match=name) as caught:
        client.persist(name, RESID, source)
    assert caught.value.code == "ALREADY_EXISTS"
    assert client.stop_recording(name).state == "complete"
    assert client.delete_recording(name) >= info.bytes
    with pytest.raises(hookline.NotFoundError):
        client.recording(name)


def test_token_ids_may_be_recorded_without_being_streamed_back(client, tokens, receiver):
    ids = tokens[:200].reshape(2, 100)
    with client.persist(f"ids-{receiver}", RESID, ids) as recording:
        assert recording.wait().rows == 200
    read = rows_of(client.capture(RESID, hookline.Recording(f"ids-{receiver}")))
    torch.testing.assert_close(read, rows_of(client.capture(RESID, ids)), rtol=1e-4, atol=1e-4)
    with pytest.raises(TypeError, match="batch_rows"):
        client.persist("x", RESID, ids, batch_rows=7)
    with pytest.raises(TypeError, match="iterator"):
        client.persist("x", RESID, iter(ids))


def test_members_of_a_feed_share_its_pass(client):
    feed = hookline.Feed("shared", hookline.Dataset("text", 128, sequence_count=12), start_when_subscribers=2)
    found = {}

    def run(name):
        found[name] = rows_of(client.capture(name, feed))[name]

    threads = [threading.Thread(target=run, args=(name,)) for name in (RESID, POST)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = rows_of(client.capture([RESID, POST], feed.dataset))
    for name in (RESID, POST):
        torch.testing.assert_close(found[name], alone[name], rtol=1e-4, atol=1e-4)


def test_an_unknown_hook_point_is_answered_with_the_nearest(client):
    with pytest.raises(hookline.InvalidArgumentError, match="hook_resid_post") as caught:
        client.capture("blocks.0.hook_resid_pots", [1, 2, 3]).started
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "hook_points" in caught.value.field


def test_a_token_out_of_range_is_named(client):
    with pytest.raises(hookline.InvalidArgumentError, match="40000") as caught:
        list(client.capture(RESID, [[1, 2], [3, 40000]]))
    assert re.search(r"sequences\[1\].*ids\[1\]", caught.value.field)


def test_an_estimate_is_what_comes(client, tokens):
    estimate = client.estimate("blocks.*.hook_mlp_out", tokens[:300].reshape(3, 100), max_activations=250)
    assert [point.rows for point in estimate.hook_points.values()] == [250] * 4
    assert estimate.bytes == sum(point.bytes for point in estimate.hook_points.values()) == 4 * 250 * 128 * 4


def test_the_asyncio_client_brings_the_same_rows(server, client, tokens):
    ids = tokens[:1024].reshape(8, 128)

    async def collect():
        async with hookline.aio.connect(server.address) as connected:
            async with connected.capture(RESID, ids, deterministic=True, batch_rows=100) as capture:
                return torch.cat([batch[RESID] async for batch in capture])

    assert torch.equal(asyncio.run(collect()), rows_of(client.capture(RESID, ids, deterministic=True))[RESID])


def test_the_asyncio_client_makes_reads_and_deletes_a_recording(server, client, receiver):
    name, source = f"awaited-{receiver}", hookline.Dataset("text", 128, sequence_count=6)

    async def run():
        async with hookline.aio.connect(server.address) as connected:
            assert await connected.dataset("text") in await connected.datasets()
            estimate = await connected.estimate(RESID, source, max_activations=700)
            assert estimate.hook_points[RESID].rows == 700
            progress = [step async for step in connected.persist(name, RESID, source, max_activations=700)]
            assert progress[0].disposition == "started" and progress[-1].rows == 700
            assert await connected.persist(name, RESID, source, max_activations=700).wait() == progress[-1].recording
            assert await connected.recording(name) == progress[-1].recording
            assert name in [recording.name for recording in await connected.recordings()]
            with pytest.raises(hookline.HooklineError, match=name) as caught:
                await connected.persist(name, POST, source).wait()
            assert caught.value.code == "ALREADY_EXISTS"
            async with connected.capture(RESID, hookline.Recording(name)) as capture:
                rows = torch.cat([batch[RESID] async for batch in capture])
            assert (await connected.stop_recording(name)).state == "complete"
            assert await connected.delete_recording(name) >= progress[-1].recording.bytes
            with pytest.raises(hookline.NotFoundError):
                await connected.recording(name)
            return rows

    rows = asyncio.run(run())
    torch.testing.assert_close(rows, rows_of(client.capture(RESID, source, max_activations=700))[RESID])


def test_rows_come_through_shared_memory_as_over_the_wire(server, receiver, tokens):
    ids = tokens[:8192].reshape(32, 256)
    batches = {}
    for shared in (True, False):
        with hookline.connect(server.address, shared_memory=shared) as connected:
            capture = connected.capture(
                [RESID, POST], iter(ids), dtype="bfloat16", provenance=True, deterministic=True, batch_rows=1000
            )
            assert capture.started.shared_memory_bytes == (8 << 20 if shared else 0)
            batches[shared] = list(capture)
            assert capture.summary.stop_reason == "source_ended"
    assert sum(len(batch[RESID]) for batch in batches[True]) == 8192
    for through_memory, over_the_wire in zip(batches[True], batches[False]):
        for name in (RESID, POST):
            assert torch.equal(through_memory[name], over_the_wire[name])
        for column in ("sequence", "position", "token_id"):
            assert np.array_equal(getattr(through_memory, column), getattr(over_the_wire, column))


def test_the_asyncio_client_uses_shared_memory(server, tokens):
    async def collect(shared):
        async with hookline.aio.connect(server.address, shared_memory=shared) as connected:
            async with connected.capture(RESID, tokens[:4096].reshape(16, 256), deterministic=True) as capture:
                assert (await capture.started()).shared_memory_bytes == (8 << 20 if shared else 0)
                return torch.cat([batch[RESID] async for batch in capture])

    assert torch.equal(asyncio.run(collect(True)), asyncio.run(collect(False)))


def test_a_recording_comes_through_shared_memory(client, tokens, receiver):
    name = f"shared-{receiver}"
    rows = rows_of(client.capture(RESID, tokens[:4096].reshape(16, 256), record_as=name))[RESID]
    reading = client.capture([], hookline.Recording(name))
    assert reading.started.shared_memory_bytes == 8 << 20
    assert torch.equal(rows_of(reading)[RESID], rows)


def test_a_capture_survives_the_death_of_its_server(tokens):
    """A server is killed while rows flow and started again on the same port; no row of the capture differs."""
    ids = tokens[: 250 * 256].reshape(250, 256)
    first = Server()
    second = None
    try:
        with hookline.connect(first.address) as connected:
            capture = connected.capture(
                [RESID, POST], iter(ids), batch_rows=4096, deterministic=True, retry=hookline.Retry(1000, 0.05, 0.5)
            )
            batches = [next(capture), next(capture)]
            first.kill()
            second = Server(first.port)
            batches.extend(capture)
            assert capture.summary.reconnects >= 1
            # Both captures stream their sequences, because bits are equal only for equal batches.
            undisturbed = rows_of(connected.capture([RESID, POST], iter(ids), deterministic=True))
        for name in (RESID, POST):
            assert torch.equal(torch.cat([batch[name] for batch in batches]), undisturbed[name])
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_many_captures_at_once(client, tokens):
    ids = tokens[:4096].reshape(32, 128)
    alone = rows_of(client.capture(RESID, ids))[RESID]
    found = [None] * 6

    def run(index):
        found[index] = rows_of(client.capture(RESID, ids, batch_rows=100 + index))[RESID]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows in found:
        torch.testing.assert_close(rows, alone, rtol=1e-4, atol=1e-4)


def test_the_example_trains_an_autoencoder_from_the_server(server, receiver):
    environment = {**os.environ, "PYTHONPATH": os.path.join(ROOT, "client", "python")}
    program = os.path.join(ROOT, "client", "python", "examples", "train_sae.py")
    said = subprocess.run(
        [
            sys.executable,
            program,
            "--server",
            server.address,
            "--tokens",
            os.path.join(DEMO, "tokens.npy"),
            "--features",
            "512",
            "--passes",
            "1",
        ],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    losses = [float(loss) for loss in re.findall(r"step +\d+ +loss ([\d.]+)", said)]
    assert losses[-1] < losses[0] / 2, said
    assert float(re.search(r"explained variance ([\d.]+)", said)[1]) > 0.6, said
