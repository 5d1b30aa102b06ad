"""An audit of what is served: any server that speaks OpenAI's chat completions.

A request that fails is no answer of the model: it is *unscored*, and asked again by the next run.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..chat.chat_model import check_sizes
from ..errors import InputError, PrerequisiteError
from ..provenance import as_json, fingerprint
from ..spool import pieces
from .answering import FAILED, Store
from .findings import Audit
from .questions import Question, Questions, Reply, Some
from .run import counted, settled
from .settings import REFUSAL_MASS, AuditSettings
from .suites import Suite

_log = logging.getLogger(__name__)

_IN_A_ROW = 8  # failures, each after its retries, after which a server counts as gone
_CHARACTERS_PER_TOKEN = 4  # of English text, roughly; only for what is told beforehand
_WAITING = 4096  # questions that wait for their turn in memory
_SECONDS = 600.0  # longest time for one answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server, and a model on it.

    The key comes from the environment alone, and goes into no file and no message.

    Raises:
        InputError: If the address is none, or holds a password or a key; if a number is below 1.
    """

    url: str
    """Up to where `/chat/completions` follows: "http://localhost:8000/v1"."""

    model: str
    """What the server calls the model."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server without one needs none."""

    concurrency: int = 8
    """Requests at a time."""

    requests_per_minute: int | None = None
    """At most; None for no limit but the server's own."""

    retries: int = 8
    """How often a request is put again, after 0.5 s, then twice as long up to 8 s, or as long as
    the server says. Only where that can help: no connection, too many requests, an error of 500 or
    more."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(
                f"`endpoint` must be an address such as http://localhost:8000/v1, got {self.url!r}."
            )
        if parts.username or parts.password or parts.query:
            raise InputError(
                "`endpoint` holds a password or a query, which would stand in files. Put the key "
                f"into the environment variable {self.api_key_env}."
            )
        if not self.model:
            raise InputError("`model` is missing. Say what the endpoint calls it: --model NAME.")
        check_sizes(concurrency=self.concurrency, retries=self.retries + 1)
        if self.requests_per_minute is not None:
            check_sizes(requests_per_minute=self.requests_per_minute)

    def client(self) -> Any:
        """A client that retries with back-off.

        Raises:
            InputError: If the key cannot be one.
            PrerequisiteError: If the package openai is not installed.
        """
        try:
            from openai import OpenAI
        except ImportError as error:
            raise PrerequisiteError(
                "`endpoint` needs the package openai, which is not installed. Run "
                "`pip install 'moorline[serve]'`."
            ) from error
        if not self._key.isascii():
            raise InputError(
                f"The key in the environment variable {self.api_key_env} holds a character that no "
                "key has. Copy it again."
            )
        return OpenAI(
            base_url=self.url, api_key=self._key or "none", max_retries=self.retries,
            timeout=_SECONDS,
        )  # fmt: skip

    @property
    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "")

    def without_key(self, text: str) -> str:
        """What a server says, the key left out should it repeat it."""
        return text.replace(self._key, "***") if self._key else text

    def line(self, error: Exception) -> str:
        """An error in one short line, without the key."""
        return " ".join(self.without_key(str(error)).split())[:300]


def audit_endpoint(
    endpoint: Endpoint,
    suites: Sequence[Suite],
    settings: AuditSettings,
    *,
    folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Put every prompt of the suites to a served model and judge the answers; see `audit`.

    The server renders the prompts. Of a temperature above 0 it draws as it likes: the seed is sent,
    but not every server heeds it.

    What it cannot see: the weights. Two audits of one address and name may be of two models.

    Args:
        endpoint: The server and the model.
        suites: What to ask.
        settings: How to ask and judge.
        folder: Where answers go as they come, and come from again after a stop; memory if None.
        progress: Called with the number of answers there are, and of all.

    Raises:
        InputError: If a condition or a judge needs the model itself, or the server refuses the key
            or the name.
        PrerequisiteError: If the package openai is not installed.
    """
    check_served(settings)
    suites, settings = settled(suites, settings)
    questions, known = Questions(suites, settings), _known_by(endpoint, suites, settings)
    store = Store(None if folder is None else Path(folder), known)
    replies = store.replies_to(questions)
    missing = Some(questions, replies.missing())
    _log.info("%s", cost(missing, settings, endpoint))
    done, failed, why = len(questions) - len(missing), 0, ""
    for number, reply in _asked(endpoint, missing, settings) if missing else ():
        replies.add([number], [reply])
        if reply.unasked is None:
            store.add([questions[number]], [reply])
            done += 1
        else:
            failed, why = failed + 1, why or reply.unasked
        if progress is not None:
            progress(done, len(questions))
    if failed:
        _log.warning(
            "%d of %d requests failed and are unscored (%s). Run the same command again to ask "
            "them again.", failed, len(questions), why.removeprefix(FAILED),
        )  # fmt: skip
    return counted(
        questions, replies, suites, settings,
        model=endpoint.model, engine="endpoint", fingerprint=known,
    )  # fmt: skip


