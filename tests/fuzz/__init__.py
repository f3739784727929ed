"""Fuzzing of every parser: a table of targets, a small corpus of seeds, and two ways to run them.

``make fuzz TARGET=frame RUNS=100000`` runs one under atheris (libFuzzer, guided by coverage), ``make torture ONLY=R12``
all of them a million times each. The suite runs each target over its corpus and some hundred mutations of it.
``python -m fuzz.make_corpus`` writes the seeds anew. What a run finds is kept as a seed, and as a test where it is mended.
"""
