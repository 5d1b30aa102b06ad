"""What is served, audited: a real server (`transformers serve`), stopped and started again."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from threading import Lock, Thread

import pytest
from helpers import refused, runner

from moorline import embedded
from moorline.audit import AuditSettings
from moorline.audit.endpoint import Endpoint, audit_endpoint
from moorline.commands.cli import app
from moorline.errors import InputError

pytestmark = pytest.mark.skipif(
    any(find_spec(each) is None for each in ("openai", "uvicorn", "fastapi")),
    reason="openai, fastapi or uvicorn is not installed: pip install 'moorline[dev]'",
)
SECRET = "sk-nobody-may-see-this"


def free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def serving(port):
    """`transformers serve` with the embedded model, until the block ends."""
    code = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    words = ["serve", embedded.aligned_path(), "--port", str(port), "--host", "127.0.0.1",
             "--device", "cpu", "--dtype", "float32"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield process
    finally:
        with_group(process, signal.SIGKILL)


def with_group(process, what):
    if process.poll() is None:
        os.killpg(process.pid, what)
        process.wait(30)


def wait_for(url, process):
    for _ in range(1200):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise AssertionError("the server did not begin")


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("suite") / "asked.jsonl"
    rows = [{"id": each.id, "prompt": each.prompt, "kind": each.kind}
            for of in embedded.suites()[:2] for each in of.prompts[:12]]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words(url, suite, output, *more):
    return ["audit", "--endpoint", url, "--model", embedded.aligned_path(), "--suite", str(suite),
            "--max-new-tokens", "24", "--output", str(output), *more]  # fmt: skip


def outcome_lines(folder):
    """The lines of `answers.jsonl`, which say all that was found."""
    return (folder / "answers.jsonl").read_text().splitlines()


def numbers(folder):
    return json.loads((folder / "audit.json").read_text())["measurements"]


@pytest.mark.slow
def test_a_served_model_killed_in_the_middle_gives_the_files_of_the_local_one(suite, tmp_path):
    local = ["audit", embedded.aligned_path(), "--suite", str(suite), "--max-new-tokens", "24",
             "--batch-size", "1", "--output", str(tmp_path / "local")]  # fmt: skip
    assert runner.invoke(app, local).exit_code == 0
    port = free_port()
    url, cut, whole = f"http://127.0.0.1:{port}/v1", tmp_path / "cut", tmp_path / "whole"
    with serving(port) as process:
        assert runner.invoke(app, words(url, suite, whole)).exit_code == 0
        # Killed once six answers are there: what is asked after that fails.
        endpoint = Endpoint(url=url, model=embedded.aligned_path(), concurrency=1, retries=0)
        settings = AuditSettings(max_new_tokens=24)

        def kill(done, total):
            if done == 6:
                with_group(process, signal.SIGKILL)

        from moorline.audit import read_suites

        found = audit_endpoint(endpoint, read_suites(suite), settings, folder=cut, progress=kill)
        found.save(cut)
    reasons = [json.loads(each) for each in outcome_lines(cut)]
    failed = [each for each in reasons if each["outcome"] == "unscored"]
    assert len(failed) == 18
    assert all(each["reason"].startswith("the server failed: ") for each in failed)
    assert not any(each["verdicts"] for each in failed)
    rates = {(each["kind"], each["metric"]): each for each in numbers(cut)}
    asked = sum(rates[kind, "unscored_rate"]["count"] for kind in ("harmful", "harmless"))
    assert asked == 18
    with serving(port):
        result = runner.invoke(app, words(url, suite, cut))
        assert result.exit_code == 0, result.stderr
        assert "18 requests" in result.stderr
    assert outcome_lines(cut) == outcome_lines(whole) == outcome_lines(tmp_path / "local")
    assert numbers(cut) == numbers(whole) == numbers(tmp_path / "local")


class Scripted(BaseHTTPRequestHandler):
    """A server that fails as real ones do; what it does is set by the test."""

    statuses: list[int] = []
    bodies: list[tuple[str | bytes, str]] = []
    """What it says in place of its own, with the type of each."""
    filtered = False
    seen: list[tuple[float, int]] = []
    lock = Lock()
    at_once = 0
    key_in_error = False

    def do_POST(self):
        cls = type(self)
        with cls.lock:
            cls.at_once += 1
            cls.seen.append((time.monotonic(), cls.at_once))
            status = cls.statuses.pop(0) if cls.statuses else 200
            own = cls.bodies.pop(0) if cls.bodies else None
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.02)
        message = {"role": "assistant", "content": "I'm sorry, but I can't help with that."}
        reason = "content_filter" if self.filtered else "stop"
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": reason}]}  # fmt: skip
        if status != 200:
            body = {"error": {"message": f"no: {self.headers['Authorization']}"}}
        text, type_ = own or (json.dumps(body), "application/json")
        text = text if isinstance(text, bytes) else text.encode()
        with cls.lock:
            cls.at_once -= 1
        self.send_response(status)
        self.send_header("Content-Type", type_)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *given):
        pass


@pytest.fixture
def scripted(monkeypatch):
    """A server of the test's own, for the failures that a real one shows only by chance."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    kind = type("Its", (Scripted,), {"statuses": [], "bodies": [], "seen": [], "lock": Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, daemon=True).start()
    yield kind, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_server_that_is_busy_is_asked_again_and_nothing_is_unscored(scripted, suite, tmp_path):
    kind, url = scripted
    kind.statuses = [429, 500, 503]
    result = runner.invoke(app, words(url, suite, tmp_path))
    assert result.exit_code == 0, result.stderr
    assert len(kind.seen) == 24 + 3
    assert not any(json.loads(each)["outcome"] == "unscored" for each in outcome_lines(tmp_path))


