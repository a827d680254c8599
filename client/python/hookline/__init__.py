"""Activations of a language model, streamed from a Hookline server.

    import hookline

    client = hookline.connect("localhost:7471")
    for batch in client.capture("blocks.*.hook_resid_post", token_ids, max_activations=1_000_000):
        for hook_point, rows in batch.items():  # (4096, width) tensors, row-aligned
            ...
"""

from hookline.capture import Batch, Capture
from hookline.client import Client, connect
from hookline.collector import ActivationCollector, collect_activations_from_dataloader
from hookline.errors import (
    CancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    HooklineError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from hookline.model import RemoteModel
from hookline.types import (
    CaptureEstimate,
    CaptureStarted,
    CaptureSummary,
    Dataset,
    DatasetInfo,
    Feed,
    HookPoint,
    HookPointEstimate,
    HookPointGrant,
    HookPointSummary,
    ModelInfo,
    Retry,
    Selection,
)

__version__ = "0.1.0"

__all__ = [
    "ActivationCollector",
    "Batch",
    "CancelledError",
    "Capture",
    "CaptureEstimate",
    "CaptureStarted",
    "CaptureSummary",
    "Client",
    "DataLossError",
    "Dataset",
    "DatasetInfo",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "Feed",
    "HookPoint",
    "HookPointEstimate",
    "HookPointGrant",
    "HookPointSummary",
    "HooklineError",
    "InvalidArgumentError",
    "ModelInfo",
    "NotFoundError",
    "RemoteModel",
    "ResourceExhaustedError",
    "Retry",
    "Selection",
    "UnavailableError",
    "collect_activations_from_dataloader",
    "connect",
]
