// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/host/host.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#define LOG_TAG "host"
#include "agent/util/log.h"

#define LOGIND "org.freedesktop.login1"
#define LOGIND_PATH "/org/freedesktop/login1"
#define LOGIND_MANAGER "org.freedesktop.login1.Manager"
#define LOGIND_SESSION "org.freedesktop.login1.Session"

enum {
	SESSIONS_MAX = 256,
	RESCAN_S = 10,
	RECONNECT_S = 2, /* after the bus was lost; a missing one is tried every RESCAN_S */
	CALL_TIMEOUT_MS = 5000,
};

/* One row per session that counts as somebody at this machine. */
struct session {
	char path[128]; /* empty: free */
	char who[64];
	bool listed; /* seen in the scan under way */
};

struct host_watch {
	sd_event *event;
	sd_bus *bus;
	sd_event_source *rescan, *gone;
	struct host_watch_events events;
	bool remote_logins;
	uint64_t return_idle_us;
	bool connected; /* logind has answered */
	bool present;	/* user_came was told and user_gone was not */
	int inhibitor;
	struct session sessions[SESSIONS_MAX];
};

static struct session *find_session(struct host_watch *w, const char *path)
{
	for (size_t i = 0; i < SESSIONS_MAX; i++) {
		if (!strcmp(w->sessions[i].path, path))
			return &w->sessions[i];
	}
	return NULL;
}

static bool somebody_there(const struct host_watch *w)
{
	for (size_t i = 0; i < SESSIONS_MAX; i++) {
		if (w->sessions[i].path[0])
			return true;
	}
	return false;
}

static int on_gone(sd_event_source *source, uint64_t usec, void *ctx)
{
	struct host_watch *w = ctx;

	(void)source;
	(void)usec;
	w->gone = sd_event_source_disable_unref(w->gone);
	w->present = false;
	w->events.user_gone(w->events.ctx);
	return 0;
}

static void session_came(struct host_watch *w, const char *path, const char *who)
{
	struct session *s = find_session(w, path);

	if (s) {
		s->listed = true;
		return;
	}
	s = find_session(w, "");
	if (!s || strlen(path) >= sizeof(s->path))
		return; /* with so many sessions somebody is here anyway */
	snprintf(s->path, sizeof(s->path), "%s", path);
	snprintf(s->who, sizeof(s->who), "%.63s", who);
	s->listed = true;
	log_debug("login: user=%s session=%s", s->who, s->path);
	w->gone = sd_event_source_disable_unref(w->gone);
	if (!w->present) {
		w->present = true;
		w->events.user_came(w->events.ctx, s->who);
	}
}

static void session_went(struct host_watch *w, const char *path)
{
	struct session *s = *path ? find_session(w, path) : NULL;

	if (!s)
		return;
	log_debug("logout: user=%s session=%s", s->who, s->path);
	memset(s, 0, sizeof(*s));
	if (!w->present || somebody_there(w) || w->gone)
		return;
	if (sd_event_add_time_relative(w->event, &w->gone, CLOCK_BOOTTIME, w->return_idle_us, 0,
				       on_gone, w) < 0)
		on_gone(NULL, 0, w);
}

struct session_facts {
	const char *class, *state, *seat, *tty, *name;
	int remote;
};

/* A person at the machine: greeters, managers, lock screens and cron jobs are none. */
static bool session_counts(const struct host_watch *w, const struct session_facts *f)
{
	if (strcmp(f->class, "user") && strcmp(f->class, "user-early") &&
	    strcmp(f->class, "user-light"))
		return false;
	if (!strcmp(f->state, "closing"))
		return false;
	if (f->remote)
		return w->remote_logins;
	return *f->seat || *f->tty;
}

static int read_fact(sd_bus_message *m, const char *name, struct session_facts *f)
{
	const struct {
		const char *name, **value;
	} texts[] = {
		{ "Class", &f->class },
		{ "State", &f->state },
		{ "TTY", &f->tty },
		{ "Name", &f->name },
	};

	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		if (!strcmp(name, texts[i].name))
			return sd_bus_message_read(m, "v", "s", texts[i].value);
	}
	if (!strcmp(name, "Remote"))
		return sd_bus_message_read(m, "v", "b", &f->remote);
	if (!strcmp(name, "Seat"))
		return sd_bus_message_read(m, "v", "(so)", &f->seat, NULL);
	return sd_bus_message_skip(m, "v");
}

static int read_facts(sd_bus_message *m, struct session_facts *f)
{
	const char *name;
	int r = sd_bus_message_enter_container(m, 'a', "{sv}");

	if (r < 0)
		return r;
	while ((r = sd_bus_message_enter_container(m, 'e', "sv")) > 0) {
		r = sd_bus_message_read(m, "s", &name);
		if (r >= 0)
			r = read_fact(m, name, f);
		if (r >= 0)
			r = sd_bus_message_exit_container(m);
		if (r < 0)
			return r;
	}
	return r;
}

/* What is asked about one session; freed by sd-bus with its slot. */
struct inquiry {
	struct host_watch *watch;
	char path[128];
};

