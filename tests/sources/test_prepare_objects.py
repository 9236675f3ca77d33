"""`prepare` over an object store on a bad network: the same corpus as on a good one, and nothing fetched twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chaos_proxy import Proxy, at_random, proxied, refuse, reset
from moto.server import ThreadedMotoServer

from sheaf import recipe_file
from sheaf.errors import RecipeError, SheafError
from sheaf.prepare.pipeline import prepare

OBJECTS = 60


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    words, chance = ["ledger", "lineage", "corpus", "token", "shard", "origin", "record", "epoch"], random.Random(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        client.put("/acme").raise_for_status()
        for n in range(OBJECTS):
            text = f"Object {n}. " + " ".join(chance.choice(words) for _ in range(300 if n % 10 else 40_000))
            client.put(f"/acme/exports/{n:03d}.txt", content=text.encode()).raise_for_status()
    with proxied(port) as between:
        yield between
    server.stop()


@pytest.fixture(autouse=True)
def calm(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    proxy.disturb, proxy.cut_after = lambda request: False, lambda request: None
    proxy.paths.clear()


def run(proxy: Proxy, folder: Path, **options: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    text = f"""
name: objects
sources: [{{name: exports, uri: "s3://acme/exports/", options: {{endpoint: "{proxy.url}"{extra(options)}}}}}]
prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}
"""
    (folder / "sheaf.yaml").write_text(text)
    return prepare(recipe_file.load(folder / "sheaf.yaml"), workers=2)


def extra(options: dict[str, str]) -> str:
    return "".join(f', {name}: "{value}"' for name, value in options.items())


def fetched(proxy: Proxy) -> Counter[str]:
    return Counter(path for path in proxy.paths if path.endswith(".txt"))


@pytest.fixture(scope="module")
def undisturbed(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
        folder = tmp_path_factory.mktemp("calm")
        busy, most, lock = [0], [0], threading.Lock()

        def count(request: Any) -> bool:
            with lock:
                busy[0] += 1
                most[0] = max(most[0], busy[0])
            time.sleep(0.02)  # the way there and back
            with lock:
                busy[0] -= 1
            return False

        proxy.disturb = count
        result = run(proxy, folder)
        assert most[0] >= 4  # small objects behind a slow link are fetched many at once
        assert result["items"] == {"seen": OBJECTS, "read": OBJECTS, "unchanged": 0, "quarantined": 0, "deferred": 0}
        assert fetched(proxy) == {f"/acme/exports/{n:03d}.txt": 1 for n in range(OBJECTS)}
        proxy.paths.clear()
        again = run(proxy, folder)
        assert again["corpus"] == result["corpus"] and again["items"]["read"] == 0 and not fetched(proxy)
    return result["corpus"]


@pytest.mark.parametrize("outage_seconds", [1, pytest.param(300, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_a_network_that_fails_at_random_cuts_bodies_and_is_away_for_a_while_changes_no_bit(
    outage_seconds: float, proxy: Proxy, undisturbed: str, tmp_path: Path
) -> None:
    flaky, lock, away = at_random(0.1, seed=7), threading.Lock(), [0.0]
    cut, failures = random.Random(3), Counter[str]()

    def disturb(request: Any) -> bool:
        with lock:
            if not away[0] and len(fetched(proxy)) > OBJECTS // 2:
                away[0] = time.monotonic() + outage_seconds  # an outage in the middle
        if time.monotonic() < away[0]:
            failures["away"] += 1
            reset(request)
            return True
        if flaky(request):
            failures["flaky"] += 1
            return True
        return False

    def cut_after(request: Any) -> int | None:
        with lock:
            if not request.path.endswith(".txt") or cut.random() > 0.1:
                return None
            failures["cut"] += 1
            return cut.randrange(1, 1500)

    proxy.disturb, proxy.cut_after = disturb, cut_after
    result = run(proxy, tmp_path / "w")
    if result["items"]["deferred"]:  # six failures in a row by bad luck: one in thousands
        result = run(proxy, tmp_path / "w")
    assert result["items"]["deferred"] == 0, result["quarantine"]
    assert result["corpus"] == undisturbed
    assert all(failures[kind] > 3 for kind in ("away", "flaky", "cut")), failures


def test_what_an_outage_defers_is_all_that_the_next_run_fetches(proxy: Proxy, undisturbed: str, tmp_path: Path) -> None:
    gone = {f"/acme/exports/{n:03d}.txt" for n in range(0, OBJECTS, 7)}
    proxy.disturb = lambda request: request.path in gone and refuse(request, 500, b"canary-4711")
    result = run(proxy, tmp_path / "w", patience="0")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(b"canary-4711" in path.read_bytes() for path in written)
    assert result["items"]["deferred"] == len(gone) and result["corpus"] != undisturbed
    proxy.disturb = lambda request: False
    proxy.paths.clear()
    assert run(proxy, tmp_path / "w", patience="0")["corpus"] == undisturbed
    assert fetched(proxy) == dict.fromkeys(gone, 1)


def test_what_is_fetched_lies_on_the_workspace_s_disk_and_leaves_no_file(
    proxy: Proxy, undisturbed: str, tmp_path: Path
) -> None:
    (tmp_path / "w" / "workspace").mkdir(parents=True)
    (tmp_path / "w" / "workspace" / "spool").write_bytes(b"")  # a file where the folder should be: nothing can be kept
    with pytest.raises(SheafError):
        run(proxy, tmp_path / "w")
    (tmp_path / "w" / "workspace" / "spool").unlink()
    assert run(proxy, tmp_path / "w")["corpus"] == undisturbed
    assert list((tmp_path / "w" / "workspace" / "spool").iterdir()) == []


@pytest.mark.parametrize("option", ["secret_access_key", "account_key", "sas_token", "session_token", "access_key_id"])
def test_a_secret_that_stands_in_the_options_is_refused_and_not_quoted(tmp_path: Path, option: str) -> None:
    lines = f'name: x\nsources: [{{name: s, uri: "s3://b/", options: {{{option}: canary-4711, region: eu-west-1}}}}]\n'
    (tmp_path / "sheaf.yaml").write_text(lines)
    with pytest.raises(RecipeError, match=option) as raised:
        recipe_file.load(tmp_path / "sheaf.yaml")
    assert "canary" not in str(raised.value)
