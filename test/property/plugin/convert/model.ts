/**
 * A plain model of what layers mean: objects and maps, applied entry by entry, written without a look at the builder's tree. What an
 * unpacker would refuse, `apply` refuses by returning false, and leaves everything as it was.
 */
import { hash } from 'node:crypto';

export interface ModelEntry {
  type: 'file' | 'directory' | 'symlink' | 'char' | 'fifo' | 'hardlink' | 'whiteout' | 'opaque';
  /** Parts of the path; for a whiteout of what it hides, for an opaque mark of the directory. Byte strings. */
  path: string[];
  mode: number;
  uid: number;
  gid: number;
  mtime: number;
  nanoseconds: number;
  xattrs: Record<string, string>;
  /** Files. */
  content: Buffer;
  /** Symbolic links: text. Hard links: parts of the path. */
  target: string;
  targetPath: string[];
  /** Chooses an existing object instead of `path` (and another of `targetPath`); 0: does not. */
  pick: number;
  targetPick: number;
  device: { major: number; minor: number };
}

interface ModelNode {
  type: 'file' | 'directory' | 'symlink' | 'char' | 'fifo';
  attributes: { mode: number; uid: number; gid: number; mtime: number; nanoseconds: number; xattrs: Record<string, string> };
  content: Buffer;
  target: string;
  device: { major: number; minor: number };
  children: Map<string, ModelNode>;
  /** Names that the present layer listed. */
  own: Set<string>;
}

const blank = (type: ModelNode['type']): ModelNode => ({
  type,
  attributes: { mode: 0o755, uid: 0, gid: 0, mtime: 0, nanoseconds: 0, xattrs: {} },
  content: Buffer.alloc(0),
  target: '',
  device: { major: 0, minor: 0 },
  children: new Map(),
  own: new Set(),
});

export interface ListedObject {
  type: string;
  mode: number;
  uid: number;
  gid: number;
  mtime: number;
  nanoseconds: number;
  xattrs: Record<string, string>;
  links: number;
  /** Digest of the content, target or device number. */
  value: string;
  /** The first path, in sorted order, of the same object. */
  sameAs: string;
}

export class ModelTree {
  private readonly root = blank('directory');

  beginLayer(): void {
    const visit = (node: ModelNode): void => {
      node.own.clear();
      for (const child of node.children.values()) visit(child);
    };
    visit(this.root);
  }

  apply(entry: ModelEntry): boolean {
    if (entry.path.length === 0) {
      if (entry.type === 'directory') this.root.attributes = attributesOf(entry);
      else if (entry.type === 'opaque') prune(this.root);
      else return false;
      return true;
    }
    const parts = entry.type === 'opaque' ? entry.path : entry.path.slice(0, -1);
    const name = entry.path.at(-1)!;
    let target: ModelNode | undefined;
    if (entry.type === 'hardlink') {
      target = this.find(entry.targetPath);
      if (target === undefined || target.type === 'directory') return false;
      // What lies below the name that is replaced goes with it.
      const under = entry.path.every((part, i) => entry.targetPath[i] === part) && entry.targetPath.length > entry.path.length;
      const replaced = this.find(entry.path);
      if (under && replaced?.type === 'directory' && countNames(this.root, target) === countNames(replaced, target)) return false;
    }
    const parent = this.makeParents(parts);
    if (parent === undefined) return false;
    if (entry.type === 'opaque') prune(parent);
    else if (entry.type === 'whiteout') hide(parent, name);
    else this.place(parent, name, entry, target);
    return true;
  }

  /** Attributes of an existing object, or undefined. */
  attributesAt(parts: readonly string[]): ModelNode['attributes'] | undefined {
    const node = this.find(parts);
    return node === undefined ? undefined : { ...node.attributes };
  }

  /** Paths of all objects but the root, in a fixed order. */
  paths(): string[][] {
    const found: string[][] = [];
    const visit = (node: ModelNode, path: string[]): void => {
      for (const [name, child] of node.children) {
        found.push([...path, name]);
        visit(child, [...path, name]);
      }
    };
    visit(this.root, []);
    return found;
  }

