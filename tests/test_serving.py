"""A team behind an OpenAI-compatible endpoint: a real server on a real port, asked by real clients."""

import asyncio
import http.client
import json
import logging
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
import torch
import uvicorn
from conftest import make_model, make_tokenizer
from openai_server import free_port
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from ccpo import (
    AnswerCritiqueRewrite,
    Chain,
    OpenAIGenerator,
    Role,
    Solo,
    ThinkSolve,
    Topology,
    TransformersGenerator,
    Vote,
)
from ccpo.evaluation import Team, evaluate
from ccpo.evaluation.serving.__main__ import main, parse_arguments
from ccpo.evaluation.serving.app import create_app, serve
from ccpo.evaluation.serving.replies import Choice, UntilStop
from ccpo.generation import Completion
from ccpo.generation.watching import Watching
from ccpo.tasks import arithmetic
from ccpo.team.prompts import problem_text

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "outputs" / "demo"
MODULE = ["python", "-m", "ccpo.evaluation.serving"]
ASK = [{"role": "user", "content": "3 + 4"}]


@contextmanager
def served(team, **options):
    """A team behind a real server in this process: a client of it, whose `app` is the server's."""
    app = create_app(team, **options)
    config = uvicorn.Config(app, port=free_port(), log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        key = options.get("api_key") or "none"
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{config.port}/v1", api_key=key, max_retries=0, timeout=60)
        client.app, client.port = app, config.port
        yield client
        wait_for(lambda: not app.state.batcher.waiting and not app.state.batcher.running)  # nothing leaks
        client.close()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(client, messages=ASK, **options):
    return client.chat.completions.create(model="team", messages=messages, **options)


def heard(client, *args, **options):
    """A streamed answer: reasoning, content and why it ended, by choice; and the last usage."""
    said, usage = {}, None
    for chunk in ask(client, *args, stream=True, stream_options={"include_usage": True}, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            own = said.setdefault(choice.index, ["", "", None])
            own[0] += getattr(choice.delta, "reasoning_content", None) or ""
            own[1] += choice.delta.content or ""
            own[2] = choice.finish_reason or own[2]
    return [tuple(said[i]) for i in sorted(said)], usage


def whole(answer):
    """The same of an answer that was not streamed."""
    choices = [
        (getattr(c.message, "reasoning_content", None) or "", c.message.content, c.finish_reason)
        for c in answer.choices
    ]
    return choices, answer.usage


class Typist:
    """Types its reply to each prompt, a character at a time; can be watched."""

    def __init__(self, reply, delay: float = 0.0):
        self.reply, self.delay, self.calls, self.typed = reply, delay, [], 0

    def generate(self, prompts, watch=None):
        self.calls.append(list(prompts))
        texts, lengths = [self.reply(problem_text(prompt)) for prompt in prompts], {}
        for place in range(max(map(len, texts))):
            going = [i for i, text in enumerate(texts) if place < len(text) and i not in lengths]
            if going:
                time.sleep(self.delay)
            for i in going:
                self.typed += 1
                if watch is not None and watch(i, texts[i][place]):
                    lengths[i] = place + 1
        texts = [text[: lengths.get(i)] for i, text in enumerate(texts)]
        return [Completion(text, len(text), False, 10) for text in texts]

    def __call__(self, prompts):
        return [completion.text for completion in self.generate(prompts)]


class Obliging(Typist):
    """One that is sampled as one likes, and remembers how."""

    max_new_tokens = 500

    def sampled(self, **options):
        self.options = options
        return self


def typists(topology, delay=0.0, **replies):
    """A team of typists: a role's reply to what it is asked, by default its name and that."""
    by_default = {name: lambda asked, name=name: f"{name} of {asked}" for name in topology.role_names}
    made = {name: Typist(reply, delay) for name, reply in {**by_default, **replies}.items()}
    return Team(topology, made)


SHORT = {"thinker_prompt": "plan {problem}", "solver_prompt": "{problem} by {thought}", "solo_prompt": "{problem}"}


@pytest.fixture(scope="module")
def team():
    """Two families, of which each has a tokenizer of its own; sampled as a run might."""
    tokenizers = {"thinker": make_tokenizer(), "solver": make_tokenizer(kind="llama")}
    models = {
        "thinker": make_model("qwen3", tokenizers["thinker"]),
        "solver": make_model("llama", tokenizers["solver"]),
    }
    limits = {"thinker": 12, "solver": 20}
    generators = {r: TransformersGenerator(models[r], tokenizers[r], max_new_tokens=limits[r]) for r in models}
    return Team(ThinkSolve(**SHORT), generators)


@pytest.fixture(scope="module")
def client(team):
    with served(team) as made:
        yield made


# ---- What is answered ----


def test_the_team_is_the_model(client):
    assert [model.id for model in client.models.list()] == ["team"]
    assert client.models.retrieve("team").owned_by == "ccpo"
    with pytest.raises(openai.NotFoundError, match="The team is 'team'"):
        client.models.retrieve("gpt-4")


def test_the_answer_is_the_teams(client, team):
    """As `Team` answers by hand; the others' texts stand in the reasoning, and all tokens are counted."""
    greedy = {role: generator.sampled(temperature=0.0) for role, generator in team.generate.items()}
    wanted = Team(team.topology, greedy)(ASK)
    ((reasoning, content, finish),), usage = whole(ask(client, temperature=0))
    assert content == wanted.text and reasoning == f"[thinker]\n{wanted.texts['thinker']}"
    assert finish == ("length" if wanted.completions["solver"].truncated else "stop")
    assert usage.completion_tokens == wanted.tokens
    assert usage.completion_tokens_details.reasoning_tokens == wanted.completions["thinker"].tokens
    read = sum(greedy[role].count_tokens([wanted.prompts[role]])[0] for role in greedy)
    assert usage.prompt_tokens == read and usage.total_tokens == read + wanted.tokens


@pytest.mark.parametrize("stop", [None, "stop", ["a", "e"]])
def test_a_stream_says_the_same(client, stop):
    options = {} if stop is None else {"stop": stop}
    once, spoken = whole(ask(client, temperature=0, **options)), heard(client, temperature=0, **options)
    assert once == spoken
    if stop is not None:
        assert not any(stop in once[0][0][1] for stop in ([stop] if isinstance(stop, str) else stop))


def test_a_stop_string_ends_the_answer(client):
    ((_, content, _),), usage = whole(ask(client, temperature=0))
    stop = content[5]
    place = content.index(stop)
    ((_, cut, finish),), less = whole(ask(client, temperature=0, stop=[stop]))
    assert (cut, finish) == (content[:place], "stop")
    assert less.completion_tokens == usage.completion_tokens - (20 - place - 1)  # nothing is drawn behind it


@pytest.mark.parametrize("stops", [("b c", "d"), ("abc",), ("aab", "ab")])
def test_until_a_stop_by_every_cut(stops):
    """However a text is cut into pieces, the same is given, and nothing that would have to be taken back."""
    for text in ("a b c d", "aaab", "ababab c", "xyz", ""):
        ends = [text.find(stop) for stop in stops if stop in text]
        wanted = text[: min(ends)] if ends else text
        for at in range(len(text) + 1):
            for size in (1, 2, 3):
                until = UntilStop(stops)
                given = [until.add(text[i : i + size]) for i in range(0, at, size)]
                assert wanted.startswith("".join(given))
                assert "".join(given) + until.end(text) == wanted


def test_a_long_stop_string_costs_nothing():
    until, start = UntilStop(["a" * 50_000]), time.monotonic()
    given = "".join(until.add(piece) for piece in ["b", *["aab"] * 40])
    assert given == "b" + "aab" * 40 and time.monotonic() - start < 1


def test_a_text_that_is_not_as_it_was_drawn(caplog):
    """What was given stays, and the rest is not lost."""
    until = UntilStop(["."])
    assert until.add("ab?") + until.end("ab!cd. e") == "ab?cd" and "do not give back its text" in caplog.text
    until = UntilStop(["!!"])
    assert until.add("ab!") + until.end("ab?cd") == "ab?cd"  # the "!" was held back


def test_choices(client):
    answer = ask(client, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert whole(answer) == heard(client, n=3, seed=5)


def test_a_seed_gives_the_same_answer_in_any_company(client):
    alone = whole(ask(client, seed=7))
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(ask, client, seed=seed) for seed in (7, 8, 9, None, 7, None, 7, 7)]
        answers = [whole(other.result()) for other in others]
    assert [answers[i] for i in (0, 4, 6, 7)] == [alone] * 4
    assert answers[1] != alone and answers[2] != alone


def test_limits(client):
    """Of the answer alone, or of all together; never more than the role's own."""
    ((reasoning, content, finish),), usage = whole(ask(client, temperature=0, max_tokens=3))
    assert usage.completion_tokens_details.reasoning_tokens == 12 and len(content) <= 3 and finish == "length"
    assert whole(ask(client, temperature=0, max_tokens=999)) == whole(ask(client, temperature=0))
    assert whole(ask(client, temperature=0, max_completion_tokens=15))[0] == [(reasoning, content, finish)]
    with pytest.raises(openai.BadRequestError, match="Give at least 13, or use `max_tokens`"):
        ask(client, max_completion_tokens=12)


def test_earlier_turns_reach_every_role():
    solver = Typist(lambda asked: "so")
    team = Team(ThinkSolve(**SHORT), {"thinker": (thinker := Typist(lambda asked: "hm")), "solver": solver})
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2", "reasoning_content": "[thinker]\nhm", "refusal": None, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "2 + 2"}]},
    ]
    with served(team) as client:
        assert ask(client, turns).choices[0].message.content == "so"
    begun = [{"role": "system", "content": "be brief"}, ASK[0] | {"content": "1 + 1"}]
    begun.append({"role": "assistant", "content": "2"})
    assert thinker.calls == [[[*begun, {"role": "user", "content": "plan and 2 + 2"}]]]
    assert solver.calls == [[[*begun, {"role": "user", "content": "and 2 + 2 by hm"}]]]


def test_a_team_without_chat_template_reads_text():
    team = Team(ThinkSolve(**SHORT), {r: TransformersGenerator(make_model("qwen3", t), t, max_new_tokens=4)
        for r in ("thinker", "solver") for t in [make_tokenizer(chat=False)]})  # fmt: skip
    with served(team) as client:
        assert whole(ask(client, temperature=0))[0][0][1] == Team(team.topology, {
            role: generator.sampled(temperature=0.0) for role, generator in team.generate.items()
        })("3 + 4").text  # fmt: skip
        with pytest.raises(openai.BadRequestError, match="cannot read earlier turns or system messages, got 2"):
            ask(client, [{"role": "system", "content": "be brief"}, *ASK])
    with pytest.raises(ValueError, match="`text=False` needs chat templates"):
        create_app(team, text=False)


def test_a_vote_is_told_when_it_is_decided():
    votes = {"voter_1": "it is 3", "voter_2": r"\boxed{7}", "voter_3": r"so \boxed{7}"}
    team = typists(Vote(3), delay=0.002, **{name: lambda asked, said=said: said for name, said in votes.items()})
    with served(team) as client:
        ((reasoning, content, _),), _ = heard(client)
        assert content == r"\boxed{7}"
        assert reasoning == "\n\n".join(f"[{name}]\n{said}" for name, said in votes.items())
        assert whole(ask(client))[0] == heard(client)[0]


@pytest.mark.parametrize(
    ("topology", "roles"),
    [
        (Solo(), []),
        (Chain(("plan", "check", "write")), ["plan", "check"]),
        (AnswerCritiqueRewrite(), ["answer_a", "answer_b", "critique_a", "critique_b", "rewrite_a"]),
    ],
)
def test_any_team(topology, roles):
    team = typists(topology)
    with served(team) as client:
        once = whole(ask(client))
        assert once == heard(client)
        assert re.findall(r"^\[(\w+)\]$", once[0][0][0], re.MULTILINE) == roles
        assert once[0][0][1] == team(ASK).text


def test_a_role_of_one_generator_hears_its_own(team):
    """Roles that speak in one call of one generator: each text goes to its role."""
    one = Typist(lambda asked: f"<{asked}>")
    roles = (
        Role("a", prompt="A {problem}"),
        Role("b", prompt="B {problem}"),
        Role("c", reads=("a", "b"), prompt="{problem}{a}{b}"),
    )
    with served(Team(Topology(roles), dict.fromkeys("abc", one))) as client:
        ((reasoning, content, _),), _ = heard(client)
    assert (reasoning, content) == ("[a]\n<A 3 + 4>\n\n[b]\n<B 3 + 4>", "<3 + 4<A 3 + 4><B 3 + 4>>")
    assert [len(call) for call in one.calls] == [2, 1]


def test_roles_that_speak_at_once_on_several_threads():
    """While one's last piece is sent, another's waits: none is lost, and they stay in order."""
    sent, threads = [], []
    prompts = {"a": "{problem}", "b": "{problem}", "c": "{problem}{a}{b}"}
    team = Topology([Role(n, reads=("a", "b") if n == "c" else (), prompt=p) for n, p in prompts.items()])

    def send(field, text):
        if text == "last":
            threads.append(threading.Thread(target=choice.hear, args=("b", "", Completion("other"))))
            threads[0].start()
            threads[0].join(0.2)
        sent.append(text)

    choice = Choice(team, (), send)
    choice.hear("a", "first", None)
    choice.hear("a", "", Completion("firstlast"))
    threads[0].join(5)
    assert sent == ["[a]\nfirst", "last", "\n\n[b]\nother"]


# ---- While it is drawn ----


def byte_tokenizer():
    """Of whose tokens four make an emoji."""
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left")
    tokenizer.add_special_tokens({"eos_token": "</s>", "pad_token": "<pad>"})
    return tokenizer


class Script:
    """A logits processor after which each row is drawn as it is written."""

    def __init__(self, rows, start):
        self.rows, self.start = rows, start

    def __call__(self, input_ids, scores):
        place, forced = input_ids.size(1) - self.start, torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(self.rows):
            forced[row, ids[min(place, len(ids) - 1)]] = 0
        return forced


@pytest.mark.parametrize("options", [{}, {"generation_kwargs": {"stop_strings": ["b", "😀x"]}}, {"batch_size": 2}])
@pytest.mark.parametrize("end", [None, "d"])
def test_pieces_are_the_text(options, end, monkeypatch):
    """Token by token, over batches; an end that is no special token, stop strings, and rows that end early."""
    tokenizer = byte_tokenizer()
    model = make_model("llama", tokenizer)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(end) if end else tokenizer.eos_token_id
    generator = TransformersGenerator(model, tokenizer, max_new_tokens=24, temperature=0.0, **options)
    texts = ["a 😀 cab", "é😀x b </s>", "zzz d zzz", "ça va 😀"]
    rows = [tokenizer(text + "</s>")["input_ids"] for text in texts]
    generate, batches = model.generate, iter([[0, 1], [2, 3]] if options == {"batch_size": 2} else [[0, 1, 2, 3]])

    def scripted(**given):
        script = Script([rows[i] for i in next(batches)], given["input_ids"].size(1))
        return generate(**given, logits_processor=[script])

    monkeypatch.setattr(model, "generate", scripted)
    heard = [""] * 4

    def watch(i, piece):
        heard[i] += piece
        return i == 3 and heard[3].endswith("v")

    drawn = generator.generate(["x"] * 4, watch=watch)
    assert heard == [completion.text for completion in drawn]
    assert drawn[3] == Completion("ça v", 5, False, 1) and drawn[2].text == ("zzz " if end else "zzz d zzz")
    assert drawn[0].text == "a 😀 cab" and not any(completion.truncated for completion in drawn)


def watched(tokenizer, row, **options):
    """The pieces of one row of tokens, and its text."""
    pieces, config = [], GenerationConfig(eos_token_id=[tokenizer.eos_token_id], **options)
    watching = Watching(lambda i, piece: pieces.append(piece), [0], tokenizer, config)
    for length in range(1, len(row) + 1):
        watching(torch.tensor([row[:length]]), None)
    return pieces, tokenizer.decode(row, skip_special_tokens=True)


def words_and_bytes():
    """As Llama 2 and Mistral have it: what is no word is a byte, and bytes that are no characters spoil their run."""
    vocab = {f"<0x{i:02X}>": i for i in range(256)} | {"<unk>": 256, "▁": 257, "a": 258, "▁a": 259, "é": 260}
    core = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(parts)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    tokenizer.add_special_tokens({"eos_token": "</s>", "bos_token": "<s>"})
    return tokenizer


@pytest.mark.parametrize("make", [words_and_bytes, byte_tokenizer])
def test_pieces_of_any_tokens_begin_the_text(make):
    tokenizer, draws = make(), random.Random(0)
    characters = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in "é😀漢 a"]
    others = [i for i in range(len(tokenizer)) if i != tokenizer.eos_token_id]
    for _ in range(60):
        row = [draws.choice(characters) if draws.random() < 0.6 else [draws.choice(others)] for _ in range(20)]
        pieces, text = watched(tokenizer, sum(row, []))
        assert text.startswith("".join(pieces))
    row = sum([tokenizer(c, add_special_tokens=False)["input_ids"] for c in "a 😀é a"], [])
    pieces, text = watched(tokenizer, row)
    assert "".join(pieces) == text == "a 😀é a" and sum(map(bool, pieces)) > 2


