"""Real answers through the stock OpenAI SDK."""

import concurrent.futures

import httpx
import openai
import pytest

from tests.support.server import ServerProcess
from tests.support.wait import wait_until

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def sdk(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=240)


def test_sixteen_requests_for_the_unloaded_model_cause_one_start_and_all_are_answered(
    server: ServerProcess, sdk: openai.OpenAI
) -> None:
    assert server.model("smollm2-135m")["state"] == "stopped"

    def ask(_: int) -> str | None:
        answer = sdk.chat.completions.create(
            model="smollm2-135m", messages=QUESTION, temperature=0, max_tokens=16
        )
        return answer.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
    assert all("Paris" in (answer or "") for answer in answers), answers
    starts = list(server.paths.engine_logs.glob("smollm2-135m.*.log"))
    assert len(starts) == 1


def test_models_are_listed(sdk: openai.OpenAI) -> None:
    models = {model.id: model for model in sdk.models.list()}
    assert set(models) == {"smollm2-135m", "minilm"}
    assert models["smollm2-135m"].max_model_len == 2048  # type: ignore[attr-defined]


def test_a_stream_arrives_in_pieces_and_ends_with_usage(sdk: openai.OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model="smollm2-135m",
            messages=QUESTION,
            temperature=0,
            max_tokens=16,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert len(chunks) > 5
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_completions_and_logprobs_pass_through(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(
        model="smollm2-135m",
        prompt="The capital of France is",
        max_tokens=3,
        temperature=0,
        logprobs=2,
    )
    assert "Paris" in answer.choices[0].text
    assert answer.choices[0].logprobs is not None


def test_embeddings_of_similar_sentences_are_closer(
    server: ServerProcess, sdk: openai.OpenAI
) -> None:
    wait_until(lambda: server.model("minilm")["state"] == "ready", 180)
    data = sdk.embeddings.create(
        model="minilm", input=["a cat sleeps", "a kitten naps", "the stock market fell"]
    ).data
    cat, kitten, market = (each.embedding for each in data)
    assert len(cat) == 384

    def dot(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert dot(cat, kitten) > dot(cat, market) + 0.2


def test_engine_errors_reach_the_sdk_as_its_own_exceptions(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "word " * 5000}]
        )
    assert "maximum context length" in too_long.value.message
    assert too_long.value.code is None
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert unknown.value.code == "model_not_found"


def test_a_client_that_leaves_cancels_the_engines_work(server: ServerProcess) -> None:
    body = {
        "model": "smollm2-135m",
        "messages": QUESTION,
        "stream": True,
        "max_tokens": 1500,
        "ignore_eos": True,
    }
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        wait_until(lambda: running_requests(server) == 1)
    wait_until(lambda: running_requests(server) == 0, 5)


def test_memory_and_progress_of_a_real_load_are_reported(server: ServerProcess) -> None:
    model = server.model("smollm2-135m")
    assert model["memory_bytes"] > 500 * 1024**2
    assert model["idle_unload_at"] is not None
    device = server.state()["devices"][0]
    assert device["used_bytes"] >= model["memory_bytes"]
    log = server.admin("GET", "/engines/smollm2-135m/logs?tail=5").json()
    assert log["total_lines"] > 20
    assert len(log["lines"]) == 5


def running_requests(server: ServerProcess) -> int:
    """What the engine itself says."""
    engine_id = server.model("smollm2-135m")["engine_id"]
    transport = httpx.HTTPTransport(uds=str(server.paths.engine_records / f"{engine_id}.sock"))
    with httpx.Client(transport=transport, base_url="http://engine") as client:
        for line in client.get("/metrics").text.splitlines():
            if line.startswith("vllm:num_requests_running"):
                return int(float(line.rsplit(" ", 1)[1]))
    raise AssertionError("the engine tells no running requests")
