/**
 * What the proxy reads and writes of CRI's image messages. Field numbers are those of Kubernetes' cri-api, runtime/v1/api.proto; v1alpha2
 * has the same. Everything else of a message keeps its bytes.
 */
import {
  bytesField,
  contentOf,
  type Field,
  mapFields,
  mapOf,
  numberField,
  numberOf,
  readFields,
  textField,
  textOf,
  textsOf,
  withField,
} from './fields.ts';

type Labels = Readonly<Record<string, string>>;

/** AuthConfig. Secret. */
export interface AuthConfig {
  readonly username: string;
  readonly password: string;
  /** `user:password` in base64. */
  readonly auth: string;
  readonly serverAddress: string;
  readonly identityToken: string;
  readonly registryToken: string;
}

export interface ImageSpec {
  readonly image: string;
  /** kubelet puts the pod's annotations here, in every call that has an ImageSpec. */
  readonly annotations: Labels;
}

/** The pod that an image is pulled for, as kubelet describes it. */
export interface PodSandbox {
  readonly name: string;
  readonly namespace: string;
  readonly uid: string;
  readonly labels: Labels;
  readonly annotations: Labels;
}

export interface PullImageRequest {
  readonly spec: ImageSpec;
  readonly auth: AuthConfig | undefined;
  /** Absent when somebody else than kubelet pulls. */
  readonly sandbox: PodSandbox | undefined;
}

const NOTHING = new Uint8Array();

function readSpec(bytes: Uint8Array | undefined): ImageSpec {
  const fields = readFields(bytes ?? NOTHING);
  return { image: textOf(fields, 1), annotations: mapOf(fields, 2) };
}

function readAuth(bytes: Uint8Array | undefined): AuthConfig | undefined {
  if (bytes === undefined) return undefined;
  const fields = readFields(bytes);
  const auth = {
    username: textOf(fields, 1),
    password: textOf(fields, 2),
    auth: textOf(fields, 3),
    serverAddress: textOf(fields, 4),
    identityToken: textOf(fields, 5),
    registryToken: textOf(fields, 6),
  };
  const isEmpty =
    auth.username === '' && auth.password === '' && auth.auth === '' && auth.identityToken === '' && auth.registryToken === '';
  return isEmpty ? undefined : auth;
}

function readSandbox(bytes: Uint8Array | undefined): PodSandbox | undefined {
  if (bytes === undefined) return undefined;
  const fields = readFields(bytes);
  const metadata = readFields(contentOf(fields, 1) ?? NOTHING);
  return {
    name: textOf(metadata, 1),
    uid: textOf(metadata, 2),
    namespace: textOf(metadata, 3),
    labels: mapOf(fields, 6),
    annotations: mapOf(fields, 7),
  };
}

/** Throws InvalidArgument for bytes that are no message; containerd then says so itself. */
export function readPullImageRequest(bytes: Uint8Array): PullImageRequest {
  const fields = readFields(bytes);
  return { spec: readSpec(contentOf(fields, 1)), auth: readAuth(contentOf(fields, 2)), sandbox: readSandbox(contentOf(fields, 3)) };
}

/** The request with these credentials in place of its own. */
export function withAuth(bytes: Uint8Array, auth: Partial<AuthConfig>): Uint8Array {
  const message = Buffer.concat([
    textField(1, auth.username ?? ''),
    textField(2, auth.password ?? ''),
    textField(3, auth.auth ?? ''),
    textField(4, auth.serverAddress ?? ''),
    textField(5, auth.identityToken ?? ''),
    textField(6, auth.registryToken ?? ''),
  ]);
  return withField(readFields(bytes), 2, bytesField(2, message));
}

export function pullImageResponse(imageRef: string): Uint8Array {
  return textField(1, imageRef);
}

/** The ImageSpec of ImageStatus and RemoveImage. */
export function readImageSpecRequest(bytes: Uint8Array): ImageSpec {
  return readSpec(contentOf(readFields(bytes), 1));
}

export function imageStatusRequest(image: string): Uint8Array {
  return bytesField(1, textField(1, image));
}

/** An image as the runtime shows it. */
export interface RuntimeImage {
  readonly id: string;
  readonly repoTags: readonly string[];
  readonly repoDigests: readonly string[];
}

function readImage(bytes: Uint8Array): RuntimeImage {
  const fields = readFields(bytes);
  return { id: textOf(fields, 1), repoTags: textsOf(fields, 2), repoDigests: textsOf(fields, 3) };
}

/** The image of an ImageStatus answer; undefined when the runtime has none. */
export function readImageStatusResponse(bytes: Uint8Array): RuntimeImage | undefined {
  const image = contentOf(readFields(bytes), 1);
  return image === undefined ? undefined : readImage(image);
}

const IMAGE_PINNED = 8;

/** The answer of ListImages or ImageStatus (both have images in field 1) with `pinned` set on those that `isPinned` names. */
export function withPinned(bytes: Uint8Array, isPinned: (image: RuntimeImage) => boolean): Uint8Array {
  return mapFields(readFields(bytes), 1, (content) => {
    if (!isPinned(readImage(content))) return content;
    return withField(readFields(content), IMAGE_PINNED, numberField(IMAGE_PINNED, 1));
  });
}

/** What ImageFsInfo says of one file system. */
export interface FilesystemUsage {
  readonly mountpoint: string;
  readonly usedBytes: number;
  readonly inodesUsed: number;
}

function readUsage(fields: readonly Field[]): FilesystemUsage {
  const wrapped = (number: number): number => numberOf(readFields(contentOf(fields, number) ?? NOTHING), 1);
  return {
    mountpoint: textOf(readFields(contentOf(fields, 2) ?? NOTHING), 1),
    usedBytes: wrapped(3),
    inodesUsed: wrapped(4),
  };
}

/** The file systems of an ImageFsInfo answer that hold images. */
export function readImageFilesystems(bytes: Uint8Array): FilesystemUsage[] {
  return readFields(bytes)
    .filter(({ number, wireType }) => number === 1 && wireType === 2)
    .map(({ content }) => readUsage(readFields(content)));
}

/**
 * An ImageFsInfo answer with other places and numbers: `change` is asked for each file system of images (field 1) and, since CRI of
 * Kubernetes 1.29, of containers (field 2).
 */
export function withFilesystems(
  bytes: Uint8Array,
  change: (usage: FilesystemUsage, of: 'images' | 'containers') => FilesystemUsage,
): Uint8Array {
  const changed = (of: 'images' | 'containers') => (content: Uint8Array) => {
    const fields = readFields(content);
    const usage = change(readUsage(fields), of);
    let message = withField(fields, 2, bytesField(2, textField(1, usage.mountpoint)));
    message = withField(readFields(message), 3, bytesField(3, numberField(1, usage.usedBytes)));
    return withField(readFields(message), 4, bytesField(4, numberField(1, usage.inodesUsed)));
  };
  const images = mapFields(readFields(bytes), 1, changed('images'));
  return mapFields(readFields(images), 2, changed('containers'));
}
