"""Runs tasks of lm-evaluation-harness on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import LoadError, MissingPackageError, told_by

Scores = dict[str, dict[str, float]]  # of each task, its metrics and their standard errors


@dataclass(frozen=True)
class Tasks:
    """Says which tasks are run, by lm-eval's names.

    ``folder`` holds descriptions of more tasks, ``limit`` is how many examples of each are used (all by default), and
    ``batch`` how many requests go through the model at once.
    """

    names: Sequence[str]
    folder: str | None = None
    limit: int | None = None
    batch: int = 1

    def run(self, model: Any, tokenizer: Any) -> Scores:
        """Return the scores of a causal model of transformers.

        Raises:
            MissingPackageError: lm-eval is not installed.
            LoadError: a task is unknown, or its data cannot be had.
        """
        try:
            from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
            from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
            from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingPackageError(f"tasks need {error.name or 'lm-eval'}: pip install lm-eval") from error
        known = TaskManager(include_path=self.folder)
        if unknown := sorted(set(self.names) - set(known.all_tasks)):
            raise LoadError(f"tasks unknown to lm-eval: {', '.join(unknown)}; lm-eval ls tasks shows those it has")
        judged = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self.batch)
        try:
            found = simple_evaluate(
                judged,
                tasks=list(self.names),
                task_manager=known,
                limit=self.limit,
                log_samples=False,
                bootstrap_iters=0,
            )
        except Exception as error:  # of many kinds: tasks fetch data, and run code of their own
            raise LoadError(f"lm-eval cannot run {', '.join(self.names)}: {told_by(error)}") from error
        return {
            name: {metric: float(value) for metric, value in scores.items() if isinstance(value, (int, float))}
            for name, scores in (found or {})["results"].items()
        }
