"""What two parties must agree on: the control protocol, the sealed object, the audit proofs, the errors.

Everything here is usable without the daemon. It does no I/O of its own except in ``aio`` (the one anyio
driver of the codec) and ``sealed.bundle`` (files given as descriptors); it imports neither party.
"""

__version__ = "0.1.0"
