/** What the snapshotter needs from other parts, declared by it as their user; `plugin/main.ts` joins them. */
import type { BlobSource, DeviceSpec } from '../file/device-spec.ts';

/** The data plane. Every call may fail with Unavailable while blockd is away. */
export interface BlockDevices {
  /**
   * Serves the device (again); the path is its file. Idempotent for equal ids. `connection` names what stands behind the path: what was
   * mounted from another one reads nothing any more.
   */
  attach(spec: DeviceSpec, signal: AbortSignal): Promise<{ devicePath: string; connection: string }>;
  /**
   * Opens every layer (headers, indexes, fit of the stack) without making a device. DataLoss, InvalidArgument or NotFound: a layer
   * cannot be served; Unavailable or DeadlineExceeded: it could not be found out.
   */
  check(spec: DeviceSpec, signal: AbortSignal): Promise<{ deviceSizeBytes: number }>;
  /** Stops serving; an unknown id is no error. The device lives on until the kernel releases its file. */
  detach(id: string, signal: AbortSignal): Promise<void>;
  /** The devices that are served or wait to be released. */
  list(signal: AbortSignal): Promise<readonly { id: string }[]>;
  /** Digests of blobs whose reads waited for their registry or failed, from a time on (milliseconds since the Unix epoch). */
  troubledBlobs(sinceMs: number, signal: AbortSignal): Promise<readonly string[]>;
  /** Makes a whole blob local. */
  fetchWhole(blob: BlobSource, signal: AbortSignal): Promise<unknown>;
}

/** Mounts a device's file system read-only; never on the caller's event loop. */
export interface ImageMounter {
  /** Makes `target` if missing. */
  mount(request: { devicePath: string; target: string }, signal: AbortSignal): Promise<{ fsType: string; loopDevice?: string }>;
  /** Detaches; not mounted is no error. */
  unmount(target: string, signal: AbortSignal): Promise<void>;
  isMounted(target: string): Promise<boolean>;
  /** Tries, in a directory that is made for it and removed, whether overlayfs takes idmapped lowers. FailedPrecondition: it does not. */
  checkIdmappedLowers(directory: string, signal: AbortSignal): Promise<void>;
}

/** `registry.example:5000` and `library/app`. */
export interface RepositoryName {
  host: string;
  repository: string;
}

/** The registry, as far as a pull needs it. */
export interface ImageResolver {
  /** Where a reference's blobs lie, and its tag if it names one. Errors: InvalidArgument. */
  parseReference(reference: string): RepositoryName & { tag?: string };
  /**
   * Fetches a manifest (or index) by digest if one is given, else by the reference's tag. The bytes match the returned digest.
   * At most MAX_MANIFEST_BYTES. Errors: NotFound, Unauthenticated, PermissionDenied, Unavailable, DataLoss.
   */
  resolveManifest(
    reference: string,
    digest: string | undefined,
    signal: AbortSignal,
  ): Promise<{ manifestBytes: Uint8Array; digest: string; mediaType: string }>;
  /** Manifests that say that they belong to `digest`, and what they say they are. Errors as above; none is an empty list. */
  listReferrers(repository: RepositoryName, digest: string, signal: AbortSignal): Promise<{ digest: string; artifactType: string }[]>;
  /** A whole small blob, checked against size and digest. Errors as above; InvalidArgument when it is larger than `maxBytes`. */
  fetchBlob(
    repository: RepositoryName,
    blob: { digest: string; sizeBytes: number },
    maxBytes: number,
    signal: AbortSignal,
  ): Promise<Uint8Array>;
  /** The size of a blob, undefined if the repository has none. Errors as above. */
  blobSize(repository: RepositoryName, digest: string, signal: AbortSignal): Promise<number | undefined>;
}
