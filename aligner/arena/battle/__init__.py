"""Battles: contestants answer prompts, judges compare the answers, and every game is kept."""
