"""Files and directories are the old or the new ones, whole, whenever a process is killed and whoever else writes."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from leeroo_env import ExpertTable, InputError, atomic
from leeroo_env.atomic import locked, recover, temporary_directory, write_atomically
from leeroo_env.files import new_directory, read_directory
from leeroo_env.manifest import check_files
from tests.conftest import random_table
from tests.killing import killed_everywhere

WITHOUT_EXCHANGE = pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "no exchange"])


def fill(path: Path, text: str) -> None:
    """Writes three files in a directory."""
    with new_directory(path) as directory:
        for name in ("a", "b", "sub/c"):
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(text)


def texts(path: Path) -> set[str]:
    """What its files hold; they must all be there, and be what their manifest says."""
    recover(path)
    assert check_files(path)
    return {(path / name).read_text() for name in ("a", "b", "sub/c")}


@WITHOUT_EXCHANGE
def test_a_directory_killed_anywhere_is_old_or_new(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    path = tmp_path / "made"
    fill(path, "old")
    found: list[str] = []
    for _ in killed_everywhere(lambda: fill(path, "new")):
        held = texts(path)
        assert held in ({"old"}, {"new"})
        found += held
        if held == {"new"}:
            fill(path, "old")
    assert set(found) == {"old", "new"} and len(found) > 15
    atomic._cleaned.clear()  # as in a new process
    fill(path, "newest")
    assert [p.name for p in tmp_path.iterdir()] == ["made"], "nothing is left of the killed ones"


def test_a_first_directory_killed_anywhere_is_whole_or_absent(tmp_path: Path):
    path, whole = tmp_path / "made", False
    for _ in killed_everywhere(lambda: fill(path, "new")):
        whole = path.exists()
        assert not whole or texts(path) == {"new"}


def test_a_file_killed_anywhere_is_old_or_new(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("old")
    for _ in killed_everywhere(lambda: write_atomically(file, lambda path: path.write_text("new"))):
        assert file.read_text() in ("old", "new")
        file.write_text("old")
    atomic._cleaned.clear()
    write_atomically(file, lambda path: path.write_text("newest"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_table_killed_anywhere_is_old_or_new(tmp_path: Path):
    old, new = random_table(n=30), random_table(n=30, seed=1)
    path, known = tmp_path / "table", {old.fingerprint(), new.fingerprint()}
    old.save(path)
    found = set()
    for _ in killed_everywhere(lambda: new.save(path), every=2):
        found.add(ExpertTable.load(path).fingerprint())
    assert found <= known and old.fingerprint() in found


def save_often(path: Path, seed: int) -> None:
    for _ in range(15):
        fill(path, str(seed))


@WITHOUT_EXCHANGE
def test_several_writers_and_a_reader_do_not_collide(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    path = tmp_path / "made"
    fill(path, "0")
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=save_often, args=(path, i)) for i in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if exchange:  # without, a reader can come between two renames
            held = read_directory(path, lambda: texts(path))
            assert len(held) == 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(texts(path)) == 1 and [p.name for p in tmp_path.iterdir()] == ["made"]


def test_what_is_in_use_is_no_leftover(tmp_path: Path):
    with temporary_directory(tmp_path / "x") as used:
        stale = tmp_path / f".x.{'0' * 16}.tmp"
        only_copy, spare = tmp_path / f".y.{'1' * 16}.old", tmp_path / f".z.{'2' * 16}.old"
        mine = tmp_path / ".mine.tmp"
        for path in (stale, only_copy, spare, mine, tmp_path / "z"):
            path.mkdir()
        atomic.remove_leftovers(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {used.name, only_copy.name, ".mine.tmp", "z"}
    recover(tmp_path / "y")
    assert (tmp_path / "y").is_dir() and not only_copy.exists()


def test_an_interruption_leaves_nothing(tmp_path: Path):
    fill(tmp_path / "made", "old")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "made") as directory:
        (directory / "a").write_text("half")
        raise KeyboardInterrupt
    assert texts(tmp_path / "made") == {"old"} and [p.name for p in tmp_path.iterdir()] == ["made"]


def test_links_are_followed_and_the_root_is_refused(tmp_path: Path):
    fill(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fill(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and texts(tmp_path / "real") == {"new"}
    for path in (Path("/"), Path("//"), Path("/..")):
        with pytest.raises(InputError, match="no directory that can be replaced"), new_directory(path):
            pass
    with pytest.raises(InputError, match="/: exists and is no table directory; not replaced"):
        random_table().save("/")


def test_what_is_kept_is_neither_copied_nor_vouched_for_anew(tmp_path: Path):
    path = tmp_path / "made"
    fill(path, "old")
    inode = (path / "b").stat().st_ino
    with new_directory(path, keep=True) as directory:
        (directory / "a").unlink()
        (directory / "a").write_text("new")
    assert check_files(path) and (path / "a").read_text() == "new" and (path / "b").stat().st_ino == inode
    (path / "b").write_text("odd")  # damaged, with the same length
    with new_directory(path, keep=True) as directory:
        (directory / "d").write_text("more")
    with pytest.raises(InputError, match=r"/b: damaged, or changed by hand: other bytes than were written"):
        check_files(path)


def test_a_directory_is_locked_for_other_processes_alone(tmp_path: Path):
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()

    def attempt() -> None:
        try:
            with locked(tmp_path):
                answers.put("locked")
        except InputError as error:
            answers.put(str(error))

    def other() -> str:
        process = fork.Process(target=attempt)
        process.start()
        process.join()
        return answers.get(timeout=10)

    with locked(tmp_path), locked(tmp_path):
        assert other() == f"{tmp_path}: another process is working on it"
    assert other() == "locked"


def test_a_lock_goes_with_its_process(tmp_path: Path):
    """Also where that has children, which work on for a moment."""
    ready, stay = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(stay[1])
        with locked(tmp_path):
            if os.fork() > 0:
                os.write(ready[1], b"x")
            os.read(stay[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(InputError, match="another process"), locked(tmp_path):
        pass
    os.kill(child, 9)
    os.waitpid(child, 0)
    with locked(tmp_path):
        pass
    os.close(stay[1])
