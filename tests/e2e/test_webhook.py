"""A webhook end to end: a real daemon that refuses an object, and a real server that is not always there."""

import json
from pathlib import Path

from box import Box
from hook_server import HookServer
from scene import bytes_below, client

from smp_proto.control import GetSpec, LocalConfig

TOKEN = "3f1c-not-to-be-seen"
NAME = "Doe^Jane-knee"


def test_a_refused_object_is_told(tmp_path: Path) -> None:
    """With the server away doctor says so, and it is sent once the server is there: one POST, with the secret header.

    The secret is nowhere but in its file, and in what is sent no name.
    """
    header = tmp_path / "header"
    header.write_text(f"Authorization: Bearer {TOKEN}\n")
    header.chmod(0o600)
    stored = tmp_path / "stored"
    stored.mkdir()
    (stored / NAME).write_bytes(b"no sealed object")
    with HookServer() as server:
        url = f"http://127.0.0.1:{server.port}/hook/7"
        notify = {"url": url, "header_file": str(header), "every_s": 0.01, "timeout_s": 60.0}
        machine = Box(tmp_path / "box", {"compute": {"processors": []}, "fetch": {"processes": 1}, "notify": notify})
        try:
            machine.start()
            with client(machine) as ctl:
                ctl.remote_add("ward", LocalConfig(str(stored)))
                job = ctl.wait(ctl.submit(GetSpec(f"ward:{NAME}")).id)
                assert job.state == "quarantined"
                tried = machine.ctl("notify", "test", check=False)
                assert tried.returncode == 8
                assert tried.stdout.startswith(b"NOT told: the webhook at 127.0.0.1 did not take it: ")
                assert b"refuses the connection" in tried.stderr
                checks = []
                while not any(each.state == "fail" for each in checks):  # when it was told, and not taken
                    checks = [each for each in ctl.doctor() if each.name == "notify"]
                assert "refuses the connection" in checks[0].text
                server.listen()
                path, headers, body = server.next()
                assert (path, headers["Authorization"]) == ("/hook/7", f"Bearer {TOKEN}")
                message = json.loads(body)
                assert message["box"] == ctl.box_key().fingerprint
                (event,) = message["events"]
                assert (event["kind"], event["count"], event["codes"]) == ("quarantine", 1, {job.error.code: 1})
                assert event["jobs"] == [job.id]
                assert NAME.encode() not in body
                assert b"ward" not in body
                said = machine.ctl("notify", "test").stdout
                assert said.startswith(b"the webhook at 127.0.0.1: told, in ")
                assert json.loads(server.next()[2])["test"]
                assert [each.state for each in ctl.doctor() if each.name == "notify"] == ["ok"]
                assert server.posted.empty()
            assert machine.stop() == 0
            assert b"/hook/7" not in machine.log.read_bytes()
            for place, data in bytes_below(machine.folder):
                assert TOKEN.encode() not in data, place
        finally:
            machine.close()
