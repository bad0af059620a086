# SPDX-License-Identifier: LGPL-2.1-or-later
"""An Ethernet switch for guests: QEMU's "-netdev stream" over unix sockets, a port each.

A frame on such a socket is its length, 4 bytes, big endian, then the frame."""

import random
import select
import socket
import struct
import threading

FRAME_MAX = 65536 + 64
BROADCAST = b"\xff" * 6


class Switch:
    """may_pass(from, to): whether two ports can reach each other now."""

    def __init__(self, may_pass):
        self.may_pass = may_pass
        self.loss_percent = 0
        self.random = random.Random(1)
        self.ports = {}
        self.learned = {}
        self.lock = threading.Lock()
        self.listeners = []

    def add(self, name, path):
        """Listen for the guest of a port; a later guest takes the place of an earlier one."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen(1)
        self.listeners.append(listener)
        threading.Thread(target=self._accept, args=(name, listener), daemon=True).start()

    def close(self):
        for end in (*self.listeners, *self.ports.values()):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def _accept(self, name, listener):
        while True:
            try:
                guest, _ = listener.accept()
            except OSError:
                return
            guest.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            with self.lock:
                self.ports[name] = guest
            threading.Thread(target=self._read, args=(name, guest), daemon=True).start()

    def _read(self, name, guest):
        stream = guest.makefile("rb", 1 << 17)
        try:
            while head := stream.read(4):
                size, = struct.unpack("!I", head)
                if size > FRAME_MAX:
                    break
                self._forward(name, head, stream.read(size))
        except (OSError, ValueError, struct.error):
            pass
        with self.lock:
            if self.ports.get(name) is guest:
                del self.ports[name]

    def _forward(self, name, head, frame):
        target, source = frame[:6], frame[6:12]
        with self.lock:
            self.learned[source] = name
            port = self.learned.get(target)
            names = [port] if port and target != BROADCAST else list(self.ports)
            for other in names:
                end = self.ports.get(other)
                if other == name or not end or not self.may_pass(name, other):
                    continue
                if self.loss_percent and self.random.randrange(100) < self.loss_percent:
                    continue
                self._send(end, head + frame)

    @staticmethod
    def _send(end, frame):
        # A guest that takes nothing loses frames, as at any switch; a frame goes whole or not.
        try:
            if select.select([], [end], [], 0)[1]:
                end.sendall(frame)
        except (OSError, ValueError):
            pass
