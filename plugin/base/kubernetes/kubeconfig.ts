/**
 * The part of a kubeconfig that says where the API server is and who we are. Source: Kubernetes, client-go `clientcmd/api/v1`. Programs that
 * supply credentials (`exec`) and proxies are refused by name: they would be silently missing otherwise.
 */
import type { BigIntStats } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { parse } from 'yaml';
import { z } from 'zod';
import { AppError, errnoOf } from '../errors.ts';
import { MIB } from '../units.ts';

/** A kubeconfig with certificates inside has some 10 KiB. */
const MAX_FILE_BYTES = 1 * MIB;

const text = z.string().max(MAX_FILE_BYTES);
/** A key without a value counts as absent, as client-go has it. */
const optionalText = text.nullish().transform((value) => value ?? undefined);
const named = <T extends z.ZodType>(key: string, value: T) => z.array(z.object({ name: text, [key]: value })).max(1000);

const clusterSchema = z.object({
  server: text,
  'certificate-authority': optionalText,
  'certificate-authority-data': optionalText,
  'insecure-skip-tls-verify': z.boolean().nullish(),
  'tls-server-name': optionalText,
  'proxy-url': optionalText,
});
const userSchema = z.object({
  'client-certificate': optionalText,
  'client-certificate-data': optionalText,
  'client-key': optionalText,
  'client-key-data': optionalText,
  token: optionalText,
  tokenFile: optionalText,
  username: optionalText,
  password: optionalText,
  exec: z.unknown().optional(),
  'auth-provider': z.unknown().optional(),
});
const contextSchema = z.object({ cluster: text, user: optionalText });
const kubeconfigSchema = z.object({
  'current-context': text,
  clusters: named('cluster', clusterSchema),
  contexts: named('context', contextSchema),
  users: named('user', userSchema).nullish(),
});

/** What a connection to the API server needs; secrets inside. */
export interface KubeAccess {
  /** `https://10.0.0.1:6443`, without a slash at its end. */
  readonly server: string;
  readonly ca: string | undefined;
  readonly certificate: string | undefined;
  readonly key: string | undefined;
  readonly serverName: string | undefined;
  readonly skipsVerify: boolean;
  readonly authorization: string | undefined;
  /** The kubeconfig and the files that it names: when one changes, read again. */
  readonly files: readonly string[];
  /** What {@link stampOf} said of them before they were read. */
  readonly stamp: string;
}

const stampText = ({ ino, size, mtimeNs }: BigIntStats): string => `${ino} ${size} ${mtimeNs}`;

/** Changes whenever one of the files does. */
export async function stampOf(files: readonly string[]): Promise<string> {
  const parts = await Promise.all(
    files.map(async (file) => {
      try {
        return stampText(await stat(file, { bigint: true }));
      } catch (error) {
        return errnoOf(error) ?? 'unknown';
      }
    }),
  );
  return parts.join('\n');
}

/** Throws FailedPrecondition that names the file and quotes nothing of it. */
export async function readKubeconfig(file: string): Promise<KubeAccess> {
  const refuse = (what: string): AppError => new AppError('FailedPrecondition', { op: 'read kubeconfig', subject: file, what });
  const stamps: string[] = [];
  const read = async (name: string): Promise<string> => {
    try {
      const info = await stat(name, { bigint: true });
      if (info.size > BigInt(MAX_FILE_BYTES)) throw refuse(`${name} has ${info.size} bytes, more than ${MAX_FILE_BYTES}`);
      // Before it is read: a change in between is then seen at the next look.
      stamps.push(stampText(info));
      return await readFile(name, 'utf8');
    } catch (error) {
      throw error instanceof AppError ? error : refuse(`${name} cannot be read (${errnoOf(error) ?? 'unknown'})`);
    }
  };
  let document: unknown;
  try {
    document = parse(await read(file));
  } catch (error) {
    // The parser quotes the line that it stumbles over.
    throw error instanceof AppError ? error : refuse('is not YAML');
  }
  const result = kubeconfigSchema.safeParse(document);
  if (!result.success) throw refuse(`field ${result.error.issues[0]?.path.join('.') ?? ''} is missing or wrong`);
  const config = result.data;
  const context = config.contexts.find(({ name }) => name === config['current-context'])?.context as
    | z.infer<typeof contextSchema>
    | undefined;
  if (context === undefined) throw refuse('its current-context is not among its contexts');
  const cluster = config.clusters.find(({ name }) => name === context.cluster)?.cluster as z.infer<typeof clusterSchema> | undefined;
  if (cluster === undefined) throw refuse('the cluster of its current context is not among its clusters');
  const user = ((config.users ?? []).find(({ name }) => name === context.user)?.user ?? {}) as z.infer<typeof userSchema>;
  if (user.exec != null || user['auth-provider'] != null) throw refuse('credentials by program (exec, auth-provider) are not supported');
  if (cluster['proxy-url'] !== undefined) throw refuse('proxy-url is not supported');
  if (!URL.canParse(cluster.server) || !/^https?:$/.test(new URL(cluster.server).protocol))
    throw refuse('its server is not an http(s) URL');

  const files = [file];
  const material = async (data: string | undefined, name: string | undefined): Promise<string | undefined> => {
    if (data !== undefined && data !== '') return Buffer.from(data, 'base64').toString('utf8');
    if (name === undefined || name === '') return undefined;
    const absolute = path.resolve(path.dirname(file), name);
    files.push(absolute);
    return read(absolute);
  };
  const token = user.token !== undefined && user.token !== '' ? user.token : (await material(undefined, user.tokenFile))?.trim();
  const basic =
    user.username === undefined || user.username === ''
      ? undefined
      : Buffer.from(`${user.username}:${user.password ?? ''}`).toString('base64');
  const ca = await material(cluster['certificate-authority-data'], cluster['certificate-authority']);
  const certificate = await material(user['client-certificate-data'], user['client-certificate']);
  const key = await material(user['client-key-data'], user['client-key']);
  return {
    server: cluster.server.replace(/\/+$/, ''),
    ca,
    certificate,
    key,
    serverName: cluster['tls-server-name'],
    skipsVerify: cluster['insecure-skip-tls-verify'] ?? false,
    authorization: token !== undefined ? `Bearer ${token}` : basic !== undefined ? `Basic ${basic}` : undefined,
    files,
    stamp: stamps.join('\n'),
  };
}
