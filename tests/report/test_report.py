"""The page of a run: whole and alone at every stage, true to the files, and proof against what they may hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_run import STAGES, fake_run

from xmodel.errors import MachineError, UserError
from xmodel.report import build_report
from xmodel.report.draw import log_ticks, smooth, spread, thinned
from xmodel.report.read import parameters

VOID = {"meta", "wbr", "br", "hr", "img", "link", "input"}
REFERENCES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "formaction", "manifest"}


class Page(HTMLParser):
    """A strict little reader: tags that nest, ids, references, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.styles: list[str] = []
        self.section = ""
        self.texts: dict[str, str] = {}
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = given.get("id") or ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self.ids += [value for key, value in attrs if key == "id" and value]
        self.references += [value or "" for key, value in attrs if key in REFERENCES]
        self.handlers += [key for key, _ in attrs if key.startswith("on")]
        self.styles += [value or "" for key, value in attrs if key == "style"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1:] == [tag], f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.styles.append(data)
            return
        self.texts[self.section] = self.texts.get(self.section, "") + data
        if any(tag in self.open for tag in ("td", "th")):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts.values()).split())

    def row(self, *start: str) -> list[str]:
        """The one table row that begins with these cells."""
        found = [row for row in self.rows if tuple(row[: len(start)]) == start]
        assert len(found) == 1, (start, found)
        return found[0]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture(scope="module")
def html(full: Path) -> str:
    return build_report(full)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- alone -----------------------------------------------------------------------------------------------------------


def assert_alone(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references), page.references
    assert not page.handlers
    for style in page.styles:
        assert "@import" not in style
        assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", style)), style


def test_nothing_is_loaded_from_anywhere(html: str, page: Page) -> None:
    assert_alone(page)
    assert "http://" not in html
    assert "https://" not in html
    assert "default-src 'none'" in html


def test_ids_are_unique_and_every_reference_has_a_target(html: str, page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    targets = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]*)\)", html))
    assert targets <= set(page.ids)


def test_charts_take_their_colours_and_type_from_the_page(html: str) -> None:
    drawings = re.findall(r"<svg viewBox.*?</svg>", html, flags=re.DOTALL)
    assert len(drawings) >= 7 + 2 + 6  # training, means for two numbers of shots, sets
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}", drawing)
        assert "DejaVu" not in drawing
        assert 'role="img" aria-label="' in drawing
    used = set(re.findall(r"var\(--(\w+)\)", html))
    root, dark = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    for scheme in (root, dark):
        assert used <= set(re.findall(r"--(\w+):", scheme))


