# SPDX-License-Identifier: LGPL-2.1-or-later
#
# make deps    install what is missing (root)      make unit unit-san fuzz model e2e e2e-san  groups of tests
# make         build                               make lint                     style and layering
# make check   deps, build, every test             make install                  DESTDIR, prefix
# make zdtm    CRIU's own tests judge our images   make soak SEED= MINUTES=      no write is missed
# make model-long                                  the register's model, larger bounds: hours
# make sim-paper SEED=                             a paper's experiment, anew; docs/paper.md
# make bench-pause                                 how long a job stands still
# make bench-handover bench-takeover               until committed, until it runs again; until taken over
# make bench-export                                what a core of a checkpoint costs
# make store-faults SEED=8                         the store on a disk that fails at every call
# make bench-store-io                              a store beside the raw disk
# make bench-restore                               1 GiB back from three peers
# make bench-store bench-agent-rss                  checkpoints of real programs; memory for one of 4 GiB
#                                                  bench-NAME: rows of one form, build/bench/NAME.json
# make sim-chord NODES= HOURS= SEED=               look-ups in large rings; build/bench/chord.json
# make sim SEED= NODES= HOURS=                     one run of the simulator; its first line replays it
# make night SEED= DAYS= NODES=                    are checkpoints there while rooms are closed?
# make vm-check                                    under other kernels, in guests; docs/vm.md
# make vm                                          its short form
# make vm-debug                                    the module under KASAN, lockdep, kmemleak: builds a kernel
# make sim-long      200 seeds of 50 hosts, 24 h, and one of 1000: hours
# make sim-mutants   is each safety rule needed?
# make module KDIR=  the kernel module, for the kernel with these headers; build/module/RELEASE/
# make install-dkms  its sources for dkms, which builds it for each kernel that is installed
#
# Variables: V=1 shows commands, WERROR=0 tolerates warnings, SAN=1 builds with sanitizers below
# build/san, FUZZ=1 with clang's fuzzer below build/fuzz. T=word limits the tests that are run.

prefix ?= /usr
sysconfdir ?= /etc
export FUZZ_SECONDS ?= 10
BPF_CLANG ?= clang
export PATH := $(PATH):/usr/sbin:/sbin

# Flavours: a directory, a compiler and flags each.
B := build
FLAVOUR := -O2
WERROR ?= 1
ifeq ($(SAN),1)
B := build/san
FLAVOUR := -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
else ifeq ($(FUZZ),1)
B := build/fuzz
CC := clang
FLAVOUR := -O1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined \
	-fno-sanitize-recover=all -Wno-missing-prototypes
endif

PKGS := libsystemd libprotobuf-c libcrypto libssl libzstd libxxhash lmdb libmicrohttpd json-c \
	libcurl libbpf libelf libseccomp libcap zlib fuse3 libisal
CFLAGS ?= -g
CFLAGS_ALL = -std=gnu11 $(FLAVOUR) $(CFLAGS) -D_GNU_SOURCE -pthread -I. -Ibuild/gen \
	-Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wimplicit-fallthrough \
	$(if $(filter-out 0,$(WERROR)),-Werror)
LIBS = -lpthread -lm $(PKG_LIBS)
ifneq ($(if $(MAKECMDGOALS),$(filter-out deps check demo clean module install-dkms,$(MAKECMDGOALS)),all),)
CFLAGS_ALL += $(shell pkg-config --cflags $(PKGS))
PKG_LIBS := $(shell pkg-config --libs $(PKGS) || echo "Run 'make deps' as root first." >&2)
endif

