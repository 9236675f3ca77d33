"""A workspace in an object store: the same corpus, whole or not there, from any machine. On an S3 server (moto)."""

from __future__ import annotations

import http.client
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import obstore
import orjson
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from sheaf import recipe_file
from sheaf.api import Corpus
from sheaf.console import Silent
from sheaf.corpus import lease, lineage, store
from sheaf.corpus.workspace import Workspace
from sheaf.errors import CorruptStore, EnvironmentProblem, RecipeError
from sheaf.files import folder_of, remove_folder
from sheaf.prepare.pipeline import prepare
from sheaf.recipe import Recipe

URL = "s3://acme/spaces/one"
WORDS = ["lineage", "ledger", "corpus", "token", "shard", "origin", "source", "record", "epoch", "batch", "recipe"]


@pytest.fixture(scope="module")
def moto() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(autouse=True)
def bucket(moto: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """An empty bucket that the environment gives access to, and a machine that has seen nothing of it."""
    connection = http.client.HTTPConnection("127.0.0.1", moto)
    connection.request("POST", "/moto-api/reset")
    assert connection.getresponse().read() is not None
    connection.request("PUT", "/acme")
    assert connection.getresponse().status == 200
    connection.close()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{moto}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "canary-4711",
        "AWS_REGION": "us-east-1",
        "XDG_DATA_HOME": str(tmp_path / "machine"),
    }.items():
        monkeypatch.setenv(name, value)
    return S3Store("acme", client_options={"allow_http": True})


def another_machine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / name))


def make_recipe(folder: Path, workspace: str = URL) -> Recipe:
    """Two sources, several shards, a repeat and a broken line."""
    rng = random.Random(3)
    for source in ("a", "b"):
        (folder / source).mkdir(parents=True, exist_ok=True)
        for n in range(8):
            (folder / source / f"{n}.txt").write_text(f"{n} {' '.join(rng.choices(WORDS, k=60))}\n")
    (folder / "b/rows.jsonl").write_text(
        '{"text": "A row that says something about ledgers and shards."}\n{"text": "br\n'
    )
    text = f"""
    name: far
    sources: [{{name: a, uri: ./a}}, {{name: b, uri: ./b}}]
    prepare: {{tokenizer: {{train: bpe, vocab_size: 400}}}}
    workspace: {workspace}
    """
    (folder / "sheaf.yaml").write_text(text)
    return recipe_file.load(folder / "sheaf.yaml")


def objects(bucket: S3Store) -> dict[str, str]:
    """Key → time and etag, of all there are."""
    return {m["path"]: f"{m['last_modified']} {m['e_tag']}" for page in obstore.list(bucket) for m in page}


def test_the_corpus_is_the_same_as_in_a_folder_and_every_object_lies_below_the_prefix(
    bucket: S3Store, tmp_path: Path
) -> None:
    here = prepare(make_recipe(tmp_path / "data", "./workspace"), workers=1)
    far = prepare(make_recipe(tmp_path / "data"), workers=1)
    assert far["corpus"] == here["corpus"]
    keys = objects(bucket)
    assert keys and all(key.startswith("spaces/one/") for key in keys)
    assert not any("LEASE" in key or "tmp-" in key or "/packs/" in key for key in keys)
    assert not any(b"canary" in bytes(obstore.get(bucket, key).bytes()) for key in keys)


def test_another_machine_finds_everything_done_and_writes_nothing(
    bucket: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "data")
    first = prepare(recipe, workers=1)
    before = objects(bucket)
    another_machine("second", tmp_path, monkeypatch)
    again = prepare(recipe, workers=1)
    assert again["corpus"] == first["corpus"]
    assert again["items"]["read"] == 0
    assert objects(bucket) == before


def test_another_machine_adds_to_it_and_the_first_one_sees_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "data")
    old = prepare(recipe, workers=1)
    (tmp_path / "data/a/new.txt").write_text("One more text, which the second machine has found and read.\n")
    another_machine("second", tmp_path, monkeypatch)
    new = prepare(recipe, workers=1)
    assert (new["items"]["read"], new["corpus"] == old["corpus"]) == (1, False)
    another_machine("machine", tmp_path, monkeypatch)
    assert Corpus.open(URL).digest == new["corpus"]
    assert prepare(recipe, workers=1)["items"]["read"] == 0