def test_a_tokenizer_that_would_mend_spaces_is_watched():
    """Llama 3's says so, and transformers leaves byte pairs as they are."""
    tokenizer = byte_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    pieces, text = watched(tokenizer, tokenizer("it 's . so")["input_ids"])
    assert "".join(pieces) == text == "it 's . so"
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    pieces, text = watched(tokenizer, tokenizer("it 's . so")["input_ids"])
    assert not any(pieces) and text == "it's. so"


@pytest.mark.parametrize("search", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 2}])
def test_a_search_is_not_watched(search):
    """Beams and assistants take back what they drew."""
    tokenizer = make_tokenizer()
    model, heard = make_model("qwen3", tokenizer), []
    options = {"max_new_tokens": 8, "temperature": 0.0, "generation_kwargs": search}
    generator = TransformersGenerator(model, tokenizer, **options)
    (drawn,) = generator.generate([ASK], watch=lambda i, piece: heard.append(piece))
    assert "".join(heard) == "" and drawn == generator.generate([ASK])[0] and drawn.text


def test_a_text_that_changes_is_not_watched_any_further(caplog):
    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Fuse(), decoders.Replace("ab", "X")]
    )
    assert watched(tokenizer, tokenizer("cabc")["input_ids"]) == (["c", "a", "", ""], "cXc")
    assert "is no longer checked for its end" in caplog.text