def test_same_files_give_the_same_bytes(full: Path, html: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(full, tmp_path / "elsewhere")
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert build_report(copy) == html


# ---- true to the files -----------------------------------------------------------------------------------------------


def test_funnel_on_the_page_is_the_funnel_and_adds_up(full: Path, page: Page) -> None:
    funnel = load(full / "corpus" / "funnel.json")

    def counts(row: list[str]) -> list[int]:
        return [int(cell.replace(",", "")) for cell in row[2:6]]

    sums = [0, 0, 0, 0]
    start = next(i for i, row in enumerate(page.rows) if row[:2] == ["Source", "Share of the documents"])
    rows = {row[0]: counts(row) for row in page.rows[start + 1 : start + 2 + len(funnel["sources"])]}
    for name, entry in funnel["sources"].items():
        dropped = sum(reason["documents"] for reason in entry["dropped"].values())
        steps = [entry[step]["documents"] for step in ("read", "validation", "kept")]
        assert rows[name] == [steps[0], dropped, steps[1], steps[2]]
        assert rows[name][0] == sum(rows[name][1:])
        sums = [a + b for a, b in zip(sums, rows[name], strict=True)]
    assert rows["All"] == sums
    for reason, amount in funnel["total"]["dropped"].items():
        assert any(row[0] == reason and row[2] == f"{amount['documents']:,}" for row in page.rows)
    for name, entry in funnel["decontamination"].items():
        figures = [f"{entry[step]:,}" for step in ("items", "searched", "found", "documents")]
        assert [name, *figures] in page.rows
    for kind, entry in funnel["dirt"].items():
        made = next(row for row in page.rows if row[0] == kind and row[1] == f"{entry['made']:,}")
        assert made[2:5] == [
            f"{entry['caught']:,}",
            f"{100 * entry['precision']:.1f}%",
            f"{100 * entry['recall']:.1f}%",
        ]


def test_epochs_are_weight_times_samples_times_context_over_tokens(page: Page) -> None:
    mixture = next(row for row in page.rows if row[:2] == ["sandbox-en", "encyclopaedia"])
    assert mixture[-1] == f"{0.42 * 800 * 32 * 256 / 2_310_000:.2f}" == "1.19"


def test_scores_have_value_interval_chance_and_n(full: Path, page: Page) -> None:
    for suite in ("sandbox", "translation"):
        for result in load(full / "eval" / f"{suite}.json")["results"]:
            if result["metric"] != "acc" or result["set"].startswith("mean"):
                continue
            score = f"{100 * result['value']:.1f}% ±{196 * result['stderr']:.1f}"
            rest = [score, f"{100 * result['chance']:.1f}%", f"{result['items']:,}"]
            assert any(row[0] == result["set"] and [row[3], *row[-2:]] == rest for row in page.rows), result
    sandbox = load(full / "eval" / "sandbox.json")["results"]
    mean = next(row for row in sandbox if row["set"] == "mean_zh" and row["shots"] == 0)
    assert f"Chinese {100 * mean['value']:.1f}% (chance 33%)" in page.text
    assert "1.96 standard errors" in page.text


def test_second_accuracy_and_other_measures(full: Path, page: Page) -> None:
    results = load(full / "eval" / "sandbox.json")["results"]
    normed = next(
        row for row in results if row["set"] == "facts_zh" and row["shots"] == 3 and row["metric"] == "acc_norm"
    )
    assert any(
        row[0] == "facts_zh" and row[4] == f"{100 * normed['value']:.1f}% ±{196 * normed['stderr']:.1f}"
        for row in page.rows
    )
    assert page.row("translation_zh_en", "English", "chrF")[3:] == ["0", "58.20 ±3.61", "9.83", "160"]
    assert page.row("他住在东京。") == ["他住在东京。", "–", "He lives in Tokyo."]
    assert (
        "Of 49,832 documents that are not labelled as dirt, 61 (0.12%) were dropped: duplicate 57, too_short 4."
        in page.text
    )


def test_dots_lie_where_the_values_are(full: Path, html: str) -> None:
    result = load(full / "eval" / "translation.json")["results"][0]
    half = 1.96 * result["stderr"]
    low, high = 100 * (result["value"] - half), 100 * min(1, result["value"] + half)
    assert f'cx="{100 * result["value"]:.2f}%"' in html
    assert f'x1="{low:.2f}%" x2="{high:.2f}%"' in html
    assert f'class="chance" x1="{100 * result["chance"]:.2f}%"' in html


def test_losses_and_held_out_figures_are_the_files(full: Path, page: Page) -> None:
    records = [json.loads(line) for line in (full / "metrics.jsonl").read_text().splitlines()]
    for code, language in (("en", "English"), ("zh", "Chinese")):
        curve = [record for record in records if record["kind"] == "validation" and record["language"] == code]
        ends = [f"{record[key]:.3f}" for key in ("loss", "bits_per_byte") for record in (curve[0], curve[-1])]
        assert page.row(language, "800") == [language, "800", *ends]
        assert f"{language} {curve[0]['bits_per_byte']:.2f} to {curve[-1]['bits_per_byte']:.2f}" in page.text
        held_out = {
            row["metric"]: row for row in load(full / "eval" / "perplexity.json")["results"] if row["language"] == code
        }
        row = page.row("validation", language)
        for cell, metric in zip(row[2:5], ("bits_per_byte", "loss", "perplexity"), strict=True):
            assert cell == f"{held_out[metric]['value']:.3f} ±{1.96 * held_out[metric]['stderr']:.3f}"


def test_page_names_recipe_machine_and_stages(page: Page) -> None:
    for words in (
        "8 layers, width 256",
        "8,192 tokens a step",
        "2.13.0+cpu",
        "Platinum 8481C",
        "3f2c9ab",
        "4,096 pieces",
    ):
        assert words in page.text
    assert page.row("pretrain")[1] == "5m02s"
    assert "北京" in page.texts["samples"]
    assert "model.safetensors" in page.texts["export"]
    assert "not run yet" not in page.text


def test_parameters_of_the_published_model() -> None:
    shape = {"layers": 24, "heads": 32, "kv_heads": 4, "hidden": 2048, "ffn": 5632, "vocab_size": 32000}
    assert parameters({"model": shape}) == (1_188_136_960, 1_057_064_960)
    assert parameters({"model": shape | {"ffn": 0}}) is None
    assert parameters({}) is None


# ---- half-done, damaged, hostile --------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", range(len(STAGES) + 1))
def test_half_done_runs_render_and_say_what_is_missing(tmp_path: Path, done: int) -> None:
    folder = fake_run(tmp_path / "run", STAGES[:done], steps=6)
    page = Page(build_report(folder))
    assert_alone(page)
    sections = {"recipe": ("recipe", "machine"), "evaluate": ("samples",)}
    for i, stage in enumerate(STAGES):
        for section in sections.get(
            stage, () if stage == "tokens" else ("training",) if stage == "pretrain" else (stage,)
        ):
            assert ("not run yet" in page.texts[section]) == (i >= done), (stage, section)
    assert ("pretraining has not run yet" in page.text) == (done <= STAGES.index("pretrain"))


@pytest.mark.parametrize("stage", STAGES)
def test_any_single_stage_renders(tmp_path: Path, stage: str) -> None:
    assert_alone(Page(build_report(fake_run(tmp_path / "run", [stage]))))


def test_training_under_way_says_how_far(tmp_path: Path) -> None:
    page = Page(build_report(fake_run(tmp_path / "run", STAGES[:5], steps=250)))
    assert "for 250 of 800 steps on 2.05M tokens" in page.text
    assert "The scores of the finished model – not run yet" in page.text


@pytest.mark.parametrize("records", [0, 1, 2])
def test_very_short_curves(tmp_path: Path, records: int) -> None:
    folder = fake_run(tmp_path / "run", ["recipe"])
    row = {"kind": "train", "loss": 8.0, "lr": 1e-3, "grad_norm": 1.0, "param_norm": 4.0, "tokens_per_second": 9.0}
    lines = [json.dumps(row | {"step": step, "tokens": 8 * step}) + "\n" for step in range(1, records + 1)]
    lines += [
        json.dumps(
            {
                "kind": "score",
                "step": 5,
                "tokens": 9,
                "set": "facts_en",
                "shots": 0,
                "accuracy": 0.5,
                "stderr": None,
                "chance": 0.25,
                "items": 4,
            }
        )
        + "\n"
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))
    assert "facts_en" in Page(build_report(folder)).text


