"""Where state, socket and configuration are when nobody says so: systemd's folders, the system's, or a person's."""

import os
from collections.abc import Mapping

SYSTEM_FILE = "/etc/smpd/config.toml"


def default_paths(environ: Mapping[str, str]) -> dict[str, str]:
    """State and runtime folder: systemd's, else the system's for root, else the person's (XDG base directories)."""
    uid = os.geteuid()
    state = environ.get("XDG_STATE_HOME") or os.path.join(_home(environ), ".local", "state")
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    found = {
        "state": "/var/lib/smpd" if uid == 0 else os.path.join(state, "smpd"),
        "runtime": os.path.join(runtime, "smpd") if runtime else f"/tmp/smpd-{uid}",  # noqa: S108 - 0700, owner checked
    }
    if uid == 0:
        found["runtime"] = "/run/smpd"
    for key in found:
        if listed := environ.get(f"{key.upper()}_DIRECTORY"):
            found[key] = listed.split(":")[0]
    return found


def default_file(environ: Mapping[str, str]) -> str:
    """Where the configuration is looked for when it is not named."""
    if listed := environ.get("CONFIGURATION_DIRECTORY"):
        return os.path.join(listed.split(":")[0], "config.toml")
    if os.geteuid() == 0 or "STATE_DIRECTORY" in environ:
        return SYSTEM_FILE
    return os.path.join(environ.get("XDG_CONFIG_HOME") or os.path.join(_home(environ), ".config"), "smpd/config.toml")


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")
