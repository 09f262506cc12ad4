"""`aligner arena testset build`: choose a test set from a pool of prompts, and freeze it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import say, say_json
from .models import AsJson, Column, Split, source_section, warn_of
from .output import Overwrite, Resume, checked_output

if TYPE_CHECKING:
    from aligner.arena.testset.build import Chosen, Rate, Settings
    from aligner.arena.testset.embedding import Embedding
    from aligner.arena.testset.pool import Pool, PoolItem
    from aligner.config.recipe import Source
    from aligner.reward_models.base import Scorer
    from aligner.reward_models.card import Card
    from aligner.runs.partial_output import PartialOutput

    from .render import Screen

Record = dict[str, Any]

EmbeddingOption = Annotated[
    str,
    typer.Option("--embedding", metavar="HOW", help="A model's folder, or tfidf: words alone."),
]
NearDuplicates = Annotated[
    float,
    typer.Option(
        "--near-duplicates", min=0.4, max=1, help="Similarity of word 3-grams; 1 for equal ones."
    ),
]


def build(
    pool: Annotated[list[str], typer.Argument(metavar="POOL...", help="Prompts to choose from.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Write it here.")],
    clusters: Annotated[
        int, typer.Option("--clusters", min=1, help="Topics; fewer below 20 prompts each.")
    ] = 500,
    per_cluster: Annotated[
        int, typer.Option("--per-cluster", min=1, help="Diverse items of each cluster.")
    ] = 2,
    hard: Annotated[
        int | None, typer.Option("--hard", min=0, help="Hard items; as many as diverse ones.")
    ] = None,
    hard_per_cluster: Annotated[
        int, typer.Option("--hard-per-cluster", min=1, help="Prompts they are chosen from.")
    ] = 20,
    difficulty: Annotated[
        str | None, typer.Option("--difficulty", metavar="COLUMN", help="How hard a prompt is.")
    ] = None,
    rater: Annotated[
        str | None, typer.Option("--rater", metavar="CARD", help="A scorer that says it instead.")
    ] = None,
    dev: Annotated[
        float, typer.Option("--dev", min=0, max=0.9, help="Share to choose models by.")
    ] = 0.2,
    embedding: EmbeddingOption = "auto",
    near_duplicates: NearDuplicates = 0.8,
    category: Annotated[
        str, typer.Option("--category", metavar="COLUMN", help="Column kept as the category.")
    ] = "category",
    column: Column = None,
    split: Split = "train",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same items.")] = 0,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that ships with the rater.")
    ] = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Choose test items from a pool of prompts, and freeze them.

    Prompts are clustered by topic; each cluster gives some at random, and some among which the
    hardest are kept. Each subset is parted into dev, to choose models by, and test, to report.
    """
    from aligner.arena.testset.build import Settings
    from aligner.arena.testset.embedding import embedding_of
    from aligner.arena.testset.frozen import ITEMS, refuse_other_folder
    from aligner.arena.testset.pool import read_pool
    from aligner.errors import UsageError
    from aligner.reward_models.catalogue import read_spec

    if difficulty is not None and rater is not None:
        raise UsageError("--difficulty and --rater exclude each other", "give one of them")
    if hard and difficulty is None and rater is None:
        raise UsageError(
            "--hard asks for hard items, and nothing says how hard prompts are",
            "name a column with --difficulty, or a scorer with --rater",
        )
    written = checked_output(output / ITEMS, None, resume=resume, overwrite=overwrite)
    refuse_other_folder(output)
    if rater is not None:
        read_spec(rater, trust_remote_code=trust_remote_code)
    how = embedding_of(embedding)
    sources = [source_section(path, column, split, None) for path in pool]

    from .render import Screen

    with Screen(silent=as_json) as screen, written.resumable():
        screen.start("reading the pool")
        near = None if near_duplicates >= 1 else near_duplicates
        found = read_pool(sources, category=category, difficulty=difficulty, near_duplicates=near)
        settings = Settings(clusters, per_cluster, hard_per_cluster, hard, dev, seed)
        header = _header(found, sources, how, settings)
        header |= {"--rater": rater, "--difficulty": difficulty, "--category": category}
        with written.parts(lambda: header) as part:
            rated = _Rater(rater, trust_remote_code, part, screen) if rater is not None else None
            record = _build(found, how, settings, rated, part, screen, output)
    warn_of(record.pop("remarks"))
    if as_json:
        from aligner.runs.files import dumps

        say_json(dumps(record, indent=2))
    else:
        _show_built(record, output)


