"""The messages of proto/hookline/v1 and proto/google/rpc, made from a serialized FileDescriptorSet.

protoc's Python output only works with a bounded range of protobuf runtimes, from its own version on. A descriptor set
is data, from which every runtime from 3.21 on can make classes. They are in a pool of their own, so that they do not
conflict with generated modules of hookline or googleapis-common-protos in the same program.
"""

from __future__ import annotations

import pkgutil
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _load_pool() -> Any:
    data = pkgutil.get_data(__package__, "protocol.binpb")
    if data is None:
        raise ImportError("hookline is installed without protocol.binpb; install the package again")
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _load_pool()


def message_class(full_name: str) -> Any:
    """Returns the class of a message, for example `hookline.v1.CaptureRequest`."""
    descriptor = _POOL.FindMessageTypeByName(full_name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    factory: Any = message_factory.MessageFactory(_POOL)  # protobuf before 4.22
    return factory.GetPrototype(descriptor)


def enum_names(full_name: str, prefix: str) -> dict[int, str]:
    """Returns number -> lower-case name without `prefix`, for example {1: "float32", ...}."""
    values = _POOL.FindEnumTypeByName(full_name).values
    return {value.number: value.name[len(prefix) :].lower() for value in values}


ActivationChunk = message_class("hookline.v1.ActivationChunk")
CaptureRequest = message_class("hookline.v1.CaptureRequest")
CaptureResponse = message_class("hookline.v1.CaptureResponse")
CaptureStarted = message_class("hookline.v1.CaptureStarted")
CaptureStreamRequest = message_class("hookline.v1.CaptureStreamRequest")
CaptureSummary = message_class("hookline.v1.CaptureSummary")
Dataset = message_class("hookline.v1.Dataset")
Dictionary = message_class("hookline.v1.Dictionary")
DeleteRecordingRequest = message_class("hookline.v1.DeleteRecordingRequest")
DetokenizeRequest = message_class("hookline.v1.DetokenizeRequest")
DetokenizeResponse = message_class("hookline.v1.DetokenizeResponse")
DeleteRecordingResponse = message_class("hookline.v1.DeleteRecordingResponse")
EstimateCaptureRequest = message_class("hookline.v1.EstimateCaptureRequest")
EstimateCaptureResponse = message_class("hookline.v1.EstimateCaptureResponse")
GetDatasetRequest = message_class("hookline.v1.GetDatasetRequest")
GetRecordingRequest = message_class("hookline.v1.GetRecordingRequest")
GetModelRequest = message_class("hookline.v1.GetModelRequest")
ListDatasetsRequest = message_class("hookline.v1.ListDatasetsRequest")
ListDatasetsResponse = message_class("hookline.v1.ListDatasetsResponse")
ListDictionariesRequest = message_class("hookline.v1.ListDictionariesRequest")
ListDictionariesResponse = message_class("hookline.v1.ListDictionariesResponse")
ListModelsRequest = message_class("hookline.v1.ListModelsRequest")
ListModelsResponse = message_class("hookline.v1.ListModelsResponse")
ListRecordingsRequest = message_class("hookline.v1.ListRecordingsRequest")
ListRecordingsResponse = message_class("hookline.v1.ListRecordingsResponse")
MergeRecordingsRequest = message_class("hookline.v1.MergeRecordingsRequest")
MergeRecordingsResponse = message_class("hookline.v1.MergeRecordingsResponse")
Model = message_class("hookline.v1.Model")
PersistRequest = message_class("hookline.v1.PersistRequest")
PersistResponse = message_class("hookline.v1.PersistResponse")
ReadRecordingRequest = message_class("hookline.v1.ReadRecordingRequest")
Recording = message_class("hookline.v1.Recording")
ScoreRequest = message_class("hookline.v1.ScoreRequest")
ScoreResponse = message_class("hookline.v1.ScoreResponse")
SubstituteRequest = message_class("hookline.v1.SubstituteRequest")
StopRecordingRequest = message_class("hookline.v1.StopRecordingRequest")
TokenizeRequest = message_class("hookline.v1.TokenizeRequest")
TokenizeResponse = message_class("hookline.v1.TokenizeResponse")
TopActivationsRequest = message_class("hookline.v1.TopActivationsRequest")
TopActivationsResponse = message_class("hookline.v1.TopActivationsResponse")
BadRequest = message_class("google.rpc.BadRequest")
RetryInfo = message_class("google.rpc.RetryInfo")
Status = message_class("google.rpc.Status")

DTYPES = enum_names("hookline.v1.Dtype", "DTYPE_")
STOP_REASONS = enum_names("hookline.v1.StopReason", "STOP_REASON_")
PERSIST_DISPOSITIONS = enum_names("hookline.v1.PersistDisposition", "PERSIST_DISPOSITION_")
RECORDING_STATES = enum_names("hookline.v1.RecordingState", "RECORDING_STATE_")

TOKENIZE = "/hookline.v1.TokenizerService/Tokenize"
DETOKENIZE = "/hookline.v1.TokenizerService/Detokenize"
CAPTURE = "/hookline.v1.CaptureService/Capture"
CAPTURE_STREAM = "/hookline.v1.CaptureService/CaptureStream"
MERGE_RECORDINGS = "/hookline.v1.RecordingService/MergeRecordings"
READ_RECORDING = "/hookline.v1.RecordingService/ReadRecording"
GET_RECORDING = "/hookline.v1.RecordingService/GetRecording"
STOP_RECORDING = "/hookline.v1.RecordingService/StopRecording"
DELETE_RECORDING = "/hookline.v1.RecordingService/DeleteRecording"
PERSIST = "/hookline.v1.RecordingService/Persist"
LIST_RECORDINGS = "/hookline.v1.RecordingService/ListRecordings"
ESTIMATE_CAPTURE = "/hookline.v1.CaptureService/EstimateCapture"
SCORE = "/hookline.v1.EvaluationService/Score"
SUBSTITUTE = "/hookline.v1.EvaluationService/Substitute"
TOP_ACTIVATIONS = "/hookline.v1.DictionaryService/TopActivations"
LIST_MODELS = "/hookline.v1.ModelService/ListModels"
GET_MODEL = "/hookline.v1.ModelService/GetModel"
LIST_DICTIONARIES = "/hookline.v1.DictionaryService/ListDictionaries"
LIST_DATASETS = "/hookline.v1.DatasetService/ListDatasets"
GET_DATASET = "/hookline.v1.DatasetService/GetDataset"
