"""The check of finished mosaics: what it accepts and reads out of the text, and that it finds every
planted fault."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aligner.builders.mosaic.check import Reading, Violation, check, parse
from aligner.builders.mosaic.phrasings import MASK_RULES, PERMUTE_RULES, SLOTS, Text, load_phrasings

PHRASINGS = load_phrasings()
Examples = list[tuple[str, str]]

FOUR: Examples = [  # words 5 6 3 4, characters 21 18 14 29, first letters t a n b
    ("Tell me who says moo.", "A cow."),
    ("add 2 and 2 for me", "Four."),
    ("Name a colour.", "Red."),
    ("“Bonjour” means what exactly?", "Hello."),
]
ONE: Examples = FOUR[:1]


@dataclass(frozen=True)
class Golden:
    """A sample written by hand, its examples, and what the check has to read."""

    examples: Examples
    reading: Reading
    prompt: str
    completion: str


def golden(text: str, examples: Examples = FOUR) -> tuple[str, Golden]:
    """Read `strategy rule | order | begin end | number`, the prompt, a line `=>`, the
    completion."""
    head, body = text.strip("\n").split("\n", 1)
    name, order, tags, number = (part.strip() for part in head.split("|"))
    strategy, _, rule = name.partition(" ")
    begin, end = tags.split() or ("", "")
    answered = tuple(map(int, order.split()))
    dropped = tuple(sorted(set(range(1, len(examples) + 1)) - set(answered)))
    prompt, completion = body.split("\n=>\n")
    reading = Reading(strategy, rule or None, answered, dropped, begin, end, number)
    marks = ("tags" if begin else "no tags") + (", numbers" if number else "")
    return f"{name} of {len(examples)}, {marks}", Golden(examples, reading, prompt, completion)


GOLDEN = dict(
    [
        golden(
            """
plain | 1 | |
Tell me who says moo.
=>
A cow.""",
            ONE,
        ),
        golden(
            """
format | 1 | | {n}.
Here is an instruction; write the answer to it.

1. Tell me who says moo.
=>
1. A cow.""",
            ONE,
        ),
        golden(
            """
format | 1 | <a> </a> |
Tell me who says moo.

Put your answer between <a> and </a>.
=>
<a>A cow.</a>""",
            ONE,
        ),
        golden(
            """
primary | 1 2 3 4 | |
Tell me who says moo.

---

add 2 and 2 for me

---

Name a colour.

---

“Bonjour” means what exactly?
=>
A cow.

---

Four.

---

Red.

---

Hello."""
        ),
        golden(
            """
format | 1 2 3 4 | | #k1x1-{n}:
#k1x1-1:
Tell me who says moo.

#k1x1-2:
add 2 and 2 for me

#k1x1-3:
Name a colour.

#k1x1-4:
“Bonjour” means what exactly?
Answer each of the instructions, one after another.
=>
#k1x1-1:
A cow.

#k1x1-2:
Four.

#k1x1-3:
Red.

#k1x1-4:
Hello."""
        ),
        golden(
            """
format | 1 2 3 4 | ((in)) ((out)) |
Put each answer between ((in)) and ((out)).
Tell me who says moo.
add 2 and 2 for me
Name a colour.
“Bonjour” means what exactly?
=>
((in))A cow.((out))

((in))Four.((out))

((in))Red.((out))

((in))Hello.((out))"""
        ),
        golden(
            """
permute explicit | 4 2 1 3 | | ({n})
(1) Tell me who says moo.
(2) add 2 and 2 for me
(3) Name a colour.
(4) “Bonjour” means what exactly?

Give your answers in this order: [4 - 2 - 1 - 3]
=>
(4) Hello.

(2) Four.

(1) A cow.

(3) Red."""
        ),
        golden(
            """
permute explicit | 3 1 2 4 | [open] [close] | {n}:
Answer the instructions in the order <<3, 1, 2, 4>> of their numbers.
Let [open] open an answer and [close] close it.

1:
Tell me who says moo.
2:
add 2 and 2 for me
3:
Name a colour.
4:
“Bonjour” means what exactly?
=>
3:
[open]Red.[close]

1:
[open]A cow.[close]

2:
[open]Four.[close]

4:
[open]Hello.[close]"""
        ),
        golden(
            """
permute reverse | 4 3 2 1 | | No. {n}:
Answer the instructions in reverse order, the last one first.

No. 1: Tell me who says moo.

No. 2: add 2 and 2 for me

No. 3: Name a colour.

No. 4: “Bonjour” means what exactly?
=>
No. 4: Hello.

No. 3: Red.

No. 2: Four.

No. 1: A cow."""
        ),
        golden(
            """
permute reverse | 4 3 2 1 | **begin** **end** |
Go backwards: the final instruction is answered first, the first one at the end.
Tell me who says moo.

add 2 and 2 for me

Name a colour.

“Bonjour” means what exactly?
The marks **begin** and **end** stand around each single answer.
=>
**begin**Hello.**end**

**begin**Red.**end**

**begin**Four.**end**

**begin**A cow.**end**"""
        ),
        golden(
            """
permute alphabet_ascending | 2 4 3 1 | | {n})
1) Tell me who says moo.
2) add 2 and 2 for me
3) Name a colour.
4) “Bonjour” means what exactly?
Order of answers: alphabetical, by the initial letter of the instruction.
=>
2) Four.

4) Hello.

3) Red.

1) A cow."""
        ),
        golden(
            """
permute alphabet_ascending | 2 4 3 1 | <a> </a> |
Write <a> before and </a> after each of your answers.
Tell me who says moo.
add 2 and 2 for me
Name a colour.
“Bonjour” means what exactly?
Sort your answers by the first letter of the instruction, from A to Z.
=>
<a>Four.</a>

<a>Hello.</a>

<a>Red.</a>

<a>A cow.</a>"""
        ),
        golden(
            """
permute alphabet_descending | 1 3 4 2 | | -{n}-
-1-
Tell me who says moo.
-2-
add 2 and 2 for me
-3-
Name a colour.
-4-
“Bonjour” means what exactly?

Sort your answers by the first letter of the instruction, from Z to A.
=>
-1-
A cow.

-3-
Red.

-4-
Hello.

-2-
Four."""
        ),
        golden(
            """
permute alphabet_descending | 1 3 4 2 | ~top~ ~bottom~ | {n};
1; Tell me who says moo.
2; add 2 and 2 for me
3; Name a colour.
4; “Bonjour” means what exactly?
Enclose the answers one by one in the pair of marks ~top~ and ~bottom~.

Order of answers: backwards through the alphabet, by the initial letter of the instruction.
=>
1; ~top~A cow.~bottom~

3; ~top~Red.~bottom~

4; ~top~Hello.~bottom~

2; ~top~Four.~bottom~"""
        ),
        golden(
            """
permute words_ascending | 3 4 1 2 | | <{n}>
The fewer words an instruction has, the earlier you answer it.
<1> Tell me who says moo.
<2> add 2 and 2 for me
<3> Name a colour.
<4> “Bonjour” means what exactly?
=>
<3> Red.

<4> Hello.

<1> A cow.

<2> Four."""
        ),
        golden(
            """
permute words_ascending | 3 4 1 2 | _from_ _to_ |
Sort your answers by the number of words in the instruction, from few to many.

