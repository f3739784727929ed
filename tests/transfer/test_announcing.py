"""How a compute process is told of entries: every message fits a frame, whatever the names are."""

from hypothesis import given
from hypothesis import strategies as st

from smp_proto.aio import decode, encode
from smp_proto.sealed.entries import Entry, packed_entries
from smp_proto.wire import BODY_MAX_BYTES
from smpd.links.computing import InputEntry, InputObject, Objects
from smpd.transfer import pipeline

_NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=64)
_SIZES = st.integers(0, 2**63 - 1)
_ATTRIBUTES = st.dictionaries(_NAMES, st.one_of(_NAMES, _SIZES, st.floats(), st.booleans()), max_size=3)
_ENTRIES = st.builds(InputEntry, _NAMES, _SIZES, _SIZES, st.text(" ~", max_size=255), _ATTRIBUTES)
_BARE = st.builds(InputEntry, _NAMES, _SIZES, _SIZES, st.text(" ~", max_size=255))  # these are looked at together


class Told:
    """A receiver of announcements that only keeps them."""

    def __init__(self) -> None:
        self.messages: list[list[InputObject]] = []

    async def announce(self, objects):
        self.messages.append(list(objects))


def announced(objects: list[InputObject]) -> list[list[InputObject]]:
    told = Told()
    asking = pipeline.announce(told, objects)  # type: ignore[arg-type]
    try:
        asking.send(None)
    except StopIteration:
        return told.messages
    raise AssertionError


@given(st.one_of(st.lists(_ENTRIES, max_size=20), st.lists(_BARE, max_size=20)))
def test_an_entry_takes_no_more_than_was_thought(entries):
    """The bound that messages are filled by is one, of each entry and so of all."""
    ((part, most),) = pipeline._parts(entries)
    assert part == entries
    assert sum(len(encode(entry)) for entry in entries) <= most - pipeline._PREFIX_BYTES


def test_many_entries_come_in_messages_that_fit_and_in_order():
    """Each is there once, and says whether more of its object follow; an object without entries is announced, too."""
    many = [InputEntry("\N{GRINNING FACE}" * 250 + str(number), number, 1, "", {}) for number in range(3000)]
    objects = [InputObject("a", many), InputObject("empty", []), InputObject("b", many[:1])]
    messages = announced(objects)
    assert len(messages) > 2
    assert all(len(encode(Objects(message))) < BODY_MAX_BYTES for message in messages)
    items = [item for message in messages for item in message]
    assert [entry for item in items if item.prefix == "a" for entry in item.entries] == many
    assert [item.more for item in items if item.prefix == "a"][-2:] == [True, False]
    assert [(item.prefix, len(item.entries), item.more) for item in items[-2:]] == [
        ("empty", 0, False),
        ("b", 1, False),
    ]


def test_attributes_that_stayed_encoded_are_told_as_they_are():
    """A receiver cannot tell, and what they add to a message is counted."""
    facts = {"shape": [1, 2], "unit": "mm", "x": 1.5, "ok": True}
    entries = packed_entries([Entry("a", 0, 1, bytes(32), "", facts), Entry("b", 1, 0, bytes(32))])
    ((message,),) = announced([pipeline.input_object("p", entries, 7)])
    told = decode(encode(Objects([message])), Objects).objects[0]
    assert told == InputObject("p", [InputEntry("a", 7, 1, "", facts), InputEntry("b", 8, 0, "", {})])
    ((_, most),) = pipeline._parts(message.entries)
    assert len(encode(message)) <= most
