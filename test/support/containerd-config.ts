/** containerd's configuration file for tests, in the two shapes that its versions read. Source: containerd docs/cri/config.md (1.6, 2.1). */
import type { ContainerdLine } from './containerd-versions.ts';

export interface ContainerdConfigInput {
  line: ContainerdLine;
  root: string;
  state: string;
  socket: string;
  /** Directory for what containerd would otherwise keep in /opt. */
  optDir: string;
  certsDir: string;
  cniDir: string;
  /** The snapshotter that CRI uses. */
  criSnapshotter: string;
  /** Pause image for pods. */
  sandboxImage: string;
  /** Proxy snapshotters by name: socket and exported root. */
  proxySnapshotters: Readonly<Record<string, { socket: string; root: string }>>;
}

const quote = (text: string): string => JSON.stringify(text);

const DISABLED = ['aufs', 'btrfs', 'devmapper', 'zfs', 'blockfile', 'erofs'].map((name) => `io.containerd.snapshotter.v1.${name}`);

function proxyPlugins(input: ContainerdConfigInput): string[] {
  return Object.entries(input.proxySnapshotters).flatMap(([name, { socket, root }]) => [
    `[proxy_plugins.${name}]`,
    '  type = "snapshot"',
    `  address = ${quote(socket)}`,
    `  [proxy_plugins.${name}.exports]`,
    `    root = ${quote(root)}`,
    // The transfer service of 2.x passes image labels to a snapshotter only when it says this.
    '    enable_remote_snapshot_annotations = "true"',
  ]);
}

/** The whole file. */
export function containerdConfig(input: ContainerdConfigInput): string {
  const isV3 = input.line === '2';
  const lines = [
    `version = ${isV3 ? 3 : 2}`,
    `root = ${quote(input.root)}`,
    `state = ${quote(input.state)}`,
    // Raising the score of a process is always allowed, lowering it needs a capability that test machines may lack.
    'oom_score = 0',
    `disabled_plugins = [${DISABLED.map(quote).join(', ')}]`,
    '[grpc]',
    `  address = ${quote(input.socket)}`,
    '[debug]',
    '  level = "info"',
    '[plugins."io.containerd.internal.v1.opt"]',
    `  path = ${quote(input.optDir)}`,
    ...(isV3 ? criV3(input) : criV2(input)),
    ...proxyPlugins(input),
  ];
  return `${lines.join('\n')}\n`;
}

const SERVICE_ROWS = ['  disable_tcp_service = true', '  stream_server_address = "127.0.0.1"', '  stream_server_port = "0"'];

function criV2(input: ContainerdConfigInput): string[] {
  const cri = 'plugins."io.containerd.grpc.v1.cri"';
  return [
    `[${cri}]`,
    ...SERVICE_ROWS,
    `  sandbox_image = ${quote(input.sandboxImage)}`,
    '  restrict_oom_score_adj = true',
    `[${cri}.containerd]`,
    `  snapshotter = ${quote(input.criSnapshotter)}`,
    '  disable_snapshot_annotations = false',
    `[${cri}.cni]`,
    `  bin_dir = ${quote('/usr/lib/cni')}`,
    `  conf_dir = ${quote(input.cniDir)}`,
    `[${cri}.registry]`,
    `  config_path = ${quote(input.certsDir)}`,
  ];
}

function criV3(input: ContainerdConfigInput): string[] {
  const images = 'plugins."io.containerd.cri.v1.images"';
  const runtime = 'plugins."io.containerd.cri.v1.runtime"';
  return [
    '[plugins."io.containerd.grpc.v1.cri"]',
    ...SERVICE_ROWS,
    `[${images}]`,
    `  snapshotter = ${quote(input.criSnapshotter)}`,
    '  disable_snapshot_annotations = false',
    // The transfer service, the default of 2.1, passes no snapshot labels.
    '  use_local_image_pull = true',
    `[${images}.pinned_images]`,
    `  sandbox = ${quote(input.sandboxImage)}`,
    `[${images}.registry]`,
    `  config_path = ${quote(input.certsDir)}`,
    `[${runtime}]`,
    '  restrict_oom_score_adj = true',
    `[${runtime}.cni]`,
    `  bin_dirs = [${quote('/usr/lib/cni')}]`,
    `  conf_dir = ${quote(input.cniDir)}`,
  ];
}
