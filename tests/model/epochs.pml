/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * One job's acceptors that change, for spin; tests/model/run checks it. register.pml is the
 * register itself; here phase 1 of a ballot is one step, and the change is as the core makes it.
 *
 *   hosts 0..3      acceptors; the first epoch's set is {0,1,2}
 *   set 1 {3,1,2}   and set 2 {0,1,3} may follow: one host gives its place to host 3
 *   ballots         1 (CREATE)..B0 of epoch 0; BASE, what epoch 1 begins with; then B1 more
 *
 * From overlay/core: epoch.c (install, settle, close, repair), proposer.c (a seal is counted from
 * answers; who was installed by the same seal votes for it), guardian.c (burials), acceptor.c and
 * job.c (who knows that the job is over makes no record of it). A host is in one epoch only.
 *
 * Time. LONG is ten minutes: whatever is under way then never arrives (but for SLEEPER: ballot 2's
 * proposer stands still, its clocks too), and what has ended before it may be forgotten after it.
 * Leases (LEASES) are of one tick, as in register.pml. Messages may be lost, late and doubled.
 *
 * A flag NO_x or the like switches one rule off; REACH_x makes a wanted end count as an error.
 */
#ifndef B0
#define B0 3
#endif
#ifndef B1
#define B1 0
#endif
#ifndef SETS
#define SETS 2
#endif
#ifndef LONGS
#define LONGS 0
#endif
#define BASE (B0 + 1)
#define NB (B0 + 1 + B1)
#ifdef LEASES
#define HOLD 1
#else
#define HOLD 0
#endif

/* Fewer states where all is forgotten: see TAKES. */
#if LONGS > 0 && B1 > 0 && !defined(WIDE)
#define NARROW
#endif

#define IDLE 1
#define HELD 2
#define DONE 3
#define ENDED 4 /* collected or killed */

/* What a host keeps of the job on its disk. */
#define NOTHING 0
#define OLD 1	  /* acceptor of epoch 0 */
#define FRESH 2	  /* installed in epoch 1, not known to stand */
#define SETTLED 3 /* the same, and it stands */
#define SIGN 4	  /* a signpost: epoch 1 stands, this host is not installed in it */

#define SET0 7
#define SET1 (eset == 1 -> 14 : 11)
#define NAMED(s) ((s) == 1 -> 14 : 11)
#define SET_OF(b) ((b) <= B0 -> SET0 : SET1)
#define IN(m, a) ((m) >> (a) & 1)
#define COUNT(m) (((m) & 1) + ((m) >> 1 & 1) + ((m) >> 2 & 1) + ((m) >> 3 & 1))
#define MAJORITY(m) (COUNT(m) >= 2)
#define CHOSEN(b) (MAJORITY(vote[b]))

byte rec[4], promised[4], accepted[4];
bool unclosed[4];	   /* epoch 0 is not known to be closed */
bool over[4];		   /* memory: the job is over */
bool ripe[4], unknown[4]; /* ten minutes ago: it had ended; the others knew nothing */
#ifdef LEASES
byte hold[4];
#endif

byte eset;   /* the set that somebody was installed in */
bool stands; /* epoch 1: a majority was installed */
byte iack;   /* INSTALLED, a mask */
byte closed; /* CLOSED, a mask */
bool again;  /* INSTALL by who heard from a majority that it is sealed or moved */
byte repair; /* INSTALL by who heard a majority of epoch 1: of that ballot; 0: none */
byte longs;

bool sent[NB + 1], dead[NB + 1]; /* dead: nothing of it arrives any more */
byte vote[NB + 1];		 /* who ever accepted it */
byte moved[NB + 1];		 /* who was installed, asked for this seal */
byte value[NB + 1];		 /* the ballot that first carried it */
byte owner[NB + 1], token[NB + 1], state[NB + 1];
byte seal[NB + 1]; /* the next set, or 0 */

byte found;
bool sure;

