"""The report of `aligner mosaic`: the numbers as a dict, and one HTML page with them and with
samples to read.

A cost is always shown as a table of all its kinds: sequences, steps, real tokens, tokens with a
loss, and tokens padded in three ways. "80% cheaper" is true of one of these rows and false of
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aligner.builders.mosaic.costs import cost_rows, costs
from aligner.builders.mosaic.engine import Counts, Mosaics
from aligner.builders.mosaic.recipe import MosaicFiles
from aligner.errors import UsageError
from aligner.reports.charts import bar_chart, number
from aligner.reports.training import page
from aligner.runs.files import read_json, write_atomically

SHOWN_SAMPLES = 12
TONES = 6


def summary_of(mosaics: Mosaics, settings: MosaicFiles, counts: Counts) -> dict[str, Any]:
    """Return every number there is to know of a build."""
    examples, by_name = mosaics.examples, counts.by_name
    limit, batch, epochs = mosaics.max_tokens, settings.batch_size, settings.epochs
    source = costs(examples.tokens, sum(examples.trained), max_tokens=limit, batch_size=batch)
    made = costs(
        counts.lengths(), counts.trained(), max_tokens=limit, batch_size=batch, epochs=epochs
    )
    used = by_name["examples"] + by_name["overlong:drop"]
    assert used == len(examples) * epochs, (
        f"{used} rows were used where {len(examples)} x {epochs} should be"
    )
    return {
        "samples": by_name["samples"],
        "epochs": epochs,
        "examples": len(examples),
        "always_alone": dict(examples.alone_because),
        "left_out": dict(examples.left_out),
        "drawn": _family(by_name, "drawn"),
        "count": _family(by_name, "count"),
        "strategies": _family(by_name, "strategy"),
        "rules": _family(by_name, "rule"),
        "rejected": _family(by_name, "rejected"),
        "overlong": _family(by_name, "overlong"),
        "shortened": by_name["shortened"],
        "violations": _family(by_name, "violation"),
        "masked_examples": by_name["masked examples"],
        "maskout_examples": by_name["maskout examples"],
        "masked_tokens": by_name["masked tokens"],
        "max_tokens": limit,
        "batch_size": batch,
        "token_counts": _how_counted(mosaics, counts),
        "costs": [[*row] for row in cost_rows(source, made)],
    }


def _how_counted(mosaics: Mosaics, counts: Counts) -> str:
    if not mosaics.lengths.is_exact:
        return "estimated as characters / 3.5; name mosaic.tokenizer to count them"
    if not counts.added_up:
        return "every sample was tokenized"
    share = len(counts.measured) / (len(counts.measured) + len(counts.added_up))
    return (
        f"{share:.0%} of the samples were tokenized, those near the limit among them; the others "
        "are sums over their rows, scaled "
        f"by {counts.scale():.3f}, which every 64th showed when it was tokenized too"
    )


def _family(counts: Mapping[str, int], name: str) -> dict[str, int]:
    """The counts below a name, by what follows it; numbers in their order."""
    family = {
        key.split(":", 1)[1]: value for key, value in counts.items() if key.startswith(f"{name}:")
    }
    return dict(
        sorted(
            family.items(), key=lambda item: (int(item[0]) if item[0].isdigit() else 10**9, item[0])
        )
    )


def results_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the few numbers that a screen shows."""
    ratios = {label: ratio for label, _, _, ratio in summary["costs"]}
    return {
        "samples": float(summary["samples"]),
        "rows used an epoch": float(summary["examples"]),
        **{f"{label}, ratio to the rows": round(ratio, 4) for label, ratio in ratios.items()},
        "failed checks": float(sum(summary["violations"].values())),
    }


# --- the page -------------------------------------------------------------------------------------


