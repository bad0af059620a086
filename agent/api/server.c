// SPDX-License-Identifier: LGPL-2.1-or-later
#define LOG_TAG "api"
#include "agent/api/server.h"

#include <errno.h>
#include <json-c/json.h>
#include <microhttpd.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "agent/api/body.h"
#include "agent/api/reply.h"
#include "agent/util/log.h"

/* One connection. */
struct peer {
	struct peer *next;
	struct ucred cred;
	bool refused; /* over the user's share: every request is answered with an error */
};

/* One request; the body grows as it comes in. */
struct request {
	char *bytes;
	size_t size;
	size_t room;
	size_t dropped; /* bytes beyond API_BODY_MAX */
};

struct api {
	struct MHD_Daemon *daemon;
	const struct api_route *routes;
	void *ctx;
	struct api_limits limits;
	pthread_mutex_t lock; /* guards peers */
	struct peer *peers;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	dev_t dev; /* of the socket that we made, so that no other's is removed */
	ino_t ino;
};

/* ---- connections ---- */

static int connection_fd(struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);

	return info ? info->connect_fd : -1;
}

static struct peer *connection_peer(struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

	return info ? info->socket_context : NULL;
}

static struct peer *peer_add(struct api *api, struct MHD_Connection *connection)
{
	struct peer *peer = calloc(1, sizeof(*peer));
	socklen_t size = sizeof(peer->cred);
	int fd = connection_fd(connection);
	unsigned int same = 0;

	if (!peer)
		return NULL;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer->cred, &size) < 0) {
		free(peer);
		return NULL;
	}
	pthread_mutex_lock(&api->lock);
	for (struct peer *p = api->peers; p; p = p->next)
		same += p->cred.uid == peer->cred.uid;
	peer->refused = same >= api->limits.per_user;
	peer->next = api->peers;
	api->peers = peer;
	pthread_mutex_unlock(&api->lock);

	/* The rest of the connections must stay free for others, however rude this user is. */
	if (same >= api->limits.per_user_hard)
		shutdown(fd, SHUT_RDWR);
	else if (peer->refused)
		(void)MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 1u);
	return peer;
}

static void peer_remove(struct api *api, struct peer *peer)
{
	struct peer **p;

	pthread_mutex_lock(&api->lock);
	for (p = &api->peers; *p; p = &(*p)->next) {
		if (*p == peer) {
			*p = peer->next;
			break;
		}
	}
	pthread_mutex_unlock(&api->lock);
	free(peer);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
			  enum MHD_ConnectionNotificationCode code)
{
	struct api *api = cls;

	if (code == MHD_CONNECTION_NOTIFY_STARTED) {
		*socket_context = peer_add(api, connection);
		if (!*socket_context)
			shutdown(connection_fd(connection), SHUT_RDWR);
	} else if (*socket_context) {
		peer_remove(api, *socket_context);
		*socket_context = NULL;
	}
}

/* ---- requests ---- */

static void request_destroy(struct request *request)
{
	if (!request)
		return;
	free(request->bytes);
	free(request);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **req_cls,
			 enum MHD_RequestTerminationCode code)
{
	(void)cls;
	(void)connection;
	(void)code;
	request_destroy(*req_cls);
	*req_cls = NULL;
}

static int request_append(struct request *request, const char *bytes, size_t size)
{
	if (request->dropped > 0 || size > API_BODY_MAX - request->size) {
		request->dropped += size;
		return request->dropped > API_BODY_MAX ? -E2BIG : 0;
	}
	if (size > request->room - request->size) {
		size_t room = request->size + size;
		char *grown;

		if (room < 2 * request->room)
			room = 2 * request->room;
		grown = realloc(request->bytes, room);
		if (!grown)
			return -ENOMEM;
		request->bytes = grown;
		request->room = room;
	}
	memcpy(request->bytes + request->size, bytes, size);
	request->size += size;
	return 0;
}

static const struct api_route *find_route(const struct api *api, const char *url)
{
	if (strncmp(url, "/v1/", 4) != 0)
		return NULL;
	for (const struct api_route *route = api->routes; route->verb; route++) {
		if (strcmp(route->verb, url + 4) == 0)
			return route;
	}
	return NULL;
}

