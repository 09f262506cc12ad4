"""A card in a model's folder describes it; code, endpoints, keys and other files are for the user
to allow."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import save_reward_model

from aligner import load_scorer
from aligner.errors import RecipeError
from aligner.evaluation.contamination import trained_on
from aligner.reward_models.catalogue import holds, members_of, read_spec
from aligner.reward_models.ensemble import scored_together
from aligner.reward_models.grants import CARD_FILE

JUDGE = "kind: judge\nendpoint: {model: m, base_url: 'http://x.example/v1', api_key_env: HOME}\n"
SEGMENT = "kind: segment\nmodel: ./\nsegments: {reference: /somewhere/base}\n"


def folder_with(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD_FILE).write_text(text)
    return folder


ASKED = {
    "code": (
        "kind: regression\nmodel: .\nattributes: [a]\ntrust_remote_code: true\n",
        [f"{CARD_FILE}:4: trust_remote_code: asks to run the code", "--trust-remote-code"],
    ),
    "judge": (
        JUDGE,
        [f"{CARD_FILE}:2: endpoint: asks to send", "http://x.example/v1", "the key in HOME"],
    ),
    "scripted judge": (
        "kind: judge\nendpoint: {backend: scripted, script: ./replies.jsonl}\n",
        ["endpoint: asks to send what is judged to scripted"],
    ),
    "rubric": (
        "kind: rubric\nwrite: {items: 3}\nendpoint: {model: m, base_url: 'http://x.example/v1'}\n",
        [f"{CARD_FILE}:3: endpoint: asks to send", "http://x.example/v1"],
    ),
    "function": (
        "kind: verifier\nverifier: ./own.py:score\n",
        [f"{CARD_FILE}:2: verifier: asks to run `verifier:", "own.py:score` in place of the"],
    ),
    "programs": ("kind: verifier\nverifier: tests\n", ["asks to run `verifier:tests`"]),
    "schema": ("kind: verifier\nverifier: json=/a/b.json\n", ["asks to run"]),
    "model above": ("kind: pairwise\nmodel: ../other\n", ["model: leads out", "../other"]),
    "model elsewhere": ("kind: pairwise\nmodel: /some/model\n", ["model: leads out"]),
    "model of the hub": ("kind: pairwise\nmodel: some/model\n", ["model: leads out"]),
    "template": (
        "kind: pairwise\nmodel: .\nchat_template: /a/b.jinja\n",
        [f"{CARD_FILE}:3: chat_template: leads out of the folder, to /a/b.jinja"],
    ),
    "kernel": (
        "kind: pairwise\nmodel: .\nattn_implementation: some/kernel\n",
        [f"{CARD_FILE}:3: attn_implementation: asks to run some/kernel"],
    ),
    "members": (
        "kind: ensemble\nmembers:\n- toy\n- judge\n- ../other\n- ./own.yaml\n- pairwise:./m\n",
        [f"{CARD_FILE}:{line}: members[{line - 3}]" for line in (4, 5, 6, 7)],
    ),
}


@pytest.mark.parametrize("what", ASKED)
def test_the_card_of_a_folder_cannot_ask_for_what_the_user_alone_allows(
    what: str, tmp_path: Path
) -> None:
    text, says = ASKED[what]
    run = tmp_path / "run"
    final = folder_with(run / "final", text)
    (tmp_path / "link.yaml").symlink_to(final / CARD_FILE)
    for spec in (run, final, final / CARD_FILE, tmp_path / "link.yaml"):
        with pytest.raises(RecipeError, match="asks for what only you can allow") as caught:
            read_spec(str(spec))
        for words in says:
            assert words.replace(CARD_FILE, spec.name if spec.suffix else CARD_FILE) in str(
                caught.value
            )
        assert "in a file of your own" in caught.value.hint
    (final / "mine.yaml").write_text(text)
    assert read_spec(str(final / "mine.yaml")).kind == text.split()[1]


@pytest.mark.parametrize(
    "text",
    [
        "kind: bradley_terry\nmodel: .\nchat_template: ./own.jinja\nattn_implementation: sdpa\n",
        "kind: regression\nmodel: ./weights\nattributes: [a]\nchat_template: qwen3\n",
        "kind: verifier\nverifier: number\n",
        "kind: toy\n",
        SEGMENT,
        "kind: ensemble\nmembers: [toy, 'verifier:exact', ./one, ./two/reward_model.yaml]\n",
    ],
)
def test_the_card_of_a_folder_describes_what_is_in_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    assert read_spec(str(folder_with(tmp_path, text))).kind == text.split()[1]


def test_a_template_that_trl_ships_is_not_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(tmp_path / "m", "kind: pairwise\nmodel: .\nchat_template: qwen3\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3").write_text("a file of the user's")
    with pytest.raises(RecipeError, match="chat_template: leads out of the folder, to qwen3"):
        read_spec(str(folder))


def test_a_link_does_not_lead_a_folder_out_of_itself(tmp_path: Path) -> None:
    folder_with(tmp_path / "other", "kind: toy\n")
    inner = folder_with(tmp_path / "m", "kind: ensemble\nmembers: [toy, ./linked]\n")
    (inner / "linked").symlink_to(tmp_path / "other")
    with pytest.raises(RecipeError, match="linked is no folder in this one"):
        read_spec(str(inner))


@pytest.mark.parametrize("depth", [1, 2])
def test_no_member_of_an_ensemble_grants_anything_at_any_depth(depth: int, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    for level in range(depth):
        inside = folder.joinpath(*["inner"] * level)
        folder_with(inside, "kind: ensemble\nmembers: [toy, ./inner]\n")
    folder_with(folder.joinpath(*["inner"] * depth), JUDGE)
    (tmp_path / "mine.yaml").write_text("kind: ensemble\nmembers: [./m]\n")
    for spec in (folder, tmp_path / "mine.yaml"):
        with pytest.raises(RecipeError, match="endpoint: asks to send"):
            load_scorer(str(spec))


def test_trust_in_code_reaches_every_member_and_nothing_else(tmp_path: Path) -> None:
    code = "kind: pairwise\nmodel: .\ntrust_remote_code: true\n"
    folder_with(tmp_path / "m", "kind: ensemble\nmembers: [toy, ./code]\nstandardize: true\n")
    folder_with(tmp_path / "m/code", code)
    with pytest.raises(RecipeError, match="trust_remote_code: asks"):
        members_of(read_spec(str(tmp_path / "m")))
    card = read_spec(str(tmp_path / "m"), trust_remote_code=True)
    assert [member.trust_remote_code for member in members_of(card)] == [False, True]
    assert holds(card, ("pairwise",))
    assert scored_together(card)
    assert trained_on(card, ["x"]) == []
    assert read_spec("pairwise:some/model", trust_remote_code=True).trust_remote_code
    folder_with(tmp_path / "m/code", JUDGE)
    with pytest.raises(RecipeError, match="endpoint: asks"):
        members_of(read_spec(str(tmp_path / "m"), trust_remote_code=True))


def test_an_own_card_grants_what_it_says_for_the_model_of_a_folder(tmp_path: Path) -> None:
    """The way that the message shows: a copy, with the folder as its model."""
    folder = save_reward_model(tmp_path / "m", card="kind: pairwise\nmodel: ../other\n")
    (tmp_path / "mine.yaml").write_text(
        "kind: bradley_terry\nmodel: ./m\ntrust_remote_code: true\n"
    )
    card = read_spec(str(tmp_path / "mine.yaml"))
    assert (card.trust_remote_code, Path(str(card.model))) == (True, folder)
    assert len(load_scorer(str(tmp_path / "mine.yaml")).score(["a"], ["b"])) == 1


def test_the_way_that_the_message_shows_for_a_verifier_runs_the_file_that_the_card_means(
    tmp_path: Path,
) -> None:
    folder = folder_with(tmp_path / "m", "kind: verifier\nverifier: ./own.py:score,timeout_s=5\n")
    (folder / "own.py").write_text("def score(prompt, completion, reference):\n    return 0.25\n")
    with pytest.raises(RecipeError) as caught:
        read_spec(str(folder))
    named = str(caught.value).split("name `")[1].split("`")[0]
    (folder / "mine.yaml").write_text((folder / CARD_FILE).read_text())
    for spec in (named, str(folder / "mine.yaml")):
        assert list(load_scorer(spec).score(["a"], ["b"])) == [0.25]
    (folder / "mine.yaml").write_text("kind: verifier\nverifier: regex=.json=.\n")
    assert read_spec(str(folder / "mine.yaml")).verifier == "regex=.json=."
    (folder / "mine.yaml").write_text("kind: verifier\nverifier: json=./a.json\n")
    assert read_spec(str(folder / "mine.yaml")).verifier == f"json={folder / 'a.json'}"
