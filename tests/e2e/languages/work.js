// SPDX-License-Identifier: LGPL-2.1-or-later
// An event loop with timers, a worker thread, and files that are written asynchronously.
"use strict";
const fs = require("fs");
const { Worker, isMainThread, parentPort } = require("worker_threads");

function spin(x) {
	for (let i = 0; i < 2000; i++)
		x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
	return x;
}

async function main() {
	const steps = Number(process.argv[3]);
	const worker = new Worker(__filename);
	const out = await fs.promises.open("out.txt", "w");
	const ring = new Array(64);
	let sum = 0;

	for (let step = 0; step < steps; step++) {
		const answer = new Promise((resolve) => worker.once("message", resolve));
		worker.postMessage((sum + step * 2 + 1) >>> 0);
		sum = (sum + spin((sum + step * 2) >>> 0) + (await answer)) >>> 0;
		ring[step % 64] = Array.from({ length: 1000 }, (_, i) => (sum + i) >>> 0);
		if (ring[(step * 7) % 64])
			sum = (sum ^ ring[(step * 7) % 64][step % 1000]) >>> 0;
		await out.write(`${step} ${sum.toString(16).padStart(8, "0")}\n`);
		await new Promise((resolve) => setTimeout(resolve, 50));
	}
	await out.close();
	await worker.terminate();
}

if (isMainThread)
	main();
else
	parentPort.on("message", (x) => parentPort.postMessage(spin(x)));