def test_a_stream_comes_while_it_is_drawn():
    team = typists(ThinkSolve(**SHORT), delay=0.01, thinker=lambda a: "t" * 30, solver=lambda a: "s" * 30)
    with served(team) as client:
        start, times = time.monotonic(), {"reasoning_content": [], "content": []}
        for chunk in ask(client, stream=True):
            for field, seen in times.items():
                if getattr(chunk.choices[0].delta, field, None):
                    seen.append(time.monotonic() - start)
        total = time.monotonic() - start
    assert times["reasoning_content"][0] < total / 4 and times["content"][0] < 0.75 * total
    assert len(times["reasoning_content"]) == len(times["content"]) == 30
    assert times["reasoning_content"][-1] < times["content"][0]


def test_the_asynchronous_client(client):
    async def hear():
        own = openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0)
        stream = await own.chat.completions.create(model="team", messages=ASK, temperature=0, stream=True)
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        answers = await asyncio.gather(
            *(own.chat.completions.create(model="team", messages=ASK, temperature=0) for _ in range(8))
        )
        await own.close()
        return said, {answer.choices[0].message.content for answer in answers}

    said, contents = asyncio.run(hear())
    assert contents == {said}


def test_requests_are_answered_together():
    team = typists(ThinkSolve(**SHORT), delay=0.01)
    with served(team, batch_size=4) as client, ThreadPoolExecutor(16) as pool:
        messages = [[{"role": "user", "content": str(i)}] for i in range(16)]
        answers = [f.result().choices[0].message.content for f in [pool.submit(ask, client, m) for m in messages]]
    assert answers == [f"solver of {i} by thinker of plan {i}" for i in range(16)]
    sizes = list(map(len, team.generate["thinker"].calls))
    assert max(sizes) == 4 and len(sizes) < 8 and sum(sizes) == 16


