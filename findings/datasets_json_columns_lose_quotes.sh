#!/usr/bin/env bash
# A JSON Lines column whose values vary in type turns text into other types: "4" is read as a number, "null" as nothing.
#
# datasets 5.2 gives such a column (plain text in one row, a list of turns or blocks in another, both usual in chat data)
# the type Json and stores JSON text. Text that happens to be JSON itself is stored without its quotes, so an answer "4" comes
# back as the number 4, "null" as None and "[1]" as a list. Text that is no JSON keeps its quotes and is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "datasets==5.2.0"
cd "$folder"
HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PY'
import json

import datasets

datasets.disable_progress_bars()
answers = ["four", "4", "null", "true", "[1]", [{"type": "text", "text": "four"}]]
with open("rows.jsonl", "w", encoding="utf-8") as file:
    file.writelines(json.dumps({"completion": answer}) + "\n" for answer in answers)
read = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
print("datasets", datasets.__version__, read.features)
for written, found in zip(answers, read["completion"]):
    print(f"written {written!r:45} read {found!r}")
wanted = ["four", 4, None, True, [1], answers[-1]]
if list(read["completion"]) != wanted:
    raise SystemExit("the behaviour has changed: text is read as something else than before")
print("seen: text that is JSON by itself changes its type")
PY
