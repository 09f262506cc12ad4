"""Malformed inputs at the front door: each gets its message and exit code, on one screen, before
torch is loaded.

The whole table runs in one process of its own, which reports after each input whether torch has
been loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

SCREEN = 24
RECIPE, DATA = 2, 3

GOOD = """\
method: {method}
output_dir: out
model: {{name_or_path: model}}
data: {{train: {file}}}
"""

SFT_ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}'


class Case(NamedTuple):
    """What is typed, what lies in the folder, and what has to be said."""

    command: str
    code: int
    says: tuple[str, ...]
    recipe: str = ""
    rows: str = SFT_ROW


def edited(old: str, new: str, method: str = "sft", file: str = "rows.jsonl") -> str:
    text = GOOD.format(method=method, file=file)
    assert old in text
    return text.replace(old, new)


SFT = GOOD.format(method="sft", file="rows.jsonl")
DPO = GOOD.format(method="dpo", file="rows.jsonl")

RECIPES = {
    "a mistyped section": Case(
        "sft r.yaml", RECIPE, ("r.yaml:4", "dta", "data"), edited("data:", "dta:")
    ),
    "a mistyped key": Case(
        "sft r.yaml",
        RECIPE,
        ("r.yaml:3", "name_or_pth", "name_or_path"),
        edited("name_or_path", "name_or_pth"),
    ),
    "a mistyped trainer key": Case(
        "sft r.yaml",
        RECIPE,
        ("learnig_rate", "learning_rate"),
        SFT + "trainer: {learnig_rate: 1e-5}\n",
    ),
    "a word for a number": Case(
        "sft r.yaml", RECIPE, ("learning_rate", "fast"), SFT + "trainer: {learning_rate: fast}\n"
    ),
    "a number out of bounds": Case(
        "sft r.yaml",
        RECIPE,
        ("data.max_length", "0"),
        edited("rows.jsonl", "rows.jsonl, max_length: 0"),
    ),
    "a duplicate key": Case(
        "sft r.yaml", RECIPE, ("r.yaml:5", "output_dir"), SFT + "output_dir: twice\n"
    ),
    "YAML that is broken": Case(
        "sft r.yaml", RECIPE, ("r.yaml",), SFT + "trainer: {learning_rate: 1\n"
    ),
    "a tab for an indent": Case(
        "sft r.yaml", RECIPE, ("r.yaml", "tab"), SFT + "trainer:\n\tlearning_rate: 1\n"
    ),
    "rows for a recipe": Case(
        "sft rows.jsonl", RECIPE, ("rows.jsonl is a file of rows", "data: {train: rows.jsonl}")
    ),
    "a list for a recipe": Case("sft r.yaml", RECIPE, ("r.yaml",), "- a\n- b\n"),
    "an empty recipe": Case("sft r.yaml", RECIPE, ("r.yaml",), "# nothing\n"),
    "another method": Case("sft r.yaml", RECIPE, ("dpo", "aligner dpo"), DPO),
    "no such method": Case(
        "sft r.yaml", RECIPE, ("sfft", "sft"), edited("method: sft", "method: sfft")
    ),
    "no model": Case(
        "sft r.yaml", RECIPE, ("model",), edited("model: {name_or_path: model}\n", "")
    ),
    "a mistyped loss": Case(
        "dpo r.yaml", RECIPE, ("sigmod", "sigmoid"), DPO + "dpo: {loss: sigmod}\n", PAIR
    ),
    "a negative beta": Case(
        "dpo r.yaml", RECIPE, ("dpo.beta", "-1"), DPO + "dpo: {beta: -1}\n", PAIR
    ),
    "4-bit without LoRA": Case(
        "sft r.yaml",
        RECIPE,
        ("quantization", "lora"),
        edited("name_or_path: model", "name_or_path: model, quantization: nf4"),
    ),
    "an unknown quantization": Case(
        "sft r.yaml",
        RECIPE,
        ("nf5", "nf4"),
        edited("name_or_path: model", "name_or_path: model, quantization: nf5"),
    ),
    "early stopping without eval": Case(
        "sft r.yaml",
        RECIPE,
        ("early_stopping", "data.eval"),
        SFT + "early_stopping: {patience: 2}\n",
    ),
    "bf16 and fp16": Case(
        "sft r.yaml", RECIPE, ("bf16", "fp16"), SFT + "trainer: {bf16: true, fp16: true}\n"
    ),
    "a key of ours below trainer": Case(
        "sft r.yaml", RECIPE, ("max_length", "data.max_length"), SFT + "trainer: {max_length: 5}\n"
    ),
    "a key that is gone": Case(
        "sft r.yaml",
        RECIPE,
        ("warmup_ratio", "warmup_steps"),
        SFT + "trainer: {warmup_ratio: 0.1}\n",
    ),
    "an unknown strategy": Case(
        "sft r.yaml", RECIPE, ("fspd", "fsdp"), SFT + "launch: {strategy: fspd}\n"
    ),
    "a share of one": Case(
        "sft r.yaml", RECIPE, ("data.eval", "1"), edited("rows.jsonl", "rows.jsonl, eval: 1.0")
    ),
    "weight and max_rows": Case(
        "sft r.yaml",
        RECIPE,
        ("weight", "max_rows"),
        edited("rows.jsonl", "[{path: rows.jsonl, weight: 2, max_rows: 1}]"),
    ),
    "adapter_off without LoRA": Case(
        "dpo r.yaml", RECIPE, ("adapter_off", "lora"), DPO + "dpo: {reference: adapter_off}\n", PAIR
    ),
    "a mistyped objective": Case(
        "dpo r.yaml", RECIPE, ("sigmod", "sigmoid"), DPO + "dpo: {loss: sigmod}\n", PAIR
    ),
    "a mistyped objective in a mixture": Case(
        "dpo r.yaml",
        RECIPE,
        ("sigmod", "sigmoid"),
        DPO + "dpo: {loss: {sigmod: 1, sft: 1}}\n",
        PAIR,
    ),
    "a mixture without weight": Case(
        "dpo r.yaml", RECIPE, ("dpo.loss",), DPO + "dpo: {loss: {sigmoid: 0}}\n", PAIR
    ),
    "an objective that is no file": Case(
        "dpo r.yaml", RECIPE, ("mine.py",), DPO + "dpo: {loss: mine.py}\n", PAIR
    ),
    "a file that may not be run": Case(
        "dpo r.yaml dpo.loss=no_such.py",
        RECIPE,
        ("no_such.py",),
        DPO + "dpo: {loss: sigmoid}\n",
        PAIR,
    ),
    "a warm-up without a reference": Case(
        "dpo r.yaml",
        RECIPE,
        ("dpo.warmup_steps_dpo", "simpo"),
        DPO + "dpo: {loss: simpo, warmup_steps_dpo: 9}\n",
        PAIR,
    ),
    "a tau that nothing reads": Case(
        "dpo r.yaml",
        RECIPE,
        ("dpo.tau", "discopop"),
        DPO + "dpo: {loss: sigmoid, tau: 0.2}\n",
        PAIR,
    ),
    "mosaics: a mistyped key": Case(
        "mosaic --data rows.jsonl --output out mosaic.max_member=3",
        RECIPE,
        ("max_example", "mosaic.max_examples"),
    ),
    "mosaics: a missing file": Case(
        "mosaic --data rowz.jsonl --output out", DATA, ("rowz.jsonl", "did you mean")
    ),
    "mosaics: pairs": Case(
        "mosaic --data rows.jsonl --output out", DATA, ("rows.jsonl", "chosen"), rows=PAIR
    ),
    "mosaics: a broken row": Case(
        "mosaic --data rows.jsonl --output out",
        DATA,
        ("rows.jsonl:2", "broken JSON"),
        rows=SFT_ROW + "\n{",
    ),
    "mosaics: a phrasings file that is not there": Case(
        "mosaic --data rows.jsonl --output out mosaic.phrasings=words.yaml",
        RECIPE,
        ("words.yaml", "cannot be read"),
    ),
    "mosaics: no such tokenizer": Case(
        "mosaic --data rows.jsonl --output out --tokenizer ./nowhere",
        RECIPE,
        ("mosaic.tokenizer", "nowhere"),
    ),
    "mosaics in a method that has none": Case(
        "dpo r.yaml",
        RECIPE,
        ("data.mosaic", "aligner sft"),
        DPO.replace("rows.jsonl", "rows.jsonl, mosaic: {}"),
        PAIR,
    ),
    "mosaics in sft with a weight below zero": Case(
        "sft r.yaml",
        RECIPE,
        ("data.mosaic.strategies.permute", "at least 0"),
        edited("rows.jsonl", "rows.jsonl, mosaic: {strategies: {permute: -1}}"),
    ),
    "a selection of nothing": Case(
        "data select --output out",
        RECIPE,
        ("select.candidates", "select.reward_models", "diversity"),
    ),
    "a selection without a policy": Case(
        "data select --data rows.jsonl --output out select.strategy=random",
        RECIPE,
        ("select.policy", "--model"),
    ),
    "a selection with a mistyped strategy": Case(
        "data select --candidates rows.jsonl --output out select.strategy=uncertainity",
        RECIPE,
        ("did you mean", "uncertainty"),
    ),
    "a selection with a reward model that is not there": Case(
        "data select --candidates rows.jsonl --output out --reward_models runs/reward",
        RECIPE,
        ("there is no scorer", "runs/reward"),
    ),
    "a selection by the disagreement of one": Case(
        "data select --candidates rows.jsonl --output out --reward_models toy "
        "select.uncertainty=bald",
        RECIPE,
        ("select.uncertainty", "there is one"),
    ),
    "a selection with a policy that is not there": Case(
        "data select --data rows.jsonl --model no/such/model --output out select.strategy=random",
        RECIPE,
        ("select.policy", "no/such/model"),
    ),
    "a selection from rows without answers": Case(
        "data select --candidates rows.jsonl --output out select.strategy=random",
        DATA,
        ("rows.jsonl:1", "responses"),
        rows='{"prompt": "a"}',
    ),
    "labels for a selection that is not there": Case(
        "data select --candidates rows.jsonl --output out select.strategy=random --labels "
        "rows.jsonl",
        RECIPE,
        ("out", "not the run directory of a selection"),
    ),
    "labels from a file and from an oracle": Case(
        "data select out --labels rows.jsonl --oracle toy", RECIPE, ("--labels", "--oracle")
    ),
    "a mistyped section of a search": Case(
        "discover r.yaml",
        RECIPE,
        ("r.yaml:1", "endpiont", "endpoint"),
        "endpiont: {model: m}\noutput_dir: out\n",
    ),
    "a search without a server or model": Case(
        "discover r.yaml",
        RECIPE,
        ("endpoint", "is missing"),
        "output_dir: out\ndiscover: {task: bandit}\n",
    ),
    "a script that is not there": Case(
        "discover r.yaml",
        RECIPE,
        ("replies.jsonl",),
        "output_dir: out\nendpoint: {backend: scripted, script: replies.jsonl}\n",
    ),
    "a local proposer that is not there": Case(
        "discover r.yaml",
        RECIPE,
        ("endpoint.model", "no folder"),
        "output_dir: out\nendpoint: {backend: local, model: no/such/model}\n",
    ),
    "a recording that is not there": Case(
        "discover r.yaml",
        RECIPE,
        ("no recording", "tape"),
        "output_dir: out\nendpoint: {model: m, replay: tape}\n",
    ),
    "a budget in money without prices": Case(
        "discover r.yaml",
        RECIPE,
        ("usd",),
        "output_dir: out\nendpoint: {model: m, budget: {usd: 5}}\n",
    ),
    "a task without its recipe": Case(
        "discover r.yaml",
        RECIPE,
        ("discover.recipe",),
        "output_dir: out\nendpoint: {model: m}\ndiscover: {task: recipe}\n",
    ),
    "an unknown objective to begin with": Case(
        "discover r.yaml",
        RECIPE,
        ("sigmod", "sigmoid"),
        "output_dir: out\nendpoint: {model: m}\ndiscover: {start: [sigmod]}\n",
    ),
    "scores: a mistyped reward model": Case(
        "score --data rows.jsonl --reward-model verifer:exact",
        RECIPE,
        ("verifer:exact", "did you mean 'verifier'"),
    ),
    "scores: a card that is not there": Case(
        "score --data rows.jsonl --reward-model cards/mine.yaml", RECIPE, ("cards/mine.yaml",)
    ),
    "scores: a mistyped key of a card": Case(
        "score --data rows.jsonl --reward-model r.yaml",
        RECIPE,
        ("r.yaml:2", "modle", "model"),
        "kind: judge\nmodle: m\n",
    ),
    "scores: a card without what its kind needs": Case(
        "score --data rows.jsonl --reward-model r.yaml",
        RECIPE,
        ("endpoint", "`judge` needs it"),
        "kind: judge\n",
    ),
    "scores: a judge without a model": Case(
        "score --data rows.jsonl --reward-model r.yaml",
        RECIPE,
        ("endpoint", "needs model"),
        "kind: judge\nendpoint: {base_url: 'http://127.0.0.1:1/v1'}\n",
    ),
    "scores: a rubric that is not there": Case(
        "score --data rows.jsonl --reward-model r.yaml",
        RECIPE,
        ("rubric", "mine.txt"),
        "kind: judge\nrubric: mine.txt\nendpoint: {model: m, base_url: 'http://127.0.0.1:1/v1'}\n",
    ),
    "scores: an ensemble that holds itself": Case(
        "score --data rows.jsonl --reward-model r.yaml",
        RECIPE,
        ("member of itself",),
        "kind: ensemble\nmembers: [toy, ./r.yaml]\n",
    ),
    "scores: no such file": Case(
        "score --data rowz.jsonl --reward-model toy", DATA, ("rowz.jsonl", "rows.jsonl")
    ),
    "scores: rows without an answer": Case(
        "score --data rows.jsonl --reward-model toy",
        DATA,
        ("rows.jsonl", "completion"),
        rows='{"prompt": "a"}',
    ),
    "scores: a column that is taken": Case(
        "score --data rows.jsonl --reward-model toy",
        DATA,
        ("rows.jsonl:1", "`score`", "--prefix"),
        rows='{"prompt": "a", "completion": "b", "score": 1}',
    ),
    "scores: a rule without its right answer": Case(
        "score --data rows.jsonl --reward-model verifier:exact",
        DATA,
        ("verifier:exact", "right answer"),
    ),
    "several at once": Case(
        "sft r.yaml",
        RECIPE,
        ("sede", "max_lenght", "learnig_rate"),
        edited("rows.jsonl", "rows.jsonl, max_lenght: 3") + "sede: 1\ntrainer: {learnig_rate: 1}\n",
    ),
}

COMMANDS = {
    "no such recipe": Case("sft nowhere.yaml", RECIPE, ("nowhere.yaml",)),
    "a mistyped shipped recipe": Case("dpo tiny/dop", RECIPE, ("tiny/dop", "tiny/dpo")),
    "an unknown flag": Case(
        "sft r.yaml --learnin_rate 1e-5", RECIPE, ("--learnin_rate", "learning_rate"), SFT
    ),
    "an unknown override": Case(
        "sft r.yaml trainer.learnin_rate=1", RECIPE, ("learnin_rate", "learning_rate"), SFT
    ),
    "an override of nothing": Case("sft r.yaml dataa.max_length=1", RECIPE, ("dataa",), SFT),
    "a flag without its value": Case(
        "sft r.yaml --learning_rate", RECIPE, ("--learning_rate",), SFT
    ),
    "a flag against an override": Case("sft r.yaml --seed 1 seed=2", RECIPE, ("seed",), SFT),
    "a warm-up of one": Case("sft r.yaml --warmup_ratio 1.0", RECIPE, ("warmup_ratio",), SFT),
    "two recipes": Case("sft r.yaml r.yaml2", RECIPE, ("r.yaml",), SFT),
    "a mistyped command": Case("dop r.yaml", RECIPE, ("dop",), SFT),
    "resume and overwrite": Case(
        "sft r.yaml --resume --overwrite", RECIPE, ("--resume", "--overwrite"), SFT
    ),
    "no model folder": Case(
        "sft r.yaml",
        RECIPE,
        ("nomodel/here/final",),
        edited("name_or_path: model", "name_or_path: nomodel/here/final"),
    ),
    "a folder without a model": Case(
        "sft r.yaml",
        RECIPE,
        ("empty", "config.json"),
        edited("name_or_path: model", "name_or_path: empty"),
    ),
}

ROWS = {
    "no such file": Case(
        "sft r.yaml", DATA, ("rws.jsonl", "rows.jsonl"), edited("rows.jsonl", "rws.jsonl")
    ),
    "an empty file": Case("sft r.yaml", DATA, ("rows.jsonl",), SFT, "\n"),
    "broken JSON": Case(
        "sft r.yaml", DATA, ("rows.jsonl:2",), SFT, SFT_ROW + '\n{"messages": [\n' + SFT_ROW
    ),
    "a row that is no object": Case(
        "sft r.yaml", DATA, ("rows.jsonl:2",), SFT, SFT_ROW + "\n[1, 2]\n"
    ),
    "no column that we know": Case(
        "sft r.yaml", DATA, ("question", "columns"), SFT, '{"question": "a", "answer": "b"}'
    ),
    "a mistyped column": Case(
        "sft r.yaml",
        DATA,
        ("questoin",),
        edited(
            "rows.jsonl", "[{path: rows.jsonl, columns: {prompt: questoin, completion: answer}}]"
        ),
        '{"question": "a", "answer": "b"}',
    ),
    "pairs for sft": Case("sft r.yaml", DATA, ("chosen",), SFT, PAIR),
    "conversations for dpo": Case("dpo r.yaml", DATA, ("chosen", "rejected"), DPO),
    "chosen equals rejected": Case(
        "dpo r.yaml",
        DATA,
        ("rows.jsonl:2",),
        DPO,
        PAIR + '\n{"prompt": "a", "chosen": "b", "rejected": "b"}',
    ),
    "no rejected in one row": Case(
        "dpo r.yaml",
        DATA,
        ("rows.jsonl:2", "rejected"),
        DPO,
        PAIR + '\n{"prompt": "a", "chosen": "b"}',
    ),
    "an empty answer": Case(
        "sft r.yaml", DATA, ("rows.jsonl:2",), SFT, SFT_ROW + "\n" + SFT_ROW.replace('"b"', '""')
    ),
    "an unknown role": Case(
        "sft r.yaml",
        DATA,
        ("rows.jsonl:1", "assistent"),
        SFT,
        SFT_ROW.replace('"assistant"', '"assistent"'),
    ),
    "content that is null": Case(
        "sft r.yaml", DATA, ("rows.jsonl:1",), SFT, SFT_ROW.replace('"b"', "null")
    ),
    "a number for messages": Case(
        "sft r.yaml", DATA, ("rows.jsonl:1", "messages"), SFT, '{"messages": 5}'
    ),
    "the user speaks last": Case(
        "sft r.yaml",
        DATA,
        ("rows.jsonl:1",),
        SFT,
        '{"messages": [{"role": "user", "content": "a"}]}',
    ),
    "bytes that are no text": Case(
        "sft r.yaml", DATA, ("rows.jsonl", "UTF-8"), SFT, SFT_ROW + "\n\udcff\udcfe\n"
    ),
    "an unknown kind of file": Case(
        "sft r.yaml", DATA, ("rows.docx",), edited("rows.jsonl", "rows.docx")
    ),
    "no such function": Case(
        "sft r.yaml",
        DATA,
        ("no_such.py",),
        edited("rows.jsonl", "[{path: rows.jsonl, function: 'no_such.py:f'}]"),
    ),
    "a held-out split of nothing": Case(
        "sft r.yaml", DATA, ("held",), edited("rows.jsonl", "rows.jsonl, eval: 0.1")
    ),
}

CASES = {**RECIPES, **COMMANDS, **ROWS}

HARNESS = """
import json, os, shutil, sys
from pathlib import Path
from typer.testing import CliRunner
from aligner.cli.app import app

