"""Things to run and to learn from: ``python -m examples.demo``."""