An answer has to begin with _from_ and to finish with _to_, each one by itself.

Tell me who says moo.
add 2 and 2 for me
Name a colour.
“Bonjour” means what exactly?
=>
_from_Red._to_

_from_Hello._to_

_from_A cow._to_

_from_Four._to_"""
        ),
        golden(
            """
permute words_descending | 2 1 4 3 | | Item {n}:
Item 1: Tell me who says moo.
Item 2: add 2 and 2 for me
Item 3: Name a colour.
Item 4: “Bonjour” means what exactly?
The more words an instruction has, the earlier you answer it.
=>
Item 2: Four.

Item 1: A cow.

Item 4: Hello.

Item 3: Red."""
        ),
        golden(
            """
permute words_descending | 2 1 4 3 | [[in]] [[out]] | Part {n}:
Part 1: Tell me who says moo.
Part 2: add 2 and 2 for me
Part 3: Name a colour.
Part 4: “Bonjour” means what exactly?

Place [[in]] right before and [[out]] right after the answer to an instruction.

Order of answers: decreasing number of words in the instruction.
=>
Part 2: [[in]]Four.[[out]]

Part 1: [[in]]A cow.[[out]]

Part 4: [[in]]Hello.[[out]]

Part 3: [[in]]Red.[[out]]"""
        ),
        golden(
            """
permute characters_ascending | 3 2 1 4 | | [{n}]
The fewer characters an instruction has, the earlier you answer it.

[1]
Tell me who says moo.

[2]
add 2 and 2 for me

[3]
Name a colour.

[4]
“Bonjour” means what exactly?
=>
[3]
Red.

[2]
Four.

[1]
A cow.

[4]
Hello."""
        ),
        golden(
            """
permute characters_ascending | 3 2 1 4 | <:a:> <:b:> |
Tell me who says moo.
add 2 and 2 for me
Name a colour.
“Bonjour” means what exactly?
I expect your answers wrapped one at a time as <:a:> ... <:b:>.
Order of answers: increasing number of characters in the instruction.
=>
<:a:>Red.<:b:>

<:a:>Four.<:b:>

<:a:>A cow.<:b:>

<:a:>Hello.<:b:>"""
        ),
        golden(
            """
permute characters_descending | 4 1 2 3 | | ({n}):
(1): Tell me who says moo.
(2): add 2 and 2 for me
(3): Name a colour.
(4): “Bonjour” means what exactly?
The more characters an instruction has, the earlier you answer it.
=>
(4): Hello.

(1): A cow.

(2): Four.

(3): Red."""
        ),
        golden(
            """
permute characters_descending | 4 1 2 3 | #head# #tail# |
Order of answers: decreasing number of characters in the instruction.
Let #head# open an answer and #tail# close it.
Tell me who says moo.
add 2 and 2 for me
Name a colour.
“Bonjour” means what exactly?
=>
#head#Hello.#tail#

#head#A cow.#tail#

#head#Four.#tail#

#head#Red.#tail#"""
        ),
        golden(
            """
permute odd_first | 1 3 2 4 | | #{n}
The order is odd numbers upwards, followed by even numbers upwards.
#1 Tell me who says moo.
#2 add 2 and 2 for me
#3 Name a colour.
#4 “Bonjour” means what exactly?
=>
#1 A cow.

#3 Red.

#2 Four.

#4 Hello."""
        ),
        golden(
            """
permute odd_first | 1 3 2 4 | %on% %off% | #{n}:
Put each answer between %on% and %off%.
#1: Tell me who says moo.
#2: add 2 and 2 for me
#3: Name a colour.
#4: “Bonjour” means what exactly?
The order is odd numbers upwards, followed by even numbers upwards.
=>
#1: %on%A cow.%off%

#3: %on%Red.%off%

#2: %on%Four.%off%

#4: %on%Hello.%off%"""
        ),
        golden(
            """
permute even_first | 2 4 1 3 | | [{n}]:
[1]: Tell me who says moo.

[2]: add 2 and 2 for me

[3]: Name a colour.

[4]: “Bonjour” means what exactly?

The order is even numbers upwards, followed by odd numbers upwards.
=>
[2]: Four.

[4]: Hello.

[1]: A cow.

[3]: Red."""
        ),
        golden(
            """
permute even_first | 2 4 1 3 | <answer> </answer> | {n}.
The order is even numbers upwards, followed by odd numbers upwards.

1. Tell me who says moo.
2. add 2 and 2 for me
3. Name a colour.
4. “Bonjour” means what exactly?

Put each answer between <answer> and </answer>.
=>
2. <answer>Four.</answer>

4. <answer>Hello.</answer>

1. <answer>A cow.</answer>

3. <answer>Red.</answer>"""
        ),
        golden(
            """
maskout explicit | 1 3 4 | | {n}.
Do not answer instruction number (2).
1. Tell me who says moo.
2. add 2 and 2 for me
3. Name a colour.
4. “Bonjour” means what exactly?
=>
1. A cow.

3. Red.

4. Hello."""
        ),
        golden(
            """
maskout explicit | 2 3 | <a> </a> | {n}.
Pass over the instructions "1; 4" and answer what remains.
Put each answer between <a> and </a>.
1. Tell me who says moo.
2. add 2 and 2 for me
3. Name a colour.
4. “Bonjour” means what exactly?
=>
2. <a>Four.</a>

3. <a>Red.</a>"""
        ),
        golden(
            """
maskout longest | 1 3 4 | | {n}:
1: Tell me who says moo.
2: add 2 and 2 for me
3: Name a colour.
4: “Bonjour” means what exactly?

Pass over the one instruction that is longest in words.
=>
1: A cow.

3: Red.

4: Hello."""
        ),
        golden(
            """
maskout longest | 3 4 | <a> </a> |
Tell me who says moo.
add 2 and 2 for me
Name a colour.
“Bonjour” means what exactly?

Put each answer between <a> and </a>.

Pass over the 2 instructions that are longest in words.
=>
<a>Red.</a>

<a>Hello.</a>"""
        ),
        golden(
            """
maskout shortest | 1 2 | | ({n})
Count the words: the 2 shortest instructions get no answer.
(1)
Tell me who says moo.
(2)
add 2 and 2 for me
(3)
Name a colour.
(4)
“Bonjour” means what exactly?
=>
(1)
A cow.

(2)
Four."""
        ),
        golden(
            """
maskout shortest | 1 2 4 | <a> </a> |
Put each answer between <a> and </a>.

Tell me who says moo.

add 2 and 2 for me

Name a colour.

“Bonjour” means what exactly?

Count the words: the shortest instruction gets no answer.
=>
<a>A cow.</a>

<a>Four.</a>

<a>Hello.</a>"""
        ),
        golden(
            """
maskout odd | 2 4 | | <<{n}>>
Everything odd-numbered stays unanswered.
<<1>> Tell me who says moo.
<<2>> add 2 and 2 for me
<<3>> Name a colour.
<<4>> “Bonjour” means what exactly?
=>
<<2>> Four.

<<4>> Hello."""
        ),
        golden(
            """
maskout odd | 2 4 | [reply] [/reply] | {n})
1) Tell me who says moo.
2) add 2 and 2 for me
3) Name a colour.
4) “Bonjour” means what exactly?
Put each answer between [reply] and [/reply].
Everything odd-numbered stays unanswered.
=>
2) [reply]Four.[/reply]

4) [reply]Hello.[/reply]"""
        ),
        golden(
            """
maskout even | 1 3 | | {n}.
1. Tell me who says moo.
2. add 2 and 2 for me
3. Name a colour.
4. “Bonjour” means what exactly?
There should be no answer for an instruction whose number is even.
=>
1. A cow.

3. Red."""
        ),
        golden(
            """
maskout even | 1 3 | (left) (right) | {n}:
Write (left) before and (right) after each of your answers.

1: Tell me who says moo.

2: add 2 and 2 for me

3: Name a colour.

4: “Bonjour” means what exactly?
There should be no answer for an instruction whose number is even.
=>
1: (left)A cow.(right)

3: (left)Red.(right)"""
        ),
    ]
)
EVERY = list(GOLDEN)
RULED = [name for name in EVERY if GOLDEN[name].reading.rule]


