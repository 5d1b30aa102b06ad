"""`moorline tune`: the same job from every kind of data, and every wrong input met at the door."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from helpers import TEMPLATE, conversations, refused, tune
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from moorline import SafetyTokens
from moorline.commands.cli import app
from moorline.commands.tune import _fingerprint
from moorline.commands.tune_settings import parse
from moorline.method.safety_tokens import tokenizer_fingerprint

runner = CliRunner()


@pytest.mark.lengthy
def test_lora_writes_adapter_tokens_and_run(flags, tmp_path):
    result = tune(flags)
    assert result.exit_code == 0, result.output + repr(result.exception)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "finished"
    assert run["reference"] == "adapter_off"
    assert run["steps"] == 2
    assert run["settings"]["str_weight"] > 0
    assert all("str/drift" in entry for entry in run["log"] if "loss" in entry)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()
    assert len(SafetyTokens.load(tmp_path / "run" / "safety_tokens.json")) == 5


@pytest.mark.lengthy
def test_full_fine_tuning_writes_a_model_and_uses_a_frozen_copy(flags, tmp_path):
    result = tune({**flags, "use_peft": False})
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["reference"] == "frozen_copy"
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    AutoTokenizer.from_pretrained(tmp_path / "run")


@pytest.mark.lengthy
def test_the_cost_of_each_of_two_runs_in_one_process_is_told(flags, tmp_path):
    """A comparison needs it; the second run does not inherit the peak of the first."""
    filler = bytearray(1 << 30)
    filler[::4096] = b"1" * (1 << 18)
    costs = {}
    for name in ("large", "small"):
        assert tune({**flags, "output_dir": tmp_path / name}).exit_code == 0
        costs[name] = json.loads((tmp_path / name / "run.json").read_text())
        filler = b""
    for cost in costs.values():
        assert 0 < cost["training_seconds"] <= cost["seconds"]
        assert cost["peak_memory_of"] == ("cuda" if torch.cuda.is_available() else "process")
        assert cost["peak_memory_bytes"] > 0
    if sys.platform == "linux" and not torch.cuda.is_available():
        gone = costs["large"]["peak_memory_bytes"] - costs["small"]["peak_memory_bytes"]
        assert gone > 0.9 * (1 << 30)


@pytest.mark.lengthy
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(flags, tmp_path):
    """It used to finish, with weights that were no numbers."""
    wild = {"learning_rate": 1e30, "max_steps": 4, "lr_scheduler_type": "constant"}
    keeps = {"save_strategy": "steps", "save_steps": 1, "logging_nan_inf_filter": False}
    result = tune({**flags, **wild, **keeps, "use_peft": False})
    refused(result, "Step 2: a safety logit of the model in training is NaN or infinite")
    assert "checkpoint-1 is kept" in result.stderr
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["status"], run["steps"]) == ("stopped", 1)
    assert [each.name for each in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]


def first_turns(num=8):
    return [
        (row["messages"][0]["content"], row["messages"][1]["content"]) for row in conversations(num)
    ]


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.lengthy
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_prompt_and_completion_in_every_kind_of_file(suffix, flags, tmp_path):
    path = tmp_path / f"pairs{suffix}"
    write_rows(path, [{"prompt": left, "completion": right} for left, right in first_turns()])
    result = tune({**flags, "dataset_name": path, "max_steps": 1})
    assert result.exit_code == 0, result.output + repr(result.exception)


@pytest.mark.lengthy
def test_a_prompt_and_a_completion_of_messages_are_trained_on_as_one_conversation(flags, tmp_path):
    rows = [row["messages"] for row in conversations(8)]
    write_rows(
        tmp_path / "pairs.jsonl", [{"prompt": each[:1], "completion": each[1:]} for each in rows]
    )
    write_rows(tmp_path / "whole.jsonl", [{"messages": each} for each in rows])
    losses = []
    for name in ("pairs", "whole"):
        changes = {"dataset_name": tmp_path / f"{name}.jsonl", "output_dir": tmp_path / name}
        result = tune({**flags, **changes})
        assert result.exit_code == 0, result.output + repr(result.exception)
        losses.append(json.loads((tmp_path / name / "run.json").read_text())["train_loss"])
    assert losses[0] == losses[1]


@pytest.mark.lengthy
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_plain_text_is_trained_on_whole_and_says_so(suffix, flags, tmp_path, caplog):
    path = tmp_path / f"text{suffix}"
    write_rows(path, [{"text": f"{left} {right}"} for left, right in first_turns()])
    result = tune({**flags, "dataset_name": path, "max_steps": 1})
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "every token counts as a response" in caplog.text


@pytest.mark.lengthy
def test_many_turns_and_a_template_without_markers(flags, tmp_path, tokenizer):
    """The same drift and loss as with markers, which change nothing."""
    path = tmp_path / "turns.jsonl"
    write_rows(path, list(conversations(8, turns=3)))
    with_markers = tune({**flags, "dataset_name": path})
    plain = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    other = AutoTokenizer.from_pretrained(flags["model_name_or_path"])
    other.chat_template = plain
    other.save_pretrained(flags["model_name_or_path"])
    without = tune({**flags, "dataset_name": path, "output_dir": tmp_path / "run2"})
    assert with_markers.exit_code == without.exit_code == 0, without.output
    logs = [
        [entry["loss"] for entry in json.loads((tmp_path / run / "run.json").read_text())["log"]
         if "loss" in entry]
        for run in ("run", "run2")
    ]  # fmt: skip
    assert logs[0] == logs[1]


@pytest.mark.lengthy
def test_yaml_and_flags_together_and_flags_win(flags, tmp_path):
    path = tmp_path / "run.yaml"
    values = {key: value if isinstance(value, bool | int | float) else str(value)
              for key, value in flags.items()}  # fmt: skip
    path.write_text(yaml.safe_dump({**values, "str_weight": 0.25, "seed": 7}))
    result = runner.invoke(app, ["tune", "--config", str(path), "--str_weight", "0.5"])
    assert result.exit_code == 0, result.output + repr(result.exception)
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["str_weight"] == 0.5
    assert settings["seed"] == 7


@pytest.mark.lengthy
def test_json_prints_one_object_and_nothing_else(flags):
    result = tune(flags, "--json")
    assert json.loads(result.stdout)["status"] == "finished"


@pytest.mark.lengthy
@pytest.mark.parametrize("torn", [False, True])
def test_a_stopped_run_resumes_to_the_same_weights(torn, flags, tmp_path):
    whole = {**flags, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    assert tune(whole).exit_code == 0
    stopped = {**whole, "output_dir": tmp_path / "again"}
    assert tune(stopped).exit_code == 0
    run = json.loads((tmp_path / "again" / "run.json").read_text())
    (tmp_path / "again" / "run.json").write_text(json.dumps({**run, "status": "running"}))
    for path in (tmp_path / "again").glob("checkpoint-4/*"):
        path.unlink()
    (tmp_path / "again" / "checkpoint-4").rmdir()
    if torn:  # killed while it was written: it would not load, and used to be resumed from
        (tmp_path / "again" / "checkpoint-4").mkdir()
        (tmp_path / "again" / "checkpoint-4" / "adapter_config.json").write_text("{")
    result = tune(stopped, "--resume_from_checkpoint=true")
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert ("checkpoint-4 was not written to its end" in result.stderr) == torn
    first = load_file(tmp_path / "run" / "adapter_model.safetensors")
    second = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there the host waits for the other one")
def test_processes_that_would_each_train_alone_are_refused(flags, monkeypatch):
    """Two under torchrun without a GPU trained two copies into one folder, without a word."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    # with `use_cpu` the host would wait for the other one
    refused(tune({**flags, "use_cpu": None}), "2 processes were started", "--use_cpu true")


