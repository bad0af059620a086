/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One job's register and its lease, for spin; tests/model/run checks it. Of the change of acceptors
 * it has what concerns them; epochs.pml has the change itself, and forgetting.
 *
 *   ballots 1..B0 belong to epoch 0 (1: CREATE), B0+1..B0+B1 to epoch 1; 3 acceptors each
 *   hosts 1 and 2 may own the job; anybody proposes
 *
 * From overlay/core: acceptor.c (set_value, handle_prepare, handle_accept, handle_renew, A1, A2,
 * A4), proposer.c (find_current, finishing), decide.c, lease.c (O1, O3),
 * guardian.c (GRANT), job.c (learn), epoch.c (SEAL, INSTALL, epoch 1: P2, A3). A host that is
 * granted a job claims it: it restores only under a token that it has not used (FRESH), and its
 * takeover from itself need not wait (BUSY). The core's acceptors ask for more: that it made the
 * token. Of epochs there are two, and their acceptors are others.
 *
 * Messages. An ACCEPT, once sent, is handled by any acceptor at any later time, or never. A
 * PREPARE is handled any time before its proposer decides. Replies are instant or lost: what a
 * reply says is fixed when it is sent, and a proposer may be as slow as it likes. Left out: what
 * only refuses or waits longer (BUSY at PREPARE, a PREPARE after the decision, a late RENEW, an
 * acknowledgement beyond the quorum, after a restart a hold that is begun anew, but for RESTARTS),
 * acceptors that are down (they handle nothing), liveness. With ONE_STEP a ballot hears its quorum
 * and decides in one step. With UNFENCED there is no time and no lease: what fence=commit promises.
 *
 * Time. Discrete; tick() may happen at any moment or never. Owners count LEASE ticks from a
 * round's first message; SLACK is what a slow clock and a late freeze add, at worst, so a job runs
 * for LEASE + SLACK; HOLD is what an acceptor waits. A shorter run or a longer wait is a run of
 * the model in which somebody does nothing.
 *
 * CRASHES, ENDS, RELEASES, ADVANCES allow these. A flag NO_x or the like switches one rule off;
 * REACH_x makes a wanted end count as an error, to show that it is reached.
 */
#ifndef B0
#define B0 3
#endif
#ifndef B1
#define B1 0
#endif
#ifndef LEASE
#define LEASE 1
#endif
#ifndef SLACK
#define SLACK 1
#endif
#ifdef UNFENCED
#define HOLD 0
#endif
#ifndef HOLD
#define HOLD (LEASE + SLACK)
#endif
#define NB (B0 + B1)
#ifndef LAST_SEQ
#define LAST_SEQ 2 /* checkpoints */
#endif

#if B1 > 0
#define ACCEPTORS 6
#else
#define ACCEPTORS 3
#endif

#define IDLE 1
#define HELD 2
#define ENDED 3

/* What a host's agent is at. */
#define NONE 0
#define OWNER 1	  /* renews; the job runs while runs > 0 */
#define LEAVING 2 /* frozen; releases */

#define FIRST(b) ((b) > B0 -> 3 : 0) /* acceptor */
#define EPOCH_OF(a) ((a) >= 3)
#define MAJORITY(m) ((m) == 3 || (m) >= 5)
#define QUORUM(m) (MAJORITY((m) & 7) || MAJORITY((m) >> 3))
#define CHOSEN(b) MAJORITY(vote[b])

/* Acceptors: accepted 0 is "no record". Durable but for hold. */
byte promised[ACCEPTORS], accepted[ACCEPTORS], hold[ACCEPTORS];

/* Proposers, by ballot. A value is known by the ballot that first carried it. */
bool sent[NB + 1];
byte heard[NB + 1]; /* promises, a mask */
byte seen[3 * NB + 3];
byte found[NB + 1]; /* find_current() */
bool sure[NB + 1];
byte vote[NB + 1]; /* who ever accepted it, a mask */
byte value[NB + 1];

/* Values. */
byte owner[NB + 1], token[NB + 1], state[NB + 1];
byte seq[NB + 1];  /* newest checkpoint */
byte base[NB + 1]; /* the one from which the run began that made it */
bool sealed[NB + 1];

/* Hosts 1 and 2. */
byte phase[3], mine[3], my_seq[3], my_base[3];
byte runs[3]; /* ticks until the job is frozen */
byte age[3]; /* of the round */
byte acked[3];
bool used[NB + 1]; /* the job was restored under this token */

