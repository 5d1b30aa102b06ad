"""Versions, machine, hashes, and files that are written whole or not at all."""

import hashlib
import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorline import provenance
from moorline.errors import InputError
from moorline.provenance import (
    fingerprint,
    machine,
    now,
    read_json,
    sha256_of,
    versions,
    write_json,
    write_text,
)


def _refuse(*_args, **_kwargs):
    raise OSError("no space left on device")


def _interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def _break(monkeypatch, place, how):
    """Make one step of the writing fail."""
    if place == "write":

        class Stream:
            def __init__(self, handle, *_args, **_kwargs):
                self._handle = handle

            def __enter__(self):
                return self

            def __exit__(self, *_):
                os.close(self._handle)

            def writelines(self, lines):
                self.write("".join(lines))

            def write(self, text):
                os.write(self._handle, text[: len(text) // 2].encode())
                how()

        monkeypatch.setattr(provenance.os, "fdopen", Stream)
    else:
        monkeypatch.setattr(provenance.os, place, how)


def test_a_written_text_is_read_back_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "note.txt"
    write_text(path, "old")
    write_text(path, "n\u00e9w\r\n\u2603\n")
    assert path.read_bytes() == "n\u00e9w\r\n\u2603\n".encode()
    assert os.listdir(tmp_path) == ["note.txt"]


@pytest.mark.parametrize("how", [_refuse, _interrupt])
@pytest.mark.parametrize("place", ["write", "fsync", "chmod", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, place, how):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with monkeypatch.context() as patch:
        _break(patch, place, how)
        with pytest.raises((OSError, KeyboardInterrupt)):
            write_text(path, "new text")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]
    write_text(path, "new text")  # the control: the same call without the fault
    assert path.read_text() == "new text"


@pytest.mark.parametrize("place", ["write", "fsync", "chmod", "replace"])
def test_a_failed_first_write_leaves_no_file_at_all(tmp_path, monkeypatch, place):
    _break(monkeypatch, place, _refuse)
    with pytest.raises(OSError, match="no space left"):
        write_text(tmp_path / "note.txt", "new text")
    assert os.listdir(tmp_path) == []


def test_a_text_that_has_no_utf8_form_leaves_the_old_file(tmp_path):
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800 a pair")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_folders_on_the_way_are_made(tmp_path):
    write_text(str(tmp_path / "a" / "b" / "note.txt"), "text")
    assert (tmp_path / "a" / "b" / "note.txt").read_text() == "text"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_are_those_that_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "note.txt", "text")
        assert os.umask(umask) == umask  # and the umask itself is as it was
    finally:
        os.umask(before)
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_json_refuses_what_is_no_number_and_keeps_the_old_file(tmp_path, bad):
    path = tmp_path / "value.json"
    write_json(path, {"rate": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"rate": 0.5, "deep": [{"rate": bad}]})
    assert read_json(path, "report") == {"rate": 0.5}
    assert os.listdir(tmp_path) == ["value.json"]


def test_json_comes_back_equal_and_keeps_its_letters(tmp_path):
    value = {
        "word": "\u2581d\u00e9sol\u00e9",
        "rate": 0.1 + 0.2,
        "none": None,
        "list": [1, 2.5, True],
    }
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json", "report") == value
    assert "d\u00e9sol\u00e9" in (tmp_path / "value.json").read_text(encoding="utf-8")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: no such report\. Check the path\."):
        read_json(tmp_path / "gone.json", "report")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(InputError, match="no such safety-token file"):
        read_json(tmp_path, "safety-token file")


@pytest.mark.parametrize("damaged", [b'{"a": 1', b"", b"\xff\xfe\x00", b"hello"])
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path, damaged):
    path = tmp_path / "value.json"
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"value\.json: not a report: .+\. Write it again\."):
        read_json(path, "report")


@pytest.mark.parametrize(
    ("value", "kind"), [([1], "list"), ("text", "str"), (3, "int"), (None, "NoneType")]
)
def test_json_that_is_no_object_is_refused(tmp_path, value, kind):
    path = tmp_path / "value.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=rf"a report holds a JSON object, got {kind}\."):
        read_json(path, "report")


# 1048576 bytes are read at a time: one below, at and above the border.
@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_of_a_file_is_the_hash_of_its_bytes(tmp_path, size):
    content = b"\x07" * size
    (tmp_path / "file").write_bytes(content)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


# No zero bytes inside: they end a string, so they cannot be told from a border.
_STRINGS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=4))


@settings(deadline=None, derandomize=True)
@given(first=_STRINGS, second=_STRINGS)
def test_two_lists_have_one_fingerprint_exactly_if_they_are_equal(first, second):
    assert (fingerprint(first) == fingerprint(second)) == (first == second)
    assert fingerprint(first) == fingerprint(iter(list(first)))


@pytest.mark.parametrize(
    ("first", "second"),
    [(["ab", "c"], ["a", "bc"]), (["a", "b"], ["b", "a"]), (["a"], ["a", ""]), ([], [""])],
)
def test_borders_order_and_empty_strings_count_in_a_fingerprint(first, second):
    assert fingerprint(first) != fingerprint(second)


def test_half_a_surrogate_pair_has_a_fingerprint_of_its_own():
    assert fingerprint(["\ud800"]) != fingerprint(["\ufffd"])


def test_versions_are_those_installed():
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["transformers"] == importlib.metadata.version("transformers")


def test_a_package_that_is_not_installed_is_absent_from_the_versions(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "trl":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = versions()
    assert "trl" not in found
    assert "torch" in found


def test_the_machine_is_told_without_names_of_people_or_hosts(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setenv("USER", "secret-user")
    found = machine()
    assert found.keys() == {"system", "processor", "cores", "memory_bytes"}
    assert "secret" not in json.dumps(found)
    assert found["cores"] >= 1
    assert found["memory_bytes"] is None or found["memory_bytes"] > 1 << 20


def test_a_system_without_memory_figures_says_none(monkeypatch):
    monkeypatch.setattr(provenance.os, "sysconf_names", {})
    assert machine()["memory_bytes"] is None


def test_now_is_the_present_moment_in_utc_to_the_second():
    moment = datetime.fromisoformat(now())
    assert moment.tzinfo is not None
    assert moment.utcoffset() == timedelta(0)
    assert moment.microsecond == 0
    # a minute: a busy machine may stop between the two clocks
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
