#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What users see of checkpoints: cores that gdb opens, the job's files, CRIU's images."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from common import (ROOT, CliError, Skipped, check, check_equal, damage_store, home_of, main,
                    make_folder, note, refused, submit, wait_for)

NUMBER = "0x1122334455667788"


def watched(lab, host, name, *options):
    folder = make_folder(host, name, lab.user)
    subprocess.run(["gcc", "-g", "-O1", "-pthread", "-o", host.path(folder) / "watched",
                    ROOT / "tests/e2e/watched.c"], check=True)
    job = submit(lab, host, name, [f"{folder}/watched", folder], *options, cwd=folder)
    job.marker = f"{folder}/watched"
    wait_for(lambda: in_place(host.pids(job.marker)), 30, f"{name}: all threads in their places")
    return job


def threads_of(pid):
    """What /proc/PID/stat says of each thread, from the state on."""
    return {int(task.name): (task / "stat").read_text().rsplit(")", 1)[1].split()
            for task in Path(f"/proc/{pid}/task").iterdir()}


def in_place(pids):
    """Two processes; of the first all threads are where they stay: three sleep, one spins."""
    try:
        child, parent = sorted((threads_of(pid) for pid in pids), key=len)
        main_pid = next(pid for pid in pids if pid in parent)
        written = Path(f"/proc/{main_pid}/cwd/out.txt").stat().st_size
    except (OSError, ValueError):
        return False
    others = [fields for tid, fields in parent.items() if tid != main_pid]
    return len(child) == 1 and [fields[0] for fields in child.values()] == ["S"] and written \
        and sorted(fields[0] for fields in others) == ["R", "S", "S", "S"] \
        and any(fields[0] == "R" and int(fields[11]) for fields in others)


def export(host, lab, *arguments, user=None):
    return host.decamp("export", *arguments, user=user or lab.user)


def gdb(host, lab, program, core, *commands):
    argv = ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off",
            "-iex", "set auto-load no"]
    for command in commands:
        argv += ["-ex", command]
    done = host.run([*argv, program, core], user=lab.user, check=False)
    return done.stdout + done.stderr


CRIT = """\
import sys
from pycriu import images
for name in sys.argv[1:]:
    assert images.load(open(name, "rb"), no_payload=True)["entries"] is not None
print(len(sys.argv) - 1)
"""


ASK = """\
import http.client, socket, sys
c = http.client.HTTPConnection("localhost")
c.sock = socket.socket(socket.AF_UNIX)
c.sock.connect("/run/decamp/control.sock")
c.request("POST", "/v1/" + sys.argv[1], sys.argv[2])
sys.stdout.buffer.write(c.getresponse().read())
"""


def ask(host, user, verb, **request):
    """A request as any program of that user could make it."""
    done = host.run(["/usr/bin/python3", "-c", ASK, verb, json.dumps(request)], user=user)
    return json.loads(done.stdout)


def read_refused(host, user, seen, index):
    """What a read of 4 bytes of a file of a checkpoint is refused with."""
    return ask(host, user, "read", job=seen["job"], manifest=seen["manifest"], file=index,
               offset=0, size=4)["error"]


def find_crit():
    """Where the library behind CRIU's own reader of images is, or None."""
    for tree in sorted(Path("/var/cache/decamp").glob("zdtm-*"), reverse=True):
        if (tree / "lib/pycriu/images/pagemap_pb2.py").exists():
            return tree / "lib"
    return None


def value(text, name):
    found = re.search(r"^\$\d+ = (.*)$", text, re.M)
    if not found:
        raise AssertionError(f"{name}: gdb says: {text[-2000:]}")
    return found[1]


def last_line(data):
    return int(data.decode().split()[-1])


