"""DiscoPOP: a language model proposes objectives, training measures them, the best ones are
kept."""
