#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every end-to-end test shares: one lab per file, checks that print what they check, skips.

A test file holds functions test_*(lab) and ends with main(globals()). They run in the order of
their definition in one lab, until one fails. Exit code: 0 passed, 1 failed, 77 skipped.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

# pylint: disable=wrong-import-position,unused-import
import traces                                             # noqa: E402
from lab import Lab                                       # noqa: E402
from host import CliError, ROOT, insist                   # noqa: E402
from traces import LabError, wait_for, command_of, kill   # noqa: E402

SKIP_CODE = 77
RUNNING = ("running", "checkpointing")
ENDED = ("done", "collected", "killed", "lost")
TELL_SECONDS = 2
# Where decampd is killed and the job must never notice: the next one has time to start.
LONG_LEASE = {"lease_ms": 15000, "hold_ms": 17000}


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


def check(condition, what):
    if not condition:
        raise Failed(what)
    print(f"  ok: {what}", flush=True)


def check_equal(value, expected, what):
    if value != expected:
        raise Failed(f"{what}: {value!r:.300} instead of {expected!r:.300}")
    print(f"  ok: {what}", flush=True)


def note(text):
    print(f"  -- {text}", flush=True)


def refused(call, *words):
    """The error text of a command that has to fail, which must hold all these words; other reasons
    may come first, if they pass."""
    def told():
        try:
            answer = call()
        except CliError as error:
            lower = error.text.lower()
            missing = [word for word in words if word.lower() not in lower]
            if missing and error.may_pass():
                raise
            if missing:
                raise Failed(f"the error does not mention {missing}: {error.text.strip()}"
                             ) from error
            return error.text.strip()
        raise Failed(f"not refused, but answered: {answer}")
    return insist(told)


# ---- jobs ----

