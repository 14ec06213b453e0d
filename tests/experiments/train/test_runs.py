import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.bench import timing
from experiments.files import write_atomically
from experiments.machines import processor
from experiments.train.config import RunConfig, read_yaml
from experiments.train.runs import RunFolder
from solvers.errors import InputError

ROOT = Path(__file__).parents[3]


def test_folders_are_numbered_and_never_reused(tmp_path):
    names = [RunFolder.create(tmp_path / "runs", prefix="digits").path.name for _ in range(3)]
    assert names == ["digits-001", "digits-002", "digits-003"]
    assert RunFolder.create(tmp_path / "runs", prefix="adding").path.name == "adding-001"
    # A file of that name is in the way as much as a folder.
    (tmp_path / "runs" / "digits-004").write_text("notes")
    assert RunFolder.create(tmp_path / "runs", prefix="digits").path.name == "digits-005"
    assert (tmp_path / "runs" / "digits-004").read_text() == "notes"


def test_a_name_that_exists_is_refused_and_left_alone(tmp_path):
    folder = RunFolder.create(tmp_path, "mine")
    (folder.path / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="mine exists already: give another name"):
        RunFolder.create(tmp_path, "mine")
    assert (folder.path / "notes.txt").read_text() == "keep"


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", ".", "/tmp"])
def test_names_that_are_no_folder_names_are_refused(name, tmp_path):
    with pytest.raises(InputError, match="expected the name of one folder"):
        RunFolder.create(tmp_path / "runs", name)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_runs_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.create(tmp_path / "runs"), range(40)))
    assert sorted(folder.path.name for folder in folders) == [f"run-{number:03d}" for number in range(1, 41)]


def test_only_one_of_many_gets_a_name(tmp_path):
    def attempt(_):
        try:
            return RunFolder.create(tmp_path, "one")
        except InputError:
            return None

    with ThreadPoolExecutor(8) as pool:
        folders = [folder for folder in pool.map(attempt, range(20)) if folder is not None]
    assert len(folders) == 1


def test_a_root_that_cannot_hold_folders_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        RunFolder.create(tmp_path / "file")


def test_opening_what_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"no run folder .*nothing"):
        RunFolder.open(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"is not a run: it has no config\.yaml"):
        RunFolder.open(tmp_path)


def test_configuration_is_kept_with_what_it_ran_on(tmp_path):
    folder = RunFolder.create(tmp_path)
    config = RunConfig(seed=5, model_options={"dt": 0.2})
    folder.write_config(config, "cpu")
    assert RunFolder.open(folder.path).config() == config
    ran_on = read_yaml(folder.config_file)["environment"]
    assert ran_on["device"] == {"type": "cpu", "name": processor()}
    assert timing.machine()["processor"] == processor() != ""
    assert {"python", "torch", "neuralosc", "lightning"} <= set(ran_on["versions"])
    assert "unknown" not in ran_on["versions"].values()
    assert ran_on["command"] and ran_on["started"]


def test_result_round_trip_and_damage(tmp_path):
    folder = RunFolder.create(tmp_path)
    assert folder.result() is None
    folder.write_result(status="failed", message="why")
    assert folder.result() == {"status": "failed", "message": "why"}
    folder.result_file.write_text("{")
    with pytest.raises(InputError, match=r"result\.json is damaged"):
        folder.result()
    folder.result_file.write_text("[]")
    with pytest.raises(InputError, match="holds no result"):
        folder.result()


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    pytest.importorskip("fcntl", reason="file locks are a matter of POSIX")
    folder = RunFolder.create(tmp_path)
    with folder.locked(), pytest.raises(InputError, match="being trained by another process"), folder.locked():
        pass
    # Free again, also after a process that held it was killed.
    code = (
        "import os, signal, sys; from pathlib import Path; from experiments.train.runs import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(folder.path)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    with folder.locked():
        pass


def test_atomic_write_leaves_the_old_content_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="file cannot be written: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and [file.name for file in tmp_path.iterdir()] == ["file"]