#ifdef A1_AT_PREPARE
bool busy[NB + 1];
#endif

hidden byte i, k, x, y, set, group;

#define SAME(u, v) (token[u] == token[v] && owner[u] == owner[v])

/* An end that was accepted here and chosen nowhere does not say that the owner has stopped. */
#ifdef END_FREES
#define HOLDS(s) ((s) == HELD)
#else
#define HOLDS(s) ((s) != IDLE)
#endif

/* A1: not while another incarnation may run; a RELEASE says that it does not. */
#if defined(NO_A1) || defined(A1_AT_PREPARE)
#define BUSY(a, v) false
#else
#define BUSY(a, v) \
	(hold[a] > 0 && owner[value[accepted[a]]] != owner[v] && \
	 !(token[value[accepted[a]]] == token[v] && owner[v] == 0))
#endif

#ifdef NO_PROMISE
#define BELOW(a, b) (accepted[a] > b)
#else
#define BELOW(a, b) (promised[a] > b)
#endif

/* Whether y, chosen under a higher ballot, may follow x. */
inline judge_pair()
{
	assert(token[y] >= token[x]);
	assert(seq[y] >= seq[x]);
	if
	:: token[y] > token[x] ->
		assert(state[x] != ENDED);
		assert(seq[y] == seq[x] && base[y] == base[x])
	:: else ->
		assert(state[x] == HELD || state[y] == state[x] ||
		       (state[x] == IDLE && state[y] == ENDED));
		/* A checkpoint comes from the run that made the one before, or from that one. */
		assert(base[y] == base[x] || base[y] >= seq[x])
	fi
}

/* I2, I3, I4: ballot b has just been chosen; its neighbours in the chain are looked at. */
inline judge(b)
{
	i = b - 1;
	do
	:: i == 0 || CHOSEN(i) -> break
	:: else -> i--
	od;
	if
	:: i > 0 ->
		x = value[i];
		y = value[b];
		assert(!sealed[x] || b > B0 || x == y);
		judge_pair()
	:: else
	fi;
	i = b + 1;
	do
	:: i > NB || CHOSEN(i) -> break
	:: else -> i++
	od;
	if
	:: i <= NB ->
		x = value[b];
		y = value[i];
		assert(!sealed[x] || i > B0 || x == y);
		judge_pair()
	:: else
	fi
}

inline set_value(a, b)
{
	x = value[accepted[a]];
	y = value[b];
	if
	:: accepted[a] == 0 || !SAME(x, y) || state[x] != state[y] ->
		hold[a] = (HOLDS(state[y]) -> HOLD : 0)
	:: else
	fi;
	accepted[a] = b;
	if
	:: promised[a] < b -> promised[a] = b
	:: else
	fi;
	k = (CHOSEN(b) -> 1 : 0);
	vote[b] = vote[b] | (1 << (a - FIRST(b)));
	if
	:: k == 0 && CHOSEN(b) ->
		vote[b] = 7;
		judge(b)
	:: else
	fi;
	x = 0;
	y = 0;
	k = 0;
	i = 0;
	bury(b)
}

/* The highest answers may be left out while a quorum of others remains. */
inline find_current(b)
{
	set = heard[b];
	do
	:: !MAJORITY(set) -> break
	:: else ->
		x = 0;
		group = 0;
		i = 0;
		do
		:: i == 3 -> break
		:: else ->
			if
			:: (set & (1 << i)) && (group == 0 || seen[3 * b + i] > x) ->
				x = seen[3 * b + i];
				group = 1 << i
			:: (set & (1 << i)) && group != 0 && seen[3 * b + i] == x ->
				group = group | (1 << i)
			:: else
			fi;
			i++
		od;
		found[b] = x;
		sure[b] = MAJORITY(group);
#ifdef NO_FINISH
		if
		:: !sure[b] && (set & ~group) -> sure[b] = true
		:: else
		fi;
#endif
		if
		:: sure[b] || !MAJORITY(set & ~group) -> break
		:: else -> set = set & ~group
		fi
	od;
	set = 0;
	group = 0;
	x = 0;
	i = 0
}

/* The proposer has decided; what it heard is of no more use. */
inline send(ballot, carried)
{
	value[ballot] = carried;
	sent[ballot] = true;
	heard[ballot] = 0;
	found[ballot] = 0;
	sure[ballot] = false;
	seen[3 * ballot] = 0;
	seen[3 * ballot + 1] = 0;
	seen[3 * ballot + 2] = 0
#ifdef A1_AT_PREPARE
	;
	busy[ballot] = false
#endif
}

