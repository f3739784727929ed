"""The sealed object: what a sender and a recipient must agree on, byte by byte as ``proto/SEALED.md`` says.

* ``layout``: where segments, ranges and the trailer lie; arithmetic only, no cryptography.
* ``filekey``, ``keys``, ``keyfile``: file keys and identities, in memory and at rest.
* ``payload``: one segment in or out.
* ``entries``, ``envelope``: the index, the signature, the recipients.
* ``bundle``: a whole object, streaming, over callables.

The room opens no path and no socket, starts no thread and imports neither the daemon nor the client. It
writes no primitive of its own: AES-GCM, HKDF, HPKE and Argon2id come from ``cryptography``, the check of
Ed25519 from PyNaCl, the leaves from ``blake3``. Import the modules; this file imports none of them, so that
the arithmetic costs nobody the cryptography.
"""
