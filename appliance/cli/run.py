"""run: ask a model once, or chat with it."""

import argparse
import contextlib
import importlib
import sys
import threading
from typing import Any

import msgspec

from appliance.cli.client import ServerClient, ServerError
from appliance.cli.models import Subparsers, state_text, tell
from appliance.cli.output import print_json, safe_lines
from appliance.protocol.engines import EngineState
from appliance.protocol.models import Model, Task

_WATCH_S = 1.0


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    error: _Error | None = None


def add_parser(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    run = subparsers.add_parser("run", help="ask a model, or chat with it without a prompt")
    run.add_argument("model")
    run.add_argument("prompt", nargs="*", help="the question; `-` reads it from standard input")
    run.add_argument("--system", help="system prompt")
    run.add_argument("--temperature", type=float)
    run.add_argument("--max-tokens", type=int)
    run.add_argument(
        "--keep-alive",
        metavar="DURATION",
        help="idle time after which the model is unloaded: 5m, 0 (at once), -1 (never)",
    )
    run.set_defaults(func=_run)


def _run(args: argparse.Namespace) -> int:
    client = ServerClient(args.url)
    model = client.get(f"/admin/v1/models/{args.model}", Model)
    if model.settings.task is not Task.GENERATE:
        raise ServerError(
            f"{model.id} is for {model.settings.task.value}, not for chat.",
            hint="POST /v1/embeddings with it, or run another model (`appliance ls`).",
        )
    prompt = " ".join(args.prompt)
    if prompt == "-" or (not prompt and not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip()
    messages = [{"role": "system", "content": args.system}] if args.system else []
    if prompt:
        messages.append({"role": "user", "content": prompt})
        _ask(client, args, messages)
        return 0
    return _chat(client, args, messages)


def _chat(client: ServerClient, args: argparse.Namespace, messages: list[dict[str, str]]) -> int:
    # Line editing and history, where Python has them.
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")
    print(f"Chat with {args.model}. /clear forgets, /bye or ctrl+d ends.", file=sys.stderr)
    system = list(messages)
    while True:
        try:
            prompt = input(">>> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return 0
        except KeyboardInterrupt:
            print("\n/bye or ctrl+d ends.", file=sys.stderr)
            continue
        if prompt in {"/bye", "/exit", "/quit"}:
            return 0
        if prompt == "/clear":
            messages = list(system)
        elif prompt.startswith("/"):
            print("There are /clear and /bye.", file=sys.stderr)
        elif prompt:
            messages.append({"role": "user", "content": prompt})
            try:
                messages.append({"role": "assistant", "content": _ask(client, args, messages)})
            except ServerError as error:
                print(f"{error.message} {error.hint}", file=sys.stderr)
                messages.pop()
            except KeyboardInterrupt:
                print(file=sys.stderr)
                messages.pop()


def _ask(client: ServerClient, args: argparse.Namespace, messages: list[dict[str, str]]) -> str:
    body: dict[str, Any] = {
        "model": args.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    for name in ("temperature", "max_tokens", "keep_alive"):
        if (value := getattr(args, name)) is not None:
            body[name] = value
    parts: list[str] = []
    usage = None
    with _LoadingLine(args):
        events = client.events("/v1/chat/completions", body=body)
        first = next(events, None)
    for data in _and_rest(first, events):
        if data == b"[DONE]":
            break
        chunk = msgspec.json.decode(data, type=_Chunk)
        if chunk.error is not None:
            if parts and not args.json:
                print()
            raise ServerError(chunk.error.message)
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text = choice.delta.content or ""
            parts.append(text)
            if not args.json:
                print(safe_lines(text), end="", flush=True)
    answer = "".join(parts)
    if args.json:
        print_json({"model": args.model, "content": answer, "usage": usage})
    else:
        print()
    return answer


def _and_rest(first: bytes | None, rest: Any) -> Any:
    if first is not None:
        yield first
    yield from rest


class _LoadingLine:
    """Tells a person at a terminal how far the load is until the first token comes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if sys.stderr.isatty() and not self._args.json:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        client = ServerClient(self._args.url)
        shown = ""
        while not self._done.wait(_WATCH_S):
            try:
                model = client.get(f"/admin/v1/models/{self._args.model}", Model)
            except ServerError:
                break
            if model.state is not EngineState.READY:
                shown = tell(state_text(model), shown, quiet=False)
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        client.close()
