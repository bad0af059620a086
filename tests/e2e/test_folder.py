#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writable folders: what is written on one host is in versions on others, whole, or not at all."""

import json
import os
import re
import secrets
import shutil
import signal
import time
from pathlib import Path

from common import (Skipped, check, check_equal, home_of, insist, main, make_folder, refused,
                    wait_for)
from test_export import ask
from test_promises import Sniffer, files_with

MIB = 1 << 20
FSYNC = 74  # x86-64


class Mount:
    """decamp mount of one user on one host, by the lab's own /dev/fuse."""

    def __init__(self, lab, host, user=None, env=None):
        self.lab, self.host, self.user = lab, host, user or lab.user
        self.point = f"{home_of(self.user)}/mnt"
        if not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"):
            raise Skipped("no /dev/fuse or no fusermount3")
        if not host.path(self.point).exists():
            make_folder(host, "mnt", self.user)
        if not os.stat("/dev/fuse").st_mode & 0o002:
            host.run(["sh", "-c", "test -e /var/lib/decamp/fuse || mknod -m 666 "
                      "/var/lib/decamp/fuse c 10 229; mountpoint -q /dev/fuse || "
                      "mount --bind /var/lib/decamp/fuse /dev/fuse"])
        with (lab.log_dir / f"{host.name}-mount.log").open("a") as log:
            self.process = host.spawn([lab.build / "decamp", "mount", "-f", self.point],
                                      user=self.user, env=env, stdout=log, stderr=log)
        wait_for(lambda: self.run("ls", f"{self.point}/folders", check=False).returncode == 0, 20,
                 "the mount")

    def run(self, *command, check=True, user=None, stdin=None):
        return self.host.run(command, user=user or self.user, check=check, stdin=stdin,
                             timeout=240)

    def sh(self, text, check=True):
        return self.run("sh", "-c", f"cd {self.point}/folders && {text}", check=check)

    def names(self, path=""):
        return sorted(self.sh(f"ls -A ./{path}").stdout.split())

    def end(self):
        self.run("fusermount3", "-u", self.point)
        wait_for(lambda: not self.process.running(), 40, "the end of decamp mount")

    def kill(self):
        self.process.kill(signal.SIGKILL)
        wait_for(lambda: not self.process.running(), 10, "the death of decamp mount")
        self.run("fusermount3", "-u", "-z", self.point, check=False)


def folder(lab, host, name, user=None):
    return insist(lambda: host.decamp("folder", name, user=user or lab.user))["folders"][0]


def versions(lab, host, name):
    return [one["seq"] for one in folder(lab, host, name)["versions"]]


def wait_version(lab, host, name, above, seconds=30):
    return wait_for(lambda: next((seq for seq in versions(lab, host, name)[:1] if seq > above),
                                 None), seconds, f"{name}: a version after {above}", 0.3)


def settled(lab, host, name, seconds=40):
    """Until nothing is open or waits to be sent: twice, as close(2) does not wait for the mount."""
    def quiet():
        work = folder(lab, host, name).get("work", {})
        return not work.get("dirty", True) and work.get("open") == 0

    def done():
        if not quiet():
            return False
        time.sleep(0.3)
        return quiet()
    wait_for(done, seconds, f"{name}: all is sent", 0.3)
    return versions(lab, host, name)[0]


def in_fsync(pid):
    """Does its main thread wait in fsync(2)?"""
    try:
        return Path(f"/proc/{pid}/syscall").read_text().startswith(f"{FSYNC} ")
    except OSError:
        return False