def test_core(lab):
    """A core of an older checkpoint, made on another host, holds that moment: threads, registers,
    memory of every kind."""
    home, other = lab[1], lab[3]
    job = watched(lab, home, "watched", "--every", "3600")
    seq = job.ask("ckpt", job.name)["seq"]
    later = job.ask("ckpt", job.name)["seq"]
    check(later > seq, f"checkpoints {seq} and {later}")
    folder = make_folder(other, "looking", lab.user)
    program = f"{folder}/watched"
    shutil.copy2(home.path(f"{home_of(lab.user)}/watched/watched"), other.path(program))
    told = export(other, lab, f"{job.name}@{seq}", "--core", f"{folder}/old.core")
    check_equal(told["cores"][0]["threads"], 5, "the root process has five threads")
    export(other, lab, job.name, "--core", f"{folder}/new.core")
    files = export(other, lab, f"{job.name}@{seq}", "--files", f"{folder}/files")
    check(files["files"] >= 2, f"its files: {files}")
    path = other.path(f"{folder}/old.core")
    check_equal(path.stat().st_mode & 0o777, 0o600, "only its owner may read the core")
    check(path.stat().st_blocks * 512 < 80 << 20, "and it is no larger than the pages")
    check(not path.with_suffix(".core.part").exists(), "nothing is left beside it")

    old, new = f"{folder}/old.core", f"{folder}/new.core"
    if not os.access("/usr/bin/gdb", os.X_OK):
        raise Skipped("gdb is not installed")
    step = int(value(gdb(other, lab, program, old, "p step"), "step"))
    out = other.path(f"{folder}/files{home_of(lab.user)}/watched/out.txt").read_bytes()
    check(step - last_line(out) in (0, 1),
          f"step is that of the checkpoint, as its file is: {step}, {last_line(out)}")
    check(int(value(gdb(other, lab, program, new, "p step"), "step")) > step,
          "and the newer core's is larger")
    threads = gdb(other, lab, program, old, "thread apply all bt")
    check_equal(len(re.findall(r"^Thread \d+ ", threads, re.M)), 5, "gdb sees five threads")
    check_equal(len(re.findall(r"\bwait_here \(", threads)), 3, "three of them wait where they did")
    check("spin_here (" in threads and "main (" in threads, "the others are where they were")
    registers = gdb(other, lab, program, old, "thread apply all p/x $r15",
                    "thread apply all p/x $ymm15.v4_int64", "thread apply all p/x $xmm15.v2_int64")
    check(f"= {NUMBER}\n" in registers, "a general register has its number")
    check(f"{{{NUMBER}" in registers, "a vector register too")
    if "avx2" in open("/proc/cpuinfo", encoding="ascii").read():
        check(f"{{{NUMBER}, {NUMBER}, {NUMBER}, {NUMBER}}}" in registers
              or f"{{{NUMBER} <repeats 4 times>}}" in registers, "in its upper half, too")
    expected = (
        ("banner", '"a text that is known"'), ("role", "1"),
        ("heap[5000000]", f"{(5000000 * 7 + (5000000 >> 12)) & 255} "), ("heap[20000000]", "0 "),
        ("shared[8193]", "90 "), ("shared[100]", "0 "), ("file_map[5*4096]", "195 "),
        ("constant", '"never written"'))
    text = gdb(other, lab, program, old, *(f"p {expression}" for expression, _ in expected))
    found = re.findall(r"^\$\d+ = (.*)$", text, re.M)
    check_equal(len(found), len(expected), "gdb evaluates all expressions")
    for (expression, start), shown in zip(expected, found):
        check(shown.startswith(start), f"{expression} = {shown}")
    lab.watched = (job, seq, folder)


def test_self_contained(lab):
    """With --mapped-files the core needs no file beside it; in a folder: one for each process."""
    job, seq, folder = lab.watched
    other = lab[3]
    os.mkdir(other.path(f"{folder}/all"), 0o755)
    os.chown(other.path(f"{folder}/all"), *[other.path(folder).stat().st_uid] * 2)
    told = export(other, lab, f"{job.name}@{seq}", "--mapped-files", "--core", f"{folder}/all")
    check_equal(len(told["cores"]), 2, f"two processes: {[c['pid'] for c in told['cores']]}")
    if not os.access("/usr/bin/gdb", os.X_OK):
        raise Skipped("gdb is not installed")
    program = f"{folder}/watched"
    roles = [value(gdb(other, lab, program, core["path"], "p role"), "role")
             for core in told["cores"]]
    check_equal(roles, ["1", "2"], "each with its own memory")
    big = told["cores"][0]["path"]
    text = gdb(other, lab, program, big, "p file_map[7*4096]", "p constant")
    check(re.search(r"= 7 ", text) and "never written" in text,
          "an unchanged page of a mapped file is in it")
    one = export(other, lab, f"{job.name}@{seq}", "--pid", str(told["cores"][1]["pid"]),
                 "--core", f"{folder}/child.core")
    check_equal(one["cores"][0]["threads"], 1, "a chosen process")


def test_images(lab):
    """CRIU's own tool reads the images; what comes out is what the cores were made of."""
    job, seq, folder = lab.watched
    other = lab[3]
    told = export(other, lab, f"{job.name}@{seq}", "--images", f"{folder}/images")
    names = sorted(path.name for path in other.path(f"{folder}/images").iterdir())
    check("pstree.img" in names and "pages-1.img" in names, f"{told['files']} images")
    library = find_crit()
    if not library:
        note("no pycriu here (scripts/zdtm brings it): only magic numbers are checked")
        magic = other.path(f"{folder}/images/pstree.img").read_bytes()[:8]
        check_equal(magic.hex(), "1943565430302750", "the magic numbers of pstree.img")
        return
    images = [other.path(f"{folder}/images/{name}") for name in names
              if name.endswith(".img") and not name.startswith("pages-")]
    read = subprocess.run(["/usr/bin/python3", "-c", CRIT, *images], check=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(library)}, stdout=subprocess.PIPE)
    check_equal(int(read.stdout), len(images), "crit's library decodes them")


