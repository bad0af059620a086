#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""One host of the lab: namespaces, root, cgroup, commands in it, its decampd and its users."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import traces
from traces import LabError, wait_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SOCKET = "/run/decamp/control.sock"
CONFIG = "/etc/decamp/decampd.conf"
BUS = "/run/dbus/system_bus_socket"
LOGIND = "/run/lab-logind"
USERS = {"root": (0, "/root"), "alice": (2001, "/home/alice"), "bob": (2002, "/home/bob")}
VAR_FOLDERS = ["var/" + name for name in ("lib/decamp", "lib/dbus", "log", "cache", "spool", "tmp")]
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UNREACHABLE = 3  # decamp's exit code if no decampd answers
# What decamp refuses while a host is taken for dead, or not yet known to be back.
MOMENTARY = ("no-majority", "owner-away", "host-away", "host-busy", "lease-runs", "busy", "stale",
             "timed-out", "try-again", "unreadable")
MOMENTARY_FAILURES = ("it does not count", "Resource temporarily unavailable")


class CliError(LabError):
    """decamp ended with an error: .code is its exit code, .text what it said on stderr, .kind the
    stable code of docs/api.md."""

    def __init__(self, argv, code, text, kind=""):
        super().__init__(f"{' '.join(argv)}: exit code {code}: {text.strip()}")
        self.code = code
        self.text = text
        self.kind = kind

    def may_pass(self, *more):
        return self.kind in MOMENTARY + more or (
            self.kind == "failed" and any(words in self.text for words in MOMENTARY_FAILURES))


def kind_of(answer):
    """The stable code in an error as decamp --json prints it."""
    try:
        return json.loads(answer)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return ""