def test_write_and_read(lab):
    """Written on one host, read on another: contents, modes, links, odd names."""
    home, other = lab[1], lab[3]
    made = home.decamp("folder create", "thesis", "--every", "1", "--keep", "4", user=lab.user)
    check_equal(len(made["folder"]), 32, "a folder is made")
    text = home.run([lab.build / "decamp", "folder", "thesis"], user=lab.user).stdout
    check("thesis" in text and "VERSION" in text, "and listed for people")
    lab.home = mount = Mount(lab, home)
    check("thesis" in mount.names(), "it is in the mount")
    mount.sh("cd thesis && echo hello >a.txt && mkdir -p sub/deep && echo x >sub/deep/b && "
             "ln -s a.txt link && chmod 750 sub && printf '#!/bin/sh\n' >run && chmod 755 run")
    mount.sh("cd thesis && touch -- '-n' 'a b' 'q\"uote' \"new\nline\" \"$(printf 'x\\377y')\"")
    mount.sh("cd thesis && head -c 3000000 /dev/urandom >big && cp big sub/copy")
    seq = settled(lab, home, "thesis")
    lab.other = there = Mount(lab, other)
    wait_for(lambda: there.sh("readlink thesis", check=False).stdout.strip() == f"thesis@{seq}",
             30, f"thesis@{seq} elsewhere")
    check(True, "elsewhere its name leads to the newest version")
    sums = "cd thesis && find . -type f -print0 | sort -z | xargs -0 sha256sum -z | tr '\\0' '|'; "
    sums += "cd . && find . -type l -printf '%p %l|'; find . -mindepth 1 -type f -printf '%f %m|'"
    ours = mount.sh(sums).stdout.replace("\0", "")
    check_equal(sorted(there.sh(sums.replace("cd thesis", "cd thesis/.")).stdout.split("|")),
                sorted(ours.split("|")), "all of it is there, as it was written")
    check(there.sh("echo no >thesis/a.txt", check=False).returncode != 0,
          "and can only be read there")
    check(mount.sh(f"echo no >thesis@{seq}/a.txt", check=False).returncode != 0,
          "a version can only be read at home, too")
    for user in {"root", "bob"} - {lab.user}:
        check(mount.run("ls", mount.point, user=user, check=False).returncode != 0,
              f"{user} does not see the mount")
    listed = home.decamp("folder", user="bob")["folders"]
    check_equal(listed, [], "nor does another user see the folder")
    refused(lambda: other.decamp("folder delete", "thesis", user=lab.user), "host1")
    names = [job["name"] for job in home.decamp("ps", "-a", user=lab.user)["jobs"]]
    check("thesis" not in names, "and it is no job")
    for verb in ("show", "kill", "migrate", "ckpt", "why", "restore"):
        refused(lambda v=verb: home.decamp(v, made["folder"], user=lab.user), "no such job")


def test_versions(lab):
    """Older versions stay what they were; the oldest go."""
    mount, home = lab.home, lab[1]
    for number in range(6):
        before = versions(lab, home, "thesis")[0]
        mount.sh(f"echo {number} >thesis/a.txt")
        wait_version(lab, home, "thesis", before)
    kept = versions(lab, home, "thesis")
    check_equal(len(kept), 4, f"four are kept: {kept}")
    texts = [mount.sh(f"cat thesis@{seq}/a.txt").stdout.strip() for seq in kept]
    check_equal(texts, ["5", "4", "3", "2"], "each has its own text")
    there = [lab.other.sh(f"cat thesis@{seq}/a.txt").stdout.strip() for seq in kept]
    check_equal(there, texts, "so they have on another host")


def test_dedup(lab):
    """20 MiB, of which 1 MiB is put in front: little is sent."""
    mount, home = lab.home, lab[1]
    before = versions(lab, home, "thesis")[0]
    mount.sh("head -c 20971520 /dev/urandom >thesis/large")
    wait_version(lab, home, "thesis", before)
    seq = settled(lab, home, "thesis")
    log = lab.log_dir / f"{home.name}.log"
    mount.sh("head -c 1048576 /dev/urandom >/tmp/front && cat /tmp/front thesis/large >/tmp/both "
             "&& cp /tmp/both thesis/large && cmp /tmp/both thesis/large")
    wait_version(lab, home, "thesis", seq)
    seq = settled(lab, home, "thesis")
    line = [text for text in log.read_text().splitlines() if "thesis: version" in text][-1]
    sent = int(line.split("sent=")[1].split()[0])
    check(MIB <= sent < 4 * MIB, f"{sent} bytes are sent: {line}")
    check_equal(lab.other.sh(f"sha256sum <thesis@{seq}/large").stdout,
                mount.sh("sha256sum <thesis/large").stdout, "and it is the same file there")


