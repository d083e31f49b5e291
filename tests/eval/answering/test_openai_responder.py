from __future__ import annotations

import asyncio
import base64
import json
import signal
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, Reply, completion, table, usage
from eval_models import right, small_model

from vlpress.eval import evaluate_endpoint, evaluate_model, open_task
from vlpress.eval.answering.openai_client import Endpoint, EndpointError, request_fields
from vlpress.eval.answering.openai_responder import (
    EndpointResponder,
    choose_model,
    served_fingerprint,
)
from vlpress.eval.answering.predictions import Prediction, read_predictions
from vlpress.eval.answering.runner import ModelResponder
from vlpress.eval.answering.sampling import GREEDY
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.comparability import check_comparable
from vlpress.eval.evaluation import EvalResult
from vlpress.eval.results import read_run
from vlpress.eval.tasks.files.image_store import StoredImage
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.processing.processor import Processor

pytestmark = pytest.mark.usefixtures("packaged")

NAMES = ("builtin-mmbench", "builtin-ocrbench", "builtin-mmmu")
KEY = "sk-a-secret-key"
VLLM = {"id": "m", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}


def tasks(*names: str) -> list[Task]:
    return [open_task(name, max_new_tokens=9) for name in names or NAMES]


def run(server: ChatServer, asked: Sequence[Task], out: Path, **options: Any) -> EvalResult:
    known = ("fields", "api_key", "concurrency", "timeout", "retries", "model")
    chosen: dict[str, Any] = {"fields": request_fields(), "model": "m", "retries": 2}
    chosen |= {"timeout": 5.0} | {key: options.pop(key) for key in known if key in options}
    endpoint = Endpoint(server.url, first_pause=0.01, **chosen)
    return evaluate_endpoint(endpoint, asked, out, **options)


def stored(out: Path, name: str) -> dict[str, Prediction]:
    return read_predictions(out / name / "predictions.jsonl")


def test_reasoning_is_not_scored(tmp_path: Path) -> None:
    [asked] = tasks("builtin-ocrbench")
    thinking = open_task("builtin-ocrbench", max_new_tokens=9, reasoning="think-opened")
    items = table([asked], right)

    def answer(body: Any) -> Reply:
        reply: Any = items(body).content
        message = reply["choices"][0]["message"]
        return Reply(
            {**reply, "choices": [{**reply["choices"][0], "message": {**message, **more}}]}
        )

    more: dict[str, Any] = {"reasoning": "w0 w1 w2 w3 w4 w5 w6 w7 w8"}
    with ChatServer(answer, models=[VLLM]) as server:
        result = run(server, [thinking], tmp_path / "thinking")
        with pytest.raises(EndpointError, match=r"item 0: .*reasoning rule is none"):
            run(server, [asked], tmp_path / "none", concurrency=1)
        more["content"] = None
        unfinished = run(server, [thinking], tmp_path / "unfinished")
    found = stored(tmp_path / "thinking", asked.name)
    assert {p.reasoning for p in found.values()} == set(more["reasoning"].split("\n"))
    assert result.benchmarks[asked.name]["score"] == 100
    entry = unfinished.benchmarks[asked.name]
    assert (entry["score"], entry["health"]["truncated"]) == (0, len(asked.items))
    assert entry["health"]["reasoning"]["unfinished"] == len(asked.items)


def test_right_answers_score_and_nothing_is_guessed(tmp_path: Path) -> None:
    asked = tasks()
    with ChatServer(table(asked, right), models=[VLLM]) as server:
        result = run(server, asked, tmp_path / "out")
    assert {name: b["score"] for name, b in result.benchmarks.items()} == dict.fromkeys(NAMES, 100)
    assert len(server.bodies) == 44
    assert {body["max_tokens"] for body in server.bodies} == {9}
    info = read_run(tmp_path / "out").info
    assert info["model"] == {"name": "m", "family": None, "bytes": None, "weights": None}
    assert info["memory"]["peak_bytes"] is None
    assert info["fingerprint"]["engine"] == {"kind": "chat-completions", "software": "vllm"}
    assert not {"dtype", "device", "batch_size", "threads"} & set(info["fingerprint"])
    scores = json.loads((tmp_path / "out" / "scores.json").read_text("utf-8"))
    assert scores == json.loads(json.dumps(result.to_dict()))
    assert scores["endpoint"] == {
        "url": server.url,
        "concurrency": 8,
        "answers": 44,
        "with_token_counts": 44,
        "with_prompt_lengths": 44,
        "with_logprobs": 0,
    }
    assert scores["speed"]["tokens"] > 0 and scores["benchmarks"][NAMES[0]]["n"] == 8


