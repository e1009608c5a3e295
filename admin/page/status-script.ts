/**
 * The status page's script, run by the browser. Whatever comes from outside becomes text nodes, never markup. It reads the stream with
 * fetch, not EventSource, so that a token can be sent where the API asks for one.
 */
export const STATUS_SCRIPT = String.raw`
const state = document.getElementById('state');
const main = document.getElementById('main');
const login = document.getElementById('login');

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== undefined && value !== null && value !== '') node.setAttribute(name, value);
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child instanceof Node ? child : String(child));
  }
  return node;
}

function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let i = 0;
  while (n >= 1024 && i < units.length - 1) { n /= 1024; i += 1; }
  return (i === 0 ? String(n) : n.toFixed(n >= 100 ? 0 : 1)) + ' ' + units[i];
}
const percent = (part, whole) => (whole > 0 ? Math.floor((100 * part) / whole) + ' %' : '–');
function when(iso) {
  if (!iso) return '–';
  const date = new Date(iso);
  const isToday = date.toDateString() === new Date().toDateString();
  return isToday ? date.toLocaleTimeString() : date.toLocaleString();
}
function bar(share, kind) {
  const fill = el('i', { class: kind });
  fill.style.width = Math.max(0, Math.min(100, share * 100)) + '%';
  return el('div', { class: 'bar', role: 'progressbar', 'aria-valuenow': Math.round(share * 100), 'aria-valuemin': 0, 'aria-valuemax': 100 }, fill);
}
function section(id, title, note, ...content) {
  return el('section', { id }, el('h2', {}, title, note ? el('small', {}, note) : null), content);
}
/** Columns of short values, which leave their room to the others. */
const TIGHT = new Set(['Size', 'Made', 'Matched', 'Hit rate', 'Local', 'Mode', 'Since', 'Time', 'What']);
function table(heads, rows, empty) {
  if (rows.length === 0) return el('p', { class: 'dim' }, empty);
  const cells = (row) => row.map((cell, i) => el('td', { 'data-label': heads[i], class: TIGHT.has(heads[i]) ? 'tight' : '' }, el('div', {}, cell)));
  return el('table', {},
    el('thead', {}, el('tr', {}, heads.map((head) => el('th', { scope: 'col' }, head)))),
    el('tbody', {}, rows.map((row) => el('tr', {}, cells(row)))));
}
const facts = (pairs) => el('dl', { class: 'facts' }, pairs.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))));

const CACHE_KIND = { Ready: 'good', Failed: 'bad', UpdateFailed: 'warn', Preparing: 'busy', Creating: 'busy', Updating: 'busy' };
const DEVICE_KIND = { attached: 'good', failed: 'bad', opening: 'busy', releasing: 'dim' };
const SEVERITY_KIND = { error: 'bad', warning: 'warn', info: 'dim' };

function nodePart({ status, store, traffic }) {
  const parts = [];
  if (status && status.degraded.length > 0) {
    parts.push(section('problems', 'What does not work', '', el('ul', { class: 'problems' }, status.degraded.map((text) => el('li', {}, text)))));
  }
  if (status) {
    const { counts } = status;
    const down = status.processes.filter((p) => p.state !== 'running').map((p) => p.name);
    parts.push(section('node', 'Node', status.version, facts([
      ['Images', counts.images],
      ['Snapshots', counts.snapshots + (counts.brokenSnapshots > 0 ? ' (' + counts.brokenSnapshots + ' broken)' : '')],
      ['Devices', counts.devices],
      ['Processes', down.length > 0 ? el('span', { class: 'bad' }, down.join(', ') + ' down') : status.processes.length + ' running'],
      ['Read', traffic ? bytes(traffic.readBytes) : '–'],
      ['Local reads', traffic ? percent(traffic.readCount - traffic.missCount, traffic.readCount) : '–'],
      ['Waiting reads', traffic ? traffic.waitingCount : '–'],
      ['Since', when(status.startedAt)],
    ])));
  }
  if (store) {
    const share = store.budgetBytes > 0 ? store.usedBytes / store.budgetBytes : 0;
    parts.push(section('store', 'Store', store.degradedBy ? 'degraded: ' + store.degradedBy : '',
      el('p', {}, bytes(store.usedBytes) + ' of ' + bytes(store.budgetBytes) + ' in ' + store.blobCount + ' blobs, ' + bytes(store.reservedBytes) + ' reserved'),
      bar(share, store.degradedBy ? 'bad' : share > 0.9 ? 'warn' : 'good')));
  }
  return parts;
}

function cacheRow(cache) {
  const kind = CACHE_KIND[cache.status] || 'dim';
  return [
    [cache.imageCacheName, el('small', {}, cache.imageCacheId)],
    [el('span', { class: kind }, cache.status), cache.status === 'Ready' ? null : bar(cache.progress / 100, kind),
      cache.status === 'Ready' ? null : el('small', {}, Math.floor(cache.progress) + ' %'),
      cache.failure ? el('small', { class: 'bad' }, cache.failure) : null],
    [cache.images[0] || '–', cache.images.length > 1 ? el('small', {}, 'and ' + (cache.images.length - 1) + ' more') : null],
    [bytes(cache.sizeBytes), el('small', {}, 'of ' + cache.imageCacheSize + ' GiB')],
    cache.owner === 'system' ? 'automatic' : 'manual',
    when(cache.lastMatchedTime),
  ];
}
function deviceRow(device) {
  return [
    [device.image, el('small', {}, device.id.slice(0, 12))],
    [el('span', { class: DEVICE_KIND[device.state] || 'dim' }, device.state), device.detail ? el('small', {}, device.detail) : null],
    [percent(device.hitCount, device.readCount), el('small', {}, device.readCount + ' reads, ' + bytes(device.readBytes))],
    [bytes(device.presentBytes), el('small', {}, 'of ' + bytes(device.layerBytes)), bar(device.layerBytes > 0 ? device.presentBytes / device.layerBytes : 0, 'busy')],
    [String(device.missCount), el('small', {}, device.waitingCount + ' wait, ' + device.stallCount + ' stalled, ' + device.failureCount + ' failed')],
  ];
}
function jobRow(job) {
  const p = job.progress;
  const share = p.sourceBytes > 0 ? Math.min(1, p.readBytes / p.sourceBytes) : 0;
  return [
    [job.repository + ':' + job.tag, el('small', {}, 'to ' + job.targetTag)],
    [el('span', { class: 'busy' }, job.state), bar(share, 'busy'), el('small', {}, 'layers ' + p.layersDone + ' of ' + p.layersTotal)],
    job.request.mode,
    when(job.startTime || job.createdAt),
  ];
}
function eventRow(event) {
  return [
    when(event.at),
    [el('span', { class: SEVERITY_KIND[event.severity] || 'dim' }, event.kind), el('small', {}, event.source)],
    [event.message, el('small', {}, event.subject)],
  ];
}

function show(view) {
  const isReady = view.status !== null && view.status.isReady;
  state.textContent = isReady ? 'ready' : 'degraded';
  state.className = isReady ? 'good' : 'bad';
  const devices = view.devices === null ? el('p', { class: 'bad' }, 'The data plane does not answer.')
    : table(['Image', 'State', 'Hit rate', 'Local', 'Misses'], view.devices.map(deviceRow), 'No device is open.');
  const more = (shown, all) => (all > shown ? shown + ' of ' + all : String(all));
  main.replaceChildren(
    ...nodePart(view),
    section('caches', 'Image caches', more(view.caches.length, view.cacheCount),
      table(['Cache', 'State', 'Images', 'Size', 'Made', 'Matched'], view.caches.map(cacheRow), 'No cache yet. On the node: obdctl cache create NAME IMAGE')),
    section('devices', 'Devices', more((view.devices || []).length, view.deviceCount), devices),
    section('conversions', 'Running conversions', String(view.conversions.length),
      table(['Image', 'State', 'Mode', 'Since'], view.conversions.map(jobRow), 'None.')),
    section('events', 'Recent events', '', table(['Time', 'What', 'Message'], view.events.map(eventRow), 'None.')));
}

const tokenKey = 'overlaybd-token';
login.addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(tokenKey, document.getElementById('token').value);
  login.hidden = true;
  follow();
});

/** Follows the stream until it ends; true when it shall be tried again. */
async function followOnce() {
  const token = sessionStorage.getItem(tokenKey);
  const answer = await fetch('/v1/overview:watch', token === null ? {} : { headers: { authorization: 'Bearer ' + token } });
  if (answer.status === 401) {
    sessionStorage.removeItem(tokenKey);
    login.hidden = false;
    state.textContent = token === null ? 'a token is needed' : 'the token was refused';
    state.className = token === null ? '' : 'bad';
    return false;
  }
  if (!answer.ok) throw Object.assign(new Error((await answer.json()).message), { isRefusal: true });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return true;
    text += value;
    for (let end = text.indexOf('\n\n'); end !== -1; end = text.indexOf('\n\n')) {
      const data = text.slice(0, end).split('\n').filter((line) => line.startsWith('data: ')).map((line) => line.slice(6)).join('\n');
      text = text.slice(end + 2);
      if (data !== '') { show(JSON.parse(data)); pauseMs = 1000; }
    }
  }
}

let pauseMs = 1000;
async function follow() {
  let complaint = 'connection lost; what is shown may be old';
  try {
    if (!(await followOnce())) return;
  } catch (error) {
    console.warn(String(error));
    if (error.isRefusal) complaint = error.message;
  }
  state.textContent = complaint;
  state.className = 'bad';
  setTimeout(follow, pauseMs);
  pauseMs = Math.min(15000, pauseMs * 2);
}
follow();
`;
