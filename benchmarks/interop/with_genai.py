"""onnxruntime-genai answers questions from exports of vlpress, on the CPU in float32."""

from __future__ import annotations

from answering_engines import comparison, jobs
from answering_engines.jobs import Case, Model, Worker
from commands import ROOT

LONGEST_ANSWER = 64
CASES = (
    Case("float", "bf16", deployment="onnx-genai"),
    Case("gptq", "w4a16", deployment="onnx-genai"),
    Case("gptq", "w8a16-rtn", deployment="onnx-genai"),
    Case("gptq", "w3a16-rtn", deployment="onnx-genai"),
)


def main() -> None:
    """Compare, then write the rows."""
    options = jobs.parse(__doc__)
    environment = ROOT / ".interop" / "onnxruntime-genai"
    worker = Worker(
        engine="onnxruntime-genai",
        python=environment / "bin" / "python",
        scripts=[jobs.WORKERS / name for name in ("genai_worker.py", "questions.py")],
        constraints=ROOT / "constraints-onnxruntime-genai.txt",
        environment={},
        describe=jobs.count_layers,
        version=lambda versions: (
            f"{versions.get('onnxruntime-genai')} (onnxruntime {versions.get('onnxruntime')})"
        ),
    )
    tiny = Model("tiny", "tiny", comparison.questions(), LONGEST_ANSWER)
    rows = jobs.ask(worker, tiny, CASES, options.made, options.work)
    jobs.write_rows(rows, options.out)


if __name__ == "__main__":
    main()
