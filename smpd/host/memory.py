"""How much memory a process has used at most."""


def peak_rss_bytes(pid: int) -> int:
    """Peak resident set of a process (VmHWM of proc_pid_status(5)), in bytes; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0
