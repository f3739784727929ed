"""The durable job table: what was acknowledged stays true across a kill -9, and runs in its turn.

``states`` is the table of moves, ``database`` the one SQLite file of the daemon, ``seal`` what keeps names out of it,
``job`` and ``journal`` the jobs in it, ``scheduler`` decides what runs. This room moves no bytes of objects, knows no
remote and holds no identity; how a job is run is handed to the scheduler as a function.
"""
