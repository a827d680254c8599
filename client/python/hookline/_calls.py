"""The calls with one request and one answer. The synchronous and the asyncio client both make them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Generic, TypeVar

from hookline import _protocol
from hookline._counts import counts, flag, string, strings
from hookline._from_messages import (
    capture_estimate,
    dataset_info,
    dictionary_info,
    model_info,
    recording_info,
    tokenized_texts,
)
from hookline._request import CaptureOptions, fill_texts
from hookline.types import (
    LARGEST_ID,
    CaptureEstimate,
    DatasetInfo,
    Dictionary,
    ModelInfo,
    RecordingInfo,
    TokenizedText,
)

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class UnaryCall(Generic[Answer]):
    """A call with one request message and one answer."""

    method: str  # the full gRPC name
    request: Any
    response_class: Any  # the class of the answer's message
    read: Callable[[Any], Answer]  # converts that message to the answer


def list_models() -> UnaryCall[tuple[ModelInfo, ...]]:
    return UnaryCall(
        _protocol.LIST_MODELS,
        _protocol.ListModelsRequest(),
        _protocol.ListModelsResponse,
        lambda answer: tuple(map(model_info, answer.models)),
    )


def get_model(name: str) -> UnaryCall[ModelInfo]:
    request = _protocol.GetModelRequest(name=string("name", name))
    return UnaryCall(_protocol.GET_MODEL, request, _protocol.Model, model_info)


def tokenize(
    texts: str | Sequence[str], model: str, add_special_tokens: bool | None
) -> UnaryCall[tuple[TokenizedText, ...]]:
    request = _protocol.TokenizeRequest(model=string("model", model))
    fill_texts(request.texts, strings("texts", texts))
    if add_special_tokens is not None:
        request.add_special_tokens = flag("add_special_tokens", add_special_tokens)
    return UnaryCall(_protocol.TOKENIZE, request, _protocol.TokenizeResponse, tokenized_texts)


def detokenize(sequences: Sequence[Any], model: str, skip_special_tokens: bool) -> UnaryCall[tuple[str, ...]]:
    request = _protocol.DetokenizeRequest(
        model=string("model", model), skip_special_tokens=flag("skip_special_tokens", skip_special_tokens)
    )
    for index, ids in enumerate(sequences.tolist() if hasattr(sequences, "tolist") else sequences):
        if not isinstance(ids, Iterable):
            raise TypeError(f"sequences[{index}]: one token id, not a sequence of them; give [ids] for one sequence")
        request.sequences.add().ids.extend(counts(f"sequences[{index}]", ids, 0, LARGEST_ID))
    return UnaryCall(
        _protocol.DETOKENIZE, request, _protocol.DetokenizeResponse, lambda answer: tuple(map(str, answer.texts))
    )


def list_datasets() -> UnaryCall[tuple[DatasetInfo, ...]]:
    return UnaryCall(
        _protocol.LIST_DATASETS,
        _protocol.ListDatasetsRequest(),
        _protocol.ListDatasetsResponse,
        lambda answer: tuple(map(dataset_info, answer.datasets)),
    )


def list_dictionaries() -> UnaryCall[tuple[Dictionary, ...]]:
    return UnaryCall(
        _protocol.LIST_DICTIONARIES,
        _protocol.ListDictionariesRequest(),
        _protocol.ListDictionariesResponse,
        lambda answer: tuple(map(dictionary_info, answer.dictionaries)),
    )


def get_dataset(name: str) -> UnaryCall[DatasetInfo]:
    request = _protocol.GetDatasetRequest(name=string("name", name))
    return UnaryCall(_protocol.GET_DATASET, request, _protocol.Dataset, dataset_info)


def list_recordings(page_token: str) -> UnaryCall[tuple[tuple[RecordingInfo, ...], str]]:
    """Returns one page of the recordings, and the token of the next page: "" at the end."""
    return UnaryCall(
        _protocol.LIST_RECORDINGS,
        _protocol.ListRecordingsRequest(page_token=page_token),
        _protocol.ListRecordingsResponse,
        lambda answer: (tuple(map(recording_info, answer.recordings)), str(answer.next_page_token)),
    )


def get_recording(name: str) -> UnaryCall[RecordingInfo]:
    request = _protocol.GetRecordingRequest(name=string("name", name))
    return UnaryCall(_protocol.GET_RECORDING, request, _protocol.Recording, recording_info)


def describe_recording(name: str) -> UnaryCall[Any]:
    """Returns the proto Recording itself."""
    request = _protocol.GetRecordingRequest(name=name)
    return UnaryCall(_protocol.GET_RECORDING, request, _protocol.Recording, lambda message: message)


def stop_recording(name: str) -> UnaryCall[RecordingInfo]:
    request = _protocol.StopRecordingRequest(name=string("name", name))
    return UnaryCall(_protocol.STOP_RECORDING, request, _protocol.Recording, recording_info)


def delete_recording(name: str) -> UnaryCall[int]:
    """Returns the number of bytes freed."""
    return UnaryCall(
        _protocol.DELETE_RECORDING,
        _protocol.DeleteRecordingRequest(name=string("name", name)),
        _protocol.DeleteRecordingResponse,
        lambda answer: int(answer.bytes),
    )


def estimate_capture(options: CaptureOptions) -> UnaryCall[CaptureEstimate]:
    return UnaryCall(
        _protocol.ESTIMATE_CAPTURE,
        _protocol.EstimateCaptureRequest(capture=options.whole_message()),
        _protocol.EstimateCaptureResponse,
        capture_estimate,
    )
