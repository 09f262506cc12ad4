"""Reinforcement learning with a reward for each segment, token or response. Imports no torch."""
