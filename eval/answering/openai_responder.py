"""Evaluation of a served model.

No weights are loaded here. Properties that the server does not report (size, memory, dtype,
batches, pixel budget) are unknown: they are stored as null and not guessed.
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
from ..config import BATCH_SIZE
from ..evaluation import (
    EvalResult,
    answer_tasks,
    finish,
    open_run,
    refuse_repeated,
    write_items,
)
from ..extension import with_rounds
from ..fidelity.reference import SHOWN, question_differences
from ..fingerprint import setup_differences
from ..results import StoredRun, read_run
from ..tasks.task import Item, Task
from .batches import OnProgress
from .openai_client import PIXELS, SEED, ChatClient, Endpoint, EndpointError
from .openai_messages import IMAGE_ENCODING, chat_messages, parse_reply
from .predictions import read_predictions
from .runner import Completion
from .sampling import Decoding

KIND = "chat-completions"
SOFTWARE = ("vllm", "sglang", "llamacpp")  # servers that identify themselves in `owned_by`
VOLATILE = ("created", "permission", "object", "status")  # fields of /v1/models not stored
UNKNOWN_MEMORY = {"kind": "unknown, the model is served", "peak_bytes": None}


class EndpointResponder:
    """Responder for a served model, with concurrent requests.

    The requests run in an event loop in a separate thread, so that this also works inside a running
    loop, as in notebooks, and so that Ctrl-C takes effect immediately.

    Args:
        endpoint: address and request settings.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = ChatClient(endpoint)

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Return equal lengths: the server forms its own batches, and the order is kept."""
        return [0] * len(items)

    def generate(self, items: Sequence[Item]) -> list[Completion]:
        """Answer items, at most `concurrency` at a time; the result is in their order.

        Raises:
            EndpointError: the server refuses a request or does not answer; the message names the
                item.
        """
        return list(self._run(self._answer_all(items)))

    def models(self) -> list[dict[str, Any]] | None:
        """List the served models; see `ChatClient.models`."""
        models: list[dict[str, Any]] | None = self._run(self._client.models())
        return models

    def close(self) -> None:
        """Close all connections and end the thread."""
        self._run(self._cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Any) -> Any:
        """Run a coroutine in the thread and wait for its result."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: abandon the pending requests
            raise

    async def _cancel_all(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.close()

    async def _answer_all(self, items: Sequence[Item]) -> list[Completion]:
        slots = asyncio.Semaphore(self._endpoint.concurrency)
        tasks = [asyncio.ensure_future(self._answer(item, slots)) for item in items]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, item: Item, slots: asyncio.Semaphore) -> Completion:
        async with slots:
            try:
                messages = chat_messages(item)
                bounds = asdict(item.pixels) if item.pixels else None
                reply = await self._client.complete(
                    messages, item.max_new_tokens, bounds, item.seed
                )
                return parse_reply(reply, item.reasoning)
            except ValueError as error:
                raise EndpointError(f"item {item.id}: {error}") from error


