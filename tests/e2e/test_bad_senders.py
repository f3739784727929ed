"""Objects from people whom the box does not believe, or for somebody else; and objects that change on the way."""

import shutil
import time

import pytest
from gated_s3 import gated_s3
from refusals import Bench, marked
from scene import Following, add_remote

from smp_proto.control import GetSpec
from smp_proto.sealed.keys import Identity
from smp_proto.sealed.layout import SEGMENT_BYTES


@pytest.fixture(scope="module")
def stranger() -> Identity:
    """Someone whom the box does not know."""
    return Identity.generate("stranger")


def refused(bench: Bench, place: str, code: str, words: str = "") -> None:
    """Both verbs refuse the object, and say why."""
    view = bench.refuse("get", place, "--export", bench.folder / "out", code=code, about=place)
    assert view.error
    assert words in view.error.message + view.error.hint
    bench.refuse("run", "digest", place, "--to", "disk:results/", code=code, about=place)


def test_sealed_for_someone_else(bench: Bench, stranger: Identity) -> None:
    """An object for another recipient: the box says so, and how it can be made one for the box."""
    place = bench.store("else.smp", bench.seal(to=stranger.public))
    refused(bench, place, "wrong_recipient", "rewrap")


def test_a_sender_that_nobody_knows(bench: Bench, stranger: Identity) -> None:
    """A signature by a key that is not trusted; once the key is, the same job can be resumed."""
    place = bench.store("unknown.smp", bench.seal(by=stranger))
    refused(bench, place, "untrusted_sender", "smpctl trust add")
    view = bench.client.wait(bench.client.submit(GetSpec(place)).id)
    bench.believe(stranger)
    bench.client.resume(view.id)
    view = bench.client.wait(view.id)
    assert view.state == "done"
    assert view.result
    bench.client.vault_remove(view.result.vault_id)
    bench.client.trust_remove("stranger")


def test_a_sender_that_was_removed(bench: Bench, stranger: Identity) -> None:
    """A tombstone is not trust."""
    bench.believe(stranger)
    bench.client.trust_remove("stranger")
    refused(bench, bench.store("removed.smp", bench.seal(by=stranger)), "untrusted_sender", "removed")


def test_a_sender_whose_time_is_over(bench: Bench, stranger: Identity) -> None:
    """Trust that ended yesterday."""
    bench.believe(stranger, until=time.time() - 86_400)
    refused(bench, bench.store("expired.smp", bench.seal(by=stranger)), "untrusted_sender", "ended")
    bench.client.trust_remove("stranger")


def test_a_sender_outside_its_prefix(bench: Bench, stranger: Identity) -> None:
    """A sender who is believed for one folder is not for another, nor for one whose name begins the same."""
    bench.believe(stranger, prefixes=["disk:theirs"])
    sealed = bench.seal(by=stranger)
    for name in ("outside.smp", "theirs2/a.smp"):
        refused(bench, bench.store(name, sealed), "untrusted_sender", "disk:theirs")
    view = bench.client.wait(bench.client.submit(GetSpec(bench.store("theirs/a.smp", sealed))).id)
    assert view.result
    bench.client.vault_remove(view.result.vault_id)
    bench.client.trust_remove("stranger")


# ── objects that change ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("verb", ["get", "run"])
@pytest.mark.parametrize("conditional", [True, False])
def test_replaced_in_the_middle(bench: Bench, verb: str, conditional: bool) -> None:
    """Replaced while it is read, by another good object: refused, whether the server honours If-Match or not;
    the same job can be resumed to take the object as it is now."""
    first, second = (bench.seal([marked(4 * SEGMENT_BYTES, seed)]) for seed in (1, 2))  # twice what the lanes hold
    name = f"gated-{verb}-{conditional}".lower()
    with gated_s3({"a.smp": first}, conditional=conditional) as (store, served), Following(bench.box) as following:
        add_remote(bench.box, name, served)
        store.hold_after(SEGMENT_BYTES)  # the end, and some of the first two segments
        kept = bench.kept()
        more = ["--to", "disk:results/"] if verb == "run" else []
        arguments = ["run", "wrong.none"] if verb == "run" else ["get"]
        job = bench.box.ctl(*arguments, f"{name}:a.smp", *more, "--detach").stdout.decode().strip()
        store.until_held(2)
        store.objects["a.smp"] = second
        store.release()
        view = following.final(job)
        bench.check(view, "source_changed", f"{name}:a.smp", kept)
        assert bench.box.ctl("job", "wait", job, check=False).returncode == 7
        bench.client.resume(job)
        view = bench.client.wait(job)
        assert view.state == "done", view.error
        assert view.result
        if view.result.vault_id:
            bench.client.vault_remove(view.result.vault_id)
        shutil.rmtree(bench.stored / "results", ignore_errors=True)
    bench.box.ctl("remote", "remove", name)
