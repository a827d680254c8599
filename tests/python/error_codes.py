"""The class that each of the server's codes is raised as, by both clients."""

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
