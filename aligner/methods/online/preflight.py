"""What is known before the first response: prompts of each round, scorers, engines, and room on the
disk.

The training prompts are put into one order by the seed, those that ask the same counted once, and
those of the held-out rows left out; each round takes the next of them, so no prompt comes twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from aligner.config.oracle import queries_of
from aligner.config.recipe import Model
from aligner.data.loading import load_rows
from aligner.data.rows import PromptRow, prompt_text, refuse_tools
from aligner.errors import AlignerError, DataError, RecipeError, UsageError
from aligner.events import DataReady, Notice, OnEvent, StageStarted, Warned, tell
from aligner.generation.writers import check_engine
from aligner.methods.online.recipe import Online, OnlineRecipe
from aligner.methods.steps import steps_of
from aligner.models.files import check_model_path
from aligner.models.fingerprint import model_fingerprint
from aligner.reward_models.catalogue import RELATIVE, holds, read_spec
from aligner.reward_models.ensemble import refuse_cycles, scored_together
from aligner.reward_models.judge_base import read_rubric
from aligner.reward_models.named_inputs import named_inputs
from aligner.runs.run import Run
from aligner.runs.stages import STALE

FEW = 8
"""Prompts below which a round is remarked on."""
BYTES_OF_TOKEN = 12
"""Of a response on disk: its id in JSON, and its text."""
STATES = 3
"""What a checkpoint holds beside the weights: two moments of the optimizer, and rounding."""


@dataclass
class Inputs:
    """The prompts of each round and the held-out ones, and what they came from."""

    rounds: list[list[PromptRow]]
    held_out: list[PromptRow]
    files: dict[str, str]
    fingerprint: str
    ledger: dict[str, Any]
    left_out: dict[str, int] = field(default_factory=dict)

    def record(self, run: Run, recipe: OnlineRecipe) -> None:
        """Write down what was read, and what stands behind the recipe's other names; what changed
        since is seen by the stages."""
        named = named_inputs(recipe)
        found = {"fingerprint": self.fingerprint, "sources": self.files, "named": named}
        run.write_json("inputs.json", found)
        run.write_json("data.json", self.ledger)

    def parents(self, start: Model, scorers: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return where the run came from. `scorers`: each with a hash of what it is."""
        model = {
            "kind": "model",
            "path": start.name_or_path,
            "fingerprint": model_fingerprint(start),
        }
        data = [
            {"kind": "data", "path": path, "fingerprint": digest}
            for path, digest in self.files.items()
        ]
        rewards = [
            {"kind": "reward_model", "path": spec, "fingerprint": digest}
            for spec, digest in scorers.items()
        ]
        return [model, *rewards, *data]


def digest_of_prompts(rows: Sequence[PromptRow]) -> str:
    """Return a hash of prompts, with the answers that verifiers compare with."""
    found = [[row.prompt, row.answer] for row in rows]
    return sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def check(recipe: OnlineRecipe) -> None:
    """Check scorers, models and engines, before rows are read.

    Raises: RecipeError or UsageError.
    """
    online = recipe.online
    named = [("online.reward_models", spec) for spec in online.reward_models]
    if online.evaluation.gold is not None:
        named.append(("online.evaluation.gold", online.evaluation.gold))
    if online.oracle is not None:
        named.append(("online.oracle.scorer", online.oracle.scorer))
    for key, spec in named:
        try:
            card = read_spec(spec)
            refuse_cycles(card)
        except AlignerError as error:
            raise type(error)(f"{key}: {error.message}", error.hint, error.problems) from error
        if scored_together(card):
            raise RecipeError(
                f"{key}: {spec} brings the scores of one call to one scale, and scores of several "
                "calls are compared here",
                "take `standardize` out of its card, or name its members in online.reward_models",
            )
    _check_relative(recipe)
    if online.oracle is not None:
        _check_proxy(recipe)
    if online.self_rewarding is not None and online.self_rewarding.rubric is not None:
        read_rubric(online.self_rewarding.rubric)
    for key in ("stronger", "weaker"):
        if (section := getattr(online, key)) is not None:
            check_model_path(section, f"online.{key}")
    check_engine(recipe.generation, recipe.model)
    if online.train == "dpo":
        steps_of("dpo").check(_as_dpo(recipe), None)


