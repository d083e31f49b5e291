"""Evaluate a served model: a server's answers in the place of a model's in this process.

No weights are loaded here. What the server does not say (size, memory, dtype, batches, pixel
budget) is unknown, stands as null, and is not guessed.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ... import __version__
from ...bench.machine_load import LoadMeter, joined_load
from ...common.differences import differences
from ..evaluation import EvalResult, finish, is_answered, open_run, refuse_repeated, write_items
from ..fingerprint import setup_differences
from ..results import StoredRun, read_run
from ..tasks.task import Item, Task
from .openai_client import PIXELS, ChatClient, Endpoint, EndpointError
from .openai_messages import PICTURES, chat_messages, parse_reply
from .predictions import read_predictions
from .runner import Answer, OnProgress, answer_task

KIND = "chat-completions"
SOFTWARE = ("vllm", "sglang", "llamacpp")  # servers that name themselves in `owned_by`
VOLATILE = ("created", "permission", "object", "status")  # of a /v1/models entry
UNKNOWN_MEMORY = {"kind": "unknown, the model is served", "peak_bytes": None}


class EndpointResponder:
    """Answers with a served model; several requests are under way at once.

    The requests run in an event loop of their own thread, so that this also works where a loop is
    running already, as in notebooks, and so that Ctrl-C ends it at once.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = ChatClient(endpoint)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """All alike: the server forms its own batches, and items of one picture stay together."""
        return [0] * len(items)

    def generate(self, items: Sequence[Item]) -> list[Answer]:
        """Answer items in their order, at most `concurrency` of them at once.

        Raises:
            EndpointError: the server refuses one, or does not answer; the message names it.
        """
        return list(self._run(self._answer_all(items)))

    def models(self) -> list[dict[str, Any]] | None:
        """What the server says it serves; see `ChatClient.models`."""
        found: list[dict[str, Any]] | None = self._run(self._client.models())
        return found

    def close(self) -> None:
        """Drop all connections and end the thread."""
        self._run(self._drop_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Any) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: the requests under way are dropped
            raise

    async def _drop_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    async def _answer_all(self, items: Sequence[Item]) -> list[Answer]:
        free = asyncio.Semaphore(self._endpoint.concurrency)
        tasks = [asyncio.ensure_future(self._answer(item, free)) for item in items]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, item: Item, free: asyncio.Semaphore) -> Answer:
        async with free:
            try:
                messages = chat_messages(item)
                bounds = asdict(item.pixels) if item.pixels else None
                reply = await self._client.complete(messages, item.max_new_tokens, bounds)
                return parse_reply(reply)
            except ValueError as error:
                raise EndpointError(f"item {item.id}: {error}") from error


