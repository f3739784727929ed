"""What a daemon might do wrong when its disk is full."""


def no_reserve() -> None:
    """Never give the journal and the audit log anything of the reserve."""
    from smpd.host.space import Space

    Space.spare = lambda self, size=0: None  # type: ignore[method-assign]


def unrecorded() -> None:
    """Go on when the audit log cannot be written."""
    from smp_proto.errors import AuditError
    from smpd.audit.log import AuditLog

    append = AuditLog.append

    def careless(self, *arguments, **options):  # type: ignore[no-untyped-def]
        try:
            return append(self, *arguments, **options)
        except AuditError:
            return 0

    AuditLog.append = careless  # type: ignore[method-assign]


def impatient() -> None:
    """Start jobs without asking for room, and take a full disk for their own fault."""
    from smpd import composing
    from smpd.jobs import holding

    composing._room = lambda *_: None
    holding.PATIENT_CODES = frozenset()