def _check_relative(recipe: OnlineRecipe) -> None:
    """Refuse scores by which rounds cannot be compared, as each policy's responses are scored among
    themselves.

    Raises: RecipeError.
    """
    evaluation, key = recipe.online.evaluation, "online.evaluation"
    if evaluation.gold is not None and holds(read_spec(evaluation.gold), RELATIVE):
        raise RecipeError(
            f"{key}.gold: {evaluation.gold} scores the responses to a prompt by comparing them "
            "with one another, which says nothing of two rounds",
            "name a scorer of single answers; of judges, `judge` (its grades) or `rating`",
        )
    relative = [spec for spec in recipe.online.reward_models if holds(read_spec(spec), RELATIVE)]
    if relative and evaluation.gold is None:
        raise RecipeError(
            f"{key}.gold is missing: {relative[0]} compares the responses to a prompt with one "
            "another, which says nothing of two rounds",
            f"name a scorer of single answers in {key}.gold",
        )
    if relative and evaluation.num_samples < 2:
        raise RecipeError(
            f"{key}.num_samples is 1, and {relative[0]} compares the responses to a prompt with "
            "one another",
            "sample 2 or more",
        )


def _check_proxy(recipe: OnlineRecipe) -> None:
    """Refuse a proxy that cannot be trained on labels.

    Raises: RecipeError.
    """
    (spec,) = recipe.online.reward_models
    card = read_spec(spec)
    if card.kind != "bradley_terry":
        raise RecipeError(
            f"online.oracle: the proxy {spec} is of the kind {card.kind}, and what is trained on "
            "the oracle's labels is a model with one score",
            "name a run of `aligner reward` (bradley_terry or odin) in online.reward_models",
        )
    check_model_path(Model(name_or_path=card.model or ""), "online.reward_models")


def _as_dpo(recipe: OnlineRecipe) -> Any:
    from aligner.methods.dpo.recipe import DpoRecipe

    return DpoRecipe(
        output_dir=recipe.output_dir, model=recipe.model, data=recipe.data, dpo=recipe.dpo
    )


def read_inputs(recipe: OnlineRecipe, on_event: OnEvent | None) -> Inputs:
    """Read the prompts, and say which round gets how many.

    Raises: DataError where there are not enough.
    """
    tell(on_event, StageStarted("reading the data"))
    loaded = load_rows(recipe.data, "prompts", recipe.seed, keep=("answer",))
    loaded.warn(on_event)
    refuse_tools([*loaded.train, *loaded.eval], "what scores responses")
    held_out = [row for row in loaded.eval if isinstance(row, PromptRow)]
    seen = {prompt_text(row) for row in held_out}
    left_out = {"held out too": 0, "come twice": 0}
    kept: list[PromptRow] = []
    asked: set[str] = set()
    for row in loaded.train:
        assert isinstance(row, PromptRow)
        text = prompt_text(row)
        if text in seen:
            left_out["held out too"] += 1
        elif text in asked:
            left_out["come twice"] += 1
        else:
            asked.add(text)
            kept.append(row)
    rounds = _rounds(recipe, kept)
    files = {
        record.path: record.sha256 for source in loaded.ledger.sources for record in source.files
    }
    inputs = Inputs(rounds, held_out, files, loaded.fingerprint, loaded.ledger.to_json(), left_out)
    table = loaded.ledger.table()
    table += [(f"prompts that {what}", f"{count:,}") for what, count in left_out.items() if count]
    table.append(("prompts of a round", f"{len(rounds[0]):,}, none of which comes again"))
    tell(on_event, DataReady(table))
    unused = len(kept) - sum(map(len, rounds))
    if unused:
        tell(on_event, Notice(f"{unused:,} of {len(kept):,} prompts are in no round"))
    if len(rounds[0]) < FEW:
        tell(on_event, Warned(f"a round has {len(rounds[0])} prompts, which is few"))
    return inputs


