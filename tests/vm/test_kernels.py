#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs that go from one kernel to another and back, on guests: test_kernels.py [word]...

host1 and host3 have Linux 6.1, host2 has 6.12; host3's CPU has no AVX2. Every job's output has to
be that of an undisturbed run on this machine. SIGUSR1 takes the pauses out of a job that has seen
enough.
"""

import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

# pylint: disable=wrong-import-position
import common                                                              # noqa: E402
from common import (ALONE, SKIP_CODE, Skipped, check, check_equal, counter_argv,  # noqa: E402
                    counter_output, home_of, make_folder, note, refused, submit, wait_for)
import test_languages as languages                                         # noqa: E402
import qemu                                                                # noqa: E402
from vmlab import VmLab                                                    # noqa: E402

# At two a second: long enough for two moves on a machine with much other work.
STEPS = 1200
HURRY = """\
import signal
def hurry(*_):
    global pause
    pause = 0
signal.signal(signal.SIGUSR1, hurry)
"""
SEAL = """\
import os
def seal(*_):
    global sealed
    sealed = os.memfd_create("sealed", 8)  # MFD_NOEXEC_SEAL, Linux 6.3
signal.signal(signal.SIGUSR2, seal)
"""
THREADED = r"""
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
static volatile sig_atomic_t hurry;
// Four threads, each with its own numbers; the main thread writes them down in order.
int main(int, char **argv)
{
	int steps = atoi(argv[2]);
	signal(SIGUSR1, [](int) { hurry = 1; });
	std::vector<std::atomic<unsigned long>> made(4);
	std::vector<std::atomic<int>> turn(4);
	std::vector<std::thread> threads;
	for (int t = 0; t < 4; t++)
		threads.emplace_back([&, t] {
			unsigned long x = t + 1;
			for (int step = 1; step <= steps; step++) {
				for (int i = 0; i < 20000; i++)
					x = x * 6364136223846793005UL + 1442695040888963407UL;
				made[t] = x;
				turn[t] = step;
				while (turn[t] == step)
					std::this_thread::sleep_for(std::chrono::milliseconds(2));
			}
		});
	FILE *out = fopen("out.txt", "a");
	for (int step = 1; step <= steps; step++) {
		for (int t = 0; t < 4; t++)
			while (turn[t] != step)
				std::this_thread::sleep_for(std::chrono::milliseconds(2));
		fprintf(out, "%d %lx %lx %lx %lx\n", step, made[0].load(), made[1].load(),
			made[2].load(), made[3].load());
		fflush(out);
		std::this_thread::sleep_for(std::chrono::milliseconds(hurry ? 0 : atoi(argv[3])));
		for (auto &t : turn)
			t = -1;
	}
	for (auto &t : threads)
		t.join();
}
"""
PIPELINE = """\
trap : USR1
{{
    i=0 pause={pause}
    trap 'pause=' USR1
    while [ $i -lt {steps} ]; do
        i=$((i + 1)); echo "$i mark-pipe"; [ -z "$pause" ] || sleep $pause
    done
}} | awk '{{ s = (s * 31 + $1) % 1000003; print $1, s; fflush() }}' |
    tee -a out.txt | sha256sum >sum.txt
