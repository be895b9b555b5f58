"""The product's exceptions: what happened, what to do next. No HTTP in here."""

from typing import ClassVar


def join_sentences(*sentences: str) -> str:
    """One text; each sentence but the last gets its full stop."""
    said = [sentence.strip() for sentence in sentences if sentence.strip()]
    closed = [each if each[-1] in ".!?:…" else f"{each}." for each in said[:-1]]
    return " ".join([*closed, *said[-1:]])


class ApplianceError(Exception):
    """A failure that is told to a person.

    `code` is stable and machine-readable; `message` says what happened and why; `hint` says what
    to do next; `param` names the field of the request that is at fault.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return join_sentences(self.message, self.hint)


class ConfigError(ApplianceError):
    """A setting is wrong; names the file, the key and the allowed values."""

    code = "bad_config"


class InvalidRequestError(ApplianceError):
    """The request cannot be understood or is not allowed as it stands.

    `detail_code` is OpenAI's own code for it, where clients look for one.
    """

    code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        param: str | None = None,
        detail_code: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, param=param)
        self.detail_code = detail_code


class BodyTooLargeError(ApplianceError):
    """The request body is over the limit."""

    code = "body_too_large"


class InsufficientStorageError(ApplianceError):
    """The disk has no room for it."""

    code = "insufficient_storage"


class UnauthorizedError(ApplianceError):
    """No key, or a wrong one."""

    code = "invalid_api_key"


class ForbiddenError(ApplianceError):
    """The key is valid but lacks the right."""

    code = "forbidden"


class NotFoundError(ApplianceError):
    """A thing that the request names does not exist."""

    code = "not_found"


class WrongMethodError(ApplianceError):
    """The path exists, but not for this method."""

    code = "method_not_allowed"


class ModelNotFoundError(NotFoundError):
    """No model of that name is registered."""

    code = "model_not_found"


class ConflictError(ApplianceError):
    """The request contradicts what is there."""

    code = "conflict"


class QueueFullError(ApplianceError):
    """Too many requests wait for this model already."""

    code = "queue_full"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class UnavailableError(ApplianceError):
    """The server cannot do it now, but may later."""

    code = "unavailable"

    def __init__(self, message: str, *, hint: str = "", retry_after_s: float = 5.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class LoadFailedError(UnavailableError):
    """The model's engine could not be started; the message holds the cause."""

    code = "model_load_failed"


class DoesNotFitError(UnavailableError):
    """The model needs more memory than can be had; the message holds the numbers."""

    code = "does_not_fit"


class EngineDiedError(UnavailableError):
    """The engine went away while it worked on the request."""

    code = "engine_died"


class EngineEnvironmentError(ApplianceError):
    """An engine environment is missing, broken or could not be made."""

    code = "engine_environment"


class DeviceError(ApplianceError):
    """A device cannot be read or used."""

    code = "device_error"
