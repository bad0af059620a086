#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs that go from one kernel to another and back, on guests: test_kernels.py [word]...

host1 and host3 have Linux 6.1, host2 has 6.12; host3's CPU has no AVX2. Every job's output has to be that of an undisturbed
run on this machine.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

# pylint: disable=wrong-import-position
import common                                                              # noqa: E402
from common import (SKIP_CODE, check, check_equal, counter_argv,     # noqa: E402
                    counter_output, home_of, make_folder, note, refused, submit, wait_for)
import qemu                                                                # noqa: E402
from vmlab import VmLab                                                    # noqa: E402

# At two a second: long enough for two moves on a machine with other work.
STEPS = 600
THREADED = r"""
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
// Four threads, each with its own numbers; the main thread writes them down in order.
int main(int, char **argv)
{
	int steps = atoi(argv[2]);
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
		std::this_thread::sleep_for(std::chrono::milliseconds(atoi(argv[3])));
		for (auto &t : turn)
			t = -1;
	}
	for (auto &t : threads)
		t.join();
}
"""
PIPELINE = """\
i=0
while [ $i -lt {steps} ]; do i=$((i + 1)); echo "$i mark-pipe"; sleep {pause}; done |
awk '{{ s = (s * 31 + $1) % 1000003; print $1, s; fflush() }}' | tee -a out.txt | sha256sum >sum.txt
"""


def there_and_back(lab, job, marker):
    """From the first host to the second, to the first again."""
    kernels = {lab[i].name: lab[i].kernel.name for i in (1, 2)}
    job.wait_seq(1, 60)
    for target in (lab[2], lab[1]):
        answer = job.ask("migrate", job.name, target.name, timeout=300)
        check_equal(answer["host"], target.name, f"moved to {kernels[target.name]}")
        job.wait_host([target], 60)
        wait_for(lambda at=target: lab.where(marker) == [at], 20, "exactly one incarnation")
        job.wait_seq(job.show()["seq"] + 1, 60)
    moves = job.history()["moves"]
    check_equal([move["lost_ms"] for move in moves], [0, 0], "nothing was lost")
    note(f"moves: {[(move['from'], move['to'], move.get('resume_ms')) for move in moves]}")
    job.wait_collected(120)


def out_of(job, name="out.txt"):
    return (job.home.path(f"{home_of(job.user)}/{job.name}") / name).read_bytes()


def test_python(lab):
    """python3: from 6.1 to 6.12 and back."""
    job = submit(lab, lab[1], "python", counter_argv("mark-python", STEPS, 0.5, 2), "--every", "5")
    there_and_back(lab, job, "mark-python")
    check_equal(out_of(job), counter_output(STEPS, 2), "its output is that of an undisturbed run")


def test_threads(lab):
    """Four threads in C++."""
    folder = make_folder(lab[1], "threads", lab.user)
    path = lab[1].path(folder)
    (path / "threads.cc").write_text(THREADED)
    subprocess.run(["g++", "-O1", "-pthread", "-o", path / "threads", path / "threads.cc"],
                   check=True)
    subprocess.run([path / "threads", "x", str(STEPS), "0"], cwd=path, check=True)
    expected = (path / "out.txt").read_bytes()
    (path / "out.txt").unlink()
    job = submit(lab, lab[1], "threads", [f"{folder}/threads", "mark-threads", str(STEPS), "400"],
                 "--every", "5", cwd=folder)
    there_and_back(lab, job, "mark-threads")
    check_equal(out_of(job), expected, "its output is that of an undisturbed run")


def test_pipeline(lab):
    """A shell, awk, tee and sha256sum."""
    text = PIPELINE.format(steps=STEPS, pause=0.4)
    job = submit(lab, lab[1], "pipeline", ["/bin/sh", "-c", text], "--every", "5")
    there_and_back(lab, job, "mark-pipe")
    state, lines = 0, []
    for i in range(1, STEPS + 1):
        state = (state * 31 + i) % 1000003
        lines.append(f"{i} {state}\n")
    made = "".join(lines).encode()
    check_equal(out_of(job), made, "its output is that of an undisturbed run")
    check_equal(out_of(job, "sum.txt").split()[0].decode(), hashlib.sha256(made).hexdigest(),
                "so is the sum at the end of the pipe")


def test_refused(lab):
    """What cannot go on there is refused with the reason, before anything is stopped."""
    job = submit(lab, lab[1], "refused", counter_argv("mark-refused", STEPS, 0.5, 2), "--every", "5")
    job.wait_seq(1, 60)
    note(refused(lambda: job.ask("migrate", job.name, lab[3].name, timeout=300),
                 "its cpu lacks", "avx2"))
    older = submit(lab, lab[1], "older", counter_argv("mark-older", STEPS, 0.5, 2),
                   "--every", "5", "--needs", "kernel < 6.5")
    older.wait_seq(1, 60)
    note(refused(lambda: older.ask("migrate", older.name, lab[2].name, timeout=300), "kernel"))
    for each in (job, older):
        check_equal(each.history()["moves"], [], f"{each.name}: it has not moved")
        check_equal(lab.where(each.marker), [lab[1]], f"{each.name}: it runs where it was")
        each.wait_collected(300)
        check_equal(out_of(each), counter_output(STEPS, 2),
                    f"{each.name}: its output is that of an undisturbed run")


def test_power(lab):
    """QEMU is killed: the job goes on under the other kernel, from its last checkpoint."""
    home = lab[1]
    job = submit(lab, home, "power", counter_argv("mark-power", 2 * STEPS, 0.5, 2), "--every", "5")
    job.wait_seq(2, 60)
    home.power_cut()
    host = job.wait_host([lab[2]], 60, at=lab[2])
    note(f"it runs on {host.name}, kernel {host.kernel.name}")
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    lab.wait_members()
    check(not home.pids("mark-power"), "the old guest is back and its incarnation does not run")
    job.wait_collected(200)
    check_equal(out_of(job), counter_output(2 * STEPS, 2),
                "its output is that of an undisturbed run")


def in_lab(words):
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")
             and (not words or any(word in name for word in words))]
    wide = any(name in ("test_refused", "test_power") for name, _ in tests)
    lab = VmLab(3 if wide else 2, "test_kernels", kernels=("6.1", "6.12"),
                cpu_models={"host3": "max,avx2=off"})
    with lab:
        lab.user = "root"
        lab.start_daemons()
        lab.make_cluster()
        lab.user = lab.job_user()
        common.run_tests(lab, tests)
    lab.assert_clean()


def main():
    if os.geteuid():
        print("SKIP: guests need root")
        return SKIP_CODE
    try:
        return common.guarded(lambda: in_lab(sys.argv[1:]))
    except qemu.Unavailable as reason:
        print(f"SKIP: {reason}")
        return SKIP_CODE


if __name__ == "__main__":
    sys.exit(main())
