"""Mutation of our own kernels, launchers and backends as a measure of the self-test: `python -m tools.mutate --help`.

rules.py      mutants by rule, over Python's syntax tree and the text of the C++
by_hand.py    mutants that somebody thought of: dropped scales, foreign writes, cut bits, lost workspaces
families.py   what is mutated for a backend, and what the self-test is asked for it
trial.py      one mutant, in a process of its own: which case notices it
survivors.py  why a mutant that nothing notices is none that counts
"""
