"""Language models that judge, simulated on a server of this machine: each knows how good an answer
is, up to noise, and some are swayed by what should not matter.

How good an answer is, is drawn once for each answer around a mean of its model, the same for all
judges; in prompts about code one model is better than elsewhere. A judge reads the question as any
model would, from its text, and replies in the form that is asked for.
"""

from __future__ import annotations

import json
import math
import random
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from types import TracebackType
from typing import Any

from aligner.arena.battle.disguise import without_names
from aligner.reward_models.judge_prompts import without_control_tokens

MEAN = {"gpt-4-0314": 6.2, "gpt-4-0613": 5.8, "gpt-3.5-turbo-0125": 5.4}
BETTER_AT_CODE, BETTER_BY = "gpt-4-0613", 0.8
SPREAD, NOISE = 1.2, 0.8
"""Standard deviations: of answers around their model's mean, of a judge's score."""


@dataclass(frozen=True)
class Sway:
    """What moves the scores of a judge, in points: the first answer's, per doubling of the length
    against the other answer, those of its own family."""

    planted: str
    seat: float = 0.0
    length: float = 0.0
    own: float = 0.0


JUDGES = {
    "fair": Sway("nothing"),
    "eager": Sway("+0.8 for the first answer", seat=0.8),
    "wordy": Sway("+1.2 for each doubling of the length", length=1.2),
    "gpt-4-judge": Sway("+0.8 for answers of gpt-4", own=0.8),
}
FAMILY = {
    **dict.fromkeys(("gpt-4-judge", "gpt-4-0314", "gpt-4-0613"), "gpt-4"),
    "gpt-3.5-turbo-0125": "gpt-3.5",
}


class JudgeServer:
    """The server; it runs inside `with`. `answers`: model -> prompt id -> answer; `is_code`: which
    prompts are about code."""

    def __init__(self, answers: Mapping[str, Mapping[str, str]], is_code: re.Pattern[str]) -> None:
        self._model_of = dict(_shown(answers))
        self._is_code = is_code
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one piece: two would wait for each other's acknowledgement
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                content = json.dumps(server.reply(json.loads(self.rfile.read(size)))).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def base_url(self) -> str:
        """The address, with /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a reply to a request."""
        judge, text = body["model"], body["messages"][-1]["content"]
        mark = re.findall(r"^The mark is (\w+)\.", text, re.MULTILINE)[-1]
        prompt = _framed(text, "the conversation", mark)
        answers = [_framed(text, f"the {which} answer", mark) for which in ("first", "second")]
        scores = [self._score(judge, prompt, answers, place) for place in (0, 1)]
        said = {"analysis": "Both were read.", "score_first": scores[0], "score_second": scores[1]}
        message = {"role": "assistant", "content": json.dumps(said)}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 20}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}

    def _score(self, judge: str, prompt: str, answers: list[str], place: int) -> float:
        sway, answer, other = JUDGES[judge], answers[place], answers[1 - place]
        model = self._model_of[answer]
        good = MEAN[model] + _drawn(SPREAD, answer)
        good += BETTER_BY * (model == BETTER_AT_CODE and bool(self._is_code.search(prompt)))
        good += _drawn(NOISE, judge, answer, other, str(place))
        good += sway.seat * (place == 0) + sway.own * (FAMILY[model] == FAMILY.get(judge))
        good += sway.length * math.log2(max(1, len(answer)) / max(1, len(other))) / 2
        return min(10.0, max(1.0, round(2 * good) / 2))


def _drawn(spread: float, *what: str) -> float:
    """A normal number, the same for the same texts."""
    return random.Random(json.dumps(what)).gauss(0.0, spread)


def _framed(text: str, name: str, mark: str) -> str:
    return text.split(f"[{name} {mark}]\n", 1)[1].split(f"\n[end of {name} {mark}]", 1)[0]


def _shown(answers: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Each answer as a judge sees it, beside whichever other model, and whose it is."""
    for model, other in permutations(answers, 2):
        for text in answers[model].values():
            yield without_names(without_control_tokens(text), sorted((model, other))), model
