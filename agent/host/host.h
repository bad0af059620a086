/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * What this machine is and who sits at it: resources, CPU features, logins, kernel features, and
 * whether a process can be captured.
 *
 * Probe features, never versions. Threading: host_watch_* belong to the event loop's thread; all
 * others are reentrant and may block for some ms (host_doctor: up to a second, it runs programs and
 * forks). host_trace_start and _stop are for one thread, the other host_trace_* for any.
 * Errors: -errno.
 *
 * Limits: a configuration file of 64 KiB; 4096 processes in a tree that is checked; 256 sessions;
 * 1024 processes followed by the trace, 65536 with their descendants.
 * Sources: systemd org.freedesktop.login1(5), proc(5), sock_diag(7), Intel SDM (CPUID).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent/util/cleanup.h"

struct json_object;
struct sd_event;

/* ---- configuration (/etc/decamp/decampd.conf: "key = value" lines, # comments) ---- */
struct host_config {
	char state_dir[256]; /* /var/lib/decamp */
	char run_dir[256];   /* /run/decamp */
	char user[32];	     /* decamp */
	char room[64];	     /* failure domain; default: host name's letters before digits */
	char listen_addr[48], advertise_addr[48];
	uint16_t port;		  /* 7431 */
	char keeper_path[256];	  /* /usr/lib/decamp/decamp-keeper */
	char criu_path[256];	  /* empty: found in PATH */
	char capture_path[256];	  /* /usr/lib/decamp/decamp-capture */
	char engine[16];	  /* auto, native, criu */
	char lazy_restore[16];	  /* auto, off */
	uint8_t closed_hours[21]; /* a bit per local hour of the week, from Thursday 00:00 */
	char tags[60];		  /* words with one blank between; as long as OV_TAGS_MAX */
	uint32_t every_s;	  /* 0: adaptive (Young) */
	uint32_t copies;	  /* 3 */
	char erasure[8];	  /* off, auto, 4+2, 4+4, 8+8 */
	uint32_t erasure_after;	  /* checkpoints until a pack is old: 16 */
	uint32_t probe_ms, suspect_ms, renew_ms, lease_ms, hold_ms; /* 1000 5000 5000 20000 22000 */
	uint64_t quota_bytes, reserve_bytes;			    /* 20 GiB, 5 GiB */
	uint64_t scrub_bytes_s;					    /* 2 MB/s */
	uint64_t pack_memory, pack_disk;			    /* 256 MiB, 2 GiB */
	uint32_t pack_cpu_percent;				    /* of one processor: 100 */
	uint32_t credit_round_s;				    /* 600 */
	uint64_t folder_bytes;					    /* 16 GiB */
	uint64_t closure_max_bytes;				    /* 4 GiB */
	bool takes_jobs;					    /* yes */
	bool remote_logins;	/* ssh sessions count as an owner's return: no */
	bool vacate_on_login;	/* yes */
	uint32_t return_idle_s; /* take jobs again this long after the last session ended: 60 */
};
void host_config_default(struct host_config *config);
/* "mon-fri 20-8, sat-sun 0-24": days, first hour, hour after the last (of the next day if not later).
 * -EINVAL. */
int host_hours_parse(const char *text, uint8_t ret_hours[21]) _must_check_;
/* error: "FILE:LINE: key: reason"; a missing file is no error. */
int host_config_load(struct host_config *config, const char *path, char error[256]) _must_check_;

/* ---- resources ---- */
struct host_resources {
	uint64_t mem_free_bytes; /* MemAvailable */
	uint32_t load_milli;	 /* 1-minute load * 1000 / CPUs */
	uint32_t cpus;
	uint64_t cpu_features[4]; /* agent/host/cpu.h says which bits; a host must have them all */
	char arch[16], kernel[64], hostname[64];
	uint32_t kernel_version; /* OV_KERNEL_VERSION(), overlay/types.h; 0: not known */
};
int host_resources(struct host_resources *ret_resources) _must_check_;
/* enum kernel_feature (overlay/types.h), each tried out: some ms, and short-lived children. */
uint32_t host_kernel_features(const struct host_config *config);

