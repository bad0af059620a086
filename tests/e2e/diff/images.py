# SPDX-License-Identifier: LGPL-2.1-or-later
"""A folder of CRIU images as one plain structure, in which no number means anything by itself.

Ids of files, pipes, memory objects and namespaces are chosen by whoever writes an image. Here each
is replaced by what it stands for, or by the first place at which the same object is found, so that
images of two writers can be compared field by field.
"""

import base64
import hashlib
from pathlib import Path

PAGE = 4096
PE_PRESENT = 4
MAP_PRIVATE = 2
DROPPED = {"id", "shmid", "inode_id", "pipe_id", "peer", "pages_id"}


def digest_of(page):
    return hashlib.sha256(page).hexdigest()[:16]


ZEROS = digest_of(bytes(PAGE))


def load(path):
    from pycriu import images  # pylint: disable=import-outside-toplevel,import-error
    with path.open("rb") as file:
        return images.load(file)["entries"]


class Images:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.first_place = {}
        self.files = {entry["id"]: entry for entry in self.entries("files")}
        self.pipe_data = {e["pipe_id"]: e for e in self.entries("pipes-data")}
        self.fifo_data = {e["pipe_id"]: e for e in self.entries("fifo-data")}
        self.queues = {}
        for entry in self.entries("sk-queues"):
            self.queues.setdefault(entry["id_for"], []).append(entry)
        self.ghosts = {e["orig_id"]: e for e in self.entries("remap-fpath")}

    def entries(self, name):
        path = self.folder / f"{name}.img"
        return load(path) if path.exists() else []

    def names(self):
        """Kinds of image files there are, without their numbers."""
        return sorted({"-".join(word for word in p.stem.split("-") if not word.isdigit())
                       for p in self.folder.glob("*.img")})

    def same_as(self, kind, number, place):
        """The first place at which this object was met."""
        return self.first_place.setdefault((kind, number), place)

    # ---- parts ----

    def file(self, number, place, shared=True):
        """A file of files.img by its id; shared: does it matter who else has it?"""
        if number not in self.files:
            return {"dangling": True}
        first = self.same_as("file", number, place) if shared else place
        if first != place:
            return {"same_as": first}
        entry = dict(self.files[number])
        kind = entry["type"]
        body = next(value for key, value in entry.items() if isinstance(value, dict))
        result = {"type": kind, **clean(body)}
        for key in ("pipe_id", "inode_id"):
            if key in body:
                result["object"] = self.same_as(key, body[key], place)
        if "regf_id" in body:
            result["regf_id"] = self.file(body["regf_id"], f"{place}.file", False)
        if "peer" in body:
            result["peer"] = bool(body["peer"])
        for data in (self.pipe_data, self.fifo_data):
            if body.get("pipe_id") in data and result["object"] == place:
                result["content"] = clean(data[body["pipe_id"]])
        if number in self.queues:
            result["queue"] = [{k: v for k, v in clean(e).items() if k != "id_for"}
                               for e in self.queues[number]]
        for member in result.get("tfd", []):
            member.pop("inode", None)
            member.pop("dev", None)
        if number in self.ghosts:
            result["remap"] = clean(self.ghosts[number], {"orig_id", "remap_id"})
            result["ghost"] = self.ghost(self.ghosts[number]["remap_id"])
        return result

    def ghost(self, number):
        """A deleted file: as a whole behind its entry, or in pieces that leave out the holes."""
        path = self.folder / f"ghost-file-{number}.img"
        if not path.exists():
            return None
        first, *pieces = load(path)
        content = bytearray(first.get("size", 0))
        if "extra" in first:
            content = base64.b64decode(first["extra"])
        for piece in pieces:
            data = base64.b64decode(piece["extra"])
            content[piece["off"]:piece["off"] + len(data)] = data
        drop = {"ino", "dev", "extra", "chunks", "size"}
        return {**clean(first, drop), "content": bytes(content).hex()}

    def rseq_areas(self, pid):
        """Where the kernel writes the number of a CPU whenever it likes: (start, end)."""
        areas = []
        for task in self.entries("pstree"):
            for tid in task["threads"] if task["pid"] == pid else []:
                core = self.entries(f"core-{tid}")
                rseq = core[0].get("thread_core", {}).get("rseq_entry") if core else None
                if rseq:
                    start = rseq["rseq_abi_pointer"]
                    areas.append((start, start + max(rseq["rseq_abi_size"], 32)))
        return areas

    def pages(self, name, masked=()):
        """{page address: digest of its content}; zero pages are left out."""
        entries = self.entries(name)
        if not entries:
            return {}
        content = self.folder / f"pages-{entries[0]['pages_id']}.img"
        found = {}
        with content.open("rb") as file:
            for entry in entries[1:]:
                count = entry.get("nr_pages", entry.get("compat_nr_pages", 0))
                flags = entry.get("flags", PE_PRESENT)
                flags = flags if isinstance(flags, int) else \
                    (PE_PRESENT if "PE_PRESENT" in flags else 0)
                for index in range(count if flags & PE_PRESENT else 0):
                    page = mask(file.read(PAGE), entry["vaddr"] + index * PAGE, masked)
                    digest = digest_of(page)
                    if digest != ZEROS:
                        found[entry["vaddr"] + index * PAGE] = digest
            if file.read(1):
                found["rest"] = "bytes of no page"
        return found

    def memory(self, pid):
        entry = self.entries(f"mm-{pid}")
        if not entry:
            return None
        mm = clean(entry[0], {"vmas", "exe_file_id"})
        mm["exe"] = self.file(entry[0]["exe_file_id"], f"{pid}.exe")
        vmas = {}
        for vma in entry[0]["vmas"]:
            key = f"{vma['start']:#x}"
            # A private map needs to be readable only, however its file was opened.
            one = clean(vma, {"fd", "fdflags"} if vma["flags"] & MAP_PRIVATE else {"fd"})
            if vma.get("shmid"):
                shared = self.folder / f"pagemap-shmem-{vma['shmid']}.img"
                one["object"] = (self.file(vma["shmid"], f"{pid}.vma.{key}")
                                 if vma["shmid"] in self.files else
                                 self.same_as("shm", vma["shmid"], f"{pid}.vma.{key}"))
                if shared.exists():
                    one["content"] = self.pages(shared.stem)
            vmas[key] = one
        mm["vmas"] = vmas
        pages = self.pages(f"pagemap-{pid}", self.rseq_areas(pid))
        for vma in entry[0]["vmas"]:
            self.drop_unchanged(vma, pages)
        mm["pages"] = {f"{address:#x}" if isinstance(address, int) else address: digest
                       for address, digest in pages.items()}
        return mm

    def drop_unchanged(self, vma, pages):
        """Pages of a private map that are as in the file: saved or not, it is the same."""
        body = self.files.get(vma.get("shmid"), {}).get("reg")
        if not body or not Path(body["name"]).is_file():
            return
        with open(body["name"], "rb") as file:
            for address in range(vma["start"], vma["end"], PAGE):
                if address in pages:
                    file.seek(vma["pgoff"] + address - vma["start"])
                    page = file.read(PAGE)
                    if digest_of(page + bytes(PAGE - len(page))) == pages[address]:
                        del pages[address]

    def task(self, entry):
        pid = entry["pid"]
        task = {"tree": entry, "threads": {}}
        for tid in entry["threads"]:
            tid = tid or pid  # 0: a zombie
            task["threads"][str(tid)] = clean(self.entries(f"core-{tid}")[0])
        ids = self.entries(f"ids-{pid}")
        if ids:
            task["ids"] = {key: self.same_as(key, value, pid) if not key.endswith("_ns_id") else
                           self.same_as("ns " + key, value, "root")
                           for key, value in ids[0].items()}
            task["fds"] = {str(fd["fd"]): {**clean(fd, {"fd"}),
                                           "file": self.file(fd["id"], f"{pid}.fd.{fd['fd']}")}
                           for fd in self.entries(f"fdinfo-{ids[0]['files_id']}")}
        fs = self.entries(f"fs-{pid}")
        if fs:
            task["fs"] = {**clean(fs[0], {"cwd_id", "root_id"}),
                          "cwd": self.file(fs[0]["cwd_id"], f"{pid}.cwd", False),
                          "root": self.file(fs[0]["root_id"], f"{pid}.root", False)}
        task["mm"] = self.memory(pid)
        return task

    def whole(self):
        inventory = self.entries("inventory")[0]
        root_ids = inventory.pop("root_ids", {})
        for key, value in root_ids.items():
            if key.endswith("_ns_id"):
                self.same_as("ns " + key, value, "root")
        result = {"inventory": clean(inventory), "images": {name: True for name in self.names()}}
        for entry in self.entries("pstree"):
            result[str(entry["pid"])] = self.task(entry)
        result["locks"] = {str(i): clean(e) for i, e in enumerate(sorted(
            (clean(e) for e in self.entries("filelocks")), key=str))}
        result["time"] = {str(i): clean(e) for i, e in enumerate(self.entries("timens-0"))}
        return result


