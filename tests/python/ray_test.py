"""Tests servers and activations on a local Ray cluster of two nodes. Skipped if Ray is not installed; to run it:

python3 -m venv --system-site-packages /tmp/ray && /tmp/ray/bin/pip install "ray[data]"
HOOKLINE_SERVER_PROGRAM=build/release/bin/hookline-server /tmp/ray/bin/python -m pytest tests/python/ray_test.py
"""

import os
import signal
import time

import numpy as np
import pytest

ray = pytest.importorskip("ray")

PYTHON = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "client", "python")
# A busy machine may be slow to start a node.
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
# Workers import the package, too.
os.environ["PYTHONPATH"] = os.pathsep.join([PYTHON, os.environ.get("PYTHONPATH", "")])

from ray.cluster_utils import Cluster  # noqa: E402
from server_processes import DEMO  # noqa: E402

import hookline  # noqa: E402
import hookline.ray  # noqa: E402

PROGRAM = os.path.abspath(os.environ.get("HOOKLINE_SERVER_PROGRAM", ""))

assert os.path.isfile(PROGRAM), "HOOKLINE_SERVER_PROGRAM must name hookline-server; ctest sets it"

RESID, POST = "blocks.1.hook_resid_post", "blocks.0.mlp.hook_post"
SOURCE = hookline.Dataset("text", 32, sequence_count=120)


@pytest.fixture(scope="module")
def cluster():
    nodes = Cluster()
    for _ in range(2):
        nodes.add_node(num_cpus=4, object_store_memory=100 << 20)
    ray.init(address=nodes.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture(scope="module")
def servers(cluster):
    with hookline.ray.serve(
        DEMO,
        replicas=2,
        num_gpus=0,
        num_cpus=1,
        program=PROGRAM,
        arguments=["--insecure", "--dataset", "text=" + os.path.join(DEMO, "tokens.npy")],
        environment={"OMP_NUM_THREADS": "1"},
        strategy="STRICT_SPREAD",
        start_seconds=200,
        drain_seconds=5,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def reference(servers):
    """Returns the rows of one server, and the sequence and position of each."""

    def read(source, **options):
        with hookline.connect(servers.endpoints[0]) as one:
            batches = list(one.capture([RESID, POST], source, provenance=True, output="numpy", **options))
        columns = {name: np.concatenate([getattr(b, name) for b in batches]) for name in ("sequence", "position")}
        return {**{name: np.concatenate([b[name] for b in batches]) for name in (RESID, POST)}, **columns}

    return read


def rows_of(dataset):
    """Returns all rows of a Ray Dataset in the order of their places in the source."""
    batches = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.lexsort((rows["position"], rows["sequence"]))
    return {name: values[order] for name, values in rows.items()}


def check_same(found, expected):
    for name in ("sequence", "position"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name in (RESID, POST):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4)


def test_servers_stand_on_both_nodes_and_say_where_they_are(servers, tmp_path):
    states = servers.health()
    assert len({state["node"] for state in states}) == 2
    path = tmp_path / "endpoints"
    servers.write_endpoints(str(path))
    assert path.read_text().split() == servers.endpoints == [state["address"] for state in states]
    with hookline.connect(endpoints=path) as client:
        assert client.model().name == "demo"


@pytest.mark.parametrize("source", ["dataset", "tokens", "sampled"])
def test_a_dataset_has_the_rows_of_one_server_and_knows_how_many(servers, reference, source):
    table = np.load(os.path.join(DEMO, "tokens.npy"))[: 60 * 32].astype(np.int64).reshape(60, 32)
    selection = hookline.Selection(skip_first=1, sample_rows=5, seed=7) if source == "sampled" else None
    options = dict(selection=selection, max_activations=1111 if source == "dataset" else None)
    of = SOURCE if source == "dataset" else table
    dataset = hookline.ray.read_activations(
        servers, [RESID, POST], of, override_num_blocks=7, block_rows=100, **options
    )
    expected = reference(of, **options)
    assert dataset.count() == len(expected[RESID])
    check_same(rows_of(dataset), expected)


def test_a_killed_server_and_a_killed_worker_cost_no_row(servers, reference, tmp_path):
    """The tasks themselves do the killing, so that it happens in the middle of the reading."""
    flag = tmp_path / "killed"
    victim = ray.get(servers._actors[1].process_id.remote())

    def kill_once(batch):
        name = "server" if not (flag / "server").exists() else "worker"
        try:
            (flag / name).touch(exist_ok=False)
        except FileExistsError:
            return batch
        os.kill(victim if name == "server" else os.getpid(), signal.SIGKILL)
        return batch

    flag.mkdir()
    dataset = hookline.ray.read_activations(servers, [RESID, POST], SOURCE, override_num_blocks=12, block_rows=64)
    check_same(rows_of(dataset.map_batches(kill_once, batch_size=64)), reference(SOURCE))
    assert sorted(os.listdir(flag)) == ["server", "worker"]


def test_a_server_that_is_killed_is_started_again_at_its_address(servers):
    servers.wait(100)
    before = servers.health()[0]
    os.kill(ray.get(servers._actors[0].process_id.remote()), signal.SIGKILL)
    end = time.monotonic() + 100
    while servers.health()[0]["restarts"] == before["restarts"] or not servers.health()[0]["answers"]:
        assert time.monotonic() < end, servers.health()
        time.sleep(0.2)
    assert servers.health()[0]["address"] == before["address"]


def test_what_has_no_place_in_a_table_is_refused(servers):
    for options, why in (
        (dict(top_k=3), "top_k: a Ray Dataset has whole rows of all hook points"),
        (dict(dtype="bfloat16"), "Arrow has no bfloat16"),
        (dict(deterministic=True), "deterministic: tasks begin in the middle"),
    ):
        with pytest.raises(ValueError, match=why):
            hookline.ray.read_activations(servers, RESID, SOURCE, **options)
    with pytest.raises(TypeError, match="Feed cannot be cut"):
        hookline.ray.read_activations(servers, RESID, hookline.Feed("shared", SOURCE))


def test_a_server_that_cannot_start_says_why(cluster):
    with pytest.raises(RuntimeError, match="(?s)ends whenever it is started.*nowhere"):
        hookline.ray.serve(
            "/nowhere", num_gpus=0, num_cpus=0.5, program=PROGRAM, arguments=["--insecure"], drain_seconds=1
        )


def test_each_server_writes_its_part_of_a_recording(cluster, tmp_path):
    with hookline.ray.serve(
        DEMO,
        replicas=1,
        num_gpus=0,
        num_cpus=1,
        program=PROGRAM,
        arguments=[
            *("--insecure", "--dataset", "text=" + os.path.join(DEMO, "tokens.npy")),
            *("--recordings-dir", str(tmp_path)),
        ],
        start_seconds=200,
        drain_seconds=5,
    ) as started:
        written = hookline.ray.write_recordings(started, "run", RESID, SOURCE, max_activations=3000)
        assert [(info.name, info.state, info.rows) for _, info in written] == [("run-0000", "complete", 3000)]