def test_never_half(lab):
    """A file that is open for writing is in no version but as it was before; fsync asks for more."""
    mount, home = lab.home, lab[1]
    mount.sh("echo whole >thesis/state")
    first = settled(lab, home, "thesis")
    slow = home.spawn(["sh", "-c", f"cd {mount.point}/folders/thesis && exec 3>state && "
                       "echo half >&3 && until [ -e ~/go-on ]; do sleep 0.1; done; "
                       "echo done >&3"], user=lab.user)
    wait_for(lambda: mount.sh("cat thesis/state").stdout == "half\n", 20, "the writer")
    mount.sh("echo 1 >thesis/other")
    seq = wait_version(lab, home, "thesis", first)
    check_equal(mount.sh(f"cat thesis@{seq}/state; cat thesis@{seq}/other").stdout, "whole\n1\n",
                "the other file is new, this one as it was")
    mount.run("sh", "-c", ": >~/go-on")
    wait_for(lambda: not slow.running(), 20, "the writer's end")
    seq = wait_version(lab, home, "thesis", seq)
    check_equal(mount.sh(f"cat thesis@{seq}/state").stdout, "half\ndone\n", "closed, it is new")
    before = versions(lab, home, "thesis")[0]
    mount.run("python3", "-c", f"""
import os
fd = os.open('{mount.point}/folders/thesis/state', os.O_WRONLY | os.O_APPEND)
os.write(fd, b'synced\\n')
os.fsync(fd)
text = os.popen("{lab.build}/decamp folder thesis --json").read()
open('/tmp/listed', 'w').write(text)
""")
    listed = json.loads(mount.run("cat", "/tmp/listed").stdout)["folders"][0]["versions"][0]
    check(listed["seq"] > before and listed["sync"], "after fsync it is in a version")
    check_equal(mount.sh(f"cat thesis@{listed['seq']}/state").stdout, "half\ndone\nsynced\n",
                "as it stood then")


def test_many_syncs(lab):
    """fsync(2) by many at one time, and of a file that is being written: each ends, and is kept."""
    mount, home = lab.home, lab[1]
    mount.run("python3", "-c", f"""
import os, threading
failed = []
def sync(number):
    try:
        fd = os.open(f'{mount.point}/folders/thesis/sync{{number}}', os.O_WRONLY | os.O_CREAT)
        os.write(fd, b'%d,' % number)
        os.fsync(fd)
        os.close(fd)
    except OSError as error:
        failed.append(error)
threads = [threading.Thread(target=sync, args=(number,)) for number in range(12)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
""")
    newest = versions(lab, home, "thesis")[0]
    check_equal(mount.sh(f"cat thesis@{newest}/sync*").stdout,
                "".join(f"{number}," for number in sorted(range(12), key=str)),
                "all twelve are in the newest version")
    mount.run("python3", "-c", f"""
import os, threading
fd = os.open('{mount.point}/folders/thesis/sync', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ended = threading.Event()
def write():
    while not ended.is_set():
        os.write(fd, bytes(10000))
thread = threading.Thread(target=write)
thread.start()
try:
    [os.fsync(fd) for _ in range(5)]
finally:
    ended.set()
    thread.join()
""")
    check(True, "whoever writes waits, and fsync has its version each time")
    mount.sh("rm thesis/sync*")


def test_operations(lab):
    """Renames, removals, truncation, times; what a folder does not hold is refused."""
    mount = lab.home
    mount.sh("cd thesis && mv a.txt moved && rm -r sub && truncate -s 10 big && "
             "mkdir d && rmdir d && touch -d 2020-01-02T03:04:05Z moved")
    for command in ("mkfifo thesis/pipe", "ln thesis/moved thesis/hard", "chown 1:1 thesis/moved",
                    "mv thesis/moved thesis@1"):
        check(mount.sh(command, check=False).returncode != 0, f"refused: {command}")
    mount.sh("chmod 4755 thesis/run")
    check_equal(mount.sh("stat -c %a thesis/run").stdout.strip(), "755", "no set-id bits")
    check_equal(mount.sh("exec 3>thesis/gone && rm thesis/gone && echo x >&3 && ls -A thesis | "
                         "grep -c -e gone -e fuse_hidden", check=False).stdout.strip(), "0",
                "an open file that is removed is gone")
    seq = settled(lab, lab[1], "thesis")
    names = lab.other.names(f"thesis@{seq}")
    check("moved" in names and "sub" not in names and "a.txt" not in names, f"there: {names}")
    check_equal(lab.other.sh(f"stat -c '%Y %s' thesis@{seq}/moved thesis@{seq}/big").stdout.split(),
                ["1577934245", "2", mount.sh("stat -c %Y thesis/big").stdout.strip(), "10"],
                "with its time and its size")


