"""Battles between models: their records, ratings with intervals, and leaderboards."""
