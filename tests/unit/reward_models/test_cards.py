"""Cards: those that are shipped are whole, what they say is read back, and what is wrong with one
is said by line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from aligner.config import yaml_lines
from aligner.errors import RecipeError
from aligner.reward_models.card import (
    ALLOWED,
    NEEDED,
    Card,
    card_text,
    parse_card,
    read_card,
    shipped_cards,
)
from aligner.reward_models.catalogue import KINDS, read_spec
from aligner.reward_models.grants import CARD_FILE

ROOT = Path(__file__).parents[3]
SHIPPED = shipped_cards()


def test_every_file_in_the_folder_is_shipped() -> None:
    assert set(SHIPPED) == {
        path.stem if path.suffix == ".yaml" else path.name
        for path in (ROOT / "reward_models/cards").iterdir()
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_is_read_by_its_name_and_says_what_it_is(name: str) -> None:
    card = read_spec(name)
    assert (card.name, card.kind in KINDS) == (name, True)
    assert card.description.endswith(".")
    assert card.trust_remote_code is False
    if card.model is not None:
        assert card.url == f"https://huggingface.co/{card.model}"
        assert card.read_at == "end" or card.kind not in ("bradley_terry", "regression")
        assert card.license or "No licence" in SHIPPED[name]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_survives_being_written_and_read_again(name: str) -> None:
    card = read_spec(name)
    assert parse_card(card_text(card), "again.yaml", name) == card


def test_the_catalogue_lists_every_shipped_card() -> None:
    catalogue = (ROOT / "reward_models" / "README.md").read_text(encoding="utf-8")
    for name in SHIPPED:
        card = read_spec(name)
        (line,) = [line for line in catalogue.splitlines() if line.startswith(f"| `{name}` |")]
        assert f"`{card.kind}`" in line
        if card.model is not None:
            assert card.model in line
            assert (card.license or "not given") in line


def test_no_key_is_both_needed_and_meaningless() -> None:
    for kind, needed in NEEDED.items():
        assert set(needed) <= ALLOWED[kind]
        assert ALLOWED[kind] <= set(Card.model_fields)


def test_a_card_of_a_folder_is_named_after_the_run_and_its_paths_move_with_it(
    tmp_path: Path,
) -> None:
    final = tmp_path / "run" / "final"
    final.mkdir(parents=True)
    (final / CARD_FILE).write_text("kind: bradley_terry\nmodel: ./\n")
    for spec in (tmp_path / "run", final):
        card = read_spec(str(spec))
        assert (card.name, Path(str(card.model)).resolve()) == ("run", final)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert (
        Path(str(read_spec(str(tmp_path / "moved")).model)).resolve()
        == tmp_path / "moved" / "final"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: judge\n", ["endpoint", "is missing", "`judge` needs it"]),
        ("kind: judge\nendpoint: {model: m}\nscale: [10, 1]\n", ["c.yaml:3", "from 10 to 1"]),
        ("kind: judge\nendpoint: {model: m}\nscale: [1]\n", ["c.yaml:3", "scale"]),
        ("kind: judge\nendpoint: {modle: m}\n", ["c.yaml:2", "modle"]),
        ("kind: ensemble\nmembers: []\n", ["members", "is missing"]),
        ("kind: ensemble\nmembers: [toy]\ncombine: max\n", ["c.yaml:3", "combine"]),
        ("kind: ensemble\nmembers: [toy]\nspread_weight: -1\n", ["c.yaml:3", "spread_weight"]),
        (
            "kind: ensemble\nmembers: [toy]\nmodel: m\n",
            ["c.yaml:3", "has no effect for the kind `ensemble`"],
        ),
        (
            "kind: rubric\nendpoint: {model: m}\n",
            ["items: is missing", "`write: {items: 6}`, or `items_from: answer`"],
        ),
        (
            "kind: rubric\nendpoint: {model: m}\nitems: [a]\nwrite: {}\nitems_from: answer\n",
            ["c.yaml:4: write: does not go with `items`", "c.yaml:5: items_from: does not go"],
        ),
        (
            "kind: rubric\nendpoint: {model: m}\nitems:\n- a\n- {text: b, weight: 0}\n",
            ["c.yaml:5: items[1].weight: input should be greater than 0"],
        ),
        (
            "kind: rubric\nendpoint: {model: m}\nitems:\n- {text: b, weight: -1}\n- ''\n",
            ["c.yaml:4: items[0].weight", "c.yaml:5: items[1]"],
        ),
        (
            "kind: rubric\nendpoint: {model: m}\nitems:\n- 3\n- {test: b}\n",
            ["c.yaml:4: items[0]", "c.yaml:5: items[1].test: is not a key of a card"],
        ),
        (
            "kind: rubric\nendpoint: {model: m}\nwrite: {items: 0}\n",
            ["c.yaml:3: write.items: input should be greater than or equal to 1"],
        ),
        ("kind: toy\nkindd: x\n", ["c.yaml:2", "kindd", "kind"]),
        ("kind: tyo\n", ["c.yaml:1", "kind"]),
        ("- a\n", ["c.yaml"]),
    ],
)
def test_what_is_wrong_with_a_card_is_said_with_its_line(
    text: str, says: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_card(path)
    for words in says:
        assert words in str(caught.value)


def test_the_judge_that_is_shipped_asks_this_machine_only() -> None:
    endpoint = yaml.safe_load(SHIPPED["judge"])["endpoint"]
    assert endpoint["base_url"].startswith("http://127.0.0.1:")
    assert endpoint["temperature"] == 0.0


def test_a_card_that_is_no_text_or_grows_when_it_is_read_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / CARD_FILE
    path.write_bytes(b"kind: toy\xff\n")
    with pytest.raises(RecipeError, match=f"{CARD_FILE} is not text: byte 9 is not UTF-8"):
        read_spec(str(tmp_path))
    path.write_text("kind: toy\na: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n")
    monkeypatch.setattr(yaml_lines, "LARGEST", 50)
    with pytest.raises(RecipeError, match=f"{CARD_FILE}:4: more than 50 characters, with every"):
        read_spec(str(tmp_path))
    path.write_text("kind: toy\n" + "# long\n" * 40)
    with pytest.raises(RecipeError, match="290 bytes large, and no card of a reward model"):
        read_spec(str(tmp_path))