#ifdef LEASES
byte mine[3];	/* token; 0: it does not own the job */
byte runs[3];	/* ticks left */
byte acked[3];	/* a mask; of epoch 1: * 16 */
bool used[NB + 1];
#endif

hidden byte i, k, x, y, group, set;

#define SAME(u, v) (token[u] == token[v] && owner[u] == owner[v])
#define EQUAL(u, v) (SAME(u, v) && state[u] == state[v])

#ifdef LEASES
/* A1. An owner may claim the job from itself. */
#define BUSY(a, v) \
	(hold[a] > 0 && owner[value[accepted[a]]] != owner[v] && \
	 !(token[value[accepted[a]]] == token[v] && owner[v] == 0))
#else
#define BUSY(a, v) false
#endif

inline judge_pair()
{
	assert(token[y] >= token[x]);
	if
	:: token[y] > token[x] -> assert(state[x] == HELD || state[x] == IDLE)
	:: else ->
		assert(state[x] == HELD || state[y] == state[x] || state[y] == ENDED);
		assert(state[x] != ENDED || state[y] == ENDED)
	fi
}

/* I3: what follows a seal in its epoch is that seal. Epoch 1 begins with it. */
#define FOLLOWS(n, m) \
	assert(!(seal[x] && (n) <= B0 && (m) <= B0) || (seal[y] == seal[x] && EQUAL(x, y))); \
	assert((m) != BASE || EQUAL(x, y))

/* Ballot b has just been chosen. */
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
		FOLLOWS(i, b);
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
		FOLLOWS(b, i);
		judge_pair()
	:: else
	fi
}

/* One vote more. */
inline count_vote(a, b)
{
	k = (CHOSEN(b) -> 1 : 0);
	vote[b] = vote[b] | 1 << a;
	if
	:: k == 0 && CHOSEN(b) -> judge(b)
	:: else
	fi;
	k = 0;
	i = 0;
	x = 0;
	y = 0
}

inline set_value(a, b)
{
#ifdef LEASES
	if
	:: rec[a] == NOTHING || !EQUAL(value[accepted[a]], value[b]) ->
		hold[a] = (state[value[b]] == IDLE -> 0 : HOLD)
	:: else
	fi;
#endif
	if
	:: rec[a] == NOTHING -> rec[a] = OLD; promised[a] = 0
	:: else
	fi;
	if
	:: accepted[a] && EQUAL(value[accepted[a]], value[b]) -> skip
	:: else -> ripe[a] = false
	fi;
	accepted[a] = b;
	if
	:: promised[a] < b -> promised[a] = b
	:: else
	fi;
	unknown[a] = false;
	count_vote(a, b)
}

/* ---------------------------------------------------------------- acceptors */

#define WORDS(b) (sent[b] && value[b] && !dead[b])
#define OF_EPOCH(a, b) \
	((b) <= B0 -> rec[a] == OLD : (rec[a] == FRESH || rec[a] == SETTLED))

/* A host that may restart at any moment may do so at once; what it still knew would only refuse. */
#ifdef RESTARTS
#define REMEMBERS false
#else
#define REMEMBERS true
#endif
#ifdef NO_OVER
#define OVER(a) false
#else
#define OVER(a) over[a]
#endif

/* An ACCEPT of epoch 0 may be a creation: it makes a record out of nothing. */
#define ACCEPT(b) \
	:: d_step { \
		WORDS(b) && IN(SET_OF(b), a) && \
			((OF_EPOCH(a, b) && accepted[a] != b && promised[a] <= b && \
			  !BUSY(a, value[b])) || \
			 ((b) <= B0 && rec[a] == NOTHING && !OVER(a))) -> \
		set_value(a, b) \
	}

