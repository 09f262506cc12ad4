"""Contestants: who they are, and how each answers the prompts of an arena, in a stage of its own.

    answers/NAME/answers.jsonl     the answers, as battles have them
    answers/NAME/responses.jsonl   of a model here: what it wrote, in shards (a journal)

A model here is sampled in shards, a model behind an endpoint is asked with all its replies kept in
the run's cache, and a file is matched by id, else by text. What a reasoning model thought before
its answer is taken off. Nobody has seen a second answer: a prompt that leaves no room for one, or
that a server refuses, has an empty answer, which is said and loses.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.arena.battle.answer_files import AnswerFile, read_answer_file, refuse_missing
from aligner.arena.battle.asking import ask_endpoint
from aligner.arena.battle.prompts import digest_of_items
from aligner.arena.battle.recipe import Arena
from aligner.arena.battle.sheets import Answer, Item, Prompt
from aligner.arena.battle.spend import Spend
from aligner.config.battles import Contestant
from aligner.config.recipe import Generation, Model
from aligner.data.reasoning import without_reasoning
from aligner.data.rows import PromptRow, as_turns
from aligner.endpoints.client import check_endpoint
from aligner.endpoints.identity import identity_of
from aligner.errors import AlignerError, DataError, UsageError
from aligner.events import Notice, OnEvent, StageStarted, Warned, tell
from aligner.generation.shard_ranks import sample
from aligner.generation.shards import RESPONSES, Asking, responses_in, shards
from aligner.generation.writers import check_engine
from aligner.models.fetched import fetched_fingerprint
from aligner.models.files import check_model_path
from aligner.runs.digests import digests_of
from aligner.runs.files import dumps, json_line, write_parts_atomically
from aligner.runs.stages import Stage, Stages

FOLDER, ANSWERS = "answers", "answers.jsonl"
NO_ROOM = "the prompt leaves no room for an answer"
NO_LIMIT = 10_000_000
BATCHES_OF_A_SHARD = 4
REV_DIGITS = 16

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,60}")


@dataclass(frozen=True)
class Answering:
    """How contestants answer: the settings of a recipe, its seed, and where replies of servers are
    kept."""

    arena: Arena
    seed: int
    cache: Path
    generation: Generation = field(default_factory=Generation)
    spend: Spend | None = None
    on_event: OnEvent | None = None

    def settings(self) -> dict[str, Any]:
        """Return what decides the answers of a model, beside it and the prompts."""
        keys = {"system", "temperature", "top_p", "max_new_tokens"}
        return {"seed": self.seed, **self.arena.model_dump(mode="json", include=keys)}

    def asked(self, item: Item) -> Prompt:
        """Return what a model is asked: the prompt, behind the system prompt of the recipe where it
        has none of its own."""
        if self.arena.system is None:
            return item.prompt
        turns = as_turns(item.prompt, "user")
        if turns[0]["role"] in ("system", "developer"):
            return turns
        return [{"role": "system", "content": self.arena.system}, *turns]


@dataclass(frozen=True)
class Answered:
    """What a contestant answered, by the id of the prompt, and what is counted of it. `rev`: what
    tells it from others of its name, as `rev_of` says."""

    answers: Mapping[str, Answer]
    facts: Mapping[str, Any]
    digest: str = ""
    rev: str = ""


def check_contestants(
    sections: Sequence[Contestant], generation: Generation, where: str = "arena.contestants"
) -> None:
    """Look at models, endpoints and files before anything is read. `where`: the key of the recipe
    that they stand at. Asks nobody.

    Raises: RecipeError, UsageError or DataError that names the key.
    """
    for place, section in enumerate(sections):
        key = f"{where}[{place}]"
        try:
            if section.model is not None:
                check_model_path(section.model, f"{key}.model")
                check_engine(generation, section.model)
            elif section.endpoint is not None:
                check_endpoint(section.endpoint)
            elif not Path(str(section.answers)).expanduser().is_file():
                raise DataError(f"{section.answers} is not a file", "name a file of answers")
        except AlignerError as error:
            if error.message.startswith(key):
                raise
            raise type(error)(f"{key}: {error.message}", error.hint, error.problems) from error


def read_files(sections: Sequence[Contestant], items: Sequence[Item]) -> dict[str, AnswerFile]:
    """Return the answers of the contestants that are files.

    Raises: DataError for rows that cannot be used, and for prompts without an answer.
    """
    found = {}
    for section in sections:
        if section.answers is not None:
            path = Path(section.answers).expanduser()
            found[section.name] = read_answer_file(path, items, section.name)
            refuse_missing(path, items, found[section.name].answers)
    return found


def answers_of(
    section: Contestant,
    items: Sequence[Item],
    how: Answering,
    stages: Stages,
    given: AnswerFile | None = None,
) -> Answered:
    """Return a contestant's answers, from its stage where that is done. `given`: what its file
    says, where it is one.

    Raises: EndpointError where a server cannot be asked any more, with what it said kept.
    """
    made = made_of(section, items, how)
    stage = stages.open(f"{FOLDER}/{folder_of(section.name)}", made)
    if not stage.is_done:
        tell(how.on_event, StageStarted(f"answers of {section.name}"))
        facts = _write(stage, section, items, how, given)
        stage.finish(facts)
        for remark in remarks_on(section.name, facts):
            tell(how.on_event, remark)
    assert stage.facts is not None, "it is finished"
    answers = read_answer_file(stage.folder / ANSWERS, items, section.name).answers
    return Answered(answers, stage.facts, stage.digest, rev_of(made))


def find_models(sections: Sequence[Contestant]) -> None:
    """Fetch the models that are not on this machine yet.

    Raises: RecipeError for one that is nowhere.
    """
    for section in sections:
        if section.model is not None:
            fetched_fingerprint(section.model)
        elif section.endpoint is not None:
            identity_of(section.endpoint)


def made_of(section: Contestant, items: Sequence[Item], how: Answering) -> dict[str, Any]:
    """Return what decides a contestant's answers."""
    found: dict[str, Any] = {"name": section.name, "prompts": digest_of_items(items)}
    if section.model is not None:
        engine = how.generation.engine
        model = {"model": fetched_fingerprint(section.model), "engine": engine}
        return {**found, **model, "batch_size": how.arena.batch_size, **how.settings()}
    if section.endpoint is not None:
        twin = {"twin": twins} if (twins := _twins_before(section, how.arena.contestants)) else {}
        return {**found, "endpoint": identity_of(section.endpoint), **twin, **how.settings()}
    path = Path(str(section.answers)).expanduser()
    return {**found, "file": digests_of([path])[path]}


