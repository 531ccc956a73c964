"""Evaluation: answers of a model to harmful, harmless and task prompts, judged and scored."""

from securetune.evaluation.answering import Answerer, EndpointAnswerer, ModelAnswerer
from securetune.evaluation.evaluate import EvaluationPlan, check_evaluation, evaluate, evaluate_answers
from securetune.evaluation.generation import Answer, generate_answers
from securetune.evaluation.judges import Judge, JudgeWithSettings, list_judges, open_judge, register_judge
from securetune.evaluation.keyword_judges import KeywordList, keyword_judge
from securetune.evaluation.labelled_answers import LabelledAnswer, read_development_answers, read_labelled_answers
from securetune.evaluation.llm_judge import LlmJudging
from securetune.evaluation.local_judges import CLASSIFIERS, Classifier, register_classifier
from securetune.evaluation.refusal_rules import declines
from securetune.evaluation.rejudging import judge_saved_responses
from securetune.evaluation.start_model import require_refusing_start_model
from securetune.evaluation.suites import (
    Attack,
    RegisteredSuite,
    Suite,
    SuiteFacts,
    behavior_of,
    list_attacks,
    list_suites,
    load_suite,
    register_attack,
    register_suite,
)
from securetune.evaluation.tasks import RegisteredTask, Task, list_tasks, load_task, register_task
from securetune.evaluation.vllm_answers import VllmAnswerer, check_vllm

__all__ = [
    "CLASSIFIERS",
    "Answer",
    "Answerer",
    "Attack",
    "Classifier",
    "EndpointAnswerer",
    "EvaluationPlan",
    "Judge",
    "JudgeWithSettings",
    "KeywordList",
    "LabelledAnswer",
    "LlmJudging",
    "ModelAnswerer",
    "RegisteredSuite",
    "RegisteredTask",
    "Suite",
    "SuiteFacts",
    "Task",
    "VllmAnswerer",
    "behavior_of",
    "check_evaluation",
    "check_vllm",
    "declines",
    "evaluate",
    "evaluate_answers",
    "generate_answers",
    "judge_saved_responses",
    "keyword_judge",
    "list_attacks",
    "list_judges",
    "list_suites",
    "list_tasks",
    "load_suite",
    "load_task",
    "open_judge",
    "read_development_answers",
    "read_labelled_answers",
    "register_attack",
    "register_classifier",
    "register_judge",
    "register_suite",
    "register_task",
    "require_refusing_start_model",
]