/* A vote for a seal by who was installed, if it is the seal that moved it. */
#ifdef NO_VOTE
#define SAME_SEAL(b) true
#else
#define SAME_SEAL(b) (seal[value[b]] == eset && EQUAL(value[b], value[BASE]))
#endif
#define MOVED(b) \
	:: d_step { \
		WORDS(b) && seal[value[b]] && a < 3 && rec[a] == FRESH && !IN(vote[b], a) && \
			!IN(moved[b], a) && SAME_SEAL(b) -> \
		moved[b] = moved[b] | 1 << a \
	}

/* A chosen value: it never makes a record. */
#define LEARN(b) \
	:: d_step { \
		CHOSEN(b) && !seal[value[b]] && OF_EPOCH(a, b) && IN(SET_OF(b), a) && \
			accepted[a] < b -> \
		set_value(a, b) \
	}

#ifdef NO_CERTIFICATE
#define SEALED(b) (WORDS(b) && seal[value[b]] && vote[b])
#else
#define SEALED(b) (WORDS(b) && seal[value[b]] && MAJORITY(vote[b] | moved[b]))
#endif

/* Whether an INSTALL makes an acceptor of epoch 1 of this host. */
#define MAY_INSTALL(a) \
	(rec[a] == OLD || rec[a] == SIGN || (rec[a] == NOTHING && !OVER(a)))

#ifdef NO_A3
#define INSTALL_HOLD(b) 0
#else
#define INSTALL_HOLD(b) (state[value[b]] == IDLE -> 0 : HOLD)
#endif

/* A signpost has noted that the epoch stands, and may have said so. */
#ifdef UNNOTED
#define NOTED(a) false
#else
#define NOTED(a) (rec[a] == SIGN)
#endif

/* INSTALLED, heard by who installs; once the epoch stands it tells nothing new. */
inline installed(a)
{
	if
	:: !stands -> iack = iack | 1 << a
	:: else
	fi;
	if
	:: MAJORITY(iack) ->
		stands = true;
		iack = 0
	:: else
	fi
}

inline install(a, b, settled)
{
	rec[a] = (settled || NOTED(a) -> SETTLED : FRESH);
	accepted[a] = b;
	promised[a] = b;
#if LONGS > 0
	unclosed[a] = true;
#endif
	ripe[a] = false;
	unknown[a] = false;
#ifdef LEASES
	hold[a] = INSTALL_HOLD(b);
#endif
	installed(a);
	count_vote(a, b)
}

/* I3: one successor, and it begins with what the seal holds. */
#define INSTALL(b) \
	:: d_step { \
		SEALED(b) && IN(NAMED(seal[value[b]]), a) && MAY_INSTALL(a) -> \
		assert(eset == 0 || (eset == seal[value[b]] && EQUAL(value[b], value[BASE]))); \
		eset = seal[value[b]]; \
		value[BASE] = BASE; \
		owner[BASE] = owner[value[b]]; \
		token[BASE] = token[value[b]]; \
		state[BASE] = state[value[b]]; \
		install(a, BASE, false) \
	}

#define ENDS_AT(n) ((n) <= NB && CHOSEN(n) && state[value[n]] == ENDED)
#if NB > 5
#define ENDED_AT_LAST \
	(ENDS_AT(2) || ENDS_AT(3) || ENDS_AT(4) || ENDS_AT(5) || ENDS_AT(6))
#elif NB > 4
#define ENDED_AT_LAST (ENDS_AT(2) || ENDS_AT(3) || ENDS_AT(4) || ENDS_AT(5))
#else
#define ENDED_AT_LAST (ENDS_AT(2) || ENDS_AT(3) || ENDS_AT(4))
#endif

/* He has noted that epoch 1 stands, or has nothing to say about epoch 0. */
#define CLOSER(r) (rec[r] == SETTLED && unclosed[r])
#define CLOSES(r) (rec[r] == NOTHING || rec[r] >= SETTLED -> 1 : 0)

#ifdef NO_CLOSE
#define MAY_BURY(a) (rec[a] != FRESH)
#else
#define MAY_BURY(a) (rec[a] == OLD || rec[a] == SIGN || (rec[a] == SETTLED && !unclosed[a]))
#endif

