"""The command line: exit codes, one-line errors, JSON on standard output."""

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_files import exportable
from PIL import Image
from small_run import CALIB, PRINTED, copy_run
from small_run import WORDS as BENCH
from typer.testing import CliRunner, Result

import vlpress
from vlpress.cli import exit_codes, main
from vlpress.cli.exit_codes import RESUME, VERDICT_CODES
from vlpress.eval.config import QuestionOptions
from vlpress.eval.fidelity.noise import UNITS
from vlpress.eval.planning.schedule import comparison_stages
from vlpress.eval.resolve import open_tasks
from vlpress.quant.config import ModelSettings
from vlpress.quant.job import QUANTIZING
from vlpress.quant.resolve import Source

pytestmark = pytest.mark.usefixtures("short_answers")

Command = list[str | Path]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


def parsed(result: Result) -> Any:
    assert result.exit_code in (0, 1, 4), result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def done(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `vlpress run` of a small random model."""
    return copy_run(finished_run, tmp_path_factory.mktemp("cli") / "out")


def test_every_stage_of_a_run_is_in_its_schedule(checkpoint: Path, finished_run: Path) -> None:
    source = Source.find(checkpoint, ModelSettings(device="cpu"))
    questions = QuestionOptions(bench="builtin-ocrbench", limit=6)
    processor = source.processor()
    tasks = open_tasks(questions, source, processor)
    expected = comparison_stages(source, tasks, processor, batch_size=2, noise=UNITS, samples=1)
    lines = (finished_run.parent / PRINTED).read_text().splitlines()
    titles = {line.rpartition(": ")[0] for line in lines if " done in " in line}
    shown = [line for line in lines if " done in " not in line]
    assert titles == {each.title for each in expected} | {QUANTIZING, "verifying the checkpoint"}
    (plan,) = (line for line in lines if f"output in {finished_run}" in line)
    assert "builtin-ocrbench (6 questions)" in plan and "at least 0:" in plan
    assert all("until the end" in line for line in shown if line.startswith("evaluating the"))
    (first,) = (line for line in lines if line.startswith("quantizing: 0/21"))
    assert "until the end" in first and "block 1 of 3" in first


def test_version_and_help() -> None:
    assert call("--version").stdout == f"vlpress {vlpress.__version__}\n"
    shown = call("--help")
    assert shown.exit_code == 0
    verbs = ("run", "plan", "quantize", "export", "pack", "unpack", "eval", "compare")
    for verb in (*verbs, "generate", "imatrix", "inspect", "recover", "teach", "verify"):
        assert f"{verb} " in shown.stdout
        assert call(verb, "--help").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["--frobnicate"], "No such option: --frobnicate"),
        (["run"], "Missing option '--out'"),
        (["run", "-o", "out", "--dtype", "int8"], "'int8'; allowed: auto, bf16, fp16, fp32"),
        (["run", "-o", "out", "--device", "tpu"], "'tpu'; allowed: auto, cpu, cuda, cuda:N"),
        (["run", "-o", "out", "--limit", "0"], "'--limit'"),
        (["run", "nowhere", "-o", "out"], "nowhere: the built-in benchmark files are drawings"),
        (["run", "nowhere", "-o", "out"], "/benchmarks/MMBench/MMBench_DEV_EN.tsv (md5 b6caf"),
        (["run", "own/x", "-o", "out", "--bench", "OCRBench=no"], "benchmark file no does not"),
        (["run", "own/x", "-o", "CKPT", *BENCH], "was not written by this command"),
        (["eval", "own/x", "-o", "CKPT", *BENCH], "was not written by this command"),
        (["eval", "own/x", *BENCH, *BENCH], "give each benchmark once"),
        (["run", "nowhere", "-o", "out", *BENCH], "nowhere: no such folder; give a checkpoint"),
        (["plan", "nowhere"], "nowhere: no such folder"),
        (["plan", "CKPT", "-r", "w5a5"], "recipe 'w5a5' is neither a file nor a preset"),
        (["quantize", "CKPT", "-o", "out", "--format", "hqq"], "format 'hqq' is unknown; allowed"),
        (["quantize", "CKPT", "-o", "out", "-r", "w8a16", "--format", "awq"], "8 bits; it holds 4"),
        (["export", "CKPT", "-o", "out", "--format", "awq"], "is not quantized; load it with"),
        (["export", "CKPT", "-o", "out"], "Missing option '--format'"),
        (["quantize", "CKPT", "-o", "out", "--calib", "no.jsonl"], "no.jsonl does not exist"),
        (["quantize", "CKPT", "-o", "CKPT"], "was not written by this command"),
        # No model is fetched for these: own/x would be looked for on the hub.
        (["eval", "own/x", "-o", "out", "--bench", "mmlu"], "unknown benchmark 'mmlu'; choose one"),
        (["eval", "own/x", "-o", "out", "--rules", "mine"], "unknown extraction profile 'mine'"),
        (["eval", "own/x", "-o", "out", "--prompt-style", "x"], "unknown prompt style 'x'"),
        (["eval", "own/x", "-o", "out", "--bench", "MMBench_DEV_EN"], "needs a local file: write"),
        (["compare", "a", "b", "-o", "out"], "a is no evaluation folder (no run.json)"),
        (["compare", "a", "-o", "out"], "Missing argument 'CANDIDATE...'"),
        (["generate", "CKPT", "hi", "--image", "no.png"], "no.png"),
        (["generate", "CKPT", "hi", "--top-p", "0"], "top_p 0.0: must be above 0"),
        (["generate", "CKPT", "hi", "--draft", "mtp"], "has no module for multi-token prediction"),
        (["generate", "CKPT", "hi", "--draft", "no"], "no: no such folder"),
        (["verify", "CKPT"], "no check was named; give --integer"),
        (["inspect", "CKPT"], "no quantization found in config.json; give a quantized"),
        (["inspect", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_unusable_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*[str(checkpoint) if a == "CKPT" else a for a in arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("vlpress: error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_traceback_on_request() -> None:
    result = call("--traceback", "plan", "nowhere")
    assert result.exit_code == 2
    assert "FileNotFoundError" in result.stderr


def test_interrupts_and_defects_have_their_own_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_with(error: BaseException) -> Callable[..., None]:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        return fail

    monkeypatch.setattr("vlpress.eval.planning.run_plan.plan", fail_with(KeyboardInterrupt()))
    stopped = call("plan", "tiny")
    assert (stopped.exit_code, stopped.stderr) == (3, "interrupted\n")
    monkeypatch.setattr("vlpress.eval.run.run", fail_with(KeyboardInterrupt()))
    stopped = call("run", "-o", "out")
    assert (stopped.exit_code, stopped.stderr) == (
        3,
        f"interrupted; {RESUME}\n",
    )

    monkeypatch.setattr("vlpress.eval.api.evaluate", fail_with(KeyboardInterrupt()))
    assert RESUME in call("eval", "tiny", "-o", "out").stderr
    assert RESUME in call("eval", "tiny").stderr  # the answers are in the cache
    stopped = call("eval", "tiny", "--no-cache")
    assert (stopped.exit_code, stopped.stderr) == (3, f"interrupted; {main.NOT_STORED}\n")

    monkeypatch.setattr("vlpress.eval.planning.run_plan.plan", fail_with(RuntimeError("a bug")))
    monkeypatch.setattr("sys.argv", ["vlpress", "plan", "tiny"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main.main()
    assert ended.value.code == 70
    assert "RuntimeError: a bug" in capsys.readouterr().err


def test_run_again_prints_the_finished_result_as_json(checkpoint: Path, done: Path) -> None:
    result = call("run", checkpoint, "-o", done, *BENCH, *CALIB, "--json")
    assert parsed(result) == json.loads((done / "report" / "report.json").read_text())
    assert "is finished already" in result.stderr


def test_gate_does_not_pass_a_base_without_any_right_answer(checkpoint: Path, done: Path) -> None:
    arguments = ["-o", str(done), *BENCH, *CALIB, "--margin", "99", "--gate", "--json"]
    result = call("run", checkpoint, *arguments)
    assert parsed(result)["verdict"] == "INCONCLUSIVE" and result.exit_code == 4


@pytest.mark.parametrize(("verdict", "code"), [("PASS", 0), ("FAIL", 1), ("INCONCLUSIVE", 4)])
def test_gate_exits_with_the_verdict(
    verdict: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlpress.eval.run.run", lambda **_: {"verdict": verdict})
    arguments = ["run", "tiny", "-o", str(tmp_path / "out"), "--json"]
    assert call(*arguments, "--gate").exit_code == code
    assert call(*arguments).exit_code == 0


def test_run_refuses_a_folder_with_another_recipe(checkpoint: Path, done: Path) -> None:
    result = call("run", checkpoint, "-o", done, *BENCH, *CALIB, "-r", "w8a16")
    assert result.exit_code == 2
    assert "holds other work (recipe.name: w4a16 -> w8a16" in result.stderr


def test_plan_names_every_linear_layer_with_its_fate(checkpoint: Path) -> None:
    plan = parsed(call("plan", checkpoint, "--json"))
    fates = {row["name"]: row["fate"] for row in plan["rows"]}
    assert fates["model.layers.0.self_attn.q_proj"] == "gptq int4 g128 sym"
    assert fates["visual.merger.mlp.0"].startswith("kept, because ")
    assert plan["time"]["solve_seconds"] > 0 and plan["time"]["seconds_per_token"] > 0
    table = call("plan", checkpoint).stdout
    assert "time on this machine: at least" in table
    assert all(f"\n{name} " in table for name in fates)
    assert "21 of 44 linear layers are quantized" in table


def test_plan_pads_the_tower_for_the_tensor_parallel_size(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tower.toml"
    recipe.write_text(
        '[[step]]\nmethod = "rtn"\nbits = 8\ngroup_size = -1\ntargets = ["visual.blocks.*"]\n'
    )
    plan = parsed(call("plan", checkpoint, "-r", recipe, "--tp", "2", "--json"))
    assert [(p["before"], p["after"]) for p in plan["padding"]] == [(92, 256)]
    assert plan["recipe"]["tp"] == 2
    table = call("plan", checkpoint, "-r", recipe).stdout
    assert "in_features 92 padded to 128: kernels need a multiple of 128" in table
    refused = call("plan", checkpoint, "-r", recipe, "--tp", "0")
    assert refused.exit_code == 2 and "--tp" in refused.stderr


def test_quantize_resumes_and_refuses(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    command: Command = ["quantize", checkpoint, "-o", out, "-r", "w8a16-rtn", "--json"]
    made = call(*command)
    assert {layer["bits"] for layer in parsed(made)["layers"]} == {8}
    again = call(*command)
    assert parsed(again) == parsed(made)
    assert "is finished already" in again.stderr
    other = call("quantize", checkpoint, "-o", out, "-r", "w3a16-rtn")
    assert other.exit_code == 2 and "recipe.name: w8a16-rtn -> w3a16-rtn" in other.stderr
    replaced = call("quantize", checkpoint, "-o", out, "-r", "w3a16-rtn", "--overwrite", "--json")
    assert {layer["bits"] for layer in parsed(replaced)["layers"]} == {3}
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_strength_and_token_weights_are_part_of_the_fingerprint(
    checkpoint: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", tmp_path / "recipe.toml"
    text = (
        '[calibration]\nsamples = 2\ntoken_weights = "gradient"\n'
        '[[step]]\nmethod = "gptaq"\nbits = 4\nstrength = 0.25\n'
        'targets = ["model.layers.1.*"]\n'
    )
    recipe.write_text(text)
    command: Command = ["quantize", checkpoint, "-o", out, "-r", recipe]
    made = call(*command)
    assert made.exit_code == 0, made.stderr
    record = json.loads((out / "vlpress.json").read_text())
    assert set(record["calibration"]["token_weights"]["image"]) == {
        "lm_head",
        *(f"model.layers.{i}" for i in range(3)),
    }
    assert {layer["method"] for layer in record["layers"]} == {"gptaq"}
    assert any(layer["target_shift"] > 0 for layer in record["layers"])
    assert "is finished already" in call(*command).stderr
    recipe.write_text(text.replace("0.25", "0.75"))
    assert "holds other work (recipe.step: " in call(*command).stderr
    recipe.write_text(text.replace('"gradient"', "{image = 0.5}"))
    other = call(*command)
    assert other.exit_code == 2 and "recipe.calibration.token_weights" in other.stderr
    recipe.write_text(text)
    assert "token weights by gradient" in call("plan", checkpoint, "-r", recipe).stdout
    assert "token weights" not in call("plan", checkpoint).stdout


def test_inspect_shows_each_layer_with_its_error(done: Path) -> None:
    inspected = parsed(call("inspect", done / "checkpoint", "--json"))
    assert len(inspected["layers"]) == 21 and len(inspected["kept"]) == 23
    layer = next(x for x in inspected["layers"] if x["name"] == "model.layers.1.mlp.down_proj")
    assert (layer["in_features"], layer["out_features"]) == (256, 128)
    assert 0 < layer["final_error"] <= layer["rtn_error"]
    assert "model.layers.1.mlp.down_proj" in call("inspect", done / "checkpoint").stdout


def test_export_changes_the_format_and_back(done: Path, tmp_path: Path) -> None:
    source, there, back = done / "checkpoint", tmp_path / "gptq", tmp_path / "ct"
    command: Command = ["export", source, "-o", there, "--format", "gptq"]
    inspected = parsed(call(*command, "--json"))
    assert inspected["format"] == "gptq" and len(inspected["layers"]) == 21
    assert {layer["scheme"] for layer in inspected["layers"]} == {"int4 g128 sym"}
    again = call(*command)
    assert "is finished already" in again.stderr and "gptq, 21 quant" in again.stdout
    assert call("export", there, "-o", back, "--format", "compressed-tensors").exit_code == 0
    for path in source.iterdir():
        if path.name not in ("work.json", "README.md"):  # the card has the run's scores
            assert (back / path.name).read_bytes() == path.read_bytes(), path.name
    chosen = tmp_path / "chosen"
    assert call("export", there, "-o", chosen, "--format", "auto").exit_code == 0
    named = call("export", there, "-o", chosen, "--format", "compressed-tensors")
    assert "is finished already" in named.stderr
    other = call("export", source, "-o", there, "--format", "awq")
    assert other.exit_code == 2 and "format: gptq -> awq" in other.stderr
    assert call("export", source, "-o", there, "--format", "awq", "--overwrite").exit_code == 0


def test_pack_and_unpack_restore_the_files(done: Path, tmp_path: Path) -> None:
    source, packed, back = done / "checkpoint", tmp_path / "packed", tmp_path / "back"
    result = parsed(call("pack", source, "-o", packed, "--json"))
    assert (
        result["packed_bytes"] < result["bytes"] == sum(p.stat().st_size for p in source.iterdir())
    )
    assert "F32" in call("pack", source, "-o", packed).stdout
    assert call("unpack", packed, "-o", back).exit_code == 0
    restored = {path.name: path.read_bytes() for path in back.iterdir()}
    assert restored == {path.name: path.read_bytes() for path in source.iterdir()}
    refused = call("unpack", source, "-o", tmp_path / "x")
    assert refused.exit_code == 2 and "vlpress-packed.json" in refused.stderr


def test_export_names_layers_that_the_format_cannot_hold(checkpoint: Path, tmp_path: Path) -> None:
    out: Command = ["-o", tmp_path / "int8"]
    assert call("quantize", checkpoint, *out, "-r", "w8a16-rtn").exit_code == 0
    refused = call("export", tmp_path / "int8", "-o", tmp_path / "x", "--format", "awq")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert "q_proj and 20 more layers have 8 bits; it holds 4 only" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["int8"]


def test_the_default_format_holds_what_gptq_cannot(checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "w8a8.toml"
    recipe.write_text(
        '[[step]]\nmethod = "rtn"\nbits = 8\ngroup_size = -1\nactivations = "dynamic"\n'
    )
    assert (
        "checkpoint format: compressed-tensors\n" in call("plan", checkpoint, "-r", recipe).stdout
    )
    plan = parsed(call("plan", checkpoint, "-r", recipe, "--json"))
    inspected = parsed(call("quantize", checkpoint, "-r", recipe, "-o", tmp_path / "out", "--json"))
    assert inspected["format"] == "compressed-tensors"
    assert inspected["bytes"] == plan["candidate_bytes"]
    refused = call("plan", checkpoint, "-r", recipe, "--format", "gptq")
    assert refused.exit_code == 2
    assert "int8 activations" in refused.stderr and "compressed-tensors" in refused.stderr


def test_sizes_agree_between_plan_inspection_and_disk(checkpoint: Path, done: Path) -> None:
    plan = parsed(call("plan", checkpoint, "--json"))
    inspected = parsed(call("inspect", done / "checkpoint", "--json"))
    after = {row["name"]: row["bytes_after"] for row in plan["rows"]}
    assert all(layer["bytes"] == after[layer["name"]] for layer in inspected["layers"])
    assert inspected["bytes"] == plan["candidate_bytes"]
    stored = (done / "checkpoint" / "model.safetensors").stat().st_size
    assert inspected["bytes"] < stored < inspected["bytes"] * 1.1


def test_eval_measures_against_a_reference_and_resumes(done: Path, tmp_path: Path) -> None:
    out, base = tmp_path / "eval", done / "eval" / "base"
    command: Command = [
        "eval",
        done / "checkpoint",
        "-o",
        out,
        *BENCH,
        "--reference",
        base,
        "--json",
    ]
    scores = parsed(call(*command))
    assert scores["benchmarks"]["builtin-ocrbench"]["n"] == 6
    assert scores["fidelity"]["builtin-ocrbench"]["kl_mean"] > 0
    answers = (out / "builtin-ocrbench" / "predictions.jsonl").read_bytes()
    again = parsed(call(*command))
    assert again["benchmarks"] == scores["benchmarks"]
    assert (out / "builtin-ocrbench" / "predictions.jsonl").read_bytes() == answers


def test_eval_of_another_setup_needs_overwrite(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval"
    first: Command = ["eval", done / "checkpoint", "-o", out, *BENCH]
    assert "builtin-ocrbench" in call(*first).stdout
    blank: Command = [*first, "--blank-images", "--json"]
    refused = call(*blank)
    assert refused.exit_code == 2 and "blank_images: False -> True" in refused.stderr
    scores = parsed(call(*blank, "--overwrite"))
    assert scores["benchmarks"]["builtin-ocrbench"]["blank_images"] is True
    written = (out / "builtin-ocrbench" / "predictions.jsonl").stat().st_mtime_ns
    parsed(call(*blank, "--overwrite"))
    assert (out / "builtin-ocrbench" / "predictions.jsonl").stat().st_mtime_ns == written
    parsed(call(*blank, "--fresh"))
    assert (out / "builtin-ocrbench" / "predictions.jsonl").stat().st_mtime_ns > written


def test_eval_without_an_output_folder_leaves_no_files(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    scores = parsed(call("eval", checkpoint, *BENCH, "--json"))
    assert scores["benchmarks"]["builtin-ocrbench"]["n"] == 6
    assert list(tmp_path.iterdir()) == []


def test_compare_exits_with_the_verdict_of_stored_predictions(done: Path, tmp_path: Path) -> None:
    base, candidate = done / "eval" / "base", done / "eval" / "candidate"
    whole = json.loads((done / "report" / "report.json").read_text())
    margin = str(whole["margin"])
    out = tmp_path / "one"
    result = call("compare", base, candidate, "-o", out, "--margin", margin, "--json")
    report = parsed(result)
    assert result.exit_code == VERDICT_CODES[report["verdict"]]
    assert report["benchmarks"] == whole["benchmarks"]
    # The small random model of these tests answers nothing: not even its own copy may pass.
    assert call("compare", base, base, "-o", tmp_path / "b", "--margin", "99").exit_code == 4


def test_reported_command_repeats_the_run(done: Path) -> None:
    report = json.loads((done / "report" / "report.json").read_text())
    program, *words = shlex.split(report["command"])
    result = call(*words, "--json")
    assert program == "vlpress" and "checkpoint is finished already" in result.stderr
    assert parsed(result) == report


def test_compare_several_candidates(done: Path, tmp_path: Path) -> None:
    base, candidate = done / "eval" / "base", done / "eval" / "candidate"
    result = call("compare", base, candidate, base, "-o", tmp_path / "many")
    assert result.exit_code in VERDICT_CODES.values()
    assert "candidate" in result.stdout and "verdict: " in result.stdout
    assert (tmp_path / "many" / "comparison.json").is_file()


def test_generate_answers_about_an_image(checkpoint: Path, tmp_path: Path) -> None:
    image = tmp_path / "red.png"
    buffer = io.BytesIO()
    Image.new("RGB", (60, 60), "red").save(buffer, format="PNG")
    image.write_bytes(buffer.getvalue())
    command: Command = ["generate", checkpoint, "What colour?", "--image", image, "--device", "cpu"]
    answer = parsed(call(*command, "--max-new-tokens", "5", "--json"))
    assert answer["tokens"] <= 5 and answer["prompt_tokens"] > len("What colour?")
    assert call(*command, "--max-new-tokens", "5").stdout == answer["answer"] + "\n"
    drafted = call(*command, "--max-new-tokens", "5", "--draft", "ngram")
    assert drafted.stdout == answer["answer"] + "\n"
    assert drafted.stderr.splitlines()[-1].startswith("draft ngram: ")
    sampled = [
        parsed(call(*command, "--temperature", "5", "--seed", seed, "--json"))["answer"]
        for seed in ("1", "1", "2")
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_export_in_the_format_of_another_runtime(tmp_path: Path) -> None:
    _, checkpoint = exportable("qwen2_vl", tmp_path / "model")
    command: Command = ["export", checkpoint, "-o", tmp_path / "out", "--format", "gguf"]
    shown = call(*command)
    assert shown.exit_code == 0, shown.stderr
    assert "mmproj-out.gguf" in shown.stdout and f"{tmp_path / 'out'}: gguf" in shown.stdout
    described = parsed(call(*command, "--json"))
    assert set(described["files"]) == {"out.gguf", "mmproj-out.gguf"}
    wrong = call("export", checkpoint, "-o", tmp_path / "x", "--format", "gguff")
    assert wrong.exit_code == 2 and "'gguff' is unknown; did you mean gguf?" in wrong.stderr


def test_python_names_are_those_of_the_verbs() -> None:
    verbs = {
        "run",
        "plan",
        "quantize",
        "export",
        "evaluate",
        "compare",
        "generate",
        "imatrix",
        "inspect",
        "split",
        "pixels",
        "push",
        "recover",
        "search",
        "teach",
    }
    in_memory = {"load_model", "quantize_", "recover_", "save_quantized", "load_quantized"}
    assert verbs | in_memory < set(dir(vlpress))
    assert all(callable(getattr(vlpress, name)) for name in verbs | in_memory)
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        vlpress.quantise  # noqa: B018


def test_an_error_raised_while_handling_a_signal_is_an_interrupt(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code that a signal reaches may raise an error of its own instead."""

    def swallow(*_: Any, **__: Any) -> None:
        with pytest.raises(KeyboardInterrupt):
            exit_codes.stop(2, None)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(exit_codes, "_signals", [])
    monkeypatch.setattr("vlpress.quant.api.quantize", swallow)
    stopped = call("quantize", checkpoint, "-o", tmp_path / "out")
    assert stopped.exit_code == 3
    assert stopped.stderr == f"interrupted; {RESUME}\n"