def test_only_what_is_sampled_alike_goes_together(client, monkeypatch):
    batches, answer = [], Team.answer
    monkeypatch.setattr(Team, "answer", lambda *args, **kw: batches.append(len(args[1])) or answer(*args, **kw))
    with ThreadPoolExecutor(12) as pool:
        kinds = [{"temperature": 0}, {"temperature": 0, "max_tokens": 3}, {"temperature": 0.7}]
        [f.result() for f in [pool.submit(ask, client, **kinds[i % 3]) for i in range(12)]]
    assert sum(batches) == 12 and max(batches) <= 4


def test_requests_above_the_limit_wait_and_then_are_refused():
    team = typists(Solo(), delay=0.02)
    with served(team, batch_size=1, max_requests=3) as client, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, client) for _ in range(8)]
        errors = [error for f in futures if (error := f.exception()) is not None]
        assert len(errors) == 5 and {type(error) for error in errors} == {openai.RateLimitError}
        assert errors[0].response.headers["retry-after"] == "1"
        assert errors[0].body["code"] == "rate_limit_exceeded" and errors[0].body["type"] == "rate_limit_error"
        assert ask(client).choices  # and there is room again


def send(client, body, path="/v1/chat/completions", method="POST", **headers):
    """A request that no client would send: status and error."""
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.request(method, path, body, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    said = json.loads(answer.read())
    connection.close()
    assert set(said) == {"error"} and set(said["error"]) == {"message", "type", "param", "code"}
    return answer.status, said["error"]


def hang_up(client, stream: bool):
    """Ask, and hang up without reading."""
    body = json.dumps({"model": "team", "messages": ASK, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    connection = socket.create_connection(("127.0.0.1", client.port))
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up(stream):
    """What has begun ends at the next token, what waits is never begun; nothing stays."""
    team = typists(Solo(), delay=0.01, solver=lambda asked: "x" * 1000)
    typist = team.generate["solver"]
    with served(team, batch_size=1) as client:
        batcher = client.app.state.batcher
        connections = [hang_up(client, stream)]
        wait_for(lambda: typist.typed > 3)
        connections += [hang_up(client, stream) for _ in range(3)]
        wait_for(lambda: len(batcher.waiting) == 3)
        for connection in connections[1:]:
            connection.close()
        wait_for(lambda: not batcher.waiting)
        assert batcher.running  # their places are free while the first is still drawn
        connections[0].close()
        wait_for(lambda: not batcher.running)
        assert len(typist.calls) == 1 and typist.typed < 1000
        typist.reply = lambda asked: "still there"
        assert ask(client).choices[0].message.content == "still there"

        async def tasks():
            return [task.get_coro().__qualname__ for task in asyncio.all_tasks()]

        loop = client.app.state.batcher.loop
        wait_for(lambda: not any("hang_up" in t for t in asyncio.run_coroutine_threadsafe(tasks(), loop).result(5)))


# ---- What is refused ----


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": None}, "model", "`model` must be 'team'"),
        ({"model": 3}, "model", "got 3"),
        ({"messages": None}, "messages", "must be a list of messages, got None"),
        ({"messages": []}, "messages", "must be a list of messages"),
        ({"messages": "hi"}, "messages", "got 'hi'"),
        ({"messages": ["hi"]}, "messages[0]", "must be an object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "got 'tool'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a text, got None"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "must be a text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
            "only parts of text",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": "a"}]}, "messages[0].name", "not supported"),
        ({"messages": [*ASK, {"role": "assistant", "content": "so"}]}, "messages", "must be the user's"),
        ({"temperature": -1}, "temperature", "of at least 0 and at most 2, got -1"),
        ({"temperature": "hot"}, "temperature", "must be a number"),
        ({"temperature": True}, "temperature", "must be a number"),
        ({"temperature": float("nan")}, "temperature", "got nan"),
        ({"temperature": 1e-40}, "temperature", "or at least 1e-06"),
        ({"top_p": 0}, "top_p", "above 0 and at most 1"),
        ({"max_tokens": 0}, "max_tokens", "an integer of at least 1, got 0"),
        ({"max_tokens": 2.5}, "max_tokens", "an integer"),
        ({"max_completion_tokens": -4}, "max_completion_tokens", "got -4"),
        ({"n": 0}, "n", "got 0"),
        ({"n": 1000}, "n", "at most 32"),
        ({"seed": 2**70}, "seed", "an integer"),
        ({"seed": 0.5}, "seed", "an integer"),
        ({"stop": 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stream": "yes"}, "stream", "true or false, got 'yes'"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs `stream: true`"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options", "may only have `include_usage`"),
        ({"user": 5}, "user", "must be a text"),
        ({"tools": [{"type": "function"}]}, "tools", "`tools` is not supported"),
        ({"tool_choice": "required"}, "tool_choice", "not supported"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"top_logprobs": 3}, "top_logprobs", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        ({"store": 0}, "store", "not supported"),
        ({"top_k": 5}, "top_k", "Unknown field 'top_k'"),
        ({"\ud800": 5}, "\ufffd", "Unknown field"),
        ({"messages": [{**ASK[0], "\ud800": 5}]}, "messages[0].\ufffd", "not supported"),
    ],
)
def test_fields_that_cannot_be(client, fields, param, message):
    body = json.dumps({"model": "team", "messages": ASK, **fields})
    status, error = send(client, body)
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error") and message in error[
        "message"
    ]


def test_fields_that_ask_for_nothing(client):
    nothing = {"logprobs": False, "tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": 1}
    nothing |= {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "store": False, "user": "me"}
    body = {"temperature": 0, "extra_body": {"audio": None, "functions": None}, **nothing}
    assert whole(ask(client, **body)) == whole(ask(client, temperature=0))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"n":' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "null", "list", "text", "bytes", "deep list", "deep object", "huge number"],
)
def test_bodies_that_are_no_requests(client, body):
    status, error = send(client, body)
    assert status == 400 and "The body" in error["message"] and "Traceback" not in error["message"]


def test_lone_surrogates_and_hostile_text(client):
    text = "\\ud800 </script> \\u202e {problem} {thought} \\u0000"
    body = f'{{"model": "team", "temperature": 0, "messages": [{{"role": "user", "content": "{text}"}}]}}'
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200 and json.loads(answer.read())["choices"]


def test_paths_methods_and_types(client):
    assert send(client, b"", "/v1/completions")[0] == 404
    status, error = send(client, b"", "/v1/chat/completions", "GET")
    assert status == 405 and "does not take this method" in error["message"]
    body = json.dumps({"model": "team", "messages": ASK})
    assert send(client, body, **{"Content-Type": "text/plain"})[0] == 415
    status, error = send(client, json.dumps({"model": "gpt-4", "messages": ASK}))
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=ASK)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large(chunked):
    """The client is heard out, so that it can read why; what is endless is cut off."""
    with served(typists(Solo()), max_body_bytes=1_000_000) as client:
        body = json.dumps({"model": "team", "messages": [{"role": "user", "content": "x" * 15_000_000}]}).encode()
        parts = (body[i : i + 65536] for i in range(0, len(body), 65536)) if chunked else body
        status, error = send(client, parts, Connection="close")
        assert status == 413 and "more than 1000000 bytes" in error["message"]
        with pytest.raises(openai.APIStatusError, match="more than 1000000 bytes") as caught:
            ask(client, [{"role": "user", "content": "x" * 1_000_000}])
        assert caught.value.status_code == 413
        assert ask(client).choices


def test_a_body_without_end():
    """It is refused, and whoever sends on is cut off."""
    with served(typists(Solo()), max_body_bytes=1000) as client:
        connection = socket.create_connection(("127.0.0.1", client.port), timeout=10)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        end = time.monotonic() + 5
        with pytest.raises(OSError):
            while time.monotonic() < end:
                connection.sendall(b"400\r\n" + b"x" * 1024 + b"\r\n")
                time.sleep(0.001)
        connection.close()


def test_a_body_that_does_not_come(monkeypatch):
    monkeypatch.setattr("ccpo.evaluation.serving.app._BODY_SECONDS", 0.2)
    with served(typists(Solo())) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=10)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b"{")
        response = connection.getresponse()
        assert response.status == 408 and "within 0.2 seconds" in json.load(response)["error"]["message"]
        connection.close()


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer no"}, {"Authorization": "geheim"}])
def test_a_wrong_key(header):
    with served(typists(Solo()), api_key="geheim") as client:
        for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET"), ("/v1/models/team", "GET")):
            status, error = send(client, b"{", path, method, **header)
            assert (status, error["code"]) == (401, "invalid_api_key") and "geheim" not in error["message"]
        assert ask(client).choices and [model.id for model in client.models.list()] == ["team"]
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200  # without a key
        with pytest.raises(openai.AuthenticationError):
            ask(client.with_options(api_key="other"))


