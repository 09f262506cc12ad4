"""Reward models: a head on a language model, trained on pairs or on ratings."""
