"""F3: models without fill-in-the-middle tokens search for the middle. On the toy model."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import pytest

from afterword.completion import searching
from afterword.completion.catalog import Catalog, ServedModel
from afterword.completion.service import CompletionService
from afterword.core.errors import EngineOverloaded
from afterword.core.job import Event, Job
from afterword.core.limits import Limits
from afterword.core.pace import Pace
from afterword.core.protocols import Engine, Generation
from afterword.core.wire import InfillReport
from afterword.engine.toy import ToyTokenizer, toy_engine
from conftest import make_client
from contract.test_s_stream import AT_HAND
from support.asgi import Client, fold

HERE = pytest.mark.parametrize("client", ["here"], indirect=True)
TOKENIZER = ToyTokenizer(infill=False)
BODY: dict[str, Any] = {
    "model": "plain", "prompt": "Once upon a\n", "suffix": "\n  time", "max_tokens": 9, "seed": 5,
}  # fmt: skip


async def total(client: Client, text: str) -> float:
    """The log-probability of a text behind its first token."""
    answer = await client.complete(model="plain", prompt=text, max_tokens=0, echo=True, logprobs=0)
    values: list[float] = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
    return sum(values)


@HERE
async def test_F3_the_middle_makes_the_whole_likelier_than_an_answer_that_ignores_the_suffix(
    client: Client,
) -> None:
    for seed in range(2):
        body = {**BODY, "seed": seed}
        found = (await client.complete(**body))["choices"][0]["text"]
        del body["suffix"]
        ignoring = (await client.complete(**body))["choices"][0]["text"]
        before, after = BODY["prompt"], BODY["suffix"]
        assert await total(client, before + found + after) > await total(
            client, before + ignoring + after
        )


@HERE
@pytest.mark.parametrize("kept", [1, 6])
async def test_F3_a_cut_prompt_is_what_is_kept(client: Client, kept: int) -> None:
    """R17: its suffix takes nothing from what ``truncate_prompt_tokens`` keeps."""
    ids = list(b"Once upon a\n")
    body = {**BODY, "echo": True}
    whole = await client.complete(**{**body, "prompt": ids[-kept:]})
    cut = await client.complete(**{**body, "prompt": ids, "truncate_prompt_tokens": kept})
    assert cut["choices"] == whole["choices"]


@HERE
async def test_F3_the_answer_says_how_it_was_found_and_counts_all(client: Client) -> None:
    answer = await client.complete(**BODY)
    report = answer["infill"]
    assert report["found_by"] == "search"
    assert report["scored"] <= report["places"] <= 64
    assert report["cut_by_time"] is False
    # Each candidate draws one token more, which says how likely the suffix is behind the last one.
    assert answer["usage"]["completion_tokens"] <= report["candidates"] * 10
    assert answer["usage"]["completion_tokens"] > report["candidates"]
    scored = len(TOKENIZER.encode(BODY["suffix"]))
    prompt = len(TOKENIZER.encode(BODY["prompt"]))
    assert answer["usage"]["prompt_tokens"] >= prompt + scored * report["scored"] * 0.5
    assert "infill" not in await client.complete(**{**BODY, "model": "toy"})
    assert "infill" not in await client.complete(**{**BODY, "suffix": None})


@HERE
async def test_F3_the_same_seed_finds_the_same_middle(client: Client) -> None:
    first = await client.complete(**BODY)
    assert (await client.complete(**BODY))["choices"] == first["choices"]
    other = await client.complete(**{**BODY, "seed": 6, "n": 4})
    assert other["choices"] != (await client.complete(**BODY, n=4))["choices"]
    greedy = {**BODY, "temperature": 0, "seed": None}
    assert (await client.complete(**greedy))["choices"] == (await client.complete(**greedy))[
        "choices"
    ]


@HERE
async def test_D2_a_prompt_finds_the_same_middle_in_an_array(client: Client) -> None:
    alone = await client.complete(**BODY)
    several = await client.complete(**{**BODY, "prompt": ["x", BODY["prompt"]]})
    assert several["choices"][1]["text"] == alone["choices"][0]["text"]
    ids = await client.complete(**{**BODY, "prompt": TOKENIZER.encode(BODY["prompt"])})
    assert ids["choices"] == alone["choices"]


@HERE
async def test_F3_n_middles_differ_and_the_best_comes_first(client: Client) -> None:
    one = await client.complete(**BODY)
    three = await client.complete(**BODY, n=3)
    texts = [choice["text"] for choice in three["choices"]]
    assert texts[0] == one["choices"][0]["text"]
    assert len(set(texts)) == 3
    # Between lines the best middle is the one that makes the whole likeliest.
    totals = [await total(client, BODY["prompt"] + text + BODY["suffix"]) for text in texts]
    assert totals == sorted(totals, reverse=True)


@HERE
async def test_F3_between_sentences_stand_whole_sentences(client: Client) -> None:
    body = {**BODY, "prompt": "Once upon a time.", "suffix": " The end is here", "max_tokens": 24}
    # The toy model draws few sentences by itself.
    body |= {"logit_bias": {TOKENIZER.encode("!")[0]: 6, TOKENIZER.encode("b")[0]: 6}}
    for choice in (await client.complete(**body, n=3))["choices"]:
        assert choice["text"].rstrip().endswith((".", "!", "?"))


@HERE
async def test_F3_streamed_at_the_end(client: Client) -> None:
    body = {**BODY, "n": 2, "logprobs": 2, "echo": False}
    answer = await client.complete(**body)
    folded = fold(await client.stream(**body, stream_options={"include_usage": True}), usage=True)
    assert folded["choices"] == answer["choices"]
    assert folded["infill"] == answer["infill"]
    assert folded["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


@HERE
async def test_F3_log_probabilities_are_those_of_the_middle_behind_the_prompt(
    client: Client,
) -> None:
    (choice,) = (await client.complete(**BODY, logprobs=1))["choices"]
    middle = choice["logprobs"]
    assert "".join(middle["tokens"]) == choice["text"]
    prompt = TOKENIZER.encode(BODY["prompt"])
    forced = await client.complete(
        model="plain", prompt=[*prompt, *TOKENIZER.encode(choice["text"])], max_tokens=0,
        echo=True, logprobs=1,
    )  # fmt: skip
    for name, values in middle.items():
        assert values == forced["choices"][0]["logprobs"][name][len(prompt) :]


@HERE
async def test_F3_a_middle_ends_before_a_stop_string(client: Client) -> None:
    free = (await client.complete(**BODY, n=8))["choices"]
    stop = next(choice["text"] for choice in free if len(choice["text"]) > 1)[1]
    for choice in (await client.complete(**BODY, n=8, stop=[stop]))["choices"]:
        assert stop not in choice["text"]


@HERE
async def test_F3_empty_lines_alone_are_no_middle(client: Client) -> None:
    for choice in (await client.complete(**BODY, n=12))["choices"]:
        assert choice["text"].strip()


@HERE
async def test_F3_F4_echo_and_max_tokens_0(client: Client) -> None:
    bare = await client.complete(**BODY)
    echoed = await client.complete(**BODY, echo=True)
    assert echoed["choices"][0]["text"] == BODY["prompt"] + bare["choices"][0]["text"]
    nothing = await client.complete(**{**BODY, "max_tokens": 0})
    assert nothing["choices"][0]["text"] == ""
    assert nothing["usage"]["completion_tokens"] == 0


@HERE
async def test_F3_mistrals_route_says_it_too(client: Client) -> None:
    body = {**BODY, "random_seed": BODY["seed"]}
    del body["seed"]
    answer = (await client.post("/v1/fim/completions", body)).json()
    plain = await client.complete(**BODY)
    assert answer["infill"]["found_by"] == plain["infill"]["found_by"]
    health = (await client.get("/health")).json()
    if all(engine["batch_invariant"] for engine in health["engines"]):
        # Elsewhere the second search begins behind what the first computed, and rounds otherwise.
        assert answer["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
        assert answer["infill"] == plain["infill"]


@HERE
@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 250}, None),
        ({"n": 100, "max_tokens": 60}, "n"),
        ({"best_of": 20, "max_tokens": 60}, "best_of"),
        ({"prompt": ["a"] * 40}, "prompt"),
        ({"echo": True, "logprobs": 1}, "suffix"),
        ({"min_tokens": 10}, "min_tokens"),
    ],
)
async def test_F3_refused_by_name(client: Client, more: dict[str, Any], param: str | None) -> None:
    error = await client.refuse(**{**BODY, **more})
    assert error["param"] == param or error["code"] == "context_length_exceeded"


@HERE
async def test_F3_more_middles_than_places_are_refused_for_that(client: Client) -> None:
    error = await client.refuse(**{**BODY, "n": 65, "max_tokens": 1})
    assert "64 places" in error["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_F3_the_limit_is_named_as_it_was_given(name: str) -> None:
    engine = toy_engine(infill=False)
    narrow = make_client({"plain": engine}, limits=Limits(infill_tokens=64))
    error = await narrow.refuse(model="plain", prompt="a", suffix="b", **{name: 60})
    assert error["param"] == name
    await engine.aclose()


@pytest.mark.parametrize("client", ["behind afterword"], indirect=True)
async def test_F3_refused_where_prompts_are_not_known_to_be_shared(client: Client) -> None:
    error = await client.refuse(**BODY)
    assert error["param"] == "suffix"
    assert "fill-in-the-middle" in error["message"]


@HERE
async def test_F3_the_infill_route_refuses_it(client: Client) -> None:
    reply = await client.post(
        "/infill", {"model": "plain", "input_prefix": "a", "input_suffix": "b"}
    )
    assert reply.error["param"] == "input_suffix"
    assert "POST /v1/completions with 'suffix'" in reply.error["message"]


@AT_HAND
async def test_D1_other_requests_change_no_middle(serve: Callable[..., Client]) -> None:
    client = serve(toy_engine(infill=False))
    body = {**BODY, "model": "toy"}
    alone = await client.complete(**body)
    noise = [{"prompt": "Once upon a" + "b" * i, "max_tokens": 20} for i in range(6)]
    together = await asyncio.gather(
        *(client.complete(**one) for one in noise), client.complete(**body)
    )
    assert together[-1]["choices"] == alone["choices"]


async def test_F3_time_ends_a_search_with_what_it_has() -> None:
    """A clock that runs out at once still gives a middle, and the answer says so."""
    service, engine = _service(toy_engine(infill=False))
    plan = await service.plan(json.dumps(BODY).encode())
    ticks = itertools.chain([0.0], itertools.repeat(1e9))
    async with service.open(plan, clock=lambda: next(ticks)) as answer:
        completion = await answer.completion()
    await engine.aclose()
    assert isinstance(completion.infill, InfillReport)
    assert completion.infill.cut_by_time is True
    assert completion.infill.scored == 0
    assert completion.choices[0].finish_reason in {"stop", "length"}


async def test_F3_a_search_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its texts are looked at on the event loop, in slices."""
    paces: list[Pace] = []

    class Counted(Pace):
        def __init__(self) -> None:
            super().__init__()
            paces.append(self)

    monkeypatch.setattr(searching, "Pace", Counted)
    service, engine = _service(toy_engine(infill=False))
    plan = await service.plan(json.dumps({**BODY, "prompt": ["a", "b", "c"]}).encode())
    async with service.open(plan) as answer:
        scored = (await answer.completion()).infill
    await engine.aclose()
    assert isinstance(scored, InfillReport)
    (pace,) = paces
    # A trial is a good part of a slice.
    assert pace.pauses > scored.scored / 16