/* cgroup v2: the folder under which jobs' cgroups are made ("…/decamp"), made if missing;
 * -EOPNOTSUPP without a v2 tree. Works in hybrid set-ups and inside a cgroup namespace. */
int host_cgroup_base(char *path, size_t size) _must_check_;

/* ---- doctor ---- */
/* {"features":[{"name":…,"have":bool,"use":…,"why":…}],"warnings":[…],"ok":bool} */
int host_doctor(const struct host_config *config, struct json_object **ret_report) _must_check_;
bool host_has_sys_resource(void);
/* The criu to use: config->criu_path, else the first in PATH; -ENOENT. */
int host_criu_path(const struct host_config *config, char *path, size_t size) _must_check_;

/* ---- check PID: nothing is stopped or changed ---- */
/*
 * {"pid":…,"name":…,"engine":"criu"|"none","ok":bool,
 *  "problems":[{"object":…,"reason":…,"next":…}],"notes":["…"]}; -ESRCH, -EPERM (kernel thread,
 * PID 1, decampd's own, another user's: caller_uid != 0 and not theirs). Unlike elsewhere, with
 * -EPERM *ret_report is written too: its one problem says why. Release with json_object_put().
 */
int host_check(pid_t pid, uid_t caller_uid, struct json_object **ret_report) _must_check_;

/* ---- logins ---- */
struct host_watch;
struct host_watch_events {
	void (*user_came)(void *ctx, const char *who); /* first session that counts */
	void (*user_gone)(void *ctx);		       /* last one ended, return_idle_s ago */
	void (*shutdown_soon)(void *ctx);	       /* logind PrepareForShutdown/Sleep true */
	void *ctx;
};
/*
 * Returns 0 without a system bus or logind too: both are looked for every 10 s, as long as it takes.
 * events is copied. No callback comes from within this call, and none may call host_watch_stop().
 */
int host_watch_start(struct sd_event *event, const struct host_config *config,
		     const struct host_watch_events *events,
		     struct host_watch **ret_watch) _must_check_;
void host_watch_stop(struct host_watch *w);
/* Does logind answer now? */
bool host_watch_connected(const struct host_watch *w);
/*
 * Jobs are safe: let go of the delay that logind grants before a shutdown or sleep (at most its
 * InhibitDelayMaxSec, 5 s by default). Taken again when a sleep is over.
 */
void host_watch_ready(struct host_watch *w);

/* ---- process trees by eBPF (tp_btf fork/exit), procfs without it ---- */
struct host_trace;
/*
 * -EOPNOTSUPP without BPF or BTF: reason says which; the caller goes on without. event may be NULL:
 * then ends are only looked at when one of the calls below is made.
 */
int host_trace_start(struct sd_event *event, struct host_trace **ret_trace,
		     char reason[256]) _must_check_;
void host_trace_stop(struct host_trace *t);
/*
 * Follow pid and all that it forks from now on. PIDs are those of the caller's PID namespace.
 * -ESRCH if it has ended, -ENOSPC beyond the limit.
 */
int host_trace_follow(struct host_trace *t, pid_t pid) _must_check_;
/* Stop following it and its descendants, and forget their statuses. */
void host_trace_forget(struct host_trace *t, pid_t pid);
/*
 * wait(2) status of an ended followed process or of one of the last 4096 ended descendants;
 * -ENOENT if it still runs or was not followed.
 */
int host_trace_exit_status(struct host_trace *t, pid_t pid, int *ret_status) _must_check_;
/*
 * The living processes among pid and its descendants, orphans among them, in no order. -ENOENT if
 * pid is not followed, -ENOSPC if there are more than max.
 */
int host_trace_members(struct host_trace *t, pid_t pid, pid_t *pids, size_t max,
		       size_t *ret_count) _must_check_;