def refused(prompt: str, completion: str, examples: Examples) -> Violation:
    """Return the Violation that the check has to raise."""
    with pytest.raises(Violation) as caught:
        check(prompt, completion, examples, PHRASINGS)
    assert caught.value.kind
    assert caught.value.detail
    return caught.value


# --- what is accepted -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_written_by_hand_is_read_as_what_it_is(name):
    sample = GOLDEN[name]
    assert check(sample.prompt, sample.completion, sample.examples, PHRASINGS) == sample.reading


def test_there_is_a_sample_with_and_without_tags_for_every_rule():
    found = {
        (sample.reading.strategy, sample.reading.rule, bool(sample.reading.begin))
        for sample in GOLDEN.values()
    }
    rules = [("permute", rule) for rule in PERMUTE_RULES] + [
        ("maskout", rule) for rule in MASK_RULES
    ]
    assert found >= {(*rule, tags) for rule in rules for tags in (True, False)}


FORMS = [(label, form) for label, forms in SLOTS.items() for form in forms]


@pytest.mark.parametrize(("label", "form"), FORMS)
def test_every_text_among_the_phrasings_is_understood(label, form):
    strategy, rule = label.split(".")
    examples = ONE if strategy == "format" and form == "one" else FOUR
    texts, every = [text for text, _ in examples], list(range(1, len(examples) + 1))
    dropped, order = [], every
    if strategy == "permute":
        order = orders(texts).get(rule, [2, 4, 1, 3])
    elif strategy == "maskout":
        count = 0 if rule in ("odd", "even") else 1 if form == "one" else 2
        dropped = masks(texts).get((rule, count), [3, 4][:count])
        order = [j for j in every if j not in dropped]
    slots = {
        "begin": "<a>",
        "end": "</a>",
        "count": "2",
        "list": " ".join(map(str, dropped or order)),
    }
    begin, end = ("<a>", "</a>") if rule == "tags" else ("", "")
    block = "\n".join(f"{j}. {text}" for j, text in enumerate(texts, 1))
    completion = "\n\n".join(f"{j}. {begin}{examples[j - 1][1]}{end}" for j in order)
    expected = Reading(strategy, rule, tuple(order), tuple(dropped), begin, end, "{n}.")
    for text in PHRASINGS.texts[label][form]:
        reading = check(f"{text.filled(**slots)}\n{block}", completion, examples, PHRASINGS)
        assert reading == (replace(expected, rule=None) if strategy == "format" else expected)


def test_tags_that_hold_the_words_between_the_slots_are_told_apart_by_the_completion():
    prompt = "Tell me who says moo.\nPut your answer between <a and and b> and <c>."
    assert check(prompt, "<a and and b>A cow.<c>", ONE, PHRASINGS).begin == "<a and and b>"
    prompt = "Tell me who says moo.\nPut your answer between <a> and <b and c>."
    assert check(prompt, "<a>A cow.<b and c>", ONE, PHRASINGS).end == "<b and c>"


def test_examples_that_answer_alike_may_stand_for_one_another():
    examples = [("one two three", "yes"), ("one", "yes"), ("one two", "no")]
    prompt = "one two three\none\none two\nPut each answer between <a> and <b>.\n"
    prompt += "The fewer words an instruction has, the earlier you answer it."
    reading = check(prompt, "<a>yes<b>\n\n<a>no<b>\n\n<a>yes<b>", examples, PHRASINGS)
    assert reading.order == (2, 3, 1)


def test_instructions_that_are_meta_instructions_themselves_do_not_mislead():
    line = "Answer the instructions in reverse order, the last one first."
    examples = [(line, "1. no"), (f"x\n{line}", f"{line}\n\n{line}")]
    prompt = f"{line}\n\nPut each answer between <a> and <b>.\n{line}\nx\n{line}"
    completion = f"<a>{line}\n\n{line}<b>\n\n<a>1. no<b>"
    assert check(prompt, completion, examples, PHRASINGS).order == (2, 1)
    refused(f"Put each answer between <a> and <b>.\n{line}\nx\n{line}", completion, examples)


def test_a_long_line_that_begins_like_a_meta_instruction_costs_nothing():
    text = "Put each answer between " + "a and " * 50_000
    examples = [(f"{text}\nx", "y"), (f"z\n{text}", "t")]
    prompt = f"{text}\nx\nz\n{text}"
    completion = "<a>y<b>\n\n<a>t<b>"
    assert (
        check(
            f"Let <a> open an answer and <b> close it.\n{prompt}", completion, examples, PHRASINGS
        ).begin
        == "<a>"
    )
    assert (
        check(
            f"{prompt}\nLet <a> open an answer and <b> close it.", completion, examples, PHRASINGS
        ).begin
        == "<a>"
    )


def test_a_number_among_the_phrasings_is_preferred_where_one_mark_can_be_read_twice():
    phrasings = replace(PHRASINGS, numbers=("{n} of 1)",))
    assert (
        check("1 of 1) Tell me who says moo.", "1 of 1) A cow.", ONE, phrasings).number
        == "{n} of 1)"
    )
    assert (
        check("1 of 1) Tell me who says moo.", "1 of 1) A cow.", ONE, PHRASINGS).number
        == "1 of {n})"
    )


def test_a_text_among_the_phrasings_may_name_the_closing_tag_first():
    text = Text("format.tags", "one", "Close with {end} what {begin} has opened.")
    phrasings = replace(
        PHRASINGS, texts={**PHRASINGS.texts, "format.tags": {"one": (text,), "many": (text,)}}
    )
    prompt = "Close with <b> what <a> has opened.\nTell me who says moo."
    assert check(prompt, "<a>A cow.<b>", ONE, phrasings).begin == "<a>"


def test_first_letters_are_compared_without_regard_to_case():
    examples = [("ſea", "yes"), ("ROW", "no"), ("Tea", "no")]
    line = "Sort your answers by the first letter of the instruction, from A to Z."
    prompt, completion = f"{line}\n#1: ſea\n#2: ROW\n#3: Tea", "#2: no\n\n#1: yes\n\n#3: no"
    assert check(prompt, completion, examples, PHRASINGS).order == (2, 1, 3)


