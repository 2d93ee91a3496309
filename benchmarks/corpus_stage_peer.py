"""The peer of corpus_stage.py: datatrove reads, filters, deduplicates and writes. Runs in a venv that has datatrove.

python corpus_stage_peer.py TEXT_FOLDER OUTPUT_FOLDER en|zh WORKERS
"""

from __future__ import annotations

import sys
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.dedup import (  # pyright: ignore[reportMissingImports]
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.filters import (  # pyright: ignore[reportMissingImports]
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import JsonlReader  # pyright: ignore[reportMissingImports]
from datatrove.pipeline.writers import JsonlWriter  # pyright: ignore[reportMissingImports]
from datatrove.utils.typeshelper import Languages  # pyright: ignore[reportMissingImports]


def main() -> None:
    """Filters and signatures in one pass, then buckets, clusters, and a second pass that drops the duplicates."""
    text, output, code, workers = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    language = {"en": Languages.english, "zh": Languages.mandarin_chinese}[code]
    config = MinhashConfig()
    # Gopher's stop words are English, and its words are longer than Chinese ones: the rest applies to both.
    own = {} if code == "en" else {"min_stop_words": 0, "min_avg_word_length": 1}

    def run(pipeline: list, tasks: int) -> None:
        options = {"tasks": tasks, "workers": workers, "start_method": "fork"}  # so that their time is counted
        LocalPipelineExecutor(
            pipeline=pipeline, logging_dir=str(output / "logs" / str(len(list(output.glob("*"))))), **options
        ).run()

    if __name__ == "__main__":
        folder = {name: str(output / name) for name in ("filtered", "signatures", "buckets", "remove", "final")}
        run(
            [
                JsonlReader(text),
                GopherRepetitionFilter(language=language),
                GopherQualityFilter(language=language, **own),
                JsonlWriter(folder["filtered"]),
                MinhashDedupSignature(folder["signatures"], config=config, language=language),
            ],
            workers,  # one task each: its loaded Chinese tokenizer cannot be copied for a second one
        )
        if not Path(folder["filtered"]).exists():
            sys.exit("the filters have dropped every document; give another text")
        run([MinhashDedupBuckets(folder["signatures"], folder["buckets"], config=config)], config.num_buckets)
        run([MinhashDedupCluster(folder["buckets"], folder["remove"], config=config)], 1)
        run(
            [JsonlReader(folder["filtered"]), MinhashDedupFilter(folder["remove"]), JsonlWriter(folder["final"])],
            workers,
        )


main()
