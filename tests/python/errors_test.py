"""Tests errors: they name the place in the source, or the argument, and their class says whether to retry."""

import asyncio
import os
import socket
import subprocess
import sys

import grpc
import numpy as np
import pytest
import torch
from error_codes import CODES, calls
from fake_server import expected

import hookline
from hookline import _protocol

pytestmark = pytest.mark.usefixtures("receiver")

RESID = "blocks.0.hook_resid_post"
SEQUENCES = [list(range(i, i + 10)) for i in range(20)]


@pytest.mark.parametrize("number", [np.int64(25), np.int32(25), 25.0, np.float64(25), torch.tensor(25), np.array(25)])
def test_counts_may_be_whole_numbers_of_any_type(fake, number):
    client = hookline.connect(fake().address)
    for options in (
        {"max_activations": number},
        {"max_activations_by_hook_point": {RESID: number}},
        {"max_activations": 25, "batch_rows": number, "shuffle_buffer": number, "prefetch": number, "seed": number},
    ):
        assert sum(batch.rows for batch in client.capture(RESID, SEQUENCES, **options)) == 25
    collector = hookline.ActivationCollector(client.model(), [RESID], max_activations=number)
    assert collector.max_activations == 25
    selection = hookline.Selection(skip_first=number, position_end=number, sample_rows=number)
    assert (selection.skip_first, selection.position_end, selection.sample_rows) == (25, 25, 25)
    assert hookline.Dataset("d", number).sequence_length == 25
    assert hookline.Recording("r", first_row=number, shuffle_seed=number).first_row == 25


@pytest.mark.parametrize(
    "number, error",
    [(True, TypeError), ("9", TypeError), (2.5, ValueError), (float("nan"), ValueError), ([9], TypeError)],
)
@pytest.mark.parametrize("name", ["max_activations", "batch_rows", "prefetch", "shuffle_buffer", "seed"])
def test_what_is_no_count_is_refused_by_the_arguments_name(fake, number, error, name):
    client = hookline.connect(fake().address)
    with pytest.raises(error, match=f"^{name}: .*not a whole number"):
        client.capture(RESID, SEQUENCES, **{name: number})


def test_counts_elsewhere_are_refused_by_name_too(fake):
    client = hookline.connect(fake().address)
    cases = [
        (lambda: hookline.Selection(skip_first=True), "skip_first"),
        (lambda: hookline.Selection(exclude_token_ids=[1, None]), r"exclude_token_ids\[1\]"),
        (lambda: hookline.Selection(exclude_token_ids=None), "exclude_token_ids"),
        (lambda: hookline.Selection(exclude_token_ids=[-1]), r"exclude_token_ids\[0\]: -1 is below 0"),
        (lambda: hookline.Selection(exclude_token_ids=np.ones((2, 2), int)), "exclude_token_ids: has 2 dimensions"),
        (
            lambda: hookline.Selection(exclude_token_ids=[1 << 32]),
            r"exclude_token_ids\[0\]: 4294967296 \(int\) is above",
        ),
        (lambda: hookline.Selection(last_only="no"), "last_only: 'no' .* neither True nor False"),
        (lambda: hookline.Dataset(5), "name"),
        (lambda: hookline.Dataset("d", "128"), "sequence_length"),
        (lambda: hookline.Dataset("d", 128, prepend_token_id=True), "prepend_token_id"),
        (lambda: hookline.Recording("r", row_count=1.5), "row_count"),
        (lambda: client.capture(RESID, SEQUENCES, max_activations_by_hook_point={RESID: "9"}), "max_activations_by"),
        (lambda: client.capture(RESID, SEQUENCES, max_activations=1 << 64), "max_activations: .* 64 bits"),
        (lambda: client.estimate(RESID, SEQUENCES, max_activations=True), "max_activations"),
        (lambda: client.persist("r", RESID, SEQUENCES, max_activations=True), "max_activations"),
        (lambda: hookline.ActivationCollector(client.model(), [RESID], max_activations=0), "max_activations: 0 is"),
        (lambda: hookline.sae_lens.data_provider(client, RESID, SEQUENCES, batch_size="9"), "batch_size"),
        (lambda: client.capture(5, SEQUENCES), "hook_points: 5"),
        (lambda: client.capture([RESID, None], SEQUENCES), r"hook_points\[1\]: None"),
        (lambda: client.capture(RESID, SEQUENCES, model=5), "model"),
        (lambda: client.capture(RESID, SEQUENCES, provenance="yes"), "provenance"),
        (lambda: client.capture(RESID, SEQUENCES, deterministic=2), "deterministic"),
        (lambda: client.persist(5, RESID, SEQUENCES), "name"),
        (lambda: client.recording(None), "name"),
        (lambda: client.models(timeout="1"), "timeout"),
        (lambda: client.models(timeout=float("nan")), "timeout"),
        (lambda: hookline.Retry(attempts=1.5), "attempts"),
        (lambda: hookline.Retry(max_seconds="8"), "max_seconds"),
        (lambda: client.score(SEQUENCES, top_logits=True), "top_logits"),
        (lambda: client.score(SEQUENCES, top_logits=1 << 31), "top_logits"),
        (lambda: client.score(SEQUENCES, log_probability_token_ids=[1.5]), r"log_probability_token_ids\[0\]"),
        (lambda: client.score(SEQUENCES, kl="no"), "kl"),
        (lambda: client.score(SEQUENCES, {"a": [hookline.Intervention.zero(RESID, positions=[1.9])]}), "positions"),
        (lambda: client.score(SEQUENCES, {"a": [hookline.Intervention.zero(RESID, head=0.5)]}), "head"),
        (lambda: client.detokenize([1, 2]), r"sequences\[0\]: one token id"),
        (lambda: client.detokenize([[1], [2.5]]), r"sequences\[1\]\[0\]: 2.5"),
        (lambda: client.tokenize([1]), r"texts\[0\]: 1"),
    ]
    for call, message in cases:
        with pytest.raises((TypeError, ValueError), match=message):
            call()