"""


def python_argv(marker):
    argv = counter_argv(marker, STEPS, 0.5, 2, ALONE)
    argv[2] = HURRY + argv[2]
    return argv


def finish(lab, job, seconds=120):
    """No more pauses; until its results are at home."""
    host = lab[job.show()["host"]]
    host.run(["kill", "-USR1", *host.pids(job.marker)])
    job.wait_collected(seconds)


def start(lab, home, name, argv, *options, **more):
    job = submit(lab, home, name, argv, "--every", "5", *options, **more)
    job.wait_seq(1, 60)
    return job


def there_and_back(lab, job):
    """From its home to the other host, and home again."""
    kernels = {lab[i].name: lab[i].kernel.name for i in (1, 2)}
    other = lab[2] if job.home is lab[1] else lab[1]
    for target in (other, job.home):
        answer = job.ask("migrate", job.name, target.name, timeout=300)
        check_equal(answer["host"], target.name, f"moved to {kernels[target.name]}")
        job.wait_host([target], 60)
        wait_for(lambda at=target: lab.where(job.marker) == [at], 20, "exactly one incarnation")
        job.wait_seq(job.show()["seq"] + 1, 60)
    history = job.history()
    check_equal([(move["to"], move["lost_ms"]) for move in history["moves"]],
                [(other.name, 0), (job.home.name, 0)], "it has moved twice, nothing was lost")
    note(f"resumed after {[move.get('resume_ms') for move in history['moves']]} ms; engines: " +
         ", ".join(sorted({point.get("engine", "?") for point in history["checkpoints"]})))
    finish(lab, job)


def out_of(job, name="out.txt"):
    return job.home.read(f"{home_of(job.user)}/{job.name}/{name}")


def test_python(lab):
    """python3: from 6.1 to 6.12 and back."""
    job = start(lab, lab[1], "python", python_argv("mark-python"))
    there_and_back(lab, job)
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


def test_pipeline(lab):
    """A shell, awk, tee and sha256sum."""
    text = PIPELINE.format(steps=STEPS, pause=0.4)
    job = start(lab, lab[1], "pipeline", ["/bin/sh", "-c", text, "mark-pipe"])
    there_and_back(lab, job)
    state, lines = 0, []
    for i in range(1, STEPS + 1):
        state = (state * 31 + i) % 1000003
        lines.append(f"{i} {state}\n")
    made = "".join(lines).encode()
    check_equal(out_of(job), made, "its output is that of an undisturbed run")
    check_equal(out_of(job, "sum.txt").split()[0].decode(), hashlib.sha256(made).hexdigest(),
                "so is the sum at the end of the pipe")


def test_threads(lab):
    """Four threads in C++."""
    folder = make_folder(lab[1], "threads", lab.user)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        (path / "threads.cc").write_text(THREADED)
        subprocess.run(["g++", "-O1", "-pthread", "-o", path / "threads", path / "threads.cc"],
                       check=True)
        subprocess.run([path / "threads", "x", str(STEPS), "0"], cwd=path, check=True)
        expected = (path / "out.txt").read_bytes()
        lab[1].write(f"{folder}/threads", (path / "threads").read_bytes(), lab.user, 0o755)
    job = start(lab, lab[1], "threads", [f"{folder}/threads", "mark-threads", str(STEPS), "400"],
                cwd=folder)
    there_and_back(lab, job)
    check_equal(out_of(job), expected, "its output is that of an undisturbed run")


def test_go(lab):
    """A program in Go, built here."""
    folder = make_folder(lab[1], "go", lab.user)
    with tempfile.TemporaryDirectory() as scratch:
        why = languages.build("go", Path(scratch) / "go")
        if why:
            note(f"SKIPPED go: {why}")
            return
        lab[1].write(f"{folder}/work", (Path(scratch) / "go/work").read_bytes(), lab.user, 0o755)
    job = start(lab, lab[1], "go", [f"{folder}/work", "mark-go", str(8 * STEPS)], cwd=folder)
    there_and_back(lab, job)
    check_equal(out_of(job), languages.expected(8 * STEPS),
                "its output is that of an undisturbed run")


def reasons_of(job):
    """Why each host may not take it."""
    return {host["host"]: host["reasons"] for host in job.ask("why", job.name)["hosts"]}


def test_refused_newer(lab):
    """What the older kernel lacks comes to light by the move's own checkpoint: the job stays."""
    home, argv = lab[2], python_argv("mark-sealed")
    argv[2] = argv[2].replace(HURRY, HURRY + SEAL)
    job = submit(lab, home, "sealed", argv, "--every", "3600")
    job.ask("ckpt", job.name, timeout=300)
    check("memfds" not in str(reasons_of(job)), "nothing bars the older kernel")
    home.run(["kill", "-USR2", *home.pids("mark-sealed")])
    note(refused(lambda: job.ask("migrate", job.name, lab[1].name, timeout=300), "has come to need"))
    note(refused(lambda: job.ask("migrate", job.name, lab[1].name, timeout=300),
                 "memfds sealed against execution"))
    check("memfds sealed against execution" in str(reasons_of(job)), "decamp why says the same")
    check_equal(job.history()["moves"], [], "it has not moved")
    check_equal(lab.where("mark-sealed"), [home], "it runs where it was")
    finish(lab, job)
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


def test_refused(lab):
    """What cannot go on there is refused with the reason, before anything is stopped."""
    job = start(lab, lab[1], "refused", python_argv("mark-refused"))
    older = start(lab, lab[1], "older", python_argv("mark-older"), "--needs", "kernel < 6.5")
    note(refused(lambda: job.ask("migrate", job.name, lab[3].name, timeout=300),
                 "its cpu lacks", "avx2"))
    note(refused(lambda: older.ask("migrate", older.name, lab[2].name, timeout=300), "kernel"))
    for each in (job, older):
        check_equal(each.history()["moves"], [], f"{each.name}: it has not moved")
        check_equal(lab.where(each.marker), [lab[1]], f"{each.name}: it runs where it was")
        finish(lab, each)
        check_equal(out_of(each), counter_output(STEPS, 2),
                    f"{each.name}: its output is that of an undisturbed run")


