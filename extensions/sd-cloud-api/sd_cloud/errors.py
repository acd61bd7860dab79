"""Every error a caller can meet: its name, its HTTP status, its EAS status, its sentence.

Raised where the fact is known, turned into HTTP by each dialect in one place. The message names
the field, the fact and the way out. The EAS status numbers are documented in ``docs/eas.md``;
they are part of the wire format and never renumbered.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """Base of what a request can fail with.

    ``code`` is the stable name, ``http_status`` what HTTP answers, ``eas_status`` what the EAS
    dialect puts into ``parameters.status``.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    eas_status: ClassVar[int] = 4
    #: When to come again, where that helps.
    retry_after_seconds: int | None = None

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.message = f"{field}: {message}" if field else message

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.args[0], self.field))


def _rebuild(kind: type[ServiceError], message: str, field: str | None) -> ServiceError:
    return kind(message, field=field)


class BadRequest(ServiceError):
    """A field has a value that cannot be served."""

    code, http_status, eas_status = "bad_request", 422, 1


class InputRefused(BadRequest):
    """A picture, link or path is not allowed: by its address, its type, its size or its place."""

    code, http_status, eas_status = "input_refused", 422, 1


class NotFound(BadRequest):
    """Something the request names is not part of this service: a sampler, a script, a style."""

    code, http_status, eas_status = "not_found", 404, 1


class InputUnreachable(ServiceError):
    """The other side of a link failed, or took too long."""

    code, http_status, eas_status = "input_unreachable", 424, 2


class CheckpointNotFound(ServiceError):
    """No checkpoint, VAE or other model of that name is installed."""

    code, http_status, eas_status = "checkpoint_not_found", 404, 3


class CheckpointBroken(ServiceError):
    """The file is there but is not a checkpoint that can be loaded; the message names both."""

    code, http_status, eas_status = "checkpoint_broken", 422, 3


class EngineFailed(ServiceError):
    """The engine failed on this job. It serves the next."""

    code, http_status, eas_status = "engine_failed", 500, 4


class NotImplementedHere(ServiceError):
    """The request asks for something this service does not have; the message names it."""

    code, http_status, eas_status = "not_implemented", 501, 1


class OutOfMemory(ServiceError):
    """The job needed more memory than there is."""

    code, http_status, eas_status = "out_of_memory", 507, 5


class SavingFailed(ServiceError):
    """The pictures were made but could not be written or uploaded."""

    code, http_status, eas_status = "saving_failed", 507, 6


class Cancelled(ServiceError):
    """The task was cancelled before it was done."""

    code, http_status, eas_status = "cancelled", 409, 7


class TimedOut(ServiceError):
    """The task did not finish within the time the service allows."""

    code, http_status, eas_status = "timed_out", 504, 8


class Blocked(ServiceError):
    """The safety check blocked the result."""

    code, http_status, eas_status = "blocked", 451, 9


class QueueFull(ServiceError):
    """The queue holds as many waiting tasks as the operator allows. Send it again later."""

    code, http_status, eas_status = "queue_full", 429, 10

    retry_after_seconds = 5


class QuotaExceeded(ServiceError):
    """This owner has reached a limit of their own."""

    code, http_status, eas_status = "quota_exceeded", 429, 10
    retry_after_seconds = 30

    def __init__(
        self, message: str, *, field: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message, field=field)
        if retry_after_seconds is not None:
            self.retry_after_seconds = retry_after_seconds


class IdempotencyConflict(ServiceError):
    """The Idempotency-Key was used before, for another request."""

    code, http_status, eas_status = "idempotency_conflict", 409, 1


class NotKept(ServiceError):
    """The request was answered before, and what it was answered with is no longer here."""

    code, http_status, eas_status = "not_kept", 410, 12


class NotAllowed(ServiceError):
    """The caller is known but may not do this."""

    code, http_status, eas_status = "not_allowed", 403, 11


class Unauthorized(ServiceError):
    """The caller is not known."""

    code, http_status, eas_status = "unauthorized", 401, 11


class TaskNotFound(ServiceError):
    """No such task, or not one of this caller's."""

    code, http_status, eas_status = "task_not_found", 404, 12


class ShuttingDown(ServiceError):
    """The service takes no new work because it is stopping."""

    code, http_status, eas_status = "shutting_down", 503, 13
    retry_after_seconds = 5


class StoreUnavailable(ServiceError):
    """The database that holds the tasks can't be read or written just now."""

    code, http_status, eas_status = "store_unavailable", 503, 13
    retry_after_seconds = 5
