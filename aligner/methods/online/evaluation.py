"""The last stage of a round: its policy answers the held-out prompts, and is measured on them.

    responses.jsonl, scores-N.jsonl   as in the rounds; the last scorer is gold, where there is one
    logps.jsonl                       the responses under the policy and under the start
    metrics.json                      everything measured, for both parts of the held-out prompts

The start is measured too, as round 0. KL is to it, in nats a response, at temperature 1 and in
float32 (`measures.kl_of_responses`). Which held-out prompts choose the best round (`validation`)
and which report alone (`test`) follows from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from aligner.config.recipe import Model
from aligner.data.rows import PromptRow
from aligner.events import OnEvent, StageStarted, tell
from aligner.generation.shard_ranks import sample
from aligner.generation.shards import (
    RESPONSES,
    Asking,
    Response,
    responses_in,
    shards,
)
from aligner.methods.online.measures import (
    Scores,
    by_prompt,
    change,
    distinct,
    kl_of_responses,
    mean_and_error,
    proxy_accuracy,
    win_rate,
)
from aligner.methods.online.recipe import Online
from aligner.methods.online.scoring import Scoring, journals_of, scores_in
from aligner.runs.stages import Stage

if TYPE_CHECKING:
    from aligner.models.answers import Prefix

METRICS, LOGPS = "metrics.json", "logps"


@dataclass(frozen=True)
class HeldOut:
    """The held-out prompts, and how they are measured."""

    rows: Sequence[PromptRow]
    online: Online
    seed: int
    on_event: OnEvent | None = None

    @cached_property
    def is_validation(self) -> list[bool]:
        """Which prompts choose; at least one, and not all where some are to report."""
        share, count = self.online.evaluation.validation, len(self.rows)
        chosen = min(count, max(1, round(share * count)))
        order = np.random.default_rng(self.seed).permutation(count)
        among = set(order[:chosen].tolist())
        return [place in among for place in range(count)]

    @property
    def reporting(self) -> list[int]:
        """The prompts that win rates are over: those that do not choose; all, where none report."""
        others = _numbers([not chooses for chooses in self.is_validation])
        return others or list(range(len(self.rows)))

    @property
    def specs(self) -> list[str]:
        """The scorers that are asked: the rewards, and gold behind them."""
        gold = self.online.evaluation.gold
        return [*self.online.reward_models, *([gold] if gold is not None else [])]


@dataclass(frozen=True)
class Measured:
    """The responses of a policy to the held-out prompts, and what scorers say of them."""

    responses: Sequence[Sequence[Response]]
    rewards: Scores
    gold: Scores | None

    @property
    def judged(self) -> Scores:
        """What win rates are by: gold, or the reward where there is none."""
        return self.rewards if self.gold is None else self.gold


def evaluate(
    stage: Stage,
    held_out: HeldOut,
    asking: Asking,
    start: Model,
    earlier: Sequence[Stage],
) -> None:
    """Measure a policy, and finish the stage. `earlier`: the stages of the start and of each round
    before, none for the start itself."""
    if stage.is_done:
        return
    rows = held_out.rows
    parts, journal = shards(rows, asking.shard_size), stage.journal(RESPONSES)
    for _ in sample(stage, rows, asking, journal):
        pass
    Scoring(stage, held_out.specs, rows, journal, parts, held_out.on_event).run()
    found = read_measured(stage, held_out, parts)
    kl = _kl(stage, found.responses, rows, asking, start) if earlier else [[0.0] for _ in rows]
    facts: dict[str, Any] = {}
    for part in ("validation", "test"):
        chosen = [flag == (part == "validation") for flag in held_out.is_validation]
        facts[part] = _measures(found, kl, chosen) if any(chosen) else None
    reporting = held_out.reporting
    facts["wins"], facts["changes"] = {}, {}
    for name, other in zip(("start", "previous"), (earlier[:1], earlier[-1:])):
        if other:
            theirs = read_measured(other[0], held_out, parts)
            our_scores = [found.judged[place] for place in reporting]
            their_scores = [theirs.judged[place] for place in reporting]
            rate = win_rate(our_scores, their_scores, held_out.seed)
            facts["wins"][name] = None if rate is None else asdict(rate)
            if name == "previous":
                facts["changes"] = _changes(found, theirs, held_out.is_validation)
    facts["samples"] = _samples(found, rows)
    stage.write(METRICS, facts)
    stage.finish({key: facts[key] for key in ("validation", "test", "wins", "changes")})


def read_measured(stage: Stage, held_out: HeldOut, parts: Sequence[range]) -> Measured:
    """Read what a stage holds."""
    responses, rewards, gold = stage.journal(RESPONSES), [], []
    journals = journals_of(stage, held_out.specs)
    proxies = journals[: len(held_out.online.reward_models)]
    has_gold = held_out.online.evaluation.gold is not None
    said: list[list[Response]] = []
    for number in range(len(parts)):
        said += responses_in(responses, number)
        if proxies:
            rewards += scores_in(proxies, held_out.online.reward_weights, number)
        if has_gold:
            gold += scores_in(journals[-1:], [], number)
    empty: Scores = [[None] * len(row) for row in said]
    return Measured(said, rewards or empty, gold if has_gold else None)


def _measures(found: Measured, kl: Sequence[Sequence[float]], chosen: Sequence[bool]) -> Any:
    """What is said of the chosen prompts."""
    picked = _numbers(chosen)
    said = list(chain.from_iterable(found.responses[place] for place in picked))
    reward, error = mean_and_error(by_prompt([found.rewards[place] for place in picked]))
    facts: dict[str, Any] = {
        "prompts": len(picked),
        "reward": reward,
        "reward_stderr": error,
        "kl": fmean([fmean(kl[place]) for place in picked if kl[place]] or [0.0]),
        "tokens": fmean(len(one.token_ids) for one in said) if said else 0.0,
        "finished": fmean(one.is_finished for one in said) if said else 0.0,
        "distinct_2": distinct([one.text for one in said]),
    }
    if found.gold is not None:
        gold = [found.gold[place] for place in picked]
        facts["gold"], facts["gold_stderr"] = mean_and_error(by_prompt(gold))
        rewards = [found.rewards[place] for place in picked]
        accuracy, pairs = proxy_accuracy(rewards, gold)
        facts |= {"proxy_accuracy": accuracy, "proxy_pairs": pairs}
    return facts


def _numbers(chosen: Sequence[bool]) -> list[int]:
    return [place for place, flag in enumerate(chosen) if flag]


def _changes(now: Measured, before: Measured, chosen: Sequence[bool]) -> dict[str, Any]:
    """How much reward and gold changed on the validation prompts since the round before."""
    pairs: dict[str, tuple[Scores, Scores]] = {"reward": (now.rewards, before.rewards)}
    if now.gold is not None and before.gold is not None:
        pairs["gold"] = (now.gold, before.gold)
    places = _numbers(chosen)
    return {
        name: change(by_prompt(after)[places], by_prompt(earlier)[places])
        for name, (after, earlier) in pairs.items()
    }


SHOWN = 6


def _samples(found: Measured, rows: Sequence[PromptRow]) -> list[dict[str, Any]]:
    """The first response to the first prompts, for the report."""
    shown = []
    for row, responses, scores in list(zip(rows, found.responses, found.judged))[:SHOWN]:
        if responses:
            shown.append({"prompt": row.prompt, "text": responses[0].text, "score": scores[0]})
    return shown


# --- KL -------------------------------------------------------------------------------------------


def _kl(
    stage: Stage,
    responses: Sequence[Sequence[Response]],
    rows: Sequence[PromptRow],
    asking: Asking,
    start: Model,
) -> list[list[float]]:
    """Return the estimate of each response (N, S)."""
    journal = stage.journal(LOGPS)
    sampled = []
    for row in responses:
        sampled.append([one.logps for one in row])
    if 0 not in journal and None not in chain.from_iterable(sampled):
        journal.add(0, sampled)
    for number, section in enumerate((asking.section, start)):
        if number not in journal:
            tell(asking.on_event, StageStarted("computing the KL to the start"))
            journal.add(number, _token_logps(section, responses, rows, asking))
    return kl_of_responses(journal[0], journal[1])


def _token_logps(
    section: Model,
    responses: Sequence[Sequence[Response]],
    rows: Sequence[PromptRow],
    asking: Asking,
) -> list[list[list[float]]]:
    """The log-probability of each token of each response, under a model; the responses to a prompt
    share its computation where the model allows it."""
    import torch

    from aligner.models.answers import answer_tokens, joined, stack_answers
    from aligner.models.forward import batches_by_length, eval_mode
    from aligner.models.fused_head import fuse_head
    from aligner.models.loading import load_policy
    from aligner.models.tokenizers import load_tokenizer
    from aligner.tokenization.encode import encode_prompt
    from aligner.training.prefix import why_not

    tokenizer = load_tokenizer(section)
    exact = section.model_copy(update={"dtype": "float32"})
    section = exact if section.quantization == "none" else section
    model = load_policy(section, tokenizer, trainable=False)
    fuse_head(model)
    asked = {}
    for place, (row, samples) in enumerate(zip(rows, responses, strict=True)):
        if samples:
            prompt = encode_prompt(tokenizer, row.prompt)
            asked[place] = [(prompt, one.token_ids) for one in samples]
    groups = [joined(group) for group in asked.values()]
    prefix: Prefix = "separate" if why_not(model, groups) else "auto"
    lengths = [max(map(len, group)) for group in groups]
    together = max(1, asking.batch_size // asking.num_samples)
    found: list[list[list[float]]] = [[] for _ in rows]
    places = list(asked)
    with eval_mode(model), torch.no_grad():
        for numbers in batches_by_length(lengths, rows=together):
            chosen = [places[number] for number in numbers]
            batch = stack_answers(
                [asked[place] for place in chosen], tokenizer.pad_token_id, prefix
            )
            batch = {name: value.to(model.device) for name, value in batch.items()}
            logps = iter(answer_tokens(model, batch).logps.tolist())
            for branch in range(asking.num_samples):
                for place in chosen:
                    found[place].append(next(logps)[: len(asked[place][branch][1])])
    return found