@pytest.mark.parametrize(
    "ids", [[3, 4], (3, 4), {3, 4}, np.array([3, 4]), np.array([3, 4], np.uint16), torch.tensor([3, 4]), range(3, 5)]
)
def test_excluded_ids_may_come_in_every_usual_form(fake, ids):
    server = fake()
    selection = hookline.Selection(exclude_token_ids=ids)
    assert selection.rows_of([1, 2, 3, 4, 5]) == 3
    list(hookline.connect(server.address).capture(RESID, SEQUENCES, selection=selection))
    assert sorted(server.requests[0].selection.exclude_token_ids) == [3, 4]
    assert hookline.Selection(exclude_token_ids=3).exclude_token_ids == (3,)


@pytest.mark.parametrize("seconds", [0.05, np.float32(0.05), torch.tensor(0.05)])
def test_a_timeout_may_be_a_number_of_any_type(seconds):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = hookline.connect(f"127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(hookline.DeadlineExceededError):
            client.models(timeout=seconds)

        async def models():
            async with hookline.aio.connect(client.address) as other:
                await other.models(timeout=seconds)

        with pytest.raises(hookline.DeadlineExceededError):
            asyncio.run(models())


def sources(bad):
    """Yields the same sequences with one replaced, in each form of a source, and the place that the error must name."""
    lists = [ids if i != 13 else bad for i, ids in enumerate(SEQUENCES)]
    yield lists, "row 13 of the source"
    yield np.array(lists), "row 13 of the source"
    yield torch.tensor(lists), "row 13 of the source"
    yield (torch.tensor(lists[i : i + 4]) for i in range(0, 20, 4)), "batch 3 of the source, row 1"
    yield {"input_ids": lists}, "row 13 of the source"
    padded = [[0] * 10, *lists]
    mask = [[0] * 10] + [[1] * 10] * 20
    yield {"input_ids": padded, "attention_mask": mask}, "row 14 of the source"


@pytest.mark.parametrize("form", range(6))
def test_a_bad_sequence_is_named_by_its_place_in_the_source(fake, form, monkeypatch):
    from hookline import _sources

    monkeypatch.setattr(_sources, "MESSAGE_TOKENS", 30)  # three sequences in a message
    server = fake()
    server.refused_id = 999
    source, place = list(sources([5] * 7 + [999] + [5] * 2))[form]
    capture = hookline.connect(server.address).capture(RESID, source, batch_rows=1)
    said = f"^INVALID_ARGUMENT: {place}, position 7: token id 999"
    with pytest.raises(hookline.InvalidArgumentError, match=said) as caught:
        list(capture)
    assert caught.value.field == "tokens.sequences[13].ids[7]"


def test_a_bad_sequence_is_named_by_the_call_of_the_model(fake):
    server = fake()
    server.refused_id = 999
    model = hookline.connect(server.address).model()
    with pytest.raises(hookline.InvalidArgumentError, match="call 3 of the model, row 1, position 2: token id 999"):
        with hookline.ActivationCollector(model, [RESID]):
            for _ in range(2):
                model([[1, 2, 3]])
            model([[1, 2, 3], [1, 2, 999]])


def test_persist_and_estimate_name_the_place_and_keep_the_class(fake):
    server = fake()
    server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "capture.tokens.sequences[2].ids: is empty", ())
    client = hookline.connect(server.address)
    for call in (lambda: client.persist("r", RESID, SEQUENCES), lambda: client.estimate(RESID, SEQUENCES)):
        with pytest.raises(hookline.InvalidArgumentError, match="row 2 of the source: is empty"):
            call()