/* What an error without words is about: the job if one was named, else the verb. */
static const char *request_object(struct json_object *body, const struct api_route *route)
{
	struct json_object *job;

	if (json_object_object_get_ex(body, "job", &job) &&
	    json_object_is_type(job, json_type_string))
		return json_object_get_string(job);
	return route->verb;
}

static int call_route(const struct api *api, const struct api_route *route,
		      const struct request *request, const struct ucred *cred,
		      struct api_reply *reply)
{
	struct api_call call = { .uid = cred->uid, .gid = cred->gid, .pid = cred->pid };
	const char *why;
	int r;

	if (route->root_only && cred->uid != 0)
		return api_error(reply, -EPERM, "not-permitted", route->verb,
				 "Ask an administrator of this machine.", "only root may do this");
	r = api_body_parse(request->bytes ? request->bytes : "", request->size, &call.body, &why);
	if (r < 0)
		return api_error(reply, r, NULL, route->verb, "See docs/api.md.", "%s", why);
	r = route->fn(api->ctx, &call, reply);
	log_debug("call: verb=%s uid=%u: %s", route->verb, (unsigned int)cred->uid,
		  r < 0 ? strerror(-r) : "done");
	api_reply_complete(reply, r, request_object(call.body, route));
	json_object_put(call.body);
	return r;
}

static unsigned int dispatch(const struct api *api, const struct request *request,
			     const struct peer *peer, const char *method, const char *url,
			     struct api_reply *reply)
{
	const struct api_route *route = find_route(api, url);

	if (peer->refused)
		return api_status(api_error(reply, -EAGAIN, "too-many-connections", "decampd",
					    "Wait until some of your requests have ended.",
					    "you have too many requests under way"));
	if (!route)
		return api_status(api_error(reply, -ENOENT, "unknown-verb", url,
					    "See docs/api.md; decamp and decampd may differ in "
					    "version.",
					    "decampd knows no such request"));
	if (strcmp(method, MHD_HTTP_METHOD_POST) != 0) {
		(void)api_error(reply, -EINVAL, "bad-method", url, "See docs/api.md.",
				"requests are made with POST");
		return MHD_HTTP_METHOD_NOT_ALLOWED;
	}
	if (request->dropped > 0)
		return api_status(api_error(reply, -E2BIG, "too-large", route->verb,
					    "Pass fewer arguments or a smaller environment.",
					    "the request is larger than %d bytes", API_BODY_MAX));
	return api_status(call_route(api, route, request, &peer->cred, reply));
}

static enum MHD_Result answer(struct api *api, struct MHD_Connection *connection,
			      const struct request *request, const char *method, const char *url)
{
	struct api_reply reply = { .stream_fd = -1 };
	const struct peer *peer = connection_peer(connection);
	struct MHD_Response *response;
	enum MHD_Result result;
	unsigned int status;

	if (!peer)
		return MHD_NO;
	/* Only a silent client may time out, not a handler that works for minutes. */
	(void)MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
	status = dispatch(api, request, peer, method, url, &reply);
	(void)MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT,
					api->limits.idle_s);
	if (status != MHD_HTTP_OK)
		close_fdp(&reply.stream_fd);
	if (status != MHD_HTTP_OK)
		reply.stream_fd = -1;
	response = api_reply_take(&reply);
	if (!response)
		return MHD_NO;
	if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
		(void)MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW,
					      MHD_HTTP_METHOD_POST);
	if (peer->refused || request->dropped > 0)
		(void)MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
	result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}

/* Bytes that the client announces; a missing or odd number is left to the library. */
static bool announces_too_much(struct MHD_Connection *connection)
{
	const char *text = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
						       MHD_HTTP_HEADER_CONTENT_LENGTH);

	return text && strtoull(text, NULL, 10) > API_BODY_MAX;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url,
				  const char *method, const char *version, const char *upload,
				  size_t *upload_size, void **req_cls)
{
	struct api *api = cls;
	struct request *request = *req_cls;

	(void)version;
	if (!request) {
		request = calloc(1, sizeof(*request));
		*req_cls = request;
		if (!request)
			return MHD_NO;
		if (!announces_too_much(connection))
			return MHD_YES;
		request->dropped = 1;
		return answer(api, connection, request, method, url);
	}
	if (*upload_size > 0) {
		if (request_append(request, upload, *upload_size) < 0)
			return MHD_NO;
		*upload_size = 0;
		return MHD_YES;
	}
	return answer(api, connection, request, method, url);
}

