"""A task whose answers a program can check: three short lines of a list, in words of one's own.

    python examples/three_lines.py tasks.jsonl prompts.jsonl     # rows with an `instruction`
    aligner generate MODEL --data prompts.jsonl -n 4 --max-new-tokens 32 -o sampled.jsonl
    VERIFIER=verifier:examples/three_lines.py:share
    aligner score --data sampled.jsonl --reward-model $VERIFIER -o scored.jsonl

`prompts` and `pairs` are functions for `data` (docs/data.md), `share` is one for `verifier:`
(reward_models/README.md). Recipes that use them: `rlhf/smollm2-135m-lines`,
`reward/smollm2-135m-lines`, `rlhf/smollm2-135m-lines-segment`. Measured by
`benchmarks/real/rlhf.py`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

LINES = 3
FEWEST_WORDS, MOST_WORDS = 2, 5
LONGEST_LINE = 40
"""Characters; with the words it leaves no room for chains such as `sit-up-sac-fit-moo`, which a
policy found when words were what white space separates."""
WORD = re.compile(r"[^\W_][^\W_']*")
MARK = "- "
EXAMPLE = ("- eat more fruit", "- sleep early", "- take a walk")
ASKED = (
    f'Answer with a list of exactly three lines. Each line starts with "{MARK}" and has at most '
    "five words, for example:\n" + "\n".join(EXAMPLE)
)
LONGEST = 160
"""Characters of an instruction; longer ones are dropped."""
MOST_PAIRS = 3
"""Pairs made of the answers to one prompt."""


def prompts(row: dict[str, Any]) -> dict[str, str] | None:
    """Return the instruction of a row in the form of Alpaca or Self-Instruct, with what is asked;
    None for a long one, and for one that wants a label."""
    given = row.get("input") or next((one["input"] for one in row.get("instances", [])), "")
    text = f"{row['instruction']}\n\n{given}".strip()
    if len(text) > LONGEST or row.get("is_classification"):
        return None
    return {"prompt": f"{text}\n\n{ASKED}"}


def share(prompt: Any, completion: str, reference: str | None) -> float:
    """Return the share, 0 to 1, of what was asked that an answer keeps to: a third for having three
    lines, all different; a third of the share of its lines that start as they should, and a third
    of those of a right length. Lines of the example, and repeated ones, count as wrong."""
    lines = [line.strip() for line in completion.splitlines() if line.strip()]
    if not lines:
        return 0.0
    plain = {line.lower().rstrip(".") for line in EXAMPLE}
    own: list[str] = []
    for line in lines:
        if (said := line.lower().rstrip(".")) not in plain:
            own.append(line)
            plain.add(said)
    marked = sum(line.startswith(MARK) for line in own)
    short = sum(
        FEWEST_WORDS <= len(WORD.findall(line)) <= MOST_WORDS and len(line) <= LONGEST_LINE
        for line in own
    )
    return ((len(own) == len(lines) == LINES) + (marked + short) / len(lines)) / 3


def pairs(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return pairs of the scored answers to a prompt, as `aligner score` writes them: the best with
    the worst, the second best with the second worst, ..., where their scores differ."""
    scored = {one["text"]: score for one, score in zip(row["completions"], row["scores"])}
    ranked = sorted(
        (text for text in scored if text.strip()), key=lambda text: (scored[text], text)
    )
    half = min(MOST_PAIRS, len(ranked) // 2)
    return [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for worse, better in zip(ranked[:half], ranked[::-1])
        if scored[worse] < scored[better]
    ]


def main(tasks: Path, output: Path) -> None:
    """Write the prompts of a file of tasks, for `aligner generate`."""
    rows = [json.loads(line) for line in tasks.read_text(encoding="utf-8").splitlines()]
    found = [prompt for row in rows if (prompt := prompts(row)) is not None]
    output.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