class Job:
    """A job as its user sees it; every question goes to whichever host is named."""

    def __init__(self, lab, home, name, user):
        self.lab, self.home, self.name, self.user = lab, home, name, user
        self.marker = None
        self.tell_from = None  # when its program is to be told that it may end; None: never

    def ask_once(self, verb, *arguments, at=None, **more):
        at = at or (self.home if self.home.pid else next(h for h in self.lab.hosts if h.pid))
        return at.decamp(verb, *arguments, user=self.user, **more)

    def ask(self, verb, *arguments, at=None, **more):
        """Asked again while a host of it is taken for dead, or not known to be back yet."""
        return insist(lambda: self.ask_once(verb, *arguments, at=at, **more))

    def migrate(self, host, at=None):
        """To a named host. A move that is told to be late may have been made all the same."""
        try:
            return self.ask("migrate", self.name, host.name, at=at)
        except CliError as error:
            if error.kind != "there-already":
                raise
            return {"host": host.name}

    def glance(self, at=None):
        return self.ask_once("show", self.name, at=at)

    def show(self, at=None):
        return insist(lambda: self.glance(at), "no-such-job")

    def read(self, path, at):
        """What decamp cat on a host says of one of its files, as bytes."""
        def text():
            done = at.run([self.lab.build / "decamp", "cat", f"{self.name}:{path}"],
                          user=self.user, check=False)
            return done if done.returncode == 0 else None
        return wait_for(text, 60, f"{self.name}: decamp cat {path} on {at.name}").stdout.encode()

    def state(self, at=None):
        return self.show(at)["state"]

    def host(self, at=None):
        return self.lab[self.show(at)["host"]]

    def history(self):
        """As its present host tells it, which knows of a move before the next checkpoint does."""
        shown = self.show()
        running = shown["state"] not in ENDED and shown.get("host")
        return self.ask("history", self.name, at=self.lab[shown["host"]] if running else None)

    def wait_state(self, states, seconds=30, at=None, meanwhile=lambda at: None):
        states = (states,) if isinstance(states, str) else states

        def there():
            meanwhile(at)
            try:
                shown = self.glance(at)
            except CliError:
                return None
            return shown if shown["state"] in states else None
        try:
            return wait_for(there, seconds, f"{self.name}: state {' or '.join(states)}", 0.2)
        except LabError as error:
            raise Failed(f"{error}; now: {json.dumps(self.show(at))[:600]}") from error

    def wait_seq(self, seq, seconds=30, at=None):
        def there():
            try:
                shown = self.glance(at)
            except CliError:
                return None
            if shown["state"] in ENDED:
                raise Failed(f"{self.name}: ended before checkpoint {seq}: {shown}")
            return shown if shown["seq"] >= seq else None
        try:
            return wait_for(there, seconds, f"{self.name}: checkpoint {seq}", 0.2)
        except LabError as error:
            raise Failed(f"{error}; now: {json.dumps(self.show(at))[:600]}") from error

    def wait_host(self, hosts, seconds=30, at=None):
        """Until it runs on one of these hosts, by what decamp says and by the process table."""
        names = [host.name for host in hosts]

        def there():
            try:
                shown = self.glance(at)
            except CliError:
                return None
            if shown["host"] not in names or shown["state"] not in RUNNING:
                return None
            host = self.lab[shown["host"]]
            return host if not self.marker or host.pids(self.marker) else None
        try:
            return wait_for(there, seconds, f"{self.name}: run on {' or '.join(names)}", 0.2)
        except LabError as error:
            raise Failed(f"{error}; now: {json.dumps(self.show(at))[:600]}") from error

    def tell(self, at=None):
        """Its program may end. Told again and again: word that came after its last checkpoint may
        be lost with its host."""
        if self.tell_from is None or time.monotonic() < self.tell_from:
            return
        try:
            self.ask_once("kill", "-s", "URG", self.name, at=at)
        except CliError:
            pass  # it is on its way, or has ended
        self.tell_from = time.monotonic() + TELL_SECONDS

    def wait_ended(self, states=("collected", "lost", "killed"), seconds=60, at=None):
        return self.wait_state(states, seconds, at, self.tell)

    def wait_collected(self, seconds=60, at=None):
        shown = self.wait_ended(seconds=seconds, at=at)
        if shown["state"] != "collected":
            raise Failed(f"{self.name}: {shown['state']}: {shown.get('message')}")
        return shown

    def kill(self):
        try:
            self.ask("kill", self.name)
        except CliError:
            pass


def submit(lab, home, name, argv, *options, user=None, cwd=None):
    user = user or lab.user
    cwd = cwd or make_folder(home, name, user)
    home.decamp("run", "--name", name, "--cwd", cwd, *options, "--", *argv, user=user, cwd=cwd)
    job = Job(lab, home, name, user)
    job.marker = next((word for word in argv if word.startswith("mark-")), None)
    job.tell_from = 0 if UNTIL_TOLD in argv else None
    return job


def make_folder(home, name, user):
    """An empty directory in the user's home."""
    folder = ("/root/" if user == "root" else f"/home/{user}/") + name
    home.run(["mkdir", "-p", folder], user=user)
    return folder


UNTIL_TOLD, ALONE = "until-told", "alone"
COUNTER = """\
import signal, sys, time
told = [] if sys.argv[5] == "until-told" else [signal.SIGURG]
signal.signal(signal.SIGURG, lambda number, _: told.append(number))
steps, pause, megabytes = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
state = bytearray(megabytes << 20)
x = 12345
out = open("out.txt", "a")
step = 0
while step < steps or not told:
    for _ in range(2000):
        x = (x * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        state[x % len(state)] = x >> 56
    out.write(f"{step} {x:016x} {sum(state[:4096])}\\n")
    out.flush()
    print(step, flush=True)
    step += 1
    end = time.monotonic() + pause
    while time.monotonic() < end:
        time.sleep(max(0, min(0.05, end - time.monotonic())))
print("finished", x)
"""


def counter_argv(marker, steps, pause=0.02, megabytes=4, until=UNTIL_TOLD):
    """A deterministic program: a line per step in out.txt, state in memory. It makes so many steps
    at least, and goes on until it is told: on a busy machine it must not end before its test has
    done with it. ALONE: so many, and nobody tells it."""
    return ["/usr/bin/python3", "-c", COUNTER, marker, str(steps), str(pause), str(megabytes),
            until]


