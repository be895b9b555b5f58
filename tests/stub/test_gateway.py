"""What clients see: routing, streams, errors, the queue."""

import concurrent.futures
import json
import threading
import time

import httpx
import openai
import pytest

from tests.stub.conftest import MIB, MakeModel, MakeServer, starts_of
from tests.support.server import ServerProcess
from tests.support.wait import wait_until

CONFIG = '[[devices.simulated]]\nmemory = "8GiB"\n[server]\nheartbeat = "0.2s"\nmax_body = "1MiB"\n'


@pytest.fixture
def server(make_server: MakeServer) -> ServerProcess:
    return make_server(CONFIG)


def sdk(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


def ask(server: ServerProcess, model: str, text: str = "hello", **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)


def error_of(response: httpx.Response) -> dict[str, object]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)
    return dict(error)


def test_many_requests_for_a_cold_model_cause_one_start(
    server: ServerProcess, make_model: MakeModel
) -> None:
    path = make_model("m", load_s=0.5)
    server.add_model("m", path)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(server, "m").status_code, range(16)))
    assert answers == [200] * 16
    assert starts_of(path) == 1


def test_the_body_reaches_the_engine_byte_for_byte(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    raw = b'{ "unknown" : 1e2,\n"model":"m", "messages":[{"role":"user","content":"\\u00e9"}] }'
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=raw,
        headers={"authorization": "Bearer secret", "x-request-id": "abc-1"},
    )
    assert response.json()["raw"] == raw.decode()
    assert "secret" not in response.json()["head"]
    assert "x-request-id: abc-1" in response.json()["head"]
    assert response.headers["x-request-id"] == "abc-1"


def test_a_waiting_stream_is_kept_alive_while_the_model_loads(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m", load_s=1.0))
    body = {"model": "m", "messages": [], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert answer.status_code == 200
    assert lines[0].startswith(": ")
    assert lines[-1] == "data: [DONE]"


def test_an_engine_error_after_a_heartbeat_is_an_error_event(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m", load_s=1.0))
    with pytest.raises(openai.APIError, match="no"):
        list(
            sdk(server).chat.completions.create(
                model="m", messages=[{"role": "user", "content": "bad request"}], stream=True
            )
        )


def test_errors_have_the_shape_that_sdks_read(server: ServerProcess, make_model: MakeModel) -> None:
    server.add_model("m", make_model("m"))
    unknown = ask(server, "nope")
    assert (unknown.status_code, error_of(unknown)["code"]) == (404, "model_not_found")
    url = f"{server.url}/v1/chat/completions"
    for content in (b"{bad", b"[]", b"", b"\xff{}", b'{"model": 5}', b'{"messages": []}'):
        response = httpx.post(url, content=content)
        assert response.status_code == 400, content
        assert error_of(response)["type"] == "invalid_request_error"
    large = httpx.post(url, content=b"x" * (2 * 1024**2))
    assert large.status_code == 413
    error_of(large)
    engine = ask(server, "m", "bad request")
    assert (engine.status_code, error_of(engine)["code"]) == (400, None)
    assert error_of(httpx.get(f"{server.url}/v1/nothing"))["type"] == "invalid_request_error"
    assert httpx.get(url).status_code == 405
    assert error_of(httpx.get(f"{server.url}/v1/models/nope"))["code"] == "model_not_found"
    task = httpx.post(f"{server.url}/v1/embeddings", json={"model": "m", "input": "x"})
    assert (task.status_code, error_of(task)["param"]) == (400, "model")


def test_development_endpoints_of_the_engine_are_not_reachable(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    for path in ("/v1/../sleep", "/v1/load_lora_adapter", "/sleep", "/collective_rpc", "/metrics"):
        response = httpx.post(f"{server.url}{path}", json={"model": "m"})
        assert response.status_code in {401, 404, 405}, path


def test_a_full_queue_is_refused_with_the_time_to_come_back(
    make_server: MakeServer, make_model: MakeModel
) -> None:
    server = make_server(CONFIG + "[slots]\nmax_queue = 2\n")
    server.add_model("m", make_model("m", load_s=2.0))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask, server, "m") for _ in range(2)]
        wait_until(lambda: server.model("m")["waiting"] == 2)
        refused = ask(server, "m")
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert [each.result().status_code for each in waiting] == [200, 200]


def test_a_load_that_fails_is_explained_to_everybody_who_waits(
    server: ServerProcess, make_model: MakeModel
) -> None:
    path = make_model("m", fails="oom", load_s=0.3)
    server.add_model("m", path)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(server, "m"), range(4)))
    for answer in answers:
        assert answer.status_code == 503
        assert "CUDA out of memory" in str(error_of(answer)["message"])
        assert error_of(answer)["code"] == "model_load_failed"
    started = time.monotonic()
    assert ask(server, "m").status_code == 503
    assert time.monotonic() - started < 0.5
    assert starts_of(path) == 1
    assert server.model("m")["failure"]["cause"] == "out_of_memory"


