"""Whether a judge can be trusted: everything that its log of games shows, as one record.

For each judge by itself: parse failures, what sways it (`judge_bias.py`), cycles and the fit of
Bradley-Terry (`transitivity.py`); then how far judges agree (`judge_agreement.py`). A judge fails
where a number is beyond its limit. For the preferences, which chance moves to both sides, the
interval must also lie beyond what no preference would be; such an interval alone is a finding. What
cannot be computed is said, and fails nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from aligner.arena.judge_agreement import agreement
from aligner.arena.judge_bias import Bias, add_length, add_repeats, add_seats, add_self_preference
from aligner.arena.judgments import Judgments
from aligner.arena.transitivity import cycles, fit, pairs_of
from aligner.errors import DataError
from aligner.evaluation.bootstrap import Estimate

Record = dict[str, Any]

NONE = {"first_seat": 0.5, "score_shift": 0.0, "length_lead": 0.0, "self_preference": 0.0}
"""Preference -> its value where there is none."""

ALL_FAILED = "no battle has replies that could all be read"


@dataclass(frozen=True)
class Limits:
    """Beyond which a judge fails. `seat`: of the share of decisive games that either seat wins."""

    flip_rate: float = 0.4
    parse_failures: float = 0.05
    seat: float = 0.6
    length_lead: float = 0.1
    self_preference: float = 0.1


@dataclass(frozen=True)
class Settings:
    """How a judge is diagnosed; `families`: of names whose family is not in the name."""

    limits: Limits = Limits()
    families: Mapping[str, str] = field(default_factory=dict)
    resamples: int = 1000
    seed: int = 0


def diagnose(games: Judgments, how: Settings) -> Record:
    """The record: `judges`, one entry for each; `agreement`; `families`; `passed`.

    Raises: DataError for files without a game, and for a family of a name that is not there.
    """
    if not len(games):
        raise DataError("there is no game in these files", "give the games of a judge")
    families = _families(games, how.families)
    family_of = {name: row["family"] for name, row in families.items()}
    whole = games.whole
    judges = {}
    for number, name in enumerate(games.judges):
        mine, read = games.judge == number, whole.judge == number
        bias = Bias(how.resamples, how.seed)
        row = _judge(games.where(mine), whole.where(read), bias)
        add_self_preference(bias, whole, number, family_of)
        row |= {key: asdict(value) for key, value in bias.found.items()}
        if not read.any():
            bias.missing = dict.fromkeys((*bias.missing, "cycles", "fit"), ALL_FAILED)
        row |= {"cases": bias.cases, "missing": bias.missing | row["missing"]}
        row["is_contestant"] = name in games.models
        relatives = [model for model in games.models if family_of[model] == family_of[name]]
        row["relatives"] = relatives
        row["failed"] = _failed(row["parse_failures"]["share"], bias.found, how.limits)
        row["findings"] = _findings(bias.found)
        judges[name] = row
    agreed = agreement(whole)
    return {
        "games": len(games),
        "judges": judges,
        "agreement": agreed,
        "families": families,
        "settings": {"limits": asdict(how.limits), "resamples": how.resamples, "seed": how.seed},
        "passed": not any(row["failed"] for row in judges.values()),
        "missing": {} if agreed else {"agreement": _no_agreement(games)},
    }


def unknown_liking(name: str, row: Record) -> str:
    """What is said of a judge that judges its own family where nothing tells liking from quality;
    empty where there is nothing to say."""
    if not row["relatives"] or "self_preference" not in row["missing"]:
        return ""
    kin, why = ", ".join(row["relatives"]), row["missing"]["self_preference"]
    return f"the judge {name} is of the family of {kin}, by its name; whether it likes them: {why}"


def _no_agreement(games: Judgments) -> str:
    if len(games.judges) < 2:
        return "there is one judge alone"
    return "no two judges judged the same two models on the same prompt"


def _judge(games: Judgments, whole: Judgments, bias: Bias) -> Record:
    """What a judge's games show, apart from what is about its family."""
    add_seats(bias, whole)
    add_length(bias, whole)
    add_repeats(bias, whole)
    row: Record = {"games": len(games), "battles": len(np.unique(games.battle)), "missing": {}}
    row |= {"prompts": len(np.unique(games.prompt)), "parse_failures": _failures(games)}
    if not len(whole):
        return row | {"cycles": None, "fit": None}
    pairs = pairs_of(whole)
    fitted = fit(whole, pairs)
    if isinstance(fitted, str):
        row["missing"]["fit"] = fitted
    row["cycles"] = cycles(pairs, games.models)
    if len(np.unique([pairs.low, pairs.high])) < 3:
        row["cycles"], row["missing"]["cycles"] = None, "there are no three models"
    return row | {"fit": None if isinstance(fitted, str) else fitted}


