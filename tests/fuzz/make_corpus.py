"""Writes the seeds: one good input or two of each kind, and some that are wrong in a way worth trying."""

import base64
import json
import struct
from typing import Any

import msgspec

from fuzz import remote
from fuzz.sealed import CREDENTIAL, SECRET
from fuzz.targets import BY_NAME, CORPUS
from smp_proto import control as c
from smp_proto.aio import End
from smp_proto.audit.note import Checkpoint, VerifierKey, sign_note
from smp_proto.audit.record import AuditRecord, encode_line
from smp_proto.errors import ErrorBody
from smp_proto.sealed.envelope import Entry, Signed, seal_envelope
from smp_proto.sealed.filekey import FileKey
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import Layout, Trailer
from smp_proto.wire import FrameType, encode_frame
from smpd.configuring import check_config, load_config
from smpd.links import computing as k
from smpd.links import fetching as f
from smpd.opening import link as o
from smpd.vault.remotes import Remote
from smpd.vault.trust import _Record

pack = msgspec.msgpack.encode
DEEP = b"\x91" * 5000  # arrays in arrays


def identity() -> Identity:
    return Identity(bytearray(SECRET), "clinic")


def protocol() -> dict[str, list[bytes]]:
    hello = encode_frame(FrameType.HELLO, 0, pack(c.Hello(1, 1, "0.1")))
    ask = encode_frame(FrameType.REQUEST, 1, pack(c.StatusRequest()))
    frames = hello + ask + encode_frame(FrameType.DATA, 1, b"x", 1) + encode_frame(FrameType.CANCEL, 1)
    requests: list[Any] = [
        c.StatusRequest(),
        c.Submit(c.GetSpec("pacs:a/b.smp"), "key"),
        c.Submit(
            c.RunSpec("pacs:a/", "image.edges", {"method": "canny", "x": [1, {"y": None}]}, "out:b/", ["smp1"]), "k"
        ),
        c.Submit(c.PutSpec("out:b.smp", ["smp1"]), "key", "high"),
        c.JobsRequest(["queued", "done"], 5),
        c.JobControl("j" * 16, "resume"),
        c.Watch(5, ["j" * 16]),
        c.RemoteAdd("pacs", c.S3Config("bucket"), secret=c.S3Secret("a", "b")),
        c.RemoteAdd("ward", c.SftpConfig("h", "u", "h ssh-ed25519 AAAA"), "standard", c.SftpSecret("k")),
        c.ListObjects("pacs:a/"),
        c.TrustAdd("clinic", "smp1", ["pacs:"], 1e9),
        c.AuditRead(5, 10),
    ]
    job = c.JobView(
        "j" * 16, "get", "failed", "normal", "a:b", "", "", "u(1)", 1.0, 2.0, error=ErrorBody("corrupt", "m")
    )
    replies: list[tuple[int, Any]] = [
        (0, End(error=ErrorBody("busy", "m", "h", True, {"a": [1]}))),
        (1, c.Hello(1, 1, "0.1", "b", "admin")),
        (4, job),
        (6, c.Event(5, "job", msgspec.Raw(pack(job)))),
        (9, c.Objects([c.ObjectInfo("p", 5, "etag:5:x", 1.0)])),
        (11, c.Entries([c.EntryView("n", 1, "ab", "t", {"a": 1})])),
        (17, c.PutFile("n", 5, "t", last=True)),
    ]
    fetching: list[tuple[int, Any]] = [
        (0, f.Setup(c.S3Config("bucket"), 4, 1 << 20, c.S3Secret("a", "b"))),
        (0, f.SetupWebhook("https://h/p", "A: b", "c")),
        (0, f.Post(b"{}")),
        (0, f.Read("p", "etag:5:x", 0, 5, 1)),
        (0, f.ReadMany([f.Whole("p", "etag:5:x", 5, 0)], 1)),
        (2, f.Listed([c.ObjectInfo("p", 5, "etag:5:x", 1.0)])),
        (4, f.ManyRead({1: ErrorBody("remote_busy", "m")})),
        (6, f.Probed(1.5, {"a": "b"})),
        (7, c.ObjectInfo("p", 5)),
    ]
    computing: list[tuple[int, Any]] = [
        (0, k.Run("j", "digest", {"a": 1}, 5.0)),
        (1, k.Objects([k.InputObject("p", [k.InputEntry("n", 0, 5, "t", {"a": 1})])])),
        (2, k.OutputBegin("n", "t", {"a": [1, 2.5]})),
        (2, k.OutputChunk(1, 5)),
        (3, k.Ready("cpu", "cpu", "2", False, {"seccomp": "on"}, [c.ProcessorInfo("digest", "*/*", "smp", "s")])),
        (4, k.Done(1, 2, "cpu", 5, 1.5)),
    ]
    entry = Entry("a/b.dcm", 0, 10, bytes(32), "application/dicom", {"x": [1, 2.5, "y", True]})
    signed = Signed("hybrid", SECRET[:16], bytes(40), 1 << 20, 66, 1, 10, bytes(32), bytes(32), SECRET[:16], 5)
    opening: list[tuple[int, Any]] = [
        (0, o.Setup("required")),
        (0, o.Keys([bytes(1248)], bytes(96))),
        (0, o.Believe([bytes(1248)])),
        (0, o.Map(1, 2, 1 << 20)),
        (0, o.Open(1, 0, [(0, 500), (500, 600)], 2, 1)),
        (1, o.Walls({"seccomp": "on"})),
        (2, o.Opened([o.Found(signed, (entry,)), o.Refused(ErrorBody("corrupt", "m"), bytes(16))])),
    ]
    deep = b"\x82\xa2op\xa6submit\xa3job\x83\xa4kind\xa3run\xa6source\xa3a:b\xa6params\x81\xa1a" + DEEP
    return {
        "frame": [b"\xff" + frames, b"\x00" + frames[:40], b"\xff" + frames[:-12] + b"\xff" * 30, b"\x05" + DEEP[:64]],
        "request": [*map(pack, requests), deep, b"\x81\xa2op" + DEEP, pack({"op": "status", "new": [1, 2]})],
        "reply": [*(bytes([kind]) + pack(body) for kind, body in replies), b"\x00\x81\xa2ok" + DEEP],
        "fetch-link": [bytes([kind]) + pack(body) for kind, body in fetching],
        "opening-link": [bytes([kind]) + pack(body) for kind, body in opening],
        "compute-link": [*(bytes([kind]) + pack(body) for kind, body in computing), b"\x02" + DEEP],
    }


