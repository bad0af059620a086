#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Old packs are kept as shards: the job comes back from them, with two hosts less."""

import hashlib
import re
import struct

from common import check, check_counter, check_equal, counter_argv, main, submit, wait_for

STEPS = 260
SHARDS = 6


def objects(host):
    """What lies on a host's disk: (shards of which object, whole packs), by their heads."""
    shards, packs = {}, set()
    for path in (host.state_dir / "overlay/segments").iterdir():
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # its daemon is at work
        for at in range(0, len(data), 4096):
            if data[at:at + 8] == b"DECAMPSH":
                shards[data[at + 24:at + 56]] = data[at + 14]
            elif data[at:at + 8] == b"DECAMPPK":
                size, = struct.unpack_from("<I", data, at + 44)
                packs.add(hashlib.sha256(data[at:at + size]).digest())
    return shards, packs


def shards_and_copies(lab):
    """The shards that there are of each object, and the objects that lie somewhere as a whole."""
    found, whole = {}, set()
    for host in lab.hosts:
        shards, packs = objects(host)
        whole |= packs
        for name, index in shards.items():
            found.setdefault(name, set()).add(index)
    return found, whole


def only_shards(lab, names):
    """Each of these objects that there still is has all its shards, on as many hosts, and no copy.
    Others become shards meanwhile. If none is left: those that there are now."""
    found, whole = shards_and_copies(lab)
    left = names & (found.keys() | whole)
    if not left:
        names.update(found)
    return left and all(found.get(name) == set(range(SHARDS)) for name in left) \
        and not whole & left


def test_shards(lab):
    """Packs become shards, copies go, and a host that dies is replaced from what k hosts have."""
    home = lab[1]
    job = submit(lab, home, "shards", counter_argv("mark-ec", STEPS, 0.05, 8), "--every", "1")
    wait_for(lambda: job.show()["detail"].get("coded_bytes", 0) >= 256 << 10, 30,
             "packs kept as shards")
    check(True, f"{job.show()['detail']['coded_packs']} packs are kept as shards")
    log = lab.log_dir / f"{home.name}.log"
    wait_for(lambda: re.search(r"packs, \d+ bytes, are shards from now on",
                               log.read_text(errors="replace")), 20, "word of it in the log")
    names = wait_for(lambda: set(shards_and_copies(lab)[0]), 20, "shards")
    wait_for(lambda: only_shards(lab, names), 20, "shards on six hosts, and no copies")
    check(True, "of what is coded there are six shards and no copy")
    other = next(host for host in lab.hosts[1:] if objects(host)[0] and host is not lab[2])
    other.power_cut()
    home.power_cut()
    job.wait_host([host for host in lab.hosts if host not in (home, other)], 60, at=lab[2])
    check(True, "it goes on elsewhere, with a host that had a shard gone as well")
    for host in (home, other):
        host.boot()
        host.start_daemon()
        host.wait_daemon()
    job.wait_collected()
    check_counter(job, STEPS, 8)
    wait_for(lambda: not any(objects(host)[0] for host in lab.hosts), 20, "shards to go")
    check_equal(job.state(), "collected", "it is over, and its shards are gone")


if __name__ == "__main__":
    main(globals(), hosts=8, settings={"erasure": "4+2", "erasure_after": "1"})
