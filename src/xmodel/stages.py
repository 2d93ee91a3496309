"""The flow: corpus → tokenizer → tokens → pretrain → evaluate → export → report, as one table of stages.

Each function here only joins rooms: it opens what the stage reads, calls the room's public function, and returns the
figures that a person wants to see at once. Heavy modules are imported where they are used.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodel.console import log, read_json_lines, table
from xmodel.errors import Interrupted, MachineError
from xmodel.files import atomic_folder, atomic_write, read_json, write_json
from xmodel.recipe.dump import identity_settings
from xmodel.recipe.settings import Recipe
from xmodel.run import Run, Stage, fingerprints, stands, work_folder

SAVE_SECONDS = 120  # for the ranks to save when they are asked to stop, before torchrun kills them


def _corpus_inputs(recipe: Recipe) -> list[Path]:
    from xmodel.corpus.sources import input_files

    return input_files(recipe.corpus)


def _corpus(run: Run, folder: Path) -> dict[str, Any]:
    from xmodel.corpus.pipeline import build_corpus

    settings, work = run.recipe.corpus, work_folder(run, "corpus")
    total = build_corpus(settings, seed=run.recipe.seed, folder=folder, work=work, ray=run.ray)["total"]
    return {name: total[name]["documents"] for name in ("read", "validation", "kept")}


def corpus_share(run: Run, rank: int, world: int) -> dict[str, Any]:
    """One task's share of the corpus stage's reading and filtering, left for the stage itself to finish."""
    from xmodel.corpus.pipeline import carry_out_share

    stage = STAGES[0]
    if stands(run, stage, fingerprints(STAGES, run.recipe)[stage.name]):
        log(f"corpus: stands ({run.path(stage.output)})")
        return {"stage": "corpus", "status": "stands"}
    work = work_folder(run, stage.output)
    done, shards = carry_out_share(run.recipe.corpus, seed=run.recipe.seed, work=work, rank=rank, world=world)
    log(f"corpus: rank {rank} of {world} is done; {done} of {shards} shards stand; `xmodel corpus` does the rest")
    return {"stage": "corpus", "status": "share done", "shards": shards, "done": done}


def _tokenizer_inputs(recipe: Recipe) -> list[Path]:
    path = Path(recipe.tokenizer.path)
    if not recipe.tokenizer.path or not path.exists():
        return []
    names = ("tokenizer.json", "tokenizer_config.json", "*.model", "codec.json")
    return [path] if path.is_file() else sorted({file for name in names for file in path.glob(f"**/{name}")})


def _tokenizer(run: Run, folder: Path) -> dict[str, Any]:
    from xmodel.corpus.mixture import sample_texts
    from xmodel.tokenizer.adopt import CHECKED_BYTES, adopt
    from xmodel.tokenizer.train import train

    settings, bos = run.recipe.tokenizer, run.recipe.tokens.bos
    size = min(settings.sample_bytes, CHECKED_BYTES) if settings.path else settings.sample_bytes
    texts = sample_texts(run.path("corpus"), run.recipe.corpus, size, settings.balance)
    if settings.path:
        figures = adopt(texts, settings, folder, add_bos=bos)
    else:
        figures = train(texts, settings, folder, seed=run.recipe.seed, add_bos=bos)
    by_language = {
        f"bytes_per_token_{name}": figures[name]["bytes_per_token"] for name in ("en", "zh") if name in figures
    }
    return {"pieces": figures["vocab_size"]} | by_language


def _tokens(run: Run, folder: Path) -> dict[str, Any]:
    from xmodel.tokenizer.codec import Tokenizer
    from xmodel.tokens.write import write_tokens

    tokenizer, work = Tokenizer.load(run.path("tokenizer")), work_folder(run, "tokens")
    fingerprint = fingerprints(STAGES, run.recipe)["tokens"]
    manifest = write_tokens(run.path("corpus"), tokenizer, run.recipe.tokens, folder, work, fingerprint)
    return {part: sum(source["tokens"] for source in manifest[part].values()) for part in ("train", "validation")}


def _pretrain(run: Run, folder: Path) -> dict[str, Any]:
    if run.processes > 1:
        return _pretrain_in_processes(run)
    return pretrain_here(run)


def pretrain_here(run: Run) -> dict[str, Any]:
    """Train in this process: alone, or as one rank of torchrun."""
    from xmodel.evaluate.during import score_during
    from xmodel.pretrain.loop import pretrain
    from xmodel.tokenizer.codec import Tokenizer

    tokenizer = Tokenizer.load(run.path("tokenizer"))
    questions, bos = run.path("corpus", "questions"), run.recipe.tokens.bos
    first = os.environ.get("RANK", "0") == "0"  # the one that scores
    score = score_during(tokenizer, questions, run.recipe.evaluate, bos) if first else lambda model: []
    return pretrain(run.recipe, run.path("tokens"), run.folder, score)


def _pretrain_in_processes(run: Run) -> dict[str, Any]:
    """The same command under torchrun, one process per device; this process waits and keeps the lock."""
    from xmodel.pretrain.checks import check_before

    settings = run.recipe.pretrain
    check_before(run.recipe, run.path("tokens"), run.folder, run.processes)  # what no restart would mend
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.processes}"]
    launcher += [f"--max-restarts={settings.max_restarts}"]
    patience = int(min(SAVE_SECONDS, 60 * settings.timeout_minutes))
    environment = {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(patience),  # torch 2.11 waits 30 seconds whatever it says
        # A shared store keeps the addresses of the processes before: after a restart a rank may call a dead one.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    child = subprocess.Popen(
        [*launcher, "-m", "xmodel", "pretrain", "--worker", str(run.folder)], env=os.environ | environment
    )
    try:
        code = child.wait()
    except (Interrupted, KeyboardInterrupt):
        child.terminate()  # torchrun passes it on; the ranks save and leave
        child.wait()
        raise
    if code != 0:
        raise MachineError(
            f"a training process failed (torchrun's exit code {code}), {settings.max_restarts} restarts did not help; "
            "its message stands above, and the same command goes on from the newest checkpoint"
        )
    return read_json(run.path("checkpoints", "summary.json"))


def checkpoint_folder(run: Run) -> Path:
    """The newest whole checkpoint of the run."""
    from xmodel.pretrain.checkpoint_files import newest_checkpoint

    found = newest_checkpoint(run.path("checkpoints"))
    if found is None:
        raise MachineError(f"{run.path('checkpoints')}: no whole checkpoint; `xmodel pretrain {run.folder}` makes one")
    return found


def contaminated(run: Path, ready: Sequence[Any], anyway: bool = False) -> Any:
    """Which questions of benchmarks stand in the training text of a run; see `evaluate.met.met_questions`."""
    from xmodel.console import progress
    from xmodel.evaluate import met

    def search(paths: Sequence[Path], asked: Sequence[met.Asked]) -> dict[str, Any]:
        from xmodel.corpus.contamination import Asked, scan

        with progress("evaluate contamination", None, "bytes") as shown:
            return scan(paths, [Asked(*item) for item in asked], shown.advance)

    return met.met_questions(run, ready, search, anyway=anyway)


def _evaluate(run: Run, folder: Path) -> dict[str, Any]:
    from xmodel.evaluate.replicas import every_gpu
    from xmodel.evaluate.suites import run_suites, write_result
    from xmodel.inference.generate import generate_text
    from xmodel.inference.subjects import open_subject

    checkpoint = checkpoint_folder(run)
    step = int(checkpoint.name.removeprefix("step-"))
    train, wanted = run.recipe.pretrain, run.recipe.evaluate
    subject = open_subject(str(checkpoint), device=train.device)
    model, tokenizer, bos = subject.model, subject.tokenizer, subject.bos
    # The tasks of the paper's suites are kept outside the stage's own folder: what is scored there stands.
    suites = run_suites(
        model,
        tokenizer,
        run.path("corpus"),
        wanted,
        bos,
        train.eval_tokens,
        train.document_mask,
        subject=subject,
        folder=run.path("evaluations", f"step-{step}"),
        devices=every_gpu() if train.device == "auto" else (),
        look_up=lambda ready: contaminated(run.folder, ready),
    )
    for name, results in suites.items():
        write_result(folder / f"{name}.json", name, step, results)
    samples = [
        {
            "prompt": prompt,
            "text": "".join(
                generate_text(model, tokenizer, prompt, bos=bos, max_new_tokens=run.recipe.report.sample_tokens)
            ),
        }
        for prompt in run.recipe.report.prompts
    ]
    write_json(folder / "samples.json", samples)
    return {"suites": ", ".join(suites)}


def _export(run: Run, folder: Path) -> dict[str, Any]:
    export_to(run, folder / "hf")
    return {"format": "hf"}


def export_to(run: Run, folder: Path) -> None:
    """Write the run's newest checkpoint for Hugging Face transformers, with a model card of the run's numbers."""
    from xmodel.export.hf import export_hf

    with atomic_folder(folder) as partial:
        export_hf(run.folder, checkpoint_folder(run), partial, run.recipe.export)


def _report(run: Run, path: Path) -> dict[str, Any]:
    from xmodel.report import build_report

    page = build_report(run.folder)
    with atomic_write(path, "w") as stream:
        stream.write(page)
    return {"page": str(path)}


STAGES = (
    Stage(
        name="corpus",
        output="corpus",
        needs=(),
        settings=lambda recipe: [recipe.seed, identity_settings(recipe.corpus)],
        inputs=_corpus_inputs,
        carry_out=_corpus,
        version=2,
    ),
    Stage(
        name="tokenizer",
        output="tokenizer",
        needs=("corpus",),
        settings=lambda recipe: [identity_settings(recipe.tokenizer), recipe.tokens.bos],
        inputs=_tokenizer_inputs,
        carry_out=_tokenizer,
        version=2,
    ),
    Stage(
        name="tokens",
        output="tokens",
        needs=("corpus", "tokenizer"),
        settings=lambda recipe: identity_settings(recipe.tokens),
        carry_out=_tokens,
    ),
    Stage(
        name="pretrain",
        output="checkpoints",
        needs=("tokens",),
        settings=lambda recipe: [identity_settings(recipe.model), identity_settings(recipe.pretrain)],
        carry_out=_pretrain,
        resumable=True,
    ),
    Stage(
        name="evaluate",
        output="eval",
        needs=("pretrain",),
        settings=lambda recipe: [identity_settings(recipe.evaluate), identity_settings(recipe.report)],
        carry_out=_evaluate,
    ),
    Stage(
        name="export",
        output="export",
        needs=("evaluate",),
        settings=lambda recipe: identity_settings(recipe.export),
        carry_out=_export,
    ),
    Stage(
        name="report",
        output="report.html",
        needs=("export",),
        settings=lambda recipe: recipe.name,
        carry_out=_report,
    ),
)
NAMES = tuple(stage.name for stage in STAGES)


def scores(run: Run) -> list[dict[str, Any]]:
    """All result rows of the run's finished evaluation."""
    rows = []
    for path in sorted(run.path("eval").glob("*.json")):
        content = read_json(path)
        if isinstance(content, dict):
            rows += [{"suite": content["suite"], **row} for row in content["results"]]
    return rows


