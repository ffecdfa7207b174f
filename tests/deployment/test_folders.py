import pytest

from qvit.deployment.folders import check_target, written_whole
from qvit.errors import UsageError


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_folder_appears_at_the_end(tmp_path):
    with written_whole(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert names(tmp_path / "a") == ["out"]
    assert names(tmp_path / "a" / "out") == ["x"]


def fail_inside(out, error):
    with written_whole(out) as folder:
        (folder / "x").write_text("1")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error):
        fail_inside(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_failure_keeps_what_was_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with pytest.raises(RuntimeError):
        fail_inside(tmp_path / "out", RuntimeError)
    assert names(tmp_path / "out") == ["old"]
    assert names(tmp_path) == ["out"]


def test_old_folder_is_replaced_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with written_whole(tmp_path / "out") as folder:
        (folder / "new").write_text("1")
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["out"]


def has_marker(folder):
    return (folder / "marker").is_file()


def check(out, overwrite=False):
    check_target(out, overwrite=overwrite, is_ours=has_marker)


def test_targets(tmp_path):
    out = tmp_path / "out"
    check(out)
    check(tmp_path / "not" / "yet" / "there")
    out.mkdir()
    check(out)
    (out / "thesis.tex").write_text("1")
    with pytest.raises(UsageError, match="--overwrite"):
        check(out)
    with pytest.raises(UsageError, match="is not replaced"):
        check(out, overwrite=True)
    (out / "marker").write_text("")
    check(out, overwrite=True)
    with pytest.raises(UsageError, match="is a file"):
        check(out / "marker", overwrite=True)


def test_places_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("1")
    with pytest.raises(UsageError, match="file is a file"):
        check(tmp_path / "file" / "out")
    with pytest.raises(UsageError, match="too long"):
        check(tmp_path / ("x" * 240))
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may everything
    with pytest.raises(UsageError, match="may not be written"):
        check(tmp_path / "out")