static int on_session_facts(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	struct session_facts f = { "", "", "", "", "somebody", 0 };
	struct inquiry *q = ctx;

	(void)error;
	/* A lost bus or a silent logind says nothing about the session; the next scan does. */
	if (sd_bus_message_is_method_error(m, NULL) &&
	    !sd_bus_message_is_method_error(m, SD_BUS_ERROR_UNKNOWN_OBJECT))
		return 0;
	if (sd_bus_message_is_method_error(m, NULL) || read_facts(m, &f) < 0 ||
	    !session_counts(q->watch, &f))
		session_went(q->watch, q->path);
	else
		session_came(q->watch, q->path, f.name);
	return 0;
}

static void ask_session(struct host_watch *w, const char *path)
{
	sd_bus_message *m = NULL;
	sd_bus_slot *slot = NULL;
	struct inquiry *q;

	if (strlen(path) >= sizeof(q->path) || !*path)
		return;
	q = calloc(1, sizeof(*q));
	if (!q)
		return; /* the next scan asks again */
	q->watch = w;
	memcpy(q->path, path, strlen(path));
	if (sd_bus_message_new_method_call(w->bus, &m, LOGIND, path,
					   "org.freedesktop.DBus.Properties", "GetAll") < 0 ||
	    sd_bus_message_append(m, "s", LOGIND_SESSION) < 0 ||
	    sd_bus_call_async(w->bus, &slot, m, on_session_facts, q,
			      CALL_TIMEOUT_MS * UINT64_C(1000)) < 0) {
		free(q);
	} else {
		sd_bus_slot_set_destroy_callback(slot, free);
		sd_bus_slot_set_floating(slot, 1);
		sd_bus_slot_unref(slot);
	}
	sd_bus_message_unref(m);
}

static void sweep_unlisted(struct host_watch *w)
{
	for (size_t i = 0; i < SESSIONS_MAX; i++) {
		struct session *s = &w->sessions[i];
		char path[sizeof(s->path)];

		if (!s->path[0] || s->listed)
			continue;
		memcpy(path, s->path, sizeof(path));
		session_went(w, path);
	}
}

static int on_sessions(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	struct host_watch *w = ctx;
	const char *path;
	int r;

	(void)error;
	if (sd_bus_message_is_method_error(m, NULL)) {
		w->connected = false; /* the timer asks again */
		return 0;
	}
	if (!w->connected)
		log_debug("logind: connected");
	w->connected = true;
	r = sd_bus_message_enter_container(m, 'a', "(susso)");
	if (r < 0)
		return 0;
	for (size_t i = 0; i < SESSIONS_MAX; i++)
		w->sessions[i].listed = false;
	for (size_t n = 0; n < SESSIONS_MAX; n++) {
		struct session *s;

		if (sd_bus_message_read(m, "(susso)", NULL, NULL, NULL, NULL, &path) <= 0)
			break;
		s = find_session(w, path);
		if (s)
			s->listed = true;
		ask_session(w, path);
	}
	sweep_unlisted(w);
	return 0;
}

static int on_inhibited(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	struct host_watch *w = ctx;
	int fd;

	(void)error;
	if (w->inhibitor >= 0 || sd_bus_message_is_method_error(m, NULL) ||
	    sd_bus_message_read(m, "h", &fd) <= 0)
		return 0;
	w->inhibitor = fcntl(fd, F_DUPFD_CLOEXEC, 3); /* the message closes its own */
	return 0;
}

/* Ask logind to wait (a few seconds, its InhibitDelayMaxSec) before it shuts down or sleeps. */
static void take_inhibitor(struct host_watch *w)
{
	if (w->inhibitor < 0)
		sd_bus_call_method_async(w->bus, NULL, LOGIND, LOGIND_PATH, LOGIND_MANAGER,
					 "Inhibit", on_inhibited, w, "ssss", "shutdown:sleep",
					 "decamp", "checkpointing jobs", "delay");
}

static void scan(struct host_watch *w)
{
	if (sd_bus_call_method_async(w->bus, NULL, LOGIND, LOGIND_PATH, LOGIND_MANAGER,
				     "ListSessions", on_sessions, w, NULL) < 0)
		w->connected = false;
	take_inhibitor(w);
}

static int on_session_new(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *path;

	(void)error;
	if (sd_bus_message_read(m, "so", NULL, &path) > 0)
		ask_session(ctx, path);
	return 0;
}

static int on_session_removed(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *path;

	(void)error;
	if (sd_bus_message_read(m, "so", NULL, &path) > 0)
		session_went(ctx, path);
	return 0;
}

static int on_session_changed(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	const char *path = sd_bus_message_get_path(m);

	(void)error;
	if (path && !strncmp(path, LOGIND_PATH "/session/", strlen(LOGIND_PATH "/session/")))
		ask_session(ctx, path);
	return 0;
}

static int on_prepare(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	struct host_watch *w = ctx;
	int begins;

	(void)error;
	if (sd_bus_message_read(m, "b", &begins) <= 0)
		return 0;
	log_debug("logind: %s %s", sd_bus_message_get_member(m), begins ? "begins" : "is over");
	if (begins)
		w->events.shutdown_soon(w->events.ctx);
	else
		scan(w);
	return 0;
}

