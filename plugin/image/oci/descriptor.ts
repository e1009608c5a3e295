/**
 * Content descriptors and platforms. Source: OCI image-spec v1.1, descriptor.md and image-index.md; field order of the writer is that
 * of the Go structs (overlaybd-formats.md 4.2).
 */
import { type Digest, isDigest } from '../../base/digest.ts';
import { MAX_BLOB_BYTES } from '../../base/limits.ts';
import {
  type At,
  asObject,
  bad,
  child,
  type JsonObject,
  optionalString,
  optionalStringMap,
  optionalStrings,
  own,
  requiredString,
} from './fields.ts';
import { type GoJson, goObject, omitEmpty } from './go-json.ts';

/** Mirrors and features in one descriptor; none of the product's own uses more than two. */
const MAX_LIST = 256;

export interface Platform {
  readonly architecture: string;
  readonly os: string;
  readonly osVersion?: string;
  readonly osFeatures?: readonly string[];
  readonly variant?: string;
}

export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  /** 0 … MAX_BLOB_BYTES. */
  readonly sizeBytes: number;
  readonly urls?: readonly string[];
  readonly annotations?: Readonly<Record<string, string>>;
  /** Base64 of the content, as found. Nobody checks it against `digest` here. */
  readonly data?: string;
  readonly platform?: Platform;
  readonly artifactType?: string;
}

/** Checks a descriptor. Throws InvalidArgument naming the field. */
export function parseDescriptor(value: unknown, at: At): Descriptor {
  const object = asObject(value, at);
  const digest = own(object, 'digest');
  if (!isDigest(digest)) throw bad(child(at, 'digest'), 'not sha256: and 64 hexadecimal digits');
  const sizeBytes = own(object, 'size');
  if (typeof sizeBytes !== 'number' || !Number.isSafeInteger(sizeBytes) || sizeBytes < 0 || sizeBytes > MAX_BLOB_BYTES) {
    throw bad(child(at, 'size'), `not a whole number from 0 to ${MAX_BLOB_BYTES}`);
  }
  const urls = optionalStrings(object, 'urls', at, MAX_LIST);
  const annotations = optionalStringMap(object, 'annotations', at);
  const data = optionalString(object, 'data', at, Number.MAX_SAFE_INTEGER);
  const platform = own(object, 'platform');
  const artifactType = optionalString(object, 'artifactType', at);
  return {
    mediaType: requiredString(object, 'mediaType', at),
    digest,
    sizeBytes,
    ...(urls === undefined ? {} : { urls }),
    ...(annotations === undefined ? {} : { annotations }),
    ...(data === undefined ? {} : { data }),
    ...(platform === undefined ? {} : { platform: parsePlatform(asObject(platform, child(at, 'platform')), child(at, 'platform')) }),
    ...(artifactType === undefined ? {} : { artifactType }),
  };
}

/** Reads the platform fields of an index entry or of an image config (which carries the same ones). */
export function parsePlatform(object: JsonObject, at: At): Platform {
  const osVersion = optionalString(object, 'os.version', at);
  const osFeatures = optionalStrings(object, 'os.features', at, MAX_LIST);
  const variant = optionalString(object, 'variant', at);
  return {
    architecture: optionalString(object, 'architecture', at) ?? '',
    os: optionalString(object, 'os', at) ?? '',
    ...(osVersion === undefined ? {} : { osVersion }),
    ...(osFeatures === undefined ? {} : { osFeatures }),
    ...(variant === undefined ? {} : { variant }),
  };
}

/** Platform fields in Go's order, for the writer. */
export function platformFields(platform: Platform): [string, GoJson | undefined][] {
  return [
    ['architecture', platform.architecture],
    ['os', platform.os],
    ['os.version', omitEmpty(platform.osVersion)],
    ['os.features', omitEmpty(platform.osFeatures)],
    ['variant', omitEmpty(platform.variant)],
  ];
}

/** The descriptor as the writer of go-json.ts wants it. */
export function descriptorJson(descriptor: Descriptor): GoJson {
  return goObject([
    ['mediaType', descriptor.mediaType],
    ['digest', descriptor.digest],
    ['size', descriptor.sizeBytes],
    ['urls', omitEmpty(descriptor.urls)],
    ['annotations', omitEmpty(descriptor.annotations)],
    ['data', omitEmpty(descriptor.data)],
    ['platform', descriptor.platform === undefined ? undefined : goObject(platformFields(descriptor.platform))],
    ['artifactType', omitEmpty(descriptor.artifactType)],
  ]);
}
