"""Tasks of the lm-evaluation-harness, which judge the same items as tasks from files do."""

import json

import pytest
from models import save_small_llama
from test_tasks import ITEMS, SHORT

from edgeq.errors import BadInput, NotInstalled
from edgeq.measuring import harness
from edgeq.measuring.evaluate import evaluate

TASK = """
task: mice_of_the_harness
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: {kind}
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: {metric}
  - metric: {other}
"""


@pytest.fixture
def written(tmp_path):
    """A model, and the items with a context as the harness takes them."""
    asked = [item for item in ITEMS if "context" in item and not item["context"][-1].isspace()]
    rows = [{**item, "choices": [each.strip() for each in item["choices"]]} for item in asked]
    rows = [{**row, "answer": answer} for row, answer in zip(rows, [0] * len(rows), strict=True)]
    data = tmp_path / "mice.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 3))
    return save_small_llama(tmp_path / "model", seed=3), data


@pytest.mark.slow
def test_the_harness_judges_as_a_file_of_the_same_items_does(written, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model, data = written
    task = tmp_path / "mice.yaml"
    values = {"kind": "multiple_choice", "metric": "acc", "other": "acc_norm"}
    task.write_text(TASK.format(data=data, **values))
    names = [str(task), str(data)]
    found = evaluate(str(model), reference=str(model), tasks=names, **SHORT)["tasks"]
    by_harness, by_file = ({**each, "name": ""} for each in found)
    assert by_harness == by_file


@pytest.mark.slow
def test_a_task_that_writes_text_is_refused(written, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model, data = written
    task = tmp_path / "writes.yaml"
    values = {"kind": "generate_until", "metric": "exact_match", "other": "bleu"}
    task.write_text(TASK.format(data=data, **values))
    with pytest.raises(BadInput, match="task of choices"):
        evaluate(str(model), reference=None, tasks=[str(task)], **SHORT)


def test_a_name_without_the_harness_says_what_brings_it(written, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match=r"'hellaswag' is no file.*extra 'tasks'"):
        evaluate(str(written[0]), reference=None, tasks=["hellaswag"], **SHORT)