def insist(call, *more, seconds=60):
    """Its answer, asked again while it is refused for a reason that passes, or one of more."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except CliError as error:
            if not error.may_pass(*more) or time.monotonic() > end:
                raise
            print(f"  -- asked again: {error}", flush=True)
        time.sleep(0.5)


class Spawned:
    """A command that runs on in a host. .pid is the machine's PID of the command itself."""

    def __init__(self, popen):
        self.popen = popen
        self.pid = wait_for(self._child, 5, f"start of {popen.args}", 0.005)

    def _child(self):
        # nsenter waits outside; its only child is the command.
        path = f"/proc/{self.popen.pid}/task/{self.popen.pid}/children"
        try:
            children = Path(path).read_text().split()
        except OSError:
            children = []
        if not children and self.popen.poll() is not None:
            return -1
        return int(children[0]) if children else None

    def running(self):
        return self.popen.poll() is None

    def kill(self, number=signal.SIGKILL):
        if self.running() and self.pid > 0:
            traces.kill(self.pid, number)

    def stop(self, seconds=10):
        """SIGTERM, then SIGKILL; the exit code."""
        self.kill(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.popen.wait(5)


class Host:
    def __init__(self, lab, index):
        self.lab = lab
        self.index = index
        self.name = f"host{index}"
        self.addr = f"10.77.0.{index}"
        # The same after a boot, or the others' ARP tables would hide it for half a minute.
        self.mac = f"02:00:0a:4d:00:{index:02x}"
        self.port = f"port{index}"
        self.dir = lab.dir / self.name
        self.cgroup = lab.cgroup / self.name
        self.state_dir = self.dir / "state"
        self.etc = Path("/etc")  # what its own is copied from
        self.machine_id = secrets.token_hex(16)
        self.pid = None
        self.daemon = None
        self.logind = None
        self.init = None
        self.settings = {}

    # ---- power ----

    def make_disk(self):
        """An empty disk: the folders that a host has for itself, and its state directory."""
        (self.dir / "root").mkdir(parents=True, exist_ok=True)
        self.state_dir.mkdir()
        disk = self.dir / "disk"
        disk.mkdir()
        wait_for(lambda: self._copy_etc(disk / "etc"), 30, f"{self.name}: a copy of {self.etc}", 1)
        for name in VAR_FOLDERS:
            (disk / name).mkdir(parents=True)
        for name in ("home", "root", "srv", "mnt"):
            (disk / name).mkdir()
        (disk / "root").chmod(0o700)
        (disk / "var/tmp").chmod(0o1777)
        (disk / "var/run").symlink_to("/run")
        (disk / "var/lock").symlink_to("/run/lock")
        etc = disk / "etc"
        (etc / "hostname").write_text(self.name + "\n")
        (etc / "machine-id").write_text(self.machine_id + "\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n" + "".join(
            f"{host.addr} {host.name}\n" for host in self.lab.hosts))
        self._make_users(etc)

    def _copy_etc(self, target):
        """False if a file went meanwhile: something may be being installed on the machine."""
        shutil.rmtree(target, ignore_errors=True)
        return subprocess.run(["cp", "-a", str(self.etc), str(target)], check=False).returncode == 0

    def _make_users(self, etc):
        names = ("alice", "bob")
        for kind in ("passwd", "group"):
            lines = [line for line in (self.etc / kind).read_text().splitlines()
                     if line.split(":")[0] not in names]
            known = {line.split(":")[0] for line in lines}
            for name in names:
                uid, home = USERS[name]
                lines.append(f"{name}:x:{uid}:" + (f"{uid}:{name}:{home}:/bin/sh"
                                                   if kind == "passwd" else ""))
            if "decamp" not in known:
                lines.append("decamp:x:2000:" + ("2000:decamp:/nonexistent:/usr/sbin/nologin"
                                                 if kind == "passwd" else ""))
            (etc / kind).write_text("\n".join(lines) + "\n")
        for name in names:
            uid, home = USERS[name]
            home = self.dir / "disk" / home[1:]
            home.mkdir(exist_ok=True)
            os.chown(home, uid, uid)

    def wipe_disk(self):
        self._power_must_be(False)
        for name in ("disk", "state"):
            shutil.rmtree(self.dir / name, ignore_errors=True)
        self.machine_id = secrets.token_hex(16)
        self.make_disk()

    def begin_boot(self):
        self._power_must_be(False)
        self.cgroup.mkdir(exist_ok=True)
        log = self.lab.log_dir / f"{self.name}-init.log"
        self.init = subprocess.Popen(["/usr/bin/python3", "-I", str(HERE / "hostinit")],
                                     stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=log.open("a"), start_new_session=True, cwd="/",
                                     env=self.environment("root"))
        own = [[str(each), "/" + each.name, False] for each in (self.dir / "disk").iterdir()]
        own.append([str(self.state_dir), "/var/lib/decamp", False])
        config = {"cgroup": str(self.cgroup), "root": str(self.dir / "root"),
                  "hostname": self.name, "binds": own + self.lab.mounted_folders(),
                  "late_binds": self.lab.hidden_folders()}
        self.init.stdin.write(json.dumps(config).encode() + b"\n")
        self.init.stdin.flush()

    def end_boot(self):
        first, second = (self.init.stdout.readline().decode().strip() for _ in range(2))
        if second != "ready" or not first.isdigit():
            raise LabError(f"{self.name}: cannot be started: {first} {second}")
        self.pid = int(first)
        self.lab.pins.add(self.pid)
        self.lab.connect(self)

    def boot(self, wipe=False):
        """Power on after a power cut; wipe: with a new, empty disk."""
        if wipe:
            self.wipe_disk()
        self.begin_boot()
        self.end_boot()
        self.lab.save()

    def copy_disk(self, name):
        """The state directory as a power cut would leave it now; decampd stands still meanwhile."""
        copy = self.dir / name
        halves = self.daemon_pids()
        for pid in halves:
            os.kill(pid, signal.SIGSTOP)
        try:
            subprocess.run(["cp", "-a", str(self.state_dir), str(copy)], check=True)
        finally:
            for pid in halves:
                os.kill(pid, signal.SIGCONT)
        return copy

    def roll_back_disk(self, copy):
        """The host is off: its state directory is what it was when that copy was made."""
        self._power_must_be(False)
        self.lab.event(f"disk rolled back: {self.name}")
        shutil.rmtree(self.state_dir)
        copy.rename(self.state_dir)

    def power_cut(self):
        """No process sees it coming and no peer gets a farewell: the cable goes first."""
        if not self.pid:
            return
        self.lab.event(f"power cut: {self.name}")
        self.lab.disconnect(self)
        traces.kill(self.pid, signal.SIGKILL)
        self.pid = None
        traces.kill_cgroup(self.cgroup)
        self.init.stdin.close()
        self.init.stdout.close()
        self.init.wait()
        for spawned in (self.daemon, self.logind):
            if spawned:
                spawned.popen.wait()
        self.daemon = self.logind = self.init = None
        traces.remove_cgroup(self.cgroup)
        self.lab.save()

    def _power_must_be(self, on):
        if bool(self.pid) != on:
            raise LabError(f"{self.name}: it is {'off' if on else 'on'}")

    # ---- commands ----

    def environment(self, user, extra=None):
        _, home = USERS[user]
        env = {"PATH": PATH, "HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8",
               "DECAMP_LAB": self.lab.id, "DECAMP_LAB_HOST": self.name, "DECAMP_SOCKET": SOCKET}
        return {**env, **(extra or {})}

    def argv(self, command, user="root", cwd=None, env=None):
        """The command line that runs a command in this host as one of its users."""
        self._power_must_be(True)
        uid, home = USERS[user]
        into = ["sh", "-c", 'echo $$ >"$0" && exec "$@"', str(self.cgroup / "cgroup.procs"),
                "nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--",
                "env", "-i", f"--chdir={cwd or home}"]
        into += [f"{key}={value}" for key, value in self.environment(user, env).items()]
        if uid:
            into += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--"]
        return into + [str(part) for part in command]

    def run(self, command, user="root", cwd=None, env=None, timeout=120, check=True, stdin=None):
        """Run a command to its end; the CompletedProcess with text output."""
        where = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
        done = subprocess.run(self.argv(command, user, cwd, env), capture_output=True, text=True,
                              errors="replace", timeout=timeout, check=False, **where)
        if check and done.returncode:
            raise LabError(f"{self.name}: {' '.join(map(str, command))}: exit code "
                           f"{done.returncode}: {done.stderr.strip()}")
        return done

    def spawn(self, command, user="root", cwd=None, env=None, stdout=None, stderr=None, stdin=None):
        """Start a command and leave it running; its output goes nowhere unless told."""
        null = subprocess.DEVNULL
        popen = subprocess.Popen(self.argv(command, user, cwd, env), stdin=stdin or null,
                                 stdout=stdout or null, stderr=stderr or null,
                                 start_new_session=True)
        return Spawned(popen)

    def path(self, inside):
        """Where the harness finds a file of the running host, or of its disk if the host is off."""
        if self.pid:
            return Path(f"/proc/{self.pid}/root{inside}")
        if inside.startswith("/var/lib/decamp"):
            return Path(f"{self.state_dir}{inside[len('/var/lib/decamp'):]}")
        return Path(f"{self.dir}/disk{inside}")

    def write(self, inside, content, user="root", mode=0o644):
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        os.chown(path, USERS[user][0], USERS[user][0])

    def read(self, inside):
        return self.path(inside).read_bytes()

    def exists(self, inside):
        return self.path(inside).exists()

    def remove(self, inside):
        self.path(inside).unlink(missing_ok=True)

    def pids(self, marker):
        """Ground truth: processes of this host whose command line holds marker, but for clients."""
        if not self.pid:
            return []
        client = str(self.lab.build / "decamp")
        return [pid for pid in traces.pids_of(self.cgroup)
                if marker in traces.command_of(pid)
                and not traces.command_of(pid).startswith(("sh -c echo $$", "nsenter", client))]

    @staticmethod
    def inner_pid(pid):
        """The PID by which a process directly below this host's init is known in the host."""
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[2])
        raise LabError(f"{pid}: no PID in the host")

    # ---- decampd ----

    def configure(self, **settings):
        """Write decampd's configuration; it is read when decampd starts."""
        self.settings.update(settings)
        lines = [f"{key} = {value}" for key, value in
                 {**self.lab.settings(self), **self.settings}.items()]
        self.write(CONFIG, "\n".join(lines) + "\n")

    def start_daemon(self, env=None):
        if self.daemon and self.daemon.running():
            return
        # Of the one before both processes have ended: they hold the port, the store and a lock.
        wait_for(lambda: not self.daemon_pids(), 20, f"{self.name}: the end of decampd before")
        self.configure()
        self.remove(SOCKET)
        with (self.lab.log_dir / f"{self.name}.log").open("a") as log:
            debug = ["--debug"] if os.environ.get("DECAMP_LAB_DEBUG") else []
            self.daemon = self.spawn([self.lab.build / "decampd", "--config", CONFIG, *debug],
                                     cwd="/", env=env, stdout=log, stderr=log)

    def wait_daemon(self, seconds=10):
        def answers():
            if not self.daemon.running():
                raise LabError(f"{self.name}: decampd ended with code "
                               f"{self.daemon.popen.returncode}, see {self.lab.log_dir}")
            done = self.run([self.lab.build / "decamp", "doctor", "--json"], check=False)
            return done.returncode not in (127, UNREACHABLE) and self.exists(SOCKET)
        wait_for(answers, seconds, f"{self.name}: an answer of decampd")

    def daemon_pids(self):
        """The processes of decampd, as the machine knows them."""
        return [pid for pid in traces.pids_of(self.cgroup)
                if traces.command_of(pid).startswith(f"{self.lab.build}/decampd ")]

    def kill_daemon(self, number=signal.SIGKILL):
        """End decampd at once; jobs and their keepers stay."""
        if self.daemon:
            self.daemon.kill(number)
            self.daemon.popen.wait(60)

    def restart_daemon(self, number=signal.SIGKILL):
        self.kill_daemon(number)
        self.start_daemon()
        self.wait_daemon()

    def decamp(self, verb, *arguments, user="root", cwd=None, timeout=300):
        """One decamp command with --json: its decoded answer, or CliError."""
        words = verb.split()
        argv = [str(self.lab.build / "decamp"), *words, "--json", *map(str, arguments)]
        done = self.run(argv, user=user, cwd=cwd, timeout=timeout, check=False)
        if done.returncode:
            raise CliError(["decamp", *words, *map(str, arguments)], done.returncode, done.stderr
                           or done.stdout, kind_of(done.stdout))
        try:
            return json.loads(done.stdout) if done.stdout.strip() else {}
        except ValueError as error:
            raise LabError(f"{self.name}: decamp {verb}: not JSON: {done.stdout[:300]}") from error

    # ---- logins ----

    def start_logind(self):
        """A system bus with a stand-in for logind on it."""
        if self.logind:
            return
        self.path("/run/dbus").mkdir(exist_ok=True)
        with (self.lab.log_dir / f"{self.name}-logind.log").open("a") as log:
            self.logind = self.spawn([HERE / "logind", "--bus-socket", BUS, "--control", LOGIND],
                                     stdout=log, stderr=log)
        wait_for(lambda: self.path(LOGIND).exists(), 20,
                 f"{self.name}: start of the logind stand-in")

    def login(self, user="bob", place="seat0", *options):
        """A session begins on a seat or terminal; its id. Options: remote, class=CLASS."""
        self.lab.event(f"login: {user} at {self.name}")
        return self.tell_logind("login", user, place, *options)

    def logout(self, session="all"):
        self.lab.event(f"logout at {self.name}")
        self.tell_logind("logout", session)

    def tell_logind(self, *words):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(60)
            control.connect(str(self.path(LOGIND)))
            control.sendall((" ".join(words) + "\n").encode())
            answer = control.makefile().readline().strip()
        if not answer.startswith("ok"):
            raise LabError(f"{self.name}: logind stand-in: {' '.join(words)}: {answer}")
        return answer[2:].strip()