def test_line_cut_off_by_a_kill_is_left_out(full: Path, html: str, tmp_path: Path) -> None:
    copy = shutil.copytree(full, tmp_path / "cut")
    with open(copy / "metrics.jsonl", "a") as stream:
        stream.write('{"kind": "train", "step": 802, "lo')
    assert build_report(copy) == html
    with open(copy / "metrics.jsonl", "a") as stream:
        stream.write('\nnull\n[1, 2]\n{"kind": "other", "step": 3}\n{"kind": "train"}\n')
    assert build_report(copy) == html


def test_not_a_number_is_tolerated_and_told(full: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(full, tmp_path / "nan")
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    train = [record for record in records if record["kind"] == "train"]
    bad = float("nan"), float("inf"), float("-inf"), None
    for record, value in zip(train[100:104], bad, strict=True):
        record |= {
            "loss": value,
            "grad_norm": value,
            "param_norm": value,
            "mfu_palm": value,
            "tokens_per_second": value,
        }
    for record in records:
        if record["kind"] == "validation" and record["step"] == 400:
            record |= {"loss": float("nan"), "bits_per_byte": float("inf")}
        if record["kind"] == "score" and record["step"] == 100:
            record |= {"accuracy": None, "stderr": float("nan")}
    (copy / "metrics.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    results = load(copy / "eval" / "sandbox.json")
    results["results"][0] |= {"stderr": float("nan")}
    (copy / "eval" / "sandbox.json").write_text(json.dumps(results))
    html = build_report(copy)
    assert "4 logged steps have no finite loss" in Page(html).text
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)))