def test_numbers_of_two_digits_are_read():
    examples = [(f"question {'x' * j}", f"answer {j}") for j in range(1, 13)]
    prompt = "\n".join(f"{j}. {text}" for j, (text, _) in enumerate(examples, 1))
    prompt += "\nThe more characters an instruction has, the earlier you answer it."
    completion = "\n\n".join(f"{j}. {examples[j - 1][1]}" for j in range(12, 0, -1))
    assert check(prompt, completion, examples, PHRASINGS).order == tuple(range(12, 0, -1))


# --- cutting a completion -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [name for name in EVERY if GOLDEN[name].reading.strategy not in ("plain", "primary")]
)
def test_a_completion_is_cut_into_its_replies(name):
    sample, reading = GOLDEN[name], GOLDEN[name].reading
    gap = (
        "\n"
        if sample.completion.split("\n")[0] == reading.number.replace("{n}", str(reading.order[0]))
        else " "
    )
    replies = parse(
        sample.completion, begin=reading.begin, end=reading.end, number=reading.number, gap=gap
    )
    assert replies == [
        (j if reading.number else None, sample.examples[j - 1][1]) for j in reading.order
    ]


def test_a_completion_without_marks_is_one_reply():
    assert parse("a\n\nb") == [(None, "a\n\nb")]


def test_a_reply_that_finishes_like_the_tag_begins_is_cut_where_it_finishes():
    assert parse("<a>##end###end##", begin="<a>", end="##end##")[0][1] == "##end#"


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("a", {"number": "{n}."}),
        ("1.\na", {"number": "{n}."}),
        ("1. a\n\n1. b", {"number": "{n}."}),
        ("1. a\n2. b", {"number": "{n}."}),
        ("1. a\n\n02. b", {"number": "{n}."}),
        ("1. ", {"number": "{n}."}),
        ("1. a", {"number": "."}),
        ("1. a", {"number": "{n}{n}"}),
        ("<a>b", {"begin": "<a>", "end": "</a>"}),
        ("<a>b</a> \n\n<a>c</a>", {"begin": "<a>", "end": "</a>"}),
        ("<a>b</a>\n\nc\n\n<a>c</a>", {"begin": "<a>", "end": "</a>"}),
        ("<a>", {"begin": "<a>", "end": "a>"}),
        ("<a>b</a>", {"begin": "<a>"}),
        ("<a>b</a>", {"end": "</a>"}),
    ],
)
def test_what_cannot_be_a_completion_is_not_cut(text, marks):
    with pytest.raises(Violation):
        parse(text, **marks)


# --- faults that every sample can have ------------------------------------------------------------

Replies = list[str]


def _swapped(replies: Replies) -> Replies:
    return [replies[1], replies[0], *replies[2:]]


FAULTS: dict[str, tuple[int, Callable[[Replies], Replies]]] = {
    "two replies swapped": (2, _swapped),
    "the first reply gone": (2, lambda replies: replies[1:]),
    "the last reply gone": (2, lambda replies: replies[:-1]),
    "the last reply twice": (1, lambda replies: [*replies, replies[-1]]),
    "the first reply in place of the last": (2, lambda replies: [*replies[:-1], replies[0]]),
    "a changed byte": (
        1,
        lambda replies: [replies[0].replace("o", "0").replace("Red", "red"), *replies[1:]],
    ),
    "something between replies": (2, lambda replies: [replies[0], "Next:", *replies[1:]]),
    "something after the last reply": (1, lambda replies: [*replies, "That is all."]),
    "a blank behind a reply": (1, lambda replies: [replies[0] + " ", *replies[1:]]),
    "a blank line too many": (2, lambda replies: ["\n" + replies[0], *replies[1:]]),
    "a trailing newline": (1, lambda replies: [*replies[:-1], replies[-1] + "\n"]),
    "nothing at all": (1, lambda replies: [""]),
}


SPOILT = [
    (name, fault)
    for name in EVERY
    for fault in FAULTS
    if FAULTS[fault][0] <= len(GOLDEN[name].reading.order)
]


@pytest.mark.parametrize(("name", "fault"), SPOILT)
def test_a_fault_in_the_replies_is_found(name, fault):
    sample = GOLDEN[name]
    joint = "\n\n---\n\n" if sample.reading.strategy == "primary" else "\n\n"
    spoilt = joint.join(FAULTS[fault][1](sample.completion.split(joint)))
    assert spoilt != sample.completion
    refused(sample.prompt, spoilt, sample.examples)


@pytest.mark.parametrize("name", [name for name in EVERY if GOLDEN[name].reading.number])
def test_a_wrong_number_is_found(name):
    sample, reading = GOLDEN[name], GOLDEN[name].reading
    right = reading.number.replace("{n}", str(reading.order[-1]))
    for wrong in ("7", "0", "-1", "1" if reading.order[-1] != 1 else "2", f"0{reading.order[-1]}"):
        spoilt = sample.completion.replace(right, reading.number.replace("{n}", wrong))
        assert spoilt != sample.completion
        refused(sample.prompt, spoilt, sample.examples)
    refused(sample.prompt, sample.completion.replace(right, "", 1), sample.examples)
    spoilt = sample.prompt.replace(
        reading.number.replace("{n}", "1"), reading.number.replace("{n}", "9"), 1
    )
    refused(spoilt, sample.completion, sample.examples)


@pytest.mark.parametrize("name", [name for name in EVERY if GOLDEN[name].reading.begin])
def test_a_mistyped_tag_is_found(name):
    sample, reading = GOLDEN[name], GOLDEN[name].reading
    for tag in (reading.begin, reading.end):
        for typo in (tag[:-1], tag.upper(), tag + " ", "", tag + tag):
            refused(sample.prompt, sample.completion.replace(tag, typo, 1), sample.examples)
            refused(sample.prompt.replace(tag, typo), sample.completion, sample.examples)
    crossed = (
        sample.prompt.replace(reading.begin, "\0")
        .replace(reading.end, reading.begin)
        .replace("\0", reading.end)
    )
    assert refused(crossed, sample.completion, sample.examples).kind == "tags"


def metas(prompt: str) -> list[str]:
    """The lines of a prompt that the phrasings can read."""
    return [line for line in prompt.split("\n") if PHRASINGS.read(line)]


@pytest.mark.parametrize("name", [name for name in EVERY if metas(GOLDEN[name].prompt)])
def test_a_meta_instruction_that_is_missing_or_changed_is_found(name):
    sample = GOLDEN[name]
    for line in metas(sample.prompt):
        without = "\n".join(other for other in sample.prompt.split("\n") if other != line).strip(
            "\n"
        )
        if (
            "following" not in line
            and sample.reading.strategy == "format"
            and sample.reading.number
        ):
            assert (
                check(without, sample.completion, sample.examples, PHRASINGS) == sample.reading
            )  # nobody needs this one
        else:
            refused(without, sample.completion, sample.examples)
        refused(sample.prompt.replace(line, line[:-1]), sample.completion, sample.examples)
        refused(sample.prompt.replace(line, line.upper()), sample.completion, sample.examples)
        refused(sample.prompt.replace(line, f"{line}\n{line}"), sample.completion, sample.examples)
        refused(sample.prompt.replace(line, f"{line}\nPlease."), sample.completion, sample.examples)


