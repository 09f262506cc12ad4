"""`aligner push RUN --to ORG/NAME`: a model and its card to a hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .console import say, say_json
from .models import AsJson

if TYPE_CHECKING:
    from aligner.export.push import Plan


def push(
    model: Annotated[
        str, typer.Argument(metavar="RUN", help="A run, or the folder of a model with its card.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="ORG/NAME", help="The repository.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it; private without.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files and their sizes, and push nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Push a model and its card to a hub, private by default.

    Only what a model is loaded from leaves this machine: weights, config, tokenizer, card. Never
    checkpoints, optimizer states, caches of tokens or records. Log in with `hf auth login`, or set
    HF_TOKEN.

    Example: aligner push runs/dpo --to me/my-model --dry-run
    """
    from aligner.export.push import plan_push

    plan = plan_push(model, to, public=public)
    if not as_json:
        _show(plan)
    if dry_run:
        if as_json:
            say_json(json.dumps({**plan.to_json(), "url": None}, indent=2))
        else:
            say("nothing was pushed")
        return

    from .render import Screen

    with Screen() as screen:
        from aligner.export.push import push as push_files

        url = push_files(plan, screen.on_event)
    if as_json:
        say_json(json.dumps({**plan.to_json(), "url": url}, indent=2))
    else:
        say(f"pushed  {url}")


def _show(plan: Plan) -> None:
    """Where to, what, and what stays."""
    from .render import columns

    who = "private" if plan.is_private else "public"
    say(f"{plan.folder} to {plan.repo} ({who})")
    say()
    rows = [(place, f"{size:,}") for place, size in plan.files.items()]
    columns(("file", "bytes"), [*rows, ("in all", f"{plan.total:,}")])
    if plan.left:
        say()
        say(f"stays here: {', '.join(plan.left)}")
    say()
