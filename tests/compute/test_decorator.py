"""What ``@processor`` is given, checked where it is written and not when the first job comes."""

import pytest

from smpd.processors import Context, Item, Output, processor


def _one(item: Item, context: Context[None]) -> Output:
    return Output("x", b"")


def _none(item: Item) -> Output:
    return Output("x", b"")


def test_a_processor_is_called_as_its_function() -> None:
    """The decorator keeps the function, and a method that is bound counts as one."""

    class Plugin:
        def work(self, item: Item, context: Context[None]) -> Output:
            return Output("y", b"")

    assert processor("some.one")(_one)(None, None) == Output("x", b"")  # type: ignore[arg-type]
    assert processor("some.two")(Plugin().work)(None, None) == Output("y", b"")  # type: ignore[arg-type]


def test_without_a_name() -> None:
    """``@processor`` alone would make the function its name."""
    with pytest.raises(TypeError, match="write @processor"):
        processor(_one)  # type: ignore[arg-type]


def test_wrong_arguments() -> None:
    """Media types that are a list, parameters that are no struct, a function that takes one argument."""
    with pytest.raises(TypeError, match="accepts are strings"):
        processor("some.one", accepts=["image/*"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"params of processor some\.one is no class made of msgspec\.Struct"):
        processor("some.one", params=dict)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"processor some\.one is called with two arguments.*too many"):
        processor("some.one")(_none)  # type: ignore[arg-type]
