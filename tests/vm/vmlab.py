# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lab of tests/lab with guests for hosts: VmLab takes the place of Lab, a host the place of
a host, and a test of tests/e2e runs on it unchanged as long as it asks for nothing that a guest
does not have: files by path from outside, the stand-in for logind.

A host's disk is an image with /var/lib/decamp, /home, /root and /srv. A power cut kills QEMU; the
image stays. Its /etc is new at each boot. None of these is by 9p: decamp takes that for a network
file system, which the other hosts have as well, and leaves its files there.
"""

import base64
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lab"))

# pylint: disable=wrong-import-position
import qemu                                              # noqa: E402
import traces                                            # noqa: E402
from host import Host, SOCKET, USERS                     # noqa: E402
from lab import Lab                                      # noqa: E402
from switch import Switch                                # noqa: E402
from traces import LabError, wait_for                    # noqa: E402

BOOT_SECONDS = 600
DISK_BYTES = 4 << 30
MEMORY_MB = 1536
# Translated code on a busy machine: a host may not be heard of for half a minute.
TIMINGS = {"probe_ms": 5000, "suspect_ms": 60000, "renew_ms": 15000, "lease_ms": 90000,
           "hold_ms": 100000}
PATIENCE = 10

START = """\
exec 2>/run/vm/start.log
set -x
export PATH={path}
export MODPROBE_OPTIONS="-d {kernel}"
for module in virtio_net virtio_blk virtio_console ext4; do
	modprobe $module || echo "no module $module" >&2