def test_without_retries_the_same_failures_are_unscored_and_asked_again(scripted, suite, tmp_path):
    kind, url = scripted
    kind.statuses = [500, 500, 400]
    first = runner.invoke(app, words(url, suite, tmp_path, "--retries", "0"))
    assert first.exit_code == 0
    assert "3 of 24 requests failed and are unscored" in first.stderr
    assert SECRET not in first.stderr + first.stdout + (tmp_path / "answers.jsonl").read_text()
    assert "***" in first.stderr
    again = runner.invoke(app, words(url, suite, tmp_path, "--retries", "0"))
    assert "3 requests" in again.stderr
    assert len(kind.seen) == 24 + 3
    assert not any(json.loads(each)["outcome"] == "unscored" for each in outcome_lines(tmp_path))


def test_what_a_filter_holds_back_is_no_refusal(scripted, suite, tmp_path):
    kind, url = scripted
    kind.filtered = True
    runner.invoke(app, words(url, suite, tmp_path, "--concurrency", "1"))
    found = [json.loads(each) for each in outcome_lines(tmp_path)]
    assert {each["outcome"] for each in found} == {"unscored"}
    assert len(kind.seen) == 24  # it answers, so the next prompt is asked


def test_a_server_that_is_gone_is_not_asked_all(scripted, suite, tmp_path):
    kind, url = scripted
    kind.statuses = [200] + [500] * 23
    runner.invoke(app, words(url, suite, tmp_path, "--concurrency", "1", "--retries", "0"))
    found = [json.loads(each) for each in outcome_lines(tmp_path)]
    assert [each["outcome"] for each in found].count("unscored") == 23
    assert 9 <= len(kind.seen) <= 11