inline bury(a)
{
	rec[a] = NOTHING;
	promised[a] = 0;
	accepted[a] = 0;
	unclosed[a] = false;
	ripe[a] = false;
	unknown[a] = false;
#ifdef LEASES
	hold[a] = 0;
#endif
	iack = iack & ~(1 << a)
#ifdef REACH_FORGOTTEN
	;
	assert(!stands || rec[0] || rec[1] || rec[2] || rec[3])
#endif
}

/* Those that this host would ask, and who know nothing of that epoch. */
#define ASKED(a) (rec[a] >= SETTLED -> SET1 : SET0)
#define IGNORANT(a, r) \
	(IN(ASKED(a), r) && (rec[a] >= SETTLED -> rec[r] < FRESH || rec[r] == SIGN : \
						  rec[r] == NOTHING) -> 1 : 0)
#define IGNORED(a) \
	(rec[a] && IGNORANT(a, 0) + IGNORANT(a, 1) + IGNORANT(a, 2) + IGNORANT(a, 3) >= 2)

#ifdef LEASES
/* A2. */
#ifdef SEALED_RENEWS
#define UNSEALED(a) true
#else
#define UNSEALED(a) (rec[a] != OLD || !seal[value[accepted[a]]])
#endif
#define SHIFT(a) (rec[a] == OLD -> 0 : 4)
#define RENEWS(a, w) \
	(mine[w] && (rec[a] == OLD || (stands && (rec[a] == FRESH || rec[a] == SETTLED))) && \
	 state[value[accepted[a]]] == HELD && owner[value[accepted[a]]] == w && \
	 token[value[accepted[a]]] == mine[w] && UNSEALED(a))

inline acknowledge(w, a)
{
	hold[a] = HOLD;
	acked[w] = acked[w] | 1 << (a + SHIFT(a));
	if
	:: MAJORITY(acked[w]) || MAJORITY(acked[w] >> 4) ->
		runs[w] = HOLD;
		acked[w] = 0;
		assert(runs[3 - w] == 0);
#ifdef REACH_EPOCH
		assert(!(rec[a] != OLD && mine[w] > B0));
#endif
	:: else
	fi
}

/* A round lasts for a tick at most, as a lease does. In each epoch it is another one. */
#define RENEW(w) \
	:: d_step { \
		RENEWS(a, w) && !IN(acked[w], a + SHIFT(a)) -> \
		if \
		:: acked[w] && (acked[w] >= 16) != (SHIFT(a) == 4) -> acked[w] = 0 \
		:: else \
		fi; \
		acknowledge(w, a) \
	}
#endif

#if B0 == 2
#define EACH0(X) X(2)
#define EACH0F(X) X(1) X(2)
#elif B0 == 3
#define EACH0(X) X(2) X(3)
#define EACH0F(X) X(1) X(2) X(3)
#else
#define EACH0(X) X(2) X(3) X(4)
#define EACH0F(X) X(1) X(2) X(3) X(4)
#endif
#if B1 == 0
#define EACH1(X)
#elif B1 == 1
#define EACH1(X) X(BASE + 1)
#else
#define EACH1(X) X(BASE + 1) X(BASE + 2)
#endif