def evaluate_endpoint(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    out_dir: str | Path,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    samples: int = 1,
    reference: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> EvalResult:
    """Evaluate a served model on tasks and store the results, as `evaluate_model` does.

    Args:
        endpoint: address and request settings.
        tasks: opened by `open_task`, each at most once.
        out_dir: created if missing, resumed if it has the same setup.
        batch_size: answers stored at a time; at least `concurrency` is used.
        seed: recorded in the fingerprint; base seed of sampled answers.
        samples: sampled answers per question; more than 1 needs a temperature in the fields.
        reference: folder of the original model's evaluation of the same questions. The divergence
            from it is not measured: servers return no full log-probabilities.
        on_progress: called after every batch.

    Raises:
        FileNotFoundError: the reference is not an evaluation folder.
        ValueError: the folder has another setup, the reference has other questions, or the server
            refuses a request or does not answer (`EndpointError`).
    """
    refuse_repeated(tasks)
    out = Path(out_dir)
    base = None if reference is None else read_run(reference)
    with closing(EndpointResponder(endpoint)) as responder:
        decoding = sent_decoding(endpoint, samples, seed)
        setup = served_fingerprint(endpoint, responder.models(), decoding)
        if base is not None:
            _check_reference(base, setup, tasks)
        info, rounds = open_run(out, setup, tasks, base)
        tasks = with_rounds(tasks, rounds)
        info["model"] = {"name": endpoint.model, "family": None, "bytes": None, "weights": None}
        write_items(out, info, tasks)
        answer_tasks(
            out,
            info,
            tasks,
            responder,
            setup,
            batch_size=max(batch_size, endpoint.concurrency),
            decoding=decoding,
            on_progress=on_progress,
        )
    info["memory"] = dict(UNKNOWN_MEMORY)
    info["endpoint"] = _count_answers(endpoint, out, info["tasks"])
    return finish(out, info)


def sent_decoding(endpoint: Endpoint, samples: int, seed: int) -> Decoding:
    """Return the decoding that the fields of an endpoint ask for.

    Args:
        endpoint: address and request settings.
        samples: sampled answers per question.
        seed: seed of the sample that a limit draws, and base seed of sampled answers.

    Raises:
        ValueError: several samples at temperature 0.
    """
    fields = endpoint.fields
    temperature = fields["temperature"]
    if temperature == 0:
        return Decoding(samples, seed=seed)
    return Decoding(samples, temperature, fields["top_p"], fields.get("top_k", 0), seed)


def served_fingerprint(
    endpoint: Endpoint, models: Sequence[Mapping[str, Any]] | None, decoding: Decoding
) -> dict[str, Any]:
    """Return the fingerprint of a run with a served model, without its tasks.

    The server's settings are not included, because a client cannot see them: None means the
    server's default. The server's description of the model is part of the model's identity.

    Args:
        endpoint: address and request settings.
        models: models listed by the server; None if it lists none.
        decoding: see `sent_decoding`.
    """
    generation = decoding.describe()
    generation["repetition_penalty"] = endpoint.fields.get("repetition_penalty")
    if "seeds" in generation and SEED not in endpoint.fields:
        generation["seeds"] = None
    entry = next((each for each in models or () if each.get("id") == endpoint.model), {})
    owner = entry.get("owned_by")
    pixels = endpoint.fields.get(PIXELS) or {}
    return {
        "engine": {"kind": KIND, "software": owner if owner in SOFTWARE else None},
        "pixels": {"min": pixels.get("min_pixels"), "max": pixels.get("max_pixels")},
        "pictures": IMAGE_ENCODING,
        "generation": generation,
        "request": dict(endpoint.fields),
        "seed": decoding.seed,
        "versions": {"vlpress": __version__},
        "model": {
            "name": endpoint.model,
            "url": endpoint.url,
            "served": {k: v for k, v in entry.items() if k not in VOLATILE},
        },
        "quantization": None,
    }


def choose_model(models: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the name of the only model of a server.

    Raises:
        ValueError: the server lists several models or none.
    """
    names = [str(each["id"]) for each in models or ()]
    if len(names) == 1:
        return names[0]
    offered = f"the server offers {', '.join(names[:8])}" if names else "the server does not say"
    raise ValueError(f"no model is named: give --model NAME ({offered})")


def _check_reference(base: StoredRun, setup: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Refuse before the first request a reference that `compare` would refuse after the last."""
    changed = setup_differences(base.fingerprint, setup)
    if base.fingerprint.get("engine") == setup["engine"] and changed:
        raise ValueError(
            f"{base.path} was asked in another way ({'; '.join(changed[:SHOWN])}); give the same "
            "options"
        )
    if changed := question_differences(base, tasks):
        raise ValueError(
            f"{base.path} answered other questions ({'; '.join(changed[:SHOWN])}); give the "
            "same benchmark, limit, prompt style and rules"
        )


def _count_answers(endpoint: Endpoint, out: Path, names: Mapping[str, object]) -> dict[str, Any]:
    """Count the answers and their optional values that the server returned."""
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
