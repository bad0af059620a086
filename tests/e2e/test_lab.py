#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab itself: separate hosts, links, partitions, loss, power, disks, and no leftovers."""

import os
import socket
import subprocess
import sys
import time

import common
from common import Lab, check, check_equal, wait_for

LISTEN = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 9))
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data, peer)
"""
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(float(sys.argv[3]))
got = 0
for i in range(int(sys.argv[2])):
    try:
        s.sendto(str(i).encode(), (sys.argv[1], 9))
        got += bool(s.recv(100))
    except OSError:
        pass
print(got)
"""


def listen(host):
    host.spawn(["python3", "-I", "-c", LISTEN])


def answered(source, target, count=3, patience=0.3):
    argv = ["python3", "-I", "-c", ASK, target.addr, str(count), str(patience)]
    out = source.run(argv).stdout
    return int(out)


def reaches(source, target):
    return answered(source, target) > 0


def will_reach(source, target):
    """An answer may be late: whoever gives it may have to wait for a processor."""
    return wait_for(lambda: reaches(source, target), 30, f"{target.name} from {source.name}")


def test_separate(lab):
    """Each host has its own name, id, files, processes and users."""
    one, two = lab[1], lab[2]
    check_equal(one.run(["hostname"]).stdout.strip(), "host1", "a host has its own name")
    check(one.run(["cat", "/etc/machine-id"]).stdout != two.run(["cat", "/etc/machine-id"]).stdout,
          "a host has its own machine-id")
    one.run(["sh", "-c", "echo hello >/etc/lab-file; echo hi >~/mine"])
    check(two.run(["test", "-e", "/etc/lab-file"], check=False).returncode != 0,
          "a file written on one host does not exist on another")
    check_equal(one.read("/etc/lab-file"), b"hello\n", "the harness reads a host's file")
    check_equal(two.run(["id", "-u"], user="alice").stdout, "2001\n", "alice is a user")
    two.run(["sh", "-c", "echo hers >~/hers"], user="alice")
    check_equal(two.read("/home/alice/hers"), b"hers\n", "alice owns her home")
    elsewhere = two.run(["sh", "-c", "echo no >/etc/no || echo no >/usr/no"], user="alice",
                        check=False)
    check(elsewhere.returncode != 0, "alice cannot write elsewhere")
    one.spawn(["sleep", "4711"])
    wait_for(lambda: lab.where("sleep 4711"), 3, "the process")
    check_equal([host.name for host in lab.where("sleep 4711")], ["host1"],
                "the harness says where a process runs")
    check("4711" not in two.run(["ps", "ax"]).stdout, "hosts do not see each other's processes")
    check_equal(two.run(["cat", "/proc/self/cgroup"]).stdout.splitlines()[-1], "0::/",
                "a host's cgroup is its root")
    two.run(["sh", "-c", "mkdir /sys/fs/cgroup/a && echo 0 >/sys/fs/cgroup/a/cgroup.procs"])


def test_links(lab):
    """Links are cut and mended, hosts partitioned, packets lost."""
    one, two, three = lab.hosts[:3]
    for host in lab.hosts:
        listen(host)
    for source in lab.hosts:
        wait_for(lambda at=source: all(reaches(at, host) for host in lab.hosts), 5, "the network")
    lab.cut(two)
    check(not reaches(one, two) and will_reach(one, three), "a cut link separates one host")
    lab.mend(two)
    wait_for(lambda: reaches(one, two), 5, "the mended link")
    lab.partition([one, two])
    check(will_reach(one, two) and not reaches(one, three) and not reaches(three, two),
          "a partition separates groups")
    check(will_reach(three, lab[4]), "hosts named in no group form one")
    lab.partition()
    check(will_reach(one, three), "a healed partition")
    lab.lose(50)
    check(8 <= answered(one, two, 100, 0.3) <= 50,
          "50 % of packets lost: about a quarter of echoes")
    lab.lose(0)
    check_equal(answered(one, two, 50, 10), 50, "no loss again")