def test_a_folder_of_other_rows_is_other_data(flags, tmp_path):
    """A file was known by what it holds, a folder by its name alone."""
    found, folder = [], tmp_path / "rows"
    folder.mkdir()
    for text in ("one", "two", "one"):
        (folder / "a.jsonl").write_text(json.dumps({"text": text}) + "\n")
        settings = parse([f"--{k}={v}" for k, v in {**flags, "dataset_name": folder}.items()])
        found.append(_fingerprint(settings, settings.plain()))
    assert found[0] == found[2] != found[1]


@pytest.mark.lengthy
@pytest.mark.parametrize("swapped", [None, "model", "reference"])
def test_a_run_does_not_go_on_with_other_weights(swapped, flags, tmp_path):
    """It did, without a word, and its record claimed the second reference for the whole run."""
    folders = {"model": Path(flags["model_name_or_path"]), "reference": tmp_path / "reference"}
    shutil.copytree(folders["model"], folders["reference"])
    stopped = {
        **flags, "max_steps": 2, "save_strategy": "steps", "save_steps": 1,
        "str_reference_model": folders["reference"],
    }  # fmt: skip
    assert tune(stopped).exit_code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    if swapped:
        path = folders[swapped] / "model.safetensors"
        weights = load_file(path)
        save_file({k: v * 1.01 for k, v in weights.items()}, path, metadata={"format": "pt"})
    result = tune(stopped, "--resume_from_checkpoint=true")
    if swapped:
        refused(result, str(folders[swapped]), "other weights than when the run")
    else:
        assert result.exit_code == 0, result.output + repr(result.exception)


