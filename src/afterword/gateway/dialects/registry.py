"""All dialects, by name."""

from __future__ import annotations

from afterword.gateway.dialects.afterword import AfterwordDialect
from afterword.gateway.dialects.dialect import Dialect
from afterword.gateway.dialects.llamacpp import LlamacppDialect
from afterword.gateway.dialects.openai import OpenaiDialect
from afterword.gateway.dialects.sglang import SglangDialect
from afterword.gateway.dialects.vllm import VllmDialect

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        AfterwordDialect(),
        VllmDialect(),
        SglangDialect(),
        LlamacppDialect(),
        OpenaiDialect(),
    )
}
