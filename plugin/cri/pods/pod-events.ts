/** Where the part writes what people should know. */
export interface PodEvents {
  /** `type` is a stable machine name; `subject` is `namespace/name` of a pod, an image or a repository. No secret material. */
  add(type: string, subject: string, message: string): void;
}
