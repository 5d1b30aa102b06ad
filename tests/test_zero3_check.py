"""`examples/zero3_check.py`, tried on CPU processes: that it runs, and that it can fail."""

import json
from pathlib import Path

import pytest
from helpers import launch

SCRIPT = Path(__file__).parents[1] / "examples" / "zero3_check.py"


@pytest.mark.slow
def test_the_script_for_gpus_compares_two_processes_with_one(tmp_path):
    """DDP stands in for ZeRO-3, which no CPU has."""
    launch([SCRIPT, "one.json", "--cpu"], tmp_path)
    said = launch([SCRIPT, "two.json", "--against", "one.json", "--cpu"], tmp_path, processes=2)
    assert said.count("ok ") == 5 * 4, said
    assert "FAILED" not in said
    one = json.loads((tmp_path / "one.json").read_text())
    one["tied head, adapter"][1]["str/drift"] *= 1.01
    (tmp_path / "one.json").write_text(json.dumps(one))
    with pytest.raises(AssertionError):  # the control: it ends with 1
        launch([SCRIPT, "two.json", "--against", "one.json", "--cpu"], tmp_path, processes=2)
