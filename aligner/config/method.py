"""What a method's folder says of itself in its `recipe.py`: everything that the command line, the
recipe's checks, the documentation, the report and the card ask for.

A method trains a model (`TrainingMethod`) or builds or searches something (`Method`). No other file
knows one by name: `aligner.methods.catalogue` has the table of folders. What the pipeline does
around a training stands in `aligner.methods.steps`. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.config.recipe import Recipe
from aligner.config.view import Rule

Chart = tuple[str, list[tuple[str, str, str]]]
"""Title, and (split, key in metrics.jsonl, name) of each line."""

ARENA_METRICS = {"arena_win_rate": True, "arena_win_rate_low": True}
"""What `eval.arena` measures that can choose the best checkpoint -> whether more is better."""

OwnRows = list[tuple[str, str, str]]
"""What, value, and the key whose origin is shown beside it (or nothing)."""


ON_OFF = {True: True, False: False}
"""Values of a flag that sets a key to true or false."""


@dataclass(frozen=True)
class Flag:
    """One flag: the recipe key that it sets, its help, and what its value may be."""

    name: str
    key: str
    help: str
    values: dict[bool, Any] | None = None
    """For a flag that is on or off: the value written for each. A state that is absent sets
    nothing."""
    many: bool = False
    """Takes several values: `--lora_target_modules q_proj v_proj`."""
    write: str = ""
    """How the same is said in a recipe, where that is not simply `key: value`."""


def run_and_report(run_dir: Path) -> dict[str, object]:
    """Return where to look at a run that is done."""
    return {"run": run_dir, "report": run_dir / "report.html"}


@dataclass(frozen=True)
class RunStatus:
    """How far a run is, or what it will take: columns and a row of texts for each of its parts, a
    line about the whole, and the same for programs."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    remark: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Preview:
    """A few of a builder's rows, as lines to read, and the same for programs."""

    lines: list[str]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method or builder, as everybody sees it who does not carry it out.

    Its own section of a recipe has its name, and so has its command, unless the catalogue says
    otherwise.
    """

    recipe: type[Recipe]
    """The schema of its recipes."""
    help: str
    """What `aligner NAME --help` says of it."""
    examples: tuple[str, ...]
    """Command lines that help screens show."""
    run: str
    """`module:function` that carries it out: (resolved, *, resume, overwrite, dry_run, on_event) ->
    `aligner.runs.result.RunResult`."""
    rules: tuple[Rule, ...] = ()
    """Rules between several keys of its recipes."""
    flags: tuple[Flag, ...] = ()
    """Flags beside those that all share."""
    model_section: str = "model"
    """The section that the flags of models set."""
    summary: Callable[[Any], OwnRows] = lambda recipe: []
    """A recipe -> the rows that say what is about to happen."""
    continues: str = "continues"
    """After Ctrl-C: "the same command with --resume ...". """
    untouched: str = "nothing was done"
    """The end of what a dry run says."""
    paths: Callable[[Path], dict[str, object]] = run_and_report
    """A run directory -> where to look, and what to do next."""
    report: str = "aligner.reports.training:write_report"
    """`module:function` that writes the report of a run directory again."""
    status: str = ""
    """`module:function` that says how far a run is, for `aligner NAME status RUN`: run directory ->
    RunStatus. None: there is no such command."""
    estimate: str = ""
    """`module:function` that says what a recipe will ask of language models, for `--estimate`:
    (resolved, on_event) -> RunStatus. None: there is no such option."""
    preview: str = ""
    """`module:function` that makes a few rows and keeps none, for `--preview N`: (resolved, rows,
    on_event) -> Preview. None: there is no such option."""
    trainings: str = ""
    """`module:function` that says which trainings it will do, for `aligner plan`: resolved recipe
    -> a list of `InnerTraining`. None: it trains nothing itself."""
    is_staged: bool = False
    """Whether its runs are made of stages (`aligner.runs.stages`), which see by themselves what a
    changed recipe, or changed inputs, make stale: such a run may be resumed with them."""


@dataclass(frozen=True, kw_only=True)
class TrainingMethod(Method):
    """A method that trains a model through `aligner.methods.pipeline`."""

    run: str = "aligner.methods.pipeline:run_recipe"
    continues: str = "continues from the last checkpoint"
    untouched: str = "nothing was trained"

    title: str
    """What it is called in a model card."""
    trainer_class: str
    """The class whose fields `trainer:` holds, one of `trainer_keys.CLASSES`."""
    metrics: Mapping[str, bool]
    """What is measured on held-out rows and can choose the best checkpoint -> whether more of it is
    better."""
    charts: tuple[Chart, ...] = ()
    """Charts of its report, beside loss, learning rate and gradient norm."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keys of `trainer` that it sets itself where a recipe leaves them out."""
    defaults_with_lora: Mapping[str, Any] = field(default_factory=dict)
    """The same, where adapters are trained."""
    settings: tuple[str, ...] = ()
    """Keys of its section that decide the result most: shown on the plan and in the card, given or
    not."""
    in_short: Callable[[Any], str] = lambda section: ""
    """Its section -> what the plan says behind its name."""
    card_note: Callable[[Mapping[str, Any]], str] = lambda section: ""
    """Its section as JSON -> what the card says behind its title."""
    card_part: str = ""
    """`module:function` that writes a section of the card: run directory -> Markdown."""
    settings_read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda section: section
    """Its section as JSON -> the part of it that the training reads."""
    objective_key: str = ""
    """The key that a loss given as a function stands for; none where it takes no such loss."""
    scorer_key: str = ""
    """The key that scorers given as functions or objects stand for; none where it takes none."""
    has_arena: bool = False
    """Whether evaluations may hold battles with the start (`eval.arena`)."""
    makes_scorer: bool = False
    """Whether its result gives scores, so that its report shows no answers."""
    has_head: Callable[[Mapping[str, Any]], bool] = lambda section: False
    """Its section as JSON -> whether the result gives numbers in place of text."""
    other_names: Mapping[str, str] = field(default_factory=dict)
    """Keys of other tools' trainers for the same method -> the keys of a recipe that they are
    here."""
    repeats: Callable[[Any], int] = lambda recipe: 1
    """A recipe -> how often an epoch trains on each row."""
    checkpoint_files: Callable[[Any], Mapping[str, str]] = lambda recipe: {}
    """A recipe -> files that a checkpoint of its own must hold -> what each one is."""
