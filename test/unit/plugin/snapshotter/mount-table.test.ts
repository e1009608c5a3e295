/** The mounts of every kind of snapshot, as containerd's overlayfs snapshotter gives them, with a device below when there is one. */
import { expect, test } from 'vitest';
import { type MountInput, mountsOf } from '../../../../plugin/snapshotter/mount-table.ts';

const OWN = { ownDir: '/r/snapshots/9/fs', workDir: '/r/snapshots/9/work', overlayOptions: ['index=off'] };
const DEVICE = '/r/mounts/d1';

test.each<[string, Partial<MountInput> & Pick<MountInput, 'kind' | 'lowers'>, unknown]>([
  ['active without parent', { kind: 'active', lowers: [] }, { type: 'bind', source: OWN.ownDir, options: ['rw', 'rbind'] }],
  ['view without parent', { kind: 'view', lowers: [] }, { type: 'bind', source: OWN.ownDir, options: ['ro', 'rbind'] }],
  ['view of one directory', { kind: 'view', lowers: ['/r/1/fs'] }, { type: 'bind', source: '/r/1/fs', options: ['ro', 'rbind'] }],
  ['view of a device', { kind: 'view', lowers: [DEVICE] }, { type: 'bind', source: DEVICE, options: ['ro', 'rbind'] }],
  [
    'view of several',
    { kind: 'view', lowers: ['/r/2/fs', DEVICE] },
    { type: 'overlay', source: 'overlay', options: ['index=off', `lowerdir=/r/2/fs:${DEVICE}`] },
  ],
  [
    'active on a device',
    { kind: 'active', lowers: [DEVICE], extraOptions: ['volatile'] },
    {
      type: 'overlay',
      source: 'overlay',
      options: ['index=off', 'volatile', `workdir=${OWN.workDir}`, `upperdir=${OWN.ownDir}`, `lowerdir=${DEVICE}`],
    },
  ],
  [
    'a layer unpacked apart from its parents',
    { kind: 'active', lowers: [DEVICE], isIsolated: true },
    { type: 'bind', source: OWN.ownDir, options: ['rw', 'rbind'] },
  ],
])('%s', (_, input, mount) => {
  expect(mountsOf({ ...OWN, ...input })).toEqual([mount]);
});
