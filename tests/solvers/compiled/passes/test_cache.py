"""What compiled steps are kept in: whole, this user's own, bounded, and private where the folder does not serve."""

import os
import time
import warnings
from pathlib import Path

import pytest

from solvers.compiled.passes import cache, folders
from solvers.compiled.step.refused import Unavailable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="who owns a file is asked in the manner of POSIX")

KEY, OTHER = "0" * 32, "1" * 32
CONTENT = bytes(range(256)) * 8


@pytest.fixture(name="place", autouse=True)
def _place(tmp_path, monkeypatch):
    """The folder in use, in a process that has said nothing yet and has no private folder."""
    place = tmp_path / "kept"
    monkeypatch.setenv(cache.CACHE, str(place))
    monkeypatch.setattr(cache, "_warned", set())
    monkeypatch.setattr(cache, "_private", None)
    yield place
    if cache._private is not None:
        cache._private.remove()


def given_away(path):
    """Let a file belong to another user; where only root can do that, let this user be another."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    else:
        pytest.skip("only root gives a file away")


def test_what_is_kept_is_found_again_by_its_key_and_kind(place):
    assert cache.find(KEY, ".so") is None
    path = cache.keep(KEY, ".so", CONTENT)
    assert path.parent == place and path.read_bytes() == CONTENT
    assert cache.find(KEY, ".so") == path
    assert cache.find(OTHER, ".so") is None and cache.find(KEY, ".json") is None
    assert list(place.iterdir()) == [path], "what was needed to write it is gone"


def test_nobody_else_can_write_where_nobody_forbade_it(place):
    """A mask of 0 lets others write into whatever a process makes without a thought."""
    before = os.umask(0)
    try:
        path = cache.keep(KEY, ".so", CONTENT)
    finally:
        os.umask(before)
    assert not folders.distrusted(path) and cache.find(KEY, ".so") == path


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: content[:100] + bytes(len(content) - 100),
    "longer": lambda content: content + b"\0",
    "one bit": lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_not_found_but_made_anew(damage):
    path = cache.keep(KEY, ".so", CONTENT)
    path.write_bytes(DAMAGES[damage](CONTENT))
    assert cache.find(KEY, ".so") is None and not path.exists()
    assert cache.keep(KEY, ".so", CONTENT) == path and cache.find(KEY, ".so") == path


def test_the_folder_and_its_files_must_not_be_open_to_others(tmp_path):
    own = tmp_path / "own"
    own.mkdir(mode=0o755)
    assert not folders.distrusted(own)
    for mode in (0o775, 0o757, 0o1777):
        own.chmod(mode)
        assert folders.distrusted(own) == f"others can write into {own}"
    below = own / "below"
    below.mkdir(mode=0o700)
    # Above, as /tmp is: nobody moves what belongs to another.
    assert not folders.distrusted(below)
    own.chmod(0o777)
    assert folders.distrusted(below) == f"others can write into {own}"
    own.chmod(0o755)
    file = below / "file"
    file.write_bytes(b"")
    file.chmod(0o646)
    assert folders.distrusted(file) == f"others can write into {file}"
    link = below / "link"
    link.symlink_to(file)
    assert folders.distrusted(link), "a link is no file of ours"


def test_what_belongs_to_another_user_is_not_trusted(tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    if os.geteuid() == 0:
        os.chown(own, 65534, 65534)
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert "belongs to another user" in folders.distrusted(own)


def test_an_open_folder_is_said_once_and_steps_are_kept_privately(place):
    planted = cache.keep(KEY, ".so", CONTENT)
    place.chmod(0o777)
    assert cache.find(KEY, ".so") is None
    with pytest.warns(RuntimeWarning, match=f"others can write into {place}; set {cache.CACHE}") as said:
        path = cache.keep(KEY, ".so", CONTENT)
    assert "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.keep(OTHER, ".so", CONTENT)
    assert path.parent not in (place, planted) and not folders.distrusted(path)
    assert cache.find(KEY, ".so") == path
    cache._private.remove()
    assert not path.exists() and planted.exists()


def test_a_file_of_another_user_is_replaced():
    path = cache.keep(KEY, ".so", CONTENT)
    given_away(path)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert cache.find(KEY, ".so") is None
    assert cache.find(KEY, ".so") is None
    assert cache.keep(KEY, ".so", CONTENT) == path and cache.find(KEY, ".so") == path


def test_a_link_is_followed_before_it_is_trusted(place, tmp_path):
    behind = tmp_path / "behind"
    behind.mkdir()
    place.symlink_to(behind)
    assert cache.keep(KEY, ".so", CONTENT).parent == behind
    behind.chmod(0o777)
    assert cache.find(KEY, ".so") is None


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("why", ["a file", "a folder of devices", "no home"])
def test_where_nothing_can_be_written_steps_are_kept_privately(why, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_bytes(b"")
    if why == "no home":
        monkeypatch.delenv(cache.CACHE)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", no_home)
    else:
        monkeypatch.setenv(cache.CACHE, str(file if why == "a file" else Path("/dev/null/folder")))
    assert cache.find(KEY, ".so") is None
    with pytest.warns(RuntimeWarning, match="not kept for other processes"):
        path = cache.keep(KEY, ".so", CONTENT)
    assert cache.find(KEY, ".so") == path and path.parent == cache._private.path
    # A private folder that something cleaned away is made again.
    cache._private.remove()
    assert cache.keep(KEY, ".so", CONTENT).exists()


def test_where_not_even_a_private_folder_can_be_made_it_is_refused(place, tmp_path, monkeypatch):
    place.mkdir()
    place.chmod(0o777)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for temporary, reason in ((tmp_path / "none", "No such file"), (open_to_all, "others can write into .*TMPDIR")):
        monkeypatch.setattr("tempfile.gettempdir", lambda where=temporary: str(where))
        with warnings.catch_warnings(), pytest.raises(Unavailable, match=reason):
            warnings.simplefilter("ignore")
            cache.keep(KEY, ".so", CONTENT)


def test_the_least_recently_used_go_first_and_what_is_not_ours_stays(place, monkeypatch):
    paths = [cache.keep(str(i) * 32, ".so", CONTENT) for i in range(4)]
    foreign = place / "notes.txt"
    foreign.write_bytes(CONTENT)
    now = time.time()
    for path, days in zip([*paths, foreign], (4, 2, 3, 1, 1000), strict=True):
        os.utime(path, (now - days * 24 * 3600,) * 2)
    # Finding it is using it.
    assert cache.find("0" * 32, ".so") == paths[0]
    monkeypatch.setattr(cache, "BYTES", 3 * len(CONTENT))
    last = cache.keep("5" * 32, ".so", CONTENT)
    assert set(place.iterdir()) == {paths[0], paths[3], last, foreign}
    os.utime(paths[3], (now - (cache.DAYS + 1) * 24 * 3600,) * 2)
    last = cache.keep("5" * 32, ".so", CONTENT)
    assert set(place.iterdir()) == {paths[0], last, foreign}


def test_what_a_dead_process_was_making_is_removed_and_what_a_living_one_makes_is_not(place):
    cache.keep(KEY, ".so", CONTENT)
    alive, dead = (folders.Temporary(place, cache.BUILDING) for _ in range(2))
    (dead.path / "step.cpp").write_text("half of a st")
    # A process that ends, however it ends, holds no locks.
    os.close(dead._lock)
    unlocked = place / f"{cache.BUILDING}unlocked"
    unlocked.mkdir()
    folders.sweep(place, cache.BUILDING)
    assert alive.path.is_dir() and unlocked.is_dir() and not dead.path.exists()
    os.utime(unlocked, (time.time() - 2 * folders.LEFT,) * 2)
    cache.keep(OTHER, ".so", CONTENT)
    assert alive.path.is_dir() and not unlocked.exists()
    alive.remove()
    assert not alive.path.exists()


def test_a_process_forked_from_another_leaves_its_folder_alone(place, monkeypatch):
    cache.keep(KEY, ".so", CONTENT)
    made = folders.Temporary(place, cache.BUILDING)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: made.process + 1)
        made.remove()
    assert made.path.is_dir()
    made.remove()
    assert not made.path.exists()
