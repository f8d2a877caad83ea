"""Has forms of a file measured, each in turn with the file as it is, by child processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from afterword.core.errors import ConfigError
from afterword.engine.llama.child import (
    Beside,
    Compare,
    Convert,
    Effort,
    Survey,
    WriteReference,
    ask,
)
from afterword.engine.llama.gguf import Header
from afterword.engine.llama.verdict import (
    PASSAGE_TOKENS,
    Choice,
    Fidelity,
    Figures,
    choose,
    is_faithful,
)
from afterword.engine.llama.weights import (
    AS_IS,
    EXACT_FORM,
    WeightsFolder,
    Workshop,
    most_bytes,
)

_MEMORY_PARTS = 2
"""A form's weights may take at most one in this many parts of the memory."""
_MEMORY_OF_BOTH = 0.75
"""The part of the memory that a form's weights and the file's may take, while both are measured."""
_ROW_VALUE_BYTES = 4


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A file whose header was checked, its SHA-256, and how it will be run.

    ``memory_bytes`` is what this process may use; ``exact`` wants the promise of D1 kept.
    """

    path: Path
    digest: str
    header: Header
    threads: int
    exact: bool
    memory_bytes: int


def converter(threads: int) -> Callable[[Path, Path, str, int], None]:
    """Conversion in a child process."""

    def run(source: Path, destination: Path, form: str, descriptor: int) -> None:
        ask(Convert(str(source), str(destination), form, threads), type(None), descriptor)

    return run


class Examination:
    """Measures forms of a file; what it converted is gone after the block, but what is kept.

    Every measure is made by a child process. ``say`` is told what is done.
    """

    def __init__(
        self, folder: WeightsFolder, shop: Workshop, subject: Subject, say: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._shop = shop
        self._subject = subject
        self._say = say
        self._made: dict[str, Path] = {}
        self._conversions = ExitStack()
        self._not_compared: str | None = None
        self.found: dict[str, Figures] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._conversions.close()

    def survey(self, form: str, effort: Effort, *, promised: bool) -> None:
        """Speeds of a form; what does not fit or cannot be made is left out, with the reason."""
        subject = self._subject
        try:
            beside = None if form == AS_IS else self._file_as_it_is(form)
            path = str(self._path(form))
            self._say(f"measuring {form}")
            request = Survey(path, subject.threads, subject.exact, promised, effort, beside)
            self.found[form] = ask(request, Figures, self._shop.descriptor)
        except ConfigError as error:
            if form == AS_IS:
                raise
            self.found[form] = Figures(left_out=str(error))

    def compare(self, forms: Iterable[str], *, until_faithful: bool) -> None:
        """Fidelity of the file and of forms that were surveyed, as far as it can be measured."""
        subject = self._subject
        try:
            with self._reference() as rows:
                for form in (AS_IS, *forms):
                    self._say(f"comparing {form}")
                    path = str(self._path(form))
                    request = Compare(path, str(rows), subject.threads, subject.exact)
                    self.learn(form, ask(request, Fidelity, self._shop.descriptor))
                    if until_faithful and form != AS_IS and self._faithful(form):
                        return
        except ConfigError as error:
            self._not_compared = str(error)

    def choose(self) -> Choice:
        """What the rule says of all that was found."""
        choice = choose(self.found, exact=self._subject.exact)
        if choice.form == AS_IS and self._not_compared is not None:
            return Choice(AS_IS, f"forms could not be compared: {self._not_compared}")
        return choice

    def learn(self, form: str, fidelity: Fidelity) -> None:
        """Fidelity that is known."""
        self.found[form] = msgspec.structs.replace(self.found[form], fidelity=fidelity)

    def keep(self, form: str) -> None:
        """Have the file of a form stay, if it was converted."""
        part = self._made.get(form)
        if part is not None:
            self._shop.keep(part, self._subject.digest, form)

    def _faithful(self, form: str) -> bool:
        return is_faithful(self.found[form].fidelity, self.found[AS_IS].fidelity)

    @contextmanager
    def _reference(self) -> Iterator[Path]:
        """The float32 model's rows over the passage. ``ConfigError`` where it is too large."""
        subject = self._subject
        size = PASSAGE_TOKENS * subject.header.vocabulary * _ROW_VALUE_BYTES
        with self._shop.scratch(f"{subject.digest}-rows", size) as rows:
            with self._converted(EXACT_FORM) as path:
                self._say("computing the float32 model for comparison")
                request = WriteReference(str(path), str(rows), subject.threads)
                ask(request, type(None), self._shop.descriptor)
            yield rows

    def _file_as_it_is(self, form: str) -> Beside | None:
        """What a form is measured beside. ``ConfigError`` where there is no room for both."""
        subject = self._subject
        both = subject.header.file_bytes + most_bytes(subject.header, form)
        if both > subject.memory_bytes * _MEMORY_OF_BOTH:
            raise ConfigError(f"{form}: its weights and the file's have no room at once")
        speeds = self.found[AS_IS].speeds
        return None if speeds is None else Beside(str(subject.path), speeds)

    def _path(self, form: str) -> Path:
        subject = self._subject
        if form == AS_IS:
            return subject.path
        found = self._made.get(form) or self._folder.find(subject.digest, form)
        if found is None:
            found = self._conversions.enter_context(self._converted(form))
            self._made[form] = found
        return found

    @contextmanager
    def _converted(self, form: str) -> Iterator[Path]:
        subject = self._subject
        if most_bytes(subject.header, form) > subject.memory_bytes // _MEMORY_PARTS:
            raise ConfigError(f"{form}: its weights may take more than half of memory")
        self._say(f"converting to {form}")
        run = converter(subject.threads)
        with self._shop.converted(subject.path, subject.digest, form, run) as path:
            yield path
