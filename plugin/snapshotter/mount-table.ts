/**
 * The mounts that a snapshot answers with; pure. As containerd's overlayfs snapshotter, with the mount of a block device as the
 * lowest of the lowers when the chain has one.
 *
 * SELinux: containerd itself appends `context=…` of the container's mount label to these mounts when it starts a task, and overlayfs
 * applies it to the whole mount, image included. Nothing is to be added here, and no option here stands in its way.
 */

export interface Mount {
  type: string;
  source: string;
  options: string[];
}

export interface MountInput {
  kind: 'active' | 'view';
  /** Directory of the snapshot's own files, and overlayfs's work directory beside it. */
  ownDir: string;
  workDir: string;
  /** Absolute directories, top first. */
  lowers: readonly string[];
  /** Options of each overlay mount: `index=off`, `userxattr` and what the configuration adds. */
  overlayOptions: readonly string[];
  /** Options of this snapshot's overlay mount: `volatile`, `uidmap=`. */
  extraOptions?: readonly string[];
  /** The snapshot is filled apart from its parents: they are not among its mounts. */
  isIsolated?: boolean;
}

function bind(source: string, mode: 'ro' | 'rw'): Mount[] {
  return [{ type: 'bind', source, options: [mode, 'rbind'] }];
}

/** What the caller has to mount, in order. */
export function mountsOf(input: MountInput): Mount[] {
  const { kind, lowers } = input;
  const [top] = lowers;
  if (top === undefined || input.isIsolated === true) return bind(input.ownDir, kind === 'view' ? 'ro' : 'rw');
  if (kind === 'view' && lowers.length === 1) return bind(top, 'ro');
  const options = [...input.overlayOptions];
  if (kind === 'active') {
    options.push(...(input.extraOptions ?? []), `workdir=${input.workDir}`, `upperdir=${input.ownDir}`);
  }
  options.push(`lowerdir=${lowers.join(':')}`);
  return [{ type: 'overlay', source: 'overlay', options }];
}
