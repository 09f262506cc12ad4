"""How fast rows become tokens: against TRL's own preparation of a dataset, and by the number of
rows.

    python -m benchmarks.speed.tokenizing [--rows N] [--largest N] [--model DIR] [--write]

The same rows for both: conversations for SFT, trained on the answers alone, and pairs for DPO. With
`--model` they are read by the tokenizer and chat template in that folder, else by an encoder of
bytes trained on the rows. TRL reads a mask of the answers only from a template that marks them, so
for it the assistant's turns are marked, and we read the template as it comes. TRL's part is
`SFTTrainer._prepare_dataset` and `DPOTrainer._prepare_dataset` alone, on a dataset that is loaded
already; ours is everything from typed rows to the checksummed folder that ranks and resumed runs
read. Each tool works in a process of its own: CPU-seconds with one process, wall seconds with two
(TRL's `dataset_num_proc`; ours stays one process whose tokenizer uses two threads, as it does where
`TOKENIZERS_PARALLELISM=true` is set). Then ours is run over more and more rows: CPU time, and peak
memory above that of the process before it, which holds the rows already; pages of files that are
only mapped do not count. With `--write` the result goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import write
from benchmarks.speed.mosaic import memory_kib, rows, write_tokenizer

ROUNDS = 3
LENGTH = 4096
TOOLS = ("trl", "aligner")
PROCESSES = (1, 2)


def chats(number: int) -> Iterator[dict[str, Any]]:
    """Conversations, as those of mosaics."""
    yield from rows(number)


def pairs(number: int) -> Iterator[dict[str, Any]]:
    """A question, its answer, and the words of the answer in another order."""
    for row in rows(number):
        asked, answered = row["messages"]
        words = answered["content"].split()
        other = {"role": "assistant", "content": " ".join([*words[1:], words[0], "no"])}
        yield {"prompt": [asked], "chosen": [answered], "rejected": [other]}


KINDS = {"sft": chats, "dpo": pairs}


def write_rows(path: Path, kind: str, number: int) -> Path:
    """Write one file of rows."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in KINDS[kind](number))
    return path


def marked(template: str) -> str:
    """Return a template that writes the same and marks the assistant's whole turns, as well as a
    loop over messages can be marked from outside."""
    before, name, rest = re.split(r"(?<=for )(\w+)(?= in messages %})", template, maxsplit=1)
    loop, end, body = rest.partition("%}")
    turn, _, behind = body.rpartition("{% endfor %}")
    return (
        f"{before}{name}{loop}{end}{{% if {name}['role'] == 'assistant' %}}{{% generation %}}{turn}"
        f"{{% endgeneration %}}{{% else %}}{turn}{{% endif %}}{{% endfor %}}{behind}"
    )


def _by_trl(kind: str, model: str, file: str, processes: int) -> dict[str, float]:
    """Prepare a dataset as TRL's trainer does when it is made."""
    import datasets
    import trl
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer_class, config_class = (
        (trl.SFTTrainer, trl.SFTConfig) if kind == "sft" else (trl.DPOTrainer, trl.DPOConfig)
    )
    settings = {"assistant_only_loss": True, "max_length": LENGTH} if kind == "sft" else {}
    arguments = config_class(
        output_dir="trl",
        report_to="none",
        bf16=False,
        use_cpu=True,
        dataset_num_proc=None if processes == 1 else processes,
        **settings,
    )
    trainer = trainer_class.__new__(trainer_class)
    trainer._tokenizer, trainer.completion_only_loss = tokenizer, True
    trainer.chat_template = marked(tokenizer.chat_template)
    with open(file, encoding="utf-8") as lines:
        data = datasets.Dataset.from_list([json.loads(line) for line in lines])
    more = (False, None) if kind == "sft" else ()
    with Meter() as meter:
        made = trainer._prepare_dataset(data, tokenizer, arguments, *more, "train")
    columns = ("input_ids",) if kind == "sft" else ("chosen_ids", "rejected_ids")
    tokens = sum(len(ids) for name in columns for ids in made[name])
    return {**meter.found(), "rows": len(data), "tokens": tokens}


def _by_aligner(kind: str, model: str, file: str, processes: int) -> dict[str, float]:
    """Tokenize typed rows as a training does."""
    from aligner.config.load import load_recipe
    from aligner.methods.preparation import (
        load_checked_tokenizer,
        load_data,
        load_method,
        tokenize_rows,
    )

    settings = {
        "model.name_or_path": model,
        "data.train": file,
        "data.max_length": LENGTH,
        "output_dir": "run",
    }
    recipe = load_recipe(kind, None, [], settings).recipe
    data = load_data(recipe, None)
    load_method(recipe)
    tokenizer = load_checked_tokenizer(recipe, None)
    with Meter() as meter:
        tokenize_rows(recipe, data, tokenizer, Path("prepared"))
    books = data.ledger.split("train")
    tokens = books.tokens if kind == "sft" else books.trained_tokens
    return {**meter.found(), "rows": books.rows_in, "tokens": tokens}