def test_a_run_is_another_with_other_anchors(flags, tmp_path):
    """Cut from 81 prompts to 12 while a run was stopped, they were taken without a word."""
    found, path = [], tmp_path / "anchors.jsonl"
    for prompts in ("one", "two", "one"):
        path.write_text(json.dumps({"prompt": prompts}) + "\n")
        settings = parse([f"--{k}={v}" for k, v in {**flags, "str_anchors": path}.items()])
        found.append(_fingerprint(settings, settings.plain()))
    assert found[0] == found[2] != found[1]


def test_mines_when_no_tokens_are_given_and_refuses_a_model_that_does_not_refuse(flags, tmp_path):
    refused(tune({**flags, "str_tokens": None}), "rejection templates", "does not refuse")
    assert not (tmp_path / "run").exists()


WRONG_ROWS = {
    "a row without the column": (
        ['{"prompt": "a", "completion": "b"}', '{"prompt": "a"}'],
        ("line 2", "no field 'completion'", "fields: 'prompt'"),
    ),
    "no known columns": (['{"question": "a"}'], ("line 1", "no field 'messages'", "'question'")),
    "not JSON": (
        ['{"text": "a"}', "", '{"text": '],
        ("line 3", "column 10", "not JSON"),
    ),
    "a message without role": (
        ['{"messages": [{"content": "a"}]}'],
        ("line 1", "'messages' must be a list of messages with 'role' and 'content'"),
    ),
    "no assistant": (
        ['{"messages": [{"role": "user", "content": "a"}]}'],
        ("line 1", "no message of role 'assistant'"),
    ),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows_are_refused_with_file_and_line(case, flags, tmp_path):
    lines, words = WRONG_ROWS[case]
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(lines) + "\n")
    refused(tune({**flags, "dataset_name": path}), "wrong.jsonl", *words)
    assert not (tmp_path / "run").exists()


def test_missing_and_empty_data_files_are_refused(flags, tmp_path):
    refused(tune({**flags, "dataset_name": tmp_path / "no.jsonl"}), "no.jsonl", "no such data file")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    refused(tune({**flags, "dataset_name": empty}), "empty.jsonl", "no rows")
    refused(tune({**flags, "dataset_name": None}), "`dataset_name` is missing")
    refused(tune({**flags, "dataset_name": "nobody/nothing"}), "nobody/nothing", "no such data set")


