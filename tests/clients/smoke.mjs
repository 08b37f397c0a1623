// Drives a node through the Node.js clients people use: smoke.mjs PORT [password]
// Each client connects the way it does by itself (RESP3 with HELLO where it is the default), and does what
// programs do. Exit 1 and a stack trace at the first difference.
import assert from "node:assert/strict";
import Redis5 from "ioredis5";
import Redis6 from "ioredis";
import { createClient } from "redis";

const port = Number(process.argv[2]);
const password = process.argv[3];

async function withIoredis(name, Redis) {
  const errors = [];
  const client = new Redis({ host: "127.0.0.1", port, password, connectionName: name, maxRetriesPerRequest: 1 });
  client.on("error", (error) => errors.push(error));
  await new Promise((resolve, reject) => {
    client.once("ready", resolve);
    client.once("end", () => reject(new Error(`${name}: no connection`)));
  });
  await client.flushall();
  assert.equal(await client.client("GETNAME"), name);
  assert.equal(await client.set("k", "välue"), "OK");
  assert.equal(await client.get("k"), "välue");
  assert.equal(await client.get("nokey"), null);
  assert.equal(await client.set("k", "x", "NX"), null);
  assert.equal(await client.set("k", "x", "EX", 100, "GET"), "välue");
  assert.ok((await client.ttl("k")) > 98);
  const bytes = Buffer.from([0, 13, 10, 255, 128]);
  await client.set("bin", bytes);
  assert.deepEqual(await client.getBuffer("bin"), bytes);
  assert.equal(await client.incrby("n", 5), 5);
  assert.equal(await client.incrbyfloat("f", 0.5), "0.5");
  assert.deepEqual(await client.mget("k", "nokey", "n"), ["x", null, "5"]);
  await assert.rejects(client.incr("k"), /not an integer/);
  await assert.rejects(client.call("NOSUCH", "a"), /unknown command 'NOSUCH'/);
  const piped = client.pipeline();
  for (let i = 0; i < 1000; i++) piped.set(`p:${i}`, i);
  assert.ok((await piped.exec()).every(([error, reply]) => error === null && reply === "OK"));
  assert.deepEqual(await client.multi().incr("m").get("m").exec(), [[null, 1], [null, "1"]]);
  const other = client.duplicate();
  await client.watch("m");
  await other.set("m", "changed");
  assert.equal(await client.multi().set("m", "lost").exec(), null);
  other.disconnect();
  const keys = new Set();
  for await (const page of client.scanStream({ match: "p:*", count: 100 })) page.forEach((key) => keys.add(key));
  assert.equal(keys.size, 1000);
  await client.select(3);
  assert.equal(await client.dbsize(), 0);
  assert.match(await client.info("server"), /redis_version:7\.0\.15/);
  assert.deepEqual(errors, []);
  assert.equal(await client.quit(), "OK");
  console.log(`ok ${name}`);
}

async function withNodeRedis(name, options) {
  const client = createClient({ socket: { host: "127.0.0.1", port, reconnectStrategy: false }, password, name, ...options });
  client.on("error", (error) => console.error(name, error.message));
  await client.connect();
  await client.flushAll();
  assert.equal(await client.clientGetName(), name);
  assert.equal(await client.set("k", "välue"), "OK");
  assert.equal(await client.get("k"), "välue");
  assert.equal(await client.get("nokey"), null);
  assert.equal(await client.set("k", "x", { NX: true }), null);
  assert.equal(await client.set("k", "x", { EX: 100, GET: true }), "välue");
  assert.ok((await client.ttl("k")) > 98);
  assert.equal(await client.incrBy("n", 5), 5);
  assert.deepEqual(await client.mGet(["k", "nokey", "n"]), ["x", null, "5"]);
  await assert.rejects(client.incr("k"), /not an integer/);
  await assert.rejects(client.sendCommand(["NOSUCH", "a"]), /unknown command 'NOSUCH'/);
  await Promise.all(Array.from({ length: 1000 }, (_, i) => client.set(`p:${i}`, String(i))));
  assert.deepEqual(await client.multi().incr("m").get("m").exec(), [1, "1"]);
  const other = client.duplicate();
  await other.connect();
  await client.watch("m");
  await other.set("m", "changed");
  await assert.rejects(client.multi().set("m", "lost").exec(), /watched keys/i);
  await other.close();
  const keys = new Set();
  for await (const page of client.scanIterator({ MATCH: "p:*", COUNT: 100 })) [page].flat().forEach((key) => keys.add(key));
  assert.equal(keys.size, 1000);
  assert.deepEqual({ ...(await client.configGet("databases")) }, { databases: "16" });
  await client.select(3);
  assert.equal(await client.dbSize(), 0);
  await client.close();
  console.log(`ok ${name}`);
}

await withIoredis("ioredis-6", Redis6);
await withIoredis("ioredis-5", Redis5);
await withNodeRedis("node-redis-6", {});
await withNodeRedis("node-redis-6-resp2", { RESP: 2 });
