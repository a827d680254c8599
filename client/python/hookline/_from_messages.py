"""Makes the plain values of `types` from the protocol's messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from hookline import _protocol
from hookline.types import (
    CaptureEstimate,
    CaptureStarted,
    CaptureSummary,
    DatasetInfo,
    Dictionary,
    HookPoint,
    HookPointEstimate,
    HookPointGrant,
    HookPointSummary,
    ModelInfo,
    Packing,
    RecordedHookPoint,
    RecordingInfo,
    SpecialToken,
    TokenizedText,
)


def model_info(message: Any) -> ModelInfo:
    points = tuple(
        HookPoint(p.name, p.width, p.layer, p.description, tuple(p.aliases), p.heads, p.observation)
        for p in message.hook_points
    )
    return ModelInfo(
        name=message.name,
        architecture=message.architecture,
        variant=message.variant,
        details=message.details,
        layers=message.layers,
        width=message.width,
        heads=message.heads,
        key_value_heads=message.key_value_heads,
        context_length=message.context_length,
        vocabulary_size=message.vocabulary_size,
        dtype=_protocol.DTYPES.get(message.dtype, "unspecified"),
        device=message.device,
        fingerprint=message.fingerprint,
        parameters=message.parameters,
        hook_points=points,
        evaluates=message.evaluates,
        tokenizer=message.tokenizer,
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        special_tokens=special_tokens(message.special_tokens),
    )


def special_tokens(messages: Any) -> tuple[SpecialToken, ...]:
    return tuple(SpecialToken(token.role, token.id, token.token) for token in messages)


def tokenized_texts(message: Any) -> tuple[TokenizedText, ...]:
    return tuple(
        TokenizedText(tuple(text.ids), tuple(text.tokens), tuple(zip(text.starts, text.ends)), tuple(text.special))
        for text in message.sequences
    )


def dataset_info(message: Any) -> DatasetInfo:
    return DatasetInfo(
        name=message.name,
        tokens=message.tokens,
        row_length=message.row_length,
        token_dtype=message.token_dtype,
        largest_token_id=message.largest_token_id,
        fingerprint=message.fingerprint,
        packing=packing_of(message.packing) if message.HasField("packing") else None,
    )


def packing_of(message: Any) -> Packing:
    return Packing(
        tokenizer_fingerprint=message.tokenizer_fingerprint,
        method=message.method,
        options=dict(message.options),
        documents=message.documents,
        warning=message.warning,
    )


def dictionary_info(message: Any) -> Dictionary:
    return Dictionary(
        name=message.name,
        model=message.model,
        hook_point=message.hook_point,
        architecture=message.architecture,
        format=message.format,
        width=message.width,
        latents=message.latents,
        max_active=message.max_active,
        fingerprint=message.fingerprint,
        hook_points=tuple(message.hook_points),
        output_hook_point=message.output_hook_point,
        head=message.head if message.HasField("head") else None,
    )


def recording_info(message: Any) -> RecordingInfo:
    return RecordingInfo(
        name=message.name,
        state=_protocol.RECORDING_STATES.get(message.state, "unspecified"),
        error=message.error,
        model=message.model,
        fingerprint=message.fingerprint,
        hook_points=tuple(
            RecordedHookPoint(p.hook_point, p.width, p.max_activations, p.rows) for p in message.hook_points
        ),
        dtype=_protocol.DTYPES.get(message.dtype, "unspecified"),
        rows=message.rows,
        bytes=message.bytes,
        top_k=message.top_k,
    )


def capture_started(message: Any) -> CaptureStarted:
    return CaptureStarted(
        model=message.model,
        fingerprint=message.fingerprint,
        hook_points=tuple(
            HookPointGrant(p.hook_point, p.width, p.max_activations, p.clipped) for p in message.hook_points
        ),
        dtype=_protocol.DTYPES.get(message.dtype, "unspecified"),
        max_message_bytes=message.max_message_bytes,
        next_sequence=message.next_sequence,
        window_bytes=message.window_bytes,
        shared_memory_bytes=message.shared_memory_bytes,
        top_k=message.top_k,
        added_special_tokens=special_tokens(message.added_special_tokens),
        tokenizer_warning=message.tokenizer_warning,
        batch_tokens=message.batch_tokens,
    )


def capture_summary(message: Any, reconnects: int) -> CaptureSummary:
    return CaptureSummary(
        stop_reason=_protocol.STOP_REASONS.get(message.stop_reason, "unspecified"),
        hook_points={
            p.hook_point: HookPointSummary(
                p.rows,
                p.statistics_rows,
                p.mean_row_norm,
                p.mean,
                p.rms,
                p.nan_count,
                p.infinity_count,
                p.overflow_count,
                p.conversion_error,
                p.truncated_rows,
                np.array(p.mean_vector, np.float32) if p.mean_vector else None,
                p.row_norm_p1,
                p.row_norm_p50,
                p.row_norm_p99,
                p.outlier_row_share,
            )
            for p in message.hook_points
        },
        sequences=message.sequences,
        tokens=message.tokens,
        batches=message.batches,
        mean_batch_fill=message.mean_batch_fill,
        total_seconds=message.timing.total_seconds,
        queue_seconds=message.timing.queue_seconds,
        forward_seconds=message.timing.forward_seconds,
        copy_seconds=message.timing.copy_seconds,
        wire_seconds=message.timing.wire_seconds,
        reconnects=reconnects,
    )


def capture_estimate(message: Any) -> CaptureEstimate:
    return CaptureEstimate(
        hook_points={p.hook_point: HookPointEstimate(p.rows, p.bytes) for p in message.hook_points},
        sequences=message.sequences,
        tokens=message.tokens,
        bytes=message.bytes,
        seconds=message.seconds if message.HasField("seconds") else None,
    )
