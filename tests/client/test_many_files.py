"""More files than a connection may hold descriptors, through a real daemon and back."""

from pathlib import Path

from box import box


def test_hundreds_of_files_go_in_and_come_out(tmp_path: Path) -> None:
    """A put of 600 files, most of them empty, and their export, in windows of what both sides may hold open."""
    contents = {f"s/{number:03}.dcm": b"" if number % 3 else f"slice {number}".encode() for number in range(600)}
    source = tmp_path / "s"
    source.mkdir()
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "lake").mkdir()
    with box(tmp_path / "box") as machine:
        machine.ctl("remote", "add", "lake", f"file://{tmp_path}/lake")
        put = machine.json("put", source, "lake:series.smp", "--to", "box")
        assert put["result"]["entries"] == len(contents)
        key = tmp_path / "box.pub"
        key.write_bytes(machine.ctl("keys", "export", "--box").stdout)
        machine.ctl("trust", "add", "box", key)
        machine.ctl("get", "lake:series.smp", "--export", tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in contents} == contents