def test_wrong_model_folders_are_refused(flags, tmp_path):
    refused(
        tune({**flags, "model_name_or_path": tmp_path / "no"}),
        "no such model folder",
        "Check the path",
    )
    folder = flags["model_name_or_path"]
    (folder / "chat_template.jinja").unlink()
    refused(tune(flags), "no chat template", "Use the chat version")
    (folder / "model.safetensors").unlink()
    refused(tune(flags), "no weights", "*.safetensors")
    (folder / "config.json").unlink()
    refused(tune(flags), "no config.json")
    refused(tune({**flags, "model_name_or_path": None}), "`model_name_or_path` is missing")
    assert not (tmp_path / "run").exists()


def rewritten(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_safety_tokens_that_do_not_fit_are_refused(flags, tokens_file, tmp_path):
    rewritten(tokens_file, tokenizer_fingerprint="0" * 64)
    refused(tune(flags), "mined with another tokenizer", "Mine again")
    rewritten(tokens_file, vocab_size=500)
    refused(tune(flags), "has 96 vocabulary entries", "with 500", "Mine again")
    rewritten(tokens_file, ids=[], strings=[], scores=[])
    refused(tune(flags), "empty set", "unprotected")
    refused(tune({**flags, "str_tokens": tmp_path / "no.json"}), "no such safety-token file")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("weight", ["-1", "nan", "inf"])
def test_weights_out_of_range_are_refused(weight, flags):
    refused(
        tune({**flags, "str_weight": weight}), "`str_weight` must be a number of 0 or more", weight
    )


def test_unknown_names_are_refused_with_the_nearest(flags, tmp_path):
    refused(tune({**flags, "str_form": "logits"}), "`str_form`", "Did you mean 'logit'?")
    refused(tune({**flags, "str_reference": "adapter"}), "str_reference")
    refused(tune({**flags, "str_wieght": 1}), "Unknown flag", "--str_weight")
    path = tmp_path / "run.yaml"
    path.write_text("lerning_rate: 1\n")
    refused(
        runner.invoke(app, ["tune", "--config", str(path)]), "'lerning_rate'", "'learning_rate'"
    )
    path.write_text("a: [1\n")
    refused(runner.invoke(app, ["tune", "--config", str(path)]), "not YAML", "line 2")
    refused(runner.invoke(app, ["tune", "--config", "no.yaml"]), "no.yaml", "no such settings file")


@pytest.mark.lengthy
def test_a_folder_with_another_run_is_refused_and_left_as_it_is(flags, tmp_path):
    assert tune(flags).exit_code == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    refused(tune({**flags, "seed": 5}), "`output_dir`", "holds another run", "another folder")
    refused(tune(flags), "holds this run already", "--resume_from_checkpoint true")
    refused(tune(flags, "--resume_from_checkpoint=true"), "holds no whole checkpoint")
    refused(tune(flags, "--resume_from_checkpoint=nowhere"), "no such checkpoint")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_an_adapter_on_the_head_is_refused(flags):
    result = tune(
        {**flags, "lora_target_modules": None}, "--lora_target_modules", "lm_head", "q_proj"
    )
    refused(result, "lm_head", "target_modules")


@pytest.mark.lengthy
def test_a_run_that_stopped_before_its_first_checkpoint_starts_anew(flags, tmp_path):
    assert tune(flags).exit_code == 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**run, "status": "running"}))
    result = tune(flags)
    assert result.exit_code == 0, result.output + repr(result.exception)
    refused(tune(flags), "holds this run already")
    refused(tune({**flags, "str_positions": "first:2"}), "holds another run")


def test_a_reference_that_is_not_there_is_refused(flags):
    refused(tune({**flags, "str_reference_model": "/no/such/model"}), "no such model folder")


def without(flags, *names):
    return {name: value for name, value in flags.items() if name not in names}