def sealed() -> dict[str, list[bytes]]:
    own = identity()
    layout = Layout(30)
    entries = [
        Entry("a/b.dcm", 0, 10, bytes(32), "application/dicom", {"x": [1, 2.5, "y", True]}),
        Entry("ä.png", 10, 20, bytes(32)),
    ]
    header = bytes([40]) + bytes(39)
    made = seal_envelope(
        file_key=FileKey(bytearray(32)), object_id=SECRET[:16], header=header, layout=layout, leaves_digest=bytes(32),
        entries=entries, sender=own, recipients=[own.public], created=1_700_000_000,
    )  # fmt: skip
    trailer = Trailer(layout.payload_bytes, len(made))
    file = own.to_file(credential=bytearray(CREDENTIAL))
    packed = base64.b64decode(b"".join(file.splitlines()[1:-1]))
    text = own.public.text().encode()
    key = VerifierKey("smpd/x", own.public.verify_key)
    note = sign_note(Checkpoint("smpd/x", 5, bytes(32)).text(), key, own.sign)
    record = AuditRecord(
        5, "2026-11-26T15:00:00.000000Z", "job.submit", "u(1)", "j" * 16, "ab" * 32, "ok", {"kind": "get", "n": 5, "b": True}, "AAAA"
    )  # fmt: skip
    return {
        "trailer": [
            trailer.object_bytes.to_bytes(8, "big") + trailer.pack(),
            bytes(8) + trailer.pack(),
            (2**53).to_bytes(8, "big") + Trailer(2**53, 1 << 20).pack(),
        ],
        "envelope": [made, made[:-20]],
        "opened-envelope": [made],
        "index": [pack(entries), pack([]), pack([with_more(entries[0])])],
        "payload": [header + b"x" * 46, header + b"x" * 16, header],
        "key-file": [b"\x01" + packed, b"\x00" + file, b"\x00" + file[:60]],
        "public-key": [text, text[:100], b"  " + text + b"\n"],
        "checkpoint": [note, note + note, note[:-30], b"-" + Checkpoint("smpd/x", 5, bytes(32)).text().encode()],
        "verifier-key": [str(key).encode(), str(key).encode()[:-5], b"\x80+00000000+AQ=="],
        "audit-line": [encode_line(record), b'{"actor":"a","fields":{"a":' + b"[" * 3000 + b"\n"],
    }


