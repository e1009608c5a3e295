/**
 * Image pull Secrets of a pod (R42, R44, R50, R51): those that it names, or its service account, in its own namespace, of the right type, and
 * marked by name or label as meant for this. Others are passed over with a reason. Source of the documents: Kubernetes core/v1 Secret and
 * ServiceAccount.
 */
import { z } from 'zod';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import type { KubeClient } from '../../base/kubernetes/kube-client.ts';
import type { Credential } from '../../registry/credentials.ts';
import { parseDockerConfig } from '../../registry/docker-config.ts';
import { matchesPattern } from './image-pattern.ts';

export const SECRET_TYPE = 'kubernetes.io/dockerconfigjson';
export const SECRET_NAME_PREFIX = 'acr-credential-';
export const SECRET_LABEL = 'images.alibabacloud.com/accelerated';

/** Secrets that one pod may name. */
const MAX_SECRETS = 20;
/** A Secret holds 1 MiB. */
const MAX_DATA_CHARS = 2 * 1024 * 1024;

const secretSchema = z.object({
  kind: z.literal('Secret').optional(),
  type: z.string().max(256),
  metadata: z.object({
    name: z.string(),
    namespace: z.string(),
    labels: z.record(z.string(), z.string()).nullish(),
    creationTimestamp: z.string().nullish(),
    managedFields: z.array(z.object({ time: z.string().nullish() })).nullish(),
  }),
  data: z.record(z.string(), z.string().max(MAX_DATA_CHARS)).nullish(),
});
type Secret = z.infer<typeof secretSchema>;

const accountSchema = z.object({ imagePullSecrets: z.array(z.object({ name: z.string().optional() })).nullish() });

/** A credential out of a Secret. */
export interface SecretCredential {
  readonly secret: string;
  /** `host` or `host/path`, perhaps with `*`. */
  readonly pattern: string;
  readonly credential: Credential;
  /** When the Secret was last changed, in milliseconds since the Unix epoch. */
  readonly changedMs: number;
}

/** Why a Secret does not count; undefined: it does (R44). */
export function refusalOfSecret(secret: Secret): string | undefined {
  if (secret.type !== SECRET_TYPE) return `its type is ${JSON.stringify(secret.type.slice(0, 100))}, not ${SECRET_TYPE}`;
  const isMarked = secret.metadata.name.startsWith(SECRET_NAME_PREFIX) || secret.metadata.labels?.[SECRET_LABEL] === 'true';
  return isMarked ? undefined : `its name does not begin with ${SECRET_NAME_PREFIX}, and it has no label ${SECRET_LABEL}: "true"`;
}

function changedMsOf({ metadata }: Secret): number {
  const times = [metadata.creationTimestamp, ...(metadata.managedFields ?? []).map(({ time }) => time)];
  return Math.max(0, ...times.map((time) => Date.parse(time ?? '')).filter((time) => Number.isFinite(time)));
}

function entriesOf(secret: Secret): SecretCredential[] {
  const text = Buffer.from(secret.data?.['.dockerconfigjson'] ?? '', 'base64').toString('utf8');
  const { auths } = parseDockerConfig(text, `Secret ${secret.metadata.namespace}/${secret.metadata.name}`);
  const changedMs = changedMsOf(secret);
  return auths.map(({ key, credential }) => ({ secret: secret.metadata.name, pattern: key, credential, changedMs }));
}

/** Longest pattern first, then the newest Secret, then by name (R51). */
export function orderSecrets(entries: readonly SecretCredential[], imageName: string): SecretCredential[] {
  return entries
    .filter(({ pattern }) => matchesPattern(pattern, imageName))
    .sort((a, b) => b.pattern.length - a.pattern.length || b.changedMs - a.changedMs || (a.secret < b.secret ? -1 : 1));
}

export interface SecretSubject {
  readonly namespace: string;
  readonly serviceAccount: string;
  /** Those that the pod names itself. */
  readonly pullSecrets: readonly string[];
}

export interface SecretsFound {
  readonly credentials: readonly SecretCredential[];
  /** Secrets that do not count, each with its reason. No secret material. */
  readonly ignored: readonly { secret: string; reason: string }[];
}

export class PodSecrets {
  private readonly kube: Pick<KubeClient, 'get'>;

  constructor(kube: Pick<KubeClient, 'get'>) {
    this.kube = kube;
  }

  /** Names of the Secrets that count for a pod: its own and its service account's. A service account that cannot be read adds none. */
  async namesFor(subject: SecretSubject, signal: AbortSignal): Promise<string[]> {
    const names = new Set(subject.pullSecrets);
    const path = `/api/v1/namespaces/${encodeURIComponent(subject.namespace)}/serviceaccounts/${encodeURIComponent(subject.serviceAccount)}`;
    try {
      const account = accountSchema.safeParse(await this.kube.get(path, signal));
      for (const { name } of account.data?.imagePullSecrets ?? []) if (name !== undefined) names.add(name);
    } catch (error) {
      // Node credentials of kubelet may not read service accounts; admission has copied their Secrets into the pod anyway.
      if (!isAppError(error, 'PermissionDenied', 'NotFound')) throw error;
    }
    return [...names].slice(0, MAX_SECRETS);
  }

  /** Reads Secrets of a namespace. Errors: those of the API server that concern all of them (Unavailable, Unauthenticated …). */
  async read(namespace: string, names: readonly string[], signal: AbortSignal): Promise<SecretsFound> {
    const credentials: SecretCredential[] = [];
    const ignored: { secret: string; reason: string }[] = [];
    for (const name of names) {
      try {
        const answer = await this.kube.get(
          `/api/v1/namespaces/${encodeURIComponent(namespace)}/secrets/${encodeURIComponent(name)}`,
          signal,
        );
        credentials.push(...readSecret(answer, namespace));
      } catch (error) {
        if (!isAppError(error, 'NotFound', 'PermissionDenied', 'InvalidArgument', 'FailedPrecondition')) throw error;
        const reason = error.code === 'NotFound' ? `there is none of this name in namespace ${namespace}` : describeError(error);
        ignored.push({ secret: name, reason });
      }
    }
    return { credentials, ignored };
  }
}

/** Throws FailedPrecondition with the reason for a Secret that does not count. */
function readSecret(answer: unknown, namespace: string): SecretCredential[] {
  const parsed = secretSchema.safeParse(answer);
  const refuse = (what: string): AppError => new AppError('FailedPrecondition', { op: 'read', subject: 'Secret', what });
  if (!parsed.success) throw refuse('the API server answered something else than a Secret');
  if (parsed.data.metadata.namespace !== namespace) throw refuse(`it belongs to namespace ${parsed.data.metadata.namespace}`);
  const refusal = refusalOfSecret(parsed.data);
  if (refusal !== undefined) throw refuse(refusal);
  return entriesOf(parsed.data);
}
