"""A small capture server, written from the comments in proto/, which does on demand what a real one cannot be made to
do: break a connection after a given row, change its model, send a malformed chunk.

Its rows are arithmetic: `value(hook_point, token, position, column)`.
"""

import json
import threading
from concurrent import futures

import grpc
import numpy as np

from hookline import _protocol

WIDTHS = {"blocks.0.hook_resid_post": 8, "blocks.1.hook_resid_post": 8, "blocks.1.mlp.hook_post": 32}


def rows_of(hook_point, ids, width=None):
    """Returns the rows of a sequence, (len(ids), width) float32: small whole numbers, exact in every dtype."""
    index = list(WIDTHS).index(hook_point)
    ids = np.asarray(ids, np.int64).reshape(-1, 1)
    positions = np.arange(len(ids)).reshape(-1, 1)
    columns = np.arange(WIDTHS[hook_point]).reshape(1, -1)
    return ((ids * 7 + positions * 3 + index * 5 + columns) % 128).astype(np.float32)


def expected(hook_point, sequences):
    return np.concatenate([rows_of(hook_point, ids) for ids in sequences])


def encode(rows, dtype):
    if dtype == 2:
        return (rows.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return rows.astype({1: "<f4", 3: "<f2"}[dtype]).tobytes()


class FakeServer:
    """`breaks`: the number of rows after which the first, second, ... call ends with UNAVAILABLE; later calls succeed.
    With `statistics`, summaries have statistics of the call's rows, and a call that breaks sends a summary first, as a
    server does when it shuts down."""

    def __init__(
        self,
        datasets=None,
        chunk_rows=5,
        breaks=(),
        cap=10_000_000,
        host="127.0.0.1",
        port=0,
        statistics=False,
        keepalive_ms=None,
    ):
        self.statistics = statistics
        self.datasets = datasets or {}
        self.chunk_rows = chunk_rows
        self.breaks = list(breaks)
        self.cap = cap
        self.fingerprint = "f" * 32
        self.dataset_fingerprint = "d" * 32
        self.requests = []  # every CaptureRequest
        self.metadata = {}  # of the last request of a method that only fails
        self.sequences_read = 0  # from streams, also those that were sent again
        self.alter = lambda response: response  # applied to each CaptureResponse
        self.failure = None  # (code, message, trailing metadata) of every capture, persist and estimate
        self.fails_everywhere = False  # whether `failure` also ends all other calls
        self.recorded = 10  # the budget granted to recordings, which get 7 rows
        self.refused_id = None  # a token id that streams may not hold
        self.release = threading.Event()  # the chunks after the first wait for this
        self.release.set()
        self.cancelled = threading.Event()
        options = [("grpc.so_reuseport", 0)]
        if keepalive_ms is not None:
            options += [
                ("grpc.keepalive_time_ms", keepalive_ms),
                ("grpc.keepalive_timeout_ms", 600_000),  # a busy machine may answer late
                ("grpc.http2.max_pings_without_data", 0),
                ("grpc.http2.min_sent_ping_interval_without_data_ms", keepalive_ms),
                ("grpc.http2.min_ping_interval_without_data_ms", keepalive_ms),
            ]
        self._server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
        unary, stream, unary_stream = (
            grpc.unary_unary_rpc_method_handler,
            grpc.stream_stream_rpc_method_handler,
            grpc.unary_stream_rpc_method_handler,
        )
        self._server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "hookline.v1.CaptureService",
                    {
                        "Capture": unary_stream(self._capture),
                        "CaptureStream": stream(self._capture_stream),
                        "EstimateCapture": unary(self._estimate),
                    },
                ),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Watch": unary_stream(self._watch)}),
                grpc.method_handlers_generic_handler(
                    "hookline.v1.DatasetService",
                    {"ListDatasets": unary(self._fails), "GetDataset": unary(self._get_dataset)},
                ),
                grpc.method_handlers_generic_handler(
                    "hookline.v1.RecordingService",
                    {
                        "ReadRecording": unary_stream(self._read_recording),
                        "ListRecordings": unary(self._list_recordings),
                        "GetRecording": unary(self._get_recording),
                        "Persist": unary_stream(self._persist),
                        "StopRecording": unary(self._fails),
                        "DeleteRecording": unary(self._fails),
                    },
                ),
                grpc.method_handlers_generic_handler(
                    "hookline.v1.EvaluationService", {"Score": unary_stream(self._fails)}
                ),
                grpc.method_handlers_generic_handler(
                    "hookline.v1.DictionaryService", {"ListDictionaries": unary(self._fails)}
                ),
                grpc.method_handlers_generic_handler(
                    "hookline.v1.TokenizerService",
                    {"Tokenize": unary(self._fails), "Detokenize": unary(self._fails)},
                ),
                grpc.method_handlers_generic_handler(
                    "hookline.v1.ModelService",
                    {"GetModel": unary(self._get_model), "ListModels": unary(self._list_models)},
                ),
            ]
        )
        self.port = self._server.add_insecure_port(f"{host}:{port}")
        self.address = f"{host}:{self.port}"
        self._server.start()

    def stop(self):
        self.release.set()
        self._server.stop(None).wait()

    def _fails(self, message, context):
        """Fails with `failure`, or else says that the fake server does not have the method."""
        self.metadata = dict(context.invocation_metadata())
        self._fail(context)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "the fake server does not do this")

    def _fail(self, context, fails=True):
        if self.failure and fails:
            code, message, metadata = self.failure
            context.set_trailing_metadata(metadata)
            context.abort(code, message)

    def _get_dataset(self, message, context):
        self._fail(context)
        name = _protocol.GetDatasetRequest.FromString(message).name
        if name not in self.datasets:
            self._fails(message, context)
        # If the sequences differ in length, each counts as a row of one token.
        lengths = set(map(len, self.datasets[name]))
        length = lengths.pop() if len(lengths) == 1 else 1
        return _protocol.Dataset(
            name=name,
            tokens=len(self.datasets[name]) * length,
            row_length=length,
            fingerprint=self.dataset_fingerprint,
        ).SerializeToString()

    def _model(self):
        return _protocol.Model(
            name="fake",
            architecture="fake",
            layers=2,
            width=8,
            context_length=64,
            vocabulary_size=1000,
            dtype=1,
            device="cpu",
            fingerprint=self.fingerprint,
            hook_points=[{"name": n, "width": w, "layer": 0, "description": "A tensor."} for n, w in WIDTHS.items()],
        )

    def _get_model(self, message, context):
        self._fail(context, self.fails_everywhere)
        name = _protocol.GetModelRequest.FromString(message).name
        if name not in ("", "fake"):
            context.abort(grpc.StatusCode.NOT_FOUND, f'name: there is no model "{name}"; there is "fake"')
        return self._model().SerializeToString()

    def _list_models(self, message, context):
        self._fail(context, self.fails_everywhere)
        return _protocol.ListModelsResponse(models=[self._model()]).SerializeToString()

    def _watch(self, _request, context):
        """Says SERVING once, then waits until the call is over."""
        over = threading.Event()
        context.add_callback(over.set)
        yield b"\x08\x01"
        over.wait()

    def _capture(self, message, context):
        request = _protocol.CaptureRequest.FromString(message)
        source = request.dataset
        sequences = self.datasets[source.name]
        end = source.first_sequence + source.sequence_count if source.sequence_count else len(sequences)
        return self._run(request, lambda start: iter(sequences[start:end]), context)

    def _read_recording(self, message, context):
        read = _protocol.ReadRecordingRequest.FromString(message)
        request = _protocol.CaptureRequest(
            hook_points=read.hook_points, provenance=read.provenance, resume_token=read.resume_token, dtype=2
        )
        if read.HasField("max_activations"):
            request.max_activations = read.max_activations
        sequences = self.datasets[read.name]
        responses = self._run(request, lambda start: iter(sequences[start:]), context)
        self.requests.append(read)
        return responses

    def _recording(self, name):
        points = [{"hook_point": "x", "rows": 7, "max_activations": self.recorded}]
        return _protocol.Recording(name=name, state=2, dtype=2, rows=7, hook_points=points)

    def _persist(self, message, context):
        """Reports half of a recording of 7 rows and, once `release` is set, the whole."""
        request = _protocol.PersistRequest.FromString(message)
        self._fail(context)
        context.add_callback(self.cancelled.set)
        progress = {"disposition": 1, "max_rows": 7, "seconds": 1.5}
        yield _protocol.PersistResponse(rows=3, new_rows=3, **progress).SerializeToString()
        self.release.wait()
        recording = self._recording(request.name)
        yield _protocol.PersistResponse(rows=7, new_rows=4, recording=recording, **progress).SerializeToString()

    def _list_recordings(self, message, context):
        """Returns one recording on each page."""
        self._fail(context, self.fails_everywhere)
        names = sorted(self.datasets)
        token = _protocol.ListRecordingsRequest.FromString(message).page_token
        index = int(token or 0)
        following = str(index + 1) if index + 1 < len(names) else ""
        recordings = [self._recording(names[index])]
        return _protocol.ListRecordingsResponse(recordings=recordings, next_page_token=following).SerializeToString()

    def _get_recording(self, message, context):
        self._fail(context, self.fails_everywhere)
        return self._recording(_protocol.GetRecordingRequest.FromString(message).name).SerializeToString()

    def _estimate(self, message, context):
        request = _protocol.EstimateCaptureRequest.FromString(message).capture
        self._refuse(context)
        for index, name in enumerate(request.hook_points):
            if name not in WIDTHS:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f'hook_points[{index}]: no hook point "{name}"')
        points = [{"hook_point": name, "rows": 1} for name in request.hook_points]
        return _protocol.EstimateCaptureResponse(hook_points=points).SerializeToString()

    def _refuse(self, context):
        if self.failure:
            code, message, metadata = self.failure
            context.set_trailing_metadata(metadata)
            context.abort(code, message)

    def _capture_stream(self, messages, context):
        request = _protocol.CaptureStreamRequest.FromString(next(messages)).request

        def sequences(index):
            for message in messages:
                for sequence in _protocol.CaptureStreamRequest.FromString(message).tokens.sequences:
                    self.sequences_read += 1
                    if self.refused_id in sequence.ids:
                        place = f"tokens.sequences[{index}].ids[{list(sequence.ids).index(self.refused_id)}]"
                        context.abort(
                            grpc.StatusCode.INVALID_ARGUMENT, f"{place}: token id {self.refused_id} is too large"
                        )
                    index += 1
                    yield list(sequence.ids)

        return self._run(request, sequences, context)

    def _run(self, request, sequences_from, context):
        self.requests.append(request)
        context.add_callback(self.cancelled.set)
        self._fail(context)
        for response in self._responses(request, sequences_from, context):
            yield self.alter(response).SerializeToString()

    def _responses(self, request, sequences_from, context):
        Response = _protocol.CaptureResponse
        names = list(request.hook_points)
        asked = request.max_activations if request.HasField("max_activations") else self.cap
        wanted = {name: request.max_activations_by_hook_point.get(name, asked) for name in names}
        budgets = {name: min(rows, self.cap) for name, rows in wanted.items()}
        begin = {"row": 0, "sequence": request.dataset.first_sequence, "skip": 0}
        state = json.loads(request.resume_token) if request.resume_token else begin
        dtype = request.dtype or 1
        started = Response(
            started={
                "model": "fake",
                "fingerprint": self.fingerprint,
                "hook_points": [
                    {
                        "hook_point": name,
                        "width": WIDTHS[name],
                        "max_activations": budgets[name],
                        "clipped": budgets[name] < wanted[name],
                    }
                    for name in names
                ],
                "dtype": dtype,
                "next_sequence": state["sequence"],
                "resume_token": json.dumps(state).encode(),
            }
        )
        yield started
        sent_in_call, reason = 0, 2
        sent = {name: [] for name in names}  # rows of the call
        limit = self.breaks.pop(0) if self.breaks else None
        for ids in sequences_from(state["sequence"]):
            for first in range(state["skip"], len(ids), self.chunk_rows):
                count = min(self.chunk_rows, len(ids) - first)
                end = first + count
                after = dict(row=state["row"] + count, sequence=state["sequence"], skip=end)
                if end == len(ids):
                    after.update(sequence=state["sequence"] + 1, skip=0)
                receivers = [name for name in names if budgets[name] > state["row"]]
                for name in receivers:
                    rows = min(count, budgets[name] - state["row"])
                    chunk = _protocol.ActivationChunk(
                        hook_point=name, first_row=state["row"], rows=rows, width=WIDTHS[name], dtype=dtype
                    )
                    if request.provenance:
                        chunk.sequence.extend([state["sequence"]] * rows)
                        chunk.position.extend(range(first, first + rows))
                        chunk.token_id.extend(ids[first : first + rows])
                    # The last chunk of a group carries the group's token, so that a resume after a cut before it
                    # repeats no row.
                    token = (
                        dict(after, done=[])
                        if name == receivers[-1]
                        else dict(state, done=receivers[: receivers.index(name) + 1])
                    )
                    skip_sent = name in state.get("done", ())
                    chunk.resume_token = json.dumps(token).encode()
                    chunk.data = encode(rows_of(name, ids)[first : first + rows], dtype)
                    if not skip_sent:
                        yield Response(chunk=chunk)
                        sent_in_call += rows
                        sent[name].append(rows_of(name, ids)[first : first + rows])
                        if limit is not None and sent_in_call >= limit:
                            if self.statistics:
                                yield self._summary(names, 4, sent, [0] * len(names), dict(token))
                            context.abort(grpc.StatusCode.UNAVAILABLE, "the fake server breaks here")
                    self.release.wait()
                state = dict(after, done=[])
                if all(budgets[name] <= state["row"] for name in names):
                    reason = 1
                    break
            if reason == 1:
                break
        yield self._summary(names, reason, sent, [min(budgets[n], state["row"]) for n in names], state)

    def _summary(self, names, reason, sent, rows, state):
        points = [{"hook_point": name, "rows": count} for name, count in zip(names, rows)]
        summary = _protocol.CaptureSummary(
            stop_reason=reason,
            hook_points=points,
            sequences=state["sequence"],
            batches=1,
            mean_batch_fill=0.5,
            timing={"total_seconds": 0.25},
            resume_token=json.dumps(state).encode(),
        )
        for name, point in zip(names, summary.hook_points if self.statistics else ()):
            values = np.concatenate([np.empty((0, WIDTHS[name])), *sent[name]])
            point.statistics_rows = len(values)
            if len(values):
                point.mean = values.mean()
                point.rms = np.sqrt((values**2).mean())
                point.mean_row_norm = np.linalg.norm(values, axis=1).mean()
        return _protocol.CaptureResponse(summary=summary)
