'use strict';
// Polls /status and /metrics, keeps the last five minutes, and draws them. No dependencies, and no inline
// script or style, so that the page's content security policy can be default-src 'self'.

const PERIOD_MS = 2000;
const KEPT = 150;
const element = (id) => document.getElementById(id);
const series = { commands: [], records: [], sync: [], command: [] };
let before = null;
let rangesBefore = new Map();

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return (unit === 0 ? value : value.toFixed(1)) + ' ' + units[unit];
}

function count(value) {
  return Math.round(value).toLocaleString('en');
}

function duration(seconds) {
  if (seconds === null) return '–';
  if (seconds < 1e-3) return (seconds * 1e6).toFixed(0) + ' µs';
  if (seconds < 1) return (seconds * 1e3).toFixed(1) + ' ms';
  return seconds.toFixed(2) + ' s';
}

function age(seconds) {
  const days = Math.floor(seconds / 86400);
  const rest = new Date((seconds % 86400) * 1000).toISOString().slice(11, 19);
  return (days > 0 ? days + ' d ' : '') + rest;
}

// Prometheus text: sums by name; histogram buckets by name and bound.
function parse(text) {
  const sums = new Map();
  const histograms = new Map();
  for (const line of text.split('\n')) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const value = Number(match[3]);
    const bound = /le="([^"]*)"/.exec(match[2] || '');
    if (bound) {
      if (!histograms.has(match[1])) histograms.set(match[1], new Map());
      const buckets = histograms.get(match[1]);
      buckets.set(bound[1], (buckets.get(bound[1]) || 0) + value);
    } else {
      sums.set(match[1], (sums.get(match[1]) || 0) + value);
    }
  }
  return { sums, histograms, at: performance.now() };
}

function rate(now, name) {
  if (!before || !now.sums.has(name)) return null;
  const difference = now.sums.get(name) - (before.sums.get(name) || 0);
  return difference < 0 ? null : difference * 1000 / (now.at - before.at);
}

// Of what happened between two polls, by linear interpolation inside the bucket.
function quantile(now, name, share) {
  const buckets = now.histograms.get(name);
  const old = before && before.histograms.get(name);
  if (!buckets || !old) return null;
  const steps = [...buckets].map(([bound, value]) => [bound === '+Inf' ? Infinity : Number(bound), value - (old.get(bound) || 0)])
    .sort((a, b) => a[0] - b[0]);
  const total = steps.length > 0 ? steps[steps.length - 1][1] : 0;
  if (total <= 0) return null;
  let low = 0;
  let below = 0;
  for (const [bound, value] of steps) {
    if (value >= share * total) {
      if (bound === Infinity) return low;
      return low + (bound - low) * (share * total - below) / (value - below || 1);
    }
    low = bound;
    below = value;
  }
  return low;
}

function draw(id, values) {
  const svg = element(id);
  const known = values.filter((value) => value !== null);
  const top = Math.max(...known, 1e-9) * 1.1;
  const width = 300;
  const height = 56;
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('preserveAspectRatio', 'none');
  let path = '';
  let start = null;
  let end = 0;
  values.forEach((value, index) => {
    if (value === null) return;
    const x = (index + KEPT - values.length) * width / (KEPT - 1);
    const y = height - value / top * height;
    path += (path === '' ? 'M' : 'L') + x.toFixed(1) + ' ' + y.toFixed(1);
    if (start === null) start = x;
    end = x;
  });
  svg.replaceChildren();
  if (start === null) return;
  for (const area of [true, false]) {
    const shape = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    shape.setAttribute('d', area ? `${path}L${end} ${height}L${start} ${height}Z` : path);
    if (area) shape.setAttribute('class', 'area');
    svg.append(shape);
  }
}

function push(name, value, text) {
  series[name].push(value);
  if (series[name].length > KEPT) series[name].shift();
  element('v-' + name).textContent = value === null ? '–' : text(value);
  draw('c-' + name, series[name]);
}