def check_served(settings: AuditSettings) -> None:
    """Refuse what a chat endpoint cannot do.

    Raises:
        InputError: For a condition that begins the answer, and for the refusal mass.
    """
    for each in settings.asked:
        if each.prefill:
            raise InputError(
                f"`condition` {each.name!r} begins the model's answer for it, which a chat "
                "endpoint does not let one do. Leave it out, or audit the model itself."
            )
    if REFUSAL_MASS in settings.judges:
        raise InputError(
            "`judge` 'refusal_mass' needs the model's probabilities. Leave it out, or audit the "
            "model itself."
        )


def cost(questions: Sequence[Question], settings: AuditSettings, endpoint: Endpoint) -> str:
    """What answers would cost, in requests and tokens; said before any is asked for."""
    characters = sum(
        len(each.prompt.prompt) + len(each.condition.system_prompt or settings.system_prompt or "")
        for each in questions
    )
    return (
        f"{len(questions):,} requests to {endpoint.url} ({endpoint.model}): about "
        f"{round(characters / _CHARACTERS_PER_TOKEN):,} tokens of prompts, at most "
        f"{len(questions) * settings.max_new_tokens:,} tokens of answers."
    )


def planned(
    endpoint: Endpoint, suites: Sequence[Suite], settings: AuditSettings, folder: Path | None
) -> str:
    """What an audit would still ask for, in requests and tokens; asks for nothing."""
    check_served(settings)
    suites, settings = settled(suites, settings)
    known = _known_by(endpoint, suites, settings)
    there = folder is not None and (folder / "audit.json").is_file()
    questions = Questions(suites, settings)
    found = Store(folder if there else None, known).replies_to(questions)
    return cost(Some(questions, found.missing()), settings, endpoint)


def _known_by(endpoint: Endpoint, suites: Sequence[Suite], settings: AuditSettings) -> str:
    shaping = {**settings.shape_answers(), "batch_size": None}
    return fingerprint([
        "endpoint", endpoint.url, endpoint.model, as_json(shaping),
        *(part for suite in suites for part in (suite.name, suite.kind, suite.sha256)),
    ])  # fmt: skip


class _Got(NamedTuple):
    reply: Reply
    is_down: bool
    """Whether it failed, and the next one would too."""