@pytest.mark.lengthy
def test_it_says_what_it_does_and_what_to_do_next_and_nothing_else(flags, tmp_path):
    """Libraries' warnings, bars and dictionaries used to be all that was seen."""
    result = tune(without(flags, "bf16", "learning_rate"))
    assert result.exit_code == 0, result.output + repr(result.exception)
    lines = result.stderr.splitlines()
    assert lines[0] == "Reading the settings."
    for words in ("Reading the data: ", "Loading the model: ", "Training on 12 rows in float32, "
                  "learning rate 0.0002; held to "):  # fmt: skip
        assert any(words in line for line in lines), (words, lines)
    assert "Warning" not in result.stderr
    assert "{'" not in result.output
    assert "Loading weights" not in result.output
    for words in (
        "Written to",
        "5 tokens held",
        "Task loss",
        "moorline audit",
        "moorline merge",
        "serve",
    ):
        assert words in result.stdout
    assert "went from" in result.stderr, "two steps teach nothing, and that is said"
    assert "None" not in (tmp_path / "run" / "README.md").read_text().split("## Quick")[0]


@pytest.mark.lengthy
def test_the_end_says_how_much_was_not_learned(flags, tokenizer, tmp_path):
    """With half of the vocabulary as safety tokens a random model "refuses" some of the rows."""
    ids = tuple(range(6, len(tokenizer), 2))
    SafetyTokens(
        ids=ids, strings=tuple(tokenizer.decode([each]) for each in ids),
        scores=(1.0,) * len(ids), vocab_size=len(tokenizer),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
    ).save(tmp_path / "half.json")  # fmt: skip
    flags |= {"str_tokens": tmp_path / "half.json", "str_form": "kl"}
    found = tune(flags)
    assert found.exit_code == 0, found.output
    log = json.loads((tmp_path / "run" / "run.json").read_text())["log"]
    shares = [each["str/skipped"] for each in log if "str/skipped" in each]
    assert any(shares)
    told = f"{100 * sum(shares) / len(shares):.1f} % of the response tokens were not learned"
    assert told in found.output
    learned = tune({**flags, "str_conflicts": "learn", "output_dir": tmp_path / "learned"})
    assert "not learned" not in learned.output


@pytest.mark.lengthy
def test_nothing_is_warned_of_where_the_task_is_learned(flags):
    result = tune({**flags, "max_steps": 30, "learning_rate": 0.02, "str_weight": 0})
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert "hardly learned" not in result.stderr
    assert "nothing had to be held" not in result.stderr


def test_settings_of_an_adapter_without_one_are_refused(flags, tmp_path):
    """They used to be ignored: every weight was trained, exit code 0."""
    refused(tune(without(flags, "use_peft", "lora_target_modules", "lora_dropout")),
            "`lora_r` is set but `use_peft` is not", "--use_peft")  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.lengthy
def test_a_folder_is_refused_before_anything_is_loaded(flags, monkeypatch):
    """A second tuning used to load the model and mine before it was refused."""
    assert tune(flags).exit_code == 0
    monkeypatch.setattr("moorline.commands.tune.read_training_data", lambda *_: 1 / 0)
    refused(tune(flags), "holds this run already")
    refused(tune({**flags, "seed": 5}), "holds another run", "different: seed")