def write_mosaic_report(run_dir: Path) -> Path:
    """Write `report.html` from `mosaic.json` and the recipe in the run directory."""
    summary = read_json(run_dir, "mosaic.json")
    if summary is None:
        raise UsageError(
            f"{run_dir} is not finished, so there is nothing to report yet",
            "continue it with --resume",
        )
    recipe = read_json(run_dir, "resolved.json")["recipe"]
    settings = recipe["mosaic"]
    facts = [
        ("rows", f"{summary['examples']:,}"),
        ("epochs", f"{summary['epochs']}"),
        ("k", f"{settings['k_distribution']} up to {settings['max_examples']}"),
        ("limit", f"{summary['max_tokens']:,} tokens"),
        ("tokenizer", settings["tokenizer"] or "none: lengths are estimates"),
        ("seed", f"{recipe['seed']}"),
    ]
    if settings["compat"] == "released":
        facts.append(("as", "the authors' code draws, unchecked"))
    sections = (
        ("costs", "What training on it costs", _costs(summary)),
        ("shapes", "How many rows a sample has", _histograms(summary)),
        ("shares", "Strategies and rules", _shares(summary)),
        ("samples", "Samples", _samples(summary["shown"])),
        ("losses", "What was put aside", _put_aside(summary)),
    )
    body = "".join(
        f'<section id="{anchor}"><h2>{title}</h2>{text}</section>'
        for anchor, title, text in sections
    )
    failed = sum(summary["violations"].values())
    warnings = (
        [f"{failed:,} samples failed their check; their rows stand alone instead."]
        if failed
        else []
    )
    path = run_dir / "report.html"
    html = page(
        run_dir.resolve().name, "mosaic", facts, body, tiles=_tiles(summary), warnings=warnings
    )
    write_atomically(path, html)
    return path


def _tiles(summary: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = {label: (before, after, ratio) for label, before, after, ratio in summary["costs"]}
    mean = summary["examples"] * summary["epochs"] / max(1, summary["samples"])
    tiles = [
        {
            "label": "samples",
            "value": f"{summary['samples']:,}",
            "note": f"{mean:.2f} rows in each, on average",
        }
    ]
    for label in ("sequences", "real tokens", "tokens of packed sequences"):
        before, after, ratio = rows[label]
        note = f"of an epoch over the rows: {after:,.0f} instead of {before:,.0f}"
        tiles.append({"label": label, "value": f"{ratio:.3f}", "note": note})
    return tiles


def _costs(summary: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(label)}</td><td class=n>{before:,.0f}</td><td "
        f"class=n>{after:,.0f}</td><td class=n>{ratio:.3f}</td></tr>"
        for label, before, after, ratio in summary["costs"]
    )
    head = (
        "<th></th><th class=n>an epoch over the rows</th><th class=n>an epoch of mosaics</th><th "
        "class=n>ratio</th>"
    )
    note = (
        "Sequences and steps fall by the mean number of rows in a sample; so does the time of a "
        "trainer that pads every sequence "
        "to the limit. Real tokens fall only by the answers that are left out and by the "
        "templates of the rows, and rise by what "
        "is written around them, so against packed rows little or nothing is saved. "
        f"Steps are of {summary['batch_size']} sequences: a step of mosaics holds several times "
        "as many tokens, which changes the "
        f"training. Token counts: {summary['token_counts']}."
    )
    return _table(head, rows) + f'<p class="soft small">{escape(note)}</p>'