done
: >/run/vm/started
mkdir -p /run/disk /var/lib/decamp
mount -o discard /dev/vda /run/disk
mkdir -p -m 755 /run/disk/decamp /run/disk/home /run/disk/srv
mkdir -p -m 700 /run/disk/root
umount /etc /home /root /srv
for name in home root srv var/lib/decamp; do
	mount --bind /run/disk/${{name##*/}} /$name
done
mount -t tmpfs -o mode=755 etc /etc
tar -C / -xf /run/vm/etc.tar
{homes}
ip addr add {addr}/16 dev eth0
ip link set eth0 up
"""
ALONE = """\
python3 {agent} agent >/run/vm/agent.log 2>&1 </dev/null &
wait $!
echo b >/proc/sysrq-trigger
sleep 60
"""
WITH_SYSTEMD = """\
exec {here}/systemd {agent} agent
"""


class Wire:
    """The machine's end of a guest's agent."""

    def __init__(self, path, name):
        self.name = name
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.condition = threading.Condition()
        self.answers = {}
        self.number = 0
        self.broken = False
        self.end = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            self.end, _ = self.listener.accept()
            for line in self.end.makefile("rb"):
                answer = json.loads(line)
                with self.condition:
                    self.answers.setdefault(answer.pop("id"), []).append(answer)
                    self.condition.notify_all()
        except (OSError, ValueError):
            pass
        with self.condition:
            self.broken = True
            self.condition.notify_all()

    def close(self):
        for end in (self.end, self.listener):
            if end:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()

    def ask(self, **question):
        """Send; the number by which answers are known."""
        with self.condition:
            self.number += 1
            number = self.number
            line = json.dumps({"id": number, **question}).encode() + b"\n"
            try:
                self.end.sendall(line)
            except (OSError, AttributeError) as error:
                raise LabError(f"{self.name}: it is off: {error}") from error
        return number

    def next(self, number, seconds):
        """The next answer; None at the time limit or if the guest is gone (then .broken)."""
        with self.condition:
            self.condition.wait_for(lambda: self.answers.get(number) or self.broken, seconds)
            waiting = self.answers.get(number)
            return waiting.pop(0) if waiting else None

    def once(self, seconds=60, **question):
        answer = self.next(self.ask(**question), seconds)
        if answer is None:
            raise LabError(f"{self.name}: no answer to {question['op']}")
        return answer


class RemoteProcess:
    """As much of a Popen as the lab uses, of a command in a guest."""

    def __init__(self, wire, argv, given=None, stdout=None, stderr=None):
        self.args = argv
        self.wire = wire
        self.returncode = None
        self.text = {1: [], 2: []}
        self.sinks = {1: self._sink(stdout), 2: self._sink(stderr)}
        self.done = threading.Event()
        text = base64.b64encode(given).decode() if given else None
        self.number = wire.ask(op="start", argv=[str(word) for word in argv], input=text)
        first = wire.next(self.number, 60)
        if first is None or "pid" not in first:
            raise LabError(f"{wire.name}: {argv[0]}: {first and first.get('error')}")
        self.pid = first["pid"]
        threading.Thread(target=self._follow, daemon=True).start()

    @staticmethod
    def _sink(given):
        # A descriptor of our own: the caller closes its file.
        return os.dup(given.fileno()) if hasattr(given, "fileno") else None

    def _follow(self):
        while True:
            answer = self.wire.next(self.number, None)
            if answer is None or "exit" in answer:
                self.returncode = answer["exit"] if answer else -signal.SIGKILL
                break
            piece = base64.b64decode(answer["text"])
            self.text[answer["fd"]].append(piece)
            if self.sinks[answer["fd"]] is not None:
                os.write(self.sinks[answer["fd"]], piece)
        for fd in self.sinks.values():
            if fd is not None:
                os.close(fd)
        self.done.set()

    def poll(self):
        return self.returncode if self.done.is_set() else None

    def wait(self, timeout=None):
        if not self.done.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def output(self, fd):
        return b"".join(self.text[fd]).decode(errors="replace")


class RemoteSpawned:
    """What Host.spawn() returns."""

    def __init__(self, process):
        self.popen = process
        self.pid = process.pid

    def running(self):
        return self.popen.poll() is None

    def kill(self, number=signal.SIGKILL):
        if self.running():
            self.popen.wire.once(op="signal", pid=self.pid, number=int(number))

    def stop(self, seconds=30):
        self.kill(signal.SIGTERM)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.popen.wait(30)


class VmHost(Host):
    def __init__(self, lab, index):
        super().__init__(lab, index)
        self.kernel = lab.kernels[(index - 1) % len(lab.kernels)]
        self.root = lab.roots.get(self.name, Path("/"))
        self.etc = self.root / "etc"
        self.image = self.dir / "state.img"
        self.guest = None
        self.wire = None
        self.boots = 0

    # ---- power ----

    def make_disk(self):
        super().make_disk()
        with self.image.open("wb") as image:
            image.truncate(DISK_BYTES)
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1,nodiscard",
                        "-O", "^metadata_csum", str(self.image)], check=True,
                       env={**os.environ, "PATH": qemu.PATH})

    def begin_boot(self):
        self._power_must_be(False)
        self.boots += 1
        folder = self.dir / f"boot{self.boots}"
        folder.mkdir()
        self.guest = guest = qemu.Guest(folder, self.kernel, self.name, memory_mb=MEMORY_MB,
                                        cpus=1)
        guest.accel = self.lab.accel
        guest.cpu_model = self.lab.cpu_models.get(self.name, guest.cpu_model)
        guest.root = self.root
        guest.bind(self.lab.build, Path(self.lab.find_criu()).parent)
        guest.nets = [(f"stream,server=off,addr.type=unix,addr.path={self.lab.dir}/{self.port}",
                       self.mac)]
        self.wire = Wire(folder / "agent", self.name)
        guest.extra = ["-drive", f"file={self.image},if=virtio,format=raw,cache=writeback,"
                                 "discard=unmap",
                       "-device", "virtio-serial-pci",
                       "-chardev", f"socket,id=agent,path={folder}/agent",
                       "-device", "virtserialport,chardev=agent,name=agent"]
        homes = [f"mkdir -p {home}; chown {uid}:{uid} {home}" for uid, home in USERS.values()]
        if self.name in self.lab.systemd:
            guest.extra += ["-serial", f"unix:{folder}/console,server=on,wait=off"]
        start = START + (WITH_SYSTEMD if self.name in self.lab.systemd else ALONE)
        here = shlex.quote(str(qemu.HERE))
        guest.prepare(start.format(path=qemu.PATH, kernel=guest.kernel, addr=self.addr, here=here,
                                   agent=f"{here}/agent", homes="\n".join(homes)))
        subprocess.run(["tar", "-C", self.dir / "disk", "-cf", guest.out / "etc.tar", "etc"],
                       check=True)
        guest.power_on({"DECAMP_LAB": self.lab.id})

    def end_boot(self):
        ready = self.wire.next(0, BOOT_SECONDS)
        if not ready:
            words = self.guest.last_words()
            self.unplug()
            raise LabError(f"{self.name}: it does not start:\n{words}")
        self.pid = self.guest.process.pid
        self.lab.event(f"on: {self.name}, kernel {ready['ready']}")

    def unplug(self):
        if self.guest:
            self.guest.power_off()
            self.wire.close()
            for name in ("serial", "start.log", "agent.log"):
                left = self.guest.out / name
                if left.exists():
                    shutil.copyfile(left, self.lab.log_dir / f"{self.name}-{self.boots}-{name}")
        self.pid = self.guest = self.wire = self.daemon = None

    def power_cut(self):
        if self.pid:
            self.lab.event(f"power cut: {self.name}")
            self.unplug()
            self.lab.save()

    def copy_disk(self, name):
        raise LabError("a guest's disk is not copied while it runs")

    # ---- commands ----

    def argv(self, command, user="root", cwd=None, env=None):
        self._power_must_be(True)
        uid, home = USERS[user]
        words = ["env", "-i", f"--chdir={cwd or home}"]
        words += [f"{key}={value}" for key, value in self.environment(user, env).items()]
        if uid:
            words += ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--"]
        return words + [str(part) for part in command]

    def run(self, command, user="root", cwd=None, env=None, timeout=60, check=True, stdin=None):
        argv = self.argv(command, user, cwd, env)
        process = RemoteProcess(self.wire, argv, stdin.encode() if stdin else None)
        try:
            code = process.wait(timeout * PATIENCE)
        except subprocess.TimeoutExpired as late:
            self.wire.once(op="signal", pid=process.pid, number=int(signal.SIGKILL))
            raise LabError(f"{self.name}: {' '.join(argv)}: no end") from late
        done = subprocess.CompletedProcess(argv, code, process.output(1), process.output(2))
        if check and code:
            raise LabError(f"{self.name}: {' '.join(map(str, command))}: exit code {code}: "
                           f"{done.stderr.strip()}")
        return done

    def spawn(self, command, user="root", cwd=None, env=None, stdout=None, stderr=None, stdin=None):
        if stdin:
            raise LabError("a command in a guest has no stdin to write to")
        return RemoteSpawned(RemoteProcess(self.wire, self.argv(command, user, cwd, env),
                                           stdout=stdout, stderr=stderr))

    def path(self, inside):
        raise LabError(f"{self.name}:{inside}: not reachable from outside of a guest")

    def read(self, inside):
        answer = self.wire.once(op="read", path=inside)
        if "text" not in answer:
            raise LabError(f"{self.name}:{inside}: {answer['error']}")
        return base64.b64decode(answer["text"])

    def write(self, inside, content, user="root", mode=0o644):
        content = content if isinstance(content, bytes) else content.encode()
        answer = self.wire.once(op="write", path=inside, mode=mode, uid=USERS[user][0],
                                text=base64.b64encode(content).decode())
        if "error" in answer:
            raise LabError(f"{self.name}:{inside}: {answer['error']}")

    def exists(self, inside):
        return self.wire.once(op="exists", path=inside)["exists"]

    def remove(self, inside):
        self.wire.once(op="remove", path=inside)

    def pids(self, marker):
        if not self.pid:
            return []
        client = str(self.lab.build / "decamp ")
        return [pid for pid, line in self.wire.once(op="processes")["processes"]
                if marker in line and not line.startswith(("env -i", "setpriv", client))]

    def tell_failure(self):
        """What a failure leaves in the guest only: kept beside the logs, the last of it shown."""
        if not self.pid:
            return
        told = "tail -n 100 /run/decamp/jobs/*/keeper.log; ps axo pid,stat,etimes,args"
        for name, command in (("dmesg", "dmesg"), ("keeper", told)):
            text = self.run(["sh", "-c", command], check=False).stdout
            (self.lab.log_dir / f"{self.name}-{self.boots}-{name}").write_text(text)
            print(f"-- {self.name}: {name}:", *text.splitlines()[-15:], sep="\n", flush=True)

    def login(self, user="bob", *_):
        """With a password on the console, as somebody who sits there does; the prompt is awaited
        before, so that it takes no longer than the login itself. Returns the line's socket."""
        line = socket.socket(socket.AF_UNIX)
        line.connect(f"{self.guest.folder}/console")
        line.settimeout(100)
        for prompt, answer in (("login:", user), ("Password:", "open sesame")):
            text = ""
            line.sendall(b"\n" if prompt == "login:" else b"")
            while prompt not in text:
                try:
                    text += line.recv(4096).decode(errors="replace")
                except TimeoutError as late:
                    raise LabError(f"{self.name}: no {prompt} on the console: {text}") from late
                if "incorrect" in text:
                    raise LabError(f"{self.name}: the login is refused: {text}")
            line.sendall(f"{answer}\n".encode())
        self.lab.event(f"login: {user} at {self.name}")
        return line

    def start_logind(self):
        raise LabError("the stand-in for logind is not for guests")


class VmLab(Lab):
    """kernels: series such as "6.1"; hosts take them in turn. cpu_models: {host's name: QEMU's}.
    roots: {host's name: release}, for those that have another one's files than this machine.
    systemd: names of hosts whose first process it is; they have a login prompt."""

    host_class = VmHost

    def __init__(self, hosts=2, name="vm", settings=None, kernels=("6.1", "6.12"),
                 cpu_models=None, roots=None, systemd=()):
        self.systemd = systemd
        self.cpu_models = cpu_models or {}
        self.roots = {host: qemu.root_folder(suite) for host, suite in (roots or {}).items()}
        self.kernels = [qemu.kernel_folder(series) for series in kernels]
        self.accel = "kvm" if qemu.kvm_works(self.kernels[0]) else "tcg,thread=multi"
        super().__init__(hosts, name, {**TIMINGS, **(settings or {})})

    def _start(self):
        traces.set_patience(PATIENCE)
        os.environ.setdefault("DECAMP_LAB_DEBUG", "1")
        super()._start()

    def close(self):
        for host in self.hosts:
            host.unplug()
        if self.switch:
            self.switch.close()
            self.switch = None
        super().close()

    def tell_failure(self):
        for host in self.hosts:
            log = self.log_dir / f"{host.name}.log"
            lines = [line for line in log.read_text(errors="replace").splitlines()
                     if " verb=" not in line] if log.exists() else []
            print(f"-- {host.name}: decampd:", *lines[-30:], sep="\n", flush=True)
            try:
                host.tell_failure()
            except LabError as error:
                print(f"-- {error}", flush=True)

    def _start_switch(self):
        self.switch = Switch(self._may_pass)
        for host in self.hosts:
            self.switch.add(host.port, self.dir / host.port)

    def _may_pass(self, one, other):
        if one in self.unplugged() or other in self.unplugged():
            return False
        for group in self.groups:
            inside = {host.port for host in group}
            if (one in inside) != (other in inside):
                return False
        return True

    def unplugged(self):
        return {self[name].port for name in self.cuts}

    def cut(self, host):
        self.event(f"link cut: {host.name}")
        self.cuts.add(host.name)

    def mend(self, host):
        self.event(f"link mended: {host.name}")
        self.cuts.discard(host.name)

    def _filter(self):
        self.switch.loss_percent = self.loss_percent
