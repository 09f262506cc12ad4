"""A scorer as a judge: a reward model, a verifier, a rubric, a judge that grades, an ensemble.

Each answer is scored once and the score is kept, so both orders of a battle have the same scores,
and a resumed run asks only about what is new. A scorer that compares (`pairwise`, `judge`, an
ensemble with such a member) is asked about each pair once, since it looks at both orders itself:
the first answer gets the probability that it is better, the second one the rest, and `flips` in
`decoding` says that the order decided. So the seat share of a scorer is 1/2 by construction, and
says nothing about it.

Scores have the unit of the scorer. A row that a scorer has no verdict on is a game that `failed`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.arena.battle.sheets import Item, Judged, Judging, Sheet
from aligner.endpoints.request import Completion
from aligner.endpoints.store import Store
from aligner.errors import EndpointError
from aligner.reward_models.base import Scorer
from aligner.reward_models.batching import Answers, Pairs, ask_parts, chunks
from aligner.reward_models.card import Card
from aligner.reward_models.catalogue import COMPARING, holds, load_scorer, members_of, read_spec
from aligner.reward_models.ensemble import leaves, restore_budget
from aligner.reward_models.judge_base import JudgeBase
from aligner.reward_models.named_inputs import scorer_parts
from aligner.reward_models.verdicts import Verdict

AT_ONCE = 256
"""Answers, or pairs of them, whose scores are kept together: what a kill costs at most."""

Question = tuple[Item, str, str | None]
"""A prompt with one answer, or with two that are compared, the smaller text first."""


class ScorerJudge:
    """Judges with a scorer. `cache`: the file that keeps scores."""

    template_sha = ""

    def __init__(self, name: str, spec: str, cache: Path) -> None:
        self.id = name
        self.spec = spec
        self._cache = cache
        self.compares = holds(read_spec(spec), COMPARING)
        self._scorer: Scorer | None = None

    @functools.cached_property
    def rev(self) -> str:
        """A digest of the scorer's card and of all that it names: weights, programs, lists."""
        if not _is_here(read_spec(self.spec)):
            self._load()  # from the hub, so that its files are known
        parts = [(Path(name).name, digest) for name, digest in scorer_parts(self.spec).items()]
        return sha256(json.dumps(sorted(parts)).encode()).hexdigest()[:16]

    def judge(self, sheets: Sequence[Sheet]) -> Judging:
        """Score what has no score yet, and put scores side by side.

        Raises: DataError for a prompt that cannot be judged (no right answer, another world).
        """
        questions = {self._digest(one): one for sheet in sheets for one in self._of(sheet)}
        with _opened(self._cache) as kept:
            known = {key: verdict for key in questions if (verdict := _kept(kept, key)) is not None}
            new = {key: one for key, one in questions.items() if key not in known}
            found: dict[str, Verdict] = {}
            stopped = self._ask(new, kept, found)
        said = known | found
        return Judging([self._judged(sheet, said, known) for sheet in sheets], stopped)

    def usage(self) -> dict[str, Any]:
        """What language models among its parts were asked, under the name of each."""
        if self._scorer is None:
            return {}
        return {part.name: part.usage() for part in _asked_parts(self._scorer)}

    def close(self) -> None:
        """Close the clients of language models, and forget the scorer."""
        if self._scorer is not None:
            for part in _asked_parts(self._scorer):
                part.close()
        self._scorer = None

    def _load(self) -> Scorer:
        if self._scorer is None:
            self._scorer = load_scorer(self.spec)
            if _asked_parts(self._scorer):
                restore_budget(self._scorer, self._cache, self.id)
        return self._scorer

    def _of(self, sheet: Sheet) -> list[Question]:
        texts = sheet.first.text, sheet.second.text
        if self.compares:
            return [(sheet.item, min(texts), max(texts))]
        return [(sheet.item, text, None) for text in texts]

    def _digest(self, question: Question) -> str:
        item, one, other = question
        asked = [self.rev, item.prompt, item.reference, one, other]
        return sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()

    def _ask(
        self, new: dict[str, Question], kept: Store, found: dict[str, Verdict]
    ) -> EndpointError | None:
        """Put the verdicts on new questions into `found`; what stopped it, if anything did."""
        if not new:
            return None
        keys = list(new)
        rows = _rows(list(new.values()), compared=self.compares)
        try:
            for verdicts, _ in ask_parts(self._load, rows, chunks(len(keys), AT_ONCE)):
                part = {keys[row]: verdict for row, verdict in verdicts.items()}
                _keep(kept, self.spec, part)
                found |= part
        except EndpointError as error:
            return error
        return None

    def _judged(
        self, sheet: Sheet, said: dict[str, Verdict], known: dict[str, Verdict]
    ) -> Judged | None:
        keys = [self._digest(question) for question in self._of(sheet)]
        if any(key not in said for key in keys):
            return None
        verdicts = [said[key] for key in keys]
        remarks = [verdict.error or verdict.remark for verdict in verdicts]
        text = "; ".join(dict.fromkeys(filter(None, remarks)))
        is_kept = all(key in known for key in keys)
        values = [verdict.value for verdict in verdicts if verdict.value is not None]
        if len(values) < len(verdicts):
            return Judged("failed", raw_text=text, cache_hit=is_kept)
        first, second = values[0], values[-1]
        if self.compares:
            is_sorted = sheet.first.text <= sheet.second.text
            first = first if is_sorted else 1.0 - first
            second = 1.0 - first
        decoding = {"flips": True} if verdicts[0].flipped else {}
        return Judged("ok", first, second, text, decoding, is_kept)


def _asked_parts(scorer: Scorer) -> list[JudgeBase]:
    """The language models among the parts of a scorer."""
    return [part for part in leaves(scorer) if isinstance(part, JudgeBase)]


@contextmanager
def _opened(cache: Path) -> Iterator[Store]:
    store = Store(cache)
    try:
        yield store
    finally:
        store.close()


def _kept(store: Store, key: str) -> Verdict | None:
    reply = store.get(key)
    return None if reply is None else Verdict(**json.loads(reply.text))


def _keep(store: Store, spec: str, verdicts: Mapping[str, Verdict]) -> None:
    """Keep verdicts in one commit; that there is none is not kept."""
    replies = []
    for key, verdict in verdicts.items():
        if verdict.value is not None:
            said = {name: getattr(verdict, name) for name in ("value", "remark", "flipped")}
            replies.append((key, spec, Completion(json.dumps(said))))
    store.write(replies=replies)


def _is_here(card: Card) -> bool:
    """Whether the files of its models are on this machine."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    from aligner.models.fingerprint import model_parts

    if card.model is not None:
        try:
            model_parts(card.model, card.revision)
        except LocalEntryNotFoundError:
            return False
    return all(map(_is_here, members_of(card)))


def _rows(questions: Sequence[Question], *, compared: bool) -> Answers | Pairs:
    items = [item for item, _, _ in questions]
    prompts = [item.prompt for item in items]
    first = [one for _, one, _ in questions]
    references = [item.reference for item in items]
    origins = [item.origin or f"prompt {item.id}" for item in items]
    if compared:
        second = [other or "" for _, _, other in questions]
        return Pairs(prompts, first, second, references, origins)
    return Answers(prompts, first, references, origins)
