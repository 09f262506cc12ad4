"""Active labelling: choose the pairs of responses that are worth an expert's label, and read the
labels back.

Cost-effective construction of a proxy reward model (arXiv 2407.02119): the policy answers prompts
itself, a few of its pairs are selected by active learning and labelled by an expensive oracle, a
small reward model is trained on them and labels the rest. This package is the selection and the
reading back; `aligner reward` trains.

    candidates.py    prompts with their responses, from files or from a policy
    build.py         `aligner data select`; the choice itself is `aligner/acquisition/`
    labels.py        labels read back, or asked of a scorer
    label_store.py   labels in the run directory
    report.py        the page

From the paper: on-policy pairs, a budget, the choice by uncertainty or by coverage. Not from it:
uncertainty is that of a reward model's preference (entropy, or disagreement of several), where the
paper works on an evaluator that writes; and `both`, which is the pre-filtering of arXiv 1901.05954
(the most uncertain ones first, then spread) with k-centre (arXiv 1708.00489) in place of k-means.
Imports no torch; only the sampling does, when it is used.
"""
