"""Between smpd and its workers: shared-memory rings and the messages of the two kinds of link.

This room may be imported by every process, so it imports neither torch nor a network client nor a key.
"""