def rev_of(made: Mapping[str, Any]) -> str:
    """Return what tells who answered from others of the same name: the beginning of a digest of a
    model's files, of the file of answers, or of what is known of an endpoint. `made`: what decided
    the answers, as `made_of` says."""
    known = next(made[kind] for kind in ("model", "endpoint", "file") if kind in made)
    digest = known if isinstance(known, str) else sha256(dumps(known).encode()).hexdigest()
    return digest[:REV_DIGITS]


def _twins_before(section: Contestant, others: Sequence[Contestant]) -> int:
    """How many contestants before this one have its endpoint's model: each draws its own
    answers."""
    assert section.endpoint is not None
    mine, count = identity_of(section.endpoint), 0
    for other in others:
        if other.name == section.name:
            break
        count += other.endpoint is not None and identity_of(other.endpoint) == mine
    return count


def folder_of(name: str) -> str:
    """Return a folder's name for a contestant: its own, where any file system takes it."""
    if _PLAIN_NAME.fullmatch(name) and not name.endswith("."):
        return name
    plain = re.sub(r"[^\w-]+", "-", name, flags=re.ASCII).strip("-")[:40]
    return f"{plain or 'name'}-{sha256(name.encode()).hexdigest()[:8]}"


def remarks_on(name: str, facts: Mapping[str, Any]) -> list[Notice | Warned]:
    """Say what is remarkable of a contestant's answers."""
    found: list[Notice | Warned] = []
    prompts = facts["prompts"]
    if facts["reasoned"]:
        text = f"{name}: thinking was taken off {facts['reasoned']:,} of {prompts:,} answers"
        found.append(Notice(f"{text} before they are judged"))
    if facts["others"]:
        found.append(Notice(f"{name}: {facts['others']:,} answers are to other prompts: left out"))
    for what, count in facts["missing"].items():
        found.append(Warned(f"{name} has no answer to {count:,} of {prompts:,} prompts: {what}"))
    if facts["cut"]:
        found.append(Warned(f"{name}: {facts['cut']:,} of {prompts:,} answers were cut off"))
    return found


