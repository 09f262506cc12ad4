#!/usr/bin/env bash
# lm-evaluation-harness reads a right answer that is a number as the place of a choice, and shows questions among their own examples.
#
# In a task file of the kind `multiple_choice`, `doc_to_target: "{{answer}}"` gives the right answer as text. Where that text is a number it
# is taken for an index, from 0 on, also if it is the text of a choice: of the choices 1, 2 and 3, the answer 1 makes 2 the right one.
# And few-shot examples are drawn from the questions themselves where a file names no split for them; a question is left out of its own
# examples only if `fewshot_split` equals `test_split`, so without `fewshot_split` a prompt can hold the question that it asks, answered.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0" "transformers==5.23.0" "datasets==5.2.0" "lm-eval==0.4.13"
HF_HOME="$folder/cache" HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import json
import logging
import sys
from importlib.metadata import version
from pathlib import Path

from lm_eval.tasks import TaskManager

folder = Path(sys.argv[1]) / "tasks"
folder.mkdir()
print("lm-eval", version("lm-eval"))
rows = [
    {"question": f"{word} has {n}, how many has {word}?", "choices": ["1", "2", "3"], "answer": str(n)}
    for word in ("Ann", "Bob", "Cid", "Dee")
    for n in (1, 2)
]
(folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
(folder / "numbers.yaml").write_text(
    f"""
task: numbers
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
)
logging.disable(logging.CRITICAL)
task = TaskManager(include_path=str(folder), include_defaults=False).load(["numbers"])["tasks"]["numbers"]
task.set_fewshot_seed(0)
wrong = own = 0
for doc in task.eval_docs:
    read = doc["choices"][task.doc_to_target(doc)]
    wrong += read != doc["answer"]
    prompt = task.fewshot_context(doc, num_fewshot=3)
    own += prompt.count(doc["question"]) > 1
print(f"questions whose right answer is read as another choice: {wrong} of {len(rows)}")
print(f"prompts with 3 examples that hold their own question, answered: {own} of {len(rows)}")
if wrong != len(rows) or not own:
    raise SystemExit("the behaviour has changed")
PY