@pytest.mark.parametrize("name", RULED)
def test_the_text_of_any_other_rule_is_found(name):
    sample, reading = GOLDEN[name], GOLDEN[name].reading
    (line,) = (
        line
        for line in metas(sample.prompt)
        if not PHRASINGS.read(line)[0].text.label.startswith("format")
    )
    slots = {"count": "3", "list": "4 3 1 2"}
    for label, forms in SLOTS.items():
        for form in (
            forms
            if label != f"{reading.strategy}.{reading.rule}" and not label.startswith("format")
            else ()
        ):
            if label.startswith("maskout"):
                slots["list"] = (
                    "4" if form == "one" else "2 4" if reading.order != (1, 3) else "1 4"
                )
            if reading.order == (1, 3, 4) and form == "one" and label == "maskout.longest":
                continue  # leaves out the second, as the list of the golden sample does
            if reading.order == (1, 2, 4) and form == "one" and label == "maskout.shortest":
                continue
            other = PHRASINGS.texts[label][form][0].filled(**slots)
            refused(sample.prompt.replace(line, other), sample.completion, sample.examples)


@pytest.mark.parametrize("name", EVERY)
def test_the_wrong_examples_are_found(name):
    sample = GOLDEN[name]
    examples = sample.examples
    for at, (instruction, response) in enumerate(examples):
        refused(
            sample.prompt,
            sample.completion,
            [*examples[:at], (instruction + "!", response), *examples[at + 1 :]],
        )
        refused(sample.prompt, sample.completion, [*examples[:at], *examples[at + 1 :]])
        if at + 1 in sample.reading.order:
            refused(
                sample.prompt,
                sample.completion,
                [*examples[:at], (instruction, "Two."), *examples[at + 1 :]],
            )
    refused(sample.prompt, sample.completion, [*examples, ("And?", "No.")])
    refused(sample.prompt, sample.completion, [])


@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_with_something_around_its_block_is_found(name):
    sample = GOLDEN[name]
    for prompt in (
        f"{sample.prompt}\n",
        f"\n{sample.prompt}",
        f"Hello!\n{sample.prompt}",
        f"{sample.prompt} ",
        "",
    ):
        refused(prompt, sample.completion, sample.examples)


@pytest.mark.parametrize("name", [name for name in EVERY if GOLDEN[name].reading.dropped])
def test_a_masked_reply_that_is_there_is_found(name):
    sample, reading = GOLDEN[name], GOLDEN[name].reading
    shown = sample.completion.split("\n\n")[0]
    for dropped in reading.dropped:
        again = shown.replace(
            sample.examples[reading.order[0] - 1][1], sample.examples[dropped - 1][1]
        )
        again = again.replace(str(reading.order[0]), str(dropped), 1) if reading.number else again
        for completion in (f"{again}\n\n{sample.completion}", f"{sample.completion}\n\n{again}"):
            assert refused(sample.prompt, completion, sample.examples).kind == "masked"


# --- faults of one sample -------------------------------------------------------------------------

PLANTED = [
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 3 - 1]", "order"),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 1]", "list"),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 1 - 3 - 3]", "list"),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 1 - 3 - 5]", "list"),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 1 - 03]", "list"),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[]", "meta"),
    (
        "permute explicit of 4, no tags, numbers",
        "[4 - 2 - 1 - 3]",
        "[4 - 2 - 1 - " + "3" * 5000 + "]",
        "list",
    ),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 1 - 3", "list"),
    ("permute explicit of 4, no tags, numbers", "[4 - 2 - 1 - 3]", "[4 - 2 - 1, 3]", "list"),
    (
        "permute explicit of 4, no tags, numbers",
        "[4 - 2 - 1 - 3]",
        "[4 - 2 - 1 - 3] and no other",
        "meta",
    ),
    ("maskout explicit of 4, tags, numbers", "1; 4", "1; 3", "masked"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "4; 1", "list"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "1; 1; 4", "list"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "1; 2; 4", "masked"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "1", "form"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "1; 2; 3; 4", "rule"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "0; 4", "list"),
    ("maskout explicit of 4, tags, numbers", '"1; 4"', "none", "meta"),
    ("maskout explicit of 4, tags, numbers", "1; 4", "1 - 4", "list"),  # a range, to a reader
    ("maskout explicit of 4, no tags, numbers", "(2)", "(2, 3)", "form"),
    ("maskout longest of 4, tags", "the 2 instr", "the 3 instr", "masked"),
    ("maskout longest of 4, tags", "the 2 instr", "the 1 instr", "form"),
    ("maskout longest of 4, tags", "the 2 instr", "the 4 instr", "count"),
    ("maskout longest of 4, tags", "the 2 instr", "the 0 instr", "count"),
    ("maskout longest of 4, tags", "the 2 instr", "the 02 instr", "count"),
    ("maskout longest of 4, tags", "the 2 instr", "the ２ instr", "count"),
    ("maskout shortest of 4, no tags, numbers", "the 2 shortest", "the 3 shortest", "masked"),
    ("maskout shortest of 4, no tags, numbers", "the 2 shortest", "the 1 shortest", "form"),
    ("format of 1, tags", "Put your answer", "Put each answer", "form"),
    (
        "format of 1, no tags, numbers",
        "Here is an instruction; write the answer to it.",
        "Answer each of the instructions, one after another.",
        "form",
    ),
    ("format of 4, tags", "Put each answer", "Put your answer", "form"),
    (
        "format of 4, no tags, numbers",
        "Answer each of the instructions, one after another.",
        "Answer the following instruction.",
        "form",
    ),
    (
        "permute reverse of 4, tags",
        "The marks **begin** and **end** stand around each single answer.",
        "Answer each of the instructions, one after another.",
        "structure",
    ),
    (
        "permute reverse of 4, tags",
        "The marks **begin** and **end** stand around each single answer.",
        "Reverse the sequence of the instructions when you answer them.",
        "meta",
    ),
    (
        "permute even_first of 4, tags, numbers",
        "between <answer> and </answer>",
        "between <answer> and <answer>",
        "tags",
    ),
    (
        "permute even_first of 4, tags, numbers",
        "between <answer> and </answer>",
        "between <answer> and <answer>s",
        "tags",
    ),
    ("permute reverse of 4, no tags, numbers", "No. 3: ", "No. 3:\n", "numbers"),
    ("permute reverse of 4, no tags, numbers", "No. 3: ", "", "numbers"),
    ("permute reverse of 4, no tags, numbers", "No. 3: ", "No. 5: ", "numbers"),
    ("permute reverse of 4, no tags, numbers", "\n\nNo. 3: ", "\nNo. 3: ", "numbers"),
    ("permute reverse of 4, no tags, numbers", "first.\n\n", "first.\n\n\n", "numbers"),
    ("permute reverse of 4, no tags, numbers", "Name a colour.", "Name a color.", "content"),
    ("primary of 4, no tags", "\n\n---\n\nName", "\n\n***\n\nName", None),
    ("primary of 4, no tags", "\n\n---\n\n", "\n\n", None),
    ("primary of 4, no tags", "\n\n---\n\n", "\n\n***\n\n", "content"),
]


@pytest.mark.parametrize(
    ("name", "old", "new", "kind"), PLANTED, ids=[f"{p[0]}: {p[1][:20]!r}" for p in PLANTED]
)
def test_a_fault_planted_in_the_prompt_is_found(name, old, new, kind):
    sample = GOLDEN[name]
    assert old in sample.prompt
    violation = refused(sample.prompt.replace(old, new), sample.completion, sample.examples)
    assert violation.kind == (kind or violation.kind), violation


