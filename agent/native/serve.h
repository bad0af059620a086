/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * decamp-capture as decampd's servant (serve.c). Threading: one thread.
 */
#pragma once

#include "agent/native/protocol.h"

/* Until the other end of sock closes. */
int serve_main(int sock);