def test_answers_are_stored_in_the_order_of_the_questions(tmp_path: Path) -> None:
    asked = tasks("builtin-ocrbench")
    order = [item.id for item in asked[0].items]
    answer = table(asked, right)
    slow = iter([0.2, 0.0, 0.1])

    def late(body: dict[str, Any]) -> Reply:
        return Reply(answer(body).content, delay=next(slow, 0.0))

    with ChatServer(late) as server:
        run(server, asked, tmp_path / "out", concurrency=3)
    assert list(stored(tmp_path / "out", "builtin-ocrbench")) == order


def test_concurrency_is_the_number_of_pending_requests(tmp_path: Path) -> None:
    asked = tasks("builtin-mmbench")
    answer, meeting, arrived = table(asked, right), threading.Barrier(3), [0]

    def together(body: dict[str, Any]) -> Reply:
        arrived[0] += 1
        if arrived[0] <= 3:
            meeting.wait(20)  # breaks, and with it the request, unless three are there
        return answer(body)

    with ChatServer(together) as server:
        run(server, asked, tmp_path / "out", concurrency=3, timeout=60.0)
    assert server.most_at_once == 3


def test_token_counts_and_log_probabilities_are_stored(tmp_path: Path) -> None:
    asked = tasks("builtin-ocrbench")
    first, second, third = (item.id for item in asked[0].items[:3])
    cut = completion("wor", "length", **usage(50, 9))
    cut["choices"][0]["logprobs"] = {
        "content": [{"top_logprobs": [{"token": "w", "logprob": -0.5}]}]
    }
    script = [Reply(cut), Reply(completion(None, **usage(51, 1))), Reply(completion("x"))]
    with ChatServer(table(asked, right), script) as server:
        result = run(server, asked, tmp_path / "out", concurrency=1)
    found = stored(tmp_path / "out", "builtin-ocrbench")
    assert (found[first].prediction, found[first].stopped, found[first].n_tokens) == ("wor", 0, 9)
    assert found[first].first_logprobs == {"w": -0.5} and found[first].prompt_tokens == 50
    assert (found[second].prediction, found[second].n_tokens) == ("", 1)
    assert (found[third].n_tokens, found[third].prompt_tokens) == (None, None)
    lines = (tmp_path / "out" / "builtin-ocrbench" / "predictions.jsonl").read_text().splitlines()
    assert "first_logprobs" in lines[1] and "first_logprobs" not in lines[2]
    assert '"n_tokens": null' in lines[3] and "prompt_tokens" not in lines[3]
    health = result.benchmarks["builtin-ocrbench"]["health"]
    assert (health["truncated"], health["empty"], health["mean_tokens"]) == (1, 1, None)
    assert result.run["speed"]["tokens_per_second"] is None
    assert result.run["speed"]["items_per_second"] > 0
    facts = result.run["endpoint"]
    assert (facts["with_token_counts"], facts["with_logprobs"]) == (8, 1)


def test_run_resumes_after_a_failure_of_the_server(tmp_path: Path) -> None:
    asked, out = tasks("builtin-mmbench"), tmp_path / "out"
    broken = Reply({"error": {"message": "out of memory"}}, 500)
    answer, left = table(asked, right), [10]

    def short(body: dict[str, Any]) -> Reply:
        left[0] -= 1
        return answer(body) if left[0] >= 0 else broken

    with ChatServer(short) as server:
        options = {"batch_size": 4, "concurrency": 2, "retries": 1}
        with pytest.raises(EndpointError, match=r"^item \d+: .* failed 2 times, .*out of memory"):
            run(server, asked, out, **options)
        assert len(stored(out, "builtin-mmbench")) == 8
        server.answer, server.bodies = answer, []
        result = run(server, asked, out, **options)
        assert len(server.bodies) == 32 - 8
        assert result.benchmarks["builtin-mmbench"]["score"] == 100
        server.bodies = []
        assert run(server, asked, out, **options).benchmarks == result.benchmarks
        assert server.bodies == []


