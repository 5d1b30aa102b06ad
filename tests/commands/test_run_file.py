"""`run.json`: what steers a run, who may write into a folder, and files of every wrong shape."""

import json
import os
import socket
import subprocess
import sys

import pytest

from moorline import InputError
from moorline.commands.lineage import lineage_of
from moorline.commands.run_file import Run, is_idle, locked
from moorline.errors import PrerequisiteError

LINK = {"output_dir": "/out", "fingerprint": "f", "dataset": None, "tokens": "t",
        "reference": "adapter_off", "steps": 3}  # fmt: skip
WHOLE = {
    "schema": 2, "status": "finished", "model": "m", "weights_from": "/m",
    "base": {"name": "/m", "weights": "w"}, "chain": [LINK], "reference": "adapter_off",
    "fingerprint": "f", "safety_tokens": {"num": 1}, "settings": {}, "versions": {}, "machine": {},
    "started": "2026-01-01T00:00:00+00:00", "finished": None, "seconds": 1,
    "training_seconds": 0.5, "peak_memory_bytes": 7, "peak_memory_of": "process", "steps": 3,
    "train_loss": 0.5, "log": [{"step": 1}], "check": None, "refused_rows": None,
}  # fmt: skip


def folder_with(tmp_path, values):
    text = values if isinstance(values, str) else json.dumps(values)
    (tmp_path / "run.json").write_text(text)
    return tmp_path


def test_a_run_comes_back_as_it_was_written(tmp_path):
    run = Run.read(folder_with(tmp_path, WHOLE))
    run.write(tmp_path)
    found = json.loads((tmp_path / "run.json").read_text())
    assert found == WHOLE | {"weights": None}, "which an earlier version did not have"
    assert Run.read(tmp_path) == run
    assert lineage_of(str(tmp_path)).base == "/m", "the control: whole, it is taken"


@pytest.mark.parametrize(("changes", "words"), [
    ({"base": {}}, "lacks 'base.name'"),
    ({"base": None}, "'base' holds null"),
    ({"base": {"name": "/m"}}, "lacks 'base.weights'"),
    ({"base": {"name": 3, "weights": "w"}}, "'base.name' holds 3"),
    ({"chain": []}, "'chain' holds"),
    ({"chain": [{}]}, r"lacks 'chain\[0\]\.output_dir'"),
    ({"chain": [1]}, r"'chain\[0\]' holds 1"),
    ({"chain": {"a": 1}}, "'chain' holds"),
    ({"status": None}, "'status' holds null"),
    ({"status": "done"}, "'status' holds \"done\", must be 'running', 'stopped' or 'finished'"),
    ({"settings": 3}, "'settings' holds 3"),
    ({"log": 3}, "'log' holds 3"),
    ({"schema": 1}, "written by another version of Moorline .schema 1, this one reads 2"),
])  # fmt: skip
def test_a_run_file_of_a_wrong_shape_is_refused_by_name(changes, words, tmp_path):
    """Such files used to end in KeyError, IndexError or TypeError."""
    with pytest.raises(InputError, match=words):
        lineage_of(str(folder_with(tmp_path, {**WHOLE, **changes})))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", "[]", "\ufeff"])
def test_a_run_file_that_is_none_is_refused(text, tmp_path):
    with pytest.raises(InputError, match=r"run\.json"):
        lineage_of(str(folder_with(tmp_path, text)))


@pytest.mark.parametrize("base", [None, "", 3])
def test_an_adapter_without_a_base_is_refused(base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(InputError, match="names no base model"):
        lineage_of(str(tmp_path))


def test_an_adapter_of_another_tool_says_what_it_is_held_to(tmp_path, caplog):
    """It was held to its base without a word, also where the adapter was what aligned it."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    assert lineage_of(str(tmp_path)).base == "org/base"
    assert "nothing says which model was aligned; taken for it is org/base" in caplog.text


def test_an_adapter_whose_base_was_named_from_another_folder_finds_it(tmp_path):
    """PEFT keeps the path as it was typed; run.json has it whole."""
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "models/base"}')
    folder_with(tmp_path, {**WHOLE, "weights_from": "/whole/models/base"})
    assert lineage_of(str(tmp_path)).model == "/whole/models/base"


@pytest.mark.parametrize("name", [
    "learning_rate", "truncation_mode", "chat_template_path", "packing_strategy", "data_seed",
    "neftune_noise_alpha", "label_smoothing_factor", "max_grad_norm", "shuffle_dataset",
    "eos_token", "adam_beta1", "str_weight", "str_plain_text", "lora_r", "a_setting_to_come",
])  # fmt: skip
def test_what_steers_the_training_makes_another_run(name):
    """Many settings were left out, so a resume with others was taken for the same run."""
    assert not is_idle(name)


@pytest.mark.parametrize("name", ["output_dir", "logging_steps", "report_to", "save_total_limit"])
def test_what_changes_nothing_learned_does_not(name):
    assert is_idle(name)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder, as a tuning does."""
    code = (
        "import pathlib, sys, time; from moorline.commands.run_file import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.lengthy
def test_a_folder_in_which_a_tuning_runs_is_refused(holder, tmp_path):
    """Two runs used to write into one folder until the first had a checkpoint."""
    owner = f"process {holder.pid} on {socket.gethostname()}"
    for _ in range(2):  # being refused takes nothing from the owner
        with (
            pytest.raises(InputError, match=f"another tuning runs in it .{owner}"),
            locked(tmp_path),
        ):
            pass
    assert (tmp_path / ".tuning.lock").is_file()


@pytest.mark.lengthy
def test_a_lock_of_a_process_that_was_killed_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait()
    lock = tmp_path / ".tuning.lock"
    assert lock.is_file(), "it had no chance to remove it"
    for text in (lock.read_text(), "", "1\nanother-machine\n"):
        lock.write_text(text)
        with locked(tmp_path):
            assert lock.read_text().split()[0] == str(os.getpid())
        assert not lock.exists()


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a" / "b").exists()
    with locked(tmp_path / "kept"):
        (tmp_path / "kept" / "file").write_text("")
    assert (tmp_path / "kept" / "file").is_file()


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file. Give a folder"), locked(tmp_path / "file"):
        pass
    with (
        pytest.raises(PrerequisiteError, match="cannot be written"),
        locked(tmp_path / "file" / "x"),
    ):
        pass
