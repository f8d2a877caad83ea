"""The JSON Schemas of the editors' routes: Mistral's and llama-server's infill (F5)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from afterword.completion.fields import Schema
from afterword.completion.fim_request import fim_schema
from afterword.completion.infill_request import infill_schema
from afterword.core.limits import Limits
from afterword.http import fim, infill

_TYPES = (fim.FimCompletion, fim.FimChunk, infill.InfillAnswer, infill.InfillChunk)


def editor_schemas(limits: Limits) -> Mapping[str, Schema]:
    """Returns every schema by its name. The types of answers say everything."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    # With response_fields any part may be missing, and a path may be a name.
    schemas["InfillAnswer"] = {**schemas["InfillAnswer"], "required": []}
    return {
        "FimRequest": fim_schema(limits),
        "InfillRequest": infill_schema(limits),
        **schemas,
    }
