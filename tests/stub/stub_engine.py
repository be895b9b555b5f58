"""A program that behaves like a vLLM engine, well or badly: for faults that a real one does not
produce on demand. Its behaviour is read from `stub.json` in the model's directory; standard
library only.
"""

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from stub_memory import StubMemory

DEVELOPMENT = {
    "/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache",
    "/reset_mm_cache",
}  # fmt: skip
READING = "INFO 01-01 00:00:00 [api_utils.py:286] non-default args: {}"
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."


class StubEngine:
    def __init__(self, model: str, behaviour: dict, memory: StubMemory) -> None:
        self.model = model
        self.behaviour = behaviour
        self.memory = memory
        self.tokens = 0
        self.running = 0
        self.aborted = asyncio.Event()
        """Set for what is in flight when a sleep ends it."""
        self.idle = asyncio.Event()
        self.idle.set()

    async def serve(self, socket: str) -> None:
        server = await asyncio.start_unix_server(self.on_connection, socket)
        async with server:
            await server.serve_forever()

    async def on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = 0
                for line in head.split("\r\n"):
                    name, _, value = line.partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                body = await reader.readexactly(length)
                method, path, _ = head.split(" ", 2)
                await self.answer(method, path, body, writer, head)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(
        self, method: str, path: str, body: bytes, writer: asyncio.StreamWriter, head: str
    ) -> None:
        if path == "/health":
            self.reply(writer, 200, b"")
        elif path == "/v1/models":
            name = self.behaviour.get("serves", self.model)
            self.reply_json(writer, 200, {"data": [{"id": name, "max_model_len": 128}]})
        elif path == "/metrics":
            text = (
                f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}\n'
                f'vllm:num_requests_running{{engine="0"}} {self.running}\n'
                'vllm:num_requests_waiting{engine="0"} 0\n'
            )
            self.reply(writer, 200, text.encode())
        elif urlsplit(path).path in DEVELOPMENT and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            await self.develop(urlsplit(path).path, parse_qs(urlsplit(path).query), body, writer)
        elif urlsplit(path).path in DEVELOPMENT:
            self.reply_json(writer, 404, {"detail": "Not Found"})
        elif path == "/v1/embeddings":
            await self.memory.running.wait()
            vector = [0.5, 0.5] if self.memory.token() == "x" else [0.5, -0.5]
            data = [{"object": "embedding", "index": 0, "embedding": vector}]
            self.reply_json(writer, 200, {"object": "list", "data": data, "model": self.model})
        else:
            try:
                request = json.loads(body)
                int(request.get("max_tokens") or 5)
            except (ValueError, TypeError, AttributeError, RecursionError):
                self.reply_json(writer, 400, {"error": {"message": "bad body", "code": 400}})
                await writer.drain()
                return
            # While vLLM fetches a picture its core knows nothing of the request.
            self.running += "fetch" not in body.decode()
            self.idle.clear()
            try:
                await self.complete(request, writer, head, body)
            finally:
                self.running -= "fetch" not in body.decode()
                if not self.running:
                    self.idle.set()
        await writer.drain()

    async def develop(
        self, path: str, query: dict, body: bytes, writer: asyncio.StreamWriter
    ) -> None:
        """The endpoints that vLLM has with VLLM_SERVER_DEV_MODE=1."""
        fault = self.memory.fault
        if fault == f"hangs at {path}":
            await hang(spins=False)
        elif fault == f"dies at {path}":
            os._exit(3)
        elif fault == f"500 at {path}":
            self.reply_json(writer, 500, {"error": {"message": "boom", "code": 500}})
        elif path == "/is_sleeping":
            self.reply_json(writer, 200, {"is_sleeping": self.memory.is_sleeping})
        elif path == "/reset_prefix_cache":
            self.reply_json(writer, 200, {"success": not self.running})
        elif path == "/reset_mm_cache":
            self.reply(writer, 200, b"")
        elif path == "/collective_rpc":
            assert json.loads(body) == {"method": "reload_weights"}
            self.memory.load_weights()
            self.reply_json(writer, 200, {"results": [None]})
        elif path == "/sleep":
            await self.fall_asleep(query, writer)
        else:
            tags = query.get("tags")
            status = "awake" if self.memory.wake(tags) else "sleeping"
            self.reply_json(writer, 200, {"status": status, "tags": tags})

    async def fall_asleep(self, query: dict, writer: asyncio.StreamWriter) -> None:
        level, mode = query.get("level", ["1"])[0], query.get("mode", ["abort"])[0]
        if level not in {"0", "1", "2"} or mode not in {"abort", "wait", "keep"}:
            self.reply_json(writer, 400, {"error": {"message": "bad level or mode"}})
            return
        self.memory.running.clear()
        if mode == "abort":
            self.aborted.set()
            self.aborted = asyncio.Event()
        elif mode == "wait":
            await self.idle.wait()
        if level != "0":
            self.memory.sleep(int(level))
        self.reply_json(writer, 200, {"status": "sleeping", "level": int(level)})

    async def complete(
        self, request: dict, writer: asyncio.StreamWriter, head: str, raw: bytes
    ) -> None:
        text = json.dumps(request)
        if "die before" in text:
            os._exit(3)
        if "bad request" in text:
            error = {"message": "no", "type": "BadRequestError", "param": None, "code": 400}
            self.reply_json(writer, 400, {"error": error})
            return
        count = int(request.get("max_tokens") or 5)
        pause = float(self.behaviour.get("token_s", 0.01))
        # While vLLM is paused it accepts requests and leaves them without an answer.
        aborted = self.aborted
        await either(self.memory.running, aborted)
        if not request.get("stream"):
            await either(aborted, timeout_s=pause * count)
            self.tokens += count
            answer = self.whole_answer(count, is_aborted=aborted.is_set())
            self.reply_json(writer, 200, {**answer, "head": head, "raw": raw.decode()})
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        if "hang before" in text:
            await writer.drain()
            await hang(spins=False)
        for index in range(count):
            if aborted.is_set():
                break
            delta = {"index": 0, "delta": {"content": f"t{index} "}, "finish_reason": None}
            chunk = {
                "id": "chatcmpl-1",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": self.model,
                "choices": [delta],
            }
            self.chunk(writer, b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await writer.drain()
            self.tokens += 1
            if "hang amid" in text and index == count // 2:
                await hang(spins="spin" in text)
            if "die amid" in text and index == count // 2:
                os._exit(3)
            if "error amid" in text and index == count // 2:
                error = {"message": "boom", "type": "InternalServerError", "code": 500}
                self.chunk(writer, b"data: " + json.dumps({"error": error}).encode() + b"\n\n")
            await asyncio.sleep(pause)
        self.chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def whole_answer(self, count: int, *, is_aborted: bool) -> dict:
        said = "" if is_aborted else self.memory.token() * count
        logprob = -0.1 if "x" in said else -9.0
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": said},
            "text": said,
            "finish_reason": "abort" if is_aborted else "stop",
            "logprobs": {
                "tokens": list(said),
                "token_logprobs": [logprob] * len(said),
                "top_logprobs": [{each: logprob} for each in said],
            },
        }
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": self.model,
            "choices": [choice],
            "usage": usage,
            "pid": os.getpid(),
        }

    @staticmethod
    def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    @staticmethod
    def reply(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    @classmethod
    def reply_json(cls, writer: asyncio.StreamWriter, status: int, value: dict) -> None:
        body = json.dumps(value).encode()
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )


