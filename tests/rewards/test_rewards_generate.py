"""Generation end to end against a local server: what is asked, what is kept, every way in which it can go wrong."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rewards_fake_api import Reply, error, fake_api
from spec_templates import write_spec

from sb3_tgrpo.cli import reward as cli
from sb3_tgrpo.rewards import RewardError, generate_reward, load_task_facts
from sb3_tgrpo.rewards.episodes.kinematic import kinematic_traces
from sb3_tgrpo.rewards.episodes.measure import measure
from sb3_tgrpo.rewards.episodes.traces import save_traces
from sb3_tgrpo.rewards.generation import prompt as prompts
from sb3_tgrpo.rewards.generation.api import DeadlineError, FatalAPIError, Question, ask
from sb3_tgrpo.rewards.generation.cost import estimate_cost
from sb3_tgrpo.run_folder import RunFolder

TASK = "libero_goal-7"
FACTS = load_task_facts(TASK)
TRACES = kinematic_traces(FACTS, n_experts=2)
SPEC = write_spec(FACTS, measure(FACTS, TRACES)).model_dump(mode="json")
GOOD = json.dumps(SPEC)


def weak() -> str:
    """A valid document with a rung that no episode reaches."""
    document = json.loads(GOOD)
    document["tracks"][0]["stages"][2]["ladder"]["rungs"][-1]["threshold"] = 2.0
    return json.dumps(document)


@pytest.fixture(autouse=True)
def _no_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_PROFILE", "SB3_TGRPO_MODEL"):
        monkeypatch.delenv(name, raising=False)


def generate(*replies: Reply, **settings: Any) -> tuple[Any, Any]:
    """The result and the server's log."""
    naps: list[float] = []
    defaults: dict[str, Any] = {"candidates": 1, "traces": TRACES, "deadline": 60.0, "sleep": naps.append}
    with fake_api(*replies) as api:
        made = generate_reward(TASK, api.client(), **(defaults | settings))
    api.naps = naps
    return made, api


def test_a_good_answer_is_verified_and_the_request_is_as_the_api_wants_it(tmp_path: Path) -> None:
    made, api = generate(Reply(text=GOOD), out=tmp_path, model="claude-opus-5-5")
    assert made.report.passed
    assert made.program.task == TASK
    assert [attempt.outcome for attempt in made.attempts] == ["verified"]
    request, headers = api.requests[0], api.headers[0]
    assert headers["authorization"] == "Bearer test-key"
    assert headers["anthropic-version"]
    assert not {"temperature", "top_p", "top_k"} & set(request)
    assert request["model"] == "claude-opus-5-5"
    assert request["max_tokens"] < 21_333
    assert request["system"][-1]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    schema = request["output_config"]["format"]["schema"]
    assert request["output_config"]["format"]["type"] == "json_schema"
    assert schema["additionalProperties"] is False
    facts = request["messages"][0]["content"]
    for words in ("turn on the stove", "flat_stove_1_button above 0.5", "wine_bottle_1", "measured in successful episodes"):
        assert words in facts
    # 1200 fresh and 6000 cached-for-an-hour input tokens at 4 and 8 dollars, 800 output tokens at 20, per million
    assert made.cost_usd == pytest.approx((1200 * 4 + 6000 * 8 + 800 * 20) / 1e6)
    kept = json.loads((tmp_path / "candidate-1-round-1.answer.json").read_text())
    assert kept["answer"]["text"] == GOOD
    assert kept["answer"]["usage"]["output_tokens"] == 800
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["origin"] == "generated"
    assert result["prompt_sha256"] == prompts.prompt_hash()
    assert json.loads((tmp_path / "spec.json").read_text()) == SPEC
    assert "test-key" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_the_fixed_prompt_is_the_same_for_every_task() -> None:
    _, one = generate(Reply(text=GOOD))
    other = load_task_facts("libero_object-4")
    traces = kinematic_traces(other, n_experts=2)
    spec = write_spec(other, measure(other, traces)).to_json()
    with fake_api(Reply(text=spec)) as api:
        generate_reward("libero_object-4", api.client(), candidates=1, traces=traces)
    assert api.requests[0]["system"] == one.requests[0]["system"]
    assert api.requests[0]["messages"] != one.requests[0]["messages"]


