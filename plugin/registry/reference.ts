/**
 * Image references as containerd and CRI read them. Source: the grammar of distribution's reference package (as in containerd
 * `reference/docker`), including its shorthand: `ubuntu` means `docker.io/library/ubuntu:latest`.
 *
 *   reference = [ host "/" ] path *( "/" path ) [ ":" tag ] [ "@" digest ]
 */
import { type Digest, isDigest } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';

/** One repository: `registry.example:5000` and `team/app`. Host is never `index.docker.io`; that is `docker.io`. */
export interface Repository {
  readonly host: string;
  readonly repository: string;
}

export interface Reference extends Repository {
  readonly tag?: string;
  readonly digest?: Digest;
}

/** Longest host and path together (distribution's NameTotalLengthMax). */
const MAX_NAME_CHARS = 255;
/** Name, tag of 128, digest of 71 and separators. */
const MAX_REFERENCE_CHARS = 512;

// Every pattern is linear: alternatives start with different characters, and nothing repeats inside a repeat over the same characters.
const DOMAIN_LABEL = '[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?';
const HOST = new RegExp(`^(?:${DOMAIN_LABEL}(?:\\.${DOMAIN_LABEL})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]{1,5})?$`);
const PATH_COMPONENT = /^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*$/;
const TAG = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/;
const HEX_64 = /^[a-f0-9]{64}$/;

function refuse(text: unknown, what: string): AppError {
  return new AppError('InvalidArgument', {
    op: 'parse reference',
    subject: JSON.stringify(String(text).slice(0, 200)),
    what,
  });
}

/** True when `text` can be a registry: a name or address with an optional port. */
export function isRegistryHost(text: string): boolean {
  if (text.length > MAX_NAME_CHARS || !HOST.test(text)) return false;
  const port = /:([0-9]{1,5})$/.exec(text.startsWith('[') ? text.slice(text.indexOf(']') + 1) : text);
  return port === null || Number(port[1]) <= 65_535;
}

/** True when `text` can be a repository path (`library/ubuntu`). */
export function isRepositoryPath(text: string): boolean {
  return text.length <= MAX_NAME_CHARS && text.split('/').every((part) => PATH_COMPONENT.test(part));
}

export function isTag(text: string): boolean {
  return TAG.test(text);
}

/** Does the first path component name a registry? Only if it could not be a component of a Docker Hub name. */
function splitHost(name: string): [string, string] {
  const slash = name.indexOf('/');
  const first = slash === -1 ? '' : name.slice(0, slash);
  const isHost = slash !== -1 && (/[.:]/.test(first) || first === 'localhost' || first !== first.toLowerCase());
  let host = isHost ? first : 'docker.io';
  let path = isHost ? name.slice(slash + 1) : name;
  if (host === 'index.docker.io') host = 'docker.io';
  if (host === 'docker.io' && !path.includes('/')) path = `library/${path}`;
  return [host, path];
}

/**
 * Parses what a person, a pod or containerd wrote. Without tag and digest the tag is `latest`. With both, both are returned; the
 * digest decides (see {@link formatReference}). Throws InvalidArgument; never slow, whatever the text.
 */
export function parseReference(text: string): Reference {
  if (typeof text !== 'string' || text === '') throw refuse(text, 'empty');
  if (text.length > MAX_REFERENCE_CHARS) throw refuse(text, `${text.length} characters, more than ${MAX_REFERENCE_CHARS}`);
  if (HEX_64.test(text)) throw refuse(text, 'is 64 hexadecimal digits, which is an image id, not a reference');

  const at = text.indexOf('@');
  const digest = at === -1 ? undefined : text.slice(at + 1);
  if (digest !== undefined && !isDigest(digest)) throw refuse(text, 'the part after @ is not sha256: and 64 hexadecimal digits');
  const named = at === -1 ? text : text.slice(0, at);

  const colon = named.lastIndexOf(':');
  const hasTag = colon > named.lastIndexOf('/') && colon !== -1;
  const tag = hasTag ? named.slice(colon + 1) : undefined;
  if (tag !== undefined && !isTag(tag)) throw refuse(text, 'the tag is not 1 to 128 of A-Z a-z 0-9 _ . - (not beginning with . or -)');

  const [host, repository] = splitHost(hasTag ? named.slice(0, colon) : named);
  if (!isRegistryHost(host)) throw refuse(text, `${JSON.stringify(host.slice(0, 100))} is not a registry host`);
  if (repository !== repository.toLowerCase()) throw refuse(text, 'the repository must be lower case');
  if (!isRepositoryPath(repository)) throw refuse(text, 'the repository is not lower-case letters and digits joined by . _ __ - and /');
  if (host.length + 1 + repository.length > MAX_NAME_CHARS)
    throw refuse(text, `host and repository have more than ${MAX_NAME_CHARS} characters`);
  return {
    host,
    repository,
    ...(tag === undefined ? (digest === undefined ? { tag: 'latest' } : {}) : { tag }),
    ...(digest === undefined ? {} : { digest }),
  };
}

/** The canonical text, as containerd stores it: a digest takes the place of a tag. `parseReference` of it gives the same image. */
export function formatReference(reference: Reference): string {
  const name = formatRepository(reference);
  if (reference.digest !== undefined) return `${name}@${reference.digest}`;
  return `${name}:${reference.tag ?? 'latest'}`;
}

/** `docker.io/library/ubuntu`. */
export function formatRepository(repository: Repository): string {
  return `${repository.host}/${repository.repository}`;
}

/** What to ask the registry for: the digest if there is one, else the tag. */
export function referenceObject(reference: Reference): string {
  return reference.digest ?? reference.tag ?? 'latest';
}

/** Checks a host and path that came from elsewhere than {@link parseReference}. Throws InvalidArgument. */
export function checkRepository(repository: Repository): Repository {
  if (!isRegistryHost(repository.host)) throw refuse(repository.host, 'is not a registry host');
  if (!isRepositoryPath(repository.repository)) throw refuse(repository.repository, 'is not a repository path');
  return repository;
}

/** True for names and addresses of this machine, which containerd talks to without TLS by default. */
export function isLocalHost(host: string): boolean {
  const name = host.startsWith('[') ? host.slice(1, host.indexOf(']')) : host.replace(/:[0-9]+$/, '');
  return name === 'localhost' || name === '::1' || /^127\.\d{1,3}\.\d{1,3}\.\d{1,3}$/.test(name);
}
