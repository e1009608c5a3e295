/** The CRI part's public door: starts the image-service proxy with all that steers it, tells about pods, and ends in order. */
import type { Database } from '../../db/database.ts';
import { type PodRow, PodStore } from '../../db/pod-store.ts';
import { SnapshotStore } from '../../db/snapshot-store.ts';
import type { Clock } from '../base/clock.ts';
import { AppError } from '../base/errors.ts';
import { KubeClient } from '../base/kubernetes/kube-client.ts';
import type { Logger } from '../base/log.ts';
import type { CacheService } from '../cache/types.ts';
import type { CredentialSource } from '../registry/credentials.ts';
import { dockerConfigSource } from '../registry/docker-config.ts';
import type { Reference } from '../registry/reference.ts';
import type { CredentialVault } from '../registry/vault/vault.ts';
import { CredentialBroker } from './credentials/broker.ts';
import { CredentialRenewer } from './credentials/renewal.ts';
import { type AskRegistry, RightsChecker } from './credentials/rights.ts';
import { RuleBook } from './credentials/rules.ts';
import { PodSecrets } from './credentials/secrets.ts';
import { ImageHandlers } from './images.ts';
import { ruleInForce } from './pods/annotations.ts';
import { PodBook, rulesOf } from './pods/pod-book.ts';
import type { PodEvents } from './pods/pod-events.ts';
import { PodFactsFinder } from './pods/pod-facts.ts';
import { ProxyServer, type UnaryHandler } from './proxy/proxy-server.ts';
import { Upstream } from './proxy/upstream.ts';
import { PullImageHandler, type Resolution } from './pull/pull-image.ts';

export type { PodEvents } from './pods/pod-events.ts';
export type { Resolution } from './pull/pull-image.ts';

/** Kubernetes speaks the second since 1.23; fields and numbers are the same. */
const SERVICES = ['runtime.v1alpha2.ImageService', 'runtime.v1.ImageService'];

/** Pods of one name that are looked at when a name is asked for. */
const MAX_NAMESAKES = 10;

export interface CriOptions {
  readonly socketPath: string;
  readonly containerdAddress: string;
  /** How long calls wait for a containerd that is away, in milliseconds. */
  readonly patienceMs: number;
  /** For each thing that is looked up for a pull, in milliseconds. */
  readonly lookupMs: number;
  readonly imageRights: 'check' | 'strict' | 'off';
  readonly rightsTtlMs: number;
  readonly podSelector: string | undefined;
  /** GiB that every pod has. */
  readonly podEphemeralGib: number;
  readonly kubeconfig: string | undefined;
  readonly manifestsDir: string | undefined;
  readonly rulesFile: string | undefined;
  readonly dockerConfig: string | undefined;
  readonly secretRecheckMs: number;
  /** On the disk of the store and the snapshots. */
  readonly rootDir: string;
}

export interface CriDependencies {
  readonly database: Database;
  readonly vault: CredentialVault;
  /** Undefined: there are no image caches on this node. */
  readonly caches: CacheService | undefined;
  readonly askRegistry: AskRegistry;
  /** How containerd came by an image that it has just pulled. */
  readonly resolutionOf: (reference: Reference) => Resolution | undefined;
  /** Bytes and files of layers in the store. */
  readonly ledger: () => Promise<{ bytes: number; files: number } | undefined>;
  readonly events: PodEvents;
  readonly clock: Clock;
  readonly logger: Logger;
}

/** What was decided for one image of a pod. */
export interface PodImageView {
  readonly image: string;
  readonly decision: 'pinned-cache' | 'matched-cache' | 'pull' | 'refused';
  readonly imageCacheId: string | null;
  readonly digest: string | null;
  /** How it came in the end; null: it has not, or not yet. */
  readonly outcome: 'cache' | 'twin' | 'lazy' | 'ordinary' | 'present' | null;
  /** Sentences, in the order in which they mattered. */
  readonly reasons: readonly string[];
  /** ISO 8601, UTC. */
  readonly decidedAt: string;
}

export interface PodView {
  readonly uid: string;
  readonly namespace: string;
  readonly name: string;
  readonly firstSeenAt: string;
  readonly lastSeenAt: string;
  /** What its annotations said when it was first seen. */
  readonly rules: {
    readonly inForce: 'pin' | 'off' | 'perfect-match' | 'match-count' | 'best-match';
    readonly pin: string | null;
    readonly isAutomatic: boolean;
    readonly isPerfectMatch: boolean;
    readonly matchCount: number | null;
    /** GiB beyond the 30 that every pod has. */
    readonly extraEphemeralGib: number;
    readonly isSelected: boolean;
  };
  /** References, as far as they are known. */
  readonly images: readonly string[];
  readonly imagesFrom: 'pulls' | 'api-server' | 'manifest';
  readonly decisions: readonly PodImageView[];
}

