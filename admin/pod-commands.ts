/** `obdctl pod`: which pods pulled here, and why each of their images came as it did. */
import type { Command } from 'commander';
import type { PodView } from '../plugin/cri/service.ts';
import type { AdminMethod } from './client.ts';
import { PAGE_ROWS_MAX } from './limits.ts';
import { printable, table } from './render.ts';

export interface PodCommandTools {
  call<T>(method: AdminMethod, path: string): Promise<T>;
  print(answer: unknown, text: () => string): void;
}

function outcomesOf({ decisions }: PodView): string {
  return decisions.map(({ outcome, decision }) => outcome ?? (decision === 'refused' ? 'refused' : 'under way')).join(', ');
}

function renderPods(pods: readonly PodView[]): string {
  const rows = pods.map((pod) => [`${pod.namespace}/${pod.name}`, pod.rules.inForce, outcomesOf(pod), pod.lastSeenAt, pod.uid]);
  return table(['POD', 'RULE', 'IMAGES CAME', 'LAST SEEN', 'UID'], rows);
}

function renderPod(pod: PodView): string {
  const { rules } = pod;
  const rows = [
    ['uid', pod.uid],
    ['rule', rules.pin === null ? rules.inForce : `${rules.inForce} ${rules.pin}`],
    ['extra ephemeral storage', `${rules.extraEphemeralGib} GiB`],
    ['images known from', pod.imagesFrom],
    ['first seen', pod.firstSeenAt],
  ];
  const images = pod.decisions.map(({ image, decision, imageCacheId, outcome, digest, reasons }) => {
    const head = `${image}: ${decision}${imageCacheId === null ? '' : ` ${imageCacheId}`}, came: ${outcome ?? 'not yet'}`;
    const lines = [head, ...(digest === null ? [] : [`  ${digest}`]), ...reasons.map((reason) => `  - ${reason}`)];
    return lines.map((line) => `${printable(line)}\n`).join('');
  });
  return `${table([`${pod.namespace}/${pod.name}`, ''], rows)}\n${images.join('\n')}`;
}

/** Adds the commands to the program. */
export function addPodCommands(program: Command, { call, print }: PodCommandTools): void {
  const pod = program.command('pod').description('pods that pulled images through the image service');
  pod
    .command('ls')
    .description('pods, last seen first')
    .action(async () => {
      const answer = await call<{ pods: PodView[] }>('GET', `/v1/pods?limit=${PAGE_ROWS_MAX}`);
      print(answer, () => renderPods(answer.pods));
    });
  pod
    .command('explain')
    .description('what its annotations asked for, and why each of its images came as it did')
    .argument('<pod>', 'namespace/name, or uid')
    .action(async (name: string) => {
      const answer = await call<PodView>('GET', `/v1/pods/${encodeURIComponent(name)}`);
      print(answer, () => renderPod(answer));
    });
}
