"""The report: everything the record holds, nothing from elsewhere, and nothing that a row could
smuggle in."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from example_run import finished_run, resolved, trained_run

from aligner.reports.finish import finish_run
from aligner.reports.training import write_report
from aligner.runs.files import dumps
from aligner.runs.run import Run

VOID = {"meta", "br", "link", "img", "input", "hr", "line", "path", "circle"}
ATTACK = (
    "</script></title></style><script>alert(1)</script><img src=https://evil.example/x "
    "onerror=alert(2)>'\"&\u2028\x00"
)


class Page(HTMLParser):
    """Reads a page strictly: every tag closed in order, scripts and attributes noted."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.scripts: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> in the wrong place"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif not self.open or self.open[-1] != "style":
            self.text += data

    @property
    def sections(self) -> set[str]:
        return set(self.ids)


@pytest.fixture(autouse=True)
def outside_any_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of this repository has no place in these records."""
    monkeypatch.chdir(tmp_path)


def read_page(run_dir: Path) -> Page:
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert_self_contained(page, text)
    return page


def assert_self_contained(page: Page, text: str) -> None:
    """One script, allowed by its hash; no address in any attribute that loads; no handler."""
    (script,) = page.scripts
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(
        value
        for tag, name, value in page.attributes
        if tag == "meta" and value.startswith("default-src")
    )
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action", "data", "poster", "srcdoc"), (
            tag,
            name,
            value,
        )
        if name == "href":
            assert value.startswith("#")
            assert value[1:] in page.ids
    assert not page.tags & {"img", "iframe", "object", "embed", "link", "form", "base"}
    assert "url(" not in text
    assert "@import" not in text


def test_a_finished_run_shows_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(Path("runs/sft"), steps=80)
    finished_run(Path("runs/dpo"), "dpo", "runs/sft/final", steps=80)
    page = read_page(tmp_path / "runs" / "dpo")
    assert {
        "evaluation",
        "curves",
        "samples",
        "data",
        "recipe",
        "lineage",
        "environment",
        "files",
    } <= page.sections
    for text in (
        "Reward margin",
        "Reward accuracy",
        "Log-probabilities",
        "Learning rate",
        "logits/chosen",
        "base 0.410 → SFT 0.630",
        "3,801",
        "58",
        "the last message has no content",
        "sort: 7 3 9 1",
        "✓ as expected",
        "# DPO on the toy world",
        "recipe.yaml:5",
        "runs/sft",
        "transformers",
        "final/model.safetensors",
        "finished",
    ):
        assert text in page.text, text
    assert "not finished" not in page.text


def test_a_run_killed_early_says_so(tmp_path: Path) -> None:
    run = Run.create(resolved(tmp_path / "run"))
    write_report(run.dir)
    page = read_page(run.dir)
    for text in (
        "not finished",
        "before a step was logged",
        "still works on it, or was killed",
        "No step was logged",
    ):
        assert text in page.text, text
    assert "No data was read" in page.text
    run.close()


def test_a_run_killed_in_training_shows_how_far_it_came(tmp_path: Path) -> None:
    run = trained_run(tmp_path / "run", steps=50)
    run.close()
    (run.dir / "samples.json").unlink()
    with open(run.dir / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 51, "lo')
    write_report(run.dir)
    page = read_page(run.dir)
    assert "stopped at or after step 50" in page.text
    assert "None yet: they are written when training ends" in page.text
    assert "evaluation" not in page.sections


def test_no_held_out_rows_is_said(tmp_path: Path) -> None:
    run = Run.create(resolved(tmp_path / "run", data={"train": "sft.jsonl"}))
    run.log_metrics({"step": 1, "split": "train", "loss": 1.0})
    finish_run(run, {}, [])
    page = read_page(run.dir)
    assert "the recipe gives no data.eval" in page.text
    assert "Training rows: answers before and after" in page.text
    assert "None were recorded." in page.text


def test_an_empty_directory_still_gives_a_page(tmp_path: Path) -> None:
    write_report(tmp_path)
    assert "unknown run" in read_page(tmp_path).text


def test_hostile_content_stays_text(tmp_path: Path) -> None:
    """The attack goes into every place that a user, a row or a model can write to."""
    recipe = resolved(tmp_path / "a'<b>&c", model=f"model{ATTACK}")
    object.__setattr__(recipe, "text", f"# {ATTACK}\n{recipe.text}")
    run = Run.create(recipe)
    environment = run.read_json("environment.json")
    environment["versions"][ATTACK] = ATTACK
    environment["git"] = {"commit": ATTACK, "branch": ATTACK, "dirty": True, "untracked": [ATTACK]}
    environment["command"] = environment["working_directory"] = ATTACK
    run.write_json("environment.json", environment)
    run.write_text("code.diff", ATTACK)
    source = {"path": ATTACK, "format": ATTACK, "rows_read": 2, "to_train": 1, "bad": 1}
    source |= {"bad_rows": [{"where": ATTACK, "reason": ATTACK}]}
    source |= {"files": [{"path": ATTACK, "bytes": 1, "sha256": ATTACK}]}
    split = {"rows": 1, "tokens": 3, "trained_tokens": 3}
    run.write_json(
        "data.json", {"sources": [source], "splits": {ATTACK: split}, "batching": ATTACK}
    )
    run.write_json(
        "samples.json", [dict.fromkeys(("prompt", "before", "after", "expected"), ATTACK)]
    )
    run.write_json("evaluation.json", [{"name": ATTACK, "metrics": {ATTACK: 0.5, "words": ATTACK}}])
    for step in (1, 2):
        run.log_metrics({"step": step, "split": "train", "loss": 1.0, ATTACK: 2.0, "words": ATTACK})
    finish_run(run, {ATTACK: ATTACK}, [{"kind": "model", "path": ATTACK, "fingerprint": ATTACK}])
    page = read_page(run.dir)
    assert "script" in page.tags
    assert page.text.count("alert(1)") > 15
    charts = [json.loads(value) for _, name, value in page.attributes if name == "data-chart"]
    assert charts


def test_unicode_survives(tmp_path: Path) -> None:
    run = Run.create(resolved(tmp_path / "run"))
    text = "مرحبا 你好 🦙 e\u0301 \ud800".encode("utf-8", "replace").decode()
    run.write_json(
        "samples.json", [{"prompt": text, "before": "", "after": text, "expected": None}]
    )
    finish_run(run, {}, [])
    page = read_page(run.dir)
    assert text in page.text
    assert "(empty answer)" in page.text


@pytest.mark.parametrize(
    "values",
    [
        [float("nan")],
        [1.0, float("inf"), 2.0],
        [float("nan"), 3.0],
        [0.0],
        [1e300, -1e300, 1.0],
        [-2.0, -2.0],
    ],
)
def test_values_that_are_no_numbers_are_said_not_drawn(tmp_path: Path, values: list[float]) -> None:
    run = Run.create(resolved(tmp_path / "run"))
    for step, value in enumerate(values, 1):
        run.log_metrics({"step": step, "split": "train", "loss": value, "grad_norm": 1.0})
    run.write_json("evaluation.json", [{"name": "base", "metrics": {"gold": float("nan")}}])
    finish_run(run, {"loss": values[-1]}, [])
    page = read_page(run.dir)
    paths = " ".join(value for tag, name, value in page.attributes if tag == "path" and name == "d")
    assert "nan" not in paths
    assert "inf" not in paths
    finite = [value for value in values if abs(value) < 1e100]
    assert ("could not be drawn" in page.text) == (len(finite) < len(values))


def test_a_long_run_gives_a_small_file(tmp_path: Path) -> None:
    run = Run.create(resolved(tmp_path / "run", "dpo"))
    lines = (
        {
            "step": step,
            "split": "train",
            "loss": 1 / step,
            "rewards/margins": step / 7,
            "grad_norm": (step * 7919) % 101,
        }
        for step in range(1, 15_001)
    )
    run.write_text("metrics.jsonl", "".join(dumps(line) + "\n" for line in lines))
    finish_run(run, {}, [])
    assert (run.dir / "report.html").stat().st_size < 300_000
    assert "15,000" in read_page(run.dir).text


def test_peaks_survive_thinning() -> None:
    from aligner.reports.charts import thin

    points = [(float(step), 0.0) for step in range(10_000)]
    points[4_321] = (4_321.0, 9.0)
    points[8_765] = (8_765.0, -9.0)
    kept = thin(points)
    assert len(kept) < 900
    assert {(4_321.0, 9.0), (8_765.0, -9.0), points[0], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_writing_a_report_changes_nothing_else(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", steps=5)

    def others() -> dict[str, Any]:
        return {
            str(path): path.read_bytes()
            for path in run.dir.rglob("*")
            if path.is_file() and path.suffix != ".html"
        }

    before = others()
    write_report(run.dir)
    assert others() == before


def test_the_page_names_no_other_address(tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", steps=5)
    assert re.findall(r"https?:", (run.dir / "report.html").read_text()) == []
