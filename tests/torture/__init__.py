"""The experiments R1 to R21: what must hold when things break or somebody breaks in, tried until it would show.

Each module named ``r…`` holds one :class:`~torture.harness.Experiment`. ``make torture`` runs them at full count and
``make test`` in a short form. Each has planted faults: with one of them in place the experiment must fail, which shows
that it looks where it says it does. Nothing here is shipped, and nothing shipped knows of it.
"""