def with_more(entry: Entry) -> dict[str, Any]:
    """An entry as a map with a key that none has."""
    return {**msgspec.structs.asdict(entry), "more": 1}


def from_servers() -> dict[str, list[bytes]]:
    good = b'HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nContent-Range: bytes 0-9/100\r\nETag: "tag"\r\n\r\n0123456789'
    chunked = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: "tag"\r\n\r\n5\r\nhello\r\n0\r\n\r\n'
    refused = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 22\r\nRetry-After: 5\r\n\r\n<Code>SlowDown</Code>\r\n"
    version = b"\4" + struct.pack(">I", 3) + remote_string(b"limits@openssh.com") + remote_string(b"1")
    attrs = b"\0" + struct.pack(">IQIIIII", 0xF, 5, 1, 1, 0o100644, 1, 2)
    status = b"\3" + struct.pack(">I", 2) + remote_string(b"no") + remote_string(b"en")
    stream = struct.pack(">IBI", 5, 2, 3) + struct.pack(">IBIII", 13, 105, 0, 0, 0)
    return {
        "head": [
            good,
            good.replace(b"206 Partial Content", b"200 OK").replace(b"Content-Range: bytes 0-9/100\r\n", b""),
            good.replace(b"\r\nETag", b"\r\n folded\r\nETag"),
            good.replace(b"10\r\n", b"010\r\n"),
            good.replace(b"ETag: ", b"ETag:\t"),
            good.replace(b'ETag: "tag"', b'ETag: "tag"\r\nConnection: keep-alive'),
            good.replace(b'ETag: "tag"', b'ETag: "tag"\r\nContent-Length: 10'),
            chunked,
            refused,
        ],
        "refusal": [
            (503).to_bytes(2, "big") + b"SlowDown\n120",
            (503).to_bytes(2, "big") + b"\nFri, 31 Dec 1999 23:59:59 GMT",
            (429).to_bytes(2, "big") + b"x\n" + b"9" * 5000,
            (404).to_bytes(2, "big") + b"NoSuchKey\n",
            (403).to_bytes(2, "big") + b"RequestTimeTooSkewed\n",
        ],
        "listing": [
            b'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
            b"<NextContinuationToken>t</NextContinuationToken><EncodingType>url</EncodingType><Contents><Key>a%2Fb+c</Key><Size>5</Size>"
            b"<LastModified>2026-11-26T15:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag><Owner><ID>1</ID></Owner></Contents>"
            b"<CommonPrefixes><Prefix>d%2F</Prefix></CommonPrefixes></ListBucketResult>",
            b"<ListBucketResult><Contents><Key>a</Key><Size>-1</Size></Contents></ListBucketResult>",
            b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><ListBucketResult><Name>&b;&b;</Name></ListBucketResult>',
            b"<Error><Code>SlowDown</Code></Error>",
        ],
        "listing-time": [
            b"2026-11-26T15:00:00.000Z", b"Fri, 31 Dec 1999 23:59:59 GMT", b"1700000000", b"2026-13-45T99:00:00Z", b"0001-01-01T00:00:00Z",
        ],
        "notification": [
            b'{"Records":[{"eventName":"ObjectCreated:Put","s3":{"bucket":{"name":"scans"},"object":{"key":"root/in/a+b%C3%A4.smp"}}}]}',
            b'{"Records":[{"eventName":"ObjectRemoved:Delete","s3":{"bucket":{"name":"scans"},"object":{"key":"root/in/../x"}}}]}',
            b'{"Type":"Notification","Message":"{\\"Records\\":[]}"}',
            b'{"Service":"Amazon S3","Event":"s3:TestEvent","Bucket":"scans"}',
            b"[" * 3000,
        ],
        "pin": [b"etag:5:abc", b'etag:5:W/"abc"', b'"abc"', b"stat:5:6"],
        "sftp-fields": [attrs, attrs[:9], b"\1" + remote_string(b"handle"), b"\2" + struct.pack(">QQQQ", 1, 2, 3, 4), status, version, version[:-2]],
        "sftp-stream": [
            b"\xff" + stream + b"".join(remote.data_reply(1 + n, b"d" * 32) for n in range(3)),
            b"\x03" + remote.data_reply(1, b"d" * 5) + remote.data_reply(2, b"d" * 33),
            b"\xff" + struct.pack(">IBII", 9, 101, 1, 1),
        ],
    }  # fmt: skip


