"""What TRL's reward functions become: scorers.

They get whole batches with every column of the rows there; here a scorer gets one prompt, its
response and the row's `answer`. Functions that are known become scorers. Others are lost; where
that is asked for, a file that calls them one response at a time is written beside the recipe.
"""

from __future__ import annotations

from aligner.config.migrate.migration import FILE, Migration, Note

THINK = r"(?s)\A<think>(?!.*<think>).*?</think>"
"""What TRL's `think_format_reward` looks for, without its group, which would be compared."""

OVERLONG = (1280, 256)
"""Longest response and buffer of the `get_soft_overlong_punishment` that TRL's command has."""

_MATHEMATICS = ("accuracy_reward", "reasoning_accuracy_reward")


def place_scorers(migration: Migration) -> None:
    """Place what scores responses, in the order that the weights have."""
    old = migration.old
    model = old.get("reward_model_name_or_path")
    asked = [*([model] if model else []), *(old.get("reward_funcs") or [])]
    weights = old.get("reward_weights") or [1.0] * len(asked)
    found: list[str] = []
    kept: list[float] = []
    functions: list[str] = []
    for name, weight in zip(asked, weights, strict=False):
        scorer = _scorer(migration, str(name), weight, functions)
        if scorer:
            found.append(scorer)
            kept.append(weight)
    if not found:
        return
    migration.put("rlhf.reward_models", found)
    key = "reward_funcs" if old.get("reward_funcs") else "reward_model_name_or_path"
    migration.notes.append(Note("renamed", key, "rlhf.reward_models"))
    if functions:
        migration.files[".py"] = ("rlhf.reward_models", _module(functions))
    if len(found) > 1:
        _together(migration, kept)


def _together(migration: Migration, weights: list[float]) -> None:
    old = migration.old
    if old.get("reward_weights"):
        migration.rename("reward_weights", "rlhf.reward_weights", weights)
    added = old.get("multi_objective_aggregation") or "sum_then_normalize"
    if added != "normalize_then_sum":
        text = "here each reward is normalized before they are added (normalize_then_sum)"
        migration.lose("multi_objective_aggregation", text, added)


def _scorer(migration: Migration, name: str, weight: float, functions: list[str]) -> str:
    """Return the scorer that a reward function becomes; nothing where it becomes none."""
    if name == "think_format_reward":
        return f"verifier:regex={THINK}"
    if name in _MATHEMATICS:
        text = "it compares mathematics by math-verify; `verifier:number` compares numbers"
        migration.lose("reward_funcs", text, name)
        _answers_from(migration, "solution")
        return "verifier:number"
    if name == "get_soft_overlong_punishment":
        _overlong(migration, name, weight)
        return ""
    parts = name.split(".")
    if len(parts) == 1 or not all(part.isidentifier() for part in parts):
        return name
    text = "functions there get batches and all columns; here one response and its `answer`"
    migration.lose("reward_funcs", text, name)
    functions.append(name)
    return f"verifier:{FILE}:{name.replace('.', '_')}"


def _overlong(migration: Migration, name: str, weight: float) -> None:
    longest, buffer = OVERLONG
    if migration.old.get("max_completion_length") == longest and weight == 1:
        migration.put("rlhf.overlong_buffer", buffer)
        migration.notes.append(Note("renamed", name, f"rlhf.overlong_buffer: {buffer}"))
        return
    text = f"it is made for {longest} tokens; `rlhf.overlong_buffer` is for any length"
    migration.lose("reward_funcs", text, name)


def _answers_from(migration: Migration, column: str) -> None:
    for split in ("data.train", "data.eval"):
        sources = migration.get(split)
        for one in sources if isinstance(sources, list) else []:
            one.setdefault("columns", {}).setdefault("answer", column)


def _module(functions: list[str]) -> str:
    """Return the file that calls such functions one response at a time."""
    modules = sorted({name.rpartition(".")[0] for name in functions})
    imports = "".join(f"import {name}\n" for name in modules)
    scorers = "".join(
        _FUNCTION.format(name=one.replace(".", "_"), function=one) for one in functions
    )
    return _MODULE + imports + _ASK + scorers


_MODULE = '''"""Reward functions written for TRL, called with one response at a time.

They get lists of one, and of the row's columns the right answer alone, as `answer` and `solution`:
where a function compares responses, or reads other columns, rewrite it.
"""

import os
import sys

sys.path.insert(0, os.getcwd())

'''

_ASK = """

def ask(function, prompt, completion, reference):
    response = completion
    if not isinstance(prompt, str):
        response = [{"role": "assistant", "content": completion}]
    columns = {"answer": [reference], "solution": [reference]}
    return float(function(prompts=[prompt], completions=[response], **columns)[0])
"""

_FUNCTION = """

def {name}(prompt, completion, reference):
    return ask({function}, prompt, completion, reference)
"""