proctype acceptor(byte a)
{
end:
	do
	EACH0F(ACCEPT)
	EACH1(ACCEPT)
#ifndef NARROW
	EACH0(LEARN)
	EACH1(LEARN)
#endif
#ifndef NARROW
	EACH0(MOVED)
#endif
	EACH0(INSTALL)
	/* By who heard of it from those who are installed. */
	:: d_step {
		again && IN(SET1, a) && MAY_INSTALL(a) -> install(a, BASE, false)
	}
	:: d_step {
		again && !stands && (rec[a] == FRESH || rec[a] == SETTLED) && !IN(iack, a) ->
		installed(a)
	}
	:: d_step {
		repair && IN(SET1, a) && MAY_INSTALL(a) -> install(a, repair, true)
	}
	/* A settled epoch is a fact, whoever tells it. */
	:: d_step {
		stands && (rec[a] == FRESH || rec[a] == OLD) ->
		if
		:: rec[a] == FRESH -> rec[a] = SETTLED
		:: else ->
			rec[a] = SIGN;
			promised[a] = 0;
			accepted[a] = 0;
			ripe[a] = false;
			unknown[a] = false
#ifdef LEASES
			;
			hold[a] = 0
#endif
		fi
	}
#ifdef NARROW
	/* What a host says to CLOSE it would say for ever. */
	:: d_step { CLOSER(a) && CLOSES(0) + CLOSES(1) + CLOSES(2) >= 2 -> unclosed[a] = false }
#elif LONGS > 0
	/* CLOSE and CLOSED: needed where something is forgotten. */
	:: d_step {
		a < 3 && !IN(closed, a) && (CLOSER(0) || CLOSER(1) || CLOSER(2) || CLOSER(3)) &&
			CLOSES(a) ->
		closed = closed | 1 << a
	}
	:: d_step { CLOSER(a) && MAJORITY(closed) -> unclosed[a] = false }
#endif
#if LONGS > 0
	:: d_step {
		ripe[a] && MAY_BURY(a) && (rec[a] == SIGN -> ENDED_AT_LAST : CHOSEN(accepted[a])) ->
		bury(a);
		over[a] = REMEMBERS
	}
	:: d_step { unknown[a] && IGNORED(a) -> bury(a) }
#endif
#ifdef LEASES
	RENEW(1)
	RENEW(2)
#endif
	od
}

/* ---------------------------------------------------------------- proposers */

/* The answers of a set of acceptors: which ballot they name, and whether it is chosen for sure. */
inline find_current(mask)
{
	set = mask;
	do
	:: !MAJORITY(set) -> break
	:: else ->
		found = 0;
		group = 0;
		i = 0;
		do
		:: i == 4 -> break
		:: else ->
			if
			:: IN(set, i) && (group == 0 || accepted[i] > found) ->
				found = accepted[i];
				group = 1 << i
			:: IN(set, i) && group != 0 && accepted[i] == found ->
				group = group | 1 << i
			:: else
			fi;
			i++
		od;
		sure = MAJORITY(group) || CHOSEN(found);
		if
		:: sure || !MAJORITY(set & ~group) -> break
		:: else -> set = set & ~group
		fi
	od;
	set = 0;
	group = 0;
	i = 0
}

inline send(ballot, carried)
{
	value[ballot] = carried;
	sent[ballot] = true;
	found = 0;
	sure = false
}

inline follow(nr, who, tok, what, next)
{
	owner[nr] = who;
	token[nr] = tok;
	state[nr] = what;
	seal[nr] = next;
	send(nr, nr)
}

#define ANSWERS(r, m) \
	(!IN(m, r) || (IN(SET_OF(b), r) && \
		       ((OF_EPOCH(r, b) && promised[r] < b) || (b <= B0 && rec[r] == FRESH))))

inline promise(r, m)
{
	if
	:: IN(m, r) && OF_EPOCH(r, b) -> promised[r] = b
	:: else
	fi
}

/* Who is in the next epoch, unsettled, says what it was installed with: that seal is chosen. */
#define SAYS_MOVED(m) \
	(b <= B0 && ((IN(m, 0) && rec[0] == FRESH) || (IN(m, 1) && rec[1] == FRESH) || \
		     (IN(m, 2) && rec[2] == FRESH)))

#define HEAR(m) \
	:: d_step { \
		(b <= B0 || stands) && ANSWERS(0, m) && ANSWERS(1, m) && ANSWERS(2, m) && \
			ANSWERS(3, m) -> \
		promise(0, m); \
		promise(1, m); \
		promise(2, m); \
		promise(3, m); \
		if \
		:: SAYS_MOVED(m) -> \
			again = true; \
			iack = 0; \
			send(b, 0) \
		:: else -> \
			find_current(m); \
			REPAIRS \
		fi \
	}