def remote_string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def of_this_machine() -> dict[str, list[bytes]]:
    shown = check_config(load_config(None, {"HOME": "/nonexistent", "CONFIGURATION_DIRECTORY": "/nonexistent"}))
    permissions = '[permissions.x]\ngroups = ["g"]\nread = ["pacs-*"]\njobs = "all"\n'
    key = identity().public
    return {
        "config": [
            shown.encode(),
            permissions.encode(),
            b"[fetch]\nslots = " + b"9" * 5000,
            b"[fetch]\nslots = " + b"[" * 3000,
            b'[jobs]\nbackoff_base_s = 1e400\n[paths]\nstate = "/\\u0000"\n',
            b"[control]\nrequests_per_s = 1979-05-27T07:32:00Z\n",
        ],
        "known-hosts": [
            b"host.example,*.other ssh-ed25519 AAAA\n!host.* ssh-rsa AAAA\n",
            b"|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-rsa AAAA\n",
            b"@revoked [host.example]:2222 ssh-ed25519 AAAA\n@cert-authority * ssh-rsa AAAA",
        ],
        "remote-url": [
            b"s3://bucket/pre%20fix", b"sftp://user@host.example:2222/folder", b"file:///data/x/../y", b"sftp://u@[::1]/x",
            b"sftp://u:p@h/", b"~nobody/x", b"s3://b%00/%ff", b"sftp://u@host.example:99999/", b"//\xe2\x84\x80/x",
        ],
        "webhook": [
            b"https://hooks.example.org/a%20b?c=d&e\nAuthorization: Bearer x.y-z=\n", b"http://[::1]:8080/x",
            b"https://[1::2::3]/\nX: y", b"https://u:p@h/", b"https://h:99999", b"https://h?q\nHost: x", b"https://h\nA: b\r\nC: d",
        ],
        "location": [b"pacs:a/b.smp", b"pacs:", b"pacs:../x", b"pacs:/x", b"Pacs:x", b"pacs:\xc3\xa4/\xe2\x80\xa8", b"a/b.dcm", b"a/\x80"],
        "secret": [
            b'\0access_key = "a"\nsecret_key = "b"\n', b'\1password = "p"\n', b"\0access_key = " + b"[" * 3000,
            b"\0access_key = " + b"9" * 5000, b"\1x = \xff",
        ],
        "private-key": [
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU=\n-----END OPENSSH PRIVATE KEY-----\n",
            b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n",
            b"-----BEGIN OPENSSH PRIVATE KEY-----\n\xc3\xa4\n-----END OPENSSH PRIVATE KEY-----\n",
            b"ssh-ed25519 AAAA",
        ],
        "record": [
            pack(_Record(c.TrustView("s", (b"k" * 16).hex(), "f", 1.0, 2e9, ["r:"]), key.text())),
            pack(_Record(c.TrustView("s", (b"k" * 16).hex(), "f", 1.0, -1e300, ["r:"]), key.text())),
            pack(_Record(c.TrustView("s", (b"k" * 16).hex(), "f", 1.0, 0.0, [], 1e300), key.text())),
            pack(Remote("r", "standard", c.S3Config("b"), c.S3Secret("a", "b"))),
            b"\x82\xa4view" + DEEP,
        ],
    }  # fmt: skip


def main() -> None:
    """Write all of them."""
    made = {**protocol(), **sealed(), **from_servers(), **of_this_machine()}
    assert made.keys() == BY_NAME.keys(), json.dumps(sorted(made.keys() ^ BY_NAME.keys()))
    for name, seeds in made.items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (CORPUS / name / f"{number:02}").write_bytes(seed)


if __name__ == "__main__":
    main()