/*
 * Fewer states: a ballot that can find no quorum of promises any more is as good as never begun,
 * and a value that nobody has accepted or can accept any more is as good as never sent.
 */
#define CAN_HEAR(c, r) ((heard[c] & (1 << (r))) || promised[FIRST(c) + (r)] < c -> 1 : 0)
#define DEAF(c) (!sent[c] && CAN_HEAR(c, 0) + CAN_HEAR(c, 1) + CAN_HEAR(c, 2) < 2)
#define LOST(c) \
	(sent[c] && value[c] && vote[c] == 0 && promised[FIRST(c)] > c && \
	 promised[FIRST(c) + 1] > c && promised[FIRST(c) + 2] > c)

inline bury(nr)
{
#if !defined(NO_PROMISE) && !defined(FORGET)
	k = nr;
	do
	:: k < 2 || (k <= B0) != (nr <= B0) -> break
	:: else ->
		if
		:: DEAF(k) -> send(k, 0)
		:: LOST(k) ->
			send(k, 0);
			owner[k] = 0;
			token[k] = 0;
			state[k] = 0;
			seq[k] = 0;
			base[k] = 0;
			sealed[k] = false
		:: else
		fi;
		k--
	od;
	k = 0
#else
	skip
#endif
}

inline follow(nr, from, who, tok, what)
{
	owner[nr] = who;
	token[nr] = tok;
	state[nr] = what;
	seq[nr] = seq[from];
	base[nr] = base[from];
	sealed[nr] = false;
	send(nr, nr)
}

inline forget(w)
{
	phase[w] = NONE;
	mine[w] = 0;
	my_seq[w] = 0;
	my_base[w] = 0;
	runs[w] = 0;
	age[w] = 0;
	acked[w] = 0
}

/* The agent restores what the value names and asks for its lease. */
inline grant(w, v)
{
	forget(w);
	phase[w] = OWNER;
	mine[w] = token[v];
	my_seq[w] = seq[v];
	my_base[w] = seq[v];
	used[token[v]] = true
#ifdef RUN_AT_GRANT
	;
	runs[w] = LEASE + SLACK
#endif
}

/* ---------------------------------------------------------------- acceptors */

#define PREPARE(b) \
	:: d_step { \
		!sent[b] && EPOCH_OF(a) == ((b) > B0) && accepted[a] && promised[a] < b -> \
		promised[a] = b; \
		seen[3 * b + a - FIRST(b)] = accepted[a]; \
		heard[b] = heard[b] | (1 << (a - FIRST(b))); \
		PREPARE_BUSY(b); \
		find_current(b); \
		bury(b) \
	}
#ifdef A1_AT_PREPARE
#define PREPARE_BUSY(b) busy[b] = busy[b] || hold[a] > 0
#else
#define PREPARE_BUSY(b) skip
#endif

#define ACCEPT(b) \
	:: d_step { \
		sent[b] && value[b] && EPOCH_OF(a) == ((b) > B0) && accepted[a] != b && !BELOW(a, b) && \
			(accepted[a] || (b) <= B0) && !BUSY(a, value[b]) -> \
		set_value(a, b) \
	}

#define LEARN(b) \
	:: d_step { \
		CHOSEN(b) && EPOCH_OF(a) == ((b) > B0) && accepted[a] && accepted[a] < b -> \
		set_value(a, b) \
	}

/* A2. A sealed value is renewed no more. */
#ifdef NO_A2
#define RENEWS(a, w) (accepted[a] != 0)
#elif defined(SEALED_RENEWS)
#define RENEWS(a, w) \
	(accepted[a] && state[value[accepted[a]]] == HELD && owner[value[accepted[a]]] == w && \
	 token[value[accepted[a]]] == mine[w])
#else
#define RENEWS(a, w) \
	(accepted[a] && state[value[accepted[a]]] == HELD && owner[value[accepted[a]]] == w && \
	 token[value[accepted[a]]] == mine[w] && (a >= 3 || !sealed[value[accepted[a]]]))
#endif

#ifdef NO_O1
#define RUN_TICKS(w) (LEASE + SLACK)
#else
#define RUN_TICKS(w) (LEASE + SLACK - age[w])
#endif

