/** The API reference, from the OpenAPI document. A link to /docs cannot send the key; a page can. */

import { find, h } from "./dom.js";
import { t } from "./i18n.js";

export class Reference {
  #box = find("#reference");

  /**
   * @param {import("./stage.js").Stage} stage
   * @param {() => Promise<object|null>} load resolves to the OpenAPI document, or null
   */
  constructor(stage, load) {
    find("#docs-open").addEventListener("click", (event) => {
      // Another tab or window is the reader's wish.
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      void load().then((document) => {
        if (document === null) return;
        drawReference(this.#box, document);
        stage.show(this.#box, t("server.docs"));
      });
    });
  }
}

/** Draw an OpenAPI document into a box: every operation, every schema, every field. */
export function drawReference(box, { info, paths, components }) {
  const operations = Object.entries(paths).flatMap(([path, methods]) => (
    Object.entries(methods).map(([method, { summary }]) => [
      h("h3", {}, `${method.toUpperCase()} ${path}`), h("p", {}, summary ?? ""),
    ])));
  const schemas = Object.entries(components?.schemas ?? {}).map(([name, { description, properties = {} }]) => [
    h("h3", {}, name), h("p", { class: "hint" }, description ?? ""),
    h("dl", {}, ...Object.entries(properties).flatMap(([field, schema]) => [
      h("dt", {}, field), h("dd", {}, [typeOf(schema), schema.description].filter(Boolean).join(". ")),
    ])),
  ]);
  box.replaceChildren(h("h2", {}, `${info.title} ${info.version}`), ...operations.flat(), ...schemas.flat());
  box.scrollTop = 0;
}

/** Returns the type of a schema in a few words. */
function typeOf(schema) {
  if (schema.$ref !== undefined) return schema.$ref.split("/").at(-1);
  if (schema.anyOf !== undefined) return schema.anyOf.map(typeOf).join(" | ");
  const values = schema.enum ?? (schema.const === undefined ? [] : [schema.const]);
  if (values.length > 0) return values.map((value) => JSON.stringify(value)).join(" | ");
  const kind = [schema.type ?? "any"].flat().join(" | ");
  return schema.items === undefined ? kind : `${kind}[${typeOf(schema.items)}]`;
}
