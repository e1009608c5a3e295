/** The OpenAPI document as a page for people, with anchors to link to; no script, nothing loaded. */
import { html, raw } from 'hono/html';

interface Schema {
  $ref?: string;
  type?: string | string[];
  enum?: unknown[];
  const?: unknown;
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
  description?: string;
  default?: unknown;
  minimum?: number;
  maximum?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: string;
  additionalProperties?: boolean | Schema;
}

interface Parameter {
  name: string;
  in: string;
  required?: boolean;
  description?: string;
  schema?: Schema;
}

interface Operation {
  summary?: string;
  parameters?: Parameter[];
  requestBody?: { content?: Record<string, { schema?: Schema }> };
  responses?: Record<string, { description?: string; content?: Record<string, { schema?: Schema }> }>;
  security?: { bearer?: string[] }[];
}

/** As much of an OpenAPI document as is shown. */
export interface ApiDocument {
  openapi: string;
  info: { title: string; version: string; description?: string };
  paths: Record<string, Partial<Record<string, Operation>>>;
  components?: { schemas?: Record<string, Schema> };
}

const METHODS = ['get', 'post', 'put', 'patch', 'delete'] as const;

export const REFERENCE_STYLE = `
:root { color-scheme: light dark; }
body { max-width: 960px; margin: 0 auto; padding: 16px; font: 15px/1.5 system-ui, sans-serif; }
h2 { border-top: 1px solid #8884; padding-top: 16px; margin: 28px 0 4px; font-size: 17px; overflow-wrap: anywhere; }
h2 code { font-size: 15px; } code { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: 8px 0; } td, th { text-align: left; vertical-align: top; padding: 4px 10px 4px 0; border-top: 1px solid #8883; }
th { font-weight: normal; opacity: .7; } .dim { opacity: .7; } nav ul { columns: 2 320px; padding-left: 18px; } nav li { overflow-wrap: anywhere; }
`;

const refName = (ref: string): string => ref.slice(ref.lastIndexOf('/') + 1);

/** `string | null`, `ImageCache[]`, `"LRU"`. */
function typeText(schema: Schema | undefined): string {
  if (schema === undefined) return 'any';
  if (schema.$ref !== undefined) return refName(schema.$ref);
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum !== undefined) return schema.enum.map((value) => JSON.stringify(value)).join(' | ');
  const choices = schema.anyOf ?? schema.oneOf ?? schema.allOf;
  if (choices !== undefined) return [...new Set(choices.map(typeText))].join(schema.allOf === undefined ? ' | ' : ' & ');
  const types = [schema.type ?? 'any'].flat();
  return types.map((type) => (type === 'array' ? `${typeText(schema.items)}[]` : type)).join(' | ');
}

function limitsText(schema: Schema | undefined): string {
  if (schema === undefined) return '';
  const { minimum, maximum, minLength, maxLength, pattern, description } = schema;
  const facts = [
    description,
    minimum !== undefined || maximum !== undefined ? `${minimum ?? ''} to ${maximum ?? ''}` : undefined,
    minLength !== undefined || maxLength !== undefined ? `${minLength ?? 0} to ${maxLength ?? '…'} characters` : undefined,
    pattern === undefined ? undefined : `matches ${pattern}`,
    schema.default === undefined ? undefined : `default ${JSON.stringify(schema.default)}`,
  ];
  return facts.filter((fact) => fact !== undefined).join('; ');
}

interface Row {
  name: string;
  type: string;
  isRequired: boolean;
  notes: string;
}

const rowsTable = (rows: readonly Row[]) =>
  rows.length === 0
    ? ''
    : html`<table><tr><th>Name</th><th>Type</th><th>Notes</th></tr>${rows.map(
        ({ name, type, isRequired, notes }) =>
          html`<tr><td><code>${name}</code>${isRequired ? ' *' : ''}</td><td><code>${type}</code></td><td>${notes}</td></tr>`,
      )}</table>`;

function propertyRows(schema: Schema): Row[] {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, property]) => ({
    name,
    type: typeText(property),
    isRequired: required.has(name),
    notes: limitsText(property),
  }));
}

const anchorOf = (method: string, path: string): string => `${method}-${path.replace(/[^a-z0-9]+/gi, '-')}`;

function operationPart(method: string, path: string, operation: Operation) {
  const parameters = (operation.parameters ?? []).map(({ name, in: place, required, description, schema }) => ({
    name,
    type: typeText(schema),
    isRequired: required === true,
    notes: [place, description, limitsText(schema)].filter((text) => text !== undefined && text !== '').join('; '),
  }));
  const [bodyType, bodyContent] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [];
  const responses = Object.entries(operation.responses ?? {}).map(([status, { description, content }]) => ({
    name: status,
    type: Object.entries(content ?? {})
      .map(([type, { schema }]) => `${type}: ${typeText(schema)}`)
      .join(' | '),
    isRequired: false,
    notes: description ?? '',
  }));
  const scope = operation.security?.[0]?.bearer?.[0];
  return html`<h2 id="${anchorOf(method, path)}"><code>${method.toUpperCase()} ${path}</code></h2>
<p>${operation.summary ?? ''} <span class="dim">${scope === undefined ? '' : `Scope: ${scope}.`}</span></p>
${rowsTable(parameters)}${bodyType === undefined ? '' : html`<p>Body, ${bodyType}: <code>${typeText(bodyContent?.schema)}</code></p>`}
${bodyContent?.schema?.properties === undefined ? '' : rowsTable(propertyRows(bodyContent.schema))}
<p class="dim">Answers</p>${rowsTable(responses)}`;
}

/** The whole page. */
export function referencePage({ info, paths, components }: ApiDocument) {
  const operations = Object.entries(paths).flatMap(([path, item]) =>
    METHODS.flatMap((method) => {
      const operation = item[method];
      return operation === undefined ? [] : [{ method, path, operation }];
    }),
  );
  const shapes = Object.entries(components?.schemas ?? {});
  return html`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>${info.title}</title><link rel="icon" href="data:,"><style>${raw(REFERENCE_STYLE)}</style></head><body>
<h1>${info.title} ${info.version}</h1><p>${info.description ?? ''} For programs: <a href="/v1/openapi.json">openapi.json</a>.</p>
<nav><ul>${operations.map(({ method, path, operation }) => html`<li><a href="#${anchorOf(method, path)}"><code>${method.toUpperCase()} ${path}</code></a> <span class="dim">${operation.summary ?? ''}</span></li>`)}</ul></nav>
${operations.map(({ method, path, operation }) => operationPart(method, path, operation))}
<h1>Shapes</h1>
${shapes.map(([name, schema]) => html`<h2 id="shape-${name}"><code>${name}</code></h2><p>${schema.properties === undefined ? typeText(schema) : (schema.description ?? '')}</p>${rowsTable(propertyRows(schema))}`)}
</body></html>`;
}
