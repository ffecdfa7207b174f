"""What this machine is: processor, memory, packages, and its name."""

import platform
import subprocess

import pytest

from qvit import machine


def test_the_processor_is_described(tmp_path):
    listing = tmp_path / "cpuinfo"
    listing.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\nflags\t\t: fpu avx2 avx512_vnni\n"
    )
    found = machine.describe_cpu(listing)
    assert (found["name"], found["features"]) == ("Some CPU @ 3 GHz", ["avx2", "avx512_vnni"])
    assert found["cores"] >= 1
    assert machine.describe_cpu(tmp_path / "none")["features"] == []


def test_memory_is_what_a_container_or_a_batch_system_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_bytes", lambda: 64 << 30)
    groups, own = tmp_path / "groups", tmp_path / "own"
    assert machine.usable_memory(groups, own) == 64 << 30
    for room in ("job/step", "memory/job"):
        (groups / room).mkdir(parents=True)
    own.write_text("5:cpu:/job/step\n0::/job/step\n")
    (groups / "job/step/memory.max").write_text("max\n")
    assert machine.usable_memory(groups, own) == 64 << 30
    (groups / "job/memory.max").write_text(f"{8 << 30}\n")  # of the group above
    assert machine.usable_memory(groups, own) == 8 << 30
    own.write_text("4:hugetlb,memory:/host/path\n")  # the first version; the path is the host's
    (groups / "memory/memory.limit_in_bytes").write_text(f"{4 << 30}\n")
    assert machine.usable_memory(groups, own) == 4 << 30


def test_missing_packages_are_reported():
    found = machine.package_versions(("torch", "no-such-distribution"))
    assert found["torch"]
    assert found["no-such-distribution"] is None


def test_a_machine_is_named_by_what_int8_depends_on(monkeypatch):
    def describe(**facts):
        monkeypatch.setattr(
            machine, "describe_cpu", lambda: {"name": "AMD EPYC (tm)", "cores": 2} | facts
        )
        monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
        return machine.name_machine()

    assert describe(features=["avx2", "avx512_vnni"]) == "amd-epyc-tm-2-cores"
    assert describe(features=["avx2"]) == "amd-epyc-tm-2-cores-without-vnni"


def test_no_driver_says_nothing_of_cards(monkeypatch):
    monkeypatch.setattr(
        machine.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(OSError())
    )
    assert machine.describe_card() is None


def test_a_card_is_described_as_its_driver_does(monkeypatch):
    answer = (
        "NVIDIA H200, 9.0, 143771 MiB, 1980 MHz, 3201 MHz, 700.00 W, Enabled, Enabled, 580.95\n"
    )
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(machine.subprocess, "run", run)
    found = machine.describe_card(1)
    assert found is not None
    assert asked[0][-2:] == ["-i", "1"]
    assert (found["name"], found["sm"], found["driver"]) == ("NVIDIA H200", "9.0", "580.95")
    assert (found["clock_sm"], found["ecc"]) == ("1980 MHz", "Enabled")


def test_the_commit_is_that_of_the_checkout(monkeypatch, tmp_path):
    here = tmp_path / "clone"
    (here / "qvit").mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(here / "qvit" / "machine.py"))
    assert machine.source_commit() is None  # an installed package
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-C", str(here)]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"], ["tag", "v1"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert machine.source_commit() == head.stdout[:12]
    (here / "new").write_text("")
    subprocess.run([*git, "add", "new"], check=True)
    assert machine.source_commit() == f"{head.stdout[:12]}-dirty"


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert machine.cache_folder() == tmp_path / "qvit"


def resident_bytes():
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator than glibc's")
def test_freed_memory_goes_back():
    """Every other of 400 pieces, none of which is large enough for a mapping of its own."""
    pieces = [bytearray(b"x" * 100_000) for _ in range(400)]
    pieces = pieces[::2]
    before = resident_bytes()
    machine.release_memory()
    assert before - resident_bytes() > 15e6
    assert len(pieces) == 200
