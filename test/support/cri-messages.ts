/** The part of the Container Runtime Interface that tests speak. Source: Kubernetes cri-api, runtime/v1/api.proto (field numbers). */
import type { MessageTable } from './protobuf-table.ts';

const IMAGE_SPEC: MessageTable = { image: [1, 'string'], annotations: [2, { map: true }] };
const SANDBOX_METADATA: MessageTable = { name: [1, 'string'], uid: [2, 'string'], namespace: [3, 'string'], attempt: [4, 'int'] };
const CONTAINER_METADATA: MessageTable = { name: [1, 'string'], attempt: [2, 'int'] };
const NAMESPACE_OPTION: MessageTable = { network: [1, 'int'], pid: [2, 'int'], ipc: [3, 'int'] };

/** NamespaceMode.NODE: the host's namespace. */
export const NAMESPACE_NODE = 2;

export const SANDBOX_CONFIG: MessageTable = {
  metadata: [1, SANDBOX_METADATA],
  hostname: [2, 'string'],
  logDirectory: [3, 'string'],
  labels: [6, { map: true }],
  annotations: [7, { map: true }],
  linux: [8, { cgroupParent: [1, 'string'], securityContext: [2, { namespaceOptions: [1, NAMESPACE_OPTION] }] }],
};

const CONTAINER_CONFIG: MessageTable = {
  metadata: [1, CONTAINER_METADATA],
  image: [2, IMAGE_SPEC],
  command: [3, { repeated: 'string' }],
  args: [4, { repeated: 'string' }],
  workingDir: [5, 'string'],
  envs: [6, { repeated: { key: [1, 'string'], value: [2, 'string'] } }],
  mounts: [7, { repeated: { containerPath: [1, 'string'], hostPath: [2, 'string'], readonly: [3, 'bool'] } }],
  labels: [9, { map: true }],
  annotations: [10, { map: true }],
  logPath: [11, 'string'],
  linux: [15, { securityContext: [2, { namespaceOptions: [3, NAMESPACE_OPTION] }] }],
};

const IMAGE: MessageTable = {
  id: [1, 'string'],
  repoTags: [2, { repeated: 'string' }],
  repoDigests: [3, { repeated: 'string' }],
  size: [4, 'uint64'],
  username: [6, 'string'],
  spec: [7, IMAGE_SPEC],
  pinned: [8, 'bool'],
};

const FILESYSTEM_USAGE: MessageTable = {
  timestamp: [1, 'int64'],
  fsId: [2, { mountpoint: [1, 'string'] }],
  usedBytes: [3, { value: [1, 'uint64'] }],
  inodesUsed: [4, { value: [1, 'uint64'] }],
};

const ID = (name: string): MessageTable => ({ [name]: [1, 'string'] });

export interface CriMethod {
  request: MessageTable;
  response: MessageTable;
}

export const RUNTIME_METHODS = {
  Version: { request: ID('version'), response: { runtimeName: [2, 'string'], runtimeVersion: [3, 'string'] } },
  RunPodSandbox: { request: { config: [1, SANDBOX_CONFIG], runtimeHandler: [2, 'string'] }, response: ID('podSandboxId') },
  StopPodSandbox: { request: ID('podSandboxId'), response: {} },
  RemovePodSandbox: { request: ID('podSandboxId'), response: {} },
  ListPodSandbox: { request: {}, response: { items: [1, { repeated: ID('id') }] } },
  CreateContainer: {
    request: { podSandboxId: [1, 'string'], config: [2, CONTAINER_CONFIG], sandboxConfig: [3, SANDBOX_CONFIG] },
    response: ID('containerId'),
  },
  StartContainer: { request: ID('containerId'), response: {} },
  StopContainer: { request: { containerId: [1, 'string'], timeout: [2, 'int64'] }, response: {} },
  RemoveContainer: { request: ID('containerId'), response: {} },
  ContainerStatus: {
    request: ID('containerId'),
    response: {
      status: [
        1,
        {
          id: [1, 'string'],
          state: [3, 'int'],
          startedAt: [5, 'int64'],
          finishedAt: [6, 'int64'],
          exitCode: [7, 'int'],
          reason: [10, 'string'],
          message: [11, 'string'],
          logPath: [15, 'string'],
        },
      ],
    },
  },
  ExecSync: {
    request: { containerId: [1, 'string'], cmd: [2, { repeated: 'string' }], timeout: [3, 'int64'] },
    response: { stdout: [1, 'bytes'], stderr: [2, 'bytes'], exitCode: [3, 'int'] },
  },
} as const satisfies Record<string, CriMethod>;

export const IMAGE_METHODS = {
  ListImages: { request: { filter: [1, { image: [1, IMAGE_SPEC] }] }, response: { images: [1, { repeated: IMAGE }] } },
  ImageStatus: { request: { image: [1, IMAGE_SPEC], verbose: [2, 'bool'] }, response: { image: [1, IMAGE] } },
  PullImage: {
    request: {
      image: [1, IMAGE_SPEC],
      auth: [2, { username: [1, 'string'], password: [2, 'string'], auth: [3, 'string'], serverAddress: [4, 'string'] }],
      sandboxConfig: [3, SANDBOX_CONFIG],
    },
    response: { imageRef: [1, 'string'] },
  },
  RemoveImage: { request: { image: [1, IMAGE_SPEC] }, response: {} },
  ImageFsInfo: { request: {}, response: { imageFilesystems: [1, { repeated: FILESYSTEM_USAGE }] } },
} as const satisfies Record<string, CriMethod>;
