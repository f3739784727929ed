"""Moving objects: worker processes, ranges, the spool, opening, sealing, and the three kinds of job.

This room holds file keys for the length of a job and bytes only in rings and private buffers. It writes nothing
to a disk but ciphertext, and it imports neither a network client nor torch: those live in the workers it starts.
"""
