"""What the daemon needs of its machine: systemd's protocols, sockets, folders, locks, SQLite, logs.

This room knows nothing of jobs, keys or the control protocol. systemd is told by its environment variables,
never by an import.
"""
