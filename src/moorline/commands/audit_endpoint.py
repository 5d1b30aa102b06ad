"""`moorline audit --endpoint`: what is served, audited; or only what that would cost."""

from functools import partial
from pathlib import Path

from ..audit.endpoint import Endpoint, audit_endpoint, planned
from ..audit.findings import Audit
from ..audit.settings import AuditSettings
from ..audit.suites import Suite
from ..errors import InputError
from .audit_options import Asked, Progress

_OF_WEIGHTS = (
    "adapter", "held_out", "drift", "lm_eval", "dtype", "revision", "device_map", "load_in_4bit",
    "trust_remote_code",
)  # fmt: skip


def endpoint_of(asked: Asked) -> Endpoint:
    """The server that an audit asks.

    Raises:
        InputError: If there is none, or an option needs the weights.
    """
    if asked.endpoint is None:
        raise InputError("`dry_run` is for audits of an endpoint. Add --endpoint, or leave it out.")
    if clash := [name for name in _OF_WEIGHTS if getattr(asked, name)]:
        raise InputError(
            f"`{clash[0]}` needs the weights, which `endpoint` does not give. Leave one of them "
            "out."
        )
    return Endpoint(
        url=asked.endpoint.rstrip("/"), model=asked.model, api_key_env=asked.api_key_env,
        concurrency=asked.concurrency, requests_per_minute=asked.requests_per_minute,
        retries=asked.retries,
    )  # fmt: skip


def audit_served(
    asked: Asked, suites: list[Suite], settings: AuditSettings, say: Progress
) -> Audit:
    """What a served model answers, judged."""
    return audit_endpoint(
        endpoint_of(asked), suites, settings, folder=asked.output,
        progress=partial(say, f"audit {Path(asked.model).name}"),
    )  # fmt: skip


def plan_of(asked: Asked, suites: list[Suite], settings: AuditSettings) -> str:
    """What an audit of an endpoint would still ask for."""
    return planned(endpoint_of(asked), suites, settings, asked.output)
