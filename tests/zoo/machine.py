"""The law: whatever was asked before, an answer is that of a fresh server."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from afterword.core.job import Job
from zoo.orders import LENGTHS, TAILS, job, prompt
from zoo.serving import BUDGET, Answer, Model, Request, Server, difference

_MOST_PROMPT_TOKENS = 340


def jobs() -> st.SearchStrategy[Job]:
    """Jobs that begin alike, cut at the edges of windows more often than elsewhere."""
    ids = st.builds(
        prompt,
        st.integers(0, 2),
        st.sampled_from(LENGTHS) | st.integers(1, 300),
        st.sampled_from(TAILS),
        branch=st.integers(0, 1),
    )
    # Nothing is drawn from a prompt that is only scored.
    wanted = st.sampled_from(((1, None), (4, None), (12, None), (0, 1), (1, 0), (5, 2), (70, None)))
    return st.builds(
        lambda ids, wanted, n, temperature, seed: job(
            ids,
            n=n,
            max_tokens=wanted[0],
            scored=wanted[1],
            temperature=temperature,
            seed=seed,
        ),
        ids,
        wanted,
        st.sampled_from((1, 1, 1, 2, 5)),
        st.sampled_from((0.0, 1.0)),
        st.integers(0, 1),
    )


def single_jobs() -> st.SearchStrategy[Job]:
    """Jobs of one sequence."""
    return jobs().filter(lambda one: one.n == 1)


class Law(RuleBasedStateMachine):
    """Asks one after the other and together, aborts, evicts, in any order.

    A request that was together with others is held to the law where the model promises that
    batches do not matter; one that was alone, always.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.sent: dict[int, Request] = {}
        self.aborted: set[int] = set()
        self.fewer: set[tuple[int, int, int]] = set()
        self.row_share: float | None = None

    @initialize(slots=st.sampled_from((3, 1, 2, 5)))
    def start(self, slots: int) -> None:
        self._serving = self.model.server(slots)
        self.server: Server = self._serving.__enter__()

    @rule(one=single_jobs())
    def ask_alone(self, one: Job) -> None:
        """A request of one sequence, with nobody else on the server."""
        self.drain()
        self.check_alone((one,))

    @rule(many=st.lists(jobs(), min_size=1, max_size=3))
    def ask(self, many: list[Job]) -> None:
        """A request of any kind, with nobody else on the server."""
        self.drain()
        self.send(many)
        self.drain()

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 30))
    def ask_again(self, number: int) -> None:
        self.drain()
        request = self.sent[sorted(self.sent)[number % len(self.sent)]]
        if len(request) == request[0].n == 1:
            self.check_alone(request)
        else:
            self.send(request)
            self.drain()

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 30), tail=st.sampled_from(TAILS))
    def go_on(self, number: int, tail: int) -> None:
        """A prompt with its answer, and more."""
        self.drain()
        one = self.sent[sorted(self.sent)[number % len(self.sent)]][0]
        text = self.model.fresh((one,)).choices[0, 0].tokens
        ids = (*one.prompt_ids, *text, *prompt(1, tail))
        if len(ids) <= _MOST_PROMPT_TOKENS:
            self.check_alone((job(ids),))

    @rule(many=st.lists(jobs(), min_size=1, max_size=3))
    def send(self, many: list[Job] | Request) -> None:
        """A request that waits until steps are made."""
        request = tuple(many)
        self.sent[self.server.send(request)] = request

    @rule(budget=st.sampled_from((1, 16, 50, BUDGET)), count=st.integers(1, 12))
    def make_steps(self, budget: int, count: int) -> None:
        for _ in range(count):
            self.server.step(budget, row_share=self.row_share)

    @rule(share=st.sampled_from((None, 0.0, 0.5)))
    def draft(self, share: float | None) -> None:
        """Whether tokens are drafted from now on, which may change no answer."""
        if self.model.batch_invariant:
            self.row_share = share

    @rule(first=st.integers(0, 3), count=st.integers(4, 8))
    def crowd(self, first: int, count: int) -> None:
        """Many prompts of unequal lengths, one or two steps apart."""
        for i in range(first, first + count):
            self.send([job(prompt(i % 3, 5 + 37 * (i % 7), 9, branch=i), max_tokens=1 + 3 * i)])
            self.make_steps(50, 1 + i % 2)

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 30))
    def abort(self, number: int) -> None:
        key = sorted(self.sent)[number % len(self.sent)]
        if not self.server.scheduler.ended(key):
            self.server.scheduler.abort_request(key)
            self.aborted.add(key)

    @precondition(lambda self: self.sent)
    @rule(number=st.integers(0, 30), place=st.integers(0, 2), sibling=st.integers(0, 4))
    def abort_sibling(self, number: int, place: int, sibling: int) -> None:
        key = sorted(self.sent)[number % len(self.sent)]
        if not self.server.scheduler.ended(key):
            self.server.scheduler.abort(key, place, sibling)
            self.fewer.add((key, place, sibling))

    def drain(self) -> None:
        """Answer all that was sent, and hold it to the law."""
        self.server.run(row_share=self.row_share)
        for key, request in self.sent.items():
            if key not in self.aborted:
                self.check_together(key, request)
                self.aborted.add(key)

    def check_alone(self, request: Request) -> None:
        key = self.server.send(request)
        self.server.run()
        self.sent[key] = request
        self.aborted.add(key)
        self.hold(self.server.answers[key], request)

    def check_together(self, key: int, request: Request) -> None:
        answer = self.server.answers[key]
        places = [(i, sibling) for i, one in enumerate(request) for sibling in range(one.n)]
        fewer = {(i, sibling) for (k, i, sibling) in self.fewer if k == key}
        for place in places:
            if place not in fewer:
                assert answer.choices[place].reason is not None, "every sequence ends"
        if self.model.batch_invariant and not fewer:
            self.hold(answer, request)

    def hold(self, answer: Answer, request: Request) -> None:
        parts = difference(answer, self.model.fresh(request))
        assert parts is None, f"{self.model.path.stem}: {parts}"

    def teardown(self) -> None:
        if hasattr(self, "server"):
            try:
                self.drain()
            finally:
                self._serving.__exit__(None, None, None)