def mask(page, address, areas):
    for start, end in areas:
        first, last = max(start - address, 0), min(end - address, PAGE)
        if first < last:
            page = page[:first] + bytes(last - first) + page[last:]
    return page


# Seconds and their parts, whose sum is what counts.
TIMES = [("tv_sec", "tv_nsec", 1), ("tv_sec", "tv_usec", 1000), ("vsec", "vnsec", 1),
         ("vsec", "vusec", 1000)]


def with_sums(entry):
    for seconds, part, factor in TIMES:
        if seconds in entry and part in entry:
            rest = {key: value for key, value in entry.items() if key not in (seconds, part)}
            return {**rest, seconds: entry[seconds] * 10**9 + entry[part] * factor}
    return entry


def clean(value, drop=frozenset()):
    """Without ids, times as nanoseconds, bytes as hex digits, deep."""
    if isinstance(value, dict):
        value = with_sums(value)
        return {key: clean(inner) for key, inner in value.items()
                if key not in DROPPED and key not in drop}
    if isinstance(value, (list, tuple)):
        return [clean(inner) for inner in value]
    if isinstance(value, (bytes, bytearray)):
        return hashlib.sha256(value).hexdigest()[:16] if len(value) > 64 else value.hex()
    return value


def differences(first, second, path=""):
    """(path, value in first, value in second), None where there is nothing."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in sorted(set(first) | set(second), key=str):
            yield from differences(first.get(key), second.get(key), f"{path}/{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second)):
            yield from differences(one, other, f"{path}/{index}")
    elif first != second:
        yield path, first, second