def test_a_problem_that_is_too_long(client):
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(ask, client, temperature=0) for _ in range(3)]
        with pytest.raises(
            openai.BadRequestError, match="The messages are too long: the prompt of the role"
        ) as caught:
            ask(client, [{"role": "user", "content": "x" * 5000}], temperature=0)
        assert caught.value.code == "context_length_exceeded"
        assert all(f.result().choices for f in good)


def test_what_is_refused_is_not_kept(client, team):
    for letter in "abc":
        with pytest.raises(openai.BadRequestError, match="too long"):
            ask(client, [{"role": "user", "content": letter * 5000}])
    thinker = team.generate["thinker"]
    assert not any(len(row) > thinker.prompt_limit for row in thinker._counted.values())


def test_messages_without_tokens():
    team = typists(Solo())
    team.generate["solver"].count_tokens = lambda prompts: [0] * len(prompts)
    with served(team) as client, pytest.raises(openai.BadRequestError, match="cannot encode these messages"):
        ask(client)


def test_messages_that_the_chat_template_refuses(team, client, caplog, monkeypatch):
    template = "{% if messages|length > 1 %}{{ raise_exception('one only, at /secret') }}{% endif %}hi"
    monkeypatch.setattr(team.generate["thinker"]._load()[1], "chat_template", template)
    with pytest.raises(openai.BadRequestError, match="refuses these messages") as caught:
        ask(client, [*ASK, {"role": "assistant", "content": "so"}, *ASK])
    assert "secret" not in str(caught.value) and "one only" in caplog.text