def final_table(run: Run) -> str:
    """What a finished run amounts to: held-out loss from first to last, and every mean score beside its chance."""
    rows: list[list[str]] = []
    validation = [row for row in read_json_lines(run.path("metrics.jsonl")) if row["kind"] == "validation"]
    for language in ("en", "zh"):
        losses = [row for row in validation if row["language"] == language]
        if losses:
            first, last = losses[0], losses[-1]
            for key, label, unit in (
                ("loss", "held-out loss", "nats/token"),
                ("bits_per_byte", "held-out bits/byte", "bits"),
            ):
                rows.append([f"{label} ({language})", f"{last[key]:.3f}", f"from {first[key]:.3f}", unit])
    for row in scores(run):
        mean = row["set"].startswith("mean") and row["metric"] in ("acc", "mean")
        if mean or (row["metric"] == "acc" and row["suite"] == "translation"):
            shots = "" if row["shots"] is None else f", {row['shots']}-shot"
            error = "" if row["stderr"] is None else f" ± {100 * row['stderr']:.1f}"
            partial = ", partial" if row.get("partial") else ""
            rows.append(
                [
                    f"{row['set'].replace('_', ' ')} ({row['suite']}{shots}{partial})",
                    f"{100 * row['value']:.1f}{error}",
                    "" if row["chance"] is None else f"chance {100 * row['chance']:.1f}",
                    f"% of {row['items']}",
                ]
            )
    return table(["measure", "value", "beside", "unit"], rows)
