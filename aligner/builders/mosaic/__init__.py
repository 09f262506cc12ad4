"""Mosaic-IT (arXiv 2405.13326): glue ordinary instruction rows into samples with several
instructions, by rules alone.

k questions become one prompt and their k answers one completion, with a meta-instruction that asks
for a form (format), another order (permute) or for some of them to be left out (maskout). No model
takes part, so every sample can be checked, and is.

    examples.py        rows that can take part, in memory or on disk
    phrasings.py       the wording, as data (phrasings_en.yaml)
    k_distribution.py  how many examples a sample gets
    rules.py           orders and masks
    plan.py            what a sample will be; everything random
    render.py          its two texts
    check.py           a second implementation that reads the texts
    engine.py          the loop over epochs and chunks
    paper_compat.py    the authors' loop, faults included
    lengths.py         tokens under a chat template
    costs.py           what training on the result costs
    build.py           shards, workers, resuming (files.py writes)
    report.py          what came of it, as a page
    epochs.py          the same in memory
    iterable.py        the same for a training loop of torch's

Imports neither torch nor a client of language models.
"""