def _asked(
    endpoint: Endpoint, questions: Some, settings: AuditSettings
) -> Iterator[tuple[int, Reply]]:
    """The number of each with its reply, as they come; once the server is gone, unasked.

    Raises:
        InputError: If the server refuses the key or the name.
        PrerequisiteError: If it never answered.
    """
    client, pace = endpoint.client(), _Pace(endpoint.requests_per_minute)
    gone, in_a_row, is_there, why = threading.Event(), 0, False, ""

    def ask(question: Question) -> _Got:
        if gone.is_set():
            return _failed(f"not asked, after {_IN_A_ROW} failures in a row", is_down=True)
        pace.wait()
        return _reply(client, endpoint, question, settings)

    with ThreadPoolExecutor(endpoint.concurrency) as pool:
        numbers = map(int, questions.numbers)
        try:
            for some in pieces(zip(numbers, questions, strict=True), _WAITING):
                asked = {pool.submit(ask, each): number for number, each in some}
                for each in as_completed(asked):
                    reply, is_down = each.result()
                    in_a_row = in_a_row + 1 if is_down else 0
                    is_there, why = is_there or not is_down, why or reply.unasked or ""
                    if in_a_row >= _IN_A_ROW:
                        gone.set()
                    yield asked[each], reply
            if not is_there:
                raise PrerequisiteError(
                    f"{endpoint.url} answered none of {len(questions)} requests "
                    f"({why.removeprefix(FAILED)}). Check that the server runs and `endpoint` is "
                    "its address; the same command then asks them."
                )
        finally:
            gone.set()
            pool.shutdown(cancel_futures=True)


def _reply(client: Any, endpoint: Endpoint, question: Question, settings: AuditSettings) -> _Got:
    import openai

    condition, own = question.condition, question.prompt
    system = condition.system_prompt or settings.system_prompt
    messages = [{"role": "system", "content": system}] if system else []
    off = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
    try:
        found = client.chat.completions.create(
            model=endpoint.model,
            messages=[*messages, {"role": "user", "content": own.prompt}],
            max_tokens=settings.max_new_tokens,
            temperature=condition.temperature,
            seed=int(fingerprint([str(settings.seed), *map(str, question.key)])[:7], 16),
            extra_body=None if settings.thinking == "model" else off,
        )
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise InputError(
            f"{endpoint.url} refuses the key ({endpoint.line(error)}). Put the right "
            f"one into the environment variable {endpoint.api_key_env}."
        ) from None
    except openai.NotFoundError as error:
        raise InputError(
            f"{endpoint.url} knows no model {endpoint.model!r}, or is no address of chat "
            f"completions ({endpoint.line(error)}). Check --endpoint and --model."
        ) from None
    except openai.BadRequestError as error:  # this prompt alone: too long, or filtered
        return _failed(endpoint.line(error), is_down=False)
    except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
        # The client's own parser falls over what is no JSON, or JSON of another shape.
        return _failed(endpoint.line(error), is_down=True)
    return _answer_in(found, endpoint)


def _answer_in(found: Any, endpoint: Endpoint) -> _Got:
    """What a server said with success; the client takes it without a look, a page of HTML too."""
    choices = getattr(found, "choices", None)
    if not isinstance(choices, list):
        return _failed("what it sent is no chat completion", is_down=True)
    choice = choices[0] if choices else None
    reason, message = getattr(choice, "finish_reason", None), getattr(choice, "message", None)
    if message is None or reason == "content_filter":
        filtered = reason == "content_filter"
        why = "its filter gave no answer" if filtered else "it gave no answer"
        return _failed(why, is_down=False)
    text = getattr(message, "content", None) or getattr(message, "refusal", None) or ""
    if isinstance(text, list):  # of parts
        parts = [each.get("text", "") for each in text if isinstance(each, dict)]
        text = "".join(each for each in parts if isinstance(each, str))
    if not isinstance(text, str):
        return _failed("its answer is no text", is_down=False)
    names = ("reasoning_content", "reasoning")  # where servers put thoughts that they cut off
    thoughts = next((found for each in names if (found := getattr(message, each, None))), None)
    if not text and isinstance(thoughts, str):
        text = f"<think>{thoughts}" + ("" if reason == "length" else "</think>")
    return _Got(Reply(endpoint.without_key(text), reason == "length"), is_down=False)


def _failed(why: str, *, is_down: bool) -> _Got:
    return _Got(Reply("", truncated=False, unasked=FAILED + why), is_down)


class _Pace:
    """Spaces requests evenly, so that no minute has more than so many."""

    def __init__(self, per_minute: int | None) -> None:
        self._apart = 60 / per_minute if per_minute else 0.0
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        """Wait for this request's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._apart
        time.sleep(turn - now)
