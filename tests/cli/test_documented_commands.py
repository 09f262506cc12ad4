"""Every command line of the README and of the pages runs: with the files that it names missing, it
ends by saying so, and not by saying that there is no such command, option, recipe or key."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from runner import aligner

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [*sorted((ROOT / "examples").rglob("*.md")), ROOT / "recipes" / "README.md"]
BLOCK = re.compile(r"^```[^\n]*\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
ELSEWHERE = {"toy", "quickstart", "doctor"}
"""What needs no files, and would really run; tests of their own run them."""
MISUSE = re.compile(
    r"no such (option|command)|unexpected extra|missing argument|invalid value|requires an argument"
    r"|is not a key|unknown|no key|not one of|internal error|Traceback",
    flags=re.IGNORECASE,
)


def documented() -> list[str]:
    """Each line that starts with `aligner` in a block of code, once."""
    found: dict[str, None] = {}
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.sub(r"\s#\s.*", "", line).removeprefix("$ ").split("&&"):
                    if part.strip().startswith("aligner "):
                        found[part.strip()] = None
    return list(found)


@pytest.mark.parametrize("line", documented())
def test_a_documented_command_is_one(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(line)[1:]
    if "discover/bandit" in words or "launch.num_machines" in line:
        words.append("--dry-run")  # it would start, and ask a server, or wait for another machine
    if words[0] in ELSEWHERE:
        pytest.skip("runs without files")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = aligner(*words)
    assert result.exit_code in (0, 2, 3), result.output
    assert not MISUSE.search(result.output), result.output


def test_a_mistake_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above looks for is what the command line says of mistakes."""
    monkeypatch.chdir(tmp_path)
    for words in (["sfft"], ["eval", "--scorers", "x"], ["dpo", "tiny/dpo", "dpo.betta=1"]):
        assert MISUSE.search(aligner(*words).output), words
    assert len(documented()) > 100