def _failures(games: Judgments) -> Record:
    """Share of replies that could not be read: of all, and by model and the seat it sat in."""
    failed = np.isnan(games.margin)
    by_model = {}
    for model, name in enumerate(games.models):
        seats = {}
        for seat, column in (("first", games.first), ("second", games.second)):
            mine = column == model
            seats[seat] = {"games": int(mine.sum()), "failed": int(failed[mine].sum())}
        if seats["first"]["games"] + seats["second"]["games"]:
            by_model[name] = seats
    return {"failed": int(failed.sum()), "share": float(failed.mean()), "by_model": by_model}


def _families(games: Judgments, given: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The family of each judge and model, and where it is from."""
    names = sorted({*games.models, *games.judges})
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise DataError(
            f"no judge and no model is named {unknown[0]!r}", f"names are {', '.join(names)}"
        )
    return {
        name: {"family": given[name], "from": "option"}
        if name in given
        else {"family": re.split("[/-]", name)[0].lower() or name.lower(), "from": "name"}
        for name in names
    }


def _failed(failures: float, found: Mapping[str, Estimate], limits: Limits) -> list[str]:
    """What is beyond its limit, in words."""
    said = []
    checks = (("parse_failures", failures, limits.parse_failures),)
    flips = found.get("flip_rate", Estimate(None)).value
    for name, value, limit in (*checks, ("flip_rate", flips, limits.flip_rate)):
        if value is not None and value > limit:
            said.append(f"{WORDS[name]} is {value:.1%}, above {limit:.1%}")
    limit_of = {"first_seat": limits.seat - 0.5}
    limit_of |= {name: getattr(limits, name) for name in ("length_lead", "self_preference")}
    for name, limit in limit_of.items():
        off = _off(name, found)
        if off is not None and (abs(off) if name == "first_seat" else off) > limit:
            allowed = (
                f"{limits.seat:.1%} of either seat" if name == "first_seat" else f"{limit:.1%}"
            )
            said.append(f"{WORDS[name]} is {_share(name, found[name])}, beyond {allowed}")
    return said


def _off(name: str, found: Mapping[str, Estimate]) -> float | None:
    """How far a preference is from none, where its whole interval is on that side."""
    estimate = found.get(name)
    if estimate is None or estimate.value is None or estimate.low is None or estimate.high is None:
        return None
    is_clear = estimate.low > NONE[name] or estimate.high < NONE[name]
    return estimate.value - NONE[name] if is_clear else None


def _findings(found: Mapping[str, Estimate]) -> list[str]:
    """Preferences whose interval does not hold what none would be, in words."""
    said = []
    for name, (more, less) in FINDINGS.items():
        off = _off(name, found)
        if off is not None:
            said.append(f"{more if off > 0 else less}: {_share(name, found[name])}")
    return said


def _share(name: str, estimate: Estimate) -> str:
    is_score = name == "score_shift"
    numbers = (estimate.value, estimate.low, estimate.high)
    texts = [f"{number or 0.0:.2f}" if is_score else f"{number or 0.0:.1%}" for number in numbers]
    return f"{texts[0]} ({texts[1]} to {texts[2]})"


WORDS = {
    "parse_failures": "the share of replies that could not be read",
    "flip_rate": "the flip rate",
    "first_seat": "the first seat's share of decisive games",
    "length_lead": "what longer answers win beyond the models' records",
    "self_preference": "what its own family wins beyond other judges' verdicts",
}

FINDINGS = {
    "first_seat": ("prefers the first answer", "prefers the second answer"),
    "score_shift": ("scores the first seat higher by", "scores the second seat higher, by"),
    "length_lead": ("prefers longer answers, by", "prefers shorter answers, by"),
    "self_preference": ("prefers its own family, by", "is harder on its own family, by"),
}
"""Preference -> what is said where it is above none, and below."""
