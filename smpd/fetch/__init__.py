"""The only network code: a process that serves one remote, moving its ciphertext into and out of shared memory.

It is started by smpd (``python -m smpd.fetch FD``) and imported by nobody. It holds the credentials of its one
remote and never a decryption key, opens no path but those of a local remote, and writes no log;
``sandbox`` sees to that before the first connection.
"""