def test_limits(lab):
    """What no version could hold is refused at once, and locks nobody out when it is there."""
    mount, home = lab.home, lab[1]
    deep, deeper = "/".join(["d"] * 98), "/".join(["d"] * 110)
    mount.sh(f"mkdir -p thesis/{deep} && mkdir -p thesis/e/f/g")
    check(mount.sh(f"mkdir -p thesis/{deeper}", check=False).returncode != 0, "refused: too deep")
    check(mount.sh(f"mv thesis/e thesis/{deep}/e", check=False).returncode != 0,
          "refused: what would be too deep by its move")
    mount.sh(f"mv thesis/e thesis/{deep}/../e && rm -r thesis/d")
    settled(lab, home, "thesis")
    ident = folder(lab, home, "thesis")["folder"]
    tree = f"{home_of(lab.user)}/.local/state/decamp/folders/{ident}/tree"
    mount.run("mkdir", "-p", f"{tree}/{deeper}")
    mount.end()
    lab.home = mount = Mount(lab, home)
    check("moved" in mount.names("thesis"), "with a path too deep it is mounted all the same")
    work = wait_for(lambda: (lambda work: work.get("problem") and work)(
        folder(lab, home, "thesis").get("work", {})), 20, "its status")
    check("deep" in work["problem"], f"and it is said: {work}")
    mount.sh("rm -r thesis/d")
    settled(lab, home, "thesis")


def test_power_marks(lab):
    """A file closed but not known to be on the disk, and then a cut: the version's stays."""
    mount, home = lab.home, lab[1]
    mount.sh("echo right >thesis/cut && echo right >thesis/killed")
    settled(lab, home, "thesis")
    mount.kill()
    ident = folder(lab, home, "thesis")["folder"]
    base = f"{home_of(lab.user)}/.local/state/decamp/folders/{ident}"
    mount.run("sh", "-c", f"cd {base} && : >tree/cut && echo new >tree/killed && "
              "boot=$(cat /proc/sys/kernel/random/boot_id) && "
              ": >writing/$(stat -c %i tree/cut).an-earlier-boot && "
              ": >writing/$(stat -c %i tree/killed).$boot")
    lab.home = mount = Mount(lab, home)
    seq = settled(lab, home, "thesis")
    check_equal(mount.sh(f"cat thesis@{seq}/cut thesis@{seq}/killed").stdout, "right\nnew\n",
                "what a cut may have emptied is not sent, what a killed mount left is")
    check_equal(folder(lab, home, "thesis")["work"]["interrupted"], 1, "and it is said")
    mount.sh("echo again >thesis/cut")
    seq = settled(lab, home, "thesis")
    check_equal(mount.sh(f"cat thesis@{seq}/cut").stdout, "again\n", "written anew, it is sent")
    left = mount.run("ls", f"{base}/writing").stdout
    check_equal(left, "", "no mark is left")


