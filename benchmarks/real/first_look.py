"""A first look at every command on a real chat model and real rows: does it learn, and does what it
writes load everywhere?

    python -m benchmarks.real.first_look MODEL DATA [--write]

MODEL is a folder with a small chat model (the figures in RESULTS.md are of SmolLM2-135M-Instruct),
DATA one with GSM8K as `examples/gsm8k/README.md` describes it. Takes about an hour of
one CPU; `--only sft-lora,dpo-lora` takes some of the runs, and `--write` keeps the other rows.

For each training: the loss on held-out rows before the first step and at the end, as the run says;
the same number from plain transformers and plain PEFT, with none of this project's code between the
files and the loss; the size of what was trained, and whether the tokenizer's files are byte for
byte those of the model. Then mosaic, generate, eval and score.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.results import read, write

ROOT = Path(__file__).parents[2]
PAIRS = ROOT / "examples" / "gsm8k" / "pairs.py"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LORA = {"r": 8, "lora_alpha": 16}
MAX_LENGTH = 256
HELD_OUT = 24
TOLERANCE = 1e-4
BASE_RUN = "sft-full"
"""The run whose result the other commands are tried on."""
HEADER = ["run", "steps", "held-out loss before", "after"]
HEADER += ["plain libraries", "difference", "weights saved", "tokenizer"]


@dataclass(frozen=True)
class Run:
    """One training: its method, what differs from the others, and which plain code gives its
    held-out loss."""

    method: str
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    learning_rate: float = 2e-4


RUNS = {
    "sft-full": Run("sft", learning_rate=2e-5),
    "sft-lora": Run("sft", {"lora": LORA}, learning_rate=5e-4),
    "sft-nf4": Run("sft", {"lora": LORA, "quantization": "nf4"}, learning_rate=5e-4),
    "dpo-lora": Run("dpo", {"lora": LORA}, {"dpo": {"beta": 0.1}}),
    "sapo-lora": Run("sapo", {"lora": LORA}, {"sapo": {"beta": 0.1, "window": 16}}),
    "reward-lora": Run("reward", {"lora": LORA}, learning_rate=5e-4),
}


def recipe(run: Run, model: Path, folder: Path, steps: int) -> dict[str, Any]:
    """The recipe of a run, whose rows lie in `folder`."""
    rows = "pairs" if run.method in ("dpo", "reward") else "answers"
    return {
        "method": run.method,
        "output_dir": "run",
        "model": {"name_or_path": str(model), **run.model},
        "data": {
            "train": str(folder / f"{rows}.jsonl"),
            "eval": str(folder / f"{rows}-held-out.jsonl"),
            "max_length": MAX_LENGTH,
            "on_too_long": "drop",
        },
        **run.settings,
        "trainer": {
            "max_steps": steps,
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 8,
            "learning_rate": run.learning_rate,
            "logging_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": steps,
            "eval_on_start": True,
            "save_strategy": "no",
        },
        "report": {"num_prompts": 1, "max_new_tokens": 16},
    }


def write_rows(data: Path, folder: Path) -> None:
    """Questions with answers, and questions with a right and a wrong one; short ones, so that steps
    are quick."""
    sys.path.insert(0, str(PAIRS.parent))
    from pairs import make_pairs  # type: ignore[import-not-found]

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (data / name).read_text(encoding="utf-8").splitlines()]

    def save(name: str, rows: list[dict[str, Any]], count: int) -> None:
        short = [row for row in rows if sum(map(len, row.values())) < 600][:count]
        text = "".join(json.dumps(row) + "\n" for row in short)
        (folder / name).write_text(text, encoding="utf-8")

    for name, target, count in (("train", "answers", 200), ("test", "answers-held-out", HELD_OUT)):
        rows = [
            {"prompt": row["question"], "completion": row["answer"]}
            for row in lines(f"gsm8k_{name}.jsonl")
        ]
        save(f"{target}.jsonl", rows, count)
    solutions = lines("gsm8k_model_solutions.jsonl")
    first = [make_pairs(row) for row in solutions]
    pairs = [found[0] for found in first if found]
    save("pairs-held-out.jsonl", pairs[:200], HELD_OUT)
    save("pairs.jsonl", pairs[200:], 200)


def aligner(*arguments: object, folder: Path) -> str:
    """Run a command, show what it says as it goes, and return what it printed to stdout."""
    command = [sys.executable, "-m", "aligner", *map(str, arguments)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "ALIGNER_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"aligner {' '.join(map(str, arguments))} ended with {done.returncode}")
    return done.stdout


# --- plain libraries: nothing of this project between files and numbers ---------------------------


def load(result: Path, base: Path, run: Run) -> tuple[Any, Any]:
    """Model and tokenizer, as the card of a result says it."""
    import transformers
    from peft import PeftModel

    is_reward = run.method == "reward"
    kind = (
        transformers.AutoModelForSequenceClassification
        if is_reward
        else transformers.AutoModelForCausalLM
    )
    options: dict[str, Any] = {"num_labels": 1} if is_reward else {}
    if "quantization" in run.model:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    has_adapter = (result / "adapter_config.json").exists()
    model = kind.from_pretrained(base if has_adapter else result, dtype=torch.float32, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result)
    # transformers reads the reward at the last token that is not padding: it must not be the end
    # token
    if is_reward:
        card = yaml.safe_load((result / "reward_model.yaml").read_text(encoding="utf-8"))
        model.config.pad_token_id = tokenizer.convert_tokens_to_ids(card["pad_token"])
    if has_adapter:
        model = PeftModel.from_pretrained(model, result)
    # Neither the model nor the adapter has dropout; in eval mode bitsandbytes repacks 4-bit layers
    # on some processors.
    return model.train(), tokenizer


def tokens(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt with the opening of the answer, and of the answer with its end."""
    asked = [{"role": "user", "content": prompt}]
    opened = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": answer}], return_dict=False
    )
    assert whole[: len(opened)] == opened
    answer_ids = whole[len(opened) :]
    end = len(answer_ids) - answer_ids[::-1].index(tokenizer.eos_token_id)
    return opened, answer_ids[:end]


