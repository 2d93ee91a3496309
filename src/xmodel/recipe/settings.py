"""Every setting of a run, with its type, default, bounds and meaning. Nothing is configured anywhere else.

A setting is a dataclass field made by `setting(...)`; the loader, `xmodel recipe schema` and docs/reference are all
derived from it. Integers may be written as people write counts (`2T`, `600k`, `2e12`), floats as `3e-4`.
"""

# ruff: noqa: RUF009 - `setting` makes a field; it is not a default shared by instances
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xmodel.recipe.corpus_settings import (
    ChineseFilters,
    Corpus,
    EnglishFilters,
    Fields,
    Filters,
    LanguageFilters,
    LineFilters,
    NearDuplicates,
    Quality,
    Source,
    source_lists,
)
from xmodel.recipe.pretrain_settings import Phase, Pretrain
from xmodel.recipe.setting import setting

__all__ = [
    "ChineseFilters",
    "Corpus",
    "EnglishFilters",
    "Evaluate",
    "Export",
    "Fields",
    "Filters",
    "LanguageFilters",
    "LineFilters",
    "Model",
    "NearDuplicates",
    "Phase",
    "Pretrain",
    "Quality",
    "Recipe",
    "Report",
    "Source",
    "Tokenizer",
    "Tokens",
    "setting",
    "source_lists",
]


@dataclass
class Tokenizer:
    """A SentencePiece tokenizer, trained on the corpus; or an existing one."""

    path: str = setting(
        "",
        "an existing tokenizer to use as it is, instead of training one: a run, a folder, a SentencePiece .model, a "
        "tokenizer.json, or OWNER/NAME of the hub (at a commit: OWNER/NAME@COMMIT); vocab_size must be its size. "
        "Empty: train",
    )
    model_type: Literal["unigram", "shortest", "bpe"] = setting(
        "unigram",
        "unigram: pieces and segmentation by likelihood; shortest: BPE's pieces, a text cut into as few as it can be, 0 "
        "to 4 % fewer tokens, and 10 % fewer on text of other kinds; bpe: some engines read only it, and it is encoded "
        "several times slower",
    )
    vocab_size: int = setting(
        32_000, "pieces; 16 control pieces and 256 byte pieces are among them", least=300, most=65_536
    )
    character_coverage: float = setting(
        0.9999, "share of characters that get pieces of their own; the rest is spelt in bytes", least=0.98, most=1
    )
    max_piece_length: int = setting(16, "longest piece, in characters", least=1, most=64)
    sample_bytes: int = setting(
        200_000_000, "train on at most this many bytes of text, drawn from the sources by weight", least=10_000
    )
    balance: float = setting(
        0.5,
        "how the sample is drawn: each language, and within it each category, by its weight to this power; 1: as the "
        "mixture weighs them; 0: all languages alike, and all categories of a language",
        least=0,
        most=1,
    )
    # what a piece may hold
    joins: Literal["script", "word", "phrase"] = setting(
        "script",
        "how far a piece may reach. script: letters, Han and signs stay apart; word: to the next space; phrase: several "
        "words of a line, for the fewest tokens (give it a max_piece_length of 32). docs/tokenizer.md has the figures",
    )
    split_digits: bool = setting(True, "every digit is a piece of its own; false: numbers may be pieces")
    han_weight: float = setting(
        1.0,
        "how many times a word with Han characters counts; 2 to 3 where joins is phrase, since English phrases would "
        "otherwise take the place of Chinese words",
        least=0.1,
        most=10,
    )


@dataclass
class Tokens:
    """Documents to token shards."""

    bos: bool = setting(
        True, "begin every document with <s>; it always ends with </s>. Engines add <s> to prompts by default"
    )
    shard_tokens: int = setting(500_000_000, "tokens per shard file", least=1_000, identity=False)
    workers: int = setting(0, "threads that read and encode; 0: one per core", least=0, identity=False)