def test_refused_item_is_named(tmp_path: Path) -> None:
    asked = tasks("builtin-ocrbench")
    too_long = Reply({"message": "This model's maximum context length is 4096 tokens."}, 400)
    with ChatServer(table(asked, right), [None, too_long]) as server:
        name = asked[0].items[1].id
        message = rf"^item {name}: .* refused \(HTTP 400: This model's maximum context length"
        with pytest.raises(EndpointError, match=message):
            run(server, asked, tmp_path / "out", concurrency=1)


def test_interruption_cancels_the_pending_requests(tmp_path: Path) -> None:
    asked, out = tasks("builtin-ocrbench"), tmp_path / "out"
    answer, arrived, over = table(asked, right), [0], threading.Event()
    released: list[int] = []

    def stuck(body: dict[str, Any]) -> Reply:
        arrived[0] += 1
        number = arrived[0]
        if number == 8:  # both of a batch, so that none arrives late and counts for the rerun
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # Ctrl-C
        if number >= 7:
            over.wait(60)
            released.append(number)
        return answer(body)

    with ChatServer(stuck) as server:
        with pytest.raises(KeyboardInterrupt):
            run(server, asked, out, batch_size=2, concurrency=2, timeout=60.0)
        assert released == [], "the run ended while its requests were pending"
        over.set()
        assert len(stored(out, "builtin-ocrbench")) == 6
        server.answer, server.bodies = answer, []
        result = run(server, asked, out, batch_size=2, concurrency=2)
    assert len(server.bodies) == 3
    assert result.benchmarks["builtin-ocrbench"]["score"] == 100


def test_key_is_sent_and_never_written(tmp_path: Path) -> None:
    asked, out = tasks("builtin-ocrbench"), tmp_path / "out"
    with ChatServer(table(asked, right)) as server:
        run(server, asked, out, api_key=KEY)
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model": "other"}, r"model\.name: m -> other"),
        ({"fields": request_fields(max_pixels=9)}, r"pixels\.max: None -> 9"),
        (
            {"fields": request_fields(extra={"repetition_penalty": None})},
            r"generation\.repetition_penalty: 1\.0 -> None",
        ),
        ({"fields": request_fields(extra={"top_k": 1})}, r"request\.top_k: absent -> 1"),
        ({"seed": 1}, r"seed: 0 -> 1"),
    ],
)
def test_another_setup_is_refused(tmp_path: Path, change: dict[str, Any], part: str) -> None:
    asked, out = tasks("builtin-mmmu"), tmp_path / "out"
    with ChatServer(table(asked, right)) as server:
        run(server, asked, out)
        with pytest.raises(ValueError, match=part):
            run(server, asked, out, **change)
        run(server, asked, out, concurrency=2, timeout=3.0, retries=0, api_key=KEY)


def test_fingerprint_has_the_stable_part_of_a_models_entry() -> None:
    endpoint = Endpoint("http://h/v1", "m", request_fields())
    first = served_fingerprint(endpoint, [{"id": "x"}, VLLM], GREEDY)
    assert first["model"]["served"] == {"id": "m", "owned_by": "vllm", "max_model_len": 4096}
    assert first == served_fingerprint(endpoint, [{**VLLM, "created": 2}], GREEDY)
    unknown = served_fingerprint(endpoint, None, GREEDY)
    assert unknown["engine"]["software"] is None and unknown["model"]["served"] == {}
    other = served_fingerprint(endpoint, [{**VLLM, "owned_by": "me"}], GREEDY)
    assert other["engine"]["software"] is None