def test_mount(lab):
    """Mounted: the same files, fetched when they are read, seen by the one who mounted only."""
    job, seq, folder = lab.watched
    other = lab[3]
    if not os.path.exists("/dev/fuse") or not shutil.which("fusermount3"):
        raise Skipped("no /dev/fuse or no fusermount3")
    point = make_folder(other, "ckpts", lab.user)
    if not os.stat("/dev/fuse").st_mode & 0o002:
        # Without udev nobody gave the device its usual rights; one of the lab's own has them.
        other.run(["mknod", "-m", "666", "/var/lib/decamp/fuse", "c", "10", "229"])
        other.run(["mount", "--bind", "/var/lib/decamp/fuse", "/dev/fuse"])
    mounted = other.spawn([lab.build / "decamp", "mount", "-f", point], user=lab.user)

    def run(*command, user=lab.user, check=True):
        return other.run(command, user=user, check=check)
    wait_for(lambda: job.name in run("ls", point).stdout.split(), 15, "the mount")
    names = run("ls", f"{point}/{job.name}").stdout.split()
    check(str(seq) in names and "latest" in names, f"kept checkpoints: {names}")
    here = f"{point}/{job.name}/{seq}"
    names = run("ls", here).stdout.split()
    check({"core", "core.1001", "files", "images", "log"} <= set(names), f"in one: {names}")
    run("cmp", f"{here}/core", f"{folder}/old.core")
    check(True, "the core is byte by byte the exported one")
    run("diff", "-r", f"{here}/images", f"{folder}/images")
    check(True, "so are all images")
    run("diff", "-r", f"{here}/files", f"{folder}/files")
    check(True, "and all files")
    step = int(value(gdb(other, lab, f"{folder}/watched", f"{here}/core", "p step"), "step"))
    check(step > 0, f"gdb reads it in place: step = {step}")
    for command in (["touch", f"{here}/new"], ["rm", f"{here}/core"],
                    ["sh", "-c", f"echo >{here}/files/x"]):
        check(run(*command, check=False).returncode != 0, f"{command[0]}: it is read-only")
    for user in {"root", "bob"} - {lab.user}:
        check(run("ls", f"{point}/{job.name}", user=user, check=False).returncode != 0,
              f"{user} does not see it")
    before = job.ask("ckpt", job.name)["seq"]
    wait_for(lambda: str(before) in run("ls", f"{point}/{job.name}").stdout.split(), 10,
             "the next checkpoint")
    check_equal(run("readlink", f"{point}/{job.name}/latest").stdout.strip(), str(before),
                "a new checkpoint appears, and is the latest")
    other.restart_daemon()
    lab.wait_members()
    run("cmp", f"{here}/core", f"{folder}/old.core")
    check(True, "after a restart of decampd it reads on")
    run("fusermount3", "-u", point)
    wait_for(lambda: not mounted.running(), 10, "the end of decamp mount")


def test_refusals(lab):
    """Others get nothing, a file that is there stays, and errors say what to do."""
    job, seq, folder = lab.watched
    other = lab[3]
    full = job.show()["job"]
    for name in (job.name, full):
        text = refused(lambda n=name: other.decamp("export", n, "--core", "/home/bob/x",
                                                   user="bob"))
        check("no such job" in text or "another user" in text, f"bob: {text[:100]}")
    check(not other.path("/home/bob/x").exists(), "nothing was written")
    ours = other.path(f"{folder}/old.core").stat()
    refused(lambda: export(other, lab, job.name, "--core", f"{folder}/old.core"), "exists")
    check_equal(other.path(f"{folder}/old.core").stat().st_mtime_ns, ours.st_mtime_ns,
                "an older core is not overwritten")
    refused(lambda: export(other, lab, job.name, "--files", f"{folder}/files"), "not empty")
    refused(lambda: export(other, lab, f"{job.name}@{seq + 999}", "--core", f"{folder}/z"),
            "not kept", str(seq))
    refused(lambda: export(other, lab, job.name, "--pid", "4000000", "--core", f"{folder}/z"),
            "no process 4000000")
    try:
        export(other, lab, job.name)
        check(False, "nothing to do")
    except CliError as error:
        check_equal(error.code, 2, "without a word of what to export: wrong usage")


