"""A head in shards (FSDP2), on CPU processes: the same values and gradients as in one process."""

import json
from pathlib import Path

import pytest
from helpers import launch

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "run_shards.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What every case gives in one process and in two."""
    both = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"shards-{processes}")
        launch([SCRIPT, folder / "out.json"], folder, processes)
        both[processes] = json.loads((folder / "out.json").read_text())
    return both


@pytest.mark.parametrize("case", ["apart", "logprob", "tied", "saved"])
def test_a_head_in_shards_has_the_drift_and_the_gradient_of_one_process(case, found):
    """Apart from its norm and never called; tied to the embedding; trained beside an adapter."""
    one, two = (found[processes][case] for processes in (1, 2))
    assert one["mean"] > 1e-6, "there is a drift"
    assert two["mean"] == pytest.approx(one["mean"], rel=1e-6)
    flat = [[x for row in each["gradient"] for x in row] for each in (one, two)]
    largest = max(map(abs, flat[0]))
    assert largest > 0.1, "and a gradient"
    # float32, summed in another order
    assert flat[1] == pytest.approx(flat[0], abs=1e-6 * largest)


def test_all_processes_have_what_the_first_computes_or_refuses(found):
    """None is left waiting for one that failed."""
    assert found[1]["first"] == [["by 0", "not so"]]
    assert found[2]["first"] == [["by 0", "not so"]] * 2


def test_a_small_drift_survives_a_root_that_rounds_what_leaves_it_to_bfloat16(found):
    """One of four logits is moved by a hundredth."""
    two = found[2]["bf16"]
    assert two["mean"] == pytest.approx(0.01**2 / 4, rel=0.01)
    # the control: safety logits that leave the root as tensors are rounded past it
    assert two["through the root"] != pytest.approx(0.01**2 / 4, rel=0.5)