def swap_in(
    name: str, at: int, instruction: str | None = None, response: str | None = None
) -> Violation:
    """Put another text into an example and wherever it stands in the sample, and return the reason
    to refuse that."""
    sample = GOLDEN[name]
    old = sample.examples[at - 1]
    new = (instruction or old[0], response or old[1])
    examples = [*sample.examples[: at - 1], new, *sample.examples[at:]]
    return refused(
        sample.prompt.replace(old[0], new[0]), sample.completion.replace(old[1], new[1]), examples
    )


TIES = [
    ("permute words_ascending of 4, no tags, numbers", 1, "Tell me who moos.", "tie"),
    ("permute words_descending of 4, no tags, numbers", 1, "Tell me who moos.", "tie"),
    ("permute characters_ascending of 4, no tags, numbers", 2, "add 2 and 2 for you.!", "tie"),
    ("permute characters_descending of 4, tags", 2, "add 2 and 2 for you.!", "tie"),
    ("permute alphabet_ascending of 4, no tags, numbers", 3, "“Beige” is what?", "tie"),
    ("permute alphabet_descending of 4, no tags, numbers", 3, "12 Beige", "tie"),
    ("maskout longest of 4, no tags, numbers", 1, "Tell me now who says moo.", "tie"),
    ("maskout longest of 4, tags", 3, "Name a colour of the rainbow.", "masked"),
    ("maskout longest of 4, tags", 4, "Bonjour means what exactly, please?", "tie"),
    ("maskout shortest of 4, tags", 4, "Bonjour means what?", "tie"),
    ("maskout shortest of 4, no tags, numbers", 1, "Who says moo, please?", "tie"),
    ("permute alphabet_ascending of 4, tags", 1, "123 !?", "rule"),
    ("permute alphabet_ascending of 4, tags", 1, "Éclair?", "rule"),
    (
        "permute alphabet_ascending of 4, tags",
        1,
        "ﬆop",
        "rule",
    ),  # casefolded, it is two letters of the alphabet
]


@pytest.mark.parametrize(("name", "at", "instruction", "kind"), TIES)
def test_a_rule_that_does_not_decide_is_found(name, at, instruction, kind):
    assert swap_in(name, at, instruction=instruction).kind == kind


@pytest.mark.parametrize("rule", ["ascending", "descending"])
def test_an_order_by_code_point_is_no_alphabetical_order(rule):
    sample = GOLDEN[f"permute alphabet_{rule} of 4, no tags, numbers"]
    trap = sorted(
        range(1, 5),
        key=lambda j: sample.examples[j - 1][0].strip("“"),
        reverse=rule == "descending",
    )
    replies = {reply[:2].strip("-)"): reply for reply in sample.completion.split("\n\n")}
    replies = {re.findall(r"\d", reply)[0]: reply for reply in replies.values()}
    completion = "\n\n".join(replies[str(j)] for j in trap)
    assert refused(sample.prompt, completion, sample.examples).kind == "order"


def test_words_do_not_count_in_a_language_without_them():
    for name in RULED:
        sample = GOLDEN[name]
        phrasings = replace(PHRASINGS, words=False, alphabet="")
        if sample.reading.rule in ("longest", "shortest") or re.match(
            "words|alphabet", str(sample.reading.rule)
        ):
            with pytest.raises(Violation, match="rule: "):
                check(sample.prompt, sample.completion, sample.examples, phrasings)
        else:
            assert (
                check(sample.prompt, sample.completion, sample.examples, phrasings)
                == sample.reading
            )


TAGGED = [name for name in EVERY if GOLDEN[name].reading.begin]
ONLY_NUMBERED = [
    name for name in EVERY if GOLDEN[name].reading.number and not GOLDEN[name].reading.begin
]


@pytest.mark.parametrize("name", TAGGED)
@pytest.mark.parametrize("side", ["instruction", "response"])
def test_a_tag_inside_an_example_is_found(name, side):
    sample = GOLDEN[name]
    for at, tag in itertools.product(
        range(1, len(sample.examples) + 1), (sample.reading.begin, sample.reading.end)
    ):
        text = sample.examples[at - 1][side == "response"] + tag
        assert swap_in(name, at, **{side: text}).kind in (
            "collision",
            "tie",
            "rule",
            "masked",
            "order",
        )
    if sample.reading.rule is None:
        assert swap_in(name, 1, **{side: f"x {sample.reading.end} y"}).kind == "collision"


@pytest.mark.parametrize("name", ONLY_NUMBERED)
@pytest.mark.parametrize("integer", ["1", "27", "007"])
def test_a_number_mark_that_begins_a_line_of_an_example_is_found(name, integer):
    sample = GOLDEN[name]
    mark = sample.reading.number.replace("{n}", integer)
    for at in range(1, len(sample.examples) + 1):
        old = sample.examples[at - 1]
        assert swap_in(name, at, response=f"{mark}{old[1]}").kind == "collision"
        assert swap_in(name, at, response=f"{old[1]}\n{mark} x").kind == "collision"
        # behind a carriage return or a line separator no line begins
        text = f"{old[1]}\r{mark}\u2028{mark} {mark}"
        examples = [*sample.examples[: at - 1], (old[0], text), *sample.examples[at:]]
        assert (
            check(sample.prompt, sample.completion.replace(old[1], text), examples, PHRASINGS)
            == sample.reading
        )
    if sample.reading.rule is None:
        assert swap_in(name, 1, instruction=f"x\n{mark}y").kind == "collision"


def test_a_tagged_reply_may_hold_number_marks_and_an_instruction_may_not():
    sample = GOLDEN["permute even_first of 4, tags, numbers"]
    examples = [("Tell me who says moo.", "1. A cow.\n\n3. A bull."), *FOUR[1:]]
    assert (
        check(
            sample.prompt, sample.completion.replace("A cow.", examples[0][1]), examples, PHRASINGS
        )
        == sample.reading
    )
    assert (
        swap_in("permute even_first of 4, tags, numbers", 1, instruction="x\n7. y").kind
        == "collision"
    )


def test_a_separator_inside_an_example_is_found():
    assert swap_in("primary of 4, no tags", 2, response="a\n\n---\n\nb").kind == "collision"
    assert swap_in("primary of 4, no tags", 2, instruction="a\n\n---\n\nb").kind == "collision"


@pytest.mark.parametrize("separator", ["\n", " ", "", "\n\n--", "--\n\n", "\n\na\nb\n\n", "--"])
def test_what_cannot_separate_examples_is_found(separator):
    refused(
        separator.join(text for text, _ in FOUR), separator.join(text for _, text in FOUR), FOUR
    )


@pytest.mark.parametrize("name", EVERY)
def test_line_ends_that_were_changed_are_found(name):
    sample = GOLDEN[name]
    for ends in ("\r\n", "\r", "\n\r"):
        old = sample.examples[0][1]
        text = f"a{ends}b"
        examples = [(sample.examples[0][0], text), *sample.examples[1:]]
        completion = sample.completion.replace(old, text)
        assert check(sample.prompt, completion, examples, PHRASINGS) == sample.reading
        if completion != sample.completion:
            refused(sample.prompt, completion.replace(ends, "\n"), examples)


