"""Say before answers are judged what programs in them can do on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from aligner.errors import UsageError
from aligner.events import OnEvent, Warned, tell
from aligner.sandbox.standing import CURE, standing_walls, what_is_open
from aligner.sandbox.worker import StartError

from .card import Card
from .catalogue import members_of


def announce_walls(cards: Sequence[Card], on_event: OnEvent | None) -> dict[str, str]:
    """Warn once of the walls that are missing around programs that scorers of these cards
    run.

    Returns part -> "yes" or why it is missing; nothing where none of the scorers runs programs.

    Raises: UsageError when this machine starts no process for them.
    """
    running = [card.name for card in cards if runs_programs(card)]
    if not running:
        return {}
    try:
        isolation = standing_walls()
    except StartError as error:
        raise UsageError(
            f"{running[0]} could not start the process that it judges in: {error}",
            "see whether the machine is short of memory or processes",
        ) from error
    if found := what_is_open(isolation):
        name = " and ".join(running)
        tell(on_event, Warned(f"here the programs that {name} runs can {found}: {CURE}"))
    return isolation


def runs_programs(card: Card) -> bool:
    """Whether a scorer, or a member of it, runs what is in an answer."""
    is_of_tests = card.kind == "verifier" and (card.verifier or "").startswith("tests")
    return is_of_tests or any(map(runs_programs, members_of(card)))
