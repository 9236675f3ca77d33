"""The demo's web server: this machine only, files only, gone when the block ends."""

from __future__ import annotations

import http.client
import socket
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sheaf.demo.server import serving


def get(url: str) -> bytes:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return answer.read()


def test_it_serves_the_files_of_the_folder_and_no_listing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with serving(tmp_path) as url:
        assert get(url + "a.txt") == b"hello"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url)


def test_nothing_outside_the_folder_can_be_had(tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    with serving(tmp_path / "www") as url:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        connection.request("GET", "/../secret.txt")
        assert connection.getresponse().status == 404
        connection.close()


def test_two_demos_run_side_by_side_on_two_ports(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with serving(tmp_path) as first, serving(tmp_path) as second:
        assert first != second
        assert get(first + "a.txt") == get(second + "a.txt") == b"hello"


def test_after_ctrl_c_the_port_is_free_again(tmp_path: Path) -> None:
    used: list[str] = []
    with pytest.raises(KeyboardInterrupt), serving(tmp_path) as url:
        used.append(url)
        raise KeyboardInterrupt
    address = urlsplit(used[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address.hostname or "", address.port or 0), timeout=10)


def test_a_page_unchanged_since_it_was_fetched_is_not_sent_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with serving(tmp_path) as url:
        address = urlsplit(url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        connection.request("GET", "/a.txt")
        answer = connection.getresponse()
        answer.read()
        connection.request("GET", "/a.txt", headers={"If-Modified-Since": answer.headers["Last-Modified"]})
        assert connection.getresponse().status == 304
        connection.close()