/* One acceptor has acknowledged; with a quorum the job may run (I1). */
inline acknowledge(w, a)
{
	hold[a] = HOLD;
	acked[w] = acked[w] | (1 << a);
	if
	:: QUORUM(acked[w]) ->
		runs[w] = (RUN_TICKS(w) > runs[w] -> RUN_TICKS(w) : runs[w]);
		assert(runs[3 - w] == 0 || runs[w] == 0);
#ifdef REACH_TAKEOVER
		assert(!(mine[w] > 1 && runs[w] > 0));
#endif
#ifdef REACH_EPOCH
		assert(!(a >= 3 && mine[w] > B0 && runs[w] > 0));
#endif
#if !defined(NO_SEQ) && !defined(NO_LIFE)
		acked[w] = 0;
		age[w] = 0
#endif
	:: else
	fi
}

/* A round is sent when its first acknowledgement comes: sent earlier, it would be worth less. */
#define RENEW(w) \
	:: d_step { \
		phase[w] == OWNER && RENEWS(a, w) && acked[w] && !(acked[w] & (1 << a)) && \
			EPOCH_OF(a) == (acked[w] >= 8) -> \
		acknowledge(w, a) \
	} \
	:: d_step { \
		phase[w] == OWNER && RENEWS(a, w) -> \
		age[w] = 0; \
		NEW_ROUND(w); \
		acknowledge(w, a) \
	}
#ifdef NO_SEQ
#define NEW_ROUND(w) skip
#else
#define NEW_ROUND(w) acked[w] = 0
#endif

/* A3: the seal's certificate in hand. The hold starts anew. */
#ifdef NO_SEAL
#define CERTIFIED(b) (CHOSEN(b) && state[value[b]] == HELD)
#elif defined(NO_CERTIFICATE)
#define CERTIFIED(b) (vote[b] && sealed[value[b]])
#else
#define CERTIFIED(b) (CHOSEN(b) && sealed[value[b]])
#endif
#ifdef NO_A3
#define INSTALL_HOLD 0
#else
#define INSTALL_HOLD HOLD
#endif
#define INSTALL(b) \
	:: d_step { \
		a >= 3 && (b) <= B0 && accepted[a] == 0 && CERTIFIED(b) -> \
		accepted[a] = b; \
		promised[a] = b; \
		hold[a] = (HOLDS(state[value[b]]) -> INSTALL_HOLD : 0) \
	}

#if NB == 3
#define EACH(X) X(2) X(3)
#elif NB == 4
#define EACH(X) X(2) X(3) X(4)
#elif NB == 5
#define EACH(X) X(2) X(3) X(4) X(5)
#else
#define EACH(X) X(2) X(3) X(4) X(5) X(6)
#endif

proctype acceptor(byte a)
{
end:
	do
	ACCEPT(1)
#ifndef ONE_STEP
	EACH(PREPARE)
#endif
	EACH(ACCEPT)
	EACH(LEARN)
#ifndef UNFENCED
	RENEW(1)
	RENEW(2)
#endif
#if B1 > 0
	EACH(INSTALL)
#endif
#ifdef FORGET
	:: d_step { promised[a] > accepted[a] -> promised[a] = accepted[a] }
#endif
#ifdef RESTARTS
	/* A4: after a restart a hold starts anew. */
	:: d_step { accepted[a] && HOLDS(state[value[accepted[a]]]) -> hold[a] = HOLD }
#endif
#ifdef NO_A4
	:: d_step { hold[a] -> hold[a] = 0 }
#endif
	od
}

/* ---------------------------------------------------------------- proposers */

/* The value to go on from is known to be chosen: by the promises, or learned before. */
#define DECIDES(b) (!sent[b] && found[b] && (sure[b] || CHOSEN(found[b])))
#define CURRENT(b) value[found[b]]
/* P2: a sealed value is re-proposed unchanged, or nothing is. */
#ifdef NO_P2
#define OPEN(b) true
#else
#define OPEN(b) ((b) > B0 || !sealed[CURRENT(b)])
#endif
#ifdef A1_AT_PREPARE
#define MAY_TAKE(b) (!busy[b])
#else
#define MAY_TAKE(b) true
#endif

#define TAKEOVER(w) \
	:: d_step { \
		DECIDES(b) && OPEN(b) && MAY_TAKE(b) && state[CURRENT(b)] != ENDED -> \
		follow(b, CURRENT(b), w, b, HELD) \
	}

