"""Telling somebody that something is wrong: a command of the configuration gets what happened, as JSON, or a webhook.

It tells kinds, counts, codes and job ids, never what an object, a file, a remote or a sender is called. What it tells
of jobs it reads in the audit log, and it keeps on disk how far it has told, so that neither a crash nor a command that
fails loses any of it. It knows no key, no remote and no job; the command runs in a process of its own, behind walls
(``launch``).
"""
