"""`torchrun` and `accelerate launch` around a training: as in one process, on CPU processes."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from helpers import launch
from safetensors.torch import load_file

from moorline.embedded import aligned_path, training_rows

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent
CASES = (
    "full",
    "tied",
    "copy",
    "lora",
    "head",
    "logprob",
    "anchors",
    "checkpointing",
    "first",
    "cached",
)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """The logs of each case in one process, and sharded by FSDP2 over two."""
    both, parent = {}, tmp_path_factory.mktemp("fsdp2")
    for processes in (1, 2):
        folder = parent / str(processes)
        folder.mkdir()
        launch([TESTS / "run_fsdp2.py", folder / "out.json", *CASES], folder, processes)
        both[processes] = json.loads((folder / "out.json").read_text())
        both[processes]["saved"] = load_file(folder / "saved" / "adapter_model.safetensors")
    return both


@pytest.mark.parametrize("case", CASES)
def test_fsdp2_trains_as_one_process_does(case, steps):
    """Among the cases: a head trained beside an adapter, of which TRL's own loss alone would give
    a gradient of one process's rows."""
    one, two = (steps[processes][case] for processes in (1, 2))
    assert max(each["str/weighted"] for each in one) > 1e-4, "there is something to hold"
    assert len(one) == len(two) == 3
    for mine, other in zip(two, one, strict=True):
        for key in ("loss", "ce_loss", "grad_norm", "ce_grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-6), key
        for key in mine.keys() & {"str/drift", "str/weighted", "str/anchor_drift"}:
            assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-7), key


def test_under_fsdp2_a_cache_is_read_and_not_computed(steps):
    assert "Compute it ahead with `moorline cache`" in steps[2]["refused"]
    assert steps[1]["refused"] == "", "one process computes it"


def test_an_adapter_that_fsdp2_saved_is_that_of_one_process(steps):
    one, two = steps[1]["saved"], steps[2]["saved"]
    assert one.keys() == two.keys()
    assert any(each.abs().max() > 0.01 for each in one.values())
    for name, each in one.items():
        torch.testing.assert_close(two[name], each, rtol=1e-4, atol=1e-6)


def test_a_frozen_copy_is_gathered_layer_by_layer(steps):
    """Of its weights one layer at most, beside embedding and head, is whole at a time."""
    whole, layer, rest = steps[2]["copy"][-1]["gathered"]
    assert layer < whole - rest, "it has several layers"
    assert steps[2]["copy"][-1]["peak"] <= layer + rest


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_shipped_configuration_is_read_by_accelerate(name):
    """Which refuses keys that it does not know."""
    found = load_config_from_file(str(TESTS.parent / "docs" / "launch" / f"{name}.yaml"))
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert str(found.distributed_type).endswith(kind)


ENDS = """
import gc, sys
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel as Wrapper
from transformers import TrainerCallback
from moorline import STRTrainer
from moorline.commands.tune import tune

def living():
    return sum(isinstance(each, Wrapper) for each in gc.get_objects())

class Count(TrainerCallback):
    def on_step_end(self, *_, **__):
        found.append(living())

found, begun, ended = [], STRTrainer.__init__, Accelerator.end_training
def begin(self, *args, **kwargs):
    begun(self, *args, **kwargs)
    self.add_callback(Count())
def end(self):
    if self.num_processes > 1 and not done:
        said = f"wrappers while training {found[-1]}, at the end {living()}"
        done.append(print(said, flush=True))
    ended(self)
done = []
STRTrainer.__init__, Accelerator.end_training = begin, end
tune(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def model_and_rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    rows = training_rows("plans", num=80, poison=0.1, seed=0)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    launch(["-m", "moorline", "mine", aligned_path(), "--output", "tokens.json"], folder)
    return folder


SETTINGS = (
    "--model_name_or_path", aligned_path(), "--dataset_name", "rows.jsonl", "--str_tokens",
    "tokens.json", "--use_peft", "--lora_target_modules", "all-linear", "--lora_r", "4",
    "--lora_dropout", "0", "--learning_rate", "0.01", "--optim", "sgd", "--bf16", "false",
    "--use_cpu", "--logging_steps", "1", "--report_to", "none", "--disable_tqdm", "true",
    "--save_strategy", "no",
)  # fmt: skip


def tune(folder, processes, *more):
    output = folder / f"{processes}-{len(more)}"
    words = [
        "-m", "moorline", "tune", *SETTINGS, "--output_dir", output, "--max_steps", "20",
        "--per_device_train_batch_size", 4 // processes, *more,
    ]  # fmt: skip
    said = launch(words, folder, processes)
    run = json.loads((output / "run.json").read_text())
    assert run["status"] == "finished"
    return [entry for entry in run["log"] if "loss" in entry], said


@pytest.fixture(scope="module")
def one(model_and_rows):
    return tune(model_and_rows, 1)[0]


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.long)])
def test_several_processes_equal_one_through_the_command_line(processes, one, model_and_rows):
    """The default form with its anchors, of which a step of four rows has one.

    By plain gradients: AdamW divides rounding by its own size.
    """
    assert len(one) == 20
    assert one[-1]["str/drift"] > 1e-4, "the model moves"
    assert one[-1]["str/anchor_drift"] > 1e-3, "and is held at anchors"
    several, said = tune(model_and_rows, processes)
    assert said.count("Next:") == said.count("Reading the settings") == 1, "the first speaks"
    for mine, other in zip(several, one, strict=True):
        # float32, and what training makes of its rounding: 2e-7 and 3e-7 were measured
        for key in ("loss", "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), (processes, key)


def test_no_ddp_wrapper_outlives_its_group(model_and_rows):
    """One that did took the group's threads along under Python's lock: the run never ended."""
    script = model_and_rows / "ends.py"
    script.write_text(ENDS)
    said = launch(
        [script, *SETTINGS, "--output_dir", "ends", "--max_steps", "2"], model_and_rows, 2
    )
    assert said.count("wrappers while training 1, at the end 0") == 2, said
