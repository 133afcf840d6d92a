"""The engine's surface: requests in, tokens and text out, errors to whom they belong, nothing left behind."""

import itertools
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from engine import Engine, EngineConfig, RequestError, RequestOutput, SamplingParams, UserError
from engine.loading.tokenizer import Tokenizer
from tests.engine.tiny import (
    GREEDY,
    PROMPTS,
    expected,
    prompt_of,
    run,
    serve,
    tiny_engine,
    tiny_model,
    tiny_tokenizer,
    with_tokenizer,
)

# Ends.


def test_an_end_token_ends_the_answer_and_is_part_of_its_tokens() -> None:
    """The first of the model's own end tokens, or one the request names; ignore_eos minds only the model's."""
    tokens = expected([PROMPTS[3]])[0]
    end = tokens[5]
    config = replace(tiny_model().config, eos_token_ids=(end, 1))
    engine = tiny_engine(loaded=replace(tiny_model(), config=config))
    cut = tokens[: tokens.index(end) + 1]
    stopped, ignored, named = engine.generate(
        [PROMPTS[3]] * 3,
        [SamplingParams(max_tokens=24), GREEDY, SamplingParams(max_tokens=24, ignore_eos=True, stop=end)],
    )
    assert (stopped.token_ids, stopped.finish_reason) == (cut, "stop")
    assert (ignored.token_ids, ignored.finish_reason) == (tokens, "length")
    assert (named.token_ids, named.finish_reason) == (cut, "stop")


def test_a_tokenizer_s_end_token_counts_too() -> None:
    """Where a model's config names none."""
    tokens = expected([PROMPTS[3]])[0]
    tokenizer = Tokenizer(tiny_tokenizer().backend, eos_ids=(tokens[5],))
    loaded = replace(tiny_model(), config=replace(tiny_model().config, eos_token_ids=()), tokenizer=tokenizer)
    output = tiny_engine(loaded=loaded).generate([PROMPTS[3]], SamplingParams(max_tokens=24))[0]
    assert output.token_ids == tokens[: tokens.index(tokens[5]) + 1]


def test_a_stop_string_ends_the_answer() -> None:
    """Found across token borders; the text ends before it, the tokens with the one that completed it."""
    engine = tiny_engine(loaded=with_tokenizer())
    whole = engine.generate(["hello"], GREEDY)[0]
    assert whole.text == tiny_tokenizer().decode(whole.token_ids)
    stop = whole.text[5:9]
    output = engine.generate(["hello"], replace(GREEDY, stop=(stop,)))[0]
    assert output.finish_reason == "stop"
    assert output.text == whole.text[: whole.text.index(stop)]
    assert output.token_ids == whole.token_ids[: len(output.token_ids)]
    assert stop in tiny_tokenizer().decode(output.token_ids)
    assert stop not in tiny_tokenizer().decode(output.token_ids[:-1])


def test_a_stop_token_is_no_part_of_the_text() -> None:
    """Special or not."""
    engine = tiny_engine(loaded=with_tokenizer())
    whole = engine.generate(["hello"], GREEDY)[0]
    output = engine.generate(["hello"], replace(GREEDY, stop=(whole.token_ids[7],)))[0]
    assert output.text == tiny_tokenizer().decode(output.token_ids[:-1])


def test_an_answer_that_ends_in_half_a_character_keeps_it() -> None:
    """The text is that of all tokens, whatever they are."""
    engine = tiny_engine(loaded=with_tokenizer())
    for num_tokens in range(1, 20):
        output = engine.generate(["hello"], replace(GREEDY, max_tokens=num_tokens))[0]
        assert output.text == tiny_tokenizer().decode(output.token_ids)


# Streams.


def test_streamed_text_only_grows() -> None:
    """Two prompts at once, with a stop string that the text nearly reaches again and again."""
    engine = tiny_engine(loaded=with_tokenizer())
    whole = engine.generate(["hello"], GREEDY)[0].text
    sampling = replace(GREEDY, stop=(whole[10:13],))
    before: dict[int, str] = {}
    num_yields = 0
    for output in engine.stream(["hello", "abc"], sampling):
        assert output.text.startswith(before.get(output.request_id, ""))
        before[output.request_id] = output.text
        num_yields += 1
    assert whole[: whole.index(whole[10:13])] in before.values()
    assert num_yields == engine.metrics.num_generated_tokens - GREEDY.max_tokens