root, cases = Path(sys.argv[1]), json.loads(sys.stdin.read())
answers = {}
for name, (command, code, says, recipe, rows) in cases.items():
    folder = root / name.replace(" ", "-")
    (folder / "model").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / "r.yaml").write_text(recipe)
    for file in ("rows.jsonl", "rows.docx"):
        (folder / file).write_bytes(rows.encode("utf-8", "surrogateescape"))
    os.chdir(folder)
    result = CliRunner().invoke(app, command.split())
    answers[name] = {
        "code": result.exit_code,
        "text": result.output,
        "torch": "torch" in sys.modules,
        "run": (folder / "out").exists(),
    }
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("malformed")
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(folder)],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        cwd=Path(__file__).parents[1],
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_table_is_long() -> None:
    assert len(CASES) >= 50


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_input_is_answered_on_one_screen_before_torch(
    name: str, answers: dict[str, dict]
) -> None:
    case, answer = CASES[name], answers[name]
    assert answer["code"] == case.code, answer["text"]
    for fragment in case.says:
        assert fragment in answer["text"], answer["text"]
    assert "Traceback" not in answer["text"]
    assert len(answer["text"].strip().splitlines()) <= SCREEN, answer["text"]
    assert not answer["torch"], "torch was loaded before the answer"
    assert not answer["run"], "a run directory was left behind"
