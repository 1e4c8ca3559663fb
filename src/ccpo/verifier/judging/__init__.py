"""
Judging a pair of answers. A worker is given this *folder* as a package of its own (`ccpo_judging`), not `ccpo`: it
imports neither torch nor the trainer. Every module but `values` and `worker` is text alone, standard library only.
"""