def test_texts_and_their_origins_are_read_on_a_machine_that_has_never_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(make_recipe(tmp_path / "data"), workers=1)
    another_machine("third", tmp_path, monkeypatch)
    corpus = Corpus.open(URL)
    with lineage.Rereader(corpus) as again:
        for number in range(len(corpus.documents)):
            assert {again.text(origin) for origin in lineage.origins(corpus, number)} == {corpus.text(number)}
    with corpus.loader(sequence_length=32, batch=2) as loader:  # it goes on for ever
        assert next(iter(loader)).input_ids.shape[-1] == 32


def test_a_folder_that_mirrors_a_store_is_opened_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = prepare(make_recipe(tmp_path / "data"), workers=1)
    folder = folder_of(URL)
    shutil.rmtree(folder / "corpora")
    shutil.rmtree(folder / "shards")
    code = "import sys; from sheaf.api import Corpus; c = Corpus.open(sys.argv[1]); print(c.digest, len(c.text(0)))"
    said = subprocess.check_output([sys.executable, "-c", code, str(folder)], text=True)
    assert said.split()[0] == done["corpus"]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    shutil.move(folder, tmp_path / "moved")
    with pytest.raises(EnvironmentProblem, match="has been moved"):
        Workspace(tmp_path / "moved")


def test_an_object_that_was_changed_is_not_believed(
    bucket: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(make_recipe(tmp_path / "data"), workers=1)
    [key] = [key for key in objects(bucket) if key.endswith("/ledger.parquet")][:1]
    obstore.put(bucket, key, bytes(obstore.get(bucket, key).bytes())[:-1] + b"?")
    another_machine("second", tmp_path, monkeypatch)
    with pytest.raises(CorruptStore, match=r"has changed since it was written"):
        Corpus.open(URL).ledger()


def test_a_folder_without_its_marker_is_no_result(
    bucket: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path / "data")
    done = prepare(recipe, workers=1)
    for key in objects(bucket):  # as if every upload had been cut before its end
        if key.endswith(("/DONE", "/HEAD")):
            obstore.delete(bucket, key)
    another_machine("second", tmp_path, monkeypatch)
    again = prepare(recipe, workers=1)
    assert (again["corpus"], again["items"]["read"]) == (done["corpus"], done["items"]["read"])


PROGRAM = """
import sys
from pathlib import Path
from sheaf import recipe_file
from sheaf.prepare.pipeline import prepare
print(prepare(recipe_file.load(Path(sys.argv[1]), sys.argv[2:]), workers=2)["corpus"])
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_any_moment_and_taken_up_on_another_machine_it_is_the_same_corpus(
    bucket: S3Store, tmp_path: Path, kills: int
) -> None:
    make_recipe(tmp_path / "data")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "data/sheaf.yaml")]
    expected = subprocess.check_output([*command, "workspace=s3://acme/undisturbed"], text=True).strip()
    whole, killed = len(objects(bucket)), 0
    for n, moment in enumerate(sorted(random.Random(kills).sample(range(1, whole), kills))):
        environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / f"machine-{n}")}
        process = subprocess.Popen(command, start_new_session=True, env=environment)
        while process.poll() is None and len(objects(bucket)) - whole < moment:
            threading.Event().wait(0.01)
        if process.poll() is None:
            killed += 1
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert killed >= kills // 2, "hardly a run was killed: the test proves little"
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path / "last")}
    assert subprocess.check_output(command, env=environment, text=True).strip() == expected


def test_who_prepares_is_waited_for_and_then_taken_over(tmp_path: Path) -> None:
    there = Workspace.at(URL)
    place, mirrored = there.root / "LEASE", store.store_of(there.root)
    assert mirrored is not None
    foreign = {"host": "another", "machine": "00000000", "pid": 1, "ended": False, "nonce": "x"}
    assert mirrored.put_if(place, orjson.dumps(foreign), None) is not None
    assert mirrored.put_if(place, b"{}", None) is None  # it is there
    now, notes = [0.0], Notes()

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] == 30 * lease.LOOK_SECONDS - 2 * lease.LOOK_SECONDS:  # it still lives, and says so at the last moment
            assert mirrored.put_if(place, orjson.dumps({**foreign, "nonce": "y"}), mirrored.read(place)[1]) is not None

    with lease.held(mirrored, place, notes, clock=lambda: now[0], sleep=sleep):
        assert orjson.loads(mirrored.read(place)[0])["pid"] == os.getpid()
    assert now[0] >= lease.LEASE_SECONDS + 28 * lease.LOOK_SECONDS
    assert ["another" in note and URL in note for note in notes.said] == [True]
    assert mirrored.read(place) is None


def test_a_holder_that_was_killed_on_this_machine_is_not_waited_for() -> None:
    there = Workspace.at(URL)
    mirrored = store.store_of(there.root)
    assert mirrored is not None
    code = (
        "import os, sys; from sheaf.console import Silent; from sheaf.corpus.workspace import Workspace\n"
        "with Workspace.at(sys.argv[1]).locked(Silent()): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, URL], check=False).returncode == -9
    assert mirrored.read(there.root / "LEASE") is not None

    def sleep(_: float) -> None:
        raise AssertionError("it was waited for")

    with lease.held(mirrored, there.root / "LEASE", Silent(), sleep=sleep):
        assert orjson.loads(mirrored.read(there.root / "LEASE")[0])["pid"] == os.getpid()


def test_a_lease_that_makes_no_sense_is_waited_for_like_any_other() -> None:
    there = Workspace.at(URL)
    mirrored = store.store_of(there.root)
    assert mirrored is not None
    mirrored.put(there.root / "LEASE", b"\xff not json")
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with lease.held(mirrored, there.root / "LEASE", Silent(), clock=lambda: now[0], sleep=sleep):
        assert now[0] >= lease.LEASE_SECONDS


def test_a_removed_folder_is_gone_in_both_places(bucket: S3Store, tmp_path: Path) -> None:
    prepare(make_recipe(tmp_path / "data"), workers=1)
    there = Workspace.at(URL)
    [name, *_] = there.finished_shards()
    remove_folder(there.shard(name))
    assert name not in there.finished_shards()
    assert not [key for key in objects(bucket) if name in key and "/shards/" in key]
    assert not there.shard(name).exists()


def test_urls_that_are_no_store_and_stores_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="prefix in an object store"):
        prepare(make_recipe(tmp_path / "data", "hdfs://somewhere/else"), workers=1)
    with pytest.raises(EnvironmentProblem, match="refuses") as refused:
        prepare(make_recipe(tmp_path / "data", "s3://nobucket/x"), workers=1)
    assert "canary" not in str(refused.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "fresh"))
    with pytest.raises(EnvironmentProblem, match="credentials"):
        prepare(make_recipe(tmp_path / "data"), workers=1)


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_what_of_a_conversation_is_trained_on_is_known_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flags are a file that only some shards have: not being here must not look like not being there."""
    (tmp_path / "chats").mkdir()
    turns = [
        {"role": "user", "content": "What is a ledger?"},
        {"role": "assistant", "content": "It says where all went."},
    ]
    (tmp_path / "chats/c.jsonl").write_bytes(orjson.dumps({"messages": turns}) + b"\n")
    recipe = recipe_file.loads(
        "{name: c, sources: [{name: c, uri: ./chats, map: openai}],"
        f" prepare: {{tokenizer: {{train: bpe, vocab_size: 300}}}}, workspace: '{URL}'}}",
        tmp_path,
    )
    prepare(recipe, workers=1)
    here = [flags[:].tolist() for flags in Corpus.open(URL).loss_files() if flags is not None]
    another_machine("second", tmp_path, monkeypatch)
    there = [flags[:].tolist() for flags in Corpus.open(URL).loss_files() if flags is not None]
    assert here == there != []