def test_a_generator_that_fails(caplog):
    def reply(asked):
        if "bad" in asked:
            raise RuntimeError("the secret path")
        return "fine"

    team = typists(Solo(), delay=0.01, solver=reply)
    with served(team) as client, ThreadPoolExecutor(4) as pool:
        asked = [[{"role": "user", "content": text}] for text in ("good", "bad", "good", "good")]
        futures = [pool.submit(ask, client, messages) for messages in asked]
        errors = [f.exception() for f in futures]
        assert [type(error) for error in errors] == [type(None), openai.InternalServerError, type(None), type(None)]
        assert "secret" not in str(errors[1]) and errors[1].body["type"] == "server_error"
        assert "the secret path" in caplog.text
        with pytest.raises(openai.InternalServerError):  # nothing was sent yet: the status says so
            ask(client, asked[1], stream=True)


def test_an_endpoint_that_is_not_there_is_not_asked_again():
    """Its generator has tried often enough: the others of the batch wait for nothing more."""

    def reply(asked):
        raise ConnectionError("No answer")

    team = typists(Solo(), solver=reply)
    with served(team, batch_size=4) as client, ThreadPoolExecutor(4) as pool:
        errors = [f.exception() for f in [pool.submit(ask, client) for _ in range(4)]]
        assert {type(error) for error in errors} == {openai.InternalServerError}
    assert sum(map(len, team.generate["solver"].calls)) == 4


def test_the_server_goes_on_whatever_fails():
    class Fickle(Typist):
        fails = False

        @property
        def prompt_limit(self):
            if self.fails:
                raise RuntimeError("the secret path")
            return 100

        def count_tokens(self, prompts):
            return [1] * len(prompts)

    fickle = Fickle(lambda asked: "so")
    with served(Team(Solo(), {"solver": fickle})) as client:
        fickle.fails = True
        with pytest.raises(openai.InternalServerError):
            ask(client, timeout=5)
        fickle.fails = False
        assert ask(client).choices[0].message.content == "so"


