from afterword.compose.mounted import create_app as create_app
from afterword.config.settings import Settings as Settings
from afterword.core.errors import AfterwordError as AfterwordError
from afterword.core.errors import ApiError as ApiError
from afterword.core.errors import ConfigError as ConfigError
from afterword.core.errors import ContextLengthExceeded as ContextLengthExceeded
from afterword.core.errors import EngineOverloaded as EngineOverloaded
from afterword.core.errors import EngineUnavailable as EngineUnavailable
from afterword.core.errors import InvalidRequest as InvalidRequest
from afterword.core.errors import ModelNotFound as ModelNotFound
from afterword.library.answers import ContinuationScore as ContinuationScore
from afterword.library.answers import TextChoice as TextChoice
from afterword.library.answers import TextChunk as TextChunk
from afterword.library.answers import TextCompletion as TextCompletion
from afterword.library.answers import TextScore as TextScore
from afterword.library.async_llm import AsyncLLM as AsyncLLM
from afterword.library.llm import LLM as LLM
from afterword.library.plots import plot as plot
from afterword.library.streams import AsyncTextStream as AsyncTextStream
from afterword.library.streams import TextStream as TextStream

__version__: str
