// SPDX-License-Identifier: LGPL-2.1-or-later
let seed = 7;
const dice = n => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) % n;
const table = new Map();
function turn() {
  for (let i = 0; i < 20000; i++) {
    const k = dice(300000);
    const o = table.get(k) || { key: k, hits: 0, tags: [], text: "" };
    o.hits++; o.text = "object " + k + " seen " + o.hits;
    if (o.tags.length < 8) o.tags.push(dice(1000));
    table.set(k, o);
  }
  setTimeout(turn, 10);
}
turn();