def test_a_stream_that_fails_on_the_way():
    def reply(asked):
        raise RuntimeError("the secret path")

    with served(typists(ThinkSolve(**SHORT), solver=reply)) as client:
        with pytest.raises(openai.APIError, match="The team failed to answer") as caught:
            heard(client)
        assert "secret" not in str(caught.value)
        assert client.models.list()


def test_generators_of_ones_own():
    """What they cannot do is refused; they are asked as they are."""
    with served(Team(Solo(), {"solver": lambda prompts: ["so"] * len(prompts)})) as client:
        assert whole(ask(client)) == ([("", "so", "stop")], None) and heard(client) == ([("", "so", "stop")], None)
        for field, value in (("temperature", 0.5), ("seed", 3), ("max_tokens", 5)):
            with pytest.raises(openai.BadRequestError, match="generator of its own") as caught:
                ask(client, **{field: value})
            assert caught.value.param == field
        assert ask(client, stop=["o"]).choices[0].message.content == "s"


def test_options_that_cannot_be():
    for options, message in (
        ({"name": ""}, "`name` must be a non-empty text"),
        ({"api_key": ""}, "`api_key` must be a non-empty text"),
        ({"api_key": "schlüssel"}, "`api_key` must be ASCII without spaces"),
        ({"api_key": "two words"}, "`api_key` must be ASCII without spaces"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1, got 0"),
        ({"max_requests": -1}, "`max_requests` must be"),
        ({"max_body_bytes": True}, "`max_body_bytes` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            create_app(typists(Solo()), **options)


# ---- Roles behind endpoints, this one among them ----


def test_a_role_behind_an_endpoint_streams(caplog):
    """A served team plays a role of another: its pieces come through, with its tokens, seeds and stop strings."""
    inner = Team(Solo(), {"solver": (typist := Obliging(lambda asked: f"{asked}!" * 5, 0.01))})
    with served(inner) as behind:
        generator = OpenAIGenerator("team", str(behind.base_url), max_tokens=60, max_retries=0)
        assert generator.generate([ASK], watch=lambda i, piece: False) == generator.generate([ASK])
        assert generator.generate([ASK], watch=lambda i, piece: piece == "+")[0].text == "3 +"
        team = Team(ThinkSolve(**SHORT), {"thinker": Typist(lambda asked: "hm"), "solver": generator})
        with served(team) as client:
            assert whole(ask(client)) == heard(client)
            assert whole(ask(client))[0] == [("[thinker]\nhm", "3 + 4 by hm!" * 5, "stop")]
            start = time.monotonic()
            first = next(c for c in ask(client, stream=True) if c.choices[0].delta.content)
            assert first.choices[0].delta.content == "3" and time.monotonic() - start < 0.4
        team = Team(ThinkSolve(**SHORT), {"thinker": generator, "solver": generator})
        with served(team) as client:
            assert ask(client, seed=5, temperature=0.5, max_tokens=40, stop="!").choices[0].message.content
            assert typist.options["temperature"] == 0.5 and typist.options["max_new_tokens"] == 40
            assert typist.options["seed"] == 5 + 7919  # of the second role's
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_endpoint_keeps_its_own_stop_strings():
    for own in ("own", ["own"]):
        generator = OpenAIGenerator("m", "http://localhost:1/v1", extra_body={"stop": own, "top_k": 3})
        assert generator.sampled(stop=["a"]).extra_body == {"stop": ["own", "a"], "top_k": 3}
        assert generator.sampled(seed=1).extra_body == generator.extra_body


# ---- The command ----


@pytest.fixture
def run_folder(tmp_path):
    """A run of the embedded task before its first step."""
    topology, tokenizer = arithmetic.topology("think_solve"), arithmetic.build_tokenizer()
    for seed, role in enumerate(topology.role_names):
        arithmetic.build_policy(tokenizer, seed).save_pretrained(tmp_path / "sums" / role)
        tokenizer.save_pretrained(tmp_path / "sums" / role)
    sampling = {role: {"max_new_tokens": 24} for role in topology.role_names}
    (tmp_path / "sums" / "team.json").write_text(json.dumps({**topology.to_dict(), "run": {"sampling": sampling}}))
    return tmp_path / "sums"


@contextmanager
def command(*words, **environment):
    """`ccpo serve` on a free port, until it is ready: the process, its port and its log."""
    line = [sys.executable, "-m", "ccpo", "serve", *map(str, words), "--port", "0"]
    own = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=own) as process:
        log, reader = [], None
        try:
            reader = threading.Thread(target=lambda: log.extend(iter(process.stderr.readline, "")))
            reader.start()
            ready = re.compile(r"is served at http://.*:(\d+)/v1")
            wait_for(lambda: process.poll() is not None or any(map(ready.search, list(log))), 120)
            found = ready.search("".join(log))
            yield process, found and int(found[1]), log
        finally:
            process.kill()
            reader.join()


def test_the_command_serves_and_ends(run_folder):
    """A request in flight when SIGTERM comes is answered, and the process ends with status 0."""
    with command(run_folder, "--name", "sums", CCPO_API_KEY="geheim") as (process, port, log):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="geheim", max_retries=0)
        ask = {"model": "sums", "messages": [{"role": "user", "content": "(7+12)*4"}]}
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="no").models.list()
        stream = client.chat.completions.create(**ask, stream=True, n=16)
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert getattr(first.choices[0].delta, "reasoning_content", "").startswith("[thinker]")
        assert sum(chunk.choices[0].finish_reason is not None for chunk in rest) == 16
        assert process.wait(60) == 0
    said = "".join(log)
    assert "asked in plain text" in said and "geheim" not in said and "Traceback" not in said