@torch.no_grad()
def answer_logps(model: Any, prompt_ids: list[int], answer_ids: list[int]) -> torch.Tensor:
    """Log-probability of each token of an answer, (T,)."""
    ids = torch.tensor([prompt_ids + answer_ids])
    logps = model(input_ids=ids).logits[0, :-1].float().log_softmax(dim=-1)
    found = logps.gather(1, ids[0, 1:, None])[:, 0]
    return found[len(prompt_ids) - 1 :]


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def plain_sft(model: Any, tokenizer: Any, folder: Path) -> float:
    """Mean negative log-likelihood of the held-out answers, in nats per token."""
    found = []
    for row in rows_of(folder / "answers-held-out.jsonl"):
        prompt, answer = tokens(tokenizer, row["prompt"], row["completion"])
        if len(prompt) + len(answer) <= MAX_LENGTH:
            found.append(answer_logps(model, prompt, answer))
    return -float(torch.cat(found).double().mean())


def _dpo_losses(
    model: Any, pairs: list[tuple[list[int], list[int], list[int]]], beta: float
) -> float:
    """Mean of -log sigmoid(beta * difference of log-ratios), with the model under the adapter as
    reference."""
    losses = []
    for prompt, chosen, rejected in pairs:
        policy = (
            answer_logps(model, prompt, chosen).sum() - answer_logps(model, prompt, rejected).sum()
        )
        with model.disable_adapter():
            reference = (
                answer_logps(model, prompt, chosen).sum()
                - answer_logps(model, prompt, rejected).sum()
            )
        losses.append(-torch.nn.functional.logsigmoid(beta * (policy - reference)))
    return float(torch.stack(losses).double().mean())


def plain_dpo(model: Any, tokenizer: Any, folder: Path) -> float:
    """DPO's loss on the held-out pairs (arXiv 2305.18290, eq. 7)."""
    pairs = []
    for row in rows_of(folder / "pairs-held-out.jsonl"):
        prompt, chosen = tokens(tokenizer, row["prompt"], row["chosen"])
        _, rejected = tokens(tokenizer, row["prompt"], row["rejected"])
        if len(prompt) + max(len(chosen), len(rejected)) <= MAX_LENGTH:
            pairs.append((prompt, chosen, rejected))
    return _dpo_losses(model, pairs, 0.1)


def plain_sapo(model: Any, tokenizer: Any, folder: Path) -> float:
    """The same loss on the held-out rewrites, whose ids the run keeps."""
    kept = json.loads(
        (folder / "sapo-lora/run/prepared/held_out_pairs.json").read_text(encoding="utf-8")
    )
    return _dpo_losses(
        model, [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in kept], 0.1
    )


@torch.no_grad()
def plain_reward(model: Any, tokenizer: Any, folder: Path) -> float:
    """Bradley-Terry's loss on the held-out pairs, rewards as transformers pools them."""
    losses = []
    for row in rows_of(folder / "pairs-held-out.jsonl"):
        prompt, chosen = tokens(tokenizer, row["prompt"], row["chosen"])
        _, rejected = tokens(tokenizer, row["prompt"], row["rejected"])
        if len(prompt) + max(len(chosen), len(rejected)) <= MAX_LENGTH:
            better, worse = (
                model(input_ids=torch.tensor([prompt + answer])).logits[0, 0]
                for answer in (chosen, rejected)
            )
            losses.append(-torch.nn.functional.logsigmoid(better - worse))
    return float(torch.stack(losses).double().mean())