@pytest.mark.parametrize("template", ["5{n}.", "{n}5.", "{n}#{n}.", "a\n{n}."])
def test_what_cannot_number_examples_is_found(template):
    marks = [template.replace("{n}", "1", 1), template.replace("{n}", "2", 1)]
    prompt = "\n".join(f"{mark} {text}" for mark, (text, _) in zip(marks, FOUR))
    refused(prompt, "\n\n".join(f"{mark} {text}" for mark, (_, text) in zip(marks, FOUR)), FOUR[:2])


@pytest.mark.parametrize(
    ("begin", "end"), [("<a>", "<a>"), ("<a>", "<a>b"), ("a<b", "<b"), ("<a>", ""), ("", "<a>")]
)
def test_what_cannot_be_a_pair_of_tags_is_found(begin, end):
    prompt = f"Put your answer between {begin} and {end}.\n#1: Tell me who says moo."
    assert refused(prompt, f"#1: {begin}A cow.{end}", ONE).kind in ("tags", "meta")


def test_replies_without_numbers_and_tags_are_found():
    block = "\n".join(text for text, _ in FOUR)
    refused(block, "\n\n".join(text for _, text in FOUR), FOUR)
    refused(
        f"Answer each of the instructions, one after another.\n{block}",
        "\n\n".join(t for _, t in FOUR),
        FOUR,
    )
    line = "Answer the instructions in reverse order, the last one first."
    assert (
        refused(f"{line}\n{block}", "\n\n".join(t for _, t in reversed(FOUR)), FOUR).kind
        == "structure"
    )


def test_a_rule_that_speaks_of_numbers_needs_them():
    block = "\n".join(text for text, _ in FOUR)
    for name in TAGGED:
        sample = GOLDEN[name]
        if f"{sample.reading.strategy}.{sample.reading.rule}" in (
            *("permute.explicit", "permute.odd_first", "permute.even_first"),
            *("maskout.explicit", "maskout.odd", "maskout.even"),
        ):
            lines = [
                line
                for line in metas(sample.prompt)
                if not PHRASINGS.read(line)[0].text.label.startswith("format")
            ]
            tags = f"Put each answer between {sample.reading.begin} and {sample.reading.end}."
            bare = [
                reply[reply.index(sample.reading.begin) :]
                for reply in sample.completion.split("\n\n")
            ]
            assert (
                refused(f"{lines[0]}\n{tags}\n{block}", "\n\n".join(bare), FOUR).kind == "numbers"
            )


def test_a_rule_beside_a_single_instruction_is_found():
    line = "Answer the instructions in reverse order, the last one first."
    assert refused(f"{line}\n1. Tell me who says moo.", "1. A cow.", ONE).kind == "form"


def test_a_rule_that_stands_nearer_to_the_block_than_the_tags_is_found():
    sample = GOLDEN["permute reverse of 4, tags"]
    style, rule = (line for line in reversed(metas(sample.prompt)))
    block = "\n".join(text for text, _ in FOUR)
    for prompt in (f"{style}\n{rule}\n{block}", f"{block}\n{rule}\n{style}"):
        assert refused(prompt, sample.completion, FOUR).kind == "meta"
    for prompt in (
        f"{rule}\n{style}\n{block}",
        f"{block}\n{style}\n{rule}",
        f"{style}\n{block}\n{rule}",
    ):
        assert check(prompt, sample.completion, FOUR, PHRASINGS) == sample.reading


def test_a_text_that_asks_for_every_answer_is_refused_beside_a_rule():
    sample = GOLDEN["permute reverse of 4, no tags, numbers"]
    prompt = f"{sample.prompt}\nAnswer each of the instructions, one after another."
    assert refused(prompt, sample.completion, FOUR).kind == "meta"


def test_blank_examples_are_found():
    for examples in ([("", "a")], [("a", "")], [(" \n", "a")], [("a", "\t")]):
        refused(*examples[0], examples)


def test_a_violation_keeps_its_kind_on_its_way_between_processes():
    violation = pickle.loads(pickle.dumps(Violation("order", "the replies stand wrong.")))
    assert (violation.kind, violation.detail, str(violation)) == (
        "order",
        "the replies stand wrong.",
        "order: the replies stand wrong.",
    )


# --- whatever the grammar can write ---------------------------------------------------------------

META = [
    text.wording
    for forms in PHRASINGS.texts.values()
    for texts in forms.values()
    for text in texts
    if "{" not in text.wording
]
PIECES = [
    "1. x",
    "2.",
    "\n",
    "\n\n",
    "\r\n",
    "\r",
    "[begin]",
    "<in>",
    "{n}",
    "{list}",
    "{begin}",
    "%s",
    "\\1",
    "\t",
    "\u2028",
]
PIECES += [
    "(1) ",
    "#1:",
    "<<2>>",
    "\n3) y",
    "\n---\n",
    "---",
    "*end*",
    "</answer>",
    "\x01",
    "\x1f",
    "\u202e",
    "🦊",
    "ß",
    "ﬆ",
]
PIECES += [
    "Put each answer between <a> and </a>.",
    "\nDo not answer instruction number 1.\n",
    "1",
    "-1-",
    "Item 1:",
]
WORDS = [
    "Name",
    "tell",
    "add",
    "why",
    "moo",
    "Beige",
    "open",
    "the",
    "list",
    "of",
    "zebras",
    "“quiet”",
    "7",
]

odd_text = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.sampled_from(META),
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6),
    ),
    min_size=1,
    max_size=6,
).map("".join)
common_text = st.lists(st.sampled_from(WORDS), min_size=1, max_size=7).map(" ".join)
example_text = st.one_of(odd_text, common_text, common_text).filter(str.strip)


def first_letters(texts: list[str]) -> list[int]:
    letters = [next((c for c in text if c.isalpha()), "").casefold() for text in texts]
    return [PHRASINGS.alphabet.index(c) for c in letters if len(c) == 1 and c in PHRASINGS.alphabet]


def by(keys: list[int], falling: bool) -> list[int]:
    """The order by these keys, which differ."""
    return [key for _, key in sorted((k, j + 1) for j, k in enumerate(keys))][
        :: -1 if falling else 1
    ]


def orders(texts: list[str]) -> dict[str, list[int]]:
    """What each of the permuting rules asks for, where it decides."""
    every = list(range(1, len(texts) + 1))
    odd, even = every[::2], every[1::2]
    found = {"reverse": every[::-1], "odd_first": odd + even, "even_first": even + odd}
    for name, keys in {
        "words": [len(text.split()) for text in texts],
        "characters": [len(text) for text in texts],
        "alphabet": first_letters(texts),
    }.items():
        if len(set(keys)) == len(texts):
            found[f"{name}_ascending"] = by(keys, False)
            found[f"{name}_descending"] = by(keys, True)
    return found


def masks(texts: list[str]) -> dict[tuple[str, int], list[int]]:
    """What each of the masking rules leaves out, where it decides."""
    every = list(range(1, len(texts) + 1))
    found = {("odd", 0): every[::2], ("even", 0): every[1::2]}
    words = {j: len(texts[j - 1].split()) for j in every}
    for count in range(1, len(texts)):
        for name, sign in (("longest", -1), ("shortest", 1)):
            ranked = sorted(every, key=lambda j: sign * words[j])
            if words[ranked[count - 1]] != words[ranked[count]]:
                found[name, count] = sorted(ranked[:count])
    return found


