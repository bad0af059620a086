# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest: a distribution kernel under QEMU with this machine's root, read-only, over 9p; or with
another release's (Guest.root).

A Guest has a folder on the machine; what it shares with the guest is its subfolder out:

    start       script that the guest runs instead of an init      binds, shares   see init
    hostname    its name                                           serial          its console
    qemu.log    what QEMU said
"""

import ctypes
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PR_SET_PDEATHSIG = 1
SKIP_CODE = 77
KVM_PROBE_SECONDS = 10
BOOT_SECONDS = 600
QEMU = "qemu-system-x86_64"
FRESH = ("/tmp", "/run", "/dev", "/var/tmp", "/proc", "/sys")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

libc = ctypes.CDLL(None, use_errno=True)


class GuestError(Exception):
    """Names the guest and the reason."""


class Unavailable(GuestError):
    """The machine cannot have such guests: a reason to skip."""


def output_of(*command):
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    if done.returncode == SKIP_CODE:
        raise Unavailable(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise GuestError(f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def kernel_folder(series):
    """The unpacked kernel of a series such as "6.1"."""
    return Path(output_of(ROOT / "scripts/kernels", series))


def root_folder(suite):
    """The unpacked files of a release such as "trixie"."""
    return Path(output_of(ROOT / "scripts/guest-root", suite))


def with_parent(process_group):
    """In the child: die with the runner, however that ends."""
    def prepare():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if process_group:
            os.setpgid(0, 0)
    return prepare


def is_hidden(path):
    """True if a guest has something of its own where the machine has this."""
    return any(folder == path or Path(folder) in path.parents for folder in map(Path, FRESH))


@functools.cache
def translation():
    """How QEMU translates for several processors: each on a thread of its own only from 8.1 on.
    Before that, one may translate what another is just writing and keep the old code: Linux, which
    patches itself, then dies of its own int3 (deba78709ae8, "Always lock pages before translation")."""
    if not shutil.which(QEMU):
        raise Unavailable(f"no {QEMU}")
    match = re.search(r"version (\d+)\.(\d+)", output_of(QEMU, "--version"))
    known = match and (int(match[1]), int(match[2])) >= (8, 1)
    return "tcg,thread=multi" if known else "tcg,thread=single"


class Guest:
    """shares: {path in the guest: folder of the machine}, writable. nets: a line of -netdev and a
    MAC each. extra: further words for QEMU."""

    def __init__(self, folder, kernel, name="guest", memory_mb=2048, cpus=2):
        self.folder = Path(folder)
        self.out = self.folder / "out"
        self.kernel = Path(kernel)
        self.release = self.kernel.name
        self.name = name
        self.memory_mb = memory_mb
        self.cpus = cpus
        self.cpu_model = "max"
        self.root = Path("/")
        self.shares = {}
        self.binds = []
        self.nets = []
        self.extra = []
        self.append = ""
        self.accel = translation()
        self.process = None

    def bind(self, *paths):
        """Folders of the machine that the guest would not see, at their own places."""
        self.binds += [path for path in dict.fromkeys(Path(p).resolve() for p in paths)
                       if (is_hidden(path) or self.root != Path("/")) and path not in self.binds]

    def prepare(self, start):
        """Write what the guest reads at its start."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.bind(ROOT, self.kernel)
        for text in (*self.binds, *self.shares):
            if any(c.isspace() or c in "\\,:" for c in str(text)):
                raise GuestError(f"{text}: no such character in the path of a shared folder")
        (self.out / "binds").write_text("".join(f"{path} {path}\n" for path in self.binds))
        (self.out / "shares").write_text("".join(
            f"share{i} {path}\n" for i, path in enumerate(self.shares)))
        (self.out / "hostname").write_text(self.name + "\n")
        (self.out / "kernel").write_text(f"{self.kernel}\n")
        (self.out / "start").write_text(start)

    def command(self):
        # A guest that got no processor for a while is no lockup: hence the largest threshold.
        kernel_line = ("console=ttyS0 quiet loglevel=5 panic=-1 mitigations=off tsc=unstable "
                       f"watchdog_thresh=60 no_timer_check transparent_hugepage=madvise {self.append}").strip()
        words = [QEMU, "-M", "q35", "-accel", self.accel, "-cpu", self.cpu_model,
                 "-smp", str(self.cpus), "-m", f"{self.memory_mb}M", "-nodefaults", "-no-reboot",
                 "-no-user-config", "-display", "none",
                 "-serial", f"file:{self.out}/serial",
                 "-kernel", f"{self.kernel}/boot/vmlinux-{self.release}",
                 "-initrd", output_of(HERE / "initramfs", self.kernel),
                 "-append", kernel_line]
        folders = [("root", self.root, "readonly=on"), ("out", self.out, "writeout=immediate")]
        if self.root != Path("/"):
            folders.append(("machine", "/", "readonly=on"))
        folders += [(f"share{i}", path, "writeout=immediate")
                    for i, path in enumerate(self.shares.values())]
        for i, (tag, path, option) in enumerate(folders):
            words += ["-fsdev", f"local,id=f{i},path={path},security_model=none,multidevs=remap,"
                                f"{option}",
                      "-device", f"virtio-9p-pci,fsdev=f{i},mount_tag={tag}"]
        for i, (netdev, mac) in enumerate(self.nets):
            words += ["-netdev", f"{netdev},id=n{i}",
                      "-device", f"virtio-net-pci,netdev=n{i},mac={mac}"]
        return words + [str(word) for word in self.extra]

    def power_on(self, environment=None):
        with (self.out / "qemu.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **(environment or {})}, preexec_fn=with_parent(True))

    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait(self, seconds):
        """True if it switched itself off in time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def power_off(self):
        """The plug: nothing in the guest sees it coming."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def booted(self):
        """Whether its kernel came as far as init, whatever became of it."""
        try:
            return "init: alive" in (self.out / "serial").read_text(errors="replace")
        except OSError:
            return False

    def last_words(self, lines=25):
        found = []
        for name in ("qemu.log", "serial"):
            try:
                found += (self.out / name).read_text(errors="replace").splitlines()[-lines:]
            except OSError:
                pass
        return "\n".join(found)


def kvm_works(kernel):
    """Whether KVM runs a guest here; asked once in a machine's life, with a limit."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = Path(kernel).parent / "kvm"
    try:
        asked_at, answer = known.read_text().split()
        if asked_at == boot_id:
            return answer == "yes"
    except (OSError, ValueError):
        pass
    answer = os.access("/dev/kvm", os.R_OK | os.W_OK) and _kvm_probe(kernel)
    # A whole file at once: another runner may read it.
    with tempfile.NamedTemporaryFile("w", dir=known.parent, delete=False) as new:
        new.write(f"{boot_id} {'yes' if answer else 'no'}\n")
    os.rename(new.name, known)
    return answer


def _kvm_probe(kernel):
    with tempfile.TemporaryDirectory(prefix="decamp-vm-") as folder:
        guest = Guest(folder, kernel, memory_mb=512)
        guest.accel, guest.append = "kvm", "decamp.probe"
        guest.prepare("")
        guest.power_on()
        try:
            return guest.wait(KVM_PROBE_SECONDS) and guest.booted()
        finally:
            guest.power_off()


def start_script(command, environment, folder):
    """Runs a command as an only child, leaves its exit code and the kernel's log, powers off."""
    env = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TMPDIR": "/tmp", "USER": "root",
           **environment}
    words = ["env", "-i", f"--chdir={folder}", *(f"{k}={v}" for k, v in env.items()),
             *map(str, command)]
    return f"""\
# The first process: it reaps whatever is left to it while it waits.
: >/run/vm/started
setsid {shlex.join(words)} >/run/vm/stdout 2>/run/vm/stderr </dev/null &
wait $!
code=$?
dmesg >/run/vm/dmesg
echo "$code" >/run/vm/rc.new
mv /run/vm/rc.new /run/vm/rc
sync
echo b >/proc/sysrq-trigger
sleep 60
"""