def test_raw_requests(lab):
    """What decamp(1) would never ask is refused, and leaves the newest version as it is."""
    home = lab[1]
    seq = settled(lab, home, "thesis")
    ident = folder(lab, home, "thesis")["folder"]
    manifest = folder(lab, home, "thesis")["versions"][0]["manifest"]
    for user in {"bob"} - {lab.user}:
        for verb in ("begin", "write", "add", "commit", "made", "delete"):
            more = {"write": {"bytes": ""}, "add": {"entries": []},
                    "made": {"stamp": "x"}}.get(verb, {})
            answer = ask(home, user, f"folder-{verb}", folder=ident, upload=1, **more)
            check_equal(answer["error"]["code"], "no-such-folder", f"another user: {verb}")
        answer = ask(home, user, "read", folder=ident, manifest=manifest, file=0, offset=0, size=1)
        check_equal(answer["error"]["code"], "no-such-folder", "nor does he read of it")
    entry = {"path": "x", "type": "file", "mode": 0o644, "size": 3, "bytes": "YWJj"}
    for wrong in ({"path": "../x"}, {"path": "/x"}, {"path": ""}, {"path": "a/../../x"},
                  {"path": None}, {"type": "device"}, {"size": -1}, {"size": 4}, {"size": 1 << 60},
                  {"bytes": "YW"}, {"bytes": "!!!!"},
                  {"chunks": 5, "content_size": 3}, {"chunks": 1 << 31, "content_size": 1 << 40},
                  {"type": "link"}, {"type": "link", "size": 0, "target": ""},
                  {"bytes": None, "fresh": 1}):
        upload = ask(home, lab.user, "folder-begin", folder=ident, base=seq)["upload"]
        answer = ask(home, lab.user, "folder-add", folder=ident, upload=upload,
                     entries=[dict(entry, **wrong)])
        check("error" in answer, f"refused: {str(wrong):.50}")
        answer = ask(home, lab.user, "folder-commit", folder=ident, upload=upload)
        check_equal(answer["error"]["code"], "try-again", "and that upload is over")
    upload, code = ask(home, lab.user, "folder-begin", folder=ident, base=seq)["upload"], None
    for part in range(300):
        links = [{"path": f"{part}-{i}", "type": "link", "target": "t" * 4000} for i in range(25)]
        answer = ask(home, lab.user, "folder-add", folder=ident, upload=upload, entries=links)
        code = answer.get("error", {}).get("code")
        if code:
            break
    check_equal((code, 100 < part < 200), ("too-many", True), f"names are bounded: part {part}")
    upload = ask(home, lab.user, "folder-begin", folder=ident, base=seq)["upload"]
    for body in ({"offset": 5, "bytes": "YWJj"}, {"bytes": "YWJj", "upload": 7}, {}):
        answer = ask(home, lab.user, "folder-write", **{"folder": ident, "upload": upload, **body})
        check("error" in answer, f"refused: write {body}")
    upload = ask(home, lab.user, "folder-begin", folder=ident, base=seq)["upload"]
    twice = ask(home, lab.user, "folder-add", folder=ident, upload=upload, entries=[entry, entry])
    check("error" in twice, "refused: a path twice")
    upload = ask(home, lab.user, "folder-begin", folder=ident, base=seq)["upload"]
    ask(home, lab.user, "folder-add", folder=ident, upload=upload,
        entries=[entry, dict(entry, path="x/y")])
    answer = ask(home, lab.user, "folder-commit", folder=ident, upload=upload)
    check("error" in answer, "refused: a file below a file")
    check_equal(versions(lab, home, "thesis")[0], seq, "no version came of all that")


def test_secrecy(lab):
    """No other host reads a folder: neither its files nor their names pass the wire or lie there."""
    mount, home = lab.home, lab[1]
    seq, marker = settled(lab, home, "thesis"), secrets.token_hex(16)
    sniffer = Sniffer(lab, marker.encode(), b"decamp-canary")
    home.run(["python3", "-c", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
              f".sendto(b'decamp-canary', ('{lab[2].addr}', 9))"])
    mount.sh(f"yes {marker} | head -c 50000 >thesis/{marker}")
    seq = wait_version(lab, home, "thesis", seq)
    size, (marked, canary) = sniffer.stop()
    check(canary > 0 and size > 0, f"the sniffer sees what passes: {size} bytes")
    check_equal(marked, 0, "the marker was not among it")
    for host in lab.hosts:
        check_equal(files_with(host.state_dir / "overlay", marker.encode()), [],
                    f"{host.name}: it is in none of the files of the network half")
    check(marker in lab.other.sh(f"cat thesis@{seq}/{marker}").stdout, "who may read it does")


def test_cut_off(lab):
    """The host is cut off: fsync fails and says so, writes go on, and all is sent afterwards."""
    mount, home = lab.home, lab[1]
    seq = settled(lab, home, "thesis")
    lab.cut(home)
    mount.sh("echo alone >thesis/alone")
    syncing = home.spawn(["python3", "-c", f"""
import os
fd = os.open('{mount.point}/folders/thesis/synced', os.O_WRONLY | os.O_CREAT)
os.write(fd, b'x')
try:
    os.fsync(fd)
except OSError as error:
    open('/tmp/refused', 'w').write(f'refused {{error.errno}}')
"""], user=lab.user)
    wait_for(lambda: any(in_fsync(pid) for pid in home.pids("/tmp/refused")), 20, "its fsync")
    mount.sh("cat thesis/alone && ls thesis && echo too >thesis/too")
    check(syncing.running(), "who does not ask for fsync does not wait for it")
    wait_for(lambda: not syncing.running(), 60, "the end of fsync")
    check_equal(home.read("/tmp/refused"), b"refused 5", "fsync does not promise what is not so")
    work = wait_for(lambda: (lambda work: work.get("dirty") and work.get("problem") and work)(
        folder(lab, home, "thesis").get("work", {})), 60, "word of it in its status")
    check(True, f"it is said: {work}")
    check_equal(mount.sh("cat thesis/alone").stdout, "alone\n", "writing goes on")
    lab.mend(home)
    wait_version(lab, home, "thesis", seq, 90)
    seq = settled(lab, home, "thesis")
    check_equal(mount.sh(f"cat thesis@{seq}/alone thesis@{seq}/synced").stdout, "alone\nx",
                "and then all of it is sent")


