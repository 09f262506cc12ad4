"""`aligner evolve` at the front door: what it prints before, while and after it asks a model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from runner import aligner

from aligner.config.shipped import recipe_text
from aligner.toy.tasks import gold_score

TINY = Path(__file__).parents[2] / "recipes" / "tiny"
PRICES = (
    "endpoint.usd_per_million_prompt_tokens=2",
    "endpoint.usd_per_million_completion_tokens=8",
)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what `aligner toy` writes for tiny/evolve."""
    (tmp_path / "recipes").mkdir()
    for file in TINY.glob("evolve-*.jsonl"):
        shutil.copy(file, tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_tiny_recipe_optimizes_evolves_answers_and_checks(toy: Path) -> None:
    done = aligner("evolve", "tiny/evolve")
    assert done.exit_code == 0, done.output
    assert "step start: failure rate 42%" in done.stderr
    assert "step 2: failure rate 0%, 1 of 1 candidates usable, a new method" in done.stderr
    assert re.search(r"^rows +39$", done.stdout, re.MULTILINE)
    assert re.search(r"^dropped: refusal +1$", done.stdout, re.MULTILINE)
    assert "aligner sft RECIPE data.train=runs/evolve/data/train.jsonl" in done.stdout
    lines = (toy / "runs/evolve/data/train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 39
    for row in rows:
        assert gold_score(row["prompt"], row["completion"][0]["content"]) == 1.0


def test_the_rows_of_the_tiny_recipe_are_read_by_the_training_that_it_names(toy: Path) -> None:
    assert aligner("evolve", "tiny/evolve").exit_code == 0
    found = re.search(r"^# Next +aligner sft tiny/sft (.+)$", recipe_text("tiny/evolve"), re.M)
    assert found is not None
    from aligner.config.load import load_recipe
    from aligner.data.loading import load_rows

    recipe = load_recipe("sft", "tiny/sft", found[1].split()).recipe
    loaded = load_rows(recipe.data, "sft", 0)
    assert len(loaded.train) + len(loaded.eval) == 39
    assert loaded.ledger.remarks() == []


def test_the_page_shows_failures_by_step_and_the_method_as_it_changed(toy: Path) -> None:
    assert aligner("evolve", "tiny/evolve").exit_code == 0
    page = (toy / "runs/evolve/report.html").read_text()
    assert "Failure rate 42% at the start and 0% at the end" in page
    assert "<ins>" in page
    assert "dropped: refusal" in page
    assert "I&#x27;m sorry, but I cannot help with that." in page
    (toy / "runs/evolve/report.html").unlink()
    assert aligner("runs", "report", "runs/evolve").exit_code == 0
    assert (toy / "runs/evolve/report.html").read_text() == page


def test_an_estimate_says_requests_tokens_and_money_and_asks_nothing(toy: Path) -> None:
    shown = aligner("evolve", "tiny/evolve", "--estimate", *PRICES)
    assert shown.exit_code == 0, shown.output
    assert not (toy / "runs").exists()
    facts = json.loads(aligner("evolve", "tiny/evolve", "--estimate", "--json", *PRICES).stdout)
    # 2D + T(Bl + 2m + 2mD) with D 24, T 5, B 8, l 1, m 1; and at most two tries of 40 rows
    assert facts["calls"][1] == 2 * 24 + 5 * (8 + 2 + 2 * 24) + 2 * 40 + 2 * 40
    assert facts["calls"][0] == 2 * 24 + 2 * 40
    assert facts["usd"][0] < facts["usd"][1]
    assert f"{facts['calls'][0]} to {facts['calls'][1]} requests" in shown.stdout
    done = aligner("evolve", "tiny/evolve", *PRICES)
    assert done.exit_code == 0
    usage = json.loads((toy / "runs/evolve/usage.json").read_text())["evolver"]
    assert usage["calls"] <= facts["calls"][1]
    assert facts["usd"][0] / 2 < usage["usd"] < facts["usd"][1]


def test_an_estimate_without_prices_says_so(toy: Path) -> None:
    shown = aligner("evolve", "tiny/evolve", "--estimate")
    assert "prices are not known" in shown.stdout


def test_an_estimate_without_seeds_counts_what_asks_for_instructions(toy: Path) -> None:
    script = ("endpoint.backend=scripted", "endpoint.script=recipes/evolve-replies.jsonl")
    given = ("evolve", "--output", "out", "evolve.rows=10", *script, "--estimate", "--json")
    facts = json.loads(aligner(*given, "evolve.mode=skillmix").stdout)
    asked = {one["purpose"]: one for one in facts["asked"]}
    assert asked["skills"]["tokens_in"][0] > 50
    assert asked["evolve"]["tokens_in"][0] > 100
    assert asked["evolve"]["tokens_out"][1] == 1500
    assert asked["answer"]["tokens_in"] == [20, 1500]  # as long as an instruction may become
    given = ("evolve", "--output", "out", "evolve.rows=10", "--estimate", "--json")
    server = ("endpoint.model=m", "endpoint.base_url=http://127.0.0.1:1/v1")
    tokenizer = ("evolve.magpie.tokenizer=org/model", "evolve.magpie.max_tokens=77")
    facts = json.loads(aligner(*given, *server, *tokenizer, "evolve.mode=magpie").stdout)
    asked = {one["purpose"]: one for one in facts["asked"]}
    assert "probe" not in asked
    assert asked["evolve"]["tokens_out"][1] == 77


def test_an_estimate_in_batches_is_half_the_price(toy: Path) -> None:
    given = ("evolve", "evolve/hosted", "data.train=recipes/evolve-seeds.jsonl", "--estimate")
    single = json.loads(aligner(*given, "--json").stdout)
    batched = json.loads(aligner(*given, "--json", "evolve.batch=true").stdout)
    assert batched["calls"] == single["calls"]
    assert batched["usd"] == pytest.approx([usd / 2 for usd in single["usd"]])


def test_a_preview_shows_rows_and_what_all_would_take_and_begins_no_run(toy: Path) -> None:
    shown = aligner("evolve", "tiny/evolve", "--preview", "3", *PRICES)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("--- recipes/evolve-seeds.jsonl:") == 3
    for word in ("before:", "evolved:", "answer:", "kept, round 1"):
        assert word in shown.stdout
    assert "all 40 rows at this rate: " in shown.stdout
    assert "$" in shown.stdout
    assert "the one that an optimization begins with" in shown.stderr
    assert not (toy / "runs/evolve").exists()


def test_what_a_preview_paid_for_is_not_asked_again(toy: Path) -> None:
    classic = ("data.train=recipes/evolve-seeds.jsonl", "--output", "runs/evolve")
    script = ("endpoint.backend=scripted", "endpoint.script=recipes/evolve-replies.jsonl")
    recipe = ("evolve", *classic, *script, "evolve.mode=classic", "evolve.structured=never")
    plain = (*recipe[:3], "runs/plain", *recipe[4:])
    first = aligner(*recipe, "--preview", "3").stdout
    paid = re.findall(
        r"^(?:evolve|answer): (\d+) .+?tokens(?: \((\d+) of them)?", first, re.MULTILINE
    )
    again = aligner(*recipe, "--preview", "3").stdout
    asked = re.search(r"^evolve: (\d+) requests, .+ tokens \((\d+) of them", again, re.MULTILINE)
    assert asked is not None
    assert asked[1] == asked[2]
    assert again.splitlines()[-1] == first.splitlines()[-1]  # the rate is that of all replies
    usage = {}
    for name, command in {"plain": plain, "evolve": recipe}.items():
        assert aligner(*command).exit_code == 0
        usage[name] = json.loads((toy / f"runs/{name}/usage.json").read_text())["evolver"]
    known = sum(int(asked) - int(free or 0) for asked, free in paid)
    assert usage["evolve"]["calls"] == usage["plain"]["calls"] - known
    files = [toy / f"runs/{name}/data/train.jsonl" for name in usage]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [path.name for path in toy.glob("runs/*.sqlite*")] == []


def test_what_all_rows_have_in_common_is_counted_once(toy: Path) -> None:
    shutil.copy(TINY / "skillmix-replies.jsonl", toy / "recipes")
    shown = aligner("evolve", "tiny/skillmix", "--preview", "2").stdout
    assert "skills: 7 requests" in shown
    assert "all 30 rows at this rate: 67 requests" in shown


def test_a_preview_beside_a_run_uses_the_method_of_the_run(toy: Path) -> None:
    assert aligner("evolve", "tiny/evolve").exit_code == 0
    shown = aligner("evolve", "tiny/evolve", "--preview", "40")
    assert "that of the run in runs/evolve" in shown.stderr
    assert shown.stdout.count("kept, round 1") == 39
    assert "dropped, round 1: a reply refuses" in shown.stdout


@pytest.mark.parametrize(
    "more", [("--dry-run",), ("--resume",), ("--overwrite",), ("--preview", "2")]
)
def test_an_estimate_goes_with_no_option_that_runs(toy: Path, more: tuple[str, ...]) -> None:
    refused = aligner("evolve", "tiny/evolve", "--estimate", *more)
    assert refused.exit_code == 2
    assert "has no effect" in refused.output


def test_a_dry_run_says_how_many_requests_there_would_be(toy: Path) -> None:
    shown = aligner("evolve", "tiny/evolve", "--dry-run")
    assert shown.exit_code == 0
    assert "128 to 498" in shown.stderr
    assert "nothing was asked" in shown.stdout
    assert not (toy / "runs").exists()


def test_status_says_how_far_a_run_is(toy: Path) -> None:
    one = ("endpoint.max_in_flight=1", "evolve.rows_in_flight=1")
    assert aligner("evolve", "tiny/evolve", *one, "endpoint.budget.calls=120").exit_code == 0
    status = aligner("evolve", "status", "runs/evolve")
    assert re.search(r"^optimize +done", status.stdout, re.MULTILINE)
    assert re.search(r"^rows +started +\d+ of 40", status.stdout, re.MULTILINE)
    assert "stopped; the same command with --resume continues; next: rows" in status.stdout
    assert "120 requests" in status.stdout
    again = aligner("evolve", "tiny/evolve", *one, "endpoint.budget.calls=500", "--resume")
    assert again.exit_code == 0, again.output
    facts = json.loads(aligner("evolve", "status", "runs/evolve", "--json").stdout)
    assert facts["remark"].startswith("done: 39 rows kept, 1 dropped")
    assert all(stage["done"] for stage in facts["stages"].values())


def test_status_of_something_else_is_refused(toy: Path) -> None:
    assert aligner("evolve", "status", "recipes").exit_code == 2


def test_a_method_of_one_run_is_used_by_another(toy: Path) -> None:
    assert aligner("evolve", "tiny/evolve").exit_code == 0
    method = "evolve.method=runs/evolve/method.json"
    recipe = ["evolve", "--data", "recipes/evolve-seeds.jsonl", "--output", "runs/other"]
    script = ("endpoint.backend=scripted", "endpoint.script=recipes/evolve-replies.jsonl")
    done = aligner(*recipe, *script, method, "evolve.structured=never")
    assert done.exit_code == 0, done.output
    assert (toy / "runs/other/data/train.jsonl").read_bytes() == (
        toy / "runs/evolve/data/train.jsonl"
    ).read_bytes()
    refused = aligner(*recipe, *script, method, "evolve.optimization.steps=3", "--overwrite")
    assert refused.exit_code == 2
    assert "has no effect with `evolve.method`" in refused.output


REFUSED = {
    "evolve.mode=magpie": ("data", "uses no seeds"),
    "evolve.mode=skillmix": ("evolve.rows", "is missing"),
    "evolve.skillmix.k=3": ("evolve.skillmix", "it belongs to `mode: skillmix`"),
    "endpoint.temperature=0.5": ("endpoint.temperature", "has no effect"),
    "evolve.answerer.model=m evolve.answerer.max_tokens=5": (
        "evolve.answerer.max_tokens",
        "has no effect",
    ),
    "evolve.answerer.max_in_flight=2": ("evolve.answerer.model", "is missing"),
    "evolve.batch=true": ("endpoint.backend", "`scripted` has no batch API"),
    "evolve.judge.model=m": ("evolve.judge", "without `evolve.optimization.secondary`"),
    "data.max_length=9": ("data.max_length", "has no effect on seeds"),
    "evolve.checks.ngram=5": ("evolve.checks.ngram", "without `evolve.checks.test_sets`"),
    "evolve.checks.pass_rate.target.model=m": (
        "evolve.checks.pass_rate",
        "which answers are right",
    ),
    "evolve.optimization.preset=paper evolve.optimization.patience=2": (
        "evolve.optimization.patience",
        "it belongs to `robust`",
    ),
    "evolve.optimization.preset=paper evolve.optimization.secondary=issue_rate": (
        "evolve.optimization.secondary",
        "it belongs to `robust`",
    ),
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_would_have_no_effect_is_refused(toy: Path, settings: str) -> None:
    refused = aligner("evolve", "tiny/evolve", *settings.split())
    assert refused.exit_code == 2, refused.output
    for words in REFUSED[settings]:
        assert words in refused.output
    assert not (toy / "runs").exists()


def test_one_model_with_two_sets_of_limits_is_refused(toy: Path) -> None:
    server = "http://127.0.0.1:1/v1"
    answerer = f"evolve.answerer={{model: m, base_url: {server}, max_in_flight: 3}}"
    refused = aligner(
        *("evolve", "--data", "recipes/evolve-seeds.jsonl", "--output", "out"),
        *("endpoint.model=m", f"endpoint.base_url={server}", answerer),
    )
    assert refused.exit_code == 2
    assert "the same model on the same server as `endpoint`" in refused.output


def test_a_key_that_is_missing_is_that_of_the_section_that_needs_it(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    answerer = "evolve.answerer={model: m, base_url: https://example.org/v1, api_key_env: MY_KEY}"
    refused = aligner("evolve", "tiny/evolve", answerer)
    assert refused.exit_code == 2
    assert "evolve.answerer: https://example.org/v1 needs a key" in refused.output
    refused = aligner("evolve", "tiny/evolve", "evolve.answerer={model: m, replay: gone}")
    assert refused.exit_code == 2
    assert "error: there is no recording gone" in refused.output
    assert not (toy / "runs").exists()


def test_from_python_it_is_as_the_page_says(toy: Path) -> None:
    page = (TINY.parents[1] / "docs" / "evolve.md").read_text()
    code = page.partition("## From Python")[2].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["done"].run_dir == Path("runs/mine")
    assert names["done"].results["rows"] == 39.0