class OneByOne:
    """A generation whose reader gets each event alone, and what the reader had read so far."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._left: list[Event] = []
        self.read = 0

    async def __aenter__(self) -> Self:
        await self._generation.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._generation.__aexit__(None, None, None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Event]:
        if not self._left:
            self._left = (await anext(self._generation))[::-1]
        self.read += 1
        return [self._left.pop()]


async def test_F3_time_ends_a_search_between_two_places() -> None:
    """However long the others of a wave would take."""
    engine: Any = toy_engine(infill=False)
    open_jobs = engine.open
    opened: list[OneByOne] = []

    def open_one_by_one(jobs: Sequence[Job], **more: Any) -> OneByOne:
        opened.append(OneByOne(open_jobs(jobs, **more)))
        return opened[-1]

    engine.open = open_one_by_one
    service, _ = _service(engine)

    def clock() -> float:
        # The prompts and the candidates are the first two.
        return 1e9 if len(opened) == 3 and opened[-1].read else 0.0

    plan = await service.plan(json.dumps(BODY).encode())
    async with service.open(plan, clock=clock) as answer:
        completion = await answer.completion()
    await engine.aclose()
    assert isinstance(completion.infill, InfillReport)
    assert completion.infill.cut_by_time is True
    assert completion.infill.scored == 1
    assert completion.infill.places > 1


async def test_F3_the_price_is_that_of_unique_tokens() -> None:
    """All places together compute little more than their suffixes: the prompt is shared."""
    inner = toy_engine(infill=False, context_tokens=512, slots=8)
    service, _ = _service(inner)
    prompt = "model says " * 20
    plan = await service.plan(json.dumps({**BODY, "prompt": prompt}).encode())
    async with service.open(plan) as answer:
        completion = await answer.completion()
    prefilled = inner.stats().prefilled_tokens
    await inner.aclose()
    assert isinstance(completion.infill, InfillReport)
    places = completion.infill.scored
    prompts = places * len(TOKENIZER.encode(prompt))
    assert prefilled < prompts / 4
    assert completion.usage.total_tokens <= plan.most_tokens


async def test_H9_a_search_that_was_admitted_goes_on_while_the_line_is_full() -> None:
    """Its next jobs would be refused in the middle of a stream, and what they share be lost."""
    engine: Any = toy_engine(infill=False, slots=1, max_waiting=1)
    waiting: list[Generation] = []
    open_jobs = engine.open
    opened = 0

    def open_in_a_crowd(jobs: Sequence[Job], **more: Any) -> Generation:
        """Whenever a search opens jobs, others have filled the line."""
        nonlocal opened
        opened += 1
        if opened > 1:
            with suppress(EngineOverloaded):
                waiting.append(open_jobs(other.jobs))
            with pytest.raises(EngineOverloaded):
                open_jobs(other.jobs)
        generation: Generation = open_jobs(jobs, **more)
        return generation

    service, _ = _service(engine)
    other = await service.plan(json.dumps({**BODY, "suffix": None}).encode())
    plan = await service.plan(json.dumps({**BODY, "logprobs": 1}).encode())
    async with service.open(plan) as answer:
        alone = await answer.completion()
    engine.open = open_in_a_crowd
    async with service.open(plan) as answer:
        found = await answer.completion()
    assert opened >= 4
    assert waiting
    assert found.choices == alone.choices
    for generation in waiting:
        async with generation:
            assert [events async for events in generation]
    await engine.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_S6_a_search_that_could_draw_nothing_is_refused_before_it_begins(
    stream: bool,
) -> None:
    engine = toy_engine(infill=False)
    client = make_client({"plain": engine})
    bans = {str(i): -100 for i in range(len(TOKENIZER.pieces)) if i not in TOKENIZER.end_ids}
    body = {**BODY, "stream": stream, "min_tokens": 1, "logit_bias": bans}
    reply = await client.post("/v1/completions", body)
    assert (reply.status, reply.error["param"]) == (400, "logit_bias")
    assert engine.stats().started_requests == 0
    await engine.aclose()


async def test_S8_leaving_a_search_ends_its_jobs_and_counts_them() -> None:
    inner = toy_engine(infill=False)
    opened: list[Generation] = []
    service, _ = _service(inner, opened)
    plan = await service.plan(json.dumps(BODY).encode())
    with pytest.raises(TimeoutError):
        async with service.open(plan) as answer, asyncio.timeout(0):
            await answer.completion()
    while inner.stats().running_sequences or inner.stats().waiting_sequences:
        await asyncio.sleep(0)
    assert answer.usage.total_tokens <= plan.most_tokens
    await inner.aclose()


def _service(
    engine: Any, opened: list[Generation] | None = None
) -> tuple[CompletionService, Engine]:
    """Returns a service of one engine. ``opened`` gets what it opens."""
    open_jobs = engine.open

    def note(jobs: Sequence[Job], **more: Any) -> Generation:
        generation: Generation = open_jobs(jobs, **more)
        if opened is not None:
            opened.append(generation)
        return generation

    engine.open = note
    catalog = Catalog([ServedModel("plain", engine, 0)])
    service = CompletionService(catalog, Limits(), clock=lambda: 0.0, entropy=bytes)
    return service, engine


@HERE
async def test_F3_a_middle_has_at_most_max_tokens_tokens(client: Client) -> None:
    """Also behind an indentation that it begins with, and where its text takes more than drawn."""
    for most in (1, 2, 5):
        body = {**BODY, "suffix": "\n    time", "max_tokens": most, "n": 5}
        answer = await client.complete(**body, logprobs=0, return_token_ids=True)
        for choice in answer["choices"]:
            assert len(choice["token_ids"]) <= most
            assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"])


@HERE
async def test_F3_a_search_stays_within_the_context(client: Client) -> None:
    """Bytes that are no characters take three tokens each where they are scored as text."""
    ids = [97] * 205
    broken = {str(byte): 6 for byte in range(0xF8, 0x100)}
    for body in ({}, {"max_tokens": 16}, {"logit_bias": broken}):
        answer = await client.complete(model="plain", prompt=ids, suffix="b" * 40, seed=3, **body)
        assert answer["infill"]["candidates"] > 1
    assert (await client.complete(model="plain", prompt="x", max_tokens=1))["choices"]


@HERE
async def test_D2_a_prompt_finds_the_same_middle_beside_one_that_nearly_fills_the_context(
    client: Client,
) -> None:
    body = {**BODY, "max_tokens": None, "n": 6}
    alone = await client.complete(**body)
    several = await client.complete(**{**body, "prompt": [BODY["prompt"], "x" * 220]})
    assert several["choices"][:6] == alone["choices"]


@HERE
async def test_F3_a_prompt_that_ends_inside_a_character_is_refused(client: Client) -> None:
    body = {**BODY, "prompt": list("é".encode()[:1])}
    error = await client.refuse(**body)
    assert error["param"] == "prompt"
    assert "inside a character" in error["message"]
    await client.complete(**{**body, "model": "toy"})
