"""What an auditor needs: the record and its one encoding, the Merkle tree, signed checkpoints, verification.

Pure: it takes bytes and lines and gives answers. It opens no file, holds no private key (a signature is made
by a function it is given) and knows neither the daemon nor the client. ``docs/reference/audit.md`` states the formats.
Start at :func:`smp_proto.audit.verify.verify_log`.
"""
