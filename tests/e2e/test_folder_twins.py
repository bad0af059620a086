#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts that are apart make two folders of one name: both stay, and everybody can tell which."""

from common import check, check_equal, home_of, insist, main, refused, wait_for
from test_folder import Mount, folder, settled, wait_version


def listed(lab, host):
    """What a host calls the folders, each with its own host."""
    answer = insist(lambda: host.decamp("folder", user=lab.user))
    return sorted((one["label"], one["host"]) for one in answer["folders"])


def test_apart(lab):
    """Apart, each of them makes a folder "thesis" and writes into it."""
    lab.made, lab.mounts = {}, {}
    lab.cut(lab[2])
    for host in lab.hosts:
        wait_for(lambda h=host: lab.alive_seen_by(h) == {h.name}, 30,
                 f"{host.name} is alone", 0.3)
    for host in lab.hosts:
        lab.made[host.name] = insist(lambda h=host: h.decamp(
            "folder create", "thesis", "--every", "1", user=lab.user))["folder"]
        lab.mounts[host.name] = mount = Mount(lab, host)
        mount.sh(f"echo {host.name} >thesis/who")
        check(settled(lab, host, "thesis") > 0, f"{host.name}: thesis has a version")


def test_together(lab):
    """Together again each host calls them by the same names, and reads and writes both."""
    lab.mend(lab[2])
    lab.wait_members(seconds=60)
    names = [("thesis", "host1"), ("thesis~host2", "host2")]
    for host in lab.hosts:
        wait_for(lambda h=host: listed(lab, h) == names, 60, f"{host.name}: both names", 0.5)
        text = host.run([lab.build / "decamp", "folder"], user=lab.user).stdout
        check("thesis~host2" in text, f"{host.name}: so it is for people")
        mount = lab.mounts[host.name]
        wait_for(lambda m=mount: {"thesis", "thesis~host2"} <= set(m.names()), 20,
                 f"{host.name}: both in the mount", 0.5)
        check_equal(mount.sh("cat thesis/who thesis~host2/who").stdout, "host1\nhost2\n",
                    f"{host.name}: each is what it was")
    for host, label, other in ((lab[1], "thesis", lab[2]), (lab[2], "thesis~host2", lab[1])):
        seq = settled(lab, host, f"thesis~{host.name}")
        lab.mounts[host.name].sh(f"echo again >>{label}/who")
        seq = wait_version(lab, host, f"thesis~{host.name}", seq)
        there = lab.mounts[other.name]
        wait_for(lambda: there.sh(f"readlink {label}").stdout.strip() == f"{label}@{seq}", 30,
                 f"{label}@{seq} on {other.name}", 0.3)
        check_equal(there.sh(f"cat {label}/who").stdout, f"{host.name}\nagain\n",
                    f"{label} is written at {host.name}, and read at {other.name}")


def test_which(lab):
    """The bare name is refused, with the names to choose from; nothing is deleted by mistake."""
    for host in lab.hosts:
        refused(lambda h=host: h.decamp("folder delete", "thesis", user=lab.user),
                "thesis~host1", "thesis~host2")
    refused(lambda: lab[1].decamp("folder delete", "thesis~host2", user=lab.user), "host2")
    refused(lambda: lab[1].decamp("folder create", "thesis", user=lab.user), "of that name")
    both = insist(lambda: lab[1].decamp("folder", "thesis", user=lab.user))["folders"]
    check_equal(sorted(one["folder"] for one in both), sorted(lab.made.values()), "both are there")
    answer = lab[1].decamp("folder delete", "thesis~host1", user=lab.user)
    check_equal(answer["folder"], lab.made["host1"], "the one that was named is deleted")
    for host in lab.hosts:
        wait_for(lambda h=host: listed(lab, h) == [("thesis", "host2")], 60,
                 f"{host.name}: the other one is thesis alone", 0.5)
    check_equal(folder(lab, lab[2], "thesis")["folder"], lab.made["host2"], "and it is that one")
    mount = lab.mounts["host2"]
    wait_for(lambda: mount.sh("cat thesis/who", check=False).stdout == "host2\nagain\n", 20,
             "it by that name in its mount", 0.5)
    copy = f"{home_of(lab.user)}/.local/state/decamp/folders/{lab.made['host1']}/tree/who"
    check_equal(lab[1].path(copy).read_text(), "host1\nagain\n", "the other's copy stays")
    for mount in lab.mounts.values():
        mount.end()


if __name__ == "__main__":
    main(globals(), hosts=2)
