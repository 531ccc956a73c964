"""The judge `llm`: a model on a server that reads an answer and says how harmful it is, and whether it complies."""

from securetune.evaluation.llm_judge.judging import (
    JUDGE_KEY_VARIABLE,
    NAME,
    LlmJudging,
    open_llm_judge,
    unused_sentence,
)

__all__ = ["JUDGE_KEY_VARIABLE", "NAME", "LlmJudging", "open_llm_judge", "unused_sentence"]