def free_of_number(template: str, texts: list[str]) -> bool:
    mark = re.compile(re.escape(template).replace(re.escape("{n}"), "[0-9]+"))
    return not any(mark.match(line) for text in texts for line in text.split("\n"))


@st.composite
def numberings(draw: st.DrawFn, texts: list[str]) -> tuple[str, str]:
    """A template that no line begins with, and the gap after it."""
    template = draw(st.sampled_from([*PHRASINGS.numbers, "#k1x1-{n}:", "{n}-7", "§{n}"]))
    nonces = itertools.count()
    while not free_of_number(template, texts):
        template = f"#q{next(nonces)}-{{n}}:"
    return template, draw(st.sampled_from([" ", "\n"]))


@st.composite
def tag_pairs(draw: st.DrawFn, texts: list[str]) -> tuple[str, str]:
    begin, end = draw(st.sampled_from([*PHRASINGS.tag_words, ("a and b", "c and d"), ("##", "#!")]))
    bracket = draw(st.sampled_from([*PHRASINGS.tag_brackets, "{tag} "]))
    begin, end = bracket.replace("{tag}", begin).strip(), bracket.replace("{tag}", end).strip()
    nonces = itertools.count()
    while (
        any(tag in text for tag in (begin, end) for text in texts) or begin in end or end in begin
    ):
        nonce = next(nonces)
        begin, end = f"<q{nonce}x>", f"</q{nonce}x>"
    return begin, end


@st.composite
def rules(draw: st.DrawFn, texts: list[str]) -> tuple[str, str, list[int], list[int]]:
    """A label, its line, the answered and the dropped."""
    every = list(range(1, len(texts) + 1))
    bracket, joint = (
        draw(st.sampled_from(PHRASINGS.list_brackets)),
        draw(st.sampled_from(PHRASINGS.list_separators)),
    )
    if draw(st.booleans()):
        known = orders(texts)
        name = draw(st.sampled_from(["explicit", *known]))
        answered = known.get(name) or draw(st.permutations(every))
        label, form, dropped, shown = f"permute.{name}", "many", [], answered
    else:
        known = masks(texts)
        name, count = draw(st.sampled_from([("explicit", 0), *known]))
        dropped = known.get((name, count)) or sorted(
            draw(st.permutations(every))[: draw(st.integers(1, len(every) - 1))]
        )
        answered = [j for j in every if j not in dropped]
        label, shown = f"maskout.{name}", dropped
        form = "one" if len(dropped) == 1 and name not in ("odd", "even") else "many"
    text = draw(st.sampled_from(PHRASINGS.texts[label][form]))
    line = text.wording.replace("{list}", bracket.replace("{items}", joint.join(map(str, shown))))
    return label, line.replace("{count}", str(len(dropped))), answered, dropped


@dataclass
class Written:
    prompt: str
    completion: str
    examples: Examples
    reading: Reading
    gap: str


@st.composite
def mosaics(draw: st.DrawFn) -> Written:
    """Anything that the grammar allows, written plainly."""
    examples = draw(st.lists(st.tuples(example_text, example_text), min_size=1, max_size=6))
    texts = [text for text, _ in examples]
    every, all_texts = (
        list(range(1, len(examples) + 1)),
        [text for example in examples for text in example],
    )
    kinds = (
        ["format", "plain"]
        if len(examples) == 1
        else ["format", "primary", "rule", "rule", "rule", "rule"]
    )
    strategy = draw(st.sampled_from(kinds))
    if strategy == "plain":
        return Written(*examples[0], examples, Reading("plain", None, (1,), (), "", "", ""), "")
    if strategy == "primary":
        joint = draw(st.sampled_from(["\n\n", "\n\n---\n\n", "\n***\n"]))
        nonces = itertools.count()
        while any(joint in text for text in all_texts):
            joint = f"\n\n~{next(nonces)}~\n\n"
        reading = Reading("primary", None, tuple(every), (), "", "", "")
        return Written(
            joint.join(texts), joint.join(text for _, text in examples), examples, reading, ""
        )
    label, line, answered, dropped = "format.", "", every, []
    if strategy == "rule":
        label, line, answered, dropped = draw(rules(texts))
    tagged = draw(st.booleans())
    needed = not tagged or re.search(r"explicit|odd|even", label)
    begin, end = draw(tag_pairs(all_texts)) if tagged else ("", "")
    number, gap = (
        draw(numberings(texts if tagged else all_texts))
        if needed or draw(st.booleans())
        else ("", "")
    )
    form = "one" if len(examples) == 1 else "many"
    style = ""
    if tagged:
        style = draw(st.sampled_from(PHRASINGS.texts["format.tags"][form])).wording
        style = re.sub(r"\{(\w+)\}", lambda slot: {"begin": begin, "end": end}[slot[1]], style)
    elif strategy == "format" and draw(st.booleans()):
        style = draw(st.sampled_from(PHRASINGS.texts["format.list"][form])).wording
    gaps = st.sampled_from(["\n", "\n\n"])
    prompt = draw(gaps).join(number.replace("{n}", str(j)) + gap + texts[j - 1] for j in every)
    for meta in (style, line):
        if meta:
            prompt = (
                meta + draw(gaps) + prompt if draw(st.booleans()) else prompt + draw(gaps) + meta
            )
    replies = [
        number.replace("{n}", str(j)) + gap + begin + examples[j - 1][1] + end for j in answered
    ]
    strategy, rule = label.split(".")
    reading = Reading(strategy, rule or None, tuple(answered), tuple(dropped), begin, end, number)
    return Written(prompt, "\n\n".join(replies), examples, reading, gap)


QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(mosaics())
def test_whatever_the_grammar_can_write_is_accepted_and_cut_again_byte_for_byte(written):
    reading = check(written.prompt, written.completion, written.examples, PHRASINGS)
    if (
        len(written.examples) == 1 and reading.number
    ):  # "#k1x1-1:" may be numbered in more than one place
        reading = replace(reading, number=written.reading.number)
    assert reading == written.reading
    if reading.strategy == "primary":
        return
    found = parse(
        written.completion,
        begin=reading.begin,
        end=reading.end,
        number=reading.number,
        gap=written.gap,
    )
    assert found == [
        (j if reading.number else None, written.examples[j - 1][1]) for j in reading.order
    ]


@QUICK
@given(mosaics(), st.data())
def test_whatever_one_changes_in_a_completion_is_found(written, data):
    text = written.completion
    at = data.draw(st.integers(0, len(text)))
    to = data.draw(st.integers(at, min(len(text), at + 8)))
    spoilt = text[:at] + data.draw(st.sampled_from(["", " ", "\n", "x", "1", "\r"])) + text[to:]
    if spoilt != text:
        refused(written.prompt, spoilt, written.examples)


@QUICK
@given(st.lists(st.tuples(example_text, example_text), min_size=1, max_size=4), odd_text, odd_text)
def test_arbitrary_texts_are_refused_with_a_violation_and_nothing_else(
    examples, prompt, completion
):
    with contextlib.suppress(Violation):
        check(prompt, completion, examples, PHRASINGS)