def test_a_stream_left_early_is_aborted() -> None:
    """Breaking out of the loop gives everything back."""
    engine = tiny_engine()
    for output in engine.stream([PROMPTS[2], PROMPTS[3]], GREEDY):
        if len(output.token_ids) == 3:
            break
    run(engine)
    assert engine.blocks.num_used == 0
    assert engine.scheduler.idle


# Aborts.


def test_abort_during_flight_drops_the_token_on_its_way() -> None:
    """At every moment of a request's life; the others go on, and the row and blocks serve the next request."""
    for num_steps in range(8):
        engine = tiny_engine(max_num_seqs=2, num_kv_blocks=10, max_num_batched_tokens=24)
        aborted = engine.add_request(PROMPTS[5], GREEDY)
        other = engine.add_request(PROMPTS[1], GREEDY)
        for _ in range(num_steps):
            engine.step()
        engine.abort(aborted)
        engine.check_integrity()
        third = engine.add_request(PROMPTS[3], GREEDY)
        finished = run(engine)
        assert finished[aborted].finish_reason == "abort"
        assert finished[aborted].token_ids == expected([PROMPTS[5]])[0][: len(finished[aborted].token_ids)]
        assert [finished[i].token_ids for i in (other, third)] == expected([PROMPTS[1], PROMPTS[3]])


def test_abort_of_what_is_not_there_is_nothing() -> None:
    """Unknown, finished or aborted before."""
    engine = tiny_engine()
    engine.abort(99)
    request_id = engine.add_request(PROMPTS[0], GREEDY)
    engine.abort(request_id)
    engine.abort(request_id)
    assert [output.finish_reason for output in engine.step()] == ["abort"]
    assert not engine.has_work


def test_abort_all_leaves_an_idle_engine() -> None:
    """In flight, waiting and failed requests alike."""
    engine = tiny_engine(max_num_seqs=2)
    for prompt in [*PROMPTS, []]:
        engine.add_request(prompt, GREEDY)
    engine.step()
    engine.step()
    engine.abort_all()
    assert not engine.has_work
    assert engine.blocks.num_used == 0
    assert serve(engine, PROMPTS[:2], GREEDY) == expected(PROMPTS[:2])


# Errors.


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([], GREEDY, "the prompt is empty"),
        ([3, 67], GREEDY, "token id 67 lies outside the vocabulary of 67"),
        ([-1], GREEDY, "token id -1"),
        ([3, 2.5], GREEDY, "a prompt is text or a list of token ids"),
        ("text", GREEDY, "no tokenizer"),
        ([3], replace(GREEDY, stop=("a",)), "give stop tokens as ids"),
        (prompt_of(240), GREEDY, "240 prompt tokens and max_tokens=24 exceed max_model_len=256"),
        (prompt_of(170), GREEDY, "can never fit the KV cache of 192 tokens"),
    ],
)
def test_a_request_that_cannot_be_served_ends_alone(prompt: Any, sampling: SamplingParams, message: str) -> None:
    """With its own error, once; the others are served, before and after."""
    engine = tiny_engine(num_kv_blocks=12)
    outputs = engine.generate([PROMPTS[1], prompt, PROMPTS[2]], [GREEDY, sampling, GREEDY])
    assert outputs[1].finish_reason == "error"
    assert outputs[1].error is not None
    assert message in outputs[1].error
    assert [outputs[i].token_ids for i in (0, 2)] == expected([PROMPTS[1], PROMPTS[2]])
    assert not engine.has_work
    assert engine.snapshot()["failed_requests"] == 1


def test_the_longest_request_that_fits_is_served() -> None:
    """Exactly max_model_len tokens, exactly the pool: the last token's own keys are never stored."""
    sampling = SamplingParams(max_tokens=13, ignore_eos=True)
    prompt = prompt_of(96 - 12)
    engine = tiny_engine(num_kv_blocks=6, max_model_len=97)
    assert serve(engine, [prompt], sampling) == expected([prompt], sampling)
    assert engine.blocks.peak_used == 6


