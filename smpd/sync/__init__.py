"""Syncs: standing watches that make a job of every object version that appears below a prefix.

This room decides which object becomes a job and when, and remembers that in the database. It moves no bytes, opens no
object and sees no key: it lists through a fetch process, and its jobs are jobs like any other.
"""
