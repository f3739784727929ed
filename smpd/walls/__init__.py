"""The walls that a worker process raises round itself, without privileges and without namespaces.

Landlock, seccomp and what prctl(2) has, through ctypes. What is let through is the worker's to say: ``fetch.sandbox``
and ``compute.sandbox`` name files and sockets. This room imports neither of them, and nothing of the daemon.
"""
