/**
 * Every option of the configuration file: key, unit, default, range and reason. This table is the only place that knows them; the
 * loader checks files against it, and the README's table and the example file are written from it (tests compare them).
 */
import { FETCH_UNIT_BYTES, MISS_PATIENCE_MS } from '../limits.ts';
import { GIB, MIB } from '../units.ts';
import {
  bytes,
  choice,
  duration,
  flag,
  hosts,
  integer,
  mountOptions,
  namespace,
  optionalAddress,
  optionalLabel,
  optionalPath,
  path,
  repositories,
  socketPath,
} from './option.ts';

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const TIB = 1024 * GIB;

/** Options outside any section; they stand at the top of the file. */
export const TOP_OPTIONS = {
  verify: choice(['transport', 'full-layer-first'], {
    default: 'transport',
    reason:
      'What is proven before bytes of a layer without a chunk list are served. "transport": TLS and the block checksums; the digest when the layer is complete. "full-layer-first": the whole layer is fetched and its digest checked first, so starts are not lazy',
  }),
};

export const SECTION_OPTIONS = {
  paths: {
    root: path({
      default: '/var/lib/containerd/io.containerd.snapshotter.v1.overlaybd',
      reason: "Everything that survives a reboot: store, snapshots, database. The place where kubelet's image accounting looks",
    }),
    run: path({ default: '/run/overlaybd-sidecar', reason: 'Sockets and mount points; must be on a tmpfs and root-only' }),
  },
  snapshotter: {
    socket: socketPath({ default: 'snapshotter.sock', reason: "Where containerd finds the snapshotter; the stanza's address" }),
    prepare_deadline: duration({
      default: 30 * SECOND,
      min: 1 * SECOND,
      max: 10 * MINUTE,
      reason: 'A Prepare that needs the registry gives up with UNAVAILABLE after this; kubelet tries again',
    }),
    watch_interval: duration({
      default: 10 * MINUTE,
      min: 1 * SECOND,
      max: 24 * HOUR,
      reason:
        'How often registries are asked (one HEAD a layer) whether they still have what containers read from; a loss is an event, and the rest of the image is fetched at once',
    }),
    mount_options: mountOptions({
      maxCount: 16,
      reason:
        'Added to every overlay mount, as the option of the same name of the overlayfs snapshotter: "volatile" skips syncs of the upper directory',
    }),
    remap_ids: flag({
      default: false,
      reason:
        'Containers in user namespaces get idmapped mounts instead of copies; needs kernel 5.19 and containerd 2 (install.sh then adds the capability to the stanza)',
    }),
  },
  twins: {
    enabled: flag({
      default: true,
      reason: 'Ordinary images are served from their accelerated twins, so that pods need not name them; off: only what is named is lazy',
    }),
    prefer: choice(['full', 'index', 'index-only'], {
      default: 'full',
      reason:
        'Which twin is taken when an image has several: "full" starts fastest, "index" stores nothing twice, "index-only" never takes a full one, which must then be named by its own tag',
    }),
    lookup_budget: duration({
      default: 300,
      min: 10,
      max: 30 * SECOND,
      reason: 'How long a pull waits to learn whether there is a twin; then it goes on as an ordinary one. Twenty round trips on a LAN',
    }),
    negative_ttl: duration({
      default: 1 * MINUTE,
      min: 1 * SECOND,
      max: 24 * HOUR,
      reason: 'How long "this image has no twin" is believed; shorter than a conversion takes, so that a new twin is found soon',
    }),
    trusted: repositories({
      maxCount: 100,
      reason:
        'Registries (host) and repositories (host/path, with all below) whose twins are used, each for its own images; empty: all. Who may push there decides what these images hold here',
    }),
    elsewhere: repositories({
      maxCount: 8,
      reason: 'Other places for twins: that of any/team/app is also looked for in host/path/team/app; trusted for images of every registry',
    }),
  },
  containerd: {
    address: path({
      default: '/run/containerd/containerd.sock',
      reason: "containerd's own socket: `obdctl materialize` puts layers into its content store, in every namespace that has the image",
    }),
  },
  blockd: {
    workers: integer({
      unit: 'threads',
      default: 4,
      min: 1,
      max: 16,
      reason: 'Threads that answer reads; 4 keep 4 cores busy, more than the cores only costs memory',
    }),
    max_background: integer({
      unit: 'requests',
      default: 256,
      min: 12,
      max: 65_535,
      reason: "Read-ahead requests in flight per FUSE connection; the kernel's own default of 12 throttles misses",
    }),
    read_ahead_kib: integer({
      unit: 'KiB',
      default: 64,
      min: 0,
      max: 16_384,
      reason: "The kernel's read-ahead on each device: more helps streams, but fetches bytes that a start does not need",
    }),
  },
  store: {
    budget_bytes: bytes({
      default: 50 * GIB,
      min: 1 * GIB,
      max: 1024 * TIB,
      reason: 'Bytes of layers kept on disk; least recently used ones go first, those in use never',
    }),
    memory_bytes: bytes({
      default: 64 * MIB,
      min: 8 * MIB,
      max: 4 * GIB,
      reason: 'Fetched bytes kept in memory while the disk is full, so that containers go on; 8 MiB is a few reads in flight',
    }),
    checkpoint: duration({
      default: 1 * SECOND,
      min: 100,
      max: 60 * SECOND,
      reason: 'How often presence becomes durable; a power cut costs at most this much fetching again',
    }),
  },
  fetch: {
    concurrency: integer({
      unit: 'requests',
      default: 256,
      min: 1,
      max: 1024,
      reason: 'Range requests in flight to all registries; 3,000 misses/s at 20 ms take 60, the rest is for slow or stuck ones',
    }),
    patience: duration({
      default: MISS_PATIENCE_MS,
      min: 1 * SECOND,
      max: 24 * HOUR,
      reason: 'How long a read waits for a registry that is away before the container sees an I/O error',
    }),
    fill: choice(['off', 'on'], {
      default: 'off',
      reason: 'Whether the rest of a running image is fetched in the background; on: later registry outages do not matter',
    }),
    fill_delay: duration({
      default: 60 * SECOND,
      min: 0,
      max: 24 * HOUR,
      reason: "Time between a device's opening and its background fill, so that starts have the link to themselves",
    }),
    fill_rate_bytes_per_s: bytes({
      default: 32 * MIB,
      min: FETCH_UNIT_BYTES,
      max: 100 * GIB,
      reason: 'Bytes per second of background fill on the whole node; 32 MiB leaves three quarters of a 1 Gbit/s link',
    }),
  },
  registry: {
    hosts_dir: path({
      default: '/etc/containerd/certs.d',
      reason: "containerd's hosts.toml directories: mirrors, CAs, client certificates",
    }),
    docker_config: optionalPath({
      reason:
        'A docker config.json with credentials or credential helpers; unset: anonymous. Read again when it changes. While it cannot be read, or a helper fails, its last word counts for an hour',
    }),
    plain_http: hosts({ maxCount: 100, reason: 'Registries spoken to without TLS; loopback ones are so without being listed' }),
    response_timeout: duration({
      default: 30 * SECOND,
      min: 1 * SECOND,
      max: 10 * MINUTE,
      reason: 'From request to response headers; registries that fetch from a slow backend take seconds',
    }),
    stall_timeout: duration({
      default: 20 * SECOND,
      min: 1 * SECOND,
      max: 10 * MINUTE,
      reason: 'A body that sends nothing for this long is given up and asked for again',
    }),
  },
  cri: {
    socket: socketPath({
      default: 'cri.sock',
      reason: "kubelet's image service (`--image-service-endpoint=unix://…`); what the service does not act on goes through to containerd",
    }),
    containerd_patience: duration({
      default: 15 * SECOND,
      min: 0,
      max: 2 * MINUTE,
      reason:
        "How long a call waits for a containerd that is away; a restart takes a second or two. Then it fails with UNAVAILABLE, as containerd's own",
    }),
    logic_deadline: duration({
      default: 5 * SECOND,
      min: 100,
      max: 1 * MINUTE,
      reason: 'How long a pull waits for each thing that is looked up for it (credentials, its pod, its rights); then it goes on without',
    }),
    image_rights: choice(['check', 'strict', 'off'], {
      default: 'check',
      reason:
        'Who may have a cached image: "check" asks the registry with the pod\'s own credentials and refuses what it refuses, but goes on when it does not answer; "strict" needs its consent; "off": every pod',
    }),
    rights_ttl: duration({
      default: 1 * MINUTE,
      min: 1 * SECOND,
      max: 24 * HOUR,
      reason: "How long a registry's consent is believed for the same credentials and image",
    }),
    pod_selector: optionalLabel({
      reason: 'Only pods with this label (`alibabacloud.com/eci=true`) are steered by annotations; unset: all pods of the node',
    }),
    kubeconfig: optionalPath({
      reason:
        'A kubeconfig that may read pods, service accounts and image pull Secrets; then all images of a pod are known at its first pull, and changed Secrets are followed. Unset: images are learned one pull after the other',
    }),
    manifests_dir: optionalPath({
      reason: "kubelet's directory of static pods; their images are then known at the first pull too",
    }),
  },
  credentials: {
    key_file: optionalPath({
      reason:
        'The key that seals stored credentials (made if missing, readable by root alone); unset: credentials.key in paths.root. Elsewhere, a copy of paths.root is of no use to a thief',
    }),
    rules_file: optionalPath({
      reason:
        'TOML rules that give pods credentials by namespace, service account and image: see "Credentials". Read again when it changes',
    }),
    secret_recheck: duration({
      default: 5 * SECOND,
      min: 1 * SECOND,
      max: 1 * HOUR,
      reason: 'How often Secrets that running containers depend on are looked at; a changed one counts from then on',
    }),
  },
  caches: {
    budget_bytes: bytes({
      default: 40 * GIB,
      min: 1 * GIB,
      max: 1024 * TIB,
      reason:
        'Bytes that the images of all caches may take, shared ones counted once; less than store.budget_bytes, so that other images have room. Automatic caches give way first',
    }),
    max_count: integer({
      unit: 'caches',
      default: 500,
      min: 0,
      max: 10_000,
      reason: 'Caches made by hand; more are refused, or an LRU one goes',
    }),
    max_automatic_count: integer({
      unit: 'caches',
      default: 25,
      min: 0,
      max: 10_000,
      reason: 'Caches made for pods that matched nothing; one more and the least recently matched one goes',
    }),
    default_size: integer({
      unit: 'GiB',
      default: 20,
      min: 20,
      max: 32_768,
      reason: 'What the images of a cache made by hand may take when the request does not say',
    }),
    pod_ephemeral_size: integer({
      unit: 'GiB',
      default: 30,
      min: 1,
      max: 32_768,
      reason: 'Ephemeral storage of a pod that declares none: larger caches do not match it, and its automatic cache may take as much',
    }),
    unmatched_days: integer({
      unit: 'days',
      default: 7,
      min: 1,
      max: 65_536,
      reason: 'An automatic cache that no pod matched is removed so long after it was made',
    }),
    matched_days: integer({
      unit: 'days',
      default: 30,
      min: 1,
      max: 65_536,
      reason: 'An automatic cache that pods matched is removed so long after the last match',
    }),
    concurrency: integer({
      unit: 'caches',
      default: 2,
      min: 1,
      max: 64,
      reason: 'Caches built at once: one fetches while the other unpacks; each is a process of its own',
    }),
    cpus: integer({ unit: 'processors', default: 2, min: 1, max: 64, reason: 'Processor time of one build (its cgroup)' }),
    memory_bytes: bytes({ default: 4 * GIB, min: 256 * MIB, max: 1024 * GIB, reason: 'Memory of one build (its cgroup)' }),
    creation_deadline: duration({
      default: 6 * HOUR,
      min: 1 * MINUTE,
      max: 7 * 24 * HOUR,
      reason: 'An attempt at a cache that takes longer is given up: 100 GiB at 5 MB/s take less',
    }),
    verify_interval: duration({
      default: 6 * HOUR,
      min: 1 * MINUTE,
      max: 7 * 24 * HOUR,
      reason: 'How often it is looked whether every blob of every Ready cache is still here; what is missing is fetched again',
    }),
    namespace: namespace({ default: 'k8s.io', reason: "containerd's namespace that cached images are put into; k8s.io is that of CRI" }),
    snapshotter: namespace({
      default: 'overlaybd',
      reason:
        "The name of this service's snapshotter in containerd's configuration, as the stanza has it; cached images are unpacked for it",
    }),
  },
  convert: {
    concurrency: integer({
      unit: 'jobs',
      default: 1,
      min: 1,
      max: 64,
      reason: 'Conversions at once; one keeps its processors busy, and each takes its own memory and staging',
    }),
    cpus: integer({
      unit: 'processors',
      default: 2,
      min: 1,
      max: 64,
      reason: 'Processor time of one conversion (its cgroup), and its compression threads',
    }),
    memory_bytes: bytes({
      default: 4 * GIB,
      min: 512 * MIB,
      max: 1024 * GIB,
      reason: 'Memory of one conversion (its cgroup); a million files take about 1 GiB, and a conversion that needs more fails and says so',
    }),
    staging_bytes: bytes({
      default: 40 * GIB,
      min: 64 * MIB,
      max: 1024 * TIB,
      reason: 'Disk space of one conversion, below paths.root: its converted layers until they are uploaded',
    }),
    job_deadline: duration({
      default: 6 * HOUR,
      min: 1 * MINUTE,
      max: 7 * 24 * HOUR,
      reason: 'A conversion that takes longer is given up: 100 GiB at 5 MB/s take less',
    }),
    poll_interval: duration({
      default: 60 * SECOND,
      min: 1 * SECOND,
      max: 24 * HOUR,
      reason: 'How often repositories of polling rules are looked at; each look is one request and one more for each tag',
    }),
    full_size_percent: integer({
      unit: 'percent',
      default: 130,
      min: 1,
      max: 10_000,
      reason: 'A full result larger than this share of its original (and 1 MiB) is an event convert-over-budget and counted in the metrics',
    }),
    full_time_per_gb: duration({
      default: 25 * SECOND,
      min: 100,
      max: 24 * HOUR,
      reason: 'So is a full conversion that takes longer than this for each GB of its original (and 10 s)',
    }),
    index_size_percent: integer({
      unit: 'percent',
      default: 3,
      min: 1,
      max: 10_000,
      reason: 'As full_size_percent, for index-only results',
    }),
    index_time_per_gb: duration({
      default: 3 * SECOND,
      min: 100,
      max: 24 * HOUR,
      reason: 'As full_time_per_gb, for index-only conversions',
    }),
    webhook_listen: optionalAddress({
      reason: 'Where registries tell of pushes (POST /v1/registry-events); needs webhook_secret_file. Unset: rules poll',
    }),
    webhook_secret_file: optionalPath({
      reason: 'File with the secret that registries send (Authorization: Bearer …; 16 – 512 characters), readable by its owner alone',
    }),
    webhook_beyond_loopback: flag({
      default: false,
      reason: 'Allows webhook_listen on an address that other machines reach; the secret then travels without TLS',
    }),
  },
  admin: {
    socket: socketPath({ default: 'admin.sock', reason: 'The admin API, for root alone' }),
    tcp_listen: optionalAddress({
      reason: 'Admin API on TCP as well, for bearer tokens only (`obdctl token create`, or tcp_token_file). Unset: off',
    }),
    tcp_token_file: optionalPath({
      reason:
        'File with a bearer token for TCP that may do everything (16 – 512 characters), readable by its owner alone; read again when it changes',
    }),
    tcp_beyond_loopback: flag({
      default: false,
      reason: 'Allows tcp_listen on an address that other machines reach; the token then travels without TLS',
    }),
  },
  log: {
    level: choice(['trace', 'debug', 'info', 'warn', 'error'], { default: 'info', reason: 'Least severity that reaches the journal' }),
    device_lines_per_minute: integer({
      unit: 'lines per minute',
      default: 30,
      min: 1,
      max: 6000,
      reason: 'Log lines of one device; the rest is counted, so that one bad image does not fill the journal',
    }),
  },
};