def test_training_that_never_was_finite(tmp_path: Path) -> None:
    folder = fake_run(tmp_path / "run", ["recipe"])
    rows = [
        {"kind": "train", "step": step, "tokens": step, "loss": float("nan"), "grad_norm": float("inf")}
        for step in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "8 logged steps have no finite loss" in Page(build_report(folder)).text


HOSTILE = '</pre></style><script>alert("1")</script><img src=x onerror=alert(2)> & "quoted" \'too\' 中文'


def test_hostile_names_stay_text(full: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(full, tmp_path / "hostile")
    funnel = load(copy / "corpus" / "funnel.json")
    funnel["sources"][HOSTILE] = funnel["sources"].pop("stdlib") | {
        "category": HOSTILE,
        "languages": {HOSTILE: {"documents": 1, "bytes": 1}},
    }
    funnel["total"]["dropped"][HOSTILE] = {"documents": 9, "bytes": 9}
    funnel["dirt"][HOSTILE] = {"made": 1, "caught": 1, "precision": 1, "recall": 1, "reasons": {HOSTILE: 1}}
    files: dict[str, Any] = {
        "corpus/funnel.json": funnel,
        "eval/samples.json": [{"prompt": HOSTILE, "text": HOSTILE, "language": HOSTILE}],
        "run.json": {"command": HOSTILE, "versions": {HOSTILE: HOSTILE}, "hardware": {"gpus": [HOSTILE]}, HOSTILE: HOSTILE},
        "tokenizer/tokenizer-stats.json": {HOSTILE: HOSTILE, "tokens_per_character": {HOSTILE: 1.0}},
        "stages/corpus.json": {"status": "done", "seconds": 1.0, "finished": HOSTILE},
        "eval/other.json": {"suite": HOSTILE, "step": 1, "results": [
            {"set": HOSTILE, "language": HOSTILE, "shots": 0, "metric": metric, "value": 0.5, "stderr": 0.1, "chance": 0.5, "items": 3}
            for metric in ("acc", "loss", HOSTILE)
        ]},
    }  # fmt: skip
    for name, content in files.items():
        (copy / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (copy / "recipe.yaml").write_text(
        json.dumps({"name": HOSTILE, "seed": HOSTILE, "pretrain": {"schedule": HOSTILE}}), encoding="utf-8"
    )
    with open(copy / "metrics.jsonl", "a") as stream:
        stream.write(
            json.dumps(
                {
                    "kind": "score",
                    "step": 5,
                    "set": HOSTILE,
                    "shots": 0,
                    "accuracy": 0.5,
                    "stderr": 0.1,
                    "chance": 0.5,
                    "items": 2,
                }
            )
            + "\n"
        )
        stream.write(
            json.dumps(
                {"kind": "validation", "step": 5, "tokens": 10, "language": HOSTILE, "loss": 3.0, "bits_per_byte": 1.0}
            )
            + "\n"
        )
    html = build_report(copy)
    page = Page(html)
    assert_alone(page)
    assert "<script" not in html
    assert "<img" not in html
    for section in ("corpus", "tokenizer", "training", "scores", "samples", "machine", "recipe"):
        assert "<script>" in page.texts[section], section


def test_damaged_and_absent_runs_are_told_apart(full: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run directory"):
        build_report(tmp_path / "nowhere")
    copy = shutil.copytree(full, tmp_path / "damaged")
    (copy / "corpus" / "funnel.json").write_text("{")
    with pytest.raises(MachineError, match=r"funnel\.json"):
        build_report(copy)


# ---- drawing ----------------------------------------------------------------------------------------------------------


def test_long_curves_are_thinned_but_keep_every_spike() -> None:
    values = [1.0] * 60_000
    values[31_234] = 50.0
    x, y = thinned(range(60_000), values)
    assert len(x) <= 1200
    assert y.max() == 50
    assert x[y.argmax()] == 31_234


def test_moving_mean_leaves_out_gaps() -> None:
    assert smooth([2.0, float("nan"), 4.0]) == [2.0, 3.0, 4.0]
    assert smooth([5.0] * 400) == pytest.approx([5.0] * 400)


@pytest.mark.parametrize("wanted", [[0.0], [50, 50, 50], [98, 99, 100], [0, 1, 60, 61], [-40, 200]])
def test_labels_are_apart_and_inside(wanted: list[float]) -> None:
    places = spread(wanted, 13, 100)
    assert len(places) == len(wanted)
    assert all(b - a >= 13 - 1e-9 for a, b in pairwise(places))
    assert min(places) >= 0
    assert max(places) <= 100


@pytest.mark.parametrize(
    ("low", "high", "most"), [(1, 1000, 7), (9, 820, 3), (90, 130, 7), (130, 190, 7), (1, 1e12, 4), (180, 700_000, 3)]
)
def test_logarithmic_ticks(low: float, high: float, most: int) -> None:
    ticks = log_ticks(low, high, most)
    assert len(ticks) <= most
    assert all(low <= tick <= high for tick in ticks)
    assert len(ticks) > 1


# ---- a real browser ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_chromium_renders_it_without_complaint(html: str, tmp_path: Path, scheme: str) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    file, picture = tmp_path / "report.html", tmp_path / "report.png"
    file.write_text(html, encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=800,1200",
        "--enable-logging=stderr", "--log-level=0", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--no-first-run", f"--screenshot={picture}", file.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"HOME": str(tmp_path)}
    )
    if not picture.exists():
        pytest.skip(f"Chromium does not run here: {result.stderr[-300:]}")
    assert "CONSOLE" not in result.stderr
    from matplotlib.image import imread

    corner = imread(picture)[2, 2, :3]
    assert (corner.mean() < 0.2) == (scheme == "dark")


def test_training_shows_what_was_watched(tmp_path: Path) -> None:
    page = Page(build_report(fake_run(tmp_path / "run")))
    for title in (
        "L2 norm of an update",
        "Time spent waiting for data",
        "Highest memory so far",
        "Skipped steps in all",
        "Norm of each block’s parameters",
        "Norm of each block’s gradients, before clipping",
        "Norm of each block’s update",
    ):
        assert title in page.texts["training"], title
    phases = re.search(r"Rise from ([\d.]+) until (\S+) tokens, within 1% of its highest \(([\d.]+)\)", page.text)
    assert phases is not None
    assert float(phases[1]) < float(phases[3])


def test_figures_that_were_not_watched_are_left_out(tmp_path: Path) -> None:
    """Runs of before: no norms by layer, no update norm, nothing skipped."""
    run = fake_run(tmp_path / "run")
    new = ("update_norm", "data_wait", "memory_peak", "step_seconds_median", "step_seconds_max", "skipped_steps")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key not in new} for row in rows if row["kind"] != "layers"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Page(build_report(run)).texts["training"]
    assert "L2 norm of the parameters" in text
    for title in ("update", "waiting", "memory", "Skipped", "block"):
        assert title not in text, title


def test_phases_of_a_norm_are_told_from_the_curve(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    norms = [10 + 10 * min(step / 100, 1) - 2 * max(0, step - 300) / 100 for step in range(10, 401, 10)]
    rows = [
        {"kind": "train", "step": step, "tokens": 1000 * step, "loss": 1.0, "param_norm": norm}
        for step, norm in zip(range(10, 401, 10), norms, strict=True)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = "Rise from 11.0 until 100k tokens, within 1% of its highest (20.0) until 310k, fall to 18.0."
    assert told in Page(build_report(run)).text


def test_compression_of_the_held_out_documents_beside_what_was_published(tmp_path: Path) -> None:
    from xmodel.report.sections import PUBLISHED_COMPRESSION
    from xmodel.tokenizer.compare_output import PUBLISHED

    assert PUBLISHED_COMPRESSION == PUBLISHED
    folder = fake_run(tmp_path / "run", ["recipe", "tokenizer", "tokens"])
    page = Page(build_report(folder))
    text_tokens = 61_000 - 2 * 610  # without <s> and </s>
    assert page.row("English")[1:] == [
        f"{text_tokens / 240_000:.4f}", f"{text_tokens / 244_000:.4f}", "610", "240,000", "244,000", f"{text_tokens:,}",
    ]  # fmt: skip
    assert page.row("All", "0.3430")[2:4] == ["0.2450", "1,050"]
    assert page.row("LLaMA 2") == ["LLaMA 2", "32,000", "0.7524"]
    assert "of a text that was not published" in page.text
    old = json.loads((folder / "tokens" / "manifest.json").read_text())  # of a run from before characters were counted
    for entry in old["validation"].values():
        del entry["characters"]
    (folder / "tokens" / "manifest.json").write_text(json.dumps(old))
    assert Page(build_report(folder)).row("English")[1:3] == ["–", f"{text_tokens / 244_000:.4f}"]