#if B1 > 0 && !defined(NARROW)
#define REPAIRS \
	if \
	:: b > B0 && sure -> repair = found \
	:: else \
	fi
#else
#define REPAIRS skip
#endif

#define NOW value[found]
#ifdef NO_P2
#define OPEN sure
#else
#define OPEN (sure && !(b <= B0 && seal[NOW]))
#endif
#define GOES_ON (found && OPEN)
/*
 * Fewer states: what register.pml has within one epoch is left out. With leases epoch 0 is for the
 * seal. Where all is forgotten (NARROW), ballot 2 seals, and epoch 1 is for an end, and a takeover
 * that must not come; a ballot hears a bare majority, and nobody learns but from an ACCEPT, or is
 * installed but by the seal.
 */
#ifdef NARROW
#define TAKES (b == NB)
#define MAY_END (b == BASE + 1)
#define MAY_SEAL (b == 2)
#else
#define MAY_END true
#define MAY_SEAL (b <= B0)
#if defined(LEASES) && !defined(WIDE)
#define TAKES (b > B0)
#else
#define TAKES true
#endif
#endif

proctype proposer(byte b)
{
end:
	atomic {
		if
		HEAR(3)
		HEAR(5)
		HEAR(6)
#if B1 > 0
		HEAR(9)
		HEAR(10)
		HEAR(12)
#endif
#ifndef NARROW
		HEAR(7)
#if B1 > 0
		HEAR(11)
		HEAR(13)
		HEAR(14)
#endif
#endif
		fi;
		if
		:: sent[b]
		/* A value that is not known to be chosen is finished, and a seal (P2). */
		:: found && !OPEN -> d_step { send(b, NOW) }
		/* Who shall have it matters with leases only. */
		:: TAKES && GOES_ON && (state[NOW] == HELD || state[NOW] == IDLE) ->
			d_step { follow(b, 2, b, HELD, 0) }
#ifdef WIDE
		:: GOES_ON && (state[NOW] == HELD || state[NOW] == IDLE) ->
			d_step { follow(b, 1, b, HELD, 0) }
#endif
#ifdef ENDS
		:: MAY_END && GOES_ON && state[NOW] != ENDED ->
			d_step { follow(b, owner[NOW], token[NOW], ENDED, 0) }
#endif
#ifdef RELEASES
		:: GOES_ON && state[NOW] == HELD ->
			d_step { follow(b, 0, token[NOW], IDLE, 0) }
		:: GOES_ON && state[NOW] == HELD ->
			d_step { follow(b, owner[NOW], token[NOW], DONE, 0) }
#endif
#if SETS > 0
		:: MAY_SEAL && GOES_ON && state[NOW] != ENDED ->
			d_step { follow(b, owner[NOW], token[NOW], state[NOW], 1) }
#endif
#if SETS > 1
		:: MAY_SEAL && GOES_ON && state[NOW] != ENDED ->
			d_step { follow(b, owner[NOW], token[NOW], state[NOW], 2) }
#endif
		:: !sent[b] -> d_step { send(b, 0) }
		fi
	}
}

/* --------------------------------------------------------------------- time */

/*
 * Ten minutes count from when its end is known to be chosen, and the epoch before to be closed; a
 * signpost's from the move.
 */
#ifdef EARLY_TOMB
#define KNOWN(r) true
#define HAS_ENDED true
#elif defined(EARLY_CLOSE)
#define KNOWN(r) CHOSEN(accepted[r])
#define HAS_ENDED ENDED_AT_LAST
#else
#define KNOWN(r) (CHOSEN(accepted[r]) && MAY_BURY(r))
#define HAS_ENDED ENDED_AT_LAST
#endif
inline ripen(r)
{
	if
	:: rec[r] == SIGN || (rec[r] && KNOWN(r) && state[value[accepted[r]]] == ENDED) ->
		ripe[r] = true
	:: else
	fi;
	if
	:: IGNORED(r) -> unknown[r] = true
	:: else
	fi
}

