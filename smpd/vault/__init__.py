"""What this box keeps beside its jobs: sealed objects (``objects``), remotes with their credentials (``remotes``) and
the senders it believes (``trust``).

This room opens no sealed object, reaches no remote and verifies no signature; it keeps, and says what it keeps.
"""
