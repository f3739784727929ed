"""The process with the device: ``python -m smpd.compute FD``, started by smpd and imported by nobody.

It maps the plain ring, copies to the device, runs processors and fills the result ring. It has no network, no key,
no path to the vault and no disk to write to: ``sandbox`` closes those doors before torch or a plugin is imported.
"""
