"""Items are fetched before they are wanted: same files, same errors, within bounds."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from sheaf.sources import Item, ItemChanged, ItemUnavailable, Refusal
from sheaf.sources.ahead import AHEAD_BYTES, AHEAD_ITEMS, Ahead


class Place:
    """Counts what is open and begun; items named bad… fail."""

    name = "place"
    connections = 4

    def __init__(self) -> None:
        self.files: list[BinaryIO] = []
        self.begun: set[str] = set()
        self.lock = threading.Lock()
        self.together = threading.Barrier(4)
        self.wait_for_others = False

    def list_items(self) -> Iterator[Item | Refusal]:
        return iter(())

    def open_item(self, item: Item) -> BinaryIO:
        with self.lock:
            self.begun.add(item.path)
        if self.wait_for_others:
            self.together.wait(20)  # breaks unless four are opened at once
        if item.path.startswith("bad"):
            raise ItemUnavailable(item.path)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(tempfile.TemporaryFile())
            stack.pop_all()
        file.write(item.path.encode())
        file.seek(0)
        with self.lock:
            self.files.append(file)
        return file


def items(*names: str, size: int = 10) -> list[Item]:
    return [Item("place", name, name, "v", size) for name in names]


def test_items_are_opened_at_once_and_come_in_order_with_their_own_errors() -> None:
    place, wanted = Place(), items("a", "b", "bad", "c", "d", "bad2", "e", "f")
    place.wait_for_others = True
    with Ahead(place, wanted) as ahead:
        for item in wanted:
            if item.path.startswith("bad"):
                with pytest.raises(ItemUnavailable, match=item.path):
                    ahead.open_item(item)
            else:
                with ahead.open_item(item) as file:
                    assert file.read() == item.path.encode()


def test_what_is_fetched_ahead_is_bounded_in_items_and_in_bytes() -> None:
    place, wanted = Place(), items(*(f"{n:03d}" for n in range(300)))
    with Ahead(place, wanted) as ahead:
        ahead.open_item(wanted[0]).close()
    assert len(place.begun) <= AHEAD_ITEMS + 1
    place, wanted = Place(), items(*(f"{n:03d}" for n in range(300)), size=AHEAD_BYTES // 4)
    with Ahead(place, wanted) as ahead:
        ahead.open_item(wanted[0]).close()
    assert len(place.begun) <= 5


def test_files_that_nobody_asked_for_are_closed() -> None:
    place, wanted = Place(), items("a", "b", "c", "d")
    with pytest.raises(ItemChanged), Ahead(place, wanted) as ahead:
        ahead.open_item(wanted[0]).close()
        raise ItemChanged("the reader breaks off")
    assert all(file.closed for file in place.files)


def test_an_item_that_was_not_announced_is_opened_all_the_same() -> None:
    place = Place()
    with Ahead(place, items("a")) as ahead, ahead.open_item(items("z")[0]) as file:
        assert file.read() == b"z"


def test_a_place_without_connections_is_asked_only_when_the_reader_asks() -> None:
    place = Place()
    place.connections = 1
    wanted = items("a", "b")
    with Ahead(place, wanted) as ahead:
        ahead.open_item(wanted[0]).close()
        assert place.begun == {"a"}