function facts(id, pairs) {
  element(id).replaceChildren(...pairs.flatMap(([name, value]) => {
    const term = document.createElement('dt');
    const description = document.createElement('dd');
    term.textContent = name;
    description.textContent = value;
    return [term, description];
  }));
}

function showMetrics(text) {
  const now = parse(text);
  push('commands', rate(now, 'duramen_commands_total'), count);
  push('records', rate(now, 'duramen_log_last_lsn'), count);
  push('sync', quantile(now, 'duramen_log_sync_seconds_bucket', 0.99), duration);
  push('command', quantile(now, 'duramen_command_seconds_bucket', 0.99), duration);
  before = now;
}

function showStatus(status) {
  document.title = status.node + ' – Duramen';
  element('node').textContent = status.node;
  badge(status.health.ready ? 'ready' : status.health.reason, status.health.ready ? 'good' : 'bad');
  facts('facts', [
    ['Version', status.version],
    ['Cluster', status.cluster_id],
    ['Up for', age(status.uptime_seconds)],
    ['Keys', count(status.keys)],
    ['Connections', `${status.connections.resp} RESP, ${status.connections.http} HTTP`],
    ['Loop, log', `${status.io}, ${status.log_io}`],
    ['Resident memory', bytes(status.memory.rss)],
    ['Damaged values', count(status.health.damaged)],
  ]);
  facts('storage', [
    ['Last record', count(status.wal.last)],
    ['Durable', count(status.wal.durable)],
    ['Checkpointed', `${count(status.wal.checkpoint)} (${count(status.checkpoint.lag)} behind)`],
    ['Log on disk', bytes(status.wal.bytes) + (status.wal.full ? ', full' : '')],
    ['Checkpoints', `${count(status.checkpoint.completed)}, last took ${duration(status.checkpoint.last_seconds)}` +
      (status.checkpoint.running ? ', one runs' : '')],
    ['Store', `${bytes(status.store.file_bytes)}, ${count(status.store.entries)} entries`],
  ]);
  const held = status.memory.memtable + status.memory.sealed;
  element('p-memory').value = status.memory.limit > 0 ? held / status.memory.limit : 0;
  element('v-memory').textContent = `${bytes(held)} of ${bytes(status.memory.limit)}`;
  const used = status.disk.total - status.disk.free;
  element('p-disk').value = status.disk.total > 0 ? used / status.disk.total : 0;
  element('v-disk').textContent = `${bytes(status.disk.free)} free`;
  element('members').replaceChildren(...status.members.map((member) => {
    const row = document.createElement('tr');
    for (const name of ['name', 'state', 'resp', 'http', 'peer', 'zone']) {
      const cell = document.createElement('td');
      cell.textContent = member[name];
      row.append(cell);
    }
    return row;
  }));
  showRanges(status.ranges);
}

function showRanges(ranges) {
  element('range-count').textContent = ranges.length;
  const now = new Map();
  element('ranges').replaceChildren(...ranges.map((range) => {
    const square = document.createElement('div');
    const last = rangesBefore.get(range.id);
    now.set(range.id, range.applied);
    if (range.leader === null) square.className = 'lost';
    else if (last !== undefined && range.applied > last) square.className = 'w2';
    else if (range.applied > 0) square.className = 'w1';
    square.textContent = range.id;
    square.title = `range ${range.id}: leader ${range.leader}, term ${range.term}, applied ${range.applied}, committed ${range.committed}, replicas ` +
      range.replicas.map((replica) => replica.name + (replica.role === 'voter' ? '' : ` (${replica.role})`)).join(' ');
    return square;
  }));
  rangesBefore = now;
}

function badge(text, kind) {
  element('health').textContent = text;
  element('health').className = 'badge ' + kind;
}

async function poll() {
  try {
    const [status, metrics] = await Promise.all([fetch('/status'), fetch('/metrics')]);
    if (!status.ok || !metrics.ok) throw new Error('the node answers ' + status.status);
    showStatus(await status.json());
    showMetrics(await metrics.text());
  } catch (error) {
    badge(error.message === 'Failed to fetch' ? 'not reachable' : error.message, 'bad');
  }
  setTimeout(poll, PERIOD_MS);
}

poll();
