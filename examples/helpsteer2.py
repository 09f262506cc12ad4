"""Rows of HelpSteer2's preferences as pairs, for `data.train[].function` of
recipes/reward/helpsteer2-preference.yaml.

    aligner reward reward/helpsteer2-preference

Run alone, it shows what becomes of a row: `python examples/helpsteer2.py`.
"""

from __future__ import annotations

from typing import Any


def pair(row: dict[str, Any]) -> dict[str, Any]:
    """`preference_strength` runs from -3 (the first response is much better) to 3 (the second one
    is); 0 is a tie."""
    first, second, strength = row["response_1"], row["response_2"], row["preference_strength"]
    chosen, rejected = (second, first) if strength > 0 else (first, second)
    return {
        "prompt": row["prompt"],
        "chosen": chosen,
        "rejected": rejected,
        "strength": abs(strength),
    }


if __name__ == "__main__":
    print(
        pair({"prompt": "2 + 2?", "response_1": "5", "response_2": "4", "preference_strength": 3})
    )