@pytest.mark.lengthy
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError, OSError(28, "No space")])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_run_that_is_stopped_says_so_and_how_to_resume(
    error, checkpoints, flags, tmp_path, monkeypatch
):
    """run.json used to say "running" for ever."""
    from moorline import STRTrainer

    given = {**flags, "save_strategy": "steps", "save_steps": 1} if checkpoints else flags

    def interrupt(self, *args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        if checkpoints:
            patch.setattr(STRTrainer, "_maybe_log_save_evaluate", after_first_save(interrupt))
        else:
            patch.setattr(STRTrainer, "training_step", interrupt)
        result = tune(given)
    assert result.exit_code != 0
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["status"] == "stopped"
    assert ("--resume_from_checkpoint true" if checkpoints else "begins anew") in result.stderr
    assert not (tmp_path / "run" / ".tuning.lock").exists()
    if isinstance(error, OSError):
        refused(result, "A file cannot be written", "Make room")
    if not checkpoints:
        monkeypatch.undo()
        again = tune(given)
        assert again.exit_code == 0, again.output + repr(again.exception)


def after_first_save(interrupt):
    from moorline import STRTrainer

    whole = STRTrainer._maybe_log_save_evaluate

    def save_once(self, *args, **kwargs):
        whole(self, *args, **kwargs)
        interrupt(self)

    return save_once


def test_damaged_weights_are_named(flags):
    path = flags["model_name_or_path"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refused(tune(flags), "model.safetensors: damaged weights", "Download the file again")


@pytest.mark.parametrize(("flag", "value", "words"), [
    ("load_in_4bit", True, "bitsandbytes"),
    ("attn_implementation", "flash_attention_2", "lash"),
    ("report_to", "wandb", "wandb"),
    ("use_liger_kernel", True, "iger"),
])  # fmt: skip
def test_a_package_that_is_missing_is_said_in_one_line(flag, value, words, flags):
    refused(tune({**flags, flag: value}), words)


def test_a_cache_that_cannot_be_written_is_said_in_one_line(flags):
    given = {**flags, "str_reference": "cached", "str_cache_dir": "/proc/nowhere"}
    refused(tune(given), "A file cannot be written", "/proc/nowhere")


@pytest.mark.lengthy
def test_the_first_and_the_last_step_are_in_the_log(flags, tmp_path):
    """A short run had no last figure, so that nobody saw whether the task was learned."""
    assert tune({**flags, "logging_steps": 10, "max_steps": 3}).exit_code == 0
    log = json.loads((tmp_path / "run" / "run.json").read_text())["log"]
    assert [entry["step"] for entry in log if "ce_loss" in entry] == [1, 3]


def test_an_output_that_is_a_file_is_refused(flags, tmp_path):
    (tmp_path / "file").write_text("")
    refused(tune({**flags, "output_dir": tmp_path / "file"}), "is a file")
    refused(tune({**flags, "output_dir": tmp_path / "file" / "x"}), "cannot be written")


def test_help_is_short_and_true(flags):
    """Ours stood at line 656 of 744."""
    from moorline.commands.tune_method import MethodConfig
    from moorline.commands.tune_settings import HELP
    from moorline.trainer import STRConfig, make_parser

    shown = runner.invoke(app, ["tune", "--help"]).stdout
    assert shown == HELP
    actions = {f"--{action.dest}": action for action in make_parser(MethodConfig)._actions}
    named = {word.strip("[],;") for word in HELP.split() if word.startswith("--")}
    unknown = named - set(actions) - {"--config", "--NAME", "--json", "--dry-run", "--help-all"}
    assert not {each for each in unknown if not each.startswith("--help")}
    assert {name for name in actions if name.startswith(("--str_", "--method"))} <= named
    assert actions["--lora_r"].default == 16
    assert actions["--lora_alpha"].default == 32
    assert actions["--max_length"].default == 1024
    assert actions["--per_device_train_batch_size"].default == 8
    assert actions["--str_weight"].default is None
    assert STRConfig(str(flags["output_dir"]), bf16=False).str_weight == 3.0
    whole = runner.invoke(app, ["tune", "--help-all"]).stdout
    assert "--adam_beta1" in whole
    assert "constrained_sft" in whole


def test_a_bare_off_in_yaml_is_off(flags, tmp_path):
    """YAML reads it as false, which went on as a setting that nobody knew."""
    flags = {key: value for key, value in flags.items() if key != "str_anchors"}
    path = tmp_path / "settings.yaml"
    path.write_text("".join(f"{name}: {json.dumps(str(each))}\n" for name, each in flags.items()))
    assert parse(["--config", str(path)]).training.str_anchors == "auto"  # the control
    path.write_text(path.read_text() + "str_anchors: off\n")
    assert parse(["--config", str(path)]).training.str_anchors == "off"
