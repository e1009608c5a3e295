/** Conversion as text for people: tables, and the line that shows how far a job is. */
import { formatBytes } from '../plugin/base/units.ts';
import type { DeliveryView, JobView, LogLineView, NotificationView, RemovedImageView, RuleView } from './convert-schemas.ts';
import { printable, table } from './render.ts';

const BAR_CHARS = 24;

type Progress = JobView['progress'];

/** How much of the work is done, 0 to 1: reading is most of it, uploads follow closely. */
export function shareOf({ readBytes, sourceBytes, layersDone, layersTotal }: Progress): number {
  if (layersTotal === 0) return 0;
  const read = sourceBytes === 0 ? 1 : Math.min(1, readBytes / sourceBytes);
  return 0.8 * read + 0.2 * (layersDone / layersTotal);
}

/** `[#####-----]  45 %  layers 2/4 …`; one line without its end. */
export function renderProgress(state: string, progress: Progress): string {
  const share = state === 'SUCCESS' ? 1 : shareOf(progress);
  const filled = Math.round(share * BAR_CHARS);
  const { layersDone, layersTotal, readBytes, sourceBytes, uploadedBytes } = progress;
  const bar = `[${'#'.repeat(filled)}${'-'.repeat(BAR_CHARS - filled)}] ${String(Math.floor(share * 100)).padStart(3)} %`;
  return `${bar}  ${state}  layers ${layersDone}/${layersTotal}  read ${formatBytes(readBytes)} of ${formatBytes(sourceBytes)}  sent ${formatBytes(uploadedBytes)}`;
}

function measured({ measures }: JobView): [string, string][] {
  if (measures === null) return [];
  const { sourceBytes, resultBytes, elapsedMs } = measures;
  const share = sourceBytes === 0 ? '' : ` (${((100 * resultBytes) / sourceBytes).toFixed(1)} %)`;
  return [['cost', `${formatBytes(resultBytes)} for ${formatBytes(sourceBytes)}${share}, ${(elapsedMs / 1000).toFixed(1)} s`]];
}

export function renderJob(job: JobView): string {
  const { progress: p } = job;
  const rows = [
    ['state', job.failure === null ? job.state : `${job.state} (${job.failure.code}): ${job.failure.message}`],
    ['source', `${job.repository}:${job.tag} ${job.sourceDigest ?? ''}`],
    ['result', `${job.repository}:${job.targetTag} ${job.targetDigest ?? ''}`],
    ['asked for', `by ${job.trigger} at ${job.createdAt}`],
    ['ran', `${job.startTime ?? '-'} to ${job.endTime ?? '-'}, ${job.attempts} attempts`],
    ['layers', `${p.layersDone} of ${p.layersTotal} done, ${p.layersReused} of them were there already`],
    ...measured(job),
    [
      'bytes',
      `${formatBytes(p.readBytes)} of ${formatBytes(p.sourceBytes)} read, ${formatBytes(p.convertedBytes)} converted, ${formatBytes(p.uploadedBytes)} sent`,
    ],
  ];
  return table([`JOB ${job.id}`, ''], rows);
}

export function renderJobs(jobs: readonly JobView[]): string {
  const rows = jobs.map((job) => [
    String(job.id),
    job.state,
    `${Math.floor((job.state === 'SUCCESS' ? 1 : shareOf(job.progress)) * 100)} %`,
    job.trigger,
    `${job.repository}:${job.tag}`,
    job.failure?.message ?? job.targetTag,
  ]);
  return table(['JOB', 'STATE', 'DONE', 'BY', 'IMAGE', 'RESULT'], rows);
}

export function renderLog(lines: readonly LogLineView[]): string {
  return lines.map((line) => `${line.at}  ${printable(line.message)}\n`).join('');
}

const filterText = (filter: RuleView['filter']): string =>
  filter.type === 'ALL' ? 'all tags' : filter.type === 'TAG_LIST' ? filter.tags.join(',') : `/${filter.expression}/`;

export function renderRules(rules: readonly RuleView[]): string {
  const rows = rules.map((rule) => [
    String(rule.id),
    rule.isEnabled ? 'on' : 'off',
    rule.repository,
    filterText(rule.filter),
    `${rule.request.mode}, ${rule.request.runtime}, ${rule.request.compression}`,
    rule.detection,
  ]);
  return table(['RULE', 'IS', 'REPOSITORY', 'TAGS', 'MAKES', 'NOTICED BY'], rows);
}

export function renderNotifications(rows: readonly NotificationView[]): string {
  const lines = rows.map((n) => [String(n.id), n.name, n.url, filterText(n.filter), n.repository ?? 'all', n.isSigned ? 'yes' : 'no']);
  return table(['ID', 'NAME', 'URL', 'TAGS', 'WITHIN', 'SIGNED'], lines);
}

export function renderDeliveries(rows: readonly DeliveryView[]): string {
  const lines = rows.map((d) => [
    String(d.id),
    String(d.notificationId),
    d.state,
    String(d.attempts),
    d.lastResult ?? '-',
    String(d.event.reference ?? ''),
  ]);
  return table(['DELIVERY', 'TO', 'STATE', 'ATTEMPTS', 'LAST RESULT', 'IMAGE'], lines);
}

export function renderRemoved({ repository, digest, tags, manifests }: RemovedImageView): string {
  const names = [...tags.map((tag) => `${repository}:${tag}`), ...manifests.map((manifest) => `${repository}@${manifest}`)];
  const kept = manifests.length === 0 ? `${repository}@${digest} stays, other tags name it\n` : '';
  return `${names.map((name) => `deleted ${printable(name)}\n`).join('')}${kept}`;
}
