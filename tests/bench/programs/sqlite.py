# SPDX-License-Identifier: LGPL-2.1-or-later
import random, sqlite3
db = sqlite3.connect(":memory:")
db.execute("create table t (id integer primary key, name text, body text, n real)")
db.execute("create index by_name on t (name)")
dice = random.Random(7)
def row():
    return ("user%08d" % dice.randrange(10**8),
            " ".join(str(dice.randrange(1 << 30)) for _ in range(20)), dice.random())
db.executemany("insert into t (name, body, n) values (?, ?, ?)", (row() for _ in range(300000)))
db.commit()
while True:
    for _ in range(1000):
        db.execute("update t set n = n + 1 where id = ?", (dice.randrange(300000),))
    for _ in range(100):
        db.execute("update t set body = ? where id = ?", (row()[1], dice.randrange(300000)))
        db.execute("insert into t (name, body, n) values (?, ?, ?)", row())
    db.commit()
    db.execute("select count(*), avg(n) from t where name like 'user1%'").fetchall()
