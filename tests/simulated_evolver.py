"""A language model of `aligner evolve` in one pure function, whose evolutions fail for reasons that
can be seen and cured, so that every failure rate is known exactly.

Seeds carry hazards in sight: an input below the request, an API to call, a request that begins with
Define. Under a method without the guard against a hazard its evolution goes wrong with a fixed
probability, by a hash of the text; what is wrong then stands in the evolved text, and answers are a
function of that alone. Analyses name the faulty cases, some of them overlooked at temperatures
above 0; rewritten methods add one guard, or, with probability `bad`, are useless in one of three
ways.

    model = SimulatedModel(bad=0.65)
    backend = ScriptedBackend(model.reply)          # in process
    FakeEndpoint(model.answer)                      # on loopback

What tells samples of one question apart is `seed`, or `sample_index`; over HTTP without a seed, how
often the same body was asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aligner.builders.evolve.contract import EvolvingMethod
from aligner.builders.evolve.prompts import FINAL_LABEL
from aligner.endpoints.request import ChatRequest, Completion, LLMClient, Wrapper, sample_seed
from tests.fake_endpoint import Answer

GUARDS = {
    "input": "Copy whatever stands below the word Input.",
    "tool": "Name every service that is to be called.",
    "define": "Leave a request a request, and never answer it.",
}
"""Hazard -> the rule in a method that cures it."""

CHANCES = {"input": 0.9, "tool": 0.8, "define": 0.7}
REPEATS = "Repeat the given instruction as it is."
PLAN_ONLY = "Reply with your plan and nothing below it."

SUBJECTS = ("salt", "tides", "chess", "bees", "glass", "rivers", "bread", "clocks", "wool", "maps")
FAULTS = {"input": "the input is gone", "tool": "the service has no name", "define": "no request"}


def seeds(count: int, *, first: int = 0) -> list[str]:
    """So many different instructions: a quarter of each hazard, and a quarter without."""
    found = []
    for number in range(first, first + count):
        subject = f"{SUBJECTS[number % len(SUBJECTS)]} {number}"
        found.append(
            (
                f"Summarize this in a sentence.\nInput: A report about {subject}.",
                f"Call the public API for {subject} and list what it returns.",
                f"Define what people mean by {subject}.",
                f"List three uses of {subject}.",
            )[number // len(SUBJECTS) % 4]
        )
    return found


def hazard_of(instruction: str) -> str | None:
    """What can go wrong with an instruction."""
    if "\nInput:" in instruction:
        return "input"
    if "API" in instruction:
        return "tool"
    return "define" if instruction.startswith("Define") else None


def fails(method: EvolvingMethod, instruction: str) -> bool:
    """Whether the evolution of an instruction goes wrong under a method: the oracle."""
    if _breaks_contract(method.steps, method.contract) or REPEATS in method.steps:
        return True
    hazard = hazard_of(instruction)
    if hazard is None or GUARDS[hazard] in method.steps:
        return False
    return _uniform("evolve", hazard, instruction) < CHANCES[hazard]


def oracle(method: EvolvingMethod, instructions: Sequence[str]) -> float:
    """The failure rate of a method, exactly."""
    return sum(fails(method, one) for one in instructions) / len(instructions)


def fault_of(text: str) -> str | None:
    """The fault that can be seen in an evolved text."""
    if text.startswith("Summarize") and "Input:" not in text:
        return "input"
    if "some service" in text:
        return "tool"
    return "define" if text.startswith("By the way") else None


@dataclass
class SimulatedModel:
    """`bad`: how many rewritten methods are useless; `recall`: how many faulty cases an analysis at
    a temperature above 0 finds; `seed`: another model of the same kind; `frozen`: no method is ever
    changed."""

    bad: float = 0.3
    recall: float = 0.8
    seed: int = 0
    frozen: bool = False
    asked: Counter[str] = field(default_factory=Counter)
    _bodies: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, request: ChatRequest) -> Completion:
        """In the form of a script."""
        draw = request.sample_index if request.seed is None else sample_seed(request)
        temperature = request.temperature or 0.0
        self.asked[request.purpose] += 1
        return Completion(self.say(request.messages, draw if temperature else None))

    def answer(self, body: dict[str, Any]) -> Answer:
        """In the form of a server."""
        draw = body.get("seed")
        if draw is None:
            key = json.dumps(body, sort_keys=True)
            with self._lock:
                draw = self._bodies[key]
                self._bodies[key] += 1
        self.asked[purpose_of(body["messages"])] += 1
        if "response_format" in body:
            return Answer(400, body={"error": {"message": "response_format is not known"}})
        return Answer(text=self.say(body["messages"], draw if body["temperature"] else None))

    def say(self, messages: Sequence[Mapping[str, str]], draw: int | None) -> str:
        """The reply to a conversation; `draw` is None at temperature 0."""
        text = messages[-1]["content"]
        purpose = purpose_of(messages)
        if purpose == "evolve":
            return self._evolve(text)
        if purpose == "analyse":
            return self._analyse(text, draw)
        if purpose == "judge":
            faulty = [number for number, fault in _faulty_cases(text) if fault is not None]
            return f"Looked.\n### At fault\n{', '.join(map(str, faulty)) or 'none'}"
        if purpose == "rewrite":
            return self._rewrite(messages[-2]["content"], text, draw)
        return _answer(text)

    def _evolve(self, prompt: str) -> str:
        open_tag = re.findall(r"between the tags (<instruction[-\d]*>)", prompt)[-1]
        method, _, rest = prompt.rpartition(f"\n{open_tag}\n")
        instruction = rest.rpartition("\n</instruction")[0]
        contract = "owned" if "Write down your work on the steps first." in prompt else "free"
        if _breaks_contract(method, contract):
            return "### Plan\nMake it harder."
        label = re.findall(r"^### (.+)$", method, re.MULTILINE)[-1]
        text = self._evolved(method, instruction)
        return f"### Work\nThought about it.\n\n### {label}\n{text}"

    def _evolved(self, method: str, instruction: str) -> str:
        if REPEATS in method:
            return instruction
        if not fails(EvolvingMethod(method), instruction):
            return f"{instruction}\nGive two reasons for each point, and name an exception."
        if "\nInput:" in instruction:
            return f"{instruction.partition(chr(10))[0]} Name an exception."
        if "API" in instruction:
            return instruction.replace("the public API", "some service of your choice")
        return f"By the way, here is a definition. {instruction[7:]}"

    def _analyse(self, prompt: str, draw: int | None) -> str:
        found = []
        for number, fault in _faulty_cases(prompt):
            is_seen = draw is None or self._chance("see", number, prompt, draw) < self.recall
            if fault is not None and is_seen:
                found.append(f"Case {number}: {FAULTS[fault]}.")
        return "\n".join(found) or "No case is at fault."

    def _rewrite(self, analysis: str, prompt: str, draw: int | None) -> str:
        method = prompt.partition("\n<method>\n")[2].rpartition("\n</method>")[0]
        label = re.findall(r"^### (.+)$", prompt, re.MULTILINE)[-1]
        if self._chance("bad", analysis, method, draw) < self.bad and not self.frozen:
            kind = int(self._chance("kind", analysis, method, draw) * 3)
            if kind == 0:
                return "The method is good."
            method = _without_contract(method) if kind == 1 else self._regressed(method, draw)
            return f"Changed.\n### {label}\n{method}"
        hazards = [one for one in GUARDS if FAULTS[one] in analysis and GUARDS[one] not in method]
        if hazards and not self.frozen:
            place = int(self._chance("guard", analysis, method, draw) * len(hazards))
            method = f"{GUARDS[hazards[place]]}\n{method}"
        return f"Changed.\n### {label}\n{method}"

    def _regressed(self, method: str, draw: int | None) -> str:
        held = [guard for guard in GUARDS.values() if guard in method]
        if not held:
            return f"Be creative.\n{method}"
        place = int(self._chance("drop", method, draw) * len(held))
        return method.replace(f"{held[place]}\n", "")

    def _chance(self, *parts: Any) -> float:
        return _uniform(self.seed, *parts)


@dataclass
class Roles:
    """One client in all roles."""

    client: LLMClient

    def __post_init__(self) -> None:
        self.evolver = self.answerer = self.optimizer = self.judge = self.client


class Numbered(Wrapper):
    """Gives samples of one question seeds that differ, so that a server can tell them apart."""

    def __init__(self, inner: LLMClient) -> None:
        super().__init__(inner)

    async def chat(self, request: ChatRequest) -> Completion:
        return await self.inner.chat(replace(request, seed=1))


def purpose_of(messages: Sequence[Mapping[str, str]]) -> str:
    """What a conversation is for, by its words."""
    text = messages[-1]["content"]
    if text.startswith("This is the method that the language model was given"):
        return "rewrite"
    if text.startswith("Below are ") and "=== Case 1 ===" in text:
        return "judge" if "each as it was (stage 0)" in text else "analyse"
    if "The given instruction stands between the tags" in text:
        return "evolve"
    return "probe" if text.startswith("Which colour") else "answer"


def _answer(text: str) -> str:
    fault = fault_of(text)
    if fault == "input":
        return "To do that, please provide the text."
    if fault == "tool":
        return "Sure, which service do you mean?"
    if fault == "define":
        return "Understood. Is there something else?"
    return f"Here is an answer of {len(text)} letters."


def _faulty_cases(prompt: str) -> list[tuple[int, str | None]]:
    cases = re.split(r"^=== Case (\d+) ===$", prompt, flags=re.MULTILINE)[1:]
    found = []
    for number, case in zip(cases[::2], cases[1::2]):
        last = re.split(r"^Stage \d+:$", case, flags=re.MULTILINE)[-1].strip()
        found.append((int(number), fault_of(last)))
    return found


def _breaks_contract(method: str, contract: str) -> bool:
    return PLAN_ONLY in method if contract == "owned" else f"### {FINAL_LABEL}" not in method


def _without_contract(method: str) -> str:
    if f"### {FINAL_LABEL}" in method:
        return method.replace(f"### {FINAL_LABEL}", "the result")
    return f"{PLAN_ONLY}\n{method}"


def _uniform(*parts: Any) -> float:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
