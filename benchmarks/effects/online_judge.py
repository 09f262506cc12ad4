"""A judge of rules for `benchmarks.effects.online`: a server on this machine that knows the hidden
table and errs in a known share of its verdicts.

It answers what `kind: rules` asks, one rule about one answer in each request. Which verdicts are
wrong follows from the question, so a question asked again gets the same one. It stands for a
language model that checks rules; how well one does that is no result of this benchmark.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.effects.online_world import LENGTH, World

RULES = [
    *(f"Letter {place} of the answer belongs to capital {place}." for place in range(1, 5)),
    "The answer has four letters.",
]
_PLACE = re.compile(r"Letter (\d) of")


def holds(world: World, prompt: str, answer: str, rule: str) -> bool:
    """Say whether an answer keeps to a rule."""
    found = _PLACE.match(rule)
    if found is None:
        return len(answer) == LENGTH
    place = int(found[1]) - 1
    return len(answer) > place and answer[place] == world.table[prompt[place]]


def verdict(world: World, question: str, errs: float) -> str:
    """Return the judge's reply."""
    prompt, answer, rule = (_framed(question, name) for name in ("user", "the answer", "the rule"))
    kept = holds(world, prompt, answer, rule)
    drawn = int(sha256(f"{prompt}|{answer}|{rule}".encode()).hexdigest()[:8], 16) / 2**32
    said = kept if drawn >= errs else not kept
    return f"So it is.\nHolds: {'yes' if said else 'no'}"


def _framed(question: str, name: str) -> str:
    found = re.search(rf"^\[{name} \w+\]\n(.*)\n\[", question, re.MULTILINE)
    return "" if found is None else found[1]


@contextmanager
def judge(folder: Path, seed: int, errs: float) -> Iterator[Path]:
    """Serve the judge of a world, and yield a card that asks it."""
    world = World.drawn(seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = verdict(world, asked["messages"][-1]["content"], errs)
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            reply = json.dumps({"object": "chat.completion", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 512
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    endpoint = {"model": f"errs {errs:g}, table {seed}", "base_url": address, "temperature": 0.0}
    card = folder / f"rules-{errs:g}.yaml"
    card.write_text(json.dumps({"kind": "rules", "endpoint": endpoint, "rules": RULES}))
    try:
        yield card
    finally:
        server.shutdown()
        server.server_close()