def _header(pool: Pool, sources: list[Source], how: Embedding, settings: Settings) -> Record:
    """What decides which items are chosen, for --resume."""
    from dataclasses import asdict

    return {
        "the pool": [file.sha256 for file in pool.files],
        "the columns": [source.columns for source in sources],
        "the prompts that are left": len(pool.items),
        "the embedding": how.fingerprint,
        **{f"--{name.replace('_', '-')}": value for name, value in asdict(settings).items()},
    }


class _Rater:
    """A scorer that is loaded when the first prompt is rated, and keeps what it said."""

    def __init__(self, spec: str, trusted: bool, part: PartialOutput, screen: Screen) -> None:
        from aligner.reward_models.catalogue import read_spec

        self.spec, self.trusted, self.part, self.screen = spec, trusted, part, screen
        self.card: Card = read_spec(spec, trust_remote_code=trusted)
        self.scorer: Scorer | None = None

    def __call__(self, items: Sequence[PoolItem]) -> list[float]:
        from aligner.arena.testset.rating import rate
        from aligner.reward_models.catalogue import load_scorer
        from aligner.reward_models.ensemble import restore_budget
        from aligner.reward_models.isolation import announce_walls

        self.screen.start("rating how hard prompts are")
        announce_walls([self.card], self.screen.on_event)
        self.scorer = load_scorer(self.spec, trust_remote_code=self.trusted)
        fingerprint = self.scorer.fingerprint()
        journal = self.part.journal("difficulty", fingerprint)
        journal.check("the difficulty of prompts")
        if journal.path is not None:
            restore_budget(self.scorer, journal.path, fingerprint)
        return rate(self.scorer, items, journal, self.screen.counter("rating"))


def _build(
    pool: Pool,
    how: Embedding,
    settings: Settings,
    rater: Rate | None,
    part: PartialOutput,
    screen: Screen,
    output: Path,
) -> Record:
    from aligner.arena.testset.build import choose
    from aligner.arena.testset.frozen import freeze

    journal = part.journal("embeddings", how.fingerprint)
    texts = [item.asked for item in pool.items]
    screen.start("embedding")
    vectors = how.spread(texts, journal, screen.counter("embedding"))
    chosen = choose(pool, vectors, settings, rater, screen.on_event)
    record = _facts(pool, how, settings, rater, chosen)
    part.finish(freeze(output, chosen.rows, chosen.labels, record))
    record["remarks"] = [*pool.remarks, *how.remarks, *_shortfalls(record)]
    return record


def _facts(
    pool: Pool, how: Embedding, settings: Settings, rater: Rate | None, chosen: Chosen
) -> Record:
    """What the manifest says beside the digests."""
    from dataclasses import asdict

    said: Record = {"items": len(chosen.rows), **chosen.facts, "settings": asdict(settings)}
    said["embedding"] = {"name": how.name, "fingerprint": how.fingerprint}
    said["rater"] = None
    if isinstance(rater, _Rater) and rater.scorer is not None:
        said["rater"] = {"name": rater.spec, "fingerprint": rater.scorer.fingerprint()}
    files = [asdict(file) for file in pool.files]
    said["pool"] = {"rows": pool.rows, "kept": len(pool.items), "left_out": pool.left_out}
    said["pool"]["files"] = files
    return said


def _shortfalls(record: Record) -> list[str]:
    """What was too little of, as sentences."""
    remarks = []
    made, asked = record["clusters"]["made"], record["clusters"]["asked"]
    if made < asked:
        remarks.append(f"clusters: {made:,} instead of {asked:,}, the pool has too few prompts")
    names = {"diverse": "diverse items", "hard_candidates": "prompts to choose hard items from"}
    for name, found in record["shortfalls"].items():
        what = names.get(name, "hard items")
        if found["small_clusters"]:
            remarks.append(
                f"{what}: too few prompts in {found['small_clusters']:,} of the clusters; "
                f"from other clusters: {found['topped_up']:,}"
            )
        if found["empty"]:
            remarks.append(f"{what}: {found['empty']:,} too few, the pool has no more")
    if "hard" not in record["counts"]:
        remarks.append("no hard subset: --difficulty or --rater says how hard prompts are")
    return remarks


def _show_built(record: Record, output: Path) -> None:
    from .render import columns

    rows = []
    for subset, found in record["counts"].items():
        rows.append((subset, f"{found['dev']:,}", f"{found['test']:,}", f"{sum(found.values()):,}"))
    columns(("subset", "dev", "test", "items"), rows)
    pool = record["pool"]
    left = "".join(f", {count:,} {what}" for what, count in pool["left_out"].items())
    say()
    say(f"from {pool['kept']:,} of {pool['rows']:,} prompts{left}")
    say(f"{record['clusters']['made']:,} clusters, embedded by {record['embedding']['name']}")
    say(f"wrote {output}; hold training data against it with")
    say(f"  aligner arena testset verify {output} --against DATA")