@dataclass
class Model:
    """The Llama shape. A preset fills what is not given."""

    preset: Literal["", "nano", "micro", "tiny", "small", "medium", "large", "xl", "3b", "7b", "13b", "34b", "70b"] = (
        setting(
            "",
            "a published size by name; the numbers given here come before its own. Empty: every number is given here",
            identity=False,
        )
    )
    layers: int = setting(0, "transformer blocks", least=0)
    heads: int = setting(0, "query heads", least=0)
    kv_heads: int = setting(0, "key/value heads (grouped-query attention)", least=0)
    hidden: int = setting(0, "width of the residual stream", least=0)
    ffn: int = setting(0, "width of the SwiGLU; 0: 8/3 of hidden, rounded up to a multiple of 256", least=0)
    context_length: int = setting(4096, "tokens in a training sequence", least=8)
    position_table: int = setting(
        0, "largest position promised to engines (max_position_embeddings); 0: context_length", least=0
    )
    vocab_size: int = setting(0, "rows of the embedding; 0: the tokenizer's vocab_size", least=0)
    rope_base: float = setting(10_000.0, "base of the rotary frequencies", least=1)
    norm_eps: float = setting(1e-5, "epsilon of RMSNorm", least=0)
    init_std: float = setting(0.02, "standard deviation of the initial weights", least=0)
    tied_embeddings: bool = setting(False, "share the input and output embedding")
    # ---- options that the successors proved, each off by default (docs/pretrain-options.md) ----
    qk_norm: bool = setting(False, "RMSNorm of each query and key head; the checkpoint is then a Qwen3")
    width_base: int = setting(
        0,
        "hidden size at which peak_lr and init_std were tuned; those of other widths follow (muP). 0: used as they are",
        least=0,
    )


@dataclass
class Evaluate:
    """Scores of the finished model, and of checkpoints during training."""

    suites: list[
        Literal["perplexity", "sandbox", "translation", "commonsense", "problem-solving", "chinese", "paper", "beyond"]
    ] = setting(
        ["perplexity", "sandbox", "translation"],
        "what to score; paper: commonsense, problem-solving and chinese (pip install xmodel[harness])",
    )
    shots: list[int] = setting([0, 3], "numbers of solved examples before each multiple-choice question", least=0)
    limit: int | None = setting(None, "score at most this many items of each set", least=1)
    benchmarks: str = setting(
        "",
        "folder of the paper's benchmarks as files (`xmodel evaluate layout`). Empty: the Hugging Face hub's",
    )
    # ---- during training
    during: list[str] = setting(
        ["sandbox", "translation"],
        "what to score during training: suites, and single sets or tasks by name, as in [commonsense, xnli_zh]",
        identity=False,
    )
    limit_during: int = setting(
        48,
        "items of each set in the evaluations during training, the same at every step, drawn from the whole set; 0: none",
        least=0,
        identity=False,
    )
    during_every: int = setting(
        0,
        "steps between these scores, a multiple of pretrain.eval_every; the first and the last evaluation have them "
        "anyway. 0: with each evaluation",
        least=0,
        identity=False,
    )


@dataclass
class Export:
    """What the finished model is written as."""

    dtype: Literal["bf16", "fp32"] = setting("bf16", "number format of the exported weights")
    shard_size: int = setting(
        5_000_000_000, "bytes of weights in one file; a larger model is cut into shards, with an index", least=1_000_000
    )
    licence: str = setting("apache-2.0", "licence named in the model card")


@dataclass
class Report:
    """The page that shows a run."""

    prompts: list[str] = setting(
        ["The capital of France is", "中国的首都是"], "prompts whose continuations the report shows"
    )
    sample_tokens: int = setting(48, "tokens generated for each prompt", least=1)


@dataclass
class Recipe:
    """A whole run."""

    name: str = setting("run", "name of the run; its directory is runs/NAME")
    seed: int = setting(0, "the one seed: sandbox, data order and initial weights follow from it", least=0)
    corpus: Corpus = setting(Corpus, "text in, clean weighted documents out")
    tokenizer: Tokenizer = setting(Tokenizer, "tokenizer training")
    tokens: Tokens = setting(Tokens, "token shards")
    model: Model = setting(Model, "the model's shape")
    pretrain: Pretrain = setting(Pretrain, "the training loop")
    evaluate: Evaluate = setting(Evaluate, "scores")
    export: Export = setting(Export, "export")
    report: Report = setting(Report, "the run's page")