def test_two_copies(lab):
    """A second working copy that is behind does not undo what the first one sent."""
    mount, home = lab.home, lab[1]
    settled(lab, home, "thesis")
    mount.end()
    user_home = home_of(lab.user)
    home.run(["cp", "-a", f"{user_home}/.local/state", f"{user_home}/older"], user=lab.user)
    lab.home = mount = Mount(lab, home)
    seq = settled(lab, home, "thesis")
    mount.sh("echo newer >thesis/newer")
    seq = wait_version(lab, home, "thesis", seq)
    mount.end()
    ident = folder(lab, home, "thesis")["folder"]
    index = f"{user_home}/older/decamp/folders/{ident}/index"
    path = home.path(index)
    path.write_bytes(re.sub(rb'"copy":"[0-9a-f]*"', b'"copy":"' + 32 * b"0" + b'"',
                            path.read_bytes()))
    lab.home = mount = Mount(lab, home, env={"XDG_STATE_HOME": f"{user_home}/older"})
    mount.sh("echo behind >thesis/behind")
    time.sleep(4)
    check_equal(versions(lab, home, "thesis")[0], seq, "the older copy makes no version")
    check_equal(mount.sh(f"cat thesis@{seq}/newer thesis/behind").stdout, "newer\nbehind\n",
                "the newer file stays in the version, the other one in its copy")
    mount.end()
    lab.home = Mount(lab, home)


def test_lost_index(lab):
    """The index is lost while a file is open: it stays as it is in the newest version."""
    mount, home = lab.home, lab[1]
    mount.sh("echo kept >thesis/kept")
    settled(lab, home, "thesis")
    mount.end()
    ident = folder(lab, home, "thesis")["folder"]
    mount.run("rm", f"{home_of(lab.user)}/.local/state/decamp/folders/{ident}/index")
    lab.home = mount = Mount(lab, home)
    seq = versions(lab, home, "thesis")[0]
    slow = home.spawn(["sh", "-c", f"cd {mount.point}/folders/thesis && exec 3>kept && "
                       "until [ -e ~/close ]; do sleep 0.1; done"], user=lab.user)
    wait_for(lambda: mount.sh("cat thesis/kept").stdout == "", 20, "the writer")
    mount.sh("echo beside >thesis/beside")
    seq = wait_version(lab, home, "thesis", seq, 60)
    check_equal(mount.sh(f"cat thesis@{seq}/kept").stdout, "kept\n",
                "what is open stays as it was")
    mount.run("sh", "-c", ": >~/close")
    wait_for(lambda: not slow.running(), 20, "the writer's end")
    seq = settled(lab, home, "thesis")
    check_equal(mount.sh(f"cat thesis@{seq}/beside thesis@{seq}/kept").stdout, "beside\n",
                "closed, it is what it is")


def test_daemon_restart(lab):
    """decampd is killed: what is written meanwhile goes out afterwards, and nothing is lost."""
    mount, home = lab.home, lab[1]
    seq = settled(lab, home, "thesis")
    home.kill_daemon()
    time.sleep(2.5)  # what the mount and the kernel knew is out of date
    mount.sh("echo without >thesis/while")
    check_equal(mount.sh("cat thesis/while").stdout, "without\n", "without decampd it is written")
    time.sleep(3)
    home.start_daemon()
    home.wait_daemon()
    wait_for(lambda: folder(lab, home, "thesis")["state"] == "ready", 30, "the folder", 0.3)
    seq = wait_version(lab, home, "thesis", seq, 60)
    check_equal(mount.sh(f"cat thesis@{seq}/while").stdout, "without\n", "then it is in a version")
    check_equal(mount.sh(f"sha256sum <thesis@{seq}/large").stdout,
                mount.sh("sha256sum <thesis/large").stdout, "with all the rest")


