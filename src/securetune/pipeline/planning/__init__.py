"""A dry run: what a configuration would do, without any weights."""

from securetune.pipeline.planning.plan import plan
from securetune.pipeline.planning.planned import Plan

__all__ = ["Plan", "plan"]