def evaluate_endpoint(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    out_dir: str | Path,
    *,
    batch_size: int = 32,
    seed: int = 0,
    reference: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> EvalResult:
    """Evaluate a served model on tasks and store everything, as `evaluate` does for a local one.

    Args:
        endpoint: where it is and how it is asked.
        tasks: opened by `open_task`, each at most once.
        out_dir: made if absent, resumed if it holds the same setup.
        batch_size: answers that are stored at once; at least `concurrency` is taken.
        seed: recorded in the fingerprint.
        reference: folder of the original model's evaluation; its questions must be these. The
            divergence from it is not measured: servers give no full log-probabilities.
        on_progress: told after every batch.

    Raises:
        FileNotFoundError: the reference is no evaluation folder.
        ValueError: the folder was made with another setup, the reference answered other
            questions, or the server refuses or does not answer (`EndpointError`).
    """
    refuse_repeated(tasks)
    out = Path(out_dir)
    base = None if reference is None else read_run(reference)
    with closing(EndpointResponder(endpoint)) as responder:
        setup = served_fingerprint(endpoint, responder.models(), seed=seed)
        if base is not None:
            _check_reference(base, setup, tasks)
        info = open_run(out, setup, tasks)
        info["model"] = {"name": endpoint.model, "family": None, "bytes": None, "weights": None}
        write_items(out, info, tasks)
        is_new, meter = not is_answered(out, tasks), LoadMeter()
        for task in tasks:
            answer_task(
                task,
                responder,
                out / task.name / "predictions.jsonl",
                {**setup, "task": dict(task.fingerprint)},
                batch_size=max(batch_size, endpoint.concurrency),
                on_progress=on_progress,
            )
    if is_new:
        info["load"] = joined_load(info.get("load"), meter.read())
    info["memory"] = dict(UNKNOWN_MEMORY)
    info["endpoint"] = _endpoint_facts(endpoint, out, info["tasks"])
    return finish(out, info)


def served_fingerprint(
    endpoint: Endpoint, models: Sequence[Mapping[str, Any]] | None, *, seed: int
) -> dict[str, Any]:
    """Describe a run with a served model, its tasks apart.

    The server's own choices are not in it, because a client cannot see them: None means the
    server's. What it says about the model is part of the model's identity.

    Args:
        endpoint: where it is and how it is asked.
        models: what the server says it serves; None where it does not say.
        seed: of the choice that a limit makes.
    """
    entry = next((each for each in models or () if each.get("id") == endpoint.model), {})
    owner = entry.get("owned_by")
    pixels = endpoint.fields.get(PIXELS) or {}
    return {
        "engine": {"kind": KIND, "software": owner if owner in SOFTWARE else None},
        "pixels": {"min": pixels.get("min_pixels"), "max": pixels.get("max_pixels")},
        "pictures": PICTURES,
        "generation": {
            "temperature": endpoint.fields["temperature"],
            "repetition_penalty": endpoint.fields.get("repetition_penalty"),
        },
        "request": dict(endpoint.fields),
        "seed": seed,
        "versions": {"vlpress": __version__},
        "model": {
            "name": endpoint.model,
            "url": endpoint.url,
            "served": {k: v for k, v in entry.items() if k not in VOLATILE},
        },
        "quantization": None,
    }


def choose_model(models: Sequence[Mapping[str, Any]] | None) -> str:
    """The name of the only model that a server offers.

    Raises:
        ValueError: it offers several or does not say.
    """
    names = [str(each["id"]) for each in models or ()]
    if len(names) == 1:
        return names[0]
    offered = f"the server offers {', '.join(names[:8])}" if names else "the server does not say"
    raise ValueError(f"no model is named: give --model NAME ({offered})")


def _check_reference(base: StoredRun, setup: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Find before the first request what `compare` would refuse after the last."""
    changed = setup_differences(base.fingerprint, setup)
    if base.fingerprint.get("engine") == setup["engine"] and changed:
        raise ValueError(
            f"{base.path} was asked in another way ({'; '.join(changed[:6])}); give the same "
            "options"
        )
    for task in tasks:
        if task.name not in base.tasks:
            raise ValueError(f"{base.path} has no {task.name}; evaluate the original on it first")
        changed = differences(base.tasks[task.name].info["fingerprint"], task.fingerprint)
        if changed:
            raise ValueError(
                f"{base.path} answered other questions ({'; '.join(changed[:6])}); give the "
                "same benchmark, limit, prompt style and rules"
            )


def _endpoint_facts(endpoint: Endpoint, out: Path, names: Mapping[str, object]) -> dict[str, Any]:
    """Where the answers came from, and for how many of them the server gave what is optional."""
    answers = [
        answer
        for name in names
        if (path := out / name / "predictions.jsonl").is_file()
        for answer in read_predictions(path).values()
    ]
    return {
        "url": endpoint.url,
        "concurrency": endpoint.concurrency,
        "answers": len(answers),
        "with_token_counts": sum(a.n_tokens is not None for a in answers),
        "with_prompt_lengths": sum(a.prompt_tokens is not None for a in answers),
        "with_logprobs": sum(a.first_logprobs is not None for a in answers),
    }
