"""What a container, a service or a batch job may use: the smallest limit on the way to the root."""

import os

import pytest

from service.resources import available_cpus, available_memory

V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
CPU = r"33 31 0:29 {top} /sys/fs/cgroup/cpu\054cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
MEMORY = "35 31 0:32 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
OTHER = "24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"

MIB = 2**20


@pytest.fixture(autouse=True)
def _eight_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


@pytest.fixture
def machine(tmp_path):
    """Writes a root folder: the process' groups, mounts, and the files of the groups."""

    def write(groups, mounts, files):
        process = tmp_path / "proc" / "self"
        process.mkdir(parents=True)
        (process / "cgroup").write_text("\n".join(groups) + "\n")
        (process / "mountinfo").write_text("\n".join([OTHER, *mounts]) + "\n")
        for name, content in files.items():
            file = tmp_path / "sys" / "fs" / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1600000 100000", 8),
        ("0 100000", 8),
        ("400000", 8),
        ("", 8),
    ],
)
def test_a_container_of_version_2(machine, quota, expected):
    root = machine(["0::/"], [V2.format(top="/")], {"cpu.max": quota})
    assert available_cpus(root) == expected


@pytest.mark.parametrize("smallest", ["", "a.slice/", "a.slice/b.service/"])
def test_the_smallest_limit_on_the_way_counts_wherever_it_is(machine, smallest):
    files = {
        f"{group}{name}": value
        for group in ("", "a.slice/", "a.slice/b.service/")
        for name, value in (("cpu.max", "600000 100000"), ("memory.max", 900 * MIB))
    }
    files |= {f"{smallest}cpu.max": "200000 100000", f"{smallest}memory.max": 100 * MIB}
    files["other.slice/cpu.max"], files["other.slice/memory.max"] = "100000 100000", 1
    root = machine(["0::/a.slice/b.service"], [V2.format(top="/")], files)
    assert (available_cpus(root), available_memory(root)) == (2, 100 * MIB)


def test_files_that_the_root_of_version_2_lacks_are_no_limit(machine):
    files = {"a/b/cpu.max": "300000 100000", "a/memory.max": "max", "a/b/memory.max": 70 * MIB}
    root = machine(["0::/a/b"], [V2.format(top="/")], files)
    assert (available_cpus(root), available_memory(root)) == (3, 70 * MIB)


@pytest.mark.parametrize(
    ("group", "top", "folder"),
    [
        ("/", "/", ""),  # a container with a name space of its own
        ("/docker/1f", "/docker/1f", ""),  # one without: its own group is mounted at the top
        ("/docker/1f/job", "/docker/1f", "job/"),
        ("/../2e", "/", ""),  # moved out of what it can see
        ("/elsewhere", "/docker/1f", ""),
        ("/user.slice/job", "/", "user.slice/job/"),  # no container
        ("/user.slice/job", "/", "user.slice/"),
    ],
)
def test_version_1(machine, group, top, folder):
    files = {
        f"cpu,cpuacct/{folder}cpu.cfs_quota_us": "250000",
        f"cpu,cpuacct/{folder}cpu.cfs_period_us": "100000",
        f"memory/{folder}memory.limit_in_bytes": 300 * MIB,
    }
    groups = [f"12:cpu,cpuacct:{group}", f"9:memory:{group}", "1:name=systemd:/x", "0::/x"]
    mounts = [CPU.format(top=top), MEMORY.format(top=top), UNIFIED]
    root = machine(groups, mounts, files)
    assert (available_cpus(root), available_memory(root)) == (2, 300 * MIB)


def test_version_1_without_limits(machine):
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": 2**63 - 4096,
    }
    root = machine(
        ["12:cpu,cpuacct:/", "9:memory:/"], [CPU.format(top="/"), MEMORY.format(top="/")], files
    )
    assert available_cpus(root) == 8
    assert available_memory(root) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_one_version_for_processors_and_the_other_for_memory(machine):
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "300000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "unified/box/memory.max": 50 * MIB,
    }
    root = machine(["12:cpu,cpuacct:/", "0::/box"], [CPU.format(top="/"), UNIFIED], files)
    assert (available_cpus(root), available_memory(root)) == (3, 50 * MIB)


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c", "\u00a0", "\\040"])
def test_names_may_hold_what_looks_like_the_end_of_a_line_or_a_field(machine, odd):
    """Of groups, and of whatever else is mounted; the kernel escapes only ASCII's blanks."""
    disk = f"25 24 8:2 / /media/my{odd}disk rw - ext4 /dev/sdb1 rw"
    group = f"a{odd.replace(chr(92) + '040', ' ')}b"
    files = {f"{group}/cpu.max": "300000 100000"}
    root = machine([f"0::/{group}"], [disk, V2.format(top="/")], files)
    assert available_cpus(root) == 3


def test_where_there_are_no_groups_the_machine_counts(tmp_path):
    assert available_cpus(tmp_path) == 8
    assert available_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_on_this_very_machine():
    assert 1 <= available_cpus() <= 8
    assert 16 * MIB < available_memory() < 2**60