static void on_log(void *cls, const char *fmt, va_list ap)
{
	char text[256];

	(void)cls;
	vsnprintf(text, sizeof(text), fmt, ap);
	text[strcspn(text, "\n")] = '\0';
	log_debug("http: %s", text);
}

/* ---- life ---- */

/* A socket that nobody answers on is a leftover; anything else at that path is not ours. */
static int remove_stale(const struct sockaddr_un *addr)
{
	_cleanup_close_ int fd = -1;
	struct stat st;

	if (lstat(addr->sun_path, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	/* -EAGAIN: its backlog is full, so it lives. */
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN)
		return -EADDRINUSE;
	if (errno != ECONNREFUSED && errno != ENOENT)
		return -errno;
	return unlink(addr->sun_path) < 0 && errno != ENOENT ? -errno : 0;
}

static int listen_at(struct api *api, int *ret_fd)
{
	_cleanup_close_ int fd = -1;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int r;

	memcpy(addr.sun_path, api->path, sizeof(addr.sun_path));
	r = remove_stale(&addr);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -errno;
	if (chmod(api->path, 0666) < 0 || lstat(api->path, &st) < 0 ||
	    listen(fd, (int)api->limits.connections) < 0) {
		r = -errno;
		unlink(api->path);
		return r;
	}
	api->dev = st.st_dev;
	api->ino = st.st_ino;
	*ret_fd = take_fd(fd);
	return 0;
}

static void remove_socket(const struct api *api)
{
	struct stat st;

	if (lstat(api->path, &st) == 0 && st.st_dev == api->dev && st.st_ino == api->ino)
		unlink(api->path);
}

static void api_destroy(struct api *api)
{
	pthread_mutex_destroy(&api->lock);
	free(api);
}

int api_start_limited(const char *socket_path, const struct api_route *routes, void *ctx,
		      const struct api_limits *limits, struct api **ret_api)
{
	struct api *api;
	int fd, r;

	if (strlen(socket_path) >= sizeof(api->path))
		return -ENAMETOOLONG;
	api = calloc(1, sizeof(*api));
	if (!api)
		return -ENOMEM;
	pthread_mutex_init(&api->lock, NULL);
	strcpy(api->path, socket_path);
	api->routes = routes;
	api->ctx = ctx;
	api->limits = *limits;
	r = listen_at(api, &fd);
	if (r < 0) {
		api_destroy(api);
		return r;
	}
	api->daemon = MHD_start_daemon(
		MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_THREAD_PER_CONNECTION |
			MHD_USE_ITC | MHD_USE_ERROR_LOG,
		0, NULL, NULL, on_request, api, MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL,
		MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT, limits->connections,
		MHD_OPTION_CONNECTION_TIMEOUT, limits->idle_s, MHD_OPTION_NOTIFY_CONNECTION,
		on_connection, api, MHD_OPTION_NOTIFY_COMPLETED, on_completed, api, MHD_OPTION_END);
	if (!api->daemon) {
		remove_socket(api);
		close(fd);
		api_destroy(api);
		return -EAGAIN;
	}
	*ret_api = api;
	return 0;
}

int api_start(const char *socket_path, const struct api_route *routes, void *ctx,
	      struct api **ret_api)
{
	static const struct api_limits limits = {
		.connections = API_CONNECTIONS_MAX,
		.per_user = API_CONNECTIONS_MAX / 2,
		.per_user_hard = API_CONNECTIONS_MAX / 2 + API_CONNECTIONS_MAX / 8,
		.idle_s = 30,
	};

	return api_start_limited(socket_path, routes, ctx, &limits, ret_api);
}

/* Waits for the handlers that are at work. The name goes first: no new caller finds us. */
void api_stop(struct api *api)
{
	if (!api)
		return;
	remove_socket(api);
	MHD_stop_daemon(api->daemon);
	api_destroy(api);
}