def _rounds(recipe: OnlineRecipe, rows: Sequence[PromptRow]) -> list[list[PromptRow]]:
    online = recipe.online
    size = online.prompts_per_round or len(rows) // online.rounds
    if size < 1 or size * online.rounds > len(rows):
        wanted = online.rounds * max(1, size)
        raise DataError(
            f"{online.rounds} rounds of {max(1, size):,} prompts need {wanted:,} different ones, "
            f"and there are {len(rows):,}",
            "use fewer online.rounds, a smaller online.prompts_per_round, or more prompts",
        )
    order = np.random.default_rng(recipe.seed).permutation(len(rows))
    shuffled = [rows[int(place)] for place in order]
    return [shuffled[start : start + size] for start in range(0, size * online.rounds, size)]


def plan_rows(recipe: OnlineRecipe, inputs: Inputs) -> list[tuple[str, str, str]]:
    """Return what a dry run says."""
    online = recipe.online
    prompts, rounds = len(inputs.rounds[0]), len(inputs.rounds)
    each = prompts * online.num_samples * _writers(online)
    held_out = len(inputs.held_out) * online.evaluation.num_samples
    rows = [
        ("rounds", f"{rounds}", f"{prompts:,} prompts each"),
        ("responses of a round", f"{each:,}", f"{online.num_samples} to each prompt"),
        ("held-out responses", f"{held_out:,}", "after each round, and of the start"),
    ]
    if online.reward_models:
        rows.append(("scores of a round", f"{each * len(online.reward_models):,}", "at most"))
    if online.self_rewarding is not None:
        samples = online.self_rewarding.samples
        rows.append(("ratings of a round", f"{each * samples:,}", "by the policy itself, at most"))
    if (oracle := online.oracle) is not None:
        shares = [queries_of(oracle, online.rounds, number) for number in range(1, rounds + 1)]
        most = f"of {oracle.scorer}, {max(shares):,} in a round at most"
        rows.append(("queries", f"{sum(shares):,}", most))
    return [*rows, ("disk", _shown(bytes_needed(recipe, inputs)), "about")]


def _writers(online: Online) -> int:
    """How many models answer the prompts of a round, at most."""
    return 1 + (online.pairing.rule in ("two_models", "anchored")) + online.future


def bytes_needed(recipe: OnlineRecipe, inputs: Inputs) -> int:
    """Return roughly what a run writes: responses, the weights that are kept, a checkpoint."""
    online = recipe.online
    samples = online.num_samples * _writers(online)
    prompts = sum(map(len, inputs.rounds))
    held_out = len(inputs.held_out) * online.evaluation.num_samples * (online.rounds + 1)
    responses = (prompts * samples + held_out) * online.max_new_tokens * BYTES_OF_TOKEN
    weights = 0 if recipe.model.lora is not None else _bytes_of(recipe.model)
    kept = online.rounds * (1 + online.future) if online.keep == "all" else 3 + online.future
    return responses + weights * (kept + 1 + 2 * STATES) + _bytes_of_proxies(online)


def _bytes_of_proxies(online: Online) -> int:
    """Of those that an oracle's labels are trained into; their checkpoints go before others
    come."""
    if online.oracle is None or online.oracle.refresh.lora is not None:
        return 0
    model = read_spec(online.reward_models[0]).model or ""
    return _bytes_of(Model(name_or_path=model)) * (online.rounds if online.keep == "all" else 2)


def _bytes_of(model: Model) -> int:
    folder = Path(model.name_or_path).expanduser()
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def refuse_full_disk(recipe: OnlineRecipe, inputs: Inputs, folder: Path) -> None:
    """Raise UsageError where what is still to be written would not fit."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    files = (path for path in folder.rglob("*") if path.is_file())
    there = sum(path.stat().st_size for path in files if STALE not in path.parts)
    free, needed = shutil.disk_usage(place).free, bytes_needed(recipe, inputs) - there
    if needed > free:
        raise UsageError(
            f"{folder}: the rounds write about {_shown(needed)}, and {_shown(free)} are free",
            "free some space, choose another output_dir, or set online.keep=last2",
        )


def _shown(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
