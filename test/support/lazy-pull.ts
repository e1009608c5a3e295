/** A client of containerd that passes snapshot labels: the Go program in go/lazypull, called from tests. Ours. */
import type { Containerd } from './containerd.ts';
import { goBinary } from './go-build.ts';
import { run } from './process.ts';

export interface LazyPullOptions {
  snapshotter: string;
  /** Default: `default`. */
  namespace?: string;
  /** Default true; false: pull as `ctr images pull` does, without labels. */
  passLabels?: boolean;
  credentials?: { username: string; password: string };
  timeoutMs?: number;
}

export interface LazyPullResult {
  name: string;
  digest: string;
  elapsedMs: number;
  /** Chain ID of all layers: the parent for a container's snapshot. */
  snapshotKey: string;
  isUnpacked: boolean;
  /** Bottom to top; `isFetched` says whether the blob is in containerd's content store. */
  layers: { digest: string; sizeBytes: number; isFetched: boolean }[];
}

/** Pulls and unpacks an image; fails with the client's message. */
export async function lazyPull(containerd: Containerd, reference: string, options: LazyPullOptions): Promise<LazyPullResult> {
  const binary = await goBinary('lazypull');
  const { timeoutMs = 300_000, credentials } = options;
  const args = ['-address', containerd.socket, '-namespace', options.namespace ?? 'default', '-snapshotter', options.snapshotter];
  args.push('-timeout', `${timeoutMs}ms`, `-labels=${options.passLabels ?? true}`);
  if (credentials !== undefined) args.push('-basic', `${credentials.username}:${credentials.password}`);
  const { stdout } = await run(binary, [...args, reference], { timeoutMs: timeoutMs + 10_000 });
  return JSON.parse(stdout) as LazyPullResult;
}
