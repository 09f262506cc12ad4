"""`aligner data select`: from prompts to the pairs that an expert should label, in a run directory.

    candidates.jsonl   every prompt with its different responses; `select.candidates` of another
                       selection
    to_label.jsonl     the picked pairs, the first pick first: id, prompt, a, b, uncertainty, rank,
                       `label: null`
    rest.jsonl         the pairs of all other prompts
    picked.json        every number of the report, and the picked pairs as they were written
    labels.jsonl       labels, once some were read
    labelled.jsonl   the same as preference rows, to train on
    report.html        the report

The policy answers in batches and each reward model judges in parts, all of them kept in `journal/`
as they are made, so a kill costs one batch. What a response is follows from the seed and its prompt
alone, not from where the work was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aligner.acquisition.ngrams import ngram_vectors, text_of
from aligner.acquisition.selection import (
    Selection,
    Triple,
    as_row,
    different,
    prompt_key,
    select,
)
from aligner.acquisition.win_probabilities import questions, win_probabilities
from aligner.builders.select.candidates import Candidate, of_prompts, read_candidates, read_labelled
from aligner.builders.select.label_store import LABELS, PICKED
from aligner.builders.select.recipe import Select, SelectRecipe
from aligner.builders.select.report import results_of, summary_of, write_select_report
from aligner.config.load import Resolved
from aligner.config.recipe import Data, Model
from aligner.data.loading import load_rows
from aligner.data.rows import PromptRow, refuse_tools
from aligner.errors import DataError, Problem, RecipeError, UsageError
from aligner.events import DataReady, OnEvent, StageStarted, Warned, counter, tell
from aligner.generation.writers import check_engine, open_engine
from aligner.models.files import check_model_path
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Answers, Pairs, ask, chunks
from aligner.reward_models.card import Card
from aligner.reward_models.catalogue import COMPARING, holds, load_scorer, read_spec
from aligner.reward_models.ensemble import refuse_cycles, restore_budget
from aligner.reward_models.isolation import announce_walls
from aligner.reward_models.named_inputs import compare_inputs
from aligner.reward_models.verdicts import Verdicts
from aligner.runs.files import dumps, file_sha256, write_atomically
from aligner.runs.journal import Journal, run_resumable
from aligner.runs.result import RunResult
from aligner.runs.run import Run
from aligner.runs.session import Session

Array = np.ndarray

JUDGED_TOGETHER = 64
"""Prompts whose responses a reward model judges before they are written down."""
LISTED = 5
JOURNAL = "journal"
REPLIES = f"{JOURNAL}/replies.sqlite"
"""What a server answered."""


@dataclass
class Inputs:
    """Everything that was read: prompts with or without responses, labelled pairs, and the files
    they came from."""

    candidates: list[Candidate]
    labelled: list[Triple]
    files: dict[str, str]
    counts: Counter[str]
    ledger: dict[str, Any]
    table: list[tuple[str, str]]

    @property
    def fingerprint(self) -> str:
        """What was read, in short."""
        texts = [candidate.as_row() for candidate in self.candidates]
        return hashlib.sha256(
            json.dumps([texts, self.labelled], sort_keys=True).encode()
        ).hexdigest()


def run_select(
    resolved: Resolved,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    on_event: OnEvent | None = None,
) -> RunResult:
    """Choose the pairs of a recipe.

    Raises: RecipeError, DataError and UsageError, before anything that is there is touched.
    """
    recipe = resolved.recipe
    assert isinstance(recipe, SelectRecipe)
    session = Session(
        resolved=resolved,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
        on_event=on_event,
        scratch=(JOURNAL,),
    )
    specs = check_models(recipe.select)
    if recipe.select.policy is not None and recipe.select.candidates is None:
        check_engine(recipe.generation, recipe.select.policy)
    session.check_place()
    _refuse_to_delete_labels(session)
    if (done := session.done()) is not None:
        return done
    inputs = read_inputs(recipe, on_event)
    if dry_run:
        return session.plan(_plan(recipe, specs, inputs))
    run = session.open()
    compare_inputs(run, recipe, on_event)
    run.check_data(inputs.fingerprint, inputs.files)
    run.write_json("data.json", inputs.ledger)
    if recipe.select.policy is not None and recipe.select.candidates is None:
        _answer(recipe, run, inputs, on_event)
    for candidate in inputs.candidates:
        candidate.responses = [
            candidate.responses[index] for index in different(candidate.responses, inputs.counts)
        ]
    probabilities = _judge(specs, run, inputs, on_event)
    selection = _select(recipe, run, inputs, probabilities, on_event)
    tell(on_event, StageStarted("writing the files"))
    results = _write(run, specs, inputs, selection)
    return session.finish(run, results, _parents(recipe, run, specs, inputs))


def _refuse_to_delete_labels(session: Session) -> None:
    labels = session.folder / LABELS
    if session.overwrite and not session.dry_run and labels.exists():
        raise UsageError(
            f"{session.folder} holds labels, which --overwrite would delete with it",
            f"choose another output_dir, or move {labels} away",
        )


def check_models(settings: Select) -> list[str]:
    """Return the reward models, each ensemble's members in its place, having looked at all that can
    be seen without loading any.

    Raises: RecipeError when one cannot be there, counts twice or is a member of itself, or when
    disagreement is asked of a single one.
    """
    for given in settings.reward_models:
        refuse_cycles(read_spec(given))
    specs = [spec for given in settings.reward_models for spec in _members(given)]
    _refuse_twice(specs)
    for spec in specs:
        card = read_spec(spec)
        if card.model is not None:
            check_model_path(Model(name_or_path=card.model), f"select.reward_models: {spec}")
    if settings.uncertainty in ("variance", "bald") and len(specs) < 2:
        raise RecipeError(
            f"select.uncertainty is {settings.uncertainty}, the disagreement of several reward "
            "models, and there is one",
            "name more of them, or an ensemble's card; of one model there is the entropy",
        )
    if settings.policy is not None:
        check_model_path(settings.policy, "select.policy")
    return specs


def _members(spec: str) -> list[str]:
    card = read_spec(spec)
    return (
        [spec]
        if card.kind != "ensemble"
        else [inner for member in card.members for inner in _members(member)]
    )


def _refuse_twice(specs: Sequence[str]) -> None:
    """Of one that is named twice the vote would count twice, and its agreement with itself as
    agreement."""
    seen: dict[str, str] = {}
    for spec in specs:
        identity = _identity(read_spec(spec))
        if identity in seen:
            also = f", also as {seen[identity]}" if seen[identity] != spec else ""
            raise RecipeError(
                f"select.reward_models counts {spec} twice{also}",
                "name each reward model once; an ensemble counts as its members",
            )
        seen[identity] = spec


def _identity(card: Card) -> str:
    """What decides a reward model's scores, by its card: not its name, and not how its path is
    written."""
    facts = card.model_dump(
        mode="json", exclude={"name", "description", "license", "url", "accuracy", "fingerprint"}
    )
    if card.model is not None and Path(card.model).expanduser().exists():
        facts["model"] = os.path.realpath(Path(card.model).expanduser())
    return json.dumps(facts, sort_keys=True)


def read_inputs(recipe: SelectRecipe, on_event: OnEvent | None) -> Inputs:
    """Read prompts or candidates, and what is labelled already."""
    settings = recipe.select
    tell(on_event, StageStarted("reading the data"))
    labelled, label_files = read_labelled(settings.labelled)
    files = {record.path: record.sha256 for record in label_files}
    counts: Counter[str] = Counter()
    if settings.candidates is not None:
        read = read_candidates(settings.candidates, keep_unfinished=settings.keep_unfinished)
        counts += read.counts
        files |= {record.path: record.sha256 for record in read.files}
        table = [
            (settings.candidates, f"{counts['rows']:,} rows, {len(read.candidates):,} prompts")
        ]
        inputs = Inputs(
            read.candidates, labelled, files, counts, {"candidates": dict(counts)}, table
        )
        counts["responses cut off at the longest length"] = sum(
            candidate.unfinished for candidate in read.candidates
        )
    else:
        assert recipe.data is not None, "a rule asks for one of them"
        loaded = load_rows(recipe.data, "prompts", recipe.seed)
        loaded.warn(on_event)
        refuse_tools(loaded.train, "the policy of a selection")
        rows = [row for row in loaded.train if isinstance(row, PromptRow)]
        candidates, counts["prompts that came before"] = of_prompts(rows)
        files |= {
            record.path: record.sha256
            for source in loaded.ledger.sources
            for record in source.files
        }
        table = loaded.ledger.table()
        inputs = Inputs(candidates, labelled, files, counts, loaded.ledger.to_json(), table)
    if labelled:
        table.append(("labelled already", f"{len(labelled):,} pairs"))
    tell(on_event, DataReady(table))
    return inputs


def _plan(recipe: SelectRecipe, specs: Sequence[str], inputs: Inputs) -> list[tuple[str, str, str]]:
    settings, prompts = recipe.select, len(inputs.candidates)
    rows = [("prompts", f"{prompts:,}", "different ones")]
    if settings.candidates is None:
        completions = prompts * settings.num_samples
        rows.append(("responses to write", f"{completions:,}", f"{settings.num_samples} each"))
    if specs:
        rows.append(
            ("judged by", f"{len(specs)} reward models" if len(specs) > 1 else specs[0], "")
        )
    return [
        *rows,
        (
            "to be labelled",
            f"at most {min(settings.budget, prompts):,} pairs",
            f"{settings.strategy}",
        ),
    ]


# --- responses ------------------------------------------------------------------------------------


def _answer(recipe: SelectRecipe, run: Run, inputs: Inputs, on_event: OnEvent | None) -> None:
    """Let the policy answer every prompt; long prompts first, so that a batch too big for memory
    fails at once."""
    from aligner.generation.decode import PART_BATCHES

    settings, candidates = recipe.select, inputs.candidates
    order = sorted(
        range(len(candidates)), key=lambda index: -len(text_of(candidates[index].prompt))
    )
    rows = PART_BATCHES * settings.batch_size
    parts = _chunks(order, max(1, rows // settings.num_samples))
    journal = run.dir / JOURNAL / "responses.jsonl"

    with ExitStack() as stack:

        def make() -> tuple[str, Callable[[list[int]], Any]]:
            tell(on_event, StageStarted("loading the policy"))
            return _writer(recipe, run, candidates, on_event, stack)

        def count(part: list[int]) -> int:
            return len(part) * settings.num_samples

        written = run_resumable(journal, "writing responses", parts, make, on_event, count)
    for index, samples in zip(order, (samples for part in written for samples in part)):
        candidate = candidates[index]
        if samples is None:
            inputs.counts["prompts too long to be answered"] += 1
            continue
        candidate.responses = [
            text for text, is_whole in samples if is_whole or settings.keep_unfinished
        ]
        candidate.unfinished = len(samples) - len(candidate.responses)
        inputs.counts["responses cut off at the longest length"] += candidate.unfinished


def _writer(
    recipe: SelectRecipe,
    run: Run,
    candidates: Sequence[Candidate],
    on_event: OnEvent | None,
    stack: ExitStack,
) -> tuple[str, Callable[[list[int]], Any]]:
    """Return the policy's fingerprint, and what answers the prompts of a part; None for one that is
    too long. `stack` holds the engine."""
    from aligner.generation.decode import generate
    from aligner.generation.sampling import Sampling
    from aligner.models.fingerprint import model_fingerprint
    from aligner.models.libraries import disable_progress_bars
    from aligner.models.loading import load_policy
    from aligner.models.positions import max_positions
    from aligner.models.tokenizers import load_tokenizer
    from aligner.tokenization.encode import check_tokenizer

    disable_progress_bars()
    settings, section = recipe.select, recipe.select.policy
    assert section is not None
    assert recipe.data is not None
    tokenizer = load_tokenizer(section)
    for note in check_tokenizer(tokenizer):
        tell(on_event, Warned(note))
    policy, engine = stack.enter_context(
        open_engine(
            recipe.generation,
            section,
            tokenizer,
            load=partial(load_policy, section, tokenizer, trainable=False),
            batch_size=settings.batch_size,
            cache=run.dir / REPLIES,
            on_event=on_event,
        )
    )
    limit = min(recipe.data.max_length, max_positions(policy) or recipe.data.max_length)
    too_long = _too_long(tokenizer, candidates, recipe.data, limit, settings.max_new_tokens)
    sampling = Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        num_samples=settings.num_samples,
        seed=recipe.seed,
    )

    def work(part: list[int]) -> list[Any]:
        asked = [index for index in part if index not in too_long]
        prompts = [candidates[index].prompt for index in asked]
        # by the prompt alone: its responses do not depend on which others are asked
        digests = [hashlib.sha256(prompt_key(prompt).encode()).digest() for prompt in prompts]
        streams = [int.from_bytes(digest[:6], "big") for digest in digests]
        samples_of = generate(policy, tokenizer, prompts, sampling, streams=streams, engine=engine)
        completions = {}
        for index, samples in zip(asked, samples_of):
            completions[index] = [
                [sample.text, sample.finish_reason == "stop"] for sample in samples
            ]
        return [completions.get(index) for index in part]

    return model_fingerprint(section), work


def _too_long(
    tokenizer: Any, candidates: Sequence[Candidate], data: Data, limit: int, room: int
) -> set[int]:
    """Return the prompts that leave no room for a response, or refuse them, as `data.on_too_long`
    says."""
    from aligner.tokenization.encode import encode_prompt

    lengths = [len(encode_prompt(tokenizer, candidate.prompt)) for candidate in candidates]
    too_long = {index for index, length in enumerate(lengths) if length + room > limit}
    if too_long and (data.on_too_long == "error" or len(too_long) == len(candidates)):
        worst = sorted(too_long, key=lambda index: -lengths[index])[:LISTED]
        raise DataError(
            f"{len(too_long):,} of {len(candidates):,} prompts leave no room for {room} tokens of "
            f"a response within {limit}",
            "lower select.max_new_tokens, raise data.max_length as far as the model goes, or set "
            "data.on_too_long=drop",
            [
                Problem(f"{lengths[index]:,} tokens", where=candidates[index].origin)
                for index in worst
            ],
        )
    return too_long


# --- judgement ------------------------------------------------------------------------------------


def _judge(
    specs: Sequence[str], run: Run, inputs: Inputs, on_event: OnEvent | None
) -> list[Array] | None:
    """Return the win probabilities of each prompt's responses, one model in memory at a
    time; None without models."""
    if not specs:
        return None
    run.record_isolation(announce_walls(list(map(read_spec, specs)), on_event))
    candidates = [candidate for candidate in inputs.candidates if len(candidate.responses) > 1]
    prompts = [candidate.prompt for candidate in candidates]
    responses = [candidate.responses for candidate in candidates]
    references = [candidate.answer for candidate in candidates]
    origins = [candidate.origin for candidate in candidates]
    by_model = []
    for number, spec in enumerate(specs):
        several = f" ({number + 1} of {len(specs)})" if len(specs) > 1 else ""
        what = f"judging responses{several}"
        compares = holds(read_spec(spec), COMPARING)
        rows, owners = questions(prompts, responses, references, origins, compares=compares)
        parts: list[list[int]] = [[] for _ in range(0, len(candidates), JUDGED_TOGETHER)]
        for row, owner in enumerate(owners):
            parts[owner // JUDGED_TOGETHER].append(row)
        journal = Journal(run.dir / JOURNAL / f"verdicts-{number}.jsonl")
        journal.tell_resumed(what, len(parts), on_event)
        verdicts = ask(
            partial(_load, spec, run, journal, what, on_event),
            rows,
            parts,
            journal=journal,
            keep_silent=True,
            on_progress=counter(on_event, what),
            sizes=list(map(len, chunks(len(candidates), JUDGED_TOGETHER))),
        )
        probabilities = win_probabilities(responses, verdicts, compares=compares)
        by_model.append(probabilities)
        _tell_unjudged(spec, rows, verdicts, probabilities, on_event)
        notes = Counter(verdicts.remarks.values())
        for note, count in notes.most_common(3):
            tell(on_event, Warned(f"{spec}: {count:,} responses: {note}"))
    judged = iter(map(np.stack, zip(*by_model)))
    counts = [len(candidate.responses) for candidate in inputs.candidates]
    return [next(judged) if n > 1 else np.full((len(specs), n, n), 0.5) for n in counts]


def _load(spec: str, run: Run, journal: Journal, what: str, on_event: OnEvent | None) -> Scorer:
    """Load a reward model, whose verdicts go into the journal."""
    tell(on_event, StageStarted(f"loading {spec}"))
    scorer = load_scorer(spec)
    assert journal.path is not None
    started = run.read_json("environment.json")["sessions"][0]["started"]
    restore_budget(scorer, journal.path, started)
    journal.fingerprint = scorer.fingerprint()
    journal.check(what)
    return scorer


def _tell_unjudged(
    spec: str,
    rows: Answers | Pairs,
    verdicts: Verdicts,
    probabilities: Sequence[Array],
    on_event: OnEvent | None,
) -> None:
    """Say how many pairs are left out since a model has no verdict on them, and where the first
    ones are."""
    reasons: dict[str, str] = {}
    for row, reason in verdicts.silent.items():
        reasons.setdefault(rows.origins[row], reason)
    count = sum(int(np.isnan(matrix).sum()) // 2 for matrix in probabilities)
    if count:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:LISTED])
        tell(
            on_event,
            Warned(f"{spec} gave no verdict on {count:,} pairs, which are left out. {first}"),
        )


# --- the choice -----------------------------------------------------------------------------------


def _select(
    recipe: SelectRecipe,
    run: Run,
    inputs: Inputs,
    probabilities: list[Array] | None,
    on_event: OnEvent | None,
) -> Selection:
    """Choose, and say where there is less to choose from than was asked for."""
    settings = recipe.select
    tell(on_event, StageStarted("selecting pairs"))
    selection = select(
        [candidate.prompt for candidate in inputs.candidates],
        [candidate.responses for candidate in inputs.candidates],
        settings.budget,
        win_probabilities=probabilities,
        strategy=settings.strategy,
        pair=settings.pair,
        uncertainty=settings.uncertainty,
        pool_factor=settings.pool_factor,
        spread=settings.spread,
        labelled=inputs.labelled,
        embed=ngram_vectors if settings.embedding == "ngrams" else _embedder(recipe, run, on_event),
        seed=recipe.seed,
        on_pick=counter(on_event, "selecting pairs"),
    )
    selection.counts += inputs.counts
    if not selection.picked:
        losses = "; ".join(f"{count:,} {what}" for what, count in selection.counts.items() if count)
        raise DataError(
            f"there is no pair to be labelled among {len(inputs.candidates):,} prompts: {losses}",
            "more samples, a higher temperature or a larger select.max_new_tokens give different "
            "responses",
        )
    if len(selection.picked) < settings.budget:
        too_few = (
            f"there are {len(selection.picked):,} pairs to choose from, fewer than the budget of "
            f"{settings.budget:,}"
        )
        tell(on_event, Warned(f"{too_few}: all are taken"))
    return selection


def _embedder(
    recipe: SelectRecipe, run: Run, on_event: OnEvent | None
) -> Callable[[Sequence[Triple]], Array]:
    """Return what makes vectors from the policy's hidden states, batch by batch."""
    from aligner.acquisition.embeddings import load_embedder, unit_vectors

    section = recipe.select.policy
    assert section is not None

    def embed(pairs: Sequence[Triple]) -> Array:
        def make() -> tuple[str, Callable[[list[int]], Any]]:
            tell(on_event, StageStarted("loading the policy"))
            key, read = load_embedder(section)
            return key, lambda part: read([pairs[index] for index in part])

        parts = _chunks(list(range(len(pairs))), max(1, recipe.select.batch_size // 2))
        journal = run.dir / JOURNAL / "embeddings.jsonl"
        packed = run_resumable(journal, "reading hidden states", parts, make, on_event, len)
        return unit_vectors([row for part in packed for row in part])

    return embed


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# --- the end --------------------------------------------------------------------------------------


def _write(
    run: Run, specs: Sequence[str], inputs: Inputs, selection: Selection
) -> dict[str, float]:
    """Write the files and the report, and return the results."""
    picked = [{**as_row(pair), "rank": rank} for rank, pair in enumerate(selection.picked, start=1)]
    rows = {
        "candidates.jsonl": [candidate.as_row() for candidate in inputs.candidates],
        "to_label.jsonl": [{**row, "label": None} for row in picked],
        "rest.jsonl": [as_row(pair) for pair in selection.rest],
    }
    for name, lines in rows.items():
        write_atomically(run.dir / name, "".join(dumps(line) + "\n" for line in lines))
    summary = {
        **summary_of(selection, len(inputs.candidates), specs),
        "files": {name: file_sha256(run.dir / name) for name in rows},
        "pairs": [
            {**row, "probability": pair.probability, "answer": inputs.candidates[pair.row].answer}
            for row, pair in zip(picked, selection.picked)
        ],
    }
    run.write_json(PICKED, summary)
    write_select_report(run.dir)
    return results_of(summary)


def _parents(
    recipe: SelectRecipe, run: Run, specs: Sequence[str], inputs: Inputs
) -> list[dict[str, Any]]:
    """Return where the selection came from: the policy, the reward models, the files."""
    parents: list[dict[str, Any]] = []
    policy = recipe.select.policy.name_or_path if recipe.select.policy else ""
    made = [
        ("embeddings.jsonl" if recipe.select.candidates else "responses.jsonl", "model", policy)
    ]
    made += [
        (f"verdicts-{number}.jsonl", "reward model", spec) for number, spec in enumerate(specs)
    ]
    for name, kind, path in made:
        fingerprint = Journal(run.dir / JOURNAL / name).recorded_fingerprint
        if fingerprint is not None:
            parents.append({"kind": kind, "path": path, "fingerprint": fingerprint})
    return [
        *parents,
        *({"kind": "data", "path": path, "fingerprint": sha} for path, sha in inputs.files.items()),
    ]