def test_generate_takes_lists() -> None:
    """A single string would be served letter by letter; two lists must match."""
    engine = tiny_engine(loaded=with_tokenizer())
    with pytest.raises(UserError, match="put the one prompt in a list"):
        engine.generate("hello", GREEDY)
    with pytest.raises(UserError, match="2 prompts but 1 sampling parameters"):
        engine.generate(["a", "b"], [GREEDY])
    assert engine.generate([], GREEDY) == []


def test_names_are_no_configs_and_no_variants() -> None:
    """Each is refused with what to write."""
    with pytest.raises(UserError, match=r"not 'tiny': Engine\(EngineConfig\(model=\.\.\.\)\)"):
        Engine("tiny")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"variant='fused' is no Variant: variants\.load_variant makes one of its name"):
        Engine(EngineConfig("tiny"), "fused")  # type: ignore[arg-type]


def test_a_failed_generate_leaves_nothing_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its requests are aborted, and their outputs are not the next call's."""
    engine = tiny_engine()
    real, calls = engine.runner.launch, itertools.count()

    def launch(*args: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(engine.runner, "launch", launch)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS[:3], GREEDY)
    assert [output.token_ids for output in engine.generate(PROMPTS[3:5], GREEDY)] == expected(PROMPTS[3:5])
    engine.check_integrity()


@pytest.mark.parametrize("bad", [5, None, "\ud800", [[3]]])
def test_a_bad_prompt_among_others_is_its_own_error(bad: Any) -> None:
    """The others are served, and nothing is left behind."""
    engine = tiny_engine(loaded=with_tokenizer())
    good, failed = engine.generate([PROMPTS[0], bad], GREEDY)
    assert (good.token_ids, failed.finish_reason) == (expected(PROMPTS[:1])[0], "error")
    assert failed.error


