"""Every failure that a caller can see, as one tree; `code` and `status` are the public contract.

GatewayError
|- InvalidRequest          400 invalid_request
|  `- UnknownRegion        400 unknown_region
|- Unauthenticated         401 unauthenticated
|- Forbidden               403 forbidden
|- ModelNotFound           404 model_not_found
|- NotFound                404 not_found
|- MethodNotAllowed        405 method_not_allowed
|- RequestTimeout          408 request_timeout
|- PayloadTooLarge         413 payload_too_large
|- UnsupportedMediaType    415 unsupported_media_type
|- Misdirected             421 misdirected (307 when redirecting)
|- RateLimited             429 rate_limited
|- ResidencyDenied         451 residency_denied
|- InternalError           500 internal_error
|- UpstreamFailed          502 upstream_failed
|- Overloaded              503 overloaded
|- NoHealthyRegion         503 no_healthy_region
|- AuditUnavailable        503 audit_unavailable
|- DeadlineExceeded        504 deadline_exceeded
`- CacheMiss               504 cache_miss
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from app.types import Reason

_RESTART = timedelta(seconds=5)
"""When to come back where no region is up: by then a worker has usually been started again."""


class GatewayError(Exception):
    """A failure with a stable code. The message is looked up by `message_id` in the caller's language.

    `detail` picks a more exact message under the code (`invalid_request.json`); `values` fill its placeholders
    (numbers and `timedelta`s are formatted for the locale); `param` names the field or header at fault; `headers` are
    sent with the answer; `extra` joins a problem+json body and the `error` object of OpenAI's shape.
    """

    code: ClassVar[str]
    status: int
    openai_type: ClassVar[str] = "invalid_request_error"

    def __init__(
        self,
        detail: str | None = None,
        *,
        param: str | None = None,
        reason: Reason | None = None,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
        **values: Any,
    ) -> None:
        self.message_id = f"{self.code}.{detail}" if detail else self.code
        self.param = param
        self.reason = reason
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})
        self.values = values
        super().__init__(self.message_id, values)


class InvalidRequest(GatewayError):
    code, status = "invalid_request", 400


class UnknownRegion(InvalidRequest):
    code = "unknown_region"


class Unauthenticated(GatewayError):
    code, status, openai_type = "unauthenticated", 401, "authentication_error"


class Forbidden(GatewayError):
    code, status, openai_type = "forbidden", 403, "permission_error"


class ModelNotFound(GatewayError):
    code, status = "model_not_found", 404


class NotFound(GatewayError):
    code, status = "not_found", 404


class MethodNotAllowed(GatewayError):
    code, status = "method_not_allowed", 405


class RequestTimeout(GatewayError):
    code, status = "request_timeout", 408


class PayloadTooLarge(GatewayError):
    code, status = "payload_too_large", 413


class UnsupportedMediaType(GatewayError):
    code, status = "unsupported_media_type", 415


class Misdirected(GatewayError):
    code, status = "misdirected", 421


class RateLimited(GatewayError):
    code, status, openai_type = "rate_limited", 429, "rate_limit_error"


class ResidencyDenied(GatewayError):
    code, status, openai_type = "residency_denied", 451, "permission_error"


class InternalError(GatewayError):
    code, status, openai_type = "internal_error", 500, "server_error"


class UpstreamFailed(GatewayError):
    code, status, openai_type = "upstream_failed", 502, "server_error"


class Overloaded(GatewayError):
    code, status, openai_type = "overloaded", 503, "server_error"


class NoHealthyRegion(GatewayError):
    code, status, openai_type = "no_healthy_region", 503, "server_error"

    @classmethod
    def among(cls, regions: Sequence[str]) -> "NoHealthyRegion":
        """Lawful regions exist, these, and none of them is up."""
        reason = Reason.NO_COMPLIANT_HEALTHY
        return cls(reason=reason, extra={"reason": reason}, regions=list(regions), retry_after=_RESTART)


class AuditUnavailable(GatewayError):
    code, status, openai_type = "audit_unavailable", 503, "server_error"


class DeadlineExceeded(GatewayError):
    code, status, openai_type = "deadline_exceeded", 504, "server_error"


class CacheMiss(GatewayError):
    code, status = "cache_miss", 504
