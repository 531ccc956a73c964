"""Fit the weights of `refusal-rules` to the development answers: `python benchmarks/fit_refusal_rules.py`.

It writes `weights.json` beside the rules. The test half is not read.
"""

from __future__ import annotations

import json
from pathlib import Path

import securetune.evaluation.refusal_rules as refusal_rules
from securetune.evaluation import read_development_answers
from securetune.evaluation.refusal_rules.fitting import fit_weights

WEIGHTS = Path(refusal_rules.__file__).with_name("weights.json")

if __name__ == "__main__":
    WEIGHTS.write_text(json.dumps(fit_weights(read_development_answers()), indent=1) + "\n", encoding="utf-8")
    print(WEIGHTS)
