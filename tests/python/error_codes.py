"""The class that both clients raise for each of the server's codes, and the calls that may raise it."""

import hookline

CODES = {
    "INVALID_ARGUMENT": hookline.InvalidArgumentError,
    "NOT_FOUND": hookline.NotFoundError,
    "ALREADY_EXISTS": hookline.HooklineError,
    "RESOURCE_EXHAUSTED": hookline.ResourceExhaustedError,
    "FAILED_PRECONDITION": hookline.FailedPreconditionError,
    "UNAVAILABLE": hookline.UnavailableError,
    "UNAUTHENTICATED": hookline.UnauthenticatedError,
    "PERMISSION_DENIED": hookline.PermissionDeniedError,
    "INTERNAL": hookline.InternalError,
    "CANCELLED": hookline.CancelledError,
    "DEADLINE_EXCEEDED": hookline.DeadlineExceededError,
    "UNIMPLEMENTED": hookline.HooklineError,
}


def calls(client, hook_point, sequences):
    """Returns, by name, the calls that are written alike for both clients; asyncio's return awaitables."""
    return {
        "persist": lambda: client.persist("r", hook_point, sequences).wait(),
        "estimate": lambda: client.estimate(hook_point, sequences),
        "models": client.models,
        "model": client.model,
        "datasets": client.datasets,
        "dataset": lambda: client.dataset("d"),
        "recordings": client.recordings,
        "recording": lambda: client.recording("r"),
        "stop_recording": lambda: client.stop_recording("r"),
        "delete_recording": lambda: client.delete_recording("r"),
        "statistics": lambda: client.statistics(hook_point, sequences),
        "score": lambda: client.score(sequences).wait(),
        "dictionaries": client.dictionaries,
        "tokenize": lambda: client.tokenize("a"),
        "detokenize": lambda: client.detokenize([[1]]),
    }
