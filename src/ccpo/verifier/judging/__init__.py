"""
Judge a pair of answers.

A worker process imports this folder as a package of its own, `ccpo_judging`, without `ccpo`. So it imports neither
torch nor the trainer. All modules except `values` and `worker` handle only text, with the standard library.
"""
