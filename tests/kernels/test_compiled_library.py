"""How the compiled path comes to be: built once, kept, and refused in words."""

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


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CompiledLibraryError, match="cannot be written"):
        compiled_library.load(machine.find_compiler(), tmp_path / "file" / "cache")


def test_a_cached_file_that_is_no_library(tmp_path, compiled_path, compiled_cache):
    (built,) = compiled_cache.glob("*.so")
    compiled_library.unload()
    (tmp_path / built.name).write_text("not a library")
    with pytest.raises(CompiledLibraryError, match="cannot be loaded"):
        compiled_library.load(machine.find_compiler(), tmp_path)
