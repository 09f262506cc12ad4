"""Votes of people on blind pairs of answers, on a local page."""
