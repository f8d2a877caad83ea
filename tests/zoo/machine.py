"""The law as a state machine: an answer equals a fresh server's, whatever was asked before."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from afterword.core.job import Job
from zoo.orders import LENGTHS, TAILS, job, prompt
from zoo.serving import BUDGET, Answer, Model, Place, Request, Server, difference, is_single

_MOST_PROMPT_TOKENS = 340


def jobs(siblings: tuple[int, ...] = (1, 1, 1, 2, 5)) -> st.SearchStrategy[Job]:
    """Jobs with common prefixes, cut at the edges of windows more often than elsewhere."""
    ids = st.builds(
        prompt,
        st.integers(0, 2),
        st.sampled_from(LENGTHS) | st.integers(1, 300),
        st.sampled_from(TAILS),
        branch=st.integers(0, 1),
    )
    # (max_tokens, scored): nothing is sampled after a prompt that is only scored.
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
        st.sampled_from(siblings),
        st.sampled_from((0.0, 1.0)),
        st.integers(0, 1),
    )


def single_jobs() -> st.SearchStrategy[Job]:
    """Jobs of one sequence."""
    return jobs(siblings=(1,))


def several_jobs() -> st.SearchStrategy[Request]:
    """Requests of one to three jobs."""
    return st.lists(jobs(), min_size=1, max_size=3).map(tuple)


class Law(RuleBasedStateMachine):
    """Sends requests alone and together, aborts and evicts, in any order.

    A request of one sequence that was alone is always checked. Other requests are checked if the
    model is batch invariant. ``waiting`` maps keys to requests that were sent and not yet checked;
    ``fewer`` maps keys to sequences that were aborted.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Request] = []
        self.waiting: dict[int, Request] = {}
        self.fewer: dict[int, set[Place]] = {}
        self.row_share: float | None = None

    @initialize(slots=st.sampled_from((3, 1, 2, 5)), contexts=st.sampled_from((4, 1, 2)))
    def start(self, slots: int, contexts: int) -> None:
        self._serving = self.model.server(slots, contexts)
        self.server: Server = self._serving.__enter__()

    @rule(one=single_jobs())
    def ask_alone(self, one: Job) -> None:
        """Send a request of one sequence, with no other request on the server."""
        self.ask_and_hold((one,))

    @rule(many=several_jobs())
    def ask(self, many: Request) -> None:
        """Send a request of any kind, with no other request on the server."""
        self.answer_all()
        self.send(many)
        self.answer_all()

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 30))
    def ask_again(self, number: int) -> None:
        request = self.asked[number % len(self.asked)]
        if is_single(request):
            self.ask_and_hold(request)
        else:
            self.ask(request)

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 30), tail=st.sampled_from(TAILS))
    def go_on(self, number: int, tail: int) -> None:
        """Send a prompt with its answer, and more tokens."""
        first = self.asked[number % len(self.asked)][0]
        text = self.model.fresh((first,)).choices[0, 0].tokens
        ids = (*first.prompt_ids, *text, *prompt(1, tail))
        if len(ids) <= _MOST_PROMPT_TOKENS:
            self.ask_and_hold((job(ids),))

    @rule(many=several_jobs())
    def send(self, many: Request) -> None:
        """Send a request that waits until steps are made."""
        self.asked.append(many)
        self.waiting[self.server.send(many)] = many

    @rule(budget=st.sampled_from((1, 16, 50, BUDGET)), count=st.integers(1, 12))
    def make_steps(self, budget: int, count: int) -> None:
        for _ in range(count):
            self.server.step(budget, row_share=self.row_share)

    @rule(share=st.sampled_from((None, 0.0, 0.5)))
    def draft(self, share: float | None) -> None:
        """Turn drafts on or off. Drafts change batches, so the model must be batch invariant."""
        if self.model.batch_invariant:
            self.row_share = share

    @rule(first=st.integers(0, 3), count=st.integers(4, 8))
    def crowd(self, first: int, count: int) -> None:
        """Send many prompts of different lengths, one or two steps apart."""
        for i in range(first, first + count):
            self.send((job(prompt(i % 3, 5 + 37 * (i % 7), 9, branch=i), max_tokens=1 + 3 * i),))
            self.make_steps(50, 1 + i % 2)

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0, 30))
    def abort(self, number: int) -> None:
        key = list(self.waiting)[number % len(self.waiting)]
        self.server.scheduler.abort_request(key)
        del self.waiting[key]

    @precondition(lambda self: self.waiting)
    @rule(number=st.integers(0, 30), place=st.tuples(st.integers(0, 2), st.integers(0, 4)))
    def abort_sibling(self, number: int, place: Place) -> None:
        key = list(self.waiting)[number % len(self.waiting)]
        self.server.scheduler.abort(key, *place)
        self.fewer.setdefault(key, set()).add(place)

    def answer_all(self) -> None:
        """Answer all requests, and check them against the law."""
        self.server.run(row_share=self.row_share)
        for key, request in self.waiting.items():
            fewer = self.fewer.get(key, set())
            answer = self.server.answers[key]
            places = {(i, sibling) for i, one in enumerate(request) for sibling in range(one.n)}
            for place in places - fewer:
                assert answer.choices[place].reason is not None, "every sequence ends"
            if self.model.batch_invariant:
                self.hold(answer, request, fewer)
        self.waiting.clear()

    def ask_and_hold(self, request: Request) -> None:
        """Answer a request that is alone, and check it against the law."""
        self.answer_all()
        self.asked.append(request)
        key = self.server.send(request)
        self.server.run(row_share=self.row_share)
        self.hold(self.server.answers[key], request, set())

    def hold(self, answer: Answer, request: Request, fewer: set[Place]) -> None:
        expected = self.model.fresh(request).without(request, fewer)
        parts = difference(answer.without(request, fewer), expected)
        assert parts is None, f"{self.model.path.stem}: {parts}"

    def teardown(self) -> None:
        if hasattr(self, "server"):
            try:
                self.answer_all()
            finally:
                self._serving.__exit__(None, None, None)