def test_an_engine_that_dies_amid_a_stream_ends_it_with_an_error_and_no_done(
    server: ServerProcess, make_model: MakeModel
) -> None:
    path = make_model("m")
    server.add_model("m", path)
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "die amid"}],
        "stream": True,
        "max_tokens": 6,
    }
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as answer:
        events = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    assert "[DONE]" not in events
    error = json.loads(events[-1])["error"]
    assert error["code"] == "engine_died"
    assert ask(server, "m").status_code == 200
    assert starts_of(path) == 2


def test_an_engine_that_dies_before_its_answer_is_a_503_that_sdks_retry(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    response = ask(server, "m", "die before")
    assert (response.status_code, error_of(response)["code"]) == (503, "engine_died")
    assert response.headers["retry-after"] == "1"


def test_an_error_event_of_the_engine_is_passed_on_in_the_right_shape(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    with pytest.raises(openai.APIError, match="boom"):
        list(
            sdk(server).chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "error amid"}],
                stream=True,
                max_tokens=4,
            )
        )


def test_a_client_that_leaves_frees_its_place(server: ServerProcess, make_model: MakeModel) -> None:
    server.add_model("m", make_model("m", token_s=0.05))
    server.load("m")
    body = {"model": "m", "messages": [], "stream": True, "max_tokens": 1000}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        wait_until(lambda: server.model("m")["in_flight"] == 1)
    wait_until(lambda: server.model("m")["in_flight"] == 0, 3.0)


def test_a_client_that_leaves_the_queue_is_forgotten(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m", load_s=3.0))
    done = threading.Event()

    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{server.url}/v1/chat/completions",
                json={"model": "m", "messages": []},
                timeout=0.5,
            )
        done.set()

    thread = threading.Thread(target=leave)
    thread.start()
    wait_until(lambda: server.model("m")["waiting"] == 1)
    wait_until(lambda: server.model("m")["waiting"] == 0, 3.0)
    thread.join()
    assert done.is_set()


def test_stock_sdk_lists_chats_streams_and_embeds(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("chat", make_model("chat"))
    server.add_model("emb", make_model("emb"), task="embed", memory_bytes=64 * MIB)
    client = sdk(server)
    assert [model.id for model in client.models.list()] == ["chat", "emb"]
    assert client.models.retrieve("chat").id == "chat"
    whole = client.chat.completions.create(model="chat", messages=[])
    assert whole.choices[0].message.content == "xxxxx"
    stream = client.chat.completions.create(model="chat", messages=[], stream=True, max_tokens=3)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "t0 t1 t2 "
    assert client.embeddings.create(model="emb", input="x").data[0].embedding == [0.5, 0.5]


def test_web_pages_are_kept_out_where_no_key_is_asked_for(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m"))
    body = {"model": "m", "messages": []}
    url = f"{server.url}/v1/chat/completions"
    for headers in (
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"host": "127.0.0.1.evil.example"},
    ):
        response = httpx.post(url, json=body, headers=headers)
        assert response.status_code == 403, headers
        error_of(response)
    for headers in ({"origin": "http://localhost:3000"}, {"host": "localhost:8000"}):
        assert httpx.post(url, json=body, headers=headers).status_code == 200, headers
    assert starts_of(make_model("m")) == 1


def test_an_embedding_request_that_asks_for_a_stream_is_answered_as_it_is(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("e", make_model("e", load_s=1.0), task="embed", memory_bytes=64 * MIB)
    body = {"model": "e", "input": "x", "stream": True}
    response = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=30)
    assert response.status_code == 200
    assert response.json()["data"][0]["embedding"] == [0.5, 0.5]


def test_management_over_tcp_shows_nothing_without_a_key(server: ServerProcess) -> None:
    for path in ("/admin/v1/schema", "/admin/v1/state", "/admin/v1/nothing", "//admin/v1/state"):
        response = httpx.get(f"{server.url}{path}")
        assert response.status_code in {401, 404}, path
        assert set(response.json()["error"]) == {"code", "message", "hint", "param"}


def test_a_log_is_followed_from_its_first_line_without_gap_or_repetition(
    server: ServerProcess, make_model: MakeModel
) -> None:
    server.add_model("m", make_model("m", load_s=1.0, prints=500))
    server.admin("POST", "/models/m/load")
    wait_until(lambda: server.model("m")["state"] == "loading")
    transport = httpx.HTTPTransport(uds=str(server.paths.admin_socket))
    numbers: list[int] = []
    with (
        httpx.Client(transport=transport, base_url="http://appliance", timeout=30) as client,
        client.stream(
            "GET", "/admin/v1/engines/m/logs", params={"from": 1, "n": 10, "follow": "true"}
        ) as response,
    ):
        for line in response.iter_lines():
            if line.startswith("data: "):
                window = json.loads(line[6:])
                count = len(window["lines"])
                numbers += range(window["first_line"], window["first_line"] + count)
            if len(numbers) > 490:
                break
    assert numbers == list(range(1, len(numbers) + 1))