def test_the_verifiers_table_goes_back_and_the_next_answer_wins() -> None:
    made, api = generate(Reply(text=weak()), Reply(text=GOOD))
    assert [attempt.outcome for attempt in made.attempts] == ["failed checks", "verified"]
    conversation = api.requests[1]["messages"]
    assert [turn["role"] for turn in conversation] == ["user", "assistant", "user"]
    assert conversation[1]["content"] == weak()
    assert "V8   expert replay        FAIL" in conversation[2]["content"]
    assert "no step passes rung 2 of turnon_flat_stove_1.turn" in conversation[2]["content"]


def test_invalid_output_is_explained_and_fences_are_taken_off() -> None:
    bad = json.loads(GOOD)
    bad["tracks"][0]["stages"][0]["done"][0]["variable"]["b"] = "knob"
    made, api = generate(Reply(text="I cannot"), Reply(text=json.dumps(bad)), Reply(text=f"```json\n{GOOD}\n```"))
    assert [attempt.outcome for attempt in made.attempts] == ["invalid", "invalid", "verified"]
    assert "flat_stove_1_knob" in api.requests[2]["messages"][-1]["content"], "the valid names are listed"


def test_an_answer_is_never_taken_for_a_path(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(GOOD)
    made, _ = generate(Reply(text=str(path)), Reply(text=GOOD))
    assert [attempt.outcome for attempt in made.attempts] == ["invalid", "verified"]


def test_the_best_of_several_candidates_wins() -> None:
    poorer = json.loads(GOOD)
    poorer["success_points"] = 1.0
    made, api = generate(Reply(text=json.dumps(poorer)), Reply(text=GOOD), candidates=2)
    assert len(api.requests) == 2
    assert made.spec.success_points == 5.0
    assert len(made.attempts) == 2


def test_without_a_verified_candidate_the_error_says_what_failed(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="candidate 1 round 2: failed checks: V"):
        generate(Reply(text=weak()), Reply(text=weak()), max_rounds=2, out=tmp_path)
    assert len(list(tmp_path.glob("*.answer.json"))) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        error(429, "rate_limit_error"),
        error(500, "api_error"),
        error(529, "overloaded_error"),
        error(503, "api_error"),
        error(408, "timeout_error"),
        Reply("drop"),
        Reply("html"),
        Reply("wrong_body"),
    ],
    ids=["429", "500", "529", "503", "408", "drop", "html", "wrong body"],
)
def test_passing_trouble_is_waited_out(trouble: Reply) -> None:
    made, api = generate(trouble, trouble, Reply(text=GOOD))
    assert made.report.passed
    assert len(api.requests) == 3
    assert made.attempts[0].answer.attempts == 3
    assert len(api.naps) == 2
    assert all(0.0 <= nap <= 60.0 for nap in api.naps)


@pytest.mark.parametrize("kind", ["drop_midway", "stream_error", "stream_ends"])
def test_broken_streams_are_asked_for_again(kind: str) -> None:
    made, api = generate(Reply(kind, text=GOOD), Reply(text=GOOD), stream=True)
    assert made.report.passed
    assert all(request["stream"] for request in api.requests)
    assert made.attempts[0].answer.text == GOOD


@pytest.mark.parametrize(
    ("status", "error_type", "details"),
    [
        (400, "invalid_request_error", None),
        (401, "authentication_error", None),
        (402, "billing_error", None),
        (403, "permission_error", None),
        (404, "not_found_error", None),
        (413, "request_too_large", None),
        (422, "invalid_request_error", None),
        (429, "rate_limit_error", {"error_code": "contract_spend_limit_reached"}),
    ],
)
def test_lasting_trouble_stops_at_once_and_names_the_request(status: int, error_type: str, details: Any) -> None:
    reply = error(status, error_type)
    reply.details = details
    with fake_api(reply, Reply(text=GOOD)) as api:
        with pytest.raises(RewardError, match=rf"{status} {error_type}: no: {error_type} \(request req_1\)"):
            generate_reward(TASK, api.client(), candidates=3, traces=TRACES, deadline=20.0, sleep=lambda _: None)
    assert len(api.requests) == 1


