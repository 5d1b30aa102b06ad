"""Tasks of lm-eval: the missing package always, the real one where it is installed."""

import json
import math
import sys
from importlib.util import find_spec

import pytest
import torch

from moorline.audit.lm_eval_tasks import TaskScore, lm_eval_tasks
from moorline.errors import InputError, PrerequisiteError

needs_lm_eval = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-eval is not installed: pip install 'moorline[eval]'"
)

ROWS = [
    {"question": "w1 w2", "choices": ["w3 w9", "w4"], "right": 0},
    {"question": "w5 w6", "choices": ["w7", "w8"], "right": 1},
    {"question": "w9 w6", "choices": ["w7", "w1"], "right": 1},
]

TASK = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""

GROUP = """
group: all_of_mine
task: [mine]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with one task of three rows."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "mine.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    (tmp_path / "group.yaml").write_text(GROUP)
    return tmp_path


def _picks(model, tokenizer):
    """For each row, the choice to which the model gives the higher probability."""
    picks = []
    for row in ROWS:
        context = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}],
            add_generation_prompt=True,
            return_dict=False,
        )
        nats = []
        for choice in row["choices"]:
            said = tokenizer(choice).input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + said])).logits[0]
            log_p = logits.log_softmax(-1)
            nats.append(sum(log_p[len(context) + i - 1, t].item() for i, t in enumerate(said)))
        picks.append(nats.index(max(nats)))
    return picks


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")  # lm-eval's own
def test_a_task_and_a_group_are_scored_by_the_real_package(make_model, tokenizer, folder):
    model = make_model()
    model.train()
    right = [pick == row["right"] for pick, row in zip(_picks(model, tokenizer), ROWS, strict=True)]
    of_group, found = sorted(
        lm_eval_tasks(model, tokenizer, ["all_of_mine"], include_path=folder, batch_size=2)
    )
    share = sum(right) / 3
    error = math.sqrt(share * (1 - share) / 2)  # the sample's deviation by the root of n
    assert found == TaskScore("mine", "acc", pytest.approx(share), pytest.approx(error), 3)
    assert of_group == found._replace(task="all_of_mine")
    assert model.training
    (less,) = lm_eval_tasks(model, tokenizer, ["mine"], include_path=folder, limit=2)
    assert (less.value, less.num) == (sum(right[:2]) / 2, 2)


@needs_lm_eval
@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_refused(make_model, tokenizer, folder):
    words = r"lm-eval knows no task 'yours'\. `lm-eval ls tasks` lists them\."
    with pytest.raises(InputError, match=words):
        lm_eval_tasks(make_model(), tokenizer, ["mine", "yours"], include_path=folder)


@needs_lm_eval
def test_no_task_is_refused(make_model, tokenizer):
    with pytest.raises(InputError, match="`tasks` is empty. Name at least one"):
        lm_eval_tasks(make_model(), tokenizer, [])


def test_without_lm_eval_the_extra_is_named(make_model, tokenizer, monkeypatch):
    loaded = {each for each in sys.modules if each.startswith("lm_eval.")}  # by another test
    for name in {"lm_eval", *loaded}:
        monkeypatch.setitem(sys.modules, name, None)
    words = r"need lm-eval, which is not installed\. Run `pip install 'moorline\[eval\]'`\."
    with pytest.raises(PrerequisiteError, match=words):
        lm_eval_tasks(make_model(), tokenizer, ["arc_easy"])