async def either(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Until one of them is set, or the time is over."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def hang(*, spins: bool) -> None:
    """As an engine core that deadlocks: the port stays open, probes are answered."""
    while True:
        await asyncio.sleep(0.01)
        end = time.monotonic() + (0.05 if spins else 0.0)
        while time.monotonic() < end:
            pass


def load_slowly(behaviour: dict) -> None:
    """Steps of a long load: each one says something, or reads something, or neither."""
    steps = int(behaviour.get("steps", 0))
    for number in range(1, steps + 1):
        time.sleep(float(behaviour["step_s"]))
        if behaviour.get("step") == "shard":
            percent = 100 * number // steps
            print(f"Loading shards: {percent}% Completed | {number}/{steps}", flush=True)
        elif behaviour.get("step") == "read":
            with Path("/dev/zero").open("rb") as zeros:
                zeros.read(4 << 20)
        else:
            print(f"waiting for {number}", flush=True)


def end_with_last_words(behaviour: dict) -> None:
    """The messages of a failed load, word for word, then an exit status or a signal."""
    print("\n".join(behaviour["says"]), file=sys.stderr, flush=True)
    if "signal" in behaviour:
        os.kill(os.getpid(), int(behaviour["signal"]))
    sys.exit(int(behaviour.get("status", 1)))


def take_gpu_memory(processes: str, mib: int) -> None:
    """Tell the fake NVML library (tests/nvml) what this process holds on each of its GPUs."""
    for device in os.environ["CUDA_VISIBLE_DEVICES"].split(","):
        new = Path(processes) / f"new.{os.getpid()}"
        new.write_text(str(mib))
        new.replace(Path(processes) / f"{device.removeprefix('GPU-')}.{os.getpid()}")


def start_worker(name: bytes, *, ignores_term: bool) -> None:
    """A child like vLLM's engine core, which does not die with its parent."""
    if os.fork():
        return
    ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignores_term else signal.SIG_DFL)
    while True:
        time.sleep(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--uds")
    parser.add_argument("--enable-sleep-mode", action="store_true")
    arguments, _ = parser.parse_known_args()
    behaviour = json.loads((Path(arguments.model) / "stub.json").read_text())
    print(READING, flush=True)
    with (Path(arguments.model) / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    while behaviour.get("waits") and not (Path(arguments.model) / "go").exists():
        time.sleep(0.02)
    if "says" in behaviour:
        end_with_last_words(behaviour)
    if behaviour.get("fails") == "oom":
        sys.exit(OOM)
    if behaviour.get("fails") == "quietly":
        sys.exit(7)
    if behaviour.get("ignores_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    start_worker(b"VLLM::EngineCore", ignores_term=bool(behaviour.get("ignores_term")))
    for number in range(int(behaviour.get("prints", 0))):
        print(f"line {number} of many", flush=True)
        time.sleep(0.002)
    if "gpu_memory" in behaviour:
        take_gpu_memory(**behaviour["gpu_memory"])
    held = bytearray(int(behaviour.get("memory_bytes", 0)))
    time.sleep(float(behaviour.get("load_s", 0.1)))
    load_slowly(behaviour)
    if behaviour.get("hangs"):
        time.sleep(3600)
    print("Loading weights took 0.1 seconds", flush=True)
    memory = StubMemory(behaviour, has_sleep_mode=arguments.enable_sleep_mode)
    engine = StubEngine(arguments.served_model_name, behaviour, memory)
    asyncio.run(engine.serve(arguments.uds))
    del held


if __name__ == "__main__":
    main()
