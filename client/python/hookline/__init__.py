"""Streams activations of a language model from a Hookline server.

    import hookline

    client = hookline.connect("localhost:7471")
    for batch in client.capture("blocks.*.hook_resid_post", token_ids, max_activations=1_000_000):
        for hook_point, rows in batch.items():  # (4096, width) tensors, row-aligned
            ...

The submodules `aio`, `many`, `pack`, `plot`, `ray`, `sae_lens` and `torch` are imported on first use.
"""

import importlib
from typing import Any

from hookline._connect import connect
from hookline._rows import TopK
from hookline._security import Tls
from hookline._version import __version__
from hookline.capture import Batch, Capture
from hookline.client import Client
from hookline.collector import ActivationCollector, collect_activations_from_dataloader
from hookline.errors import (
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    HooklineError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)
from hookline.evaluate import LossRecovered
from hookline.examples import LatentActivations, LatentExample, TopActivations
from hookline.model import RemoteModel
from hookline.persist import PersistProgress, PersistRun
from hookline.scores import Intervention, ReplacedRows, Scores, ScoreSummary, SequenceScore, TopLogits, VariantSummary
from hookline.statistics import HookPointStatistics, Statistics
from hookline.substitute import RowsPlace, Substituted
from hookline.types import (
    CaptureEstimate,
    CaptureStarted,
    CaptureSummary,
    Dataset,
    DatasetInfo,
    Dictionary,
    Feed,
    HookPoint,
    HookPointEstimate,
    HookPointGrant,
    HookPointSummary,
    ModelInfo,
    Packing,
    RecordedHookPoint,
    Recording,
    RecordingInfo,
    Retry,
    Selection,
    SpecialToken,
    Text,
    TokenizedText,
)

__all__ = [
    "ActivationCollector",
    "Batch",
    "CancelledError",
    "Capture",
    "CaptureEstimate",
    "CaptureStarted",
    "CaptureSummary",
    "Client",
    "Dataset",
    "DatasetInfo",
    "DeadlineExceededError",
    "Dictionary",
    "FailedPreconditionError",
    "Feed",
    "HookPoint",
    "HookPointEstimate",
    "HookPointGrant",
    "HookPointStatistics",
    "HookPointSummary",
    "HooklineError",
    "InternalError",
    "Intervention",
    "InvalidArgumentError",
    "LatentActivations",
    "LatentExample",
    "LossRecovered",
    "ModelInfo",
    "NotFoundError",
    "Packing",
    "PermissionDeniedError",
    "PersistRun",
    "PersistProgress",
    "RecordedHookPoint",
    "Recording",
    "RecordingInfo",
    "RemoteModel",
    "ReplacedRows",
    "ResourceExhaustedError",
    "Retry",
    "RowsPlace",
    "ScoreSummary",
    "Scores",
    "Selection",
    "SequenceScore",
    "SpecialToken",
    "Statistics",
    "Substituted",
    "Text",
    "Tls",
    "TokenizedText",
    "TopActivations",
    "TopK",
    "TopLogits",
    "UnauthenticatedError",
    "UnavailableError",
    "VariantSummary",
    "collect_activations_from_dataloader",
    "connect",
    "__version__",
]

_ON_DEMAND = ("aio", "many", "pack", "plot", "ray", "sae_lens", "torch")


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