  list(): Map<string, ListedObject> {
    const listed = new Map<string, ListedObject>();
    const first = new Map<ModelNode, string>();
    const names = new Map<ModelNode, number>();
    const count = (node: ModelNode): void => {
      for (const child of node.children.values()) {
        names.set(child, (names.get(child) ?? 0) + 1);
        if (child.type === 'directory') count(child);
      }
    };
    count(this.root);
    const visit = (node: ModelNode, path: string): void => {
      if (!first.has(node)) first.set(node, path);
      const subdirectories = [...node.children.values()].filter((child) => child.type === 'directory').length;
      listed.set(path, {
        type: node.type,
        ...node.attributes,
        links: node.type === 'directory' ? 2 + subdirectories : names.get(node)!,
        value:
          node.type === 'file'
            ? hash('sha1', node.content)
            : node.type === 'char'
              ? `${node.device.major}:${node.device.minor}`
              : node.target,
        sameAs: first.get(node)!,
      });
      for (const name of [...node.children.keys()].sort()) visit(node.children.get(name)!, `${path}/${name}`);
    };
    visit(this.root, '');
    return listed;
  }

  private find(parts: readonly string[]): ModelNode | undefined {
    let node: ModelNode | undefined = this.root;
    for (const part of parts) node = node?.children.get(part);
    return node;
  }

  private makeParents(parts: readonly string[]): ModelNode | undefined {
    let depth = 0;
    let node = this.root;
    for (
      let next = node.children.get(parts[0] ?? '');
      depth < parts.length && next !== undefined;
      next = node.children.get(parts[depth] ?? '')
    ) {
      if (next.type !== 'directory') return undefined;
      node = next;
      depth += 1;
    }
    for (const part of parts.slice(depth)) {
      const made = blank('directory');
      node.children.set(part, made);
      node.own.add(part);
      node = made;
    }
    return node;
  }

  private place(parent: ModelNode, name: string, entry: ModelEntry, target: ModelNode | undefined): void {
    const existing = parent.children.get(name);
    parent.own.add(name);
    if (entry.type === 'hardlink') {
      parent.children.set(name, target!);
      const merged = { ...target!.attributes.xattrs, ...attributesOf(entry, target!.type).xattrs };
      target!.attributes = { ...attributesOf(entry), xattrs: merged };
      if (target!.type === 'symlink') target!.attributes.mode = 0o777;
      return;
    }
    if (entry.type === 'directory' && existing?.type === 'directory') {
      existing.attributes = attributesOf(entry);
      return;
    }
    const node = blank(entry.type as ModelNode['type']);
    node.attributes = attributesOf(entry, node.type);
    if (node.type === 'symlink') node.attributes.mode = 0o777;
    node.content = entry.content;
    node.target = entry.type === 'symlink' ? entry.target : '';
    node.device = entry.device;
    parent.children.set(name, node);
  }
}

/** Attributes of users have a place on files and directories alone, access lists on all but links, default ones on directories. */
function attributesOf(entry: ModelEntry, type: ModelNode['type'] = 'directory'): ModelNode['attributes'] {
  const { mode, uid, gid, mtime, nanoseconds } = entry;
  const hasPlace = (name: string): boolean => {
    if (name.startsWith('user.')) return type === 'file' || type === 'directory';
    return name === 'system.posix_acl_access' ? type !== 'symlink' : name !== 'system.posix_acl_default' || type === 'directory';
  };
  const xattrs = Object.fromEntries(Object.entries(entry.xattrs).filter(([name]) => hasPlace(name)));
  return { mode, uid, gid, mtime, nanoseconds, xattrs };
}

function countNames(under: ModelNode, wanted: ModelNode): number {
  let count = 0;
  for (const child of under.children.values()) count += (child === wanted ? 1 : 0) + countNames(child, wanted);
  return count;
}

/** Removes what the present layer did not list. */
function prune(directory: ModelNode): void {
  for (const name of [...directory.children.keys()]) hide(directory, name);
}

function hide(parent: ModelNode, name: string): void {
  const node = parent.children.get(name);
  if (node === undefined) return;
  if (node.type === 'directory') prune(node);
  if (parent.own.has(name) || node.children.size > 0) return;
  parent.children.delete(name);
}