@dataclass(frozen=True, slots=True)
class _Said:
    """What came of one prompt, as it came."""

    text: str
    is_cut: bool = False
    missing: str = ""


def _write(
    stage: Stage,
    section: Contestant,
    items: Sequence[Item],
    how: Answering,
    given: AnswerFile | None,
) -> dict[str, Any]:
    """Have the prompts answered, write the answers, and return what is counted."""
    others = reasoned = 0
    if section.model is not None:
        said = _sampled(stage, section.name, section.model, items, how)
    elif section.endpoint is not None:
        prompts = [how.asked(item) for item in items]
        replies = ask_endpoint(
            section.name,
            section.endpoint,
            prompts,
            how.settings(),
            cache=how.cache,
            sample_index=_twins_before(section, how.arena.contestants),
            spend=how.spend,
            on_event=how.on_event,
        )
        said = [_Said(reply.text, reply.is_cut, reply.missing) for reply in replies]
    else:
        assert given is not None, "files are read before anything is asked"
        said = [_Said(given.answers[item.id].text, given.answers[item.id].is_cut) for item in items]
        others, reasoned = given.others, given.reasoned
    lines, counts, length = [], Counter[str](), 0
    missing: Counter[str] = Counter()
    for item, one in zip(items, said, strict=True):
        plain = without_reasoning(one.text)
        is_reasoned = plain != one.text.strip()
        text = plain if is_reasoned else one.text
        row = {"prompt_id": item.id, "prompt": item.prompt, "answer": text, "model": section.name}
        more = {"is_cut": True} if one.is_cut else {}
        lines.append(
            json_line({**row, **more, **({"missing": one.missing} if one.missing else {})})
        )
        counts.update(cut=one.is_cut, empty=not text.strip(), reasoned=is_reasoned)
        missing.update([one.missing] if one.missing else [])
        length += len(text)
    write_parts_atomically(stage.folder / ANSWERS, lines)
    return {
        "prompts": len(items),
        "empty": counts["empty"],
        "cut": counts["cut"],
        "reasoned": reasoned + counts["reasoned"],
        "others": others,
        "missing": dict(missing),
        "mean_length": length / max(1, len(items)),
    }


def _sampled(
    stage: Stage, name: str, model: Model, items: Sequence[Item], how: Answering
) -> list[_Said]:
    """Have a model here answer."""
    rows = [PromptRow(how.asked(item), origin=item.origin) for item in items]
    asking = Asking(
        section=model,
        generation=how.generation,
        temperatures=[how.arena.temperature],
        num_samples=1,
        max_new_tokens=how.arena.max_new_tokens,
        max_length=NO_LIMIT,
        seed=how.seed,
        shard_size=BATCHES_OF_A_SHARD * how.arena.batch_size,
        batch_size=how.arena.batch_size,
        stream=f"arena {name}",
        on_event=how.on_event,
        top_p=how.arena.top_p,
        who=name,
    )
    journal = stage.journal(RESPONSES)
    for _ in sample(stage, rows, asking, journal):
        pass
    said = []
    for number in range(len(shards(rows, asking.shard_size))):
        for samples in responses_in(journal, number):
            one = samples[0] if samples else None
            said.append(
                _Said("", missing=NO_ROOM) if one is None else _Said(one.text, not one.is_finished)
            )
    _refuse_no_room(name, said, how.arena.max_new_tokens)
    return said


def _refuse_no_room(name: str, said: Iterable[_Said], max_new_tokens: int) -> None:
    if all(one.missing == NO_ROOM for one in said):
        raise UsageError(
            f"{name}: no prompt leaves room for {max_new_tokens:,} tokens within what the model "
            "can read",
            "set a smaller max_new_tokens",
        )