def is_counted(data, least=0, megabytes=4):
    """True if these are the lines of such a program, from the first one on."""
    lines = data.count(b"\n")
    return lines >= least and data == counter_output(lines, megabytes)


def counter_output(steps, megabytes=4):
    """What out.txt of such a program holds after so many steps, undisturbed."""
    state = bytearray(megabytes << 20)
    x = 12345
    lines = []
    for step in range(steps):
        for _ in range(2000):
            x = (x * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            state[x % len(state)] = x >> 56
        lines.append(f"{step} {x:016x} {sum(state[:4096])}\n")
    return "".join(lines).encode()


def check_counter(job, steps, megabytes=4, folder=None):
    """The results are at home and byte-identical to those of an undisturbed run."""
    folder = folder or f"{home_of(job.user)}/{job.name}"
    data = job.home.read(f"{folder}/out.txt")
    lines = data.count(b"\n")
    check(lines >= steps, f"{job.name}: {lines} lines of out.txt are at home")
    check_equal(data, counter_output(lines, megabytes),
                f"{job.name}: they are identical to an undisturbed run")


def damage_store(host):
    """Change a byte of each block of each object on a host: objects begin at multiples of 4096."""
    changed = 0
    for path in (host.state_dir / "overlay/segments").iterdir():
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            continue  # its daemon is at work
        with file:
            while block := file.read(4096):
                if any(block):
                    file.seek(-len(block), 1)
                    file.write(bytes([block[0] ^ 0x40]))
                    file.seek(len(block) - 1, 1)
                    changed += 1
    return changed


def frozen(host):
    """By ground truth: some cgroup of a job on this host is frozen."""
    return any("frozen 1" in text for text in traces.texts_of(host.cgroup, "cgroup.events"))


def home_of(user):
    return "/root" if user == "root" else f"/home/{user}"


# ---- frame ----

def run_tests(lab, tests):
    for name, test in tests:
        print(f"{name}: {(test.__doc__ or '').strip()}", flush=True)
        start = time.monotonic()
        test(lab)
        print(f"{name}: passed in {time.monotonic() - start:.1f} s", flush=True)


def main(namespace, hosts=5, cluster=True, settings=None, needs=()):
    """Run all test_* functions of a file in one lab; never returns."""
    name = Path(namespace["__file__"]).stem
    words = sys.argv[1:]
    tests = [(key, value) for key, value in namespace.items() if key.startswith("test_")
             and (not words or any(word in key for word in words))]
    sys.exit(guarded(lambda: in_lab(name, tests, hosts, cluster, settings, needs)))


def guarded(action):
    try:
        action()
    except Skipped as reason:
        print(f"SKIP: {reason}")
        return SKIP_CODE
    except (Failed, LabError) as error:
        print(f"FAILED: {error}")
        traceback.print_exc(limit=-4)
        return 1
    except Exception as error:  # pylint: disable=broad-exception-caught
        print(f"FAILED: {type(error).__name__}: {error}")
        traceback.print_exc()
        return 1
    return 0


def in_lab(name, tests, hosts, cluster, settings, needs):
    if os.geteuid():
        raise Skipped("a lab needs root")
    for program in needs:
        if not any(os.access(f"{d}/{program}", os.X_OK) for d in os.defpath.split(":")[1:]):
            raise Skipped(f"{program} is not installed")
    lab = Lab(hosts, name, settings)
    try:
        with lab:
            lab.user = "root"
            if cluster:
                lab.start_daemons()
                lab.make_cluster()
                lab.user = lab.job_user()
            run_tests(lab, tests)
    except BaseException:
        print(f"logs: {lab.log_dir}", flush=True)
        raise
    lab.assert_sound()
    lab.assert_clean()
    print(f"{name}: nothing is left behind", flush=True)