@pytest.mark.parametrize("code", CODES)
def test_every_method_keeps_the_class_of_an_error(fake, code):
    server = fake(datasets={"d": SEQUENCES})
    server.failure = (getattr(grpc.StatusCode, code), "the server objects", ())
    server.fails_everywhere = True
    client = hookline.connect(server.address)
    methods = {
        **calls(client, RESID, SEQUENCES),
        "capture": lambda: list(client.capture(RESID, SEQUENCES)),
        "capture of a dataset": lambda: list(client.capture(RESID, hookline.Dataset("d"))),
        "capture of a recording": lambda: list(client.capture(RESID, hookline.Recording("d"))),
        "started": lambda: client.capture(RESID, SEQUENCES).started,
    }
    for name, call in methods.items():
        with pytest.raises(hookline.HooklineError) as caught:
            call()
        assert type(caught.value) is CODES[code], name
        assert (caught.value.code, caught.value.message) == (code, "the server objects"), name


def test_the_field_comes_from_the_details_of_a_status(fake):
    server = fake()
    violation = {"field": "selection.skip_first", "description": "-1 is below 0"}
    status = _protocol.Status(code=3, message="selection.skip_first: -1 is below 0")
    status.details.add(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"not for us")
    status.details.add().Pack(_protocol.BadRequest(field_violations=[violation]))
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    server.failure = (grpc.StatusCode.INVALID_ARGUMENT, "-1 is below 0", details)
    with pytest.raises(hookline.InvalidArgumentError) as caught:
        list(hookline.connect(server.address).capture(RESID, SEQUENCES))
    assert caught.value.field == "selection.skip_first"


def test_the_messages_live_beside_generated_ones_of_the_same_names():
    # googleapis-common-protos puts another version of the same files into the default pool.
    program = f"""
import sys
from google.protobuf import descriptor_pb2, descriptor_pool
sys.path.insert(0, {os.path.dirname(os.path.dirname(hookline.__file__))!r})
for name, message in (("status", "Status"), ("error_details", "BadRequest")):
    file = descriptor_pb2.FileDescriptorProto(name=f"google/rpc/{{name}}.proto", package="google.rpc")
    file.message_type.add(name=message).field.add(name="other", number=9, type="TYPE_BYTES", label="LABEL_OPTIONAL")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
from hookline import _protocol
assert _protocol.Status(code=3).code == 3
assert descriptor_pool.Default().FindMessageTypeByName("google.rpc.Status").fields[0].name == "other"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_recordings_dtype_may_be_named_but_not_changed(fake):
    client = hookline.connect(fake(datasets={"r": SEQUENCES}).address)
    for dtype in (None, "bfloat16", torch.bfloat16):
        rows = torch.cat([b[RESID] for b in client.capture(RESID, hookline.Recording("r"), dtype=dtype)])
        assert rows.dtype == torch.bfloat16
        np.testing.assert_array_equal(rows.float().numpy(), expected(RESID, SEQUENCES))
    with pytest.raises(ValueError, match="dtype: the recording's rows are bfloat16.*not float32"):
        list(client.capture(RESID, hookline.Recording("r"), dtype="float32"))