def test_power(lab):
    """QEMU is killed: the job goes on under the other kernel, from its last checkpoint."""
    home = lab[1]
    job = start(lab, home, "power", python_argv("mark-power"))
    job.wait_seq(2, 60)
    home.power_cut()
    host = job.wait_host([lab[2]], 60, at=lab[2])
    note(f"it runs on {host.name}, kernel {host.kernel.name}")
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    lab.wait_members()
    for _ in range(10):
        check_equal(lab.where("mark-power"), [host], "the old guest is back: one incarnation")
        time.sleep(1)
    finish(lab, job)
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


# What happens to a process of a job in a guest, and when.
WATCH = """\
import os, sys, time
pid = sys.argv[1]
group = open(f"/proc/{pid}/cgroup").read().split("::")[1].strip()
def sits_there():
    return any("TTY=ttyS1" in open(f"/run/systemd/sessions/{name}").read()
               for name in os.listdir("/run/systemd/sessions") if name.isalnum())
def is_gone():
    return not os.path.exists(f"/proc/{pid}")
def is_frozen():
    try:
        return "frozen 1" in open(f"/sys/fs/cgroup{group}/cgroup.events").read()
    except OSError:
        return True
for name, there in (("login", sits_there), ("frozen", is_frozen), ("gone", is_gone)):
    while not there():
        time.sleep(0.002)
    print(name, time.monotonic(), flush=True)
"""


def python_start_s(host):
    """How fast this guest is."""
    text = host.run(["/usr/bin/python3", "-c", "import subprocess, time; b = time.monotonic(); "
                     "subprocess.run(['/usr/bin/python3', '-c', '']); print(time.monotonic() - b)"])
    return float(text.stdout)


def test_login(lab):
    """systemd is the first process; somebody logs in on the console: the job leaves."""
    home = lab[1]
    check_equal(home.run(["cat", "/proc/1/comm"]).stdout.strip(), "systemd", "the first process")
    job = start(lab, home, "login", python_argv("mark-login"))
    unit = python_start_s(home)
    watch = home.spawn(["/usr/bin/python3", "-c", WATCH, home.pids("mark-login")[0]])
    line = home.login("bob")
    wait_for(lambda: "login" in watch.popen.output(1), 60, "a session of logind's")
    began = time.monotonic()
    wait_for(lambda: lab[2].pids("mark-login"), 60, "the job on the other host")
    elsewhere = time.monotonic() - began
    watch.popen.wait(600)
    at = {name: float(second) for name, second in
          (row.split() for row in watch.popen.output(1).splitlines())}
    job.wait_host([lab[2]])
    check_equal(lab.where("mark-login"), [lab[2]], "one incarnation, not where somebody sits")
    check_equal([move["lost_ms"] for move in job.history()["moves"]], [0], "nothing was lost")
    note(f"after the login, in starts of python3 ({unit:.2f} s): frozen "
         f"{(at['frozen'] - at['login']) / unit:.2f}, gone {(at['gone'] - at['login']) / unit:.2f}, "
         f"on the other host {elsewhere / unit:.2f}")
    line.close()
    finish(lab, job)
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


def test_release_python(lab):
    """python3 of this release, to a host with another release's files, and back."""
    for host in lab.hosts:
        told = host.run(["sh", "-c", "ldd --version | head -n 1; python3 -V"]).stdout
        note(f"{host.name}: " + ", ".join(told.splitlines()))
    job = start(lab, lab[1], "released", python_argv("mark-released"))
    there_and_back(lab, job)
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


def test_release_newer(lab):
    """python3 of the newer release, under the newer kernel, to the older ones, and back."""
    job = start(lab, lab[2], "newer", python_argv("mark-newer"))
    there_and_back(lab, job)
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


def lab_for(name):
    """Which lab a test needs: how many hosts, and what is particular to them."""
    if name.startswith("test_release"):
        return 2, {"roots": {"host2": "trixie"}}
    if name == "test_login":
        return 2, {"systemd": ("host1",)}
    if name in ("test_refused", "test_power"):
        return 3, {"cpu_models": {"host3": "max,avx2=off"}}
    return 2, {}


def in_lab(tests, hosts, options):
    try:
        lab = VmLab(hosts, "test_kernels", kernels=("6.1", "6.12"), **options)
    except qemu.Unavailable as reason:
        raise Skipped(str(reason)) from reason
    with lab:
        lab.user = "root"
        try:
            lab.start_daemons()
            lab.make_cluster()
            lab.user = lab.job_user()
            common.run_tests(lab, tests)
        except BaseException:
            lab.tell_failure()
            raise
    lab.assert_clean()


def in_labs(words):
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")
             and (not words or any(word in name for word in words))]
    for (hosts, options), some in itertools.groupby(tests, lambda test: lab_for(test[0])):
        in_lab(list(some), hosts, options)


def main():
    if os.geteuid():
        print("SKIP: guests need root")
        return SKIP_CODE
    return common.guarded(lambda: in_labs(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