@pytest.mark.parametrize("call", [Engine.generate, Engine.stream])
def test_what_fails_while_requests_are_added_leaves_none(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is added already."""
    engine = tiny_engine()
    add_first = Mock(side_effect=[engine.add_request(PROMPTS[0], GREEDY), KeyboardInterrupt])
    monkeypatch.setattr(engine, "add_request", add_first)
    with pytest.raises(KeyboardInterrupt):
        list(call(engine, PROMPTS[:2], GREEDY))
    assert engine.scheduler.idle


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("failing", [0, 1, 4])
def test_a_step_that_was_not_launched_is_launched_again(
    overlap: bool, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it counts as computed: neither tokens nor pages that others could share."""
    engine = tiny_engine(overlap=overlap)
    real, calls = engine.runner.run, itertools.count()

    def run_or_fail(*args: Any) -> Any:
        if next(calls) == failing:
            raise torch.cuda.OutOfMemoryError("some other program's")
        return real(*args)

    monkeypatch.setattr(engine.runner, "run", run_or_fail)
    ids = [engine.add_request(prompt, GREEDY) for prompt in PROMPTS]
    # None can end before the fifth step.
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run(engine)
    engine.check_integrity()
    finished = run(engine)
    assert [finished[request_id].token_ids for request_id in ids] == expected(PROMPTS)
    assert serve(engine, PROMPTS, GREEDY) == expected(PROMPTS)


@pytest.mark.parametrize("overlap", [True, False])
def test_an_engine_that_cannot_go_on_says_so(overlap: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that schedules nothing while requests wait would be called for ever."""
    engine = tiny_engine(overlap=overlap)
    monkeypatch.setattr(engine.scheduler, "schedule", lambda: ([], []))
    engine.add_request(PROMPTS[0], GREEDY)
    with pytest.raises(RuntimeError, match=r"stuck: .* 0 requests running, 1 waiting, 64 blocks free"):
        engine.step()


# Adopted contexts.


def test_adopted_contexts_decode_and_are_never_shared() -> None:
    """Pages that hold what they hold are nobody's prefix."""
    engine = tiny_engine()
    engine.adopt(PROMPTS[5], GREEDY)
    run(engine)
    assert serve(engine, [PROMPTS[5]], GREEDY) == expected([PROMPTS[5]])
    assert engine.blocks.num_hit_tokens == 0


def test_an_adopted_context_with_the_right_pages_gives_the_right_tokens() -> None:
    """As if its prompt had just been computed: the pages are still those of the request before."""
    engine = tiny_engine(enable_prefix_caching=False, max_num_seqs=1, num_kv_blocks=6)
    first: RequestOutput = engine.generate([PROMPTS[5]], replace(GREEDY, max_tokens=1))[0]
    # Released back to front, so the free list hands them out in the opposite order: turn it round.
    engine.blocks._free = type(engine.blocks._free).fromkeys(range(6))
    request_id = engine.adopt([*PROMPTS[5], *first.token_ids], replace(GREEDY, max_tokens=23))
    assert run(engine)[request_id].token_ids == expected([PROMPTS[5]])[0][1:]


def test_adopting_without_room_is_an_error_and_takes_nothing() -> None:
    """The engine goes on."""
    engine = tiny_engine(num_kv_blocks=6)
    engine.adopt(PROMPTS[5], replace(GREEDY, max_tokens=1))
    with pytest.raises(RequestError, match="no room to adopt"):
        engine.adopt(PROMPTS[5], replace(GREEDY, max_tokens=1))
    engine.check_integrity()
    run(engine)
    assert not engine.has_work


# Metrics, and what an engine is.


def test_snapshot_adds_up() -> None:
    """Every figure against what was asked for."""
    engine = tiny_engine(num_kv_blocks=9, max_num_batched_tokens=64)
    serve(engine, PROMPTS[:5], GREEDY)
    engine.add_request([], GREEDY)
    figures = engine.snapshot()
    assert figures["requests"] == 6
    assert figures["failed_requests"] == 1
    assert figures["generated_tokens"] == 5 * 24
    assert figures["preemptions"] > 0
    assert figures["prefilled_tokens"] > sum(map(len, PROMPTS[:5]))
    assert figures["blocks"] == 9
    assert figures["used_blocks"] == 0
    assert figures["peak_blocks"] == 9
    assert figures["no graph: CUDA graphs are off"] == figures["steps"] == engine.metrics.num_steps
    assert figures["graph_replays"] == figures["graph_captures"] == figures["dynamo_compilations"] == 0
    assert all(type(value) is float for value in figures.values())


def test_engines_in_one_process_do_not_know_each_other() -> None:
    """Two at once, step by step in turn."""
    engines = [tiny_engine(num_kv_blocks=12), tiny_engine(overlap=False, max_num_seqs=2)]
    for engine in engines:
        for prompt in PROMPTS[:4]:
            engine.add_request(prompt, GREEDY)
    finished: list[dict[int, RequestOutput]] = [{}, {}]
    while any(engine.has_work for engine in engines):
        for engine, outputs in zip(engines, finished, strict=True):
            if engine.has_work:
                outputs |= {o.request_id: o for o in engine.step() if o.finished}
    for outputs in finished:
        assert [outputs[i].token_ids for i in range(4)] == expected(PROMPTS[:4])


def test_a_text_prompt_is_encoded_by_the_model_s_tokenizer() -> None:
    """And its ids are in the output."""
    engine = tiny_engine(loaded=with_tokenizer())
    by_text, by_ids = engine.generate(["some text", tiny_tokenizer().encode("some text")], GREEDY)
    assert by_text.prompt_token_ids == by_ids.prompt_token_ids == tiny_tokenizer().encode("some text")
    assert by_text.token_ids == by_ids.token_ids


def test_logprobs_come_with_their_tokens() -> None:
    """One entry per token, the greedy token the likeliest, in a batch where others ask for none."""
    sampling = replace(GREEDY, logprobs=2)
    asked, plain = tiny_engine().generate([PROMPTS[2], PROMPTS[3]], [sampling, GREEDY])
    assert plain.logprobs is None
    assert asked.logprobs is not None
    assert [entry.top[0][0] for entry in asked.logprobs] == asked.token_ids == expected([PROMPTS[2]])[0]
    assert all(entry.chosen == entry.top[0][1] for entry in asked.logprobs)