static int on_owner_changed(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	struct host_watch *w = ctx;
	const char *owner;

	(void)error;
	if (sd_bus_message_read(m, "sss", NULL, NULL, &owner) <= 0)
		return 0;
	/* Sessions outlive a restart of logind: keep them until a scan says otherwise. */
	if (*owner)
		scan(w);
	else
		w->connected = false;
	return 0;
}

/* The bus itself must not be released within one of its callbacks: on_rescan does. */
static int on_disconnected(sd_bus_message *m, void *ctx, sd_bus_error *error)
{
	struct host_watch *w = ctx;

	(void)m;
	(void)error;
	log_debug("system bus: connection lost");
	w->connected = false;
	sd_event_source_set_time_relative(w->rescan, RECONNECT_S * UINT64_C(1000000));
	return 0;
}

static void disconnect(struct host_watch *w)
{
	w->connected = false;
	w->bus = sd_bus_close_unref(w->bus);
	if (w->inhibitor >= 0)
		close(w->inhibitor);
	w->inhibitor = -1;
}

static int add_matches(struct host_watch *w)
{
	static const struct {
		const char *sender, *path, *interface, *member;
		sd_bus_message_handler_t handler;
	} matches[] = {
		{ LOGIND, LOGIND_PATH, LOGIND_MANAGER, "SessionNew", on_session_new },
		{ LOGIND, LOGIND_PATH, LOGIND_MANAGER, "SessionRemoved", on_session_removed },
		{ LOGIND, LOGIND_PATH, LOGIND_MANAGER, "PrepareForShutdown", on_prepare },
		{ LOGIND, LOGIND_PATH, LOGIND_MANAGER, "PrepareForSleep", on_prepare },
		{ LOGIND, NULL, "org.freedesktop.DBus.Properties", "PropertiesChanged",
		  on_session_changed },
	};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(matches) && r >= 0; i++)
		r = sd_bus_match_signal_async(w->bus, NULL, matches[i].sender, matches[i].path,
					      matches[i].interface, matches[i].member,
					      matches[i].handler, NULL, w);
	if (r >= 0)
		r = sd_bus_match_signal(w->bus, NULL, NULL, "/org/freedesktop/DBus/Local",
					"org.freedesktop.DBus.Local", "Disconnected",
					on_disconnected, w);
	if (r < 0)
		return r;
	return sd_bus_add_match_async(w->bus, NULL,
				      "type='signal',sender='org.freedesktop.DBus',"
				      "interface='org.freedesktop.DBus',member='NameOwnerChanged',"
				      "arg0='" LOGIND "'",
				      on_owner_changed, NULL, w);
}

static int connect_bus(struct host_watch *w)
{
	/* DBUS_SYSTEM_BUS_ADDRESS names another bus. */
	int r = sd_bus_open_system(&w->bus);

	if (r < 0)
		return r;
	r = sd_bus_attach_event(w->bus, w->event, SD_EVENT_PRIORITY_NORMAL);
	if (r >= 0)
		r = add_matches(w);
	if (r < 0)
		return r;
	scan(w);
	return 0;
}

/*
 * Every RESCAN_S: logind sends no signal when a session begins to close, a bus may die without a
 * word, and there may have been no bus at all.
 */
static int on_rescan(sd_event_source *source, uint64_t usec, void *ctx)
{
	struct host_watch *w = ctx;

	if (w->bus && sd_bus_is_open(w->bus) <= 0)
		disconnect(w);
	if (w->bus)
		scan(w);
	else if (connect_bus(w) < 0)
		disconnect(w);
	(void)usec;
	sd_event_source_set_time_relative(source, RESCAN_S * UINT64_C(1000000));
	sd_event_source_set_enabled(source, SD_EVENT_ON);
	return 0;
}

int host_watch_start(struct sd_event *event, const struct host_config *config,
		     const struct host_watch_events *events, struct host_watch **ret_watch)
{
	struct host_watch *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	w->event = sd_event_ref(event);
	w->events = *events;
	w->remote_logins = config->remote_logins;
	w->return_idle_us = config->return_idle_s * UINT64_C(1000000);
	w->inhibitor = -1;
	r = sd_event_add_time_relative(event, &w->rescan, CLOCK_BOOTTIME, 0, 0, on_rescan, w);
	if (r < 0) {
		host_watch_stop(w);
		return r;
	}
	*ret_watch = w;
	return 0;
}

bool host_watch_connected(const struct host_watch *w)
{
	return w->connected;
}

void host_watch_ready(struct host_watch *w)
{
	if (w->inhibitor >= 0)
		close(w->inhibitor);
	w->inhibitor = -1;
}

void host_watch_stop(struct host_watch *w)
{
	if (!w)
		return;
	disconnect(w);
	sd_event_source_disable_unref(w->gone);
	sd_event_source_disable_unref(w->rescan);
	sd_event_unref(w->event);
	free(w);
}