@pytest.mark.lengthy
def test_a_server_that_never_answers_is_no_audit(scripted, suite, tmp_path):
    kind, url = scripted
    kind.statuses = [500] * 24
    asked = words(url, suite, tmp_path, "--concurrency", "1", "--retries", "0")
    refused(runner.invoke(app, asked), "answered none of 24 requests")
    assert 8 <= len(kind.seen) <= 10
    kind.statuses.clear()
    assert runner.invoke(app, asked).exit_code == 0
    assert not any(json.loads(each)["outcome"] == "unscored" for each in outcome_lines(tmp_path))


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "body",
    [
        "<html>busy</html>", "", '{"id": "x", "choices": [{"index": 0, "mess', '{"choices": "abc"}',
        '{"choices": [{"finish_reason": "stop", "message": null}]}', "[1]", b"{\"id\": \"\xff\"}",
        'data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n',
        '{"choices": [{"finish_reason": "stop", "message": {"content": 7}}]}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("type_", ["application/json", "text/html"])
def test_what_is_no_chat_completion_is_unscored(body, type_, scripted, suite, tmp_path):
    kind, url = scripted
    kind.bodies = [(body, type_)]
    result = runner.invoke(app, words(url, suite, tmp_path, "--retries", "0"))
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "1 of 24 requests failed and are unscored" in result.stderr
    assert runner.invoke(app, words(url, suite, tmp_path)).exit_code == 0
    assert not any(json.loads(each)["outcome"] == "unscored" for each in outcome_lines(tmp_path))


@pytest.mark.lengthy
def test_an_answer_in_parts_is_read(scripted, suite, tmp_path):
    kind, url = scripted
    parts = [{"type": "text", "text": "I'm sorry, "}, {"type": "text", "text": "I can't."}]
    message = {"role": "assistant", "content": parts}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    kind.bodies = [(json.dumps(body), "application/json")]
    runner.invoke(app, words(url, suite, tmp_path, "--concurrency", "1"))
    assert json.loads(outcome_lines(tmp_path)[0])["answer"] == "I'm sorry, I can't."


@pytest.mark.lengthy
@pytest.mark.parametrize("reason", ["length", "stop"])
def test_thoughts_without_an_answer_are_unscored_as_they_are_locally(
    reason, scripted, suite, tmp_path
):
    kind, url = scripted
    message = {"role": "assistant", "content": None, "reasoning_content": "The user wants"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": reason}]}
    kind.bodies = [(json.dumps(body), "application/json")] * 24
    runner.invoke(app, words(url, suite, tmp_path))
    found = [json.loads(each) for each in outcome_lines(tmp_path)]
    assert {each["outcome"] for each in found} == {"unscored"}
    assert all("its thoughts" in each["reason"] for each in found)


@pytest.mark.lengthy
@pytest.mark.parametrize("key", ["sk-with  two-spaces", "sk-" + "long" * 20])
@pytest.mark.parametrize("status", [200, 400])
def test_a_key_that_the_server_repeats_is_in_no_file(
    key, status, scripted, suite, tmp_path, monkeypatch
):
    kind, url = scripted
    monkeypatch.setenv("OPENAI_API_KEY", key)
    said = "x" * 270 + f" {key}"
    message = {"role": "assistant", "content": said}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "error": {"message": said}}  # fmt: skip
    kind.bodies, kind.statuses = [(json.dumps(body), "application/json")], [status]
    result = runner.invoke(app, words(url, suite, tmp_path, "--concurrency", "1"))
    assert result.exit_code == 0, result.output
    shown = result.output + result.stderr + "".join(outcome_lines(tmp_path))
    assert "xxx" in shown
    assert key[:6] not in shown


def test_a_key_that_can_be_none_is_refused(scripted, suite, tmp_path, monkeypatch):
    _, url = scripted
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u043a\u043b\u044e\u0447")
    refused(runner.invoke(app, words(url, suite, tmp_path)), "OPENAI_API_KEY")


@pytest.mark.lengthy
@pytest.mark.parametrize(("status", "says"), [(401, "OPENAI_API_KEY"), (404, "--model")])
def test_a_wrong_key_or_name_ends_the_audit_in_one_line(scripted, suite, tmp_path, status, says):
    kind, url = scripted
    kind.statuses = [status] * 40
    result = runner.invoke(app, words(url, suite, tmp_path))
    refused(result, says)
    assert SECRET not in result.stderr
    assert len(kind.seen) < 24


@pytest.mark.lengthy
def test_concurrency_and_pace_are_kept(scripted, suite, tmp_path):
    kind, url = scripted
    runner.invoke(app, words(url, suite, tmp_path / "a", "--concurrency", "3"))
    assert 1 < max(num for _, num in kind.seen) <= 3
    kind.seen.clear()
    runner.invoke(app, words(url, suite, tmp_path / "b", "--requests-per-minute", "1200"))
    took = kind.seen[-1][0] - kind.seen[0][0]
    assert took >= 23 * 0.05 * 0.9


def test_the_cost_is_told_and_a_dry_run_asks_nothing(scripted, suite, tmp_path):
    kind, url = scripted
    result = runner.invoke(app, words(url, suite, tmp_path / "out", "--dry-run"))
    assert result.exit_code == 0
    assert "24 requests" in result.stdout
    assert f"at most {24 * 24} tokens of answers" in result.stdout
    assert not kind.seen
    assert not (tmp_path / "out").exists()
    told = runner.invoke(app, words(url, suite, tmp_path / "out"))
    assert "24 requests" in told.stderr
    result = runner.invoke(app, words(url, suite, tmp_path / "out", "--dry-run"))
    assert "0 requests" in result.stdout


@pytest.mark.lengthy
def test_the_key_is_in_no_file(scripted, suite, tmp_path):
    _, url = scripted
    runner.invoke(app, words(url, suite, tmp_path))
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert files
    assert not any(SECRET in each.read_text() for each in files)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--condition", "prefill"), "begins the model's answer"),
        (("--judge", "keywords", "--judge", "refusal_mass"), "probabilities"),
        (("--dtype", "bfloat16"), "`dtype` needs the weights"),
    ],
)
def test_what_a_server_cannot_do_is_refused(suite, tmp_path, more, says):
    refused(runner.invoke(app, words("http://127.0.0.1:9/v1", suite, tmp_path, *more)), says)


def test_an_address_with_a_password_is_refused():
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        Endpoint(url="http://me:secret@host/v1", model="m")
    with pytest.raises(InputError, match="address such as"):
        Endpoint(url="host:8000", model="m")


def test_a_model_is_given_once(suite):
    refused(runner.invoke(app, ["audit", "--suite", str(suite)]), "`model` must be given once")