class Meter:
    """Seconds and the peak of memory that is no file's, in MiB, of what happens inside."""

    def __enter__(self) -> Meter:
        self.before = self.peak = memory_kib("RssAnon")
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        self.cpu, self.wall = time.process_time(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu, self.wall = time.process_time() - self.cpu, time.monotonic() - self.wall
        self.ended.set()
        self.watch.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.05):
            self.peak = max(self.peak, memory_kib("RssAnon"))

    def found(self) -> dict[str, float]:
        """Return what was measured."""
        mib = (self.peak - self.before) / 1024
        return {"cpu_s": self.cpu, "wall_s": self.wall, "mib": mib}


def _work(
    tool: str, kind: str, model: str, file: str, processes: int, folder: str, answers: Any
) -> None:
    """Prepare rows in this process, in a folder of its own, and put what it took into
    `answers`."""
    os.chdir(folder)
    os.environ.update(
        {
            "TOKENIZERS_PARALLELISM": "true" if tool == "aligner" and processes > 1 else "false",
            "RAYON_NUM_THREADS": str(processes),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": folder,
        }
    )
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    work = _by_trl if tool == "trl" else _by_aligner
    answers.put(work(kind, model, file, processes))


def measure(tool: str, kind: str, model: Path, file: Path, processes: int = 1) -> dict[str, float]:
    """Let a tool prepare a file of rows in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (tool, kind, str(model), str(file), processes, folder, answers)
        process = context.Process(target=_work, args=arguments)
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"{tool} ended with exit code {process.exitcode} on {file}")
    found: dict[str, float] = answers.get()
    return found


def against_trl(folder: Path, model: Path, number: int) -> Iterator[str]:
    """Both tools in turn: rows per second, CPU-seconds of one process and wall seconds of two."""
    yield (
        f"{number:,} rows, median of {ROUNDS} rounds; one process by CPU-seconds, two by wall "
        "seconds.\n\n| rows | processes | TRL (rows per second) | aligner | ratio |\n"
        "| --- | --- | --- | --- | --- |"
    )
    for kind, name in (("sft", "conversations for SFT"), ("dpo", "pairs for DPO")):
        file = write_rows(folder / f"{kind}.jsonl", kind, number)
        for processes in PROCESSES:
            clock = "cpu_s" if processes == 1 else "wall_s"
            rates: dict[str, list[float]] = {tool: [] for tool in TOOLS}
            tokens = set()
            for _ in range(ROUNDS):
                for tool in TOOLS:
                    found = measure(tool, kind, model, file, processes)
                    rates[tool].append(found["rows"] / found[clock])
                    tokens.add((tool, found["tokens"]))
            theirs, ours = (statistics.median(rates[tool]) for tool in TOOLS)
            if kind == "sft":
                assert len({count for _, count in tokens}) == 1, f"not the same tokens: {tokens}"
            yield f"| {name} | {processes} | {theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f} |"


def by_rows(folder: Path, model: Path, largest: int) -> Iterator[str]:
    """Ours over more and more conversations."""
    yield (
        "\n| conversations | CPU-seconds | rows per second | memory above the loaded rows |\n"
        "| --- | --- | --- | --- |"
    )
    number = 10_000
    while number <= largest:
        file = write_rows(folder / f"{number}.jsonl", "sft", number)
        found = measure("aligner", "sft", model, file)
        rate = found["rows"] / found["cpu_s"]
        yield f"| {number:,} | {found['cpu_s']:,.1f} | {rate:,.0f} | {found['mib']:,.0f} MiB |"
        file.unlink()
        number *= 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--model", type=Path, help="a folder with a tokenizer and a chat template")
    parser.add_argument(
        "--write", action="store_true", help="write the result into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or write_model(folder / "model")
        text = ""
        for lines in (
            against_trl(folder, model.resolve(), options.rows),
            by_rows(folder, model.resolve(), options.largest),
        ):
            for line in lines:
                print(line, flush=True)
                text += f"{line}\n"
    if options.write:
        write("tokenizing", text.rstrip())


def write_model(folder: Path) -> Path:
    """Write the smallest model that goes with the encoder of mosaics."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=LENGTH,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
