"""The client: a library (:class:`Client`, :class:`AsyncClient`) and the command line built on it.

It knows the protocol and the sealed object from ``smp_proto``; it imports nothing of the daemon.
"""
