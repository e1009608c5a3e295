/**
 * Rules that give pods credentials by where they run and what they pull (R43), from a TOML file that is read again when it changes. A rule
 * that is wrong makes the whole file wrong: half a list of rights is worse than the former one, which stays in force.
 */
import { readFile, stat } from 'node:fs/promises';
import { parse } from 'smol-toml';
import { z } from 'zod';
import type { Clock } from '../../base/clock.ts';
import { AppError, errnoOf } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import { matchesPattern } from './image-pattern.ts';

const MAX_FILE_BYTES = 1 * MIB;
const MAX_RULES = 500;
const RECHECK_MS = 1_000;

const name = z.string().regex(/^(?:\*|[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)$/, 'is neither "*" nor a name');
const absolute = z.string().max(4095).startsWith('/');
const common = {
  /** For events and `obdctl`; unique. */
  name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$/, 'is not 1 to 63 of A-Z a-z 0-9 _ . -'),
  namespace: name,
  service_account: name.default('*'),
  images: z.array(z.string().min(1).max(512)).min(1).max(100),
};
const ruleSchema = z.discriminatedUnion('source', [
  /** A kubelet credential provider: a program that speaks credentialprovider.kubelet.k8s.io. */
  z.strictObject({
    ...common,
    source: z.literal('plugin'),
    command: absolute,
    args: z.array(z.string().max(4096)).max(100).default([]),
    env: z.record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,127}$/), z.string().max(4096)).default({}),
    api_version: z
      .string()
      .regex(/^v1(?:alpha1|beta1)?$/)
      .default('v1'),
  }),
  /** A service on a unix socket that answers the same documents over HTTP. */
  z.strictObject({ ...common, source: z.literal('socket'), socket: absolute }),
  /** A docker credential helper, `docker-credential-<helper>`. */
  z.strictObject({ ...common, source: z.literal('docker-helper'), helper: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/) }),
]);
const fileSchema = z.strictObject({ rules: z.array(ruleSchema).max(MAX_RULES).default([]) });
export type CredentialRule = z.infer<typeof ruleSchema>;

/** Reads rules. Throws InvalidArgument that names the file and the first mistake. */
export function parseRules(text: string, file: string): readonly CredentialRule[] {
  const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'read credential rules', subject: file, what });
  let document: unknown;
  try {
    document = parse(text);
  } catch (error) {
    throw refuse(error instanceof Error ? (error.message.split('\n')[0] ?? 'is not TOML') : 'is not TOML');
  }
  const result = fileSchema.safeParse(document);
  if (!result.success) {
    const [issue] = result.error.issues;
    throw refuse(`${issue?.path.join('.')}: ${issue?.message}`);
  }
  const { rules } = result.data;
  const twice = rules.find((rule, i) => rules.findIndex((other) => other.name === rule.name) !== i);
  if (twice !== undefined) throw refuse(`two rules are named ${twice.name}`);
  return rules;
}

/** Who pulls what. `serviceAccount` undefined: not known, so that only rules for all accounts count. */
export interface RuleSubject {
  readonly namespace: string;
  readonly serviceAccount: string | undefined;
  /** `host/repository` */
  readonly imageName: string;
}

export function matchesRule(rule: CredentialRule, subject: RuleSubject): boolean {
  if (rule.namespace !== '*' && rule.namespace !== subject.namespace) return false;
  if (rule.service_account !== '*' && rule.service_account !== subject.serviceAccount) return false;
  return rule.images.some((pattern) => matchesPattern(pattern, subject.imageName));
}

export class RuleBook {
  private readonly file: string | undefined;
  private readonly clock: Clock;
  private readonly onProblem: (error: AppError) => void;
  private rules: readonly CredentialRule[] = [];
  private stamp = '';
  private checkedMs = Number.NEGATIVE_INFINITY;
  private pending: Promise<readonly CredentialRule[]> | undefined;

  /** `onProblem` is told of a file that cannot be used, once for each change of it. */
  constructor(file: string | undefined, clock: Clock, onProblem: (error: AppError) => void) {
    this.file = file;
    this.clock = clock;
    this.onProblem = onProblem;
  }

  /** The rules in force. Those who ask while the file is read wait for it: the first pulls after a start come together. */
  current(): Promise<readonly CredentialRule[]> {
    if (this.pending !== undefined) return this.pending;
    const nowMs = this.clock.monotonicMs();
    if (this.file === undefined || nowMs - this.checkedMs < RECHECK_MS) return Promise.resolve(this.rules);
    this.checkedMs = nowMs;
    this.pending = this.refresh(this.file).finally(() => {
      this.pending = undefined;
    });
    return this.pending;
  }

  private async refresh(file: string): Promise<readonly CredentialRule[]> {
    try {
      const info = await stat(file, { bigint: true });
      const stamp = `${info.ino} ${info.size} ${info.mtimeNs}`;
      if (stamp === this.stamp) return this.rules;
      this.stamp = stamp;
      if (info.size > BigInt(MAX_FILE_BYTES)) {
        throw new AppError('InvalidArgument', {
          op: 'read credential rules',
          subject: file,
          what: `larger than ${MAX_FILE_BYTES} bytes`,
        });
      }
      this.rules = parseRules(await readFile(file, 'utf8'), file);
    } catch (error) {
      const code = errnoOf(error);
      if (code === undefined && !(error instanceof AppError)) throw error;
      if (code !== undefined && this.stamp === code) return this.rules;
      if (code !== undefined) this.stamp = code;
      this.onProblem(
        error instanceof AppError
          ? error
          : new AppError('FailedPrecondition', { op: 'read credential rules', subject: file, what: `cannot be read (${code})` }),
      );
    }
    return this.rules;
  }
}
