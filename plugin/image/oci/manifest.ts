/**
 * Image manifests and indexes: parsing with limits, and writing. Source: OCI image-spec v1.1 (manifest.md, image-index.md), Docker
 * manifest v2 schema 2. A document that could be read as both a manifest and an index is refused (CVE-2021-41190).
 */
import { AppError } from '../../base/errors.ts';
import { type Descriptor, descriptorJson, parseDescriptor } from './descriptor.ts';
import { type At, bad, child, type JsonObject, optionalArray, optionalString, optionalStringMap, own, parseJsonObject } from './fields.ts';
import { encodeGoJson, goObject, omitEmpty } from './go-json.ts';
import { isIndexType, isManifestType, MEDIA_TYPE } from './media-types.ts';

/** Layers of an ordinary image: ten times what overlayfs can stack and any tool makes. Devices have their own bound (MAX_LAYERS). */
export const MAX_MANIFEST_LAYERS = 4096;
/** Entries of one index document: a referrers list of a busy image; 8 MiB of descriptors would be about three times as many. */
export const MAX_INDEX_ENTRIES = 20_000;

export interface Manifest {
  readonly kind: 'manifest';
  readonly mediaType: string;
  readonly artifactType?: string;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
  readonly subject?: Descriptor;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface Index {
  readonly kind: 'index';
  readonly mediaType: string;
  readonly artifactType?: string;
  readonly manifests: readonly Descriptor[];
  readonly subject?: Descriptor;
  readonly annotations?: Readonly<Record<string, string>>;
}

function commonFields(object: JsonObject, at: At) {
  const artifactType = optionalString(object, 'artifactType', at);
  const subject = own(object, 'subject');
  const annotations = optionalStringMap(object, 'annotations', at);
  return {
    ...(artifactType === undefined ? {} : { artifactType }),
    ...(subject === undefined ? {} : { subject: parseDescriptor(subject, child(at, 'subject')) }),
    ...(annotations === undefined ? {} : { annotations }),
  };
}

function manifestOf(object: JsonObject, at: At, mediaType: string): Manifest {
  const layers = optionalArray(object, 'layers', at, MAX_MANIFEST_LAYERS);
  if (layers === undefined) throw bad(child(at, 'layers'), 'missing');
  return {
    kind: 'manifest',
    mediaType,
    config: parseDescriptor(own(object, 'config'), child(at, 'config')),
    layers: layers.map((layer, index) => parseDescriptor(layer, child(child(at, 'layers'), index))),
    ...commonFields(object, at),
  };
}

function indexOf(object: JsonObject, at: At, mediaType: string, unusable: 'refuse' | 'skip'): Index {
  const entries = optionalArray(object, 'manifests', at, MAX_INDEX_ENTRIES);
  if (entries === undefined) throw bad(child(at, 'manifests'), 'missing');
  const manifests: Descriptor[] = [];
  for (const [index, entry] of entries.entries()) {
    try {
      manifests.push(parseDescriptor(entry, child(child(at, 'manifests'), index)));
    } catch (error) {
      if (unusable === 'refuse' || !(error instanceof AppError)) throw error;
    }
  }
  return { kind: 'index', mediaType, manifests, ...commonFields(object, at) };
}

/**
 * Parses a manifest or an index. `claimedType` is what the registry or a descriptor said; a `mediaType` inside the document must agree
 * with it. Throws InvalidArgument naming document and field; Unimplemented for a type that is neither (schema 1, say).
 *
 * `unusableEntries: 'skip'` leaves out index entries that cannot be read (another digest algorithm, say): right for a referrers list,
 * to which anybody may add; wrong for an image.
 */
export function parseManifestOrIndex(
  bytes: Uint8Array,
  claimedType: string,
  document: string,
  options: { unusableEntries?: 'refuse' | 'skip' } = {},
): Manifest | Index {
  const object = parseJsonObject(bytes, document);
  const at = { document, path: '' };
  const inside = optionalString(object, 'mediaType', at) ?? '';
  const claimed = claimedType.split(';', 1)[0]!.trim();
  const isKnown = isIndexType(claimed) || isManifestType(claimed);
  const mediaType = isKnown ? claimed : inside !== '' ? inside : guessType(object);
  if (isKnown && inside !== '' && inside !== claimed) throw bad(child(at, 'mediaType'), `${inside}, but it was announced as ${claimed}`);
  if (!isIndexType(mediaType) && !isManifestType(mediaType)) {
    throw new AppError('Unimplemented', {
      op: 'read',
      subject: document.slice(0, 300),
      what: `media type ${JSON.stringify(mediaType.slice(0, 200))} is neither an image manifest nor an index`,
    });
  }
  if (own(object, 'schemaVersion') !== 2) throw bad(child(at, 'schemaVersion'), 'not 2');
  const hasLayers = own(object, 'layers') !== undefined || own(object, 'config') !== undefined;
  const hasManifests = own(object, 'manifests') !== undefined;
  if (hasLayers && hasManifests) throw bad(at, 'has both layers and manifests, so that its meaning depends on the reader');
  return isIndexType(mediaType) ? indexOf(object, at, mediaType, options.unusableEntries ?? 'refuse') : manifestOf(object, at, mediaType);
}

function guessType(object: JsonObject): string {
  if (own(object, 'manifests') !== undefined) return MEDIA_TYPE.ociIndex;
  return own(object, 'layers') !== undefined ? MEDIA_TYPE.ociManifest : '';
}

/** Parses what must be an image manifest. Errors as {@link parseManifestOrIndex}; an index is InvalidArgument. */
export function parseManifest(bytes: Uint8Array, claimedType: string, document: string): Manifest {
  const parsed = parseManifestOrIndex(bytes, claimedType, document);
  if (parsed.kind === 'manifest') return parsed;
  throw bad({ document, path: '' }, 'is an index; an image manifest was expected');
}

/** Parses what must be an index. Errors as {@link parseManifestOrIndex}; a manifest is InvalidArgument. */
export function parseIndex(
  bytes: Uint8Array,
  claimedType: string,
  document: string,
  options: { unusableEntries?: 'refuse' | 'skip' } = {},
): Index {
  const parsed = parseManifestOrIndex(bytes, claimedType, document, options);
  if (parsed.kind === 'index') return parsed;
  throw bad({ document, path: '' }, 'is an image manifest; an index was expected');
}

/** The document's bytes, equal to those of Go's encoder for the same content. */
export function encodeManifest(document: Manifest | Index): Uint8Array {
  return encodeGoJson(
    goObject([
      ['schemaVersion', 2],
      ['mediaType', omitEmpty(document.mediaType)],
      ['artifactType', omitEmpty(document.artifactType)],
      ...(document.kind === 'manifest'
        ? ([
            ['config', descriptorJson(document.config)],
            ['layers', document.layers.map(descriptorJson)],
          ] as const)
        : ([['manifests', document.manifests.map(descriptorJson)]] as const)),
      ['subject', document.subject === undefined ? undefined : descriptorJson(document.subject)],
      ['annotations', omitEmpty(document.annotations)],
    ]),
  );
}