/* decide_cas(): the token must be the one in the register. */
#ifdef NO_FENCE
#define OWN(b, w) true
#else
#define OWN(b, w) (token[CURRENT(b)] == mine[w] && state[CURRENT(b)] == HELD)
#endif
#define ADVANCE(w) \
	:: d_step { \
		DECIDES(b) && OPEN(b) && phase[w] == OWNER && OWN(b, w) && \
			my_seq[w] + 1 >= seq[CURRENT(b)] && my_seq[w] < LAST_SEQ -> \
		follow(b, CURRENT(b), w, mine[w], HELD); \
		seq[b] = my_seq[w] + 1; \
		base[b] = my_base[w] \
	}

#define RELEASE(w) \
	:: d_step { \
		DECIDES(b) && OPEN(b) && phase[w] == LEAVING && OWN(b, w) -> \
		follow(b, CURRENT(b), 0, mine[w], IDLE) \
	}

/* A value that is not known to be chosen is finished, unchanged. */
#define FINISH \
	:: d_step { \
		!sent[b] && found[b] && !sure[b] -> \
		x = CURRENT(b); \
		send(b, x); \
		x = 0 \
	}

#define END \
	:: d_step { \
		DECIDES(b) && OPEN(b) && state[CURRENT(b)] != ENDED -> \
		follow(b, CURRENT(b), owner[CURRENT(b)], token[CURRENT(b)], ENDED) \
	}

/* The same value, its next acceptors named in it. */
#define SEAL \
	:: d_step { \
		b <= B0 && DECIDES(b) && !sealed[CURRENT(b)] && state[CURRENT(b)] == HELD -> \
		follow(b, CURRENT(b), owner[CURRENT(b)], token[CURRENT(b)], HELD); \
		sealed[b] = true \
	}

#ifdef ADVANCES
#define IF_ADVANCES(x) x
#else
#define IF_ADVANCES(x)
#endif
#ifdef RELEASES
#define IF_RELEASES(x) x
#else
#define IF_RELEASES(x)
#endif
#ifdef ENDS
#define IF_ENDS(x) x
#else
#define IF_ENDS(x)
#endif
#if B1 > 0 && !defined(NO_SEAL)
#define IF_SEALS(x) x
#else
#define IF_SEALS(x)
#endif

#define DECISIONS \
	FINISH \
	TAKEOVER(1) \
	TAKEOVER(2) \
	IF_ADVANCES(ADVANCE(1)) \
	IF_ADVANCES(ADVANCE(2)) \
	IF_RELEASES(RELEASE(1)) \
	IF_RELEASES(RELEASE(2)) \
	IF_ENDS(END) \
	IF_SEALS(SEAL)

#define HEARS(r) (accepted[FIRST(b) + (r)] && promised[FIRST(b) + (r)] < b)
#define HEAR(r) \
	promised[FIRST(b) + (r)] = b; \
	seen[3 * b + (r)] = accepted[FIRST(b) + (r)]

#define QUORUM_HEARD(mask, can, hear) \
	:: d_step { \
		!sent[b] && can -> \
		hear; \
		heard[b] = mask; \
		find_current(b); \
		bury(b) \
	}

proctype proposer(byte b)
{
end:
	do
#ifdef ONE_STEP
	:: atomic {
		if
		QUORUM_HEARD(3, HEARS(0) && HEARS(1), HEAR(0); HEAR(1))
		QUORUM_HEARD(5, HEARS(0) && HEARS(2), HEAR(0); HEAR(2))
		QUORUM_HEARD(6, HEARS(1) && HEARS(2), HEAR(1); HEAR(2))
		QUORUM_HEARD(7, HEARS(0) && HEARS(1) && HEARS(2), HEAR(0); HEAR(1); HEAR(2))
		fi;
		if
		DECISIONS
		:: d_step { send(b, 0) } /* it only wished to know, or has died */
		fi
	}
#else
	DECISIONS
#endif
	od
}

/* ------------------------------------------------------------------- owners */

/* The newest chosen value of an epoch; in epoch 1 what a majority was installed with is chosen. */
#define NEWER(b, n) ((n) <= NB && (n) > (b) && ((n) <= B0) == ((b) <= B0) && CHOSEN(n))
#define NEWEST(b) \
	(CHOSEN(b) && !NEWER(b, 2) && !NEWER(b, 3) && !NEWER(b, 4) && !NEWER(b, 5) && !NEWER(b, 6))