def test_the_deadline_holds_whatever_the_server_asks_for() -> None:
    start = time.monotonic()
    with fake_api(Reply("error", status=429, error_type="rate_limit_error", headers={"retry-after": "86400"})) as api:
        with pytest.raises(RewardError, match="no answer before the deadline"):
            generate_reward(TASK, api.client(), traces=TRACES, deadline=60.0, sleep=time.sleep)
    assert time.monotonic() - start < 60.0


def test_a_cut_off_answer_is_asked_for_once_more_with_more_room(tmp_path: Path) -> None:
    made, api = generate(Reply(text=GOOD[:200], stop_reason="max_tokens"), Reply(text=GOOD), out=tmp_path)
    assert made.report.passed
    assert [request.get("stream", False) for request in api.requests] == [False, True]
    assert api.requests[1]["max_tokens"] > api.requests[0]["max_tokens"]
    cut = Reply(text=GOOD[:200], stop_reason="max_tokens")
    with pytest.raises(RewardError, match="cut off"):
        generate(cut, cut, max_rounds=1)


def test_cut_off_answers_are_counted_and_kept(tmp_path: Path) -> None:
    whole, _ = generate(Reply(text=GOOD))
    cut = Reply(text=GOOD[:200], stop_reason="max_tokens")
    made, _ = generate(cut, Reply(text=GOOD), out=tmp_path)
    assert made.cost_usd == pytest.approx(2 * whole.cost_usd) and made.provenance["output_tokens"] == 1600
    files = [tmp_path / f"candidate-1-round-1.answer{number}.json" for number in ("", "-2")]
    kept = [json.loads(file.read_text()) for file in files]
    assert [document["answer"]["text"] for document in kept] == [GOOD[:200], GOOD]
    assert [document["complete"] for document in kept] == [False, True]
    reused, api = generate(out=tmp_path)
    assert not api.requests and reused.cost_usd == made.cost_usd
    # Cut off, and then no answer any more: the first candidate's reward has that cost too.
    lasting, _ = generate(Reply(text=GOOD), cut, error(401, "authentication_error"), candidates=2)
    assert lasting.cost_usd == pytest.approx(2 * whole.cost_usd) and lasting.provenance["input_tokens"] == 2400


def test_a_refusal_ends_the_candidate_and_names_its_category() -> None:
    made, _ = generate(Reply(text="", stop_reason="refusal", refusal="frontier_llm"), Reply(text=GOOD), candidates=2)
    assert [attempt.outcome for attempt in made.attempts] == ["refused", "verified"]
    assert "frontier_llm" in made.attempts[0].problems[0]
    with pytest.raises(RewardError, match="refused, category frontier_llm"):
        generate(Reply(text="", stop_reason="refusal", refusal="frontier_llm"))


def test_kept_answers_are_not_paid_for_twice(tmp_path: Path) -> None:
    with pytest.raises(RewardError):
        generate(Reply(text=weak()), error(401, "authentication_error"), out=tmp_path)
    made, api = generate(Reply(text=GOOD), out=tmp_path)
    assert len(api.requests) == 1, "round 1 came from the folder"
    assert [attempt.outcome for attempt in made.attempts] == ["failed checks", "verified"]
    _, api = generate(Reply(text=weak()), Reply(text=GOOD), out=tmp_path, model="claude-sonnet-5-5")
    assert len(api.requests) == 2, "another model is another question"