PLAIN: dict[str, Callable[[Any, Any, Path], float]] = {
    "sft": plain_sft,
    "dpo": plain_dpo,
    "sapo": plain_sapo,
    "reward": plain_reward,
}


# --- the table ------------------------------------------------------------------------------------


def train(name: str, run: Run, model: Path, folder: Path, steps: int) -> list[str]:
    """Train, measure with plain libraries, and return a row of the table."""
    place = folder / name
    place.mkdir()
    (place / "recipe.yaml").write_text(
        yaml.safe_dump(recipe(run, model, folder, steps)), encoding="utf-8"
    )
    aligner(run.method, "recipe.yaml", folder=place)
    held_out = [line for line in rows_of(place / "run/metrics.jsonl") if line["split"] == "eval"]
    result = place / "run/final"
    plain = PLAIN[run.method](*load(result, model, run), folder)
    before, after = held_out[0]["loss"], held_out[-1]["loss"]
    difference = abs(plain - after)
    same = all(
        (result / file).read_bytes() == (model / file).read_bytes() for file in TOKENIZER_FILES
    )
    size = sum(file.stat().st_size for file in result.glob("*.safetensors")) / 1e6
    assert after < before, f"{name}: the held-out loss rose from {before} to {after}"
    assert difference < TOLERANCE, f"{name}: {after} in the run, {plain} from plain libraries"
    assert same, f"{name}: the tokenizer's files are not those of the model"
    assert not run.model.get("lora") or size < 12, f"{name}: an adapter of {size} MB"
    return [
        name,
        str(steps),
        f"{before:.4f}",
        f"{after:.4f}",
        f"{plain:.4f}",
        f"{difference:.0e}",
        f"{size:.1f} MB",
        "byte-equal",
    ]


def others(model: Path, folder: Path, first: Path) -> list[str]:
    """What the commands that train nothing say of the model and of the first result."""
    answer = aligner(
        "generate",
        model,
        "Name three colors.",
        "--temperature",
        0,
        "--max-new-tokens",
        40,
        folder=folder,
    )
    measured = aligner(
        "eval", first, "--data", folder / "answers-held-out.jsonl", "--json", folder=folder
    )
    scored = aligner(
        *(
            "score",
            "--data",
            folder / "answers.jsonl",
            "--reward-model",
            "verifier:number",
            "--max-rows",
            20,
        ),
        *(
            "--column",
            "prompt=prompt",
            "--column",
            "completion=completion",
            "--column",
            "answer=completion",
        ),
        folder=folder,
    )
    mosaics = {
        "method": "mosaic",
        "output_dir": "mosaics",
        "data": {"train": str(folder / "answers.jsonl"), "max_length": 512},
        "mosaic": {"tokenizer": str(model), "max_examples": 3, "epochs": 1},
    }
    (folder / "mosaic.yaml").write_text(yaml.safe_dump(mosaics), encoding="utf-8")
    built = aligner("mosaic", "mosaic.yaml", folder=folder)
    return [
        f'`aligner generate MODEL "Name three colors." --temperature 0`: {answer.strip()!r}.',
        f"`aligner eval` of {first.parents[1].name}: `{' '.join(measured.split())[:300]}`",
        "`aligner score` with `verifier:number`, the right answers on 20 rows: "
        f"`{' '.join(scored.split())[:200]}`",
        f"`aligner mosaic` on 200 rows: `{' '.join(built.split())[:300]}`",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", default=",".join(RUNS), help="some of the trainings, with commas")
    parser.add_argument("--folder", type=Path, help="keep everything in this new folder")
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.only.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "look").resolve()
        folder.mkdir()
        write_rows(options.data, folder)
        rows, said = shown() if options.write else ({}, [])
        for name in names:
            row = train(name, RUNS[name], options.model.resolve(), folder, options.steps)
            print(row, flush=True)
            rows[name] = row
            if options.write:  # now, so that a stop loses no training
                write("first-look", page(rows, said))
        if names[0] == BASE_RUN:
            said = others(options.model.resolve(), folder, folder / BASE_RUN / "run/final")
    print(page(rows, said))
    if options.write:
        write("first-look", page(rows, said))


def shown() -> tuple[dict[str, list[str]], list[str]]:
    """Rows by run, and further lines, as RESULTS.md has them."""
    lines = read("first-look").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    rows = {row[0]: row for row in cells if row[0] in RUNS}
    return rows, [line[2:] for line in lines if line.startswith("* ")]


def page(rows: dict[str, list[str]], said: list[str]) -> str:
    """The table with its rows in the order of RUNS, and what the other commands said."""
    table = [HEADER, ["---"] * len(HEADER), *(rows[name] for name in RUNS if name in rows)]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([*lines, "", *(f"* {line}" for line in said)])


if __name__ == "__main__":
    main()
