"""``make demo``: sealed photographs from S3 and SFTP through the device and back, by the programs themselves.

* ``story`` is what happens, in order; it runs the real ``smpctl``, ``smpd`` and ``rclone``.
* ``stage`` holds the temporary folder, the environments of the two people, and the processes that must end.
* ``servers`` are the two storage servers.
* ``findings`` looks afterwards at what each process and each place holds.
"""
