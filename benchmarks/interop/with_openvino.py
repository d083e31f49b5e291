"""OpenVINO answers questions from ONNX exports with examples/onnx_chat.py, in float32."""

from __future__ import annotations

from answering_engines import comparison, jobs
from answering_engines.jobs import Case, Model, Worker
from commands import ROOT

from vlpress.eval.tasks.task import Item

QUESTIONS = 12
LONGEST_ANSWER = 64
EXAMPLES = ROOT / "examples"
CASES = {
    "tiny": (
        Case("float", "bf16", deployment="onnx"),
        Case("gptq", "w4a16", deployment="onnx"),
        Case("gptq", "w3a16-rtn", deployment="onnx"),
    ),
    "tiny3": (
        Case("float", "bf16", deployment="onnx"),
        Case("compressed-tensors", "w4a16", deployment="onnx"),
    ),
}


def main() -> None:
    """Compare, then write the rows."""
    options = jobs.parse(__doc__)
    environment = ROOT / ".interop" / "openvino"
    scripts = [jobs.WORKERS / name for name in ("openvino_worker.py", "questions.py")]
    worker = Worker(
        engine="OpenVINO",
        python=environment / "bin" / "python",
        scripts=[*scripts, *sorted(EXAMPLES.glob("onnx_*.py"))],
        constraints=ROOT / "constraints-openvino.txt",
        environment={"PYTHONPATH": str(EXAMPLES)},
        describe=jobs.count_layers,
        version=lambda versions: str(versions.get("openvino")),
    )
    items = comparison.sample(asked(), QUESTIONS)
    rows = []
    for name, cases in CASES.items():
        made = options.made if name == "tiny" else options.made / name
        model = Model(name, name, items, LONGEST_ANSWER)
        work = options.work / name
        work.mkdir(exist_ok=True)
        rows += jobs.ask(worker, model, cases, made, work)
    jobs.write_rows(rows, options.out)


def asked() -> dict[str, Item]:
    """Questions with one image and the text after it, as the program asks them."""
    return {
        key: item
        for key, item in comparison.questions().items()
        if [part["type"] for part in item.messages[0]["content"]] == ["image", "text"]
    }


if __name__ == "__main__":
    main()
