"""What smpd counts, and what each number means: the one list of its metrics (``catalog``), their values (``counting``).

Other rooms are given a :class:`~smpd.metrics.counting.Metrics` and count into it; this room knows none of them. It
opens no file and no socket: who wants the numbers asks the control socket. Labels are names that a person of this box
chose (remotes, syncs, processors' distributions) or words of this program, never the name of an object.
"""