def stop_on_signals():
    def leave(number, _frame):
        raise SystemExit(128 + number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)


def follow(guest, sinks, seconds):
    """Copy what the command prints until the guest is off; False if the deadline passed first."""
    began = time.monotonic()
    while True:
        running = guest.running()
        for name, (sink, position) in list(sinks.items()):
            try:
                with (guest.out / name).open("rb") as file:
                    file.seek(position)
                    piece = file.read()
            except OSError:
                continue
            sink.write(piece)
            sink.flush()
            sinks[name] = (sink, position + len(piece))
        if not running:
            return True
        passed = time.monotonic() - began
        if passed > seconds or passed > BOOT_SECONDS and not guest.booted():
            return False
        time.sleep(0.1)


def run(guest, command, environment, folder, seconds):
    """Run one command in a guest: its exit code, or 124 at the time limit, 125 if none came."""
    guest.prepare(start_script(command, environment, folder))
    guest.power_on()
    try:
        sinks = {"stdout": (sys.stdout.buffer, 0), "stderr": (sys.stderr.buffer, 0)}
        in_time = follow(guest, sinks, seconds)
    finally:
        guest.power_off()
    if not guest.booted():
        words = guest.last_words(3) or "its console stays empty"
        raise Unavailable(f"{guest.release} does not start under {guest.accel}: " +
                          " | ".join(words.splitlines()))
    if not in_time:
        print(f"guest: {guest.release}: no end after {seconds} s", file=sys.stderr)
        print(guest.last_words(), file=sys.stderr)
        return 124
    try:
        return int((guest.out / "rc").read_text())
    except (OSError, ValueError):
        print(f"guest: {guest.release}: it ended without an exit code", file=sys.stderr)
        print(guest.last_words(), file=sys.stderr)
        return 125
