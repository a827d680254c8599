"""Warnings about a capture: the server's cap cut it short, the source was empty, or values are not finite."""

from __future__ import annotations

from hookline._request import CaptureOptions
from hookline._token_ids import tell_without_bos
from hookline.types import CaptureStarted, CaptureSummary, Dataset, Feed, Recording, RecordingInfo


def asked_rows(options: CaptureOptions, hook_point: str) -> int | None:
    """Returns the budget that was asked for this hook point; None if there was none."""
    return options.max_activations_by_hook_point.get(hook_point, options.max_activations)


def capped(options: CaptureOptions, started: CaptureStarted) -> list[str]:
    """Returns the hook points whose budget is the server's cap, rather than what was asked for."""
    if isinstance(options.source, Recording):
        return []
    return [p.name for p in started.hook_points if p.clipped or asked_rows(options, p.name) is None]


def notes_of_start(options: CaptureOptions, started: CaptureStarted) -> list[str]:
    """Returns notes about the grant. Also logs a warning if a stream of tokens is cut without BOS."""
    source = options.source.dataset if isinstance(options.source, Feed) else options.source
    if isinstance(source, Dataset) and source.sequence_length and source.prepend_token_id is None:
        tell_without_bos(f"dataset {source.name!r} cut at {source.sequence_length} tokens")
    return [
        f"{point.name}: the server grants {point.max_activations} rows in a capture (--max-rows) of the "
        f"{asked_rows(options, point.name)} asked for"
        for point in started.hook_points
        if point.clipped and not options.goes_on
    ]


def notes_of_end(options: CaptureOptions, started: CaptureStarted, summary: CaptureSummary) -> list[str]:
    """Returns notes about how the capture ended."""
    notes = []
    names = set(capped(options, started))
    for point in started.hook_points:
        told = summary.hook_points.get(point.name)
        if told is None:
            continue
        if point.name in names and not point.clipped and told.rows >= point.max_activations and not options.goes_on:
            notes.append(
                f"{point.name}: ended at the server's cap of {point.max_activations} rows (--max-rows), not with the "
                "source; set max_activations to the number of rows that you want"
            )
        if told.nan_count or told.infinity_count:
            cure = (
                f"; float16, whose range ends at 65504, made {told.overflow_count} of them infinite: use bfloat16 or "
                "float32"
            )
            cure = cure if told.overflow_count else ""
            notes.append(
                f"{point.name}: {told.nan_count} NaN and {told.infinity_count} infinite values in "
                f"{told.statistics_rows} rows, which the means leave out{cure}"
            )
    if summary.stop_reason == "source_ended" and summary.sequences == 0 and options.streams_tokens:
        notes.append("the source held no tokens")
    return notes


def notes_of_recording(options: CaptureOptions, recording: RecordingInfo | None) -> list[str]:
    """Returns notes about a recording that has ended; none if it has not ended, or is a part. `max_activations` in a
    recording is what was granted, not what was asked for."""
    notes = []
    for point in recording.hook_points if recording is not None and not options.goes_on else ():
        asked = asked_rows(options, point.name)
        if point.rows >= point.max_activations and (asked is None or asked > point.rows):
            wanted = "the end of the source" if asked is None else f"the {asked} rows asked for"
            notes.append(
                f"{point.name}: the recording ends at the server's cap of {point.max_activations} rows (--max-rows), "
                f"not at {wanted}"
            )
    return notes
