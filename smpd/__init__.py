"""The daemon: rooms for the control socket, jobs, transfer, vault and audit, and for the worker processes.

Three kinds of process start from here (``docs/architecture.md``): ``smpd`` holds the keys and touches neither
network nor device, ``smpd.fetch`` has the network and no key, ``smpd.compute`` has the device and neither.
"""