def test_again_asks_although_there_is_an_answer(tmp_path: Path) -> None:
    generate(Reply(text=GOOD), out=tmp_path)
    _, api = generate(Reply(text=GOOD + " "), out=tmp_path, again=True)
    assert len(api.requests) == 1
    texts = [json.loads(path.read_text())["answer"]["text"] for path in sorted(tmp_path.glob("*.answer*.json"))]
    assert sorted(texts) == [GOOD, GOOD + " "], "what was paid for stays"
    _, api = generate(out=tmp_path)
    assert not api.requests


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_answer_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "candidate-1-round-1.answer.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"candidate-1-round-1\.answer\.json is no kept answer.*delete it"):
        generate(Reply(text=GOOD), out=tmp_path)
    file.unlink()
    assert generate(Reply(text=GOOD), out=tmp_path)[0].report.passed


def test_answers_are_kept_before_they_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.rewards.generation import generate as module

    generate(Reply(text=GOOD))  # the prompt's own examples are compiled once

    def explode(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(module.RewardProgram, "from_spec", explode)
    with pytest.raises(RuntimeError, match="planted"):
        generate(Reply(text=GOOD), out=tmp_path)
    kept = json.loads((tmp_path / "candidate-1-round-1.answer.json").read_text())
    assert kept["answer"]["text"] == GOOD
    assert kept["answer"]["cost_usd"] > 0


def test_the_key_comes_from_the_environment_at_call_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    with fake_api(Reply(text=GOOD)) as api:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        with pytest.raises(RewardError, match="ANTHROPIC_API_KEY"):
            generate_reward(TASK, traces=TRACES, candidates=1, deadline=20.0)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "from-the-environment")
        generate_reward(TASK, traces=TRACES, candidates=1, deadline=20.0)
    assert api.headers[0]["authorization"] == "Bearer from-the-environment"


QUESTION = Question("claude-opus-5-5", "s", [{"role": "user", "content": "u"}])


def test_pauses_grow_whatever_the_server_asks_for_and_end_with_the_deadline() -> None:
    naps: list[float] = []
    replies = [error(529, "overloaded_error", **{"retry-after-ms": "0"})] * 20
    with fake_api(*replies) as api, pytest.raises(DeadlineError, match="overloaded_error"):
        ask(api.client(), QUESTION, deadline=time.monotonic() + 20.0, sleep=naps.append)
    assert naps == [1.0, 2.0, 4.0, 8.0, 16.0] and len(api.requests) == 6
    assert issubclass(FatalAPIError, RewardError)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["wrong_body", "page", "no_json", "no_content", "odd_usage"])
def test_answers_that_are_no_messages_are_told_and_retried_within_bounds(kind: str, stream: bool) -> None:
    said: list[str] = []
    naps: list[float] = []
    with fake_api(Reply(kind), Reply(kind), Reply(text=GOOD)) as api:
        answer = ask(
            api.client(), QUESTION, deadline=time.monotonic() + 60.0, stream=stream, sleep=naps.append, tell=said.append
        )
    assert answer.text == GOOD and answer.attempts == 3 and naps == [1.0, 2.0]
    assert "the answer is no message of the API" in said[0] and said[0].endswith("asking again in 1 s (attempt 2)")
    with fake_api(*[Reply(kind)] * 20) as api, pytest.raises(FatalAPIError, match="no message of the API"):
        ask(api.client(), QUESTION, deadline=time.monotonic() + 600.0, stream=stream, sleep=lambda _: None)
    assert len(api.requests) == 5


def test_answers_pauses_and_cost_are_told_as_they_come() -> None:
    said: list[str] = []
    cut = Reply(text=GOOD[:200], stop_reason="max_tokens")
    generate(error(529, "overloaded_error"), cut, Reply(text=weak()), Reply(text=GOOD), tell=said.append)
    assert [line.split(";")[0] for line in said] == [
        "asking claude-opus-5-5 (candidate 1 round 1)",
        "OverloadedError 529 overloaded_error: no: overloaded_error (request req_1)",
        "the answer was cut off: it reached the limit of its tokens",
        "candidate 1, answer 1 of at most 3: failed checks: V8, V14",
        "asking claude-opus-5-5 (candidate 1 round 2)",
        "candidate 1, answer 2 of at most 3: verified",
    ]
    assert said[3].endswith("; $0.138 so far") and said[5].endswith("; $0.206 so far")  # 0.0688 for each of three answers
    with pytest.raises(RewardError, match="cut off: the stream ended before it did"):
        generate(Reply("stream_ends", text=GOOD), Reply("stream_ends", text=GOOD), max_rounds=1, stream=True)


