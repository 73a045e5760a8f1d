"""Scores of a task, once, on the host, over a whole split, each with a bootstrap interval.

`…_measure(predictions, golds)` returns a `Measure`, which has `scores()`, {name: score}, and
`intervals()`, {name: (low, high)} of the same names. Both depend on the arguments and a seed alone,
whatever kind of sequence the arguments are. All scores run from 0 to 1 or have a unit of their own,
save BLEU and chrF, which are published from 0 to 100.
"""