def test_raw_requests(lab):
    """What decamp(1) would never ask: others get no byte of a checkpoint that its user has open."""
    job = lab.watched[0]
    other = lab[3]
    seen = ask(other, lab.user, "snapshot", job=job.name)
    images = [f for f in seen["files"] if f["kind"] == "image"]
    check(len(images) > 5, f"its user sees {len(images)} images")
    size = images[0]["size"]
    for index in (0, images[0]["file"], 1 << 19):
        error = read_refused(other, "bob", seen, index)
        check("belongs to another user" in error["reason"], f"bob, file {index}: {error}")
    check_equal(ask(other, lab.user, "read", job=seen["job"], manifest=seen["manifest"],
                    file=images[0]["file"], offset=size - 2, size=4)["error"]["code"],
                "bad-request", "nothing beyond a file's end")
    check_equal(read_refused(other, lab.user, seen, 1 << 19)["code"], "bad-request",
                "no file that is not there")


def test_many(lab):
    """More checkpoints than may be open: those that nobody reads give way."""
    job = lab.watched[0]
    for _ in range(18):
        seq = job.ask("ckpt", job.name)["seq"]
        wait_for(lambda n=seq: n == ask(lab[3], lab.user, "snapshot", job=job.name,
                                        seq=n).get("seq"), 30, f"a look into {seq}")
        check(True, f"{seq} can be looked into")


def test_not_dumpable(lab):
    """A process that its user may not read: the kernel gives him no core of it, nor does decamp."""
    home = lab[2]
    if lab.user == "root":
        raise Skipped("jobs run as root here, who may read everything")
    folder = make_folder(home, "secret", lab.user)
    path = home.path(folder) / "nap"
    shutil.copy2("/bin/sleep", path)
    path.chmod(0o111)
    job = submit(lab, home, "secret", [f"{folder}/nap", "1000"], "--every", "3600", cwd=folder)
    seq = job.ask("ckpt", job.name)["seq"]
    for what in ("--core", "--images"):
        refused(lambda w=what: export(home, lab, f"{job.name}@{seq}", w, f"{folder}/x"),
                "only root")
    check(not home.path(f"{folder}/x").exists(), "its user gets neither core nor images")
    export(home, lab, f"{job.name}@{seq}", "--files", f"{folder}/files")
    check(True, "but its files")
    seen = ask(home, "root", "snapshot", job=job.show()["job"], seq=seq)
    images = [f["file"] for f in seen["files"] if f["kind"] == "image"]
    codes = {read_refused(home, lab.user, seen, index)["code"] for index in images}
    check(len(images) > 3 and codes == {"not-permitted"}, f"and no image by its number: {codes}")
    told = export(home, lab, f"{job.name}@{seq}", "--core", "/root/x", user="root")
    check_equal(told["cores"][0]["threads"], 1, "root gets the core")
    job.kill()


def test_criu_engine(lab):
    """Images that CRIU wrote make cores as well."""
    if not os.access("/usr/bin/gdb", os.X_OK):
        raise Skipped("gdb is not installed")
    home = lab[2]
    home.configure(engine="criu")
    home.restart_daemon()
    lab.wait_members()
    job = watched(lab, home, "bycriu", "--every", "3600")
    job.ask("ckpt", job.name)
    check_equal(job.history()["checkpoints"][-1]["engine"], "criu", "CRIU took it")
    folder = f"{home_of(lab.user)}/bycriu"
    export(home, lab, job.name, "--core", f"{folder}/c")
    text = gdb(home, lab, f"{folder}/watched", f"{folder}/c", "p step", "p shared[8193]",
               "p file_map[5*4096]", "thread apply all bt")
    check(re.search(r"= 90 ", text) and re.search(r"= 195 ", text), "its memory is there")
    check_equal(len(re.findall(r"\bwait_here \(", text)), 3, "and its threads")
    job.kill()


def test_hostile_holder(lab):
    """Holders whose copies are damaged: an error, and no byte of them."""
    job, _, folder = lab.watched
    other = lab[3]
    seq = job.ask("ckpt", job.name)["seq"]
    other.restart_daemon()
    lab.wait_members()
    damaged = sum(damage_store(host) for host in lab.hosts)
    check(damaged > 0, f"{damaged} blocks of copies are damaged")
    refused(lambda: export(other, lab, f"{job.name}@{seq}", "--core", f"{folder}/bad.core"),
            "checkpoint")
    left = [path.name for path in other.path(folder).iterdir() if path.name.startswith("bad")]
    check_equal(left, [], "nothing of it is written")
    job.kill()


if __name__ == "__main__":
    main(globals(), hosts=3, needs=("gcc",))