#ifdef SLEEPER
#define SLEEPS(n) ((n) == 2)
#else
#define SLEEPS(n) false
#endif

#if LONGS > 0
proctype ten_minutes()
{
end:
	do
	/* While nothing has ended it would do no more than lose what is under way. */
	:: d_step {
		longs < LONGS && HAS_ENDED ->
		longs++;
		i = 1;
		do
		:: i > NB -> break
		:: else ->
			if
			:: sent[i] && !SLEEPS(i) -> dead[i] = true
			:: else
			fi;
			i++
		od;
		ripen(0);
		ripen(1);
		ripen(2);
		ripen(3);
		again = false;
		repair = 0;
		iack = 0;
		i = 0
	}
	od
}
#endif

#ifdef LEASES
#define NEWER(b, n) ((n) <= NB && (n) > (b) && CHOSEN(n))
#if NB > 4
#define NEWEST(b) (CHOSEN(b) && !NEWER(b, 2) && !NEWER(b, 3) && !NEWER(b, 4) && !NEWER(b, 5))
#else
#define NEWEST(b) (CHOSEN(b) && !NEWER(b, 2) && !NEWER(b, 3) && !NEWER(b, 4))
#endif
#define GRANT(b) \
	:: d_step { \
		NEWEST(b) && state[value[b]] == HELD && owner[value[b]] == w && \
			!used[token[value[b]]] && mine[w] < token[value[b]] -> \
		mine[w] = token[value[b]]; \
		runs[w] = 0; \
		acked[w] = 0; \
		used[token[value[b]]] = true \
	}

proctype host(byte w)
{
end:
	do
	EACH0(GRANT)
	GRANT(BASE)
	EACH1(GRANT)
#ifdef CRASHES
	:: d_step { mine[w] -> mine[w] = 0; runs[w] = 0; acked[w] = 0 }
#endif
	od
}

inline count_down(n)
{
	if
	:: n > 0 -> n--
	:: else
	fi
}

proctype tick()
{
end:
	do
	:: d_step {
		runs[1] || runs[2] || acked[1] || acked[2] || hold[0] || hold[1] || hold[2] ||
			hold[3] ->
		count_down(runs[1]);
		count_down(runs[2]);
		acked[1] = 0;
		acked[2] = 0;
		count_down(hold[0]);
		count_down(hold[1]);
		count_down(hold[2]);
		count_down(hold[3])
	}
	od
}
#endif

#ifdef NARROW
#define CREATORS 3
#else
#define CREATORS 2
#endif

/* CREATE has just been chosen by two acceptors, or all three; host 1 owns the job. */
init
{
	d_step {
		value[1] = 1;
		owner[1] = 1;
		token[1] = 1;
		state[1] = HELD;
		sent[1] = true;
		vote[1] = (1 << CREATORS) - 1;
		rec[0] = OLD;
		rec[1] = OLD;
		accepted[0] = 1;
		accepted[1] = 1;
		promised[0] = 1;
		promised[1] = 1;
#ifdef NARROW
		rec[2] = OLD;
		accepted[2] = 1;
		promised[2] = 1;
#endif
#ifdef LEASES
		hold[0] = HOLD;
		hold[1] = HOLD;
		mine[1] = 1;
		used[1] = true
#endif
	};
	atomic {
		run acceptor(0);
		run acceptor(1);
		run acceptor(2);
		run acceptor(3);
		run proposer(2);
#if B0 > 2
		run proposer(3);
#endif
#if B0 > 3
		run proposer(4);
#endif
#if B1 > 0
		run proposer(BASE + 1);
#endif
#if B1 > 1
		run proposer(BASE + 2);
#endif
#if LONGS > 0
		run ten_minutes();
#endif
#ifdef LEASES
		run host(1);
		run host(2);
		run tick()
#endif
	}
}