def test_costs_by_hand() -> None:
    usage = {"input_tokens": 1_000_000, "output_tokens": 100_000, "cache_read_input_tokens": 1_000_000}
    assert estimate_cost("claude-opus-5-5", usage) == pytest.approx(4.0 + 2.0 + 0.4)
    assert estimate_cost("claude-of-the-future", usage) is None


def run_cli(*argv: str) -> int:
    """``sb3-tgrpo reward`` with these arguments."""
    parser = argparse.ArgumentParser()
    cli.add_parser(parser.add_subparsers(required=True))
    args = parser.parse_args(["reward", *argv])
    return int(args.run(args))


def test_files_of_verify_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo import rewards

    def late(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("checked too late")

    monkeypatch.setattr(rewards, "verify_reward", late)
    for option, name, message in (
        ("--json", "no/x.json", "there is no folder .*no; make it"),
        ("--json", ".", r"is a folder: name a file in it, such as .*report\.json"),
        ("--traces", "traces.py", r"--traces .*traces\.py: episodes are in a \.npz file"),
    ):
        with pytest.raises(ValueError, match=message):
            run_cli("verify", TASK, option, str(tmp_path / name))


def test_a_wrong_key_stops_a_suite_and_a_failed_task_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.rewards.generation import generate as module

    monkeypatch.setattr(module, "task_traces", lambda facts: TRACES)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    arguments = ("generate", TASK, TASK, "--candidates", "1", "--max-rounds", "1", "--deadline", "30")
    with fake_api(error(401, "authentication_error"), Reply(text=GOOD)) as api:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        with pytest.raises(FatalAPIError, match="authentication_error"):
            run_cli(*arguments, "--out", str(tmp_path / "key"))
    assert len(api.requests) == 1
    with fake_api(Reply(text="{}"), Reply(text=GOOD)) as api:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        plots = tmp_path / "plots"
        assert run_cli(*arguments, "--out", str(tmp_path / "answer"), "--again", "--plots", str(plots)) == 1
    assert (plots / "rejections.png").is_file()


def test_the_command_generates_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sb3_tgrpo.rewards.generation import generate as module

    monkeypatch.setattr(module, "task_traces", lambda facts: TRACES)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    with fake_api(Reply(text=GOOD)) as api:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        assert run_cli("generate", TASK, "--out", str(tmp_path), "--candidates", "1", "--deadline", "30") == 0
        assert run_cli("generate", TASK, "--out", str(tmp_path), "--candidates", "1") == 0
    assert len(api.requests) == 1
    with fake_api(Reply(text=GOOD)) as api:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", api.url)
        again = ("generate", TASK, "--out", str(tmp_path), "--candidates", "1", "--again", "--deadline", "30")
        with RunFolder(tmp_path).locked(), pytest.raises(OSError, match="in use by another process"):
            run_cli(*again)
        assert api.requests == [] and run_cli(*again) == 0
    assert len(api.requests) == 1
    out = capsys.readouterr().out
    assert "verified after 1 answer," in out
    assert "there is a result" in out
    spec = tmp_path / TASK / "spec.json"
    traces = tmp_path / "traces.npz"
    save_traces(traces, TRACES)
    report = tmp_path / "report.json"
    assert (
        run_cli("verify", str(spec), "--traces", str(traces), "--json", str(report), "--plots", str(tmp_path / "plots")) == 0
    )
    assert json.loads(report.read_text())[0]["passed"] is True
    assert len(list((tmp_path / "plots").glob("*.png"))) == 5
    assert "V20" in capsys.readouterr().out
    assert run_cli("verify", str(spec), "--traces", str(traces), "--payment", "per_step") == 1
    assert run_cli("show", str(spec)) == 0
    assert "def compute_reward(state, info):" in capsys.readouterr().out
