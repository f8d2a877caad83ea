"""The kinds of upstream there are."""

from __future__ import annotations

from afterword.engine.remote.afterword import AfterwordDialect
from afterword.engine.remote.dialect import Dialect
from afterword.engine.remote.llamacpp import LlamacppDialect
from afterword.engine.remote.openai import OpenaiDialect
from afterword.engine.remote.sglang import SglangDialect
from afterword.engine.remote.vllm import VllmDialect

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