def test_the_command_ends_though_an_endpoint_hangs(run_folder):
    """A second SIGINT ends at once what SIGTERM would wait for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"solver=m@http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with command(run_folder, "--name", "sums", "--endpoint", place) as (process, port, log):
            body = {"model": "sums", "messages": [{"role": "user", "content": "(7+12)*4"}]}
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            silent.accept()  # the solver is asked
            for which in (signal.SIGTERM, signal.SIGINT):
                process.send_signal(which)
                time.sleep(0.5)
            assert process.wait(30) == 0
            connection.close()
    assert "thrown away" in "".join(log)


def test_a_server_that_others_reach_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: None)
    for host, options, warned in (
        ("0.0.0.0", {}, True),
        ("0.0.0.0", {"api_key": "geheim"}, False),
        ("127.0.0.1", {}, False),
    ):
        caplog.clear()
        with pytest.raises(OSError, match=f"did not start at {host}:8000"):
            serve(typists(Solo()), host=host, **options)
        assert ("The team has no API key" in caplog.text) is warned and "geheim" not in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "x"], "needs `--topology`"),
        (["/nowhere"], "/nowhere has no team.json"),
        ([], "Give either the folder of a run"),
        (["RUN", "--batch_size", "0"], "`batch_size` must be an integer of at least 1"),
        (["RUN", "--endpoint", "nobody=m@http://x/v1"], "`--endpoint` names"),
    ],
)
def test_commands_that_cannot_be(words, message, run_folder, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(run_folder) if word == "RUN" else word for word in words])
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and error.startswith("ccpo serve: error: ") and message in error


def test_a_package_that_is_missing(run_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "ccpo.evaluation.serving.app")
    with pytest.raises(SystemExit):
        main([str(run_folder)])
    assert "needs fastapi and uvicorn: pip install 'ccpo[serve]'" in capsys.readouterr().err


# ---- lm-evaluation-harness ----

TASK = r"""
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: SUMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{solution}}"
generation_kwargs: {until: ["\n\n"], temperature: 0, max_gen_toks: 24}
filter_list:
  - {name: boxed, filter: [{function: regex, regex_pattern: '\\boxed\{(.*?)\}'}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
HARNESS = os.environ.get("LM_EVAL") or shutil.which(
    "lm_eval", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
)


def calculators():
    """A team of no models that is right three times out of four."""
    topology = arithmetic.topology("think_solve")

    def plan(asked):
        a, b, c = map(int, re.findall(r"\d+", asked))
        return f"{a + b}*{c}" if (a + b + c) % 4 else f"{a + b}*{c + 1}"

    def solve(asked):
        first, second = map(int, re.findall(r"Thought: (\d+)\*(\d+)", asked)[0])
        return rf"so \boxed{{{first * second}}}"

    return Team(topology, {"thinker": Obliging(plan), "solver": Obliging(solve)})


@pytest.mark.skipif(HARNESS is None, reason="needs lm-evaluation-harness: pip install 'lm-eval[api]', or set LM_EVAL")
@pytest.mark.parametrize("which", ["calculators", "demo"])
def test_the_harness_finds_the_same_score(which, tmp_path):
    """Greedy, so that both see the same answers; the demo's team where `make demo` has left one."""
    if which == "demo" and not (DEMO / "team.json").is_file():
        pytest.skip("needs outputs/demo: make demo")
    team = calculators() if which == "calculators" else Team.from_pretrained(DEMO, temperature=0.0)
    problems = arithmetic.build_dataset("test", 120)
    problems.to_json(tmp_path / "sums.jsonl")
    (tmp_path / "sums.yaml").write_text(TASK.replace("SUMS", str(tmp_path / "sums.jsonl")))
    results = evaluate(team, {"sums": problems}, output_dir=tmp_path, arms=["joint"], conversational=False)
    own = results["sums"].arms["joint"].avg
    with served(team, name="sums", text=True) as client:
        words = ["--model", "local-chat-completions", "--tasks", "sums", "--include_path", tmp_path]
        words += ["--apply_chat_template", "--output_path", tmp_path / "harness", "--model_args"]
        words += [f"model=sums,base_url={client.base_url}chat/completions,num_concurrent=16,max_retries=1"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "OPENAI_API_KEY": "none"}
        line = [HARNESS, *map(str, words)]
        done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "harness").rglob("results*.json")
    score = json.loads(file.read_text())["results"]["sums"]["exact_match,boxed"]
    assert 0.5 < own.value < 1 and own.interval[0] <= score <= own.interval[1]
    if which == "calculators":
        assert score == own.value


# ---- The page ----


def test_the_commands_on_the_page_are_read():
    text = (ROOT / "docs" / "serving.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for line in "\n".join(blocks).replace("\\\n", " ").splitlines() if line]
    commands = [words[2:] for words in map(shlex.split, lines) if words[:2] == ["ccpo", "serve"]]
    assert len(commands) >= 3
    for words in commands:
        parse_arguments(words)
    assert {words[0] for words in map(shlex.split, lines) if words[:2] != ["ccpo", "serve"]} == {"pip", "lm_eval"}


def test_the_code_on_the_page_runs(capsys):
    """Against the same team behind another address."""
    text = (ROOT / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    with served(calculators(), name="demo", text=True) as client:
        address = "http://127.0.0.1:8000/v1"
        assert address in code
        exec(compile(code.replace(address, str(client.base_url)), "docs/serving.md", "exec"), {})
    assert r"so \boxed{76}" in capsys.readouterr().out
