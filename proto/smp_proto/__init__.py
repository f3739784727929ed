"""What two parties must agree on: the control protocol, the sealed object, the audit proofs, the errors.

Everything here is usable without the daemon. It does no I/O of its own except in ``aio`` (the one anyio
driver of the codec), ``sealed.bundle`` (files given as descriptors) and ``durable`` (how a file outlives a power
cut, which the client, the daemon and its workers must all do alike); it imports neither party.
"""

__version__ = "0.1.0"