#ifdef GRANT_EARLY
#define GRANTABLE(b) (vote[b] != 0)
#else
#define GRANTABLE(b) (NEWEST(b) && ((b) > B0 || !sealed[value[b]]))
#endif
/*
 * A token is restored under once; who lost the job with its memory claims it under a new one, by a
 * takeover that names itself. For what the earlier run has proposed may still be on its way.
 */
#ifdef NO_CLAIM
#define FRESH(t) true
#else
#define FRESH(t) (!used[t])
#endif

#define GRANT(b) \
	:: d_step { \
		GRANTABLE(b) && state[value[b]] == HELD && owner[value[b]] == w && \
			FRESH(token[value[b]]) && \
			(phase[w] == NONE || mine[w] < token[value[b]]) -> \
		grant(w, value[b]) \
	}

#define COMMITTED(b) \
	:: d_step { \
		CHOSEN(b) && value[b] == b && phase[w] == OWNER && token[b] == mine[w] && \
			base[b] == my_base[w] && seq[b] == my_seq[w] + 1 -> \
		my_seq[w] = seq[b] \
	}

proctype host(byte w)
{
end:
	do
	GRANT(1)
	EACH(GRANT)
#ifdef ADVANCES
	EACH(COMMITTED)
#endif
#ifdef RELEASES
	/* Frozen first. */
	:: d_step {
		phase[w] == OWNER ->
		phase[w] = LEAVING;
#ifndef NO_FREEZE
		runs[w] = 0;
#endif
		age[w] = 0;
		acked[w] = 0
	}
#endif
#ifdef NO_LIFE
	/* decampd restarts, the job runs on: answers to the earlier life's round count. */
	:: d_step {
		phase[w] == OWNER && acked[w] ->
		age[w] = 0;
		if
		:: QUORUM(acked[w]) ->
			runs[w] = LEASE + SLACK;
			assert(runs[3 - w] == 0)
		:: else
		fi
	}
#endif
#ifdef CRASHES
	/* A power cut, or the job was lost. */
	:: d_step { phase[w] != NONE -> forget(w) }
#endif
	od
}

/* --------------------------------------------------------------------- time */

inline count_down(n)
{
	if
	:: n > 0 -> n--
	:: else
	fi
}

inline grow_old(w)
{
	count_down(runs[w]);
#ifdef NO_SEQ
	age[w] = (acked[w] && age[w] < LEASE + SLACK -> age[w] + 1 : age[w]);
#else
	age[w] = (acked[w] -> age[w] + 1 : 0);
	if
	:: age[w] >= LEASE + SLACK ->
#ifndef NO_LIFE
		acked[w] = 0;
		age[w] = 0
#else
		age[w] = LEASE + SLACK
#endif
	:: else
	fi
#endif
}

#define TIMED(w) (runs[w] || acked[w])

#if B1 > 0
#define HELD_BACK (hold[0] || hold[1] || hold[2] || hold[3] || hold[4] || hold[5])
#else
#define HELD_BACK (hold[0] || hold[1] || hold[2])
#endif

proctype tick()
{
end:
	do
	:: d_step {
		TIMED(1) || TIMED(2) || HELD_BACK ->
		grow_old(1);
		grow_old(2);
		i = 0;
		do
		:: i == ACCEPTORS -> break
		:: else ->
			count_down(hold[i]);
			i++
		od;
		i = 0
	}
	od
}

/* CREATE has just been chosen by two acceptors; host 1 owns the job. */
init
{
	d_step {
		value[1] = 1;
		owner[1] = 1;
		token[1] = 1;
		state[1] = HELD;
		sent[1] = true;
		vote[1] = 3;
		accepted[0] = 1;
		accepted[1] = 1;
		promised[0] = 1;
		promised[1] = 1;
		hold[0] = HOLD;
		hold[1] = HOLD;
		phase[1] = OWNER;
		mine[1] = 1;
		used[1] = true
	};
	atomic {
		run acceptor(0);
		run acceptor(1);
		run acceptor(2);
#if B1 > 0
		run acceptor(3);
		run acceptor(4);
		run acceptor(5);
#endif
		run proposer(2);
		run proposer(3);
#if NB > 3
		run proposer(4);
#endif
#if NB > 4
		run proposer(5);
#endif
#if NB > 5
		run proposer(6);
#endif
		run host(1);
		run host(2);
		run tick()
	}
}
