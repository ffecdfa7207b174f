"""How the compiled path comes to be: built once, kept, and refused in words."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from qvit import machine
from qvit_kernels import compiled_library
from qvit_kernels.compiled_library import CompiledLibraryError

pytestmark = pytest.mark.skipif(
    "avx512_vnni" not in compiled_library._cpu_flags(), reason="the compiled path needs AVX512-VNNI"
)


def test_nothing_is_loaded_before_it_is_asked_for():
    assert compiled_library.loaded() is None


def test_a_build_is_kept(compiled_path, compiled_cache, monkeypatch):
    (built,) = compiled_cache.glob("*.so")
    monkeypatch.setattr(compiled_library.tempfile, "mkstemp", None)  # what a build begins with
    assert compiled_library._built(machine.find_compiler(), compiled_cache) == built


def test_another_source_is_another_build(compiled_path, compiled_cache, tmp_path, monkeypatch):
    (tmp_path / "program.cpp").write_text("int qvit_other() { return 1; }")
    monkeypatch.setattr(compiled_library, "SOURCES", tmp_path)
    other = compiled_library._built(machine.find_compiler(), tmp_path / "cache")
    assert other.name not in {path.name for path in compiled_cache.iterdir()}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [other.name]


def test_without_a_compiler(tmp_path):
    with pytest.raises(CompiledLibraryError, match="needs a C\\+\\+ compiler"):
        compiled_library.load(None, tmp_path)
    assert compiled_library.loaded() is None


def test_without_vnni(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_library, "_cpu_flags", lambda: "flags : avx2")
    with pytest.raises(CompiledLibraryError, match="AVX512-VNNI, which this processor lacks"):
        compiled_library.load(machine.find_compiler(), tmp_path)


def test_a_compiler_that_fails_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "program.cpp").write_text("#error broken on purpose")
    monkeypatch.setattr(compiled_library, "SOURCES", tmp_path)
    with pytest.raises(CompiledLibraryError, match="broken on purpose"):
        compiled_library.load(machine.find_compiler(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Sources that take no time, and where temporary folders are made."""
    sources, temporary = tmp_path / "sources", tmp_path / "temporary"
    sources.mkdir()
    temporary.mkdir()
    names = ("qvit_size_of_step", "qvit_run", "qvit_pack_weight")
    text = "\n".join(f'extern "C" long {name}() {{ return 7; }}' for name in names)
    (sources / "program.cpp").write_text(text)
    (sources / ".checkpoints").mkdir()  # an editor's
    monkeypatch.setattr(compiled_library, "SOURCES", sources)
    monkeypatch.setattr(compiled_library.tempfile, "tempdir", str(temporary))
    if machine.find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    return temporary


def test_a_cache_that_cannot_be_written(tmp_path, quick):
    (tmp_path / "file").touch()
    library = compiled_library.load(machine.find_compiler(), tmp_path / "file" / "cache")
    assert library.qvit_size_of_step() == 7
    assert not list(quick.iterdir())


def test_a_cache_that_others_write_to_is_not_run(tmp_path, quick):
    cache = tmp_path / "cache"
    planted = compiled_library._built(machine.find_compiler(), cache)
    assert cache.stat().st_mode & 0o077 == 0
    planted.write_text("not ours")
    cache.chmod(0o777)
    assert compiled_library.load(machine.find_compiler(), cache).qvit_size_of_step() == 7
    assert [path.read_text() for path in cache.iterdir()] == ["not ours"]


def test_a_user_without_a_home(quick, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiled_library.Path, "home", nowhere)
    assert compiled_library.load(machine.find_compiler()).qvit_size_of_step() == 7


def test_nowhere_to_build(tmp_path, quick, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(compiled_library.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(CompiledLibraryError, match="nowhere to build it"):
        compiled_library.load(machine.find_compiler(), tmp_path / "file" / "cache")


def test_a_compiler_that_cannot_be_run(tmp_path):
    with pytest.raises(CompiledLibraryError, match="cannot be run"):
        compiled_library.load(str(tmp_path / "none"), tmp_path)


def test_builds_at_once_leave_one(tmp_path, quick):
    with ThreadPoolExecutor(2) as pool:
        builds = [
            pool.submit(compiled_library._built, machine.find_compiler(), tmp_path / "cache")
            for _ in range(2)
        ]
    assert builds[0].result() == builds[1].result()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [builds[0].result().name]


def test_a_cached_file_that_is_no_library(tmp_path, compiled_path, compiled_cache):
    (built,) = compiled_cache.glob("*.so")
    compiled_library.unload()
    (tmp_path / built.name).write_text("not a library")
    with pytest.raises(CompiledLibraryError, match="cannot be loaded"):
        compiled_library.load(machine.find_compiler(), tmp_path)