def test_only_model_is_chosen_and_several_are_named() -> None:
    assert choose_model([VLLM]) == "m"
    with pytest.raises(ValueError, match=r"--model.*m, n"):
        choose_model([VLLM, {"id": "n"}])
    nothing: list[dict[str, Any]] = []
    for unknown in (None, nothing):
        with pytest.raises(ValueError, match="--model"):
            choose_model(unknown)


def test_reference_must_have_answered_the_same_questions(tmp_path: Path) -> None:
    asked, base = tasks("builtin-ocrbench"), tmp_path / "base"
    with ChatServer(table([*asked, *tasks("builtin-mmmu")], right)) as server:
        run(server, asked, base)
        server.bodies = []
        with pytest.raises(ValueError, match="builtin-mmmu"):
            run(server, tasks("builtin-mmmu"), tmp_path / "a", reference=base)
        other = [open_task("builtin-ocrbench", max_new_tokens=8)]
        with pytest.raises(ValueError, match="max_new_tokens: 9 -> 8"):
            run(server, other, tmp_path / "b", reference=base)
        blurred = {"fields": request_fields(max_pixels=9), "reference": base}
        with pytest.raises(ValueError, match=r"pixels\.max: None -> 9"):
            run(server, asked, tmp_path / "b", **blurred)
        assert server.bodies == [] and not (tmp_path / "b").exists()
        run(server, asked, tmp_path / "c", reference=base)


def test_repeated_benchmark_is_refused(tmp_path: Path) -> None:
    with ChatServer() as server, pytest.raises(ValueError, match="builtin-mmmu"):
        run(server, tasks("builtin-mmmu", "builtin-mmmu"), tmp_path / "out")


def test_responder_works_inside_a_running_loop() -> None:
    [task] = tasks("builtin-mmmu")
    with ChatServer(table([task], right)) as server:

        async def notebook() -> list[str]:
            with closing(
                EndpointResponder(Endpoint(server.url, "m", request_fields()))
            ) as responder:
                return [answer.text for answer in responder.generate(task.items)]

        assert asyncio.run(notebook()) == [right(item) for item in task.items]


def test_served_model_answers_like_the_local_one(checkpoint: Path, tmp_path: Path) -> None:
    """The server uses the local model, with nothing but the request."""
    model, processor = small_model(), Processor.from_folder(checkpoint)
    behind, one_by_one = ModelResponder(FeatureCache(model, processor)), threading.Lock()

    def part(sent: dict[str, Any]) -> dict[str, Any]:
        if sent["type"] == "text":
            return sent
        head, _, body = sent["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        return {"type": "image", "image": StoredImage.of(base64.b64decode(body))}

    def answer(body: dict[str, Any]) -> Reply:
        [message] = body["messages"]
        messages = [{"role": message["role"], "content": [part(p) for p in message["content"]]}]
        with one_by_one:
            [said] = behind.generate([Item("?", messages, body["max_tokens"], {})])
        finish = "stop" if said.stopped else "length"
        assert said.prompt_tokens and said.n_tokens is not None
        return Reply(completion(said.text, finish, **usage(said.prompt_tokens, said.n_tokens)))

    asked = [
        open_task("builtin-mmbench", limit=2, max_new_tokens=5),
        open_task("builtin-mmmu", max_new_tokens=5),
    ]
    local = evaluate_model(model, processor, asked, tmp_path / "local", batch_size=4)
    with ChatServer(answer) as server:
        served = run(server, asked, tmp_path / "served")
    assert len(server.bodies) == 11
    for name, scores in local.benchmarks.items():
        ours, theirs = stored(tmp_path / "local", name), stored(tmp_path / "served", name)
        for key, prediction in ours.items():
            same = replace(theirs[key], seconds=prediction.seconds, threads=prediction.threads)
            assert same == prediction
        assert served.benchmarks[name] == scores
    [_, _, lengths] = check_comparable(
        read_run(tmp_path / "local"), read_run(tmp_path / "served"), across_engines=True
    )
    assert lengths.startswith("the prompts of 11 of 11 rows have the same number of tokens")
