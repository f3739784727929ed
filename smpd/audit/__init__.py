"""The audit log's writer inside the daemon: append, sync, sign, recover, shred.

A record is on the disk before the act it announces; if it cannot be, the act must not happen. This room
writes only in its own directory. ``smp_proto.audit`` verifies what it writes and knows nothing of it.
"""

from .log import AuditLog

__all__ = ["AuditLog"]