def _table(head: str, rows: str) -> str:
    return (
        "<div "
        f'class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _histograms(summary: Mapping[str, Any]) -> str:
    names = {"0": "plain"}
    drawn = [(names.get(key, key), float(value)) for key, value in summary["drawn"].items()]
    count = [(key, float(value)) for key, value in summary["count"].items()]
    charts = _bars("k as drawn", drawn) + _bars("rows in a sample", count)
    short = (
        f"{summary['shortened']:,} samples lost rows to the limit; what they lost came in others."
    )
    return f'<div class="grid">{charts}</div><p class="soft small">{short}</p>'


def _shares(summary: Mapping[str, Any]) -> str:
    strategies = [(key, float(value)) for key, value in summary["strategies"].items()]
    rules: dict[str, list[tuple[str, float]]] = {"permute": [], "maskout": []}
    for key, value in summary["rules"].items():
        strategy, _, rule = key.partition(".")
        rules[strategy].append((rule.replace("_", " "), float(value)))
    charts = _bars("samples by strategy", strategies) + "".join(
        _bars(f"{strategy} samples by rule", bars) for strategy, bars in rules.items()
    )
    masked = ""
    if summary["maskout_examples"]:
        share = summary["masked_examples"] / summary["maskout_examples"]
        overall = summary["masked_examples"] / (summary["examples"] * summary["epochs"])
        masked = (
            f'<p class="soft small">{summary["masked_examples"]:,} rows were left out: {share:.1%} '
            "of those in Maskout samples, "
            f"{overall:.1%} of all ({summary['masked_tokens']:,} tokens of answers without a "
            "loss).</p>"
        )
    return f'<div class="grid">{charts}</div>{masked}'


def _bars(title: str, bars: Sequence[tuple[str, float]]) -> str:
    return bar_chart(title, bars, last_stands_out=False)


def _put_aside(summary: Mapping[str, Any]) -> str:
    ways = {
        "alone": "too long for a sample, written alone",
        "drop": "too long for a sample, dropped",
    }
    rows = [
        *((f"row left out: {reason}", count) for reason, count in summary["left_out"].items()),
        *(
            (f"row always alone: {reason}", count)
            for reason, count in summary["always_alone"].items()
        ),
        *((f"row {ways[way]}", count) for way, count in summary["overlong"].items()),
        *((f"redrawn: {reason}", count) for reason, count in summary["rejected"].items()),
        *((f"failed check: {kind}", count) for kind, count in summary["violations"].items()),
    ]
    body = "".join(
        f"<tr><td>{escape(what)}</td><td class=n>{count:,}</td></tr>"
        for what, count in rows
        if count
    )
    return _table("<th>what</th><th class=n>how often</th>", body) if body else "<p>Nothing.</p>"


# --- samples --------------------------------------------------------------------------------------


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Some of each strategy, with the words of each example in a colour of their own, in prompt and
    completion alike."""
    chosen: list[Mapping[str, Any]] = []
    by_rule: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_rule.setdefault((sample["strategy"], sample["rule"]), []).append(sample)
    while len(chosen) < SHOWN_SAMPLES and any(by_rule.values()):
        for group in by_rule.values():
            if group and len(chosen) < SHOWN_SAMPLES:
                chosen.append(group.pop(0))
    style = (
        "<style>"
        + "".join(
            f".mosaic mark.m{tone}{{background:color-mix(in srgb,var(--t{tone}) 22%,transparent)}}"
            for tone in range(1, TONES + 1)
        )
        + _SAMPLE_STYLE
        + "</style>"
    )
    return style + "".join(_sample(sample) for sample in chosen)


_SAMPLE_STYLE = (
    ".mosaic pre{white-space:pre-wrap;overflow-wrap:anywhere}.mosaic "
    "mark{background:none;color:inherit;border-radius:3px;"
    "padding:1px 2px;box-decoration-break:clone;-webkit-box-decoration-break:clone}"
)


def _sample(sample: Mapping[str, Any]) -> str:
    rule = f" · {sample['rule']}" if sample["rule"] else ""
    dropped = f" · left out: {', '.join(map(str, sample['dropped']))}" if sample["dropped"] else ""
    order = " → ".join(map(str, sample["order"]))
    head = (
        f"{sample['strategy']}{rule} · {number(len(sample['example_ids']))} rows · answers "
        f"{order}{dropped}"
    )
    lead = "".join(
        f"<pre>{escape(turn['role'])}: {escape(turn['content'])}</pre>" for turn in sample["lead"]
    )
    prompt, completion = (
        _coloured(sample["prompt"], sample["asked"]),
        _coloured(sample["completion"], sample["answered"]),
    )
    return (
        f'<details class="mosaic" open><summary>{escape(head)}</summary>{lead}<p class="soft '
        f'small">prompt</p><pre>{prompt}</pre>'
        f'<p class="soft small">completion</p><pre>{completion}</pre></details>'
    )


def _coloured(text: str, spans: Sequence[Sequence[int]]) -> str:
    parts, end = [], 0
    for index, start, stop in spans:
        parts.append(escape(text[end:start]))
        parts.append(f'<mark class="m{(index - 1) % TONES + 1}">{escape(text[start:stop])}</mark>')
        end = stop
    return "".join([*parts, escape(text[end:])])