def test_mount_killed(lab):
    """The mount is killed while a file is written: it is not sent half, and nothing is lost."""
    mount, home = lab.home, lab[1]
    mount.sh("echo good >thesis/precious")
    seq = settled(lab, home, "thesis")
    home.spawn(["sh", "-c", f"cd {mount.point}/folders/thesis && exec 3>precious && "
                "echo ha >&3 && sleep 600"], user=lab.user)
    wait_for(lambda: mount.sh("cat thesis/precious").stdout == "ha\n", 20, "the writer")
    mount.sh("echo closed >thesis/closed")
    ident = folder(lab, home, "thesis")["folder"]
    base = home.path(f"{home_of(lab.user)}/.local/state/decamp/folders/{ident}")
    # close(2) does not wait for the mount, which has a mark of each file that is open.
    only = [str((base / "tree/precious").stat().st_ino)]
    wait_for(lambda: [mark.name for mark in (base / "writing").iterdir() if "." not in mark.name]
             == only, 20, "the other file's close")
    mount.kill()
    lab.home = mount = Mount(lab, home)
    seq = settled(lab, home, "thesis")
    check_equal(mount.sh(f"cat thesis@{seq}/precious thesis@{seq}/closed").stdout,
                "good\nclosed\n", "the closed file is new, the other one as it was")
    check_equal(mount.sh("cat thesis/precious").stdout, "ha\n", "the working copy has it still")
    check_equal(folder(lab, home, "thesis")["work"]["interrupted"], 1, "and it is said")
    mount.sh(": >>thesis/precious")
    seq = settled(lab, home, "thesis")
    check_equal(mount.sh(f"cat thesis@{seq}/precious").stdout, "ha\n",
                "opened and closed, it is what its user wants")


def test_power(lab):
    """The host loses power in mid-write: its last version is whole elsewhere, and all goes on."""
    mount, home = lab.home, lab[1]
    mount.sh("seq 100000 >thesis/table")
    seq = settled(lab, home, "thesis")
    digest = mount.sh("sha256sum <thesis/table").stdout
    home.spawn(["sh", "-c", f"cd {mount.point}/folders/thesis && "
                "while :; do seq 100000 >table; done"], user=lab.user)
    time.sleep(2)
    home.power_cut()
    there = lab.other
    newest = wait_for(lambda: there.sh("readlink thesis", check=False).stdout.strip(), 30,
                      "its name")
    # While its death is noticed a request may fail; what is read is never another file.
    text = wait_for(lambda: there.sh("sha256sum <thesis/table", check=False).stdout, 30, "it")
    check_equal(text, digest, f"{newest}: whole, read while its host is off")
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    wait_for(lambda: folder(lab, home, "thesis")["state"] == "ready", 60, "the folder", 0.5)
    lab.home = mount = Mount(lab, home)
    mount.sh("seq 5 >thesis/table")
    seq = settled(lab, home, "thesis")
    check_equal(there.sh(f"cat thesis@{seq}/table").stdout.split(), list("12345"),
                "it is written again")


def test_drain_and_delete(lab):
    """A host is emptied: its folders stay. Deleted, a folder is gone everywhere, not its copy."""
    mount, home = lab.home, lab[1]
    home.decamp("vacate")
    seq = settled(lab, home, "thesis")
    mount.sh("echo drained >thesis/drained")
    seq = wait_version(lab, home, "thesis", seq)
    check(True, "a drained host goes on to keep its folder")
    home.decamp("vacate", "--undo")
    answer = home.decamp("folder delete", "thesis", user=lab.user)
    refused(lambda: home.decamp("folder", "thesis", user=lab.user), "no such folder")
    wait_for(lambda: lab.other.names() == [], 30, "its end on the other host", 0.5)
    wait_for(lambda: mount.sh("echo late >thesis/late", check=False).returncode != 0, 20,
             "the working copy is read-only")
    check_equal(mount.sh("cat thesis/drained").stdout, "drained\n", "and still there to be read")
    copy = f"{home_of(lab.user)}/.local/state/decamp/folders/{answer['folder']}/tree/drained"
    check(home.path(copy).exists(), "in its user's home")
    mount.end()
    lab.other.end()


if __name__ == "__main__":
    main(globals(), hosts=4)