/** What the admin API asks. */
export interface PodService {
  /** Last seen first. */
  pods(limit: number): readonly PodView[];
  /** By uid, or by `namespace/name` (the newest of that name). Throws NotFound. */
  explainPod(pod: string): PodView;
}

export interface CriService extends PodService {
  /** Ends calls, renewals and connections. */
  stop(): Promise<void>;
}

const isoOfUs = (us: number): string => new Date(us / 1000).toISOString();

function viewOf(store: PodStore, row: PodRow): PodView {
  const rules = rulesOf(row);
  return {
    uid: row.uid,
    namespace: row.namespace,
    name: row.name,
    firstSeenAt: isoOfUs(row.firstSeenUs),
    lastSeenAt: isoOfUs(row.lastSeenUs),
    rules: { inForce: ruleInForce(rules), ...rules },
    images: JSON.parse(row.images) as string[],
    imagesFrom: row.imagesFrom,
    decisions: store.images(row.uid).map((image) => ({
      image: image.image,
      decision: image.decision,
      imageCacheId: image.cacheId,
      digest: image.digest,
      outcome: image.outcome,
      reasons: JSON.parse(image.reasons) as string[],
      decidedAt: isoOfUs(image.decidedUs),
    })),
  };
}

function podService(store: PodStore): PodService {
  return {
    pods: (limit) => store.list(limit).map((row) => viewOf(store, row)),
    explainPod(pod) {
      const slash = pod.indexOf('/');
      const row = slash === -1 ? store.get(pod) : store.byName(pod.slice(0, slash), pod.slice(slash + 1), MAX_NAMESAKES)[0];
      if (row !== undefined) return viewOf(store, row);
      const what = 'no image was pulled for it through the image service of this node; name it as namespace/name or by its uid';
      throw new AppError('NotFound', { op: 'explain pod', subject: pod.slice(0, 300), what });
    },
  };
}

/** Opens and serves. Errors: FailedPrecondition (socket in use), Internal. containerd, the API server and registries may be away. */
export async function startCri(options: CriOptions, dependencies: CriDependencies): Promise<CriService> {
  const { database, vault, caches, events, clock, logger } = dependencies;
  const kube = options.kubeconfig === undefined ? undefined : new KubeClient(options.kubeconfig);
  const secrets = kube === undefined ? undefined : new PodSecrets(kube);
  const store = new PodStore(database);
  const snapshots = new SnapshotStore(database);
  const rules = new RuleBook(options.rulesFile, clock, (error) =>
    events.add('credential-rules-refused', options.rulesFile ?? '', error.message),
  );
  const dockerConfig: CredentialSource | undefined =
    options.dockerConfig === undefined ? undefined : dockerConfigSource(options.dockerConfig, { logger });
  const pods = new PodBook({
    store,
    facts: new PodFactsFinder({ kube, manifestsDir: options.manifestsDir }),
    events,
    clock,
    selector: options.podSelector,
    baseEphemeralGib: options.podEphemeralGib,
  });
  const broker = new CredentialBroker({ secrets, rules, dockerConfig, admin: vault.sources().ofAdmin, events });
  const rights = new RightsChecker({ ask: dependencies.askRegistry, clock, ttlMs: options.rightsTtlMs, deadlineMs: options.lookupMs });
  const pulls = new PullImageHandler({
    ...{ caches, pods, broker, vault, rights, events, logger },
    imageRights: options.imageRights,
    resolutionOf: dependencies.resolutionOf,
    lookupMs: options.lookupMs,
  });
  const images = new ImageHandlers({ caches, store, events, rootDir: options.rootDir, ledger: dependencies.ledger });
  const methods: readonly [string, UnaryHandler][] = [
    ['PullImage', pulls.handle],
    ['ImageStatus', images.status],
    ['ListImages', images.list],
    ['RemoveImage', images.remove],
    ['ImageFsInfo', images.fsInfo],
  ];
  const upstream = new Upstream({ socketPath: options.containerdAddress, patienceMs: options.patienceMs });
  const proxy = await ProxyServer.listen({
    socketPath: options.socketPath,
    upstream,
    handlers: new Map(SERVICES.flatMap((service) => methods.map(([name, handler]) => [`/${service}/${name}`, handler] as const))),
    logger,
  });
  const renewer = new CredentialRenewer({
    ...{ vault, secrets, rules, clock, events, logger },
    secretRecheckMs: options.secretRecheckMs,
    isRepositoryNeeded: (_host, repository) => snapshots.isRepositoryRead(repository),
  });
  return {
    ...podService(store),
    async stop() {
      await proxy[Symbol.asyncDispose]();
      await renewer[Symbol.asyncDispose]();
      await pulls.stop();
      upstream[Symbol.dispose]();
      await kube?.close();
    },
  };
}
