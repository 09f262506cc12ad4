"""How fast mosaics are made: against drawing and tokenizing at every step of growth, and by the
number of rows.

    python -m benchmarks.speed.mosaic [--rows N] [--largest N] [--write]

The peer is the straightforward loop: a sample grows one example at a time; at each step its look
and rule are drawn afresh, it is rendered and tokenized, and the last rendering that fits is kept.
It makes samples of the same examples as ours, on one core, with the same tokenizer, a byte-pair
encoder trained on the rows. Ours includes measuring the rows, and the check of every sample; the
peer checks nothing. Then ours is run over more and more rows from a file, each time in a process of
its own and with estimated lengths, since tokenizing is linear anyway: CPU time, and peak memory
above that of the loaded libraries. With `--write` the result goes into `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.results import write

WORDS = 4000
MEAN_TOKENS = 190
ROUNDS = 3
LIMIT = 2000


def vocabulary() -> list[str]:
    """Made-up words, short ones first."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgk"
    return [
        "".join(rng.choices(letters, weights=range(len(letters), 0, -1), k=rng.randint(2, 9)))
        for _ in range(WORDS)
    ]


def rows(number: int) -> Iterator[dict[str, Any]]:
    """Questions and answers of log-normal lengths, about as long as those of Alpaca-GPT4."""
    rng, words = random.Random(1), vocabulary()
    for place in range(number):
        asked, said = (max(3, int(rng.lognormvariate(mean, 0.7))) for mean in (2.7, 4.2))
        question = f"{rng.choice(words).title()} {place}: {' '.join(rng.choices(words, k=asked))}?"
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": " ".join(rng.choices(words, k=said))},
        ]
        yield {"messages": turns}


def write_rows(path: Path, number: int) -> Path:
    """One file of rows."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(number))
    return path


def write_tokenizer(folder: Path) -> Path:
    """A byte-level BPE with 8,000 entries and a ChatML-like template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [turn["content"] for row in rows(2000) for turn in row["messages"]]
    special = ["<pad>", "<end>", "<start>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", bos_token="<start>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<start>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<start>assistant\n{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def against_growth(folder: Path, number: int) -> tuple[float, float, int]:
    """Samples per CPU-second of the straightforward loop and of ours, and how many samples were
    made."""
    from aligner.builders.mosaic.engine import Counts
    from aligner.builders.mosaic.epochs import mosaics_of
    from aligner.builders.mosaic.phrasings import load_phrasings
    from aligner.builders.mosaic.plan import Planner
    from aligner.builders.mosaic.render import render
    from aligner.config.recipe import Data, Model, Mosaic, Source
    from aligner.data.loading import load_rows
    from aligner.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(Model(name_or_path=str(folder / "tokenizer")), needs_model=False)
    path = write_rows(folder / "some.jsonl", number)
    data = load_rows(Data(train=[Source(path=str(path))]), "sft", 0).train
    started = time.process_time()
    mosaics, counts = (
        mosaics_of(data, Mosaic(), tokenizer=tokenizer, max_tokens=LIMIT, seed=0),
        Counts(),
    )
    samples = [sample for number in range(4) for sample in mosaics.epoch_samples(number, counts)]
    ours = time.process_time() - started

    planner, rng = Planner(Mosaic(), load_phrasings(), Counter()), random.Random(0)
    started = time.process_time()
    for sample in samples:
        examples = [mosaics.examples[number] for number in sample.plan.examples]
        for size in range(1, len(examples) + 1):
            rendered = render(
                planner.plan(sample.plan.examples[:size], examples[:size], rng), examples[:size]
            )
            if len(tokenizer.tokenize(rendered.prompt + rendered.completion)) >= LIMIT:
                break
    theirs = time.process_time() - started
    return len(samples) / theirs, len(samples) / ours, len(samples)


def _build(folder: str, number: int, answers: Any) -> None:
    """Build the mosaics of a file, and say how long it took and how much memory it needed."""
    os.chdir(folder)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)
    from aligner.builders.mosaic.build import run_mosaic
    from aligner.config.load import load_recipe

    before = memory_kib("VmRSS")
    settings = {
        "data.train": f"{number}.jsonl",
        "output_dir": f"out-{number}",
        "data.max_length": LIMIT,
    }
    started = time.process_time()
    run_mosaic(load_recipe("mosaic", None, ["mosaic.epochs=1"], settings))
    answers.put((time.process_time() - started, (memory_kib("VmHWM") - before) / 1024))


def memory_kib(name: str) -> int:
    """Memory of this process now (`VmRSS`) or at its peak (`VmHWM`); getrusage would count what the
    parent held."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1])


def by_rows(folder: Path, largest: int) -> Iterator[tuple[int, float, float]]:
    """(rows, CPU-seconds, MiB above the libraries) of whole builds."""
    context = multiprocessing.get_context("spawn")
    number = 10_000
    while number <= largest:
        write_rows(folder / f"{number}.jsonl", number)
        answers = context.Queue()
        process = context.Process(target=_build, args=(str(folder), number, answers))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(
                f"the build of {number:,} rows ended with exit code {process.exitcode}"
            )
        seconds, memory = answers.get()
        yield number, seconds, memory
        (folder / f"{number}.jsonl").unlink()
        number *= 10


def lines(folder: Path, number: int, largest: int) -> Iterator[str]:
    """What goes into RESULTS.md."""
    rounds = [against_growth(folder, number) for _ in range(ROUNDS)]
    theirs, ours = (statistics.median(one[place] for one in rounds) for place in (0, 1))
    yield (
        f"One core, {number:,} rows of about {MEAN_TOKENS} tokens, {rounds[0][2]:,} samples, "
        f"median of {ROUNDS} rounds: "
        f"{theirs:,.0f} samples per CPU-second drawn and tokenized at every step, {ours:,.0f} by "
        "`aligner mosaic`, checks included: "
        f"{ours / theirs:.1f} times (goal: 5)."
    )
    yield (
        "\n| rows (lengths estimated) | CPU-seconds an epoch | rows per second "
        "| memory above the libraries |\n| --- | --- | --- | --- |"
    )
    for count, seconds, memory in by_rows(folder, largest):
        yield f"| {count:,} | {seconds:,.1f} | {count / seconds:,.0f} | {memory:,.0f} MiB |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument(
        "--write", action="store_true", help="write the result into benchmarks/RESULTS.md"
    )
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(Path(name) / "tokenizer")
        text = ""
        for line in lines(Path(name), options.rows, options.largest):
            print(line, flush=True)
            text += f"{line}\n"
    if options.write:
        write("mosaic-speed", text.rstrip())


if __name__ == "__main__":
    main()
