"""Active labelling: which pairs of responses are worth an expert's label.

    win_probabilities.py  what reward models make of responses, and how unsure they are
    ngrams.py             vectors of texts without a model
    embeddings.py         vectors from a policy's hidden states
    picks.py              from vectors and uncertainties to the pairs that are asked about
    selection.py          `select`: all of it, on plain lists

Who asks for the labels, and where they are kept, is the business of the callers: `aligner data
select` (an expert's desk) and `online.oracle` (a scorer with a budget). Imports no torch; only
`embeddings.py` does, when it is used.
"""
