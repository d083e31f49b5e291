"""mlx-vlm answers questions with checkpoints of vlpress, on the CPU in float32.

It reads float checkpoints, and compressed-tensors with symmetric weights and 16-bit activations.
"""

from __future__ import annotations

from answering_engines import comparison, jobs
from answering_engines.jobs import Case, Model, Worker
from commands import ROOT

UNKNOWN = "parameters not in model"
CASES = (
    Case("float", "bf16"),
    Case("compressed-tensors", "w4a16"),
    Case("compressed-tensors", "w8a16"),
    Case("compressed-tensors", "w3a16-rtn"),
    Case("compressed-tensors", "w4a16-awq", refusal=UNKNOWN),  # zero points
    Case(
        "compressed-tensors",
        "vision-w8a16+decoder-w4a16",
        refusal="divisible by the quantization group size",  # one group size for all layers
    ),
    Case("compressed-tensors", "w8a8", refusal=UNKNOWN),
    Case("gptq", "w4a16", refusal=UNKNOWN),
    Case("awq", "w4a16", refusal=UNKNOWN),
)
LONGEST_ANSWER = 64


def main() -> None:
    """Compare, then write the rows."""
    options = jobs.parse(__doc__)
    environment = ROOT / ".interop" / "mlx-vlm"
    worker = Worker(
        engine="mlx-vlm",
        python=environment / "bin" / "python",
        scripts=[jobs.WORKERS / name for name in ("mlx_worker.py", "questions.py")],
        constraints=ROOT / "constraints-mlx-vlm.txt",
        environment={"HF_HUB_OFFLINE": "1"},
        describe=jobs.count_layers,
        version=lambda versions: f"{versions.get('mlx-vlm')} (mlx {versions.get('mlx')})",
    )
    tiny = Model("tiny", "tiny", comparison.questions(), LONGEST_ANSWER)
    rows = jobs.ask(worker, tiny, CASES, options.made, options.work)
    jobs.write_rows(rows, options.out)


if __name__ == "__main__":
    main()