def test_power(lab):
    """A power cut ends every process of a host; its disk is kept or wiped."""
    one, four = lab[1], lab[4]
    four.run(["sh", "-c", "echo kept >/root/kept; echo kept >/var/lib/decamp/kept; echo >/run/x"])
    four.spawn(["unshare", "--pid", "--fork", "--mount-proc", "sleep", "4712"])
    wait_for(lambda: lab.where("sleep 4712"), 3, "the process")
    four.power_cut()
    check(not lab.where("sleep 4712"), "no process survives, not even in a nested namespace")
    check(not reaches(one, four), "the host is silent")
    check_equal(four.read("/root/kept"), b"kept\n", "the harness reads the disk of a dead host")
    four.boot()
    check_equal(four.read("/root/kept"), b"kept\n", "the disk is kept")
    check_equal(four.read("/var/lib/decamp/kept"), b"kept\n", "the state directory is kept")
    check(not four.path("/run/x").exists(), "/run is empty after a boot")
    listen(four)
    wait_for(lambda: reaches(one, four), 5, "the network of the booted host")
    four.power_cut()
    four.boot(wipe=True)
    check(not four.path("/root/kept").exists() and not four.path("/var/lib/decamp/kept").exists(),
          "a wiped disk is empty")
    check_equal(four.run(["id", "-u"], user="alice").stdout, "2001\n", "a wiped host has its users")


def test_leak_check(_lab):
    """The leak check finds a process that a lab lost."""
    lab = Lab(1, "test_lab_leak")
    with lab:
        lost = subprocess.Popen(lab[1].argv(["sleep", "4713"])[-2:],
                                env={"DECAMP_LAB": lab.id, "PATH": "/usr/bin:/bin"})
    try:
        lab.assert_clean(1)
    except common.LabError as error:
        check("sleep 4713" in str(error), "a lost process is named")
    else:
        raise common.Failed("a lost process was not found")
    finally:
        lost.kill()
        lost.wait()
    lab.assert_clean()


def test_killed_harness(_lab):
    """When the harness is killed, its hosts die at once and the next lab removes the rest."""
    code = ("import sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1])\n"
            "from lab import Lab\n"
            "with Lab(2, 'test_lab_killed') as lab:\n"
            "    lab[1].spawn(['sleep', '4714'])\n"
            "    print(lab.id, *(host.pid for host in lab.hosts), flush=True)\n"
            "    sys.stdin.read()\n")
    harness = subprocess.Popen([sys.executable, "-c", code, str(common.ROOT / "tests/lab")],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    lab_id, *pids = harness.stdout.readline().split()
    harness.kill()
    harness.wait()
    for pipe in (harness.stdin, harness.stdout):
        pipe.close()
    wait_for(lambda: not any(common.command_of(pid) for pid in pids), 5, "the end of its hosts")
    with Lab(1, "test_lab_killed") as lab:
        pass
    lab.assert_clean()
    # Killed is not ended yet; and a lab beside this one may have begun to sweep it.
    wait_for(lambda: not common.traces.traces(lab_id), 30, f"the end of all of {lab_id}")
    check(True, "nothing is left of a lab whose harness was killed")


def test_half_made(_lab):
    """A lab that is being made, or removed, is not taken for that of a harness that was killed."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    folders = [common.traces.base_root() / f"{common.traces.PREFIX}{pid}-half"
               for pid in (os.getpid(), ended.pid)]
    for folder in folders:
        folder.mkdir()
    common.traces.sweep_orphans()
    left = [folder.exists() for folder in folders]
    for folder, there in zip(folders, left):
        if there:
            folder.rmdir()
    check_equal(left, [True, False], "only the one of a process that has ended is swept")


def test_cgroups_go(lab):
    """Processes are found while cgroups come and go."""
    host = lab[1]
    host.spawn(["sleep", "4715"])
    churn = host.spawn(["sh", "-c", "cd /sys/fs/cgroup && while :; do mkdir -p c/d; rmdir c/d c; done"])
    end, asked = time.monotonic() + 3, 0
    while time.monotonic() < end:
        asked += 1
        if len(host.pids("sleep 4715")) != 1:
            raise common.Failed("the process was not found")
    churn.kill()
    check(asked > 0, f"asked {asked} times")


def test_machine_untouched(_lab):
    """The machine's own network has no link of the lab."""
    names = [name for _, name in socket.if_nameindex()]
    check(not any(name.startswith(("port", "br0")) for name in names), "no link of the lab")


if __name__ == "__main__":
    common.main(globals(), cluster=False)