PROTO := $(shell find agent overlay -name '*.proto' 2>/dev/null)
BPF := $(wildcard bpf/*.bpf.c)
CORE := $(wildcard overlay/core/*.c)
LIB := $(foreach d,api capture cluster export host image job native pack restore util,\
	$(filter-out agent/native/main.c,$(wildcard agent/$d/*.c))) \
	$(wildcard overlay/net/*.c overlay/store/*.c overlay/*.c)
CLI := $(wildcard agent/cli/*.c)
# The keeper and its client share a protocol; the keeper takes one file of the library.
KEEPER := $(filter-out agent/keeper/client.c,$(wildcard agent/keeper/*.c)) agent/util/io.c
LIB += $(wildcard agent/keeper/client.c agent/keeper/protocol.c)
UNIT := $(wildcard tests/unit/test_*.c)
UNIT_COMMON := $(filter-out $(UNIT),$(wildcard tests/unit/*.c)) \
	$(filter-out tests/sim/sim_%.c,$(wildcard tests/sim/*.c))
FUZZERS := $(wildcard tests/fuzz/fuzz_*.c)

PB_H := $(PROTO:%.proto=build/gen/%.pb-c.h)
PB_C := $(PB_H:.h=.c)
SKEL := $(BPF:bpf/%.bpf.c=build/gen/bpf/%.skel.h)
VMLINUX := $(if $(shell grep -l '"vmlinux.h"' bpf/* 2>/dev/null),build/gen/vmlinux.h)
obj = $(patsubst %.c,$(B)/obj/%.o,$(patsubst build/%,%,$1))
ARCHIVES := $(if $(LIB)$(PROTO),$(B)/libdecamp.a) $(if $(CORE),$(B)/liboverlay-core.a)
PROGRAMS := $(if $(wildcard agent/main.c),$(B)/decampd) $(if $(CLI),$(B)/decamp) \
	$(if $(wildcard agent/keeper/main.c),$(B)/decamp-keeper) \
	$(if $(wildcard agent/native/main.c),$(B)/decamp-capture)
PLUGIN := $(wildcard agent/image/plugin/*.c) agent/util/deadlines.c
PROGRAMS += $(B)/criu/decamp.so
TESTS := $(UNIT:tests/unit/%.c=$(B)/tests/%)
OBJECTS := $(call obj,$(LIB) $(CORE) $(CLI) $(KEEPER) $(PB_C) $(UNIT) $(UNIT_COMMON) $(FUZZERS) \
	agent/main.c agent/native/main.c $(wildcard tests/sim/sim_*.c tests/kmod/*.c))

Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $1 $@)
given = $(if $(filter command environment,$(firstword $(origin $1))),$($1),$2)
SUBMAKE = +$(Q)$(MAKE) --no-print-directory $(if $(findstring --jobserver,$(MAKEFLAGS)),,-j$(shell nproc))

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: all tests fuzzers deps check demo unit unit-san fuzz model model-long e2e e2e-san sim sim-paper lint install clean zdtm soak vm vm-check vm-debug sim-long sim-mutants night sim-chord store-faults module install-dkms

all: $(ARCHIVES) $(PROGRAMS) $(SKEL)
	@:
tests: $(TESTS) $(B)/tests/kmod
fuzzers: $(FUZZERS:tests/fuzz/%.c=$(B)/%)

# The generated headers come first: no dependency file knows them before the first build.
$(filter-out $(call obj,$(CORE) $(KEEPER)),$(OBJECTS)): | $(PB_H) $(SKEL)
$(call obj,$(CORE)): CFLAGS_ALL += -Wconversion
$(call obj,$(PB_C)): CFLAGS_ALL += -w
# The keeper runs in any mount namespace: nothing but itself, whatever the flavour.
$(call obj,$(KEEPER)): FLAVOUR := -O2 -fPIE

$(B)/obj/%.o: %.c
	$(call say,CC)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<
$(B)/obj/gen/%.o: build/gen/%.c
	$(call say,CC)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) -MMD -MP -c -o $@ $<
build/gen/%.pb-c.c build/gen/%.pb-c.h: %.proto
	$(call say,PROTO)
	@mkdir -p build/gen
	$(Q)protoc-c -I. --c_out=build/gen $<
build/bpf/%.bpf.o: bpf/%.bpf.c | $(VMLINUX)
	$(call say,BPF)
	@mkdir -p $(@D)
	$(Q)$(BPF_CLANG) -g -O2 -Wall -Werror -target bpf -I. -Ibuild/gen -MMD -MP \
		-D__TARGET_ARCH_$(shell uname -m | sed 's/x86_64/x86/;s/aarch64/arm64/') -c -o $@ $<
	$(Q)llvm-strip -g $@
build/gen/bpf/%.skel.h: build/bpf/%.bpf.o
	$(call say,SKEL)
	@mkdir -p $(@D)
	$(Q)bpftool gen skeleton $< name $(subst -,_,$*)_bpf >$@
build/gen/vmlinux.h: /sys/kernel/btf/vmlinux
	@mkdir -p $(@D)
	$(Q)bpftool btf dump file $< format c >$@

%.a:
	$(call say,AR)
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) rcs $@ $(filter %.o,$^)
$(B)/libdecamp.a: $(call obj,$(LIB) $(PB_C))
$(B)/liboverlay-core.a: $(call obj,$(CORE))
$(B)/libtest.a: $(call obj,$(UNIT_COMMON))

# The two archives need each other, hence the group.
link = $(CC) $(FLAVOUR) $(LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--as-needed \
	-Wl,--start-group $(filter %.a,$^) -Wl,--end-group
$(B)/decampd: $(call obj,agent/main.c) $(ARCHIVES)
$(B)/decamp: $(call obj,$(CLI)) $(ARCHIVES)
$(B)/decamp-capture: $(call obj,agent/native/main.c) $(ARCHIVES)
$(B)/decampd $(B)/decamp $(B)/decamp-capture:
	$(call say,LINK)
	$(Q)$(link) $(LIBS)
$(B)/decamp-keeper: FLAVOUR := -O2 -static-pie
$(B)/decamp-keeper: $(call obj,$(KEEPER))
	$(call say,LINK)
	$(Q)$(link)
# CRIU loads all that ends in .so there, whatever our flavour.
$(B)/criu/decamp.so: FLAVOUR := -O2 -fPIC
$(B)/criu/decamp.so: $(PLUGIN) $(wildcard agent/image/plugin/*.h) agent/util/deadlines.h \
		agent/util/cleanup.h
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_ALL) -fvisibility=hidden -shared -o $@ $(filter %.c,$^)
$(B)/tests/test_%: $(B)/obj/tests/unit/test_%.o $(if $(UNIT_COMMON),$(B)/libtest.a) $(ARCHIVES)
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(link) -lcmocka $(LIBS)
# What decamp(1) does of itself is in no archive, and its verbs bear the names of decampd's.
$(B)/tests/test_worktree $(B)/tests/test_folder_lost: $(call obj,$(patsubst %,agent/cli/%.c,\
	checkpoint client commit json mount_work options progress text version worktree))
# One of its hosts lies.
$(B)/tests/test_hostile: LDFLAGS += -Wl,--wrap=store_read
# The oracle test makes its own where there is a compiler at hand.
$(B)/tests/mutate: $(wildcard tests/oracle/mutate*.c) $(wildcard tests/oracle/*.h) tests/unit/slow.h
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu11 -O2 -D_GNU_SOURCE -pthread -o $@ $(filter %.c,$^)
$(B)/tests/sim_%: $(B)/obj/tests/sim/sim_%.o $(B)/libtest.a $(ARCHIVES)
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(link) -lcmocka $(LIBS)
# Runs where the module is loaded; cmocka is for the calls that it shares with a unit test.
$(B)/tests/kmod: $(call obj,$(wildcard tests/kmod/*.c) tests/unit/blocking_calls.c agent/util/kmod.c)
	$(call say,LINK)
	@mkdir -p $(@D)
	$(Q)$(link) -lcmocka -lpthread
build/fuzz/fuzz_%: build/fuzz/obj/tests/fuzz/fuzz_%.o $(ARCHIVES)
	$(call say,LINK)
	$(Q)$(link) -fsanitize=fuzzer $(LIBS)

# Libraries are looked up when a makefile is read, so what follows "deps" is a new make.
deps:
	$(Q)scripts/bootstrap
check: deps
	$(Q)tests/run-checks $(T)
demo: deps
	$(SUBMAKE) all
	$(Q)tests/lab/demo
# The overlay's core on a simulated clock, network and disks; the first line replays a run.
SEED ?= 1
NODES ?= 50
HOURS ?= 24
MINUTES ?= 10
sim: $(B)/tests/sim_core
	$(Q)SIM_COMMIT=$$(git describe --always --dirty 2>/dev/null) $< $(SEED) $(NODES) $(HOURS)
# Chord look-ups of a large ring under churn; table and build/bench/chord.json.
sim-chord: $(B)/tests/sim_chord
	$(Q)mkdir -p $(B)/bench
	$(Q)SIM_COMMIT=$$(git describe --always --dirty 2>/dev/null) $< $(SEED) \
		$(call given,HOURS,2) $(B)/bench/chord.json $(call given,NODES,1000 10000 100000)
sim-long: $(B)/tests/sim_core
	$(Q)SIM_COMMIT=$$(git describe --always --dirty 2>/dev/null) $< $(SEED) $(NODES) $(HOURS) 200
	$(Q)SIM_COMMIT=$$(git describe --always --dirty 2>/dev/null) $< $(SEED) 1000 $(HOURS)
# Rooms that close every night; decamp's placement and repair against others. build/bench/night.json
DAYS ?= 28
night: NODES := $(if $(filter file,$(origin NODES)),200,$(NODES))
night: $(B)/tests/sim_night
	@mkdir -p build/bench
	$(Q)SIM_COMMIT=$$(git describe --always --dirty 2>/dev/null) $< $(SEED) $(DAYS) $(NODES) build/bench
sim-mutants:
	$(Q)tests/sim/mutants $(T)
# An old paper's experiment, exactly and simulated, and decamp's policy on the same axis.
sim-paper: $(B)/tests/sim_paper
	@mkdir -p build/bench
	$(Q)$< --seed $(SEED) build/bench
	$(Q)tests/sim/paper-curves build/bench/paper.json docs
unit unit-san fuzz model e2e e2e-san lint vm:
	$(Q)tests/run-checks $@ $(T)
vm-check:
	$(Q)tests/run-checks vm-all $(T)
vm-debug:
	$(Q)scripts/kernels 6.12-debug || test $$? = 77
	$(Q)tests/run-checks vm-debug $(T)
# Only spin and a compiler.
model-long:
	$(Q)tests/model/run long
# The store on a disk that fails at every call, for many draws of what a power cut leaves.
store-faults: $(B)/tests/test_store_faults
	$(Q)STORE_FAULTS_SEEDS=$(call given,SEED,8) $<
soak: all
	$(Q)tests/oracle/soak $(SEED) $(MINUTES)
zdtm: all
	$(Q)tests/zdtm/run $(T)
bench-%: all
	$(Q)tests/bench/$*

# From copies: headers of several kernels, sources that may be read-only, nothing beside them.
# W=1 and C=1 are the kernel's own.
KDIR ?= /lib/modules/$(shell uname -r)/build
module:
	$(Q)test -e $(KDIR)/Makefile || { echo "no kernel headers in $(KDIR): give KDIR=" >&2; exit 1; }
	$(Q)scripts/module $(abspath $(KDIR)) $(B)/module $(if $(W),W=$(W)) $(if $(C),C=$(C))
# For a package of its own, which depends on dkms; the agent's only recommends it.
DKMS_SOURCES = $(DESTDIR)/usr/src/decamp-$(shell sed -n 's/PACKAGE_VERSION="\(.*\)"/\1/p' packaging/dkms/dkms.conf)
install-dkms:
	install -d $(DKMS_SOURCES)/kmod/uapi $(DESTDIR)$(prefix)/lib/modules-load.d
	install -m 644 packaging/dkms/dkms.conf Kbuild $(DKMS_SOURCES)/
	install -m 644 kmod/Kbuild $(wildcard kmod/*.[ch]) $(DKMS_SOURCES)/kmod/
	install -m 644 kmod/uapi/decamp.h $(DKMS_SOURCES)/kmod/uapi/
	install -m 644 packaging/dkms/modules-load.conf \
		$(DESTDIR)$(prefix)/lib/modules-load.d/decamp.conf

install: all
	install -d $(addprefix $(DESTDIR)$(prefix)/,bin sbin lib/decamp/criu lib/systemd/system share/man/man1 \
		share/man/man5 share/man/man8 share/doc/decamp share/bash-completion/completions)
	install $(B)/decampd $(DESTDIR)$(prefix)/sbin/
	install $(B)/decamp $(DESTDIR)$(prefix)/bin/
	install $(B)/decamp-keeper $(B)/decamp-capture $(DESTDIR)$(prefix)/lib/decamp/
	install -m 644 $(B)/criu/decamp.so $(DESTDIR)$(prefix)/lib/decamp/criu/
	$(foreach s,1 5 8,$(if $(wildcard docs/*.$s),install -m 644 $(wildcard docs/*.$s) \
		$(DESTDIR)$(prefix)/share/man/man$s/;))
	$(if $(wildcard packaging/decampd.conf),install -m 644 packaging/decampd.conf \
		$(DESTDIR)$(prefix)/share/doc/decamp/)
	install -m 644 packaging/decamp.bash \
		$(DESTDIR)$(prefix)/share/bash-completion/completions/decamp
	sed 's,/usr/,$(prefix)/,' packaging/decampd.service \
		>$(DESTDIR)$(prefix)/lib/systemd/system/decampd.service

clean:
	rm -rf build

-include $(OBJECTS:.o=.d) $(BPF:bpf/%.bpf.c=build/bpf/%.bpf.d)
